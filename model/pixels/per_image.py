"""albumentations, one image at a time: every draw is a function of the image's key, independent of earlier draws."""

from __future__ import annotations

import contextlib
import inspect
import random
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np

from model.pixels.batched import Arguments
from utils import UserError, nearest

if TYPE_CHECKING:  # it takes a second to import, and batched pipelines do without it
    import albumentations

FIX = "pip install albumentations==2.0.8"
OF_THE_KIT = ("Normalize", "ToTensorV2", "ToTensor3D", "ToFloat")  # what the kit does itself


class PythonRandom(random.Random):
    """Python's interface to a numpy generator: both draw from one stream, and neither buffers numbers."""

    def __init__(self, generator: np.random.Generator):
        self.generator = generator
        super().__init__()

    def __reduce__(self) -> tuple[type[PythonRandom], tuple[np.random.Generator]]:
        return type(self), (self.generator,)

    def seed(self, a: object = None, version: int = 2) -> None:
        """Does nothing: the generator's state is set from outside."""

    def random(self) -> float:
        return self.generator.random()

    def getrandbits(self, k: int) -> int:
        num_bytes = -(-k // 8)
        return int.from_bytes(self.generator.bytes(num_bytes), "little") >> (-k % 8)

    def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
        return mu + sigma * self.generator.standard_normal()


class PerImagePipeline:
    """albumentations' transforms, for one image after another."""

    def __init__(self, transforms: list[Arguments]):
        self.compose = compose(transforms)
        self._stream = np.random.Philox(key=0)
        self._start = self._stream.state
        generator = np.random.Generator(self._stream)
        # One stream for all transforms. With one of its own, of the same seed, each would draw the same numbers, and
        # crops and flips would go together.
        self.compose.set_random_state(generator, PythonRandom(generator))

    def __call__(self, image: np.ndarray, key: int) -> np.ndarray:
        """uint8 (H, W, 3) -> uint8 (h, w, 3), every draw a function of `key`. UserError when it is anything else."""
        self._start["state"]["key"][:] = key, 0
        self._stream.state = self._start
        image = self.compose(image=image)["image"]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"augment: the transforms give {image.dtype} {image.shape}; uint8 (H, W, 3) is expected")
        return image

    def set_chance(self, number: int, p: float) -> None:
        """Let transform `number` happen with probability `p` from now on."""
        self.compose.transforms[number].p = p

    def record(self) -> Arguments:
        """albumentations' own serialisation."""
        import albumentations

        return albumentations.to_dict(self.compose)


def compose(transforms: list[Arguments]) -> albumentations.Compose:
    """albumentations.Compose of the transforms. UserError also for what albumentations would only warn about."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        metadata.version("albumentationsx")
        raise UserError(f"augment: AlbumentationsX (AGPL) is installed; pip uninstall albumentationsx, then {FIX}")
    try:
        import albumentations
        import cv2
    except ImportError:
        raise UserError(f"augment: this pipeline needs albumentations: {FIX}") from None
    if not albumentations.__version__.startswith("2.0."):
        raise UserError(f"augment: albumentations {albumentations.__version__} is not supported by this kit: {FIX}")
    cv2.setNumThreads(0)  # one image at a time is too little for more threads
    return albumentations.Compose([make_transform(transform) for transform in transforms])


def make_transform(transform: Arguments) -> albumentations.BasicTransform:
    """albumentations' transform of that name and with those arguments."""
    import albumentations

    def is_transform(value: object) -> bool:
        return inspect.isclass(value) and issubclass(value, albumentations.BasicTransform)

    # The class.
    name = transform["name"]
    cls = getattr(albumentations, name, None)
    if cls is None or not is_transform(cls):
        names = [name for name, value in vars(albumentations).items() if is_transform(value)]
        raise UserError(f"augment: albumentations has no {name!r}; {nearest(name, names)}")
    if name in OF_THE_KIT:
        raise UserError(f"augment: leave {name} out; the kit normalises and makes tensors itself")
    # Its arguments.
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in transform.items() if key != "name"}
    allowed = [key for key in inspect.signature(cls.__init__).parameters if key not in ("self", "always_apply")]
    for key in given:
        if key not in allowed:
            raise UserError(f"augment: {name} takes no {key!r}; {nearest(key, allowed)}")
    try:
        return cls(**given)
    except (ValueError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and "For further" not in line]
        raise UserError(f"augment: {name} refuses its arguments: {' '.join(lines[1:3] or lines)[:200]}") from None
