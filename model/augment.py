"""What happens to the pixels between the base image and the net. Every draw is a function of its counters.

A pipeline is a list of albumentations transforms as data. When each of them has a batched twin here, the
whole batch is augmented at once on the device; otherwise albumentations does it per image. Add a preset:
one function and one line in PRESETS.
"""

import contextlib
import inspect
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from include import VERSION
from model.pixels.batched import fit_batch, twin_of, uniform
from model.pixels.fused import BoxRecipe, Recipe, make_recipe
from params import Params
from utils import UserError, key64, nearest

Transforms = list[dict[str, Any]]
FLIP = "HorizontalFlip"


# --- presets ------------------------------------------------------------------------------------------


def none(im_sz: int, base: int) -> Transforms:
    return [{"name": "CenterCrop", "height": im_sz, "width": im_sz}] if base != im_sz else []


def crop(im_sz: int, base: int) -> Transforms:
    """Up to 64 px: pad by an eighth and cut at random (4 px at 32). Above: 35 to 100 % of the area."""
    if base > im_sz:
        return [
            {
                "name": "RandomResizedCrop",
                "size": [im_sz, im_sz],
                "scale": [0.35, 1.0],
                "ratio": [0.75, 4 / 3],
            }
        ]
    margin = im_sz // 8
    return [
        {
            "name": "PadIfNeeded",
            "min_height": im_sz + 2 * margin,
            "min_width": im_sz + 2 * margin,
            "border_mode": 4,
        },
        {"name": "RandomCrop", "height": im_sz, "width": im_sz},
    ]


def flip_crop(im_sz: int, base: int) -> Transforms:
    return [*crop(im_sz, base), {"name": FLIP, "p": 0.5}]


def strong(im_sz: int, base: int) -> Transforms:
    """flip_crop, colours, small turns, and a hole (cutout)."""
    side = im_sz // 4
    hole = {"num_holes_range": [1, 1], "hole_height_range": [side, side], "hole_width_range": [side, side]}
    return [
        *flip_crop(im_sz, base),
        {
            "name": "ColorJitter",
            "brightness": [0.7, 1.3],
            "contrast": [0.7, 1.3],
            "saturation": [0.7, 1.3],
            "hue": [-0.05, 0.05],
            "p": 0.8,
        },
        {"name": "Affine", "rotate": [-15, 15], "scale": [0.9, 1.1], "p": 0.5},
        {"name": "CoarseDropout", **hole, "fill": 128, "p": 0.5},
    ]


PRESETS: dict[str, Callable[[int, int], Transforms]] = {
    "none": none,
    "crop": crop,
    "flip_crop": flip_crop,
    "strong": strong,
}


class PythonRandom(random.Random):
    """Python's interface to a numpy generator: both draw from one stream, and neither keeps anything back."""

    def __init__(self, generator: np.random.Generator):
        self.generator = generator
        super().__init__()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.generator,)

    def seed(self, *_: Any) -> None:
        """The generator's state is set from outside."""

    def random(self) -> float:
        return self.generator.random()

    def getrandbits(self, k: int) -> int:
        return int.from_bytes(self.generator.bytes(-(-k // 8)), "little") >> (-k % 8)

    def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
        return mu + sigma * self.generator.standard_normal()


class Augment:
    """The augmentation of a training set. `batched`: by `batch` on the device; else by `image` in workers."""

    def __init__(self, transforms: Transforms, im_sz: int, seed: int, per_image: bool = False, alternate: bool = False):
        self.transforms, self.im_sz, self.seed, self.alternate = transforms, im_sz, seed, alternate
        twins = [twin_of(transform) for transform in transforms]
        self.twins = [twin for twin in twins if twin]
        self.batched = len(self.twins) == len(twins) and not per_image
        self._recipes: dict[Any, Recipe | BoxRecipe | None] = {}
        self._pipeline: Any = None
        if not self.batched:
            self._pipeline = build_pipeline(transforms)
            self._stream = np.random.Philox(key=0)
            self._fresh = self._stream.state
            generator = np.random.Generator(self._stream)
            # One stream for all transforms. With one of its own, of the same seed, each would draw the same numbers,
            # and crops and flips would go together.
            self._pipeline.set_random_state(generator, PythonRandom(generator))

    def draws(self, epoch: int, indices: np.ndarray, streams: list[str]) -> np.ndarray:
        """(number of streams, B) in [0, 1). With `alternate`, flips are drawn once and then take turns by epoch."""
        drawn = uniform(self.seed, epoch, indices, streams)
        if self.alternate:
            for row, stream in zip(drawn, streams, strict=True):
                if stream.endswith("flip"):
                    first = uniform(self.seed, 0, indices, [stream])[0]
                    row[:] = 1 - 2.0**-53 - first if epoch % 2 else first
        return drawn

    def batch(self, images: Tensor, epoch: int, indices: np.ndarray) -> Tensor:
        """uint8 (B, S, S, 3) -> uint8 (B, im_sz, im_sz, 3), one transform after another: what `pieces` means."""
        for number, (function, arguments) in enumerate(self.twins):

            def draw(stream: str, number: int = number) -> np.ndarray:
                return self.draws(epoch, indices, [f"{number}{stream}"])[0]

            images = function(images, arguments, draw)
        return fit_batch(images, self.im_sz)

    def pieces(
        self, store: Tensor, rows: np.ndarray, epoch: int, indices: np.ndarray
    ) -> Iterator[tuple[slice, Tensor]]:
        """The batch of `store[rows]`, in pieces: (which of its images, uint8 (b, im_sz, im_sz, 3)).

        store (N, S, S, 3) uint8, contiguous, on any device; rows (B,): where in it the images `indices` lie. At once
        where that is equal; else by `batch`.
        """
        form = (*store.shape[1:3], store.device.type == "cpu")
        if form not in self._recipes:
            self._recipes[form] = make_recipe(self.twins, *form[:2], self.im_sz, on_cpu=form[2])
        recipe = self._recipes[form]
        if recipe:
            yield from recipe.pieces(store, rows, partial(self.draws, epoch, indices))
        else:
            found = store.index_select(0, torch.from_numpy(rows).to(store.device))
            yield slice(0, len(rows)), self.batch(found, epoch, indices)

    def image(self, image: np.ndarray, epoch: int, index: int) -> np.ndarray:
        """uint8 (S, S, 3) -> uint8 (im_sz, im_sz, 3), by albumentations."""
        self._fresh["state"]["key"][:] = key64(self.seed, "augment", epoch, index), 0
        self._stream.state = self._fresh
        if self.alternate:
            self._turn_flips(epoch, index)
        image = self._pipeline(image=image)["image"]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"augment: the transforms give {image.dtype} {image.shape}; uint8 (H, W, 3) is wanted")
        if image.shape[:2] == (self.im_sz, self.im_sz):
            return image
        return fit_batch(torch.from_numpy(np.ascontiguousarray(image))[None], self.im_sz)[0].numpy()

    def _turn_flips(self, epoch: int, index: int) -> None:
        for number, transform in enumerate(self._pipeline.transforms):
            if self.transforms[number]["name"] == FLIP:
                transform.p = float(self.draws(epoch, np.array([index]), [f"{number}flip"])[0, 0] < 0.5)

    def record(self) -> dict[str, Any]:
        """What ran, for record/augm.json: albumentations' serialisation, or the kit's in the same shape."""
        if self._pipeline is not None:
            import albumentations

            return albumentations.to_dict(self._pipeline)
        transforms = [
            {"__class_fullname__": t["name"], **arguments}
            for t, (_, arguments) in zip(self.transforms, self.twins, strict=True)
        ]
        compose = {"__class_fullname__": "Compose", "p": 1.0, "transforms": transforms}
        return {"__version__": f"experiment-folders {VERSION}", "transform": compose}


def make_augment(params: Params, im_sz: int, base_size: int, per_image: bool = False) -> Augment:
    """The augmentation that `params.augment` names or lists; tried once. UserError for what is wrong with it.

    `base_size`: side S of the images it will get. `per_image`: albumentations, even where twins could do it.
    """
    if isinstance(params.augment, str):
        if params.augment not in PRESETS:
            raise UserError(f"augment: unknown preset {params.augment!r}; {nearest(params.augment, PRESETS)}")
        transforms = PRESETS[params.augment](im_sz, base_size)
    else:
        transforms = [{"name": item} if isinstance(item, str) else dict(item) for item in params.augment]
    alternate = bool(params.alternate_flip)
    for flip in [transform for transform in transforms if transform["name"] == FLIP and alternate]:
        if flip.get("p", 0.5) != 0.5:
            raise UserError(f"alternate_flip: {FLIP} has p {flip['p']}; the flips of half the images alternate: 0.5")
    augment = Augment(transforms, im_sz, params.seed, per_image, alternate)
    blank = np.zeros((base_size, base_size, 3), np.uint8)
    try:
        if augment.batched:
            augment.batch(torch.from_numpy(blank)[None], 0, np.zeros(1, np.int64))
        else:
            augment.image(blank, 0, 0)
    except UserError:
        raise
    except Exception as error:  # a transform's own checks raise all kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"augment: on images of {base_size} x {base_size} pixels: {reason}") from None
    return augment


# --- albumentations -------------------------------------------------------------------------------------


def build_pipeline(transforms: Transforms) -> Any:
    """albumentations.Compose of the transforms; what albumentations would only warn about is refused."""
    from importlib import metadata

    fix = "pip install albumentations==2.0.8"
    with contextlib.suppress(metadata.PackageNotFoundError):
        metadata.version("albumentationsx")
        raise UserError(f"augment: AlbumentationsX (AGPL) is installed; pip uninstall albumentationsx, then {fix}")
    try:
        import albumentations
        import cv2
    except ImportError:
        raise UserError(f"augment: this pipeline needs albumentations: {fix}") from None
    if not albumentations.__version__.startswith("2.0."):
        raise UserError(f"augment: albumentations {albumentations.__version__} was never tried with this kit: {fix}")
    cv2.setNumThreads(0)  # one image at a time is too little for more threads
    built = []
    for transform in transforms:
        name = transform["name"]
        arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in transform.items() if key != "name"}
        cls = getattr(albumentations, name, None)
        if not inspect.isclass(cls) or not issubclass(cls, albumentations.BasicTransform):
            names = [
                n
                for n, v in vars(albumentations).items()
                if inspect.isclass(v) and issubclass(v, albumentations.BasicTransform)
            ]
            raise UserError(f"augment: albumentations has no {name!r}; {nearest(name, names)}")
        if name in ("Normalize", "ToTensorV2", "ToTensor3D", "ToFloat"):
            raise UserError(f"augment: leave {name} out; the kit normalises and makes tensors itself")
        allowed = [
            parameter
            for parameter in inspect.signature(cls.__init__).parameters
            if parameter not in ("self", "always_apply")
        ]
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


def mix(
    images: Tensor, labels: Tensor, num_classes: int, mixup: float, cutmix: float, key: int
) -> tuple[Tensor, Tensor]:
    """mixup (arXiv:1710.09412) or CutMix (arXiv:1905.04899) of a batch with itself; both on: one is drawn.

    images (B, 3, H, W), labels (B,) -> images, soft labels (B, K). Every draw is a function of `key`.
    """
    soft = (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()  # (B, K); one_hot reads values
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
