"""build_dataset.py: every source, what it leaves out, hostile archives, --check."""

import csv
import io
import json
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from kit import call, make_dataset, make_images, shell, tree
from PIL import Image


def build(source, target, *argv):
    return call("build_dataset", "--source", source, "--data_dir", target, *argv)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_digits_need_no_network_and_are_built_once(tmp_path):
    code, printed = build("digits", tmp_path / "digits")
    assert code == 0
    assert "train.py" in printed
    assert names(tmp_path / "digits") == ["test", "train", "valid"]
    files = tree(tmp_path / "digits")
    assert sum(name.endswith(".png") for name in files) == 1797
    assert build("digits", tmp_path / "again")[0] == 0
    images = {n: b for n, b in tree(tmp_path / "again").items() if n.endswith(".png")}
    assert images == {n: b for n, b in files.items() if n.endswith(".png")}, "the same bytes each time"
    code, printed = build("digits", tmp_path / "digits")
    assert code == 0
    assert "built before" in printed
    assert tree(tmp_path / "digits") == files


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "zip", "wrapped"])
def test_splits_in_folders_and_archives(kind, tmp_path):
    source = make_dataset(tmp_path / "source", ("train", "val", "test"), per_class=3)
    if kind in ("tar", "tar.gz", "wrapped"):
        archive = tmp_path / f"a.{'tar.gz' if kind != 'tar' else kind}"
        with tarfile.open(archive, "w:gz" if kind != "tar" else "w") as tar:
            tar.add(source, arcname="deep/source" if kind == "wrapped" else ".")
    elif kind == "zip":
        archive = tmp_path / "a.zip"
        with zipfile.ZipFile(archive, "w") as zipped:
            [zipped.write(path, path.relative_to(source)) for path in source.rglob("*")]
    else:
        archive = source
    before = tree(source)
    code, printed = build(archive, tmp_path / "data")
    assert code == 0, printed
    assert names(tmp_path / "data") == ["test", "train", "valid"]
    assert len(list((tmp_path / "data").rglob("*.png"))) == 27
    assert tree(source) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing is left behind"


def test_flat_class_folders_and_what_is_left_out(tmp_path):
    make_images(tmp_path / "photos", per_class=4)
    for path in list((tmp_path / "photos").rglob("*.png"))[:2]:
        Image.open(path).save(path.with_suffix(".JPG"), "JPEG")
    for number in range(3):
        (tmp_path / f"photos/class_0/{number}.HEIC").write_bytes(b"\0\0\0 ftypheic")
    (tmp_path / "photos/class_0/._x.jpg").write_bytes(b"")
    code, printed = build(tmp_path / "photos", tmp_path / "data", "--valid_fraction", 0.25)
    assert code == 0, printed
    assert "3 .heic files ignored: convert them, or install pillow-heif" in printed
    assert "no test split" in printed
    assert len(list((tmp_path / "data/valid").rglob("*.*g"))) >= 3
    assert len(list((tmp_path / "data").rglob("*.JPG"))) == 2


def test_the_layout_of_signs(tmp_path):
    for split in ("train", "val", "test"):
        make_images(tmp_path / "made" / split, per_class=2)
        where = tmp_path / "source" / f"{split}_signs"
        where.mkdir(parents=True)
        for path in (tmp_path / "made" / split).rglob("*.png"):
            shutil.move(path, where / f"{path.parent.name[-1]}_IMG_{path.name}")
    code, printed = build(tmp_path / "source", tmp_path / "data")
    assert code == 0
    assert "flat layout" in printed
    assert names(tmp_path / "data/train") == ["0", "1", "2"]
    assert names(tmp_path / "data") == ["test", "train", "valid"]


def write_table(path, rows, header=("file", "kind", "who")):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def test_a_table_keeps_groups_on_one_side(tmp_path):
    make_images(tmp_path / "photos", classes=2, per_class=60)
    rows = [
        (f"class_{c}/{n:03d}{'.png' if n % 2 else ''}", f"kind {c}", f"person {n % 20}")
        for c in range(2)
        for n in range(60)
    ]
    write_table(tmp_path / "labels.csv", rows)
    flags = ["--labels", tmp_path / "labels.csv", "--image_col", "file", "--label_col", "kind", "--group_col", "who"]
    code, printed = build(tmp_path / "photos", tmp_path / "data", *flags)
    assert code == 0, printed
    where = {}
    for split in ("train", "valid", "test"):
        for path in (tmp_path / "data" / split).rglob("*.png"):
            row = rows[int(path.name[:6])]
            assert path.parent.name == row[1]
            where.setdefault(row[2], set()).add(split)
    assert len(where) == 20
    assert all(len(splits) == 1 for splits in where.values())
    assert {split for splits in where.values() for split in splits} == {"train", "valid", "test"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--image_col", "fil"], ["no such column", "'file'"]),
        (["--label_col", "x"], ["no such column"]),
        (["--labels", "nowhere.csv"], ["nowhere.csv"]),
        (["--valid_fraction", "1"], ["between 0 and 1"]),
        (["--size", "2"], ["--size"]),
    ],
    ids=str,
)
def test_wrong_tables_and_flags(change, words, tmp_path):
    make_images(tmp_path / "photos", classes=2, per_class=2)
    write_table(tmp_path / "labels.csv", [("class_0/000.png", "a", "x"), ("class_1/000.png", "b", "x")])
    flags = {"--labels": tmp_path / "labels.csv", "--image_col": "file", "--label_col": "kind"} | {change[0]: change[1]}
    code, printed = build(tmp_path / "photos", tmp_path / "data", *[word for pair in flags.items() for word in pair])
    assert code == 2, printed
    assert len(printed.strip().splitlines()) == 1, printed
    assert all(word in printed for word in words), printed
    assert not (tmp_path / "data").exists()


def test_missing_images_of_a_table_are_named(tmp_path):
    make_images(tmp_path / "photos", classes=2, per_class=2)
    write_table(
        tmp_path / "labels.csv", [("class_0/000.png", "a", "x"), ("../../etc/passwd", "b", "x"), ("gone.png", "b", "x")]
    )
    flags = ["--labels", tmp_path / "labels.csv", "--image_col", "file", "--label_col", "kind"]
    code, printed = build(tmp_path / "photos", tmp_path / "data", *flags)
    assert code == 2
    assert "2 of 3 images" in printed
    assert "gone.png" in printed


def test_sources_that_are_none(tmp_path):
    (tmp_path / "file.tar").write_text("no archive")
    (tmp_path / "empty").mkdir()
    for source, word in (
        ("digit", "did you mean 'digits'?"),
        (tmp_path / "file.tar", "neither"),
        (tmp_path / "empty", "no train folder"),
    ):
        code, printed = build(source, tmp_path / "data")
        assert code == 2, printed
        assert word in printed, printed
        assert len(printed.strip().splitlines()) == 1, printed
    make_images(tmp_path / "mine", per_class=2)
    before = tree(tmp_path / "mine")
    code, printed = build("digits", tmp_path / "mine")
    assert code == 2
    assert "is there already" in printed
    assert tree(tmp_path / "mine") == before


def hostile(kind, path):
    """A tar that tries to leave its folder."""
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo({"up": "../outside.png", "absolute": "/tmp/outside.png"}.get(kind, "train/a/x.png"))
        if kind in ("symlink", "hardlink"):
            info.type, info.linkname = (
                (tarfile.SYMTYPE, "/etc/passwd") if kind == "symlink" else (tarfile.LNKTYPE, "../../x")
            )
        elif kind == "device":
            info.type = tarfile.CHRTYPE
        info.size = 0 if info.type != tarfile.REGTYPE else 4
        tar.addfile(info, io.BytesIO(b"data"))


@pytest.mark.parametrize("kind", ["up", "absolute", "symlink", "hardlink", "device"])
def test_hostile_archives_write_nothing_outside(kind, tmp_path):
    (tmp_path / "in").mkdir()
    hostile(kind, tmp_path / "in/bad.tar")
    before = tree(tmp_path)
    code, printed = build(tmp_path / "in/bad.tar", tmp_path / "in/data")
    assert code == 2, printed
    assert len(printed.strip().splitlines()) == 1, printed
    assert tree(tmp_path) == before


def test_a_zip_that_leaves_its_folder_or_is_a_bomb(tmp_path):
    for name, content in (("../x.png", b"x"), ("train/a/bomb.png", b"\0" * 50_000_000)):
        with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr(name, content)
        code, printed = build(tmp_path / "bad.zip", tmp_path / "data")
        assert code == 2
        assert "refused" in printed
        assert not (tmp_path / "data").exists()


def test_size_shrinks_what_is_larger(tmp_path):
    make_images(tmp_path / "photos", classes=2, per_class=2, side=40)
    assert build(tmp_path / "photos", tmp_path / "data", "--size", 20)[0] == 0
    sizes = {Image.open(path).size for path in (tmp_path / "data").rglob("*.png")}
    assert sizes == {(20, 20)}


def test_check_names_what_is_odd(tmp_path):
    data = make_dataset(tmp_path / "data", ("train", "valid"), per_class=10)
    some = sorted((data / "train/class_0").iterdir())
    shutil.copy(some[0], data / "valid/class_0/copy.png")
    shutil.copy(some[1], data / "train/class_1/conflict.png")
    some[2].write_bytes(some[2].read_bytes()[:50])
    Image.open(some[3]).save(data / "train/class_0/odd.gif")
    Image.fromarray(np.zeros((4, 100, 3), np.uint8)).save(data / "train/class_0/long.png")
    Image.open(some[4]).save(data / "train/class_2/wrong.jpg", format="PNG")
    code, printed = call("build_dataset", "--data_dir", data, "--check")
    assert code == 0
    for words in (
        "only",
        "odd.gif",
        "duplicates across splits: 1",
        "label conflicts",
        "broken: 1",
        "002.png",
        "long.png",
        "wrong.jpg",
        "no test split",
    ):
        assert words in printed, f"{words} in\n{printed}"
    report = json.loads((data / "dataset_report.json").read_text())
    assert len(report["broken"]) == 1
    assert len(report["duplicates_across_splits"]) == 1


def test_json(tmp_path):
    done = shell("build_dataset", "--source", "digits", "--data_dir", tmp_path / "d", "--json")
    assert json.loads(done.stdout)["counts"]["train"]["0"] == 125
