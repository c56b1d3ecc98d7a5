"""What happens to the pixels between the base image and the net. Every draw is a function of its counters.

A pipeline is a list of albumentations transforms as data. When each of them has a batched twin here, the
whole batch is augmented at once on the device; otherwise albumentations does it per image. Add a preset:
one function and one line in PRESETS.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, one_hot, pad

from include import VERSION
from params import Params
from utils import UserError, key64, nearest

Transforms = list[dict[str, Any]]


# --- presets ------------------------------------------------------------------------------------------


def none(im_sz: int, base: int) -> Transforms:
    return [{"name": "CenterCrop", "height": im_sz, "width": im_sz}] if base != im_sz else []


def crop(im_sz: int, base: int) -> Transforms:
    """Up to 64 px: pad by an eighth and cut at random (4 px at 32). Above: a random part of 35 to 100 % of the area."""
    if base > im_sz:
        return [{"name": "RandomResizedCrop", "size": [im_sz, im_sz], "scale": [0.35, 1.0], "ratio": [0.75, 4 / 3]}]
    margin = im_sz // 8
    return [
        {"name": "PadIfNeeded", "min_height": im_sz + 2 * margin, "min_width": im_sz + 2 * margin, "border_mode": 4},
        {"name": "RandomCrop", "height": im_sz, "width": im_sz},
    ]


def flip_crop(im_sz: int, base: int) -> Transforms:
    return [*crop(im_sz, base), {"name": "HorizontalFlip", "p": 0.5}]


def strong(im_sz: int, base: int) -> Transforms:
    """flip_crop, colours, small turns, and a hole (cutout)."""
    side = im_sz // 4
    hole = {"num_holes_range": [1, 1], "hole_height_range": [side, side], "hole_width_range": [side, side]}
    return [
        *flip_crop(im_sz, base),
        {"name": "ColorJitter", "brightness": [0.7, 1.3], "contrast": [0.7, 1.3], "saturation": [0.7, 1.3], "hue": [-0.05, 0.05], "p": 0.8},
        {"name": "Affine", "rotate": [-15, 15], "scale": [0.9, 1.1], "p": 0.5},
        {"name": "CoarseDropout", **hole, "fill": 128, "p": 0.5},
    ]


PRESETS: dict[str, Callable[[int, int], Transforms]] = {"none": none, "crop": crop, "flip_crop": flip_crop, "strong": strong}


# --- draws --------------------------------------------------------------------------------------------


def uniform(seed: int, epoch: int, indices: np.ndarray, stream: str) -> np.ndarray:
    """(B,) numbers in [0, 1): a function of (seed, epoch, stream) and of each image's index alone (SplitMix64)."""
    start = np.uint64(key64(seed, epoch, stream))
    with np.errstate(over="ignore"):
        z = start + (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


# --- batched twins: uint8 (B, H, W, 3) -> uint8 (B, h, w, 3) ---------------------------------------------

Draw = Callable[[str], np.ndarray]  # stream -> (B,) numbers in [0, 1)


def pad_batch(images: Tensor, t: dict[str, Any], draw: Draw) -> Tensor:
    """Reflect the border so that the image is at least min_height x min_width."""
    dy, dx = max(0, t["min_height"] - images.shape[1]), max(0, t["min_width"] - images.shape[2])
    if not dy and not dx:
        return images
    chw = images.permute(0, 3, 1, 2)
    margins = (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2)
    return pad(chw.float(), margins, mode="reflect").to(torch.uint8).permute(0, 2, 3, 1)


def crop_batch(images: Tensor, t: dict[str, Any], draw: Draw) -> Tensor:
    """A window per image, all in one gather."""
    height, width = images.shape[1:3]
    top = (draw("top") * (height - t["height"] + 1)).astype(np.int64)
    left = (draw("left") * (width - t["width"] + 1)).astype(np.int64)
    return gather_windows(images, top, left, t["height"], t["width"])


def gather_windows(images: Tensor, top: np.ndarray, left: np.ndarray, height: int, width: int) -> Tensor:
    """(B, H, W, 3) and (B,) corners -> (B, height, width, 3)."""
    num, tall, wide, _ = images.shape
    device = images.device
    rows = torch.from_numpy(np.arange(num) * tall + top).to(device)[:, None] + torch.arange(height, device=device)  # (B, h)
    columns = torch.from_numpy(left).to(device)[:, None] + torch.arange(width, device=device)  # (B, w)
    cells = rows[:, :, None] * wide + columns[:, None, :]  # (B, h, w)
    return images.reshape(-1, 3)[cells.reshape(-1)].reshape(num, height, width, 3)


def center_crop_batch(images: Tensor, t: dict[str, Any], draw: Draw) -> Tensor:
    top, left = (images.shape[1] - t["height"]) // 2, (images.shape[2] - t["width"]) // 2
    return images[:, top : top + t["height"], left : left + t["width"]]


def flip_batch(images: Tensor, t: dict[str, Any], draw: Draw) -> Tensor:
    flip = torch.from_numpy(draw("flip") < t["p"]).to(images.device)
    return torch.where(flip[:, None, None, None], images.flip(2), images)


def resized_crop_batch(images: Tensor, t: dict[str, Any], draw: Draw) -> Tensor:
    """A random part of the area and of a random proportion, resized bilinearly (Szegedy et al., arXiv:1409.4842)."""
    num, height, width, _ = images.shape
    area = height * width * (t["scale"][0] + draw("area") * (t["scale"][1] - t["scale"][0]))
    ratio = np.exp(np.log(t["ratio"][0]) + draw("ratio") * (np.log(t["ratio"][1]) - np.log(t["ratio"][0])))
    w, h = np.minimum(np.sqrt(area * ratio), width), np.minimum(np.sqrt(area / ratio), height)
    left, top = draw("left") * (width - w), draw("top") * (height - h)
    out_h, out_w = t["size"]
    x = (left[:, None] + (np.arange(out_w) + 0.5) / out_w * w[:, None]) / width * 2 - 1  # (B, w) in [-1, 1]
    y = (top[:, None] + (np.arange(out_h) + 0.5) / out_h * h[:, None]) / height * 2 - 1
    grid = np.stack(np.broadcast_arrays(x[:, None, :], y[:, :, None]), axis=-1).astype(np.float32)  # (B, h, w, 2)
    pixels = images.permute(0, 3, 1, 2).float()
    sampled = grid_sample(pixels, torch.from_numpy(grid).to(images.device), padding_mode="border", align_corners=False)
    return sampled.round().to(torch.uint8).permute(0, 2, 3, 1)


def cutout_batch(images: Tensor, t: dict[str, Any], draw: Draw) -> Tensor:
    """One hole of a fixed size per image (DeVries & Taylor, arXiv:1708.04552)."""
    _, height, width, _ = images.shape
    h, w = t["hole_height_range"][0], t["hole_width_range"][0]
    top = torch.from_numpy((draw("hole_top") * (height - h + 1)).astype(np.int64)).to(images.device)
    left = torch.from_numpy((draw("hole_left") * (width - w + 1)).astype(np.int64)).to(images.device)
    applied = torch.from_numpy(draw("hole") < t["p"]).to(images.device)
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows = (y >= top[:, None]) & (y < top[:, None] + h)  # (B, H)
    in_columns = (x >= left[:, None]) & (x < left[:, None] + w)
    hole = in_rows[:, :, None] & in_columns[:, None, :] & applied[:, None, None]
    return images.masked_fill(hole[..., None], int(t["fill"]))


Twin = Callable[[Tensor, dict[str, Any], Draw], Tensor]
TWINS: dict[str, tuple[Twin, dict[str, Any]]] = {  # name -> (twin, the arguments it knows, with their defaults)
    "PadIfNeeded": (pad_batch, {"min_height": None, "min_width": None, "border_mode": 4, "p": 1.0}),
    "RandomCrop": (crop_batch, {"height": None, "width": None, "p": 1.0}),
    "CenterCrop": (center_crop_batch, {"height": None, "width": None, "p": 1.0}),
    "RandomResizedCrop": (resized_crop_batch, {"size": None, "scale": [0.08, 1.0], "ratio": [0.75, 4 / 3], "p": 1.0}),
    "HorizontalFlip": (flip_batch, {"p": 0.5}),
    "CoarseDropout": (
        cutout_batch,
        {"num_holes_range": [1, 1], "hole_height_range": None, "hole_width_range": None, "fill": 0, "p": 0.5},
    ),
}


def twin_of(transform: dict[str, Any]) -> tuple[Twin, dict[str, Any]] | None:
    """The batched function and its full arguments; None when only albumentations can do it."""
    name = transform["name"]
    given = {key: value for key, value in transform.items() if key != "name"}
    if name not in TWINS:
        return None
    function, defaults = TWINS[name]
    merged = defaults | given
    fixed = all(merged.get(key) == defaults[key] for key in ("border_mode", "num_holes_range") if key in defaults)
    sides = [merged[key] for key in ("hole_height_range", "hole_width_range") if key in merged]
    fixed = fixed and all(isinstance(s, list) and s[0] == s[1] and isinstance(s[0], int) for s in sides)
    always = name in ("HorizontalFlip", "CoarseDropout") or merged["p"] == 1.0
    if set(given) - set(defaults) or None in merged.values() or not fixed or not always:
        return None
    return function, merged


class Augment:
    """The augmentation of a training set. `batched`: done by `batch`, on the device; else by `per_image`, in workers."""

    def __init__(self, transforms: Transforms, im_sz: int, seed: int, per_image: bool = False):
        self.transforms, self.im_sz, self.seed = transforms, im_sz, seed
        twins = [twin_of(transform) for transform in transforms]
        self.twins = [twin for twin in twins if twin]
        self.batched = len(self.twins) == len(twins) and not per_image
        self._pipeline: Any = None
        if not self.batched:
            self._pipeline = build_pipeline(transforms)

    def batch(self, images: Tensor, epoch: int, indices: np.ndarray) -> Tensor:
        """uint8 (B, S, S, 3) -> uint8 (B, im_sz, im_sz, 3)."""
        for number, (function, arguments) in enumerate(self.twins):
            images = function(images, arguments, lambda stream, n=number: uniform(self.seed, epoch, indices, f"{n}{stream}"))
        return fit_batch(images, self.im_sz)

    def image(self, image: np.ndarray, epoch: int, index: int) -> np.ndarray:
        """uint8 (S, S, 3) -> uint8 (im_sz, im_sz, 3), by albumentations."""
        self._pipeline.set_random_seed(key64(self.seed, "augment", epoch, index) & 0x7FFFFFFF)
        image = self._pipeline(image=image)["image"]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"augment: the transforms give {image.dtype} {image.shape}; uint8 (H, W, 3) is wanted")
        return fit_batch(torch.from_numpy(np.ascontiguousarray(image))[None], self.im_sz)[0].numpy()

    def record(self) -> dict[str, Any]:
        """What ran, for record/augm.json: albumentations' serialisation, or the kit's in the same shape."""
        if self._pipeline is not None:
            import albumentations

            return albumentations.to_dict(self._pipeline)
        transforms = [{"__class_fullname__": t["name"], **arguments} for t, (_, arguments) in zip(self.transforms, self.twins, strict=True)]
        compose = {"__class_fullname__": "Compose", "p": 1.0, "transforms": transforms}
        return {"__version__": f"experiment-folders {VERSION}", "transform": compose}


def fit_batch(images: Tensor, im_sz: int) -> Tensor:
    """(B, H, W, 3) -> (B, im_sz, im_sz, 3): the centre of a larger image, a smaller one resized."""
    height, width = images.shape[1:3]
    if min(height, width) < im_sz:
        chw = images.permute(0, 3, 1, 2).float()
        chw = torch.nn.functional.interpolate(chw, (im_sz, im_sz), mode="bilinear", antialias=True)
        return chw.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    top, left = (height - im_sz) // 2, (width - im_sz) // 2
    return images[:, top : top + im_sz, left : left + im_sz]


def make_augment(params: Params, im_sz: int, base_size: int, per_image: bool = False) -> Augment:
    """The augmentation that `params.augment` names or lists. UserError for unknown names and arguments."""
    if isinstance(params.augment, str):
        if params.augment not in PRESETS:
            raise UserError(f"augment: unknown preset {params.augment!r}; {nearest(params.augment, PRESETS)}")
        return Augment(PRESETS[params.augment](im_sz, base_size), im_sz, params.seed, per_image)
    transforms = []
    for item in params.augment:
        transform = {"name": item} if isinstance(item, str) else dict(item)
        if not isinstance(transform.get("name"), str):
            raise UserError(f'augment: {item} names no transform; {{"name": "HorizontalFlip", "p": 0.5}} is wanted')
        transforms.append(transform)
    return Augment(transforms, im_sz, params.seed, per_image)


# --- albumentations -------------------------------------------------------------------------------------


def build_pipeline(transforms: Transforms) -> Any:
    """albumentations.Compose of the transforms; what albumentations would only warn about is refused."""
    try:
        import albumentations
    except ImportError:
        raise UserError("augment: this pipeline needs albumentations: pip install albumentations==2.0.8") from None
    if "AGPL" in str(getattr(albumentations, "__license__", "")) or not albumentations.__version__.startswith("2.0."):
        raise UserError(f"augment: albumentations {albumentations.__version__} is not the MIT release: pip install albumentations==2.0.8")
    built = []
    for transform in transforms:
        name = transform["name"]
        arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in transform.items() if key != "name"}
        cls = getattr(albumentations, name, None)
        if not inspect.isclass(cls) or not issubclass(cls, albumentations.BasicTransform):
            names = [n for n, v in vars(albumentations).items() if inspect.isclass(v) and issubclass(v, albumentations.BasicTransform)]
            raise UserError(f"augment: albumentations has no {name!r}; {nearest(name, names)}")
        if name in ("Normalize", "ToTensorV2", "ToTensor3D", "ToFloat"):
            raise UserError(f"augment: leave {name} out; the kit normalises and makes tensors itself")
        allowed = [parameter for parameter in inspect.signature(cls.__init__).parameters if parameter not in ("self", "always_apply")]
        for key in arguments:
            if key not in allowed:
                raise UserError(f"augment: {name} takes no {key!r}; {nearest(key, allowed)}")
        try:
            built.append(cls(**arguments))
        except (ValueError, TypeError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip() and "For further" not in line]
            raise UserError(f"augment: {name} refuses its arguments: {' '.join(lines[1:3] or lines)[:200]}") from None
    return albumentations.Compose(built)


# --- mixing -------------------------------------------------------------------------------------------


def mix(images: Tensor, labels: Tensor, num_classes: int, mixup: float, cutmix: float, key: int) -> tuple[Tensor, Tensor]:
    """mixup (arXiv:1710.09412) or CutMix (arXiv:1905.04899) of a batch with its reverse; both on: one is drawn.

    images (B, 3, H, W), labels (B,) -> images, soft labels (B, K). Every draw is a function of `key`.
    """
    soft = one_hot(labels, num_classes).float()
    rng = np.random.Generator(np.random.Philox(key=key))
    partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    cut = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    share = rng.beta(cutmix, cutmix) if cut else rng.beta(mixup, mixup)
    if cut:
        height, width = images.shape[2:]
        h, w = int(height * (1 - share) ** 0.5), int(width * (1 - share) ** 0.5)
        top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        images = images.clone()
        images[:, :, top : top + h, left : left + w] = images[partner, :, top : top + h, left : left + w]
        share = 1 - h * w / (height * width)
    else:
        images = torch.lerp(images[partner], images, share)
    return images, share * soft + (1 - share) * soft[partner]
