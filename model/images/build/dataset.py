"""The whole build of a dataset folder.

Everything is built in a folder beside the target and renamed at the end, so a killed build leaves no partial dataset.
The next build removes that folder.
"""

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from include import SPLITS, VERSION
from model.images.build.archives import extract
from model.images.build.folders import enter_lone_folder, read_folder
from model.images.build.items import BuildOptions, Item, Remarks
from model.images.build.named import TORCHVISION, make_digits, read_torchvision
from model.images.build.splitting import make_splits
from model.images.build.tables import have_tables, read_images, write_tables
from model.images.build.write import Writer, write_items
from utils import JsonObject, UserError, nearest, read_json, write_json

RECORD = "dataset.json"
HARD_LINKS = "{number:,} images are hard links to {source}: editing one there changes it here; --copy makes copies"


@dataclass
class Built:
    """What a build made."""

    data_dir: Path
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> class -> number of images
    remarks: Remarks = field(default_factory=list)


def build(source: str, data_dir: Path, options: BuildOptions) -> Built:
    """Build `data_dir` from `source`. UserError when the source cannot be read, or data_dir holds something else."""
    request = options.request(source)
    if earlier := find_earlier_build(data_dir, request):
        return earlier
    built = Built(data_dir)
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(data_dir)
    with work_folder(data_dir) as work:
        # Find the images, and say where each belongs.
        items = list(find_items(source, work, options, built.remarks))
        make_splits(items, options, built.remarks)
        has_tables = have_tables(items)
        # Write them beside the target, with a record of what was asked for.
        target = work / "dataset"
        writer = Writer(options.size, copies=bool(options.copy))
        counts = write_items(items, target, writer)
        if has_tables:
            write_tables(items, target)
        if writer.num_links and Path(source).is_dir():  # those of an unpacked archive have no other name
            built.remarks.append(HARD_LINKS.format(number=writer.num_links, source=source))
        built.counts = {split: dict(sorted(counts[split].items())) for split in SPLITS if split in counts}
        record: JsonObject = {"kit": VERSION, "request": request, "counts": built.counts, "remarks": built.remarks}
        write_json(target / RECORD, record)
        # Put them in place.
        if data_dir.exists():
            data_dir.rmdir()  # find_earlier_build saw that it is empty
        os.rename(target, data_dir)
    return built


def work_prefix(data_dir: Path) -> str:
    return f".{data_dir.name}-building-"


@contextlib.contextmanager
def work_folder(data_dir: Path) -> Iterator[Path]:
    """A folder beside `data_dir` that disappears at the end, locked so that no other build removes it."""
    with tempfile.TemporaryDirectory(prefix=work_prefix(data_dir), dir=data_dir.parent) as name:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # where folders cannot be locked, none is removed either
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Path(name)
        finally:
            os.close(descriptor)


def remove_leftovers(data_dir: Path) -> None:
    """Remove the work folders of builds of `data_dir` that were killed."""
    for path in data_dir.parent.glob(f"{glob.escape(work_prefix(data_dir))}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a build that is still running has it
                shutil.rmtree(path)
            finally:
                os.close(descriptor)


def find_earlier_build(data_dir: Path, request: dict[str, object]) -> Built | None:
    """The dataset if the same request built it before, None otherwise. UserError when something else is there."""
    if not data_dir.exists():
        return None
    if not data_dir.is_dir():
        raise UserError(f"--data_dir {data_dir} is a file; name a folder to make")
    if (data_dir / RECORD).exists():
        record = read_json(data_dir / RECORD)
        if record.get("request") == request:
            return Built(data_dir, record["counts"], [*record["remarks"], "was built before, from the same source"])
        raise UserError(
            f"{data_dir} was built by another request ({record.get('request')}); remove it, or give another --data_dir"
        )
    if any(data_dir.iterdir()):
        raise UserError(
            f"{data_dir} is there already and was not made by build_dataset.py; remove it, or give another --data_dir"
        )
    return None


def find_items(source: str, work: Path, options: BuildOptions, remarks: Remarks) -> Iterable[Item]:
    """The images of a source: digits, a torchvision name, an archive or a folder, perhaps with a table of labels."""
    path = Path(source)
    is_named = source == "digits" or (source.lower() in TORCHVISION and not path.exists())
    if options.labels and is_named:
        raise UserError(f"--labels: {source} has labels of its own; leave it out")
    if source == "digits":
        return make_digits(options.size or 32)
    if is_named:
        return read_torchvision(source.lower(), work)
    if not path.exists():
        known = ["digits", *TORCHVISION]
        raise UserError(f"--source {source}: no such folder, archive or known name; {nearest(source, known)}")
    if path.is_file():
        path = extract(path, work / "archive", remarks)
    if options.labels:
        return read_images(path, Path(options.labels), options, remarks)
    return read_folder(enter_lone_folder(path), remarks)
