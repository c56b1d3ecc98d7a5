"""One image on its way from a source to a dataset folder, and what the user asked for."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Pillow is imported on demand
    from PIL.Image import Image

Remarks = list[str]  # lines that tell the user what was left out or chosen


@dataclass
class Item:
    """Where an image comes from, and where it belongs."""

    split: str  # "" where the source does not say
    label: str
    name: str  # of the file to make
    source: "Path | Image"  # a file, or the pixels themselves
    group: str = ""  # images of one group stay on one side of every split
    folder: str = ""  # of its class, where it cannot be called as the class is
    further: dict[str, str] | None = None  # column -> cell of its row in labels.csv; None: the source has no table
    path: str = ""  # below the dataset folder, once it is written


@dataclass(frozen=True)
class BuildOptions:
    """The flags of build_dataset.py that decide what is built."""

    valid_fraction: float | None = None
    size: int | None = None  # pixels of the short side
    labels: str | None = None  # a CSV file
    image_col: str | None = None
    label_col: str | None = None
    group_col: str | None = None
    copy: bool | None = None  # rather than hard links; None: not asked for
    test_fraction: float | None = field(default=None, kw_only=True)

    def request(self, source: str) -> dict[str, object]:
        """What dataset.json records, and what makes two builds the same: names instead of paths."""
        request: dict[str, object] = {"source": Path(source).name or source}
        request |= {key: value for key, value in asdict(self).items() if value is not None}
        if self.labels is not None:
            request["labels"] = Path(self.labels).name
        return request


def pick_split(place: float) -> str:
    """The split of a place in [0, 1): 70 % train, 15 % valid, 15 % test."""
    return "train" if place < 0.7 else "valid" if place < 0.85 else "test"
