"""The source coordinates of augmented images: computed from the draws before any pixel moves."""

from dataclasses import dataclass, field

import numpy as np

from model.pixels.batched import draw_integers


@dataclass
class Holes:
    """The holes of a CoarseDropout: (B,) top and left corners, and whether the image has one; one size for all."""

    top: np.ndarray
    left: np.ndarray
    is_cut: np.ndarray
    height: int
    width: int
    fill: int

    def select(self, part: slice) -> "Holes":
        return Holes(self.top[part], self.left[part], self.is_cut[part], self.height, self.width, self.fill)


@dataclass
class Windows:
    """Where the images of a batch are cut out: (B,) corners in the padded image, and whether they are mirrored then."""

    top: np.ndarray
    left: np.ndarray
    is_flipped: np.ndarray
    holes: list[Holes] = field(default_factory=list)

    def select(self, part: slice) -> "Windows":
        holes = [hole.select(part) for hole in self.holes]
        return Windows(self.top[part], self.left[part], self.is_flipped[part], holes)


@dataclass(frozen=True)
class Crop:
    """A smaller window, `spare` (down, right) rows and columns of which are cut off."""

    streams: slice  # its rows of the draws: top and left; none: in the middle
    spare: tuple[int, int]

    def apply(self, windows: Windows, draws: np.ndarray) -> None:
        down, right = self.spare
        top = draw_integers(draws[0], down + 1) if len(draws) else down // 2
        left = draw_integers(draws[1], right + 1) if len(draws) else right // 2
        windows.top += top
        windows.left += np.where(windows.is_flipped, right - left, left)  # a mirrored window counts from the right


@dataclass(frozen=True)
class Flip:
    """Mirrors a share `p` of the windows."""

    streams: slice  # flip
    p: float

    def apply(self, windows: Windows, draws: np.ndarray) -> None:
        windows.is_flipped ^= draws[0] < self.p


@dataclass(frozen=True)
class Cutout:
    """A hole of height x width in a share `p` of the windows, which are window_height x window_width."""

    streams: slice  # top, left, whether
    height: int
    width: int
    fill: int
    p: float
    window_height: int
    window_width: int

    def apply(self, windows: Windows, draws: np.ndarray) -> None:
        top = draw_integers(draws[0], self.window_height - self.height + 1)
        left = draw_integers(draws[1], self.window_width - self.width + 1)
        windows.holes.append(Holes(top, left, draws[2] < self.p, self.height, self.width, self.fill))
