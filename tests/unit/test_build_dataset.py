"""build_dataset.py: every source, what it leaves out, hostile archives, --check."""

import csv
import io
import json
import os
import shutil
import signal
import tarfile
import zipfile

import numpy as np
import pytest
from kit import call, make_dataset, make_images, shell, tree
from PIL import Image

from model.images.build.dataset import split_off
from model.images.build.items import Item, pick_split
from model.images.build.write import shrink, write_items
from model.images.check import check
from utils import UserError


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


def solid(path, colour, size=(10, 12), **kwargs):
    """An image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **kwargs)


def test_the_report_on_a_dataset_made_by_hand(tmp_path):
    solid(tmp_path / "train/a/1.png", (1, 0, 0))
    solid(tmp_path / "train/a/2.bmp", (1, 0, 0))  # the same pixels in another format
    solid(tmp_path / "train/a/3.png", (2, 0, 0), size=(12, 10))
    solid(tmp_path / "train/b/4.png", (2, 0, 0), size=(12, 10))  # 3.png under another label
    solid(tmp_path / "train/b/5.png", (2, 0, 0), size=(10, 12))  # the same colour in another shape is no duplicate
    solid(tmp_path / "train/b/6.png", (3, 0, 0), size=(7, 30))
    solid(tmp_path / "train/b/7.gif", (4, 0, 0), format="PNG")
    (tmp_path / "train/b/8.jpg").write_bytes(b"no image")
    (tmp_path / "train/b/9.txt").touch()
    solid(tmp_path / "valid/a/1.png", (5, 0, 0))
    solid(tmp_path / "valid/b/2.png", (3, 0, 0), size=(7, 30))  # train/b/6.png again
    assert (
        check(tmp_path)
        == json.loads((tmp_path / "dataset_report.json").read_text())
        == {
            "splits": {"train": {"a": 3, "b": 5}, "valid": {"a": 1, "b": 1}},
            "broken": [f"{tmp_path / 'train/b/8.jpg'}: not a JPEG, PNG, BMP, WEBP, GIF, TIFF image"],
            "oddities": [
                "1 files whose extension is not their format: train/b/7.gif",
                "2 images under 8 px: train/b/6.png, valid/b/2.png",
                "2 images more than four times as long as wide: train/b/6.png, valid/b/2.png",
                "no test split",
            ],
            "ignored": {"train": "1 .txt files ignored"},
            "formats": {"PNG": 8, "BMP": 1},
            "width": [7, 10, 12],
            "height": [10, 12, 30],
            "duplicates": [
                ["train/a/1.png", "train/a/2.bmp"],
                ["train/a/3.png", "train/b/4.png"],
                ["train/b/6.png", "valid/b/2.png"],
            ],
            "duplicates_across_splits": [["train/b/6.png", "valid/b/2.png"]],
            "label_conflicts": [["train/a/3.png", "train/b/4.png"]],
        }
    )


def test_sizes_and_classes_that_are_far_apart(tmp_path):
    for number in range(10):
        solid(tmp_path / f"train/many/{number}.png", (number, 0, 0), size=(40, 40))
    for number in range(3):
        solid(tmp_path / f"train/few/{number}.png", (number, 1, 0), size=(10, 20))
    oddities = check(tmp_path)["oddities"]
    assert oddities == [
        "train: unequal classes: few 3, many 10; see sampler and class_weights",
        "no valid split",
        "no test split",
    ]
    solid(tmp_path / "train/few/0.png", (0, 1, 0), size=(9, 20))
    solid(tmp_path / "train/few/3.png", (3, 1, 0), size=(10, 20))
    oddities = check(tmp_path)["oddities"]
    assert oddities == [
        "sizes from 9 x 20 (train/few/0.png) to 40 x 40 (train/many/0.png)",
        "no valid split",
        "no test split",
    ]


def test_a_file_that_kills_the_decoder_is_named_and_the_others_are_checked(tmp_path, monkeypatch):
    from model.images import check as checking

    data, decode = make_dataset(tmp_path / "data", ("train",), per_class=3), checking.decode

    def fatal(content, path):
        return os.kill(os.getpid(), signal.SIGSEGV) if path.endswith("class_1/001.png") else decode(content, path)

    monkeypatch.setattr(checking, "decode", fatal)
    monkeypatch.setattr(checking, "CHUNK", 4)
    report = check(data)
    assert report["broken"] == [f"{data / 'train/class_1/001.png'}: crashes the decoder"]
    assert report["formats"] == {"PNG": 8}


def test_places_of_splits():
    assert [pick_split(place) for place in (0, 0.69, 0.7, 0.84, 0.85, 0.99)] == [
        "train",
        "train",
        "valid",
        "valid",
        "test",
        "test",
    ]


def test_a_valid_part_is_split_off_by_content_and_whole_groups(tmp_path):
    def items(groups):
        return [Item("train", "a", str(n), Image.new("L", (2, 2), n), group) for n, group in enumerate(groups)]

    for fraction, count in ((0.1, 1), (0.24, 2), (0.5, 5), (0.99, 9)):
        made = items([""] * 10)
        split_off(made, fraction)
        assert [item.split for item in made].count("valid") == count
    made = items("xxxxxyyyyy")
    split_off(made, 0.1)
    assert {item.group for item in made if item.split == "valid"} in ({"x"}, {"y"})
    assert [item.split for item in made].count("valid") == 5
    made[0].split = "valid"
    with pytest.raises(UserError, match="has a valid split already"):
        split_off(made, 0.1)


def test_names_that_are_taken_get_a_number(tmp_path):
    counts = write_items([Item("train", "a", "x.png", Image.new("L", (2, 2), n)) for n in range(3)], tmp_path, None)
    assert counts == {"train": {"a": 3}}
    assert {path.name: Image.open(path).getpixel((0, 0)) for path in (tmp_path / "train/a").iterdir()} == {
        "x.png": 0,
        "x_2.png": 1,
        "x_3.png": 2,
    }


@pytest.mark.parametrize(
    ("given", "made"), [((100, 40), (50, 20)), ((40, 101), (20, 50)), ((20, 90), (20, 90)), ((300, 21), (286, 20))]
)
def test_the_short_side_is_reduced(tmp_path, given, made):
    solid(tmp_path / "a.jpg", (9, 9, 9), size=given)
    shrink(tmp_path / "a.jpg", tmp_path / "b.jpg", 20)
    with Image.open(tmp_path / "b.jpg") as image:
        assert (image.size, image.format) == (made, "JPEG")
    solid(tmp_path / "a.webp", (9, 9, 9), size=given)
    shrink(tmp_path / "a.webp", tmp_path / "b.webp", 20)
    name = "b.webp" if made == given else "b.png"
    assert Image.open(tmp_path / name).size == made


def test_json(tmp_path):
    done = shell("build_dataset", "--source", "digits", "--data_dir", tmp_path / "d", "--json")
    assert json.loads(done.stdout)["counts"]["train"]["0"] == 125
