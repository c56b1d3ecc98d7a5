"""A trained net as a function: images in, probabilities by class out. predict.py and export.py are built on it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar, overload

import numpy as np
from torch import Tensor

from engine.use.inference import Trained
from utils import UserError

if TYPE_CHECKING:  # Pillow is imported on demand
    from PIL import Image

    AnyImage: TypeAlias = str | os.PathLike[str] | bytes | np.ndarray | Image.Image

T = TypeVar("T", bound="AnyImage")
READERS = 4  # threads that read and resize while the net computes
Probabilities = dict[str, float]  # by class, the likeliest first


class Preparation(Protocol):
    """What brings images into the form that the net takes: model/images/prepare.py."""

    batch_size: int  # images that go through the net at once

    def read(self, image: AnyImage, /) -> np.ndarray:
        """(base, base, 3) uint8. UserError for what cannot be read."""
        ...

    def batch(self, base_images: Sequence[np.ndarray], /) -> Tensor:
        """(N, 3, im_sz, im_sz) on the device."""
        ...


class Classifier:
    """net(image) is {class: probability}, the likeliest class first; net([image, ...]) is a list of these.

    An image is a path, the bytes of a file, a Pillow image or a uint8 array (H, W, 3). One that cannot be read raises
    UserError; in a list, the error stands in its place, and the others are classified.
    """

    def __init__(self, trained: Trained, preparation: Preparation):
        self.trained = trained
        self.preparation = preparation

    @property
    def classes(self) -> list[str]:
        return self.trained.classes

    @overload
    def __call__(self, images: AnyImage) -> Probabilities: ...
    @overload
    def __call__(self, images: list[T]) -> list[Probabilities | UserError]: ...
    def __call__(self, images: AnyImage | list[T]) -> Probabilities | list[Probabilities | UserError]:
        if isinstance(images, list):
            results = self.probabilities(images)
            return [result if isinstance(result, UserError) else self._by_class(result) for result in results]
        (result,) = self.probabilities([images])
        if isinstance(result, UserError):
            raise result
        return self._by_class(result)

    def probabilities(self, images: Iterable[AnyImage]) -> Iterator[Tensor | UserError]:
        """(K,) float64 of each image, in order, or the error of one that cannot be read."""
        rest = iter(images)
        with ThreadPoolExecutor(READERS) as pool:

            def start_reading() -> list[Future[np.ndarray | UserError]]:
                return [pool.submit(self._try_to_read, image) for image in islice(rest, self.preparation.batch_size)]

            group = start_reading()
            while group:
                following = start_reading()  # the next images are read while the net computes
                read = [future.result() for future in group]
                good = [image for image in read if not isinstance(image, UserError)]
                of_images = iter(self.trained(self.preparation.batch(good)).softmax(dim=1) if good else ())
                yield from (image if isinstance(image, UserError) else next(of_images) for image in read)
                group = following

    def _try_to_read(self, image: AnyImage) -> np.ndarray | UserError:
        try:
            return self.preparation.read(image)
        except UserError as error:
            return error

    def _by_class(self, probabilities: Tensor) -> Probabilities:
        values, order = probabilities.sort(descending=True)
        return {self.classes[number]: value for number, value in zip(order.tolist(), values.tolist(), strict=True)}
