"""The dataset `image_folder`: {train,valid,test}/CLASS/IMAGE -> the source of each split that was asked for."""

from pathlib import Path

import numpy as np

from model.images import cache
from model.images.dealing import describe_share
from model.images.decode import ImageError, image_size
from model.images.index import Index, check_classes
from model.images.order import position_dtype
from model.images.source import Source, subset
from model.images.subsets import split_by_content
from model.images.tables.splits import Splits, list_splits
from params import Params
from utils import UserError


def base_size(im_sz: int) -> int:
    """The side in pixels of base images: above 64 px, larger than `im_sz`, so that crops can be taken at random."""
    return im_sz if im_sz <= 64 else round(im_sz * 256 / 224)


def image_folder(
    splits: list[str], data_dir: Path, params: Params, im_sz: int | None, cache_dir: Path
) -> tuple[dict[str, Source], int]:
    """({split: Source} for `splits`, im_sz). Images of other splits are not opened.

    Names and labels of train are always listed: the classes come from them, and `im_sz` when it is None.
    UserError for whatever is wrong with the folder.
    """
    listed = list_splits(data_dir)
    listed.check_groups(joins_valid=params.fold is not None)
    folders = listed.folders
    for split in splits:
        if split not in folders and split != "valid":
            possible = ", ".join({**folders, "valid": 0})
            hint = ": --split valid measures what training did not see" if split == "test" else ""
            raise UserError(f"{data_dir} has no {split} split; possible: {possible}{hint}")
    indexes = _list_splits(listed, splits, params)
    im_sz = im_sz or params.im_sz or _native_size(indexes["train"])
    has_valid = "valid" in folders
    needs_whole_train = "valid" in splits and not has_valid
    sources: dict[str, Source] = {}
    for split, index in indexes.items():
        if split in splits or needs_whole_train:
            sources[split] = _open_split(index, params, im_sz, cache_dir)
    if not has_valid and "train" in sources:
        whole = sources.pop("train")
        is_valid = split_by_content(whole, params.valid_fraction)
        parts = {"train": subset(whole, ~is_valid, "train"), "valid": subset(whole, is_valid, "valid")}
        if whole.index.is_grouped and not params.fold:
            balance = describe_share(is_valid, whole.index.labels, whole.index.classes, params.valid_fraction)
            for part in parts.values():
                part.note = "; ".join(filter(None, [balance, part.note]))
        sources |= parts
    return {split: sources[split] for split in splits}, im_sz


def _list_splits(listed: Splits, splits: list[str], params: Params) -> dict[str, Index]:
    """The files of `splits` and of train. UserError when the classes differ, or are not `n_clas`."""
    folders, data_dir = listed.folders, listed.data_dir
    indexes = {split: listed.index(split) for split in folders if split in splits or split == "train"}
    classes = indexes["train"].classes
    for split, index in indexes.items():
        check_classes(index.classes, classes, str(folders[split]), str(folders["train"]))
    if params.n_clas not in (None, len(classes)):
        shown = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
        raise UserError(f"n_clas: {params.n_clas} given, but {data_dir} has {len(classes)} classes: {shown}")
    return indexes


def check_listing(data_dir: Path, params: Params) -> None:
    """UserError when a training would refuse the folders, classes or groups of `data_dir`. Opens no image."""
    listed = list_splits(data_dir)
    listed.check_groups(joins_valid=params.fold is not None)
    _list_splits(listed, ["train", "valid"], params)


def _native_size(index: Index) -> int:
    """The median short side of up to 200 evenly spaced images if that is at most 64 (and at least 8), else 224."""
    sides = []
    for position in np.linspace(0, len(index) - 1, min(200, len(index))).astype(int):
        try:
            sides.append(min(image_size(index.root / index.paths[position])))
        except ImageError:
            continue
    side = int(np.median(sides)) if sides else 224
    return max(8, side) if side <= 64 else 224


def _open_split(index: Index, params: Params, im_sz: int, cache_dir: Path) -> Source:
    """The files of `index` and their base images, without those that cannot be used."""
    size = base_size(im_sz)
    is_trained_on = index.split == "train" or (index.split == "valid" and params.fold is not None)
    form = params.cache
    if form == "jpeg" and not is_trained_on:
        form = "auto"  # lossy images are for training alone
    decoded = cache.open_decoded(index, size, params.resize, form, cache_dir)
    if decoded.bad and params.on_bad_image == "error":
        reasons = "; ".join(list(decoded.bad.values())[:5]) + ("; ..." if len(decoded.bad) > 5 else "")
        raise UserError(
            f"{len(decoded.bad)} of {len(index)} {index.split} images cannot be used: {reasons}. "
            "Repair or remove them, or set on_bad_image to skip"
        )
    whole = Source(
        index,
        decoded.digests,
        decoded.images,
        np.arange(len(index), dtype=position_dtype(len(index))),
        size,
        params.resize,
        decoded.form,
        "; ".join(filter(None, [decoded.note, _describe_absent(index)])),
        skipped=tuple(index.paths[position] for position in decoded.bad),
        jpegs=decoded.jpegs,
    )
    return _without_bad(whole, decoded.bad) if decoded.bad else whole


def _describe_absent(index: Index) -> str:
    """The classes of which a split has no image, as only labels.csv can make one."""
    counts = np.bincount(index.labels, minlength=len(index.classes)).tolist()
    absent = [name for name, count in zip(index.classes, counts, strict=True) if not count]
    return f"no {index.split} image of {', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}" if absent else ""


def _without_bad(whole: Source, bad: dict[int, str]) -> Source:
    """`whole` without the positions in `bad` (position -> reason). UserError when a class loses all its images."""
    is_good = np.ones(len(whole.index), bool)
    is_good[list(bad)] = False
    part = subset(whole, is_good, whole.index.split)
    for name, before, after in zip(part.index.classes, whole.class_counts(), part.class_counts(), strict=True):
        if before and not after:
            first = next(iter(bad.values()))
            raise UserError(f"{part.index.split}: no image of class {name!r} can be used: {first}")
    return part
