"""Sources -> a dataset folder {train,valid,test}/CLASS/IMAGE: folders, archives, tables, digits, torchvision.

Everything is built in a folder beside the target and renamed at the end: a killed build leaves no half dataset.
"""

import csv
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from include import IMAGE_EXTENSIONS, SPLIT_SYNONYMS, SPLITS, VERSION
from model.images.index import describe_ignored, find_splits, index_split
from utils import UserError, key64, nearest, read_json, write_json

RECORD = "dataset.json"
MAX_MEMBERS, MAX_BYTES = 5_000_000, 1 << 40
TORCHVISION = {
    "cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST",
    "svhn": "SVHN", "stl10": "STL10", "flowers102": "Flowers102", "oxford_pets": "OxfordIIITPet", "food101": "Food101",
    "eurosat": "EuroSAT", "gtsrb": "GTSRB", "dtd": "DTD", "fgvc_aircraft": "FGVCAircraft",
}  # fmt: skip
FLAT = re.compile(r"^(train|valid|validation|val|test)", re.IGNORECASE)


@dataclass
class Item:
    """One image on its way: where it is (or its pixels), and where it belongs."""

    split: str
    label: str
    name: str
    source: Any  # Path of a file, or a PIL image
    group: str = ""


@dataclass
class Built:
    """What a build made: counts per split and class, and remarks."""

    data_dir: Path
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def build(source: str, data_dir: Path, options: dict[str, Any]) -> Built:
    """Build `data_dir` from `source`. `options`: valid_fraction, size, labels, image_col, label_col, group_col.

    UserError when the source cannot be read, or data_dir holds something else already.
    """
    request = {
        "source": Path(source).name or source,
        **{key: value for key, value in options.items() if value is not None},
    }
    if "labels" in request:
        request["labels"] = Path(request["labels"]).name
    if done := already_built(data_dir, request):
        return done
    built = Built(data_dir)
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{data_dir.name}-", dir=data_dir.parent) as work:
        items = list(find_items(source, Path(work), options, built))
        if options.get("valid_fraction"):
            items = split_off(items, options["valid_fraction"])
        target = Path(work) / "dataset"
        write_items(items, target, options.get("size"), built)
        write_json(
            target / RECORD, {"kit": VERSION, "request": request, "counts": built.counts, "remarks": built.remarks}
        )
        if data_dir.exists():
            data_dir.rmdir()  # already_built saw that it is empty
        os.rename(target, data_dir)
    return built


def already_built(data_dir: Path, request: dict[str, Any]) -> Built | None:
    """The dataset when it was built before from the same request. UserError when something else is there."""
    if not data_dir.exists():
        return None
    if not data_dir.is_dir():
        raise UserError(f"--data_dir {data_dir} is a file; name a folder to make")
    if (data_dir / RECORD).exists():
        record = read_json(data_dir / RECORD)
        if record.get("request") == request:
            return Built(data_dir, record["counts"], [*record["remarks"], "was built before, from the same source"])
        raise UserError(
            f"{data_dir} was built from another request ({record.get('request')}); remove it, or another --data_dir"
        )
    if any(data_dir.iterdir()):
        raise UserError(
            f"{data_dir} is there already, and was not made by build_dataset.py; remove it, or another --data_dir"
        )
    return None


def find_items(source: str, work: Path, options: dict[str, Any], built: Built) -> Iterable[Item]:
    """The images of a source: digits, a torchvision name, a table, an archive or a folder."""
    if source == "digits":
        return digits(options.get("size") or 32)
    if source.lower() in TORCHVISION and not Path(source).exists():
        return torchvision_dataset(source.lower(), work)
    path = Path(source)
    if not path.exists():
        known = ["digits", *TORCHVISION]
        raise UserError(
            f"--source {source}: no such folder or archive, nor a name that is known; {nearest(source, known)}"
        )
    if path.is_file():
        path = extract(path, work / "archive")
    if options.get("labels"):
        return table(path, options, built)
    return folder(unwrap(path), built)


# --- folders and archives -----------------------------------------------------------------------------


def extract(archive: Path, target: Path) -> Path:
    """Unpack a .tar, .tar.gz or .zip. UserError for anything that would leave `target`, and for bombs."""
    target.mkdir(parents=True)
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                members = []
                for member in tar:
                    members.append(member)
                    _limit(len(members), member.size, archive)
                tar.extractall(target, members=members, filter="data")
            return target
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                total = 0
                for number, info in enumerate(zipped.infolist()):
                    total += info.file_size
                    _limit(number, total, archive)
                    outside = info.filename.startswith(("/", "\\")) or ".." in Path(info.filename).parts
                    if outside or info.file_size > 1000 * max(1, info.compress_size):
                        raise UserError(f"{archive}: {info.filename!r} is refused (outside the target, or a bomb)")
                zipped.extractall(target)
            return target
    except UserError:
        raise
    except Exception as error:  # of damaged, encrypted and strangely compressed archives, many kinds
        raise UserError(f"{archive}: cannot be unpacked: {' '.join(str(error).split())[:200]}") from None
    raise UserError(f"{archive}: neither a folder nor a .tar, .tar.gz or .zip archive")


def _limit(count: int, num_bytes: int, archive: Path) -> None:
    if count > MAX_MEMBERS or num_bytes > MAX_BYTES:
        raise UserError(f"{archive}: more than {MAX_MEMBERS:,} files or {MAX_BYTES >> 30} GiB are refused")


def unwrap(path: Path) -> Path:
    """The folder that really holds the data: a lone wrapping folder is entered."""
    while True:
        entries = [entry for entry in path.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
        folders = [entry for entry in entries if entry.is_dir()]
        if len(folders) != 1 or len(entries) != 1 or SPLIT_SYNONYMS.get(folders[0].name, folders[0].name) in SPLITS:
            return path
        path = folders[0]


def folder(path: Path, built: Built) -> Iterator[Item]:
    """{train,valid,test}/CLASS, flat CLASS folders, or flat {train,val,test}*/LABEL_NAME.jpg."""
    flat = [
        entry
        for entry in path.iterdir()
        if entry.is_dir() and FLAT.match(entry.name) and not any(e.is_dir() for e in entry.iterdir())
    ]
    if flat:
        built.remarks.append("flat layout: the label is what stands before the first _ of each file name")
        yield from flat_layout(flat, built)
        return
    splits = find_splits(path)
    for split, where in splits.items():
        index = index_split(where, split, path)
        if index.ignored:
            built.remarks.append(f"{split}: {describe_ignored(index.ignored)}")
        for name, label in zip(index.paths, index.labels.tolist(), strict=True):
            yield Item(split, index.classes[label], Path(name).name, path / name)
    for split in ("valid", "test"):
        if split not in splits:
            how = "train.py splits a part off train" if split == "valid" else "evaluate.py can look at --split valid"
            built.remarks.append(f"no {split} split: {how}")


def flat_layout(folders: list[Path], built: Built) -> Iterator[Item]:
    ignored: Counter[str] = Counter()
    for where in sorted(folders):
        split = FLAT.match(where.name)[1].lower()  # type: ignore[index]
        for file in sorted(where.iterdir()):
            label, underscore, _ = file.name.partition("_")
            if not file.name.lower().endswith(IMAGE_EXTENSIONS) or not underscore or file.name.startswith("."):
                ignored[
                    "hidden files" if file.name.startswith(".") else file.suffix.lower() or "files without extension"
                ] += 1
                continue
            yield Item(SPLIT_SYNONYMS.get(split, split), label, file.name, file)
    if ignored:
        built.remarks.append(describe_ignored(ignored))


# --- tables -------------------------------------------------------------------------------------------


def table(path: Path, options: dict[str, Any], built: Built) -> Iterator[Item]:
    """A CSV with a column of image paths and one of labels; images of one group stay on one side of every split."""
    file = Path(options["labels"])
    try:
        with open(file, encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--labels {file}: {getattr(error, 'strerror', None) or error}") from None
    if not rows:
        raise UserError(f"--labels {file}: no rows")
    for option in ("image_col", "label_col", "group_col"):
        if options.get(option) and options[option] not in rows[0]:
            raise UserError(
                f"--{option} {options[option]}: no such column in {file}; {nearest(options[option], rows[0])}"
            )
    image_col, label_col, group_col = (options.get(name) for name in ("image_col", "label_col", "group_col"))
    if not image_col or not label_col:
        raise UserError(f"--labels needs --image_col and --label_col; columns of {file}: {', '.join(rows[0])}")
    found, missing = [], []
    for row in rows:
        image = _find_image(path, row[image_col] or "")
        (found if image else missing).append((row, image))
    if missing:
        names = ", ".join(repr(row[image_col]) for row, _ in missing[:5])
        raise UserError(
            f"--labels {file}: {len(missing)} of {len(rows)} images are not below {path}: "
            f"{names}{', ...' if len(missing) > 5 else ''}"
        )
    for number, (row, image) in enumerate(found):
        label = re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", (row[label_col] or "").strip()).lstrip(".")
        if not label:
            raise UserError(f"--labels {file}: row {number + 2} has no {label_col}")
        group = f"group {row[group_col]}" if group_col else f"image {number}"
        name = f"{number:06d}_{image.name}"  # type: ignore[union-attr]
        yield Item(_side(group), label, name, image, group)
    built.remarks.append(
        "split into 70 % train, 15 % valid, 15 % test"
        + (f", keeping each {group_col} on one side" if group_col else "")
    )


def _find_image(root: Path, name: str) -> Path | None:
    if not name or os.path.isabs(name) or ".." in Path(name).parts:
        return None
    candidates = [root / name, *((root / f"{name}{extension}") for extension in IMAGE_EXTENSIONS)]
    return next((path for path in candidates if path.is_file()), None)


def _side(group: str) -> str:
    place = key64("split", group) / 2**63
    return "train" if place < 0.7 else "valid" if place < 0.85 else "test"


# --- data sets with a name ------------------------------------------------------------------------------


def digits(size: int) -> Iterator[Item]:
    """The 1,797 digits of scikit-learn (8 x 8, enlarged): 70 % train, 15 % valid, 15 % test of each class."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    seen: Counter[int] = Counter()
    totals = Counter(data.target.tolist())
    for number in np.random.Generator(np.random.Philox(key=0)).permutation(len(data.target)):
        label = int(data.target[number])
        place = seen[label] / totals[label]
        seen[label] += 1
        pixels = (data.images[number] * 255 / 16).round().astype(np.uint8)
        image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
        split = "train" if place < 0.7 else "valid" if place < 0.85 else "test"
        yield Item(split, str(label), f"{number:04d}.png", image)


def torchvision_dataset(name: str, work: Path) -> Iterator[Item]:
    """A data set that torchvision downloads and checks."""
    from torchvision import datasets

    cls = getattr(datasets, TORCHVISION[name])
    kwargs: list[dict[str, Any]] = [{"split": "trainval" if name == "oxford_pets" else "train"}, {"split": "test"}]
    if name in ("cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist"):
        kwargs = [{"train": True}, {"train": False}]
    elif name == "eurosat":
        kwargs = [{}]
    for split, arguments in zip(("train", "test"), kwargs, strict=False):
        try:
            data = cls(str(work / "download"), download=True, **arguments)
        except Exception as error:
            reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise UserError(f"--source {name}: cannot be downloaded ({reason}); give an archive or a folder") from None
        names = getattr(data, "classes", None)
        for number, (image, label) in enumerate(data):
            title = re.sub(r"[/\\]", "-", str(names[label])) if names else str(label)
            yield Item(split, title, f"{number:06d}.png", image)


# --- writing ------------------------------------------------------------------------------------------


def split_off(items: list[Item], fraction: float) -> list[Item]:
    """A valid part of train, per class, by content (or by group); an existing valid split is left alone."""
    if any(item.split == "valid" for item in items):
        raise UserError("--valid_fraction: the source has a valid split already; leave it out")

    def content(item: Item) -> int:
        if item.group:
            return key64(item.group)
        data = item.source.read_bytes() if isinstance(item.source, Path) else item.source.tobytes()
        return key64(str(len(data)), data.hex())

    for label in {item.label for item in items}:
        members = sorted((item for item in items if item.label == label and item.split == "train"), key=content)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        keys = [content(item) for item in members]
        while 0 < count < len(members) and keys[count] == keys[count - 1]:
            count += 1
        for item in members[: max(count, 0)]:
            item.split = "valid"
    return items


def write_items(items: list[Item], target: Path, size: int | None, built: Built) -> None:
    """Link or write every image below `target`, and count. UserError when a class or everything is missing."""
    if not items:
        raise UserError("the source holds no images that can be read")
    folders: set[Path] = set()
    with progress(len(items)) as step:
        for item in items:
            where = target / item.split / item.label
            if where not in folders:
                where.mkdir(parents=True, exist_ok=True)
                folders.add(where)
            write_image(item, where, size)
            counts = built.counts.setdefault(item.split, {})
            counts[item.label] = counts.get(item.label, 0) + 1
            step()
    built.counts = {split: dict(sorted(built.counts[split].items())) for split in SPLITS if split in built.counts}


def write_image(item: Item, where: Path, size: int | None) -> None:
    path = where / item.name
    number = 2
    while path.exists():
        path, number = where / f"{Path(item.name).stem}_{number}{Path(item.name).suffix}", number + 1
    if not isinstance(item.source, Path):
        item.source.save(path, "PNG")
    elif size:
        shrink(item.source, path, size)
    else:
        try:
            os.link(item.source, path)
        except OSError:
            shutil.copyfile(item.source, path)


def shrink(source: Path, path: Path, size: int) -> None:
    """Bring the short side of an image to `size` px when it is longer; smaller ones are linked as they are."""
    from PIL import Image

    from model.images.decode import read_image

    image = Image.fromarray(read_image(source))
    if min(image.size) <= size:
        shutil.copyfile(source, path)
        return
    scale = size / min(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        image.save(path, "JPEG", quality=95)
    else:
        image.save(path.with_suffix(".png"), "PNG")


@contextmanager
def progress(total: int) -> Iterator[Any]:
    """A bar on a terminal; nothing elsewhere."""
    from tqdm import tqdm

    bar = tqdm(total=total, desc="building", unit="image", leave=False, disable=None)
    try:
        yield bar.update
    finally:
        bar.close()
