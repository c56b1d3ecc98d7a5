"""Folders as sources: {train,valid,test}/CLASS, CLASS folders alone, or flat {train,val,test}*/LABEL_NAME.jpg."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from include import IMAGE_EXTENSIONS, SPLIT_SYNONYMS, SPLITS
from model.images.build.items import Item, Remarks
from model.images.build.tables import name_folder
from model.images.index import FLAT, describe_ignored, is_flat_split
from model.images.paths import to_nfc
from model.images.tables.labels import LABELS
from model.images.tables.splits import list_splits


def enter_lone_folder(path: Path) -> Path:
    """The folder that holds the data: descend while a folder holds only one other folder, which is not a split."""
    while True:
        entries = [entry for entry in path.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
        folders = [entry for entry in entries if entry.is_dir()]
        if len(folders) != 1 or len(entries) != 1 or SPLIT_SYNONYMS.get(folders[0].name, folders[0].name) in SPLITS:
            return path
        path = folders[0]


def read_folder(path: Path, remarks: Remarks) -> Iterator[Item]:
    """The images of a folder in any of the three layouts, or as its labels.csv and groups.csv say."""
    flat = [] if (path / LABELS).exists() else [entry for entry in path.iterdir() if is_flat_split(entry)]
    if flat:
        remarks.append("flat layout: the label is what stands before the first _ of each file name")
        yield from _read_flat(flat, remarks)
        return
    listed = list_splits(path)
    has_splits = len(listed.folders) > 1 or not {path, path / LABELS}.issuperset(listed.folders.values())
    for split in listed.folders:
        index = listed.index(split)
        if index.ignored:
            remarks.append(f"{split}: {describe_ignored(index.ignored)}")
        dangling = [index.paths[position] for position in np.flatnonzero(index.sizes < 0).tolist()]
        if dangling:
            remarks.append(f"{split}: {len(dangling)} links that lead nowhere left out (for example {dangling[0]})")
        groups = listed.name_groups(index)
        for name, label, size, group in zip(
            index.paths, index.labels.tolist(), index.sizes.tolist(), groups, strict=True
        ):
            if size < 0:
                continue
            item = Item(split if has_splits else "", index.classes[label], Path(name).name, path / name, group)
            if listed.labelled:
                item.folder, item.further = name_folder(item.label), listed.labelled.further(to_nfc(name))
            yield item


def _read_flat(folders: list[Path], remarks: Remarks) -> Iterator[Item]:
    ignored: Counter[str] = Counter()
    for folder in sorted(folders):
        match = FLAT.match(folder.name)
        assert match
        split = match[1].lower()
        for file in sorted(folder.iterdir()):
            label, underscore, _ = file.name.partition("_")
            if file.name.startswith("."):
                ignored["hidden files"] += 1
            elif not underscore or not file.name.lower().endswith(IMAGE_EXTENSIONS):
                ignored[file.suffix.lower() or "files without extension"] += 1
            elif not file.is_file():
                ignored["links that lead nowhere, pipes and devices"] += 1
            else:
                yield Item(SPLIT_SYNONYMS.get(split, split), label, file.name, file)
    if ignored:
        remarks.append(describe_ignored(ignored))
