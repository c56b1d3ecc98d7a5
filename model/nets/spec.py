"""What is asked of a net: its name, its arguments and the images that it will see."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NetSpec:
    """What a constructor needs to know of params.json."""

    arch: str
    arch_args: dict[str, object]
    num_classes: int
    dropout: float  # probability before the last layer
    im_sz: int  # px
    folder: Path  # of the experiment: where "file.py:Name" is looked for
    published: str | None  # the tag of the published weights that the net will take; None: none
    small_stem: bool  # a ResNet is to keep small images large

    @property
    def is_own(self) -> bool:
        """A class of the experiment's own."""
        return ".py:" in self.arch
