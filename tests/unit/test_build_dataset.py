"""build_dataset.py: every source, what it leaves out, hostile archives, --check."""

import csv
import io
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile

import numpy as np
import pytest
from kit import ROOT, call, make_dataset, make_images, shell, tree
from PIL import Image

from model.images.build import archives, dataset, write
from model.images.build.items import Item, pick_split
from model.images.build.splitting import split_off
from model.images.build.write import Writer, shrink, write_items
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
    assert "the source has no splits: 15% of each class are set aside as test; --test_fraction 0: none" in printed
    assert "no valid split" not in printed
    assert "no test split" not in printed
    for split in ("valid", "test"):
        assert len([path for path in (tmp_path / "data" / split).rglob("*") if path.is_file()]) == 3
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
    code, printed = build(tmp_path / "photos", tmp_path / "data", *flags, "--valid_fraction", 0.2)
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


# --- links -------------------------------------------------------------------------------------------------------


def test_links_of_a_source_become_files_and_dangling_ones_are_counted(tmp_path):
    make_images(tmp_path / "photos", classes=2, per_class=3)
    first = tmp_path / "photos/class_0"
    (first / "relative.png").symlink_to("../class_0/000.png")
    (first / "absolute.png").symlink_to(tmp_path / "photos/class_1/001.png")
    (first / "nowhere.png").symlink_to("../elsewhere/9.png")
    code, printed = build(tmp_path / "photos", tmp_path / "data", "--test_fraction", 0)
    assert code == 0, printed
    assert "train        8 images" in printed
    assert "1 links that lead nowhere left out (for example class_0/nowhere.png)" in printed
    made = tmp_path / "data/train/class_0"
    assert not [path for path in made.iterdir() if path.is_symlink()]
    assert (made / "relative.png").read_bytes() == (first / "000.png").read_bytes()
    assert (made / "absolute.png").read_bytes() == (tmp_path / "photos/class_1/001.png").read_bytes()
    assert not (made / "nowhere.png").exists()
    code, printed = call("build_dataset", "--data_dir", tmp_path / "data", "--check")
    assert "broken: 0 files" in printed


def test_links_of_a_flat_source(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "flat" / split).mkdir(parents=True)
        for label in "ab":
            solid(tmp_path / "flat" / split / f"{label}_1.png", (1, 2, 3))
    (tmp_path / "flat/train/a_2.png").symlink_to("a_1.png")
    (tmp_path / "flat/train/a_3.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "flat/train/a_4.png")
    code, printed = build(tmp_path / "flat", tmp_path / "data")
    assert code == 0, printed
    assert "2 links that lead nowhere, pipes and devices ignored" in printed
    assert sorted(path.name for path in (tmp_path / "data/train/a").iterdir()) == ["a_1.png", "a_2.png"]
    assert not (tmp_path / "data/train/a/a_2.png").is_symlink()


def test_hard_links_are_said_and_copies_can_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "clone", lambda source, path: False)  # as on a file system without
    make_images(tmp_path / "photos", classes=2, per_class=2)
    code, printed = build(tmp_path / "photos", tmp_path / "data", "--test_fraction", 0)
    assert code == 0, printed
    (line,) = [line for line in printed.splitlines() if "hard links" in line]
    assert line.startswith(f"4 images are hard links to {tmp_path / 'photos'}:")
    assert "--copy" in line
    assert os.path.samefile(tmp_path / "photos/class_0/000.png", tmp_path / "data/train/class_0/000.png")
    code, printed = build(tmp_path / "photos", tmp_path / "copies", "--copy", "--test_fraction", 0)
    assert code == 0, printed
    assert "hard links" not in printed
    made = tmp_path / "copies/train/class_0/000.png"
    assert made.read_bytes() == (tmp_path / "photos/class_0/000.png").read_bytes()
    made.write_bytes(b"edited")
    assert (tmp_path / "photos/class_0/000.png").read_bytes() != b"edited"
    code, printed = build(tmp_path / "photos", tmp_path / "data", "--copy")
    assert code == 2, "what is there consists of hard links"
    assert "another request" in printed


def test_a_clone_where_the_file_system_has_them(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    if write.clone(tmp_path / "a", tmp_path / "b"):
        assert (tmp_path / "b").read_bytes() == b"content"
        assert not os.path.samefile(tmp_path / "a", tmp_path / "b")
    else:
        assert not (tmp_path / "b").exists()


def test_clones_are_tried_first(tmp_path, monkeypatch):
    """The request of linux/fs.h, answered as Btrfs and XFS do; this machine may have neither."""
    asked = []

    def ioctl(made, request, original):
        asked.append(request)
        os.write(made, os.pread(original, 1 << 20, 0))

    monkeypatch.setattr(write.fcntl, "ioctl", ioctl)
    make_images(tmp_path / "photos", classes=2, per_class=2)
    code, printed = build(tmp_path / "photos", tmp_path / "data", "--test_fraction", 0)
    assert code == 0, printed
    assert asked == [0x40049409] * 4  # FICLONE is _IOW(0x94, 9, int)
    assert "hard links" not in printed
    assert not os.path.samefile(tmp_path / "photos/class_0/000.png", tmp_path / "data/train/class_0/000.png")
    assert tree(tmp_path / "photos") == {
        name.removeprefix("train/"): content
        for name, content in tree(tmp_path / "data").items()
        if name.startswith("train/")
    }


# --- archives ----------------------------------------------------------------------------------------------------


def add(tar, name, content=b"", kind=tarfile.REGTYPE, leads_to=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, leads_to, len(content)
    tar.addfile(info, io.BytesIO(content))


def png(number):
    file = io.BytesIO()
    Image.new("RGB", (9, 9), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_links_inside_a_tar(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "train/a/later.png", kind=tarfile.SYMTYPE, leads_to="./chain.png")
        add(tar, "train/a/chain.png", kind=tarfile.SYMTYPE, leads_to="../a/1.png")
        add(tar, "train/a/1.png", png(1))
        add(tar, "train/a/hard.png", kind=tarfile.LNKTYPE, leads_to="train/a/1.png")
        add(tar, "train/b/2.png", png(2))
        add(tar, "train/b/nowhere.png", kind=tarfile.SYMTYPE, leads_to="../a/9.png")
        add(tar, "train/b/loop.png", kind=tarfile.SYMTYPE, leads_to="loop.png")
        add(tar, "valid", kind=tarfile.SYMTYPE, leads_to="train")
    code, printed = build(tmp_path / "a.tar", tmp_path / "data")
    assert code == 0, printed
    assert "2 links in a.tar left out: they lead nowhere" in printed
    made = tree(tmp_path / "data")
    for split in ("train", "valid"):
        assert {made[f"{split}/a/{name}.png"] for name in ("1", "hard", "chain", "later")} == {png(1)}
        assert made[f"{split}/b/2.png"] == png(2)
    assert len([name for name in made if name.endswith(".png")]) == 10


OUTSIDE = {
    "up": [("../x.png", tarfile.REGTYPE, "")],
    "up later": [("train/../../x.png", tarfile.REGTYPE, "")],
    "link up": [("train/a/x.png", tarfile.SYMTYPE, "../../../secret")],
    "link to absolute": [("train/a/x.png", tarfile.SYMTYPE, "/etc/passwd")],
    "hard link up": [("train/a/x.png", tarfile.LNKTYPE, "../secret")],
    "hard link to absolute": [("train/a/x.png", tarfile.LNKTYPE, "/etc/passwd")],
    "pipe": [("train/a/x.png", tarfile.FIFOTYPE, "")],
    "device": [("train/a/x.png", tarfile.CHRTYPE, "")],
    "block device": [("train/a/x.png", tarfile.BLKTYPE, "")],
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_tar_that_leads_outside_is_refused(kind, tmp_path):
    (tmp_path / "secret").write_text("secret")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for label in "ab":
            add(tar, f"train/{label}/1.png", png(1))
        for name, what, leads_to in OUTSIDE[kind]:
            add(tar, name, b"", what, leads_to)
    before = tree(tmp_path)
    code, printed = build(tmp_path / "a.tar", tmp_path / "data")
    assert code == 2, printed
    assert "is refused" in printed
    assert len(printed.strip().splitlines()) == 1, printed
    assert tree(tmp_path) == before


def test_a_chain_of_long_links_does_not_lead_outside(tmp_path):
    """CVE-2025-4517: beyond PATH_MAX, Python's `data` filter no longer saw where links lead (fixed in 3.11.13)."""
    long = "d" * 247
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        where = "train/a"
        for step in "abcdefghijklmnop":
            add(tar, f"{where}/{long}", kind=tarfile.DIRTYPE)
            add(tar, f"{where}/{step}", kind=tarfile.SYMTYPE, leads_to=long)
            where = f"{where}/{long}"
        hops = "/".join("abcdefghijklmnop")
        add(tar, f"train/a/{hops}/{'l' * 254}", kind=tarfile.SYMTYPE, leads_to="../" * 16)
        add(tar, "train/a/escape", kind=tarfile.SYMTYPE, leads_to=f"{hops}/{'l' * 254}/../../../../outside")
        add(tar, "train/a/escape/x.png", png(1))
        add(tar, "train/a/1.png", png(1))
        add(tar, "train/b/1.png", png(1))
    before = set(tmp_path.rglob("*"))
    code, printed = build(tmp_path / "a.tar", tmp_path / "in" / "data")
    assert code in (0, 2, 5), printed
    assert "Traceback" not in printed
    assert not [path for path in tmp_path.rglob("*") if path not in before and "in" not in path.parts]
    assert not list(tmp_path.parent.glob("outside*"))


def test_a_small_tar_that_unpacks_to_much_is_refused_and_the_way_out_works(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a b.tar.xz", "w:xz") as tar:
        for label in "ab":
            add(tar, f"train/{label}/1.png", png(1) + bytes(60 << 20))
    assert (tmp_path / "a b.tar.xz").stat().st_size < 100_000
    code, printed = build(tmp_path / "a b.tar.xz", tmp_path / "data")
    assert code == 2, printed
    assert "like a bomb" in printed
    assert len(printed.strip().splitlines()) == 1, printed
    assert not (tmp_path / "data").exists()
    way_out = printed.strip().partition("as --source: ")[2]
    subprocess.run(["bash", "-c", way_out], check=True)  # as a person would paste it
    code, printed = build(shlex.split(way_out)[1], tmp_path / "data")
    assert code == 0, printed
    assert len(list((tmp_path / "data").rglob("*.png"))) == 2


def test_a_sparse_tar_of_100_gb_is_refused(tmp_path):
    for label in "ab":
        path = tmp_path / "source/train" / label / "1.png"
        path.parent.mkdir(parents=True)
        with open(path, "wb") as file:
            file.truncate(50 << 30)
    subprocess.run(["tar", "-cSf", tmp_path / "a.tar", "-C", tmp_path / "source", "."], check=True)
    assert (tmp_path / "a.tar").stat().st_size < 50_000
    begin = time.monotonic()
    code, printed = build(tmp_path / "a.tar", tmp_path / "data")
    assert code == 2, printed
    assert "53,687,091,200 or more: like a bomb" in printed
    assert time.monotonic() - begin < 10


def test_what_does_not_fit_the_disk_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for label in "ab":
            add(tar, f"train/{label}/1.png", png(1))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage._replace(free=len(png(1)) + 1))
    monkeypatch.setattr(archives, "_write_member", lambda *_: pytest.fail("unpacked"))
    code, printed = build(tmp_path / "a.tar", tmp_path / "data")
    assert code == 2, printed
    assert f"and {len(png(1)) + 1:,} are free on the disk of --data_dir" in printed


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_occur_twice_are_counted(kind, tmp_path):
    entries = [(f"train/{label}/{name}.png", png(n)) for n, (label, name) in enumerate(("a1", "b1", "a1", "a1", "b2"))]
    if kind == "zip":
        with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
            warnings.simplefilter("ignore")
            [zipped.writestr(name, content) for name, content in entries]
    else:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            [add(tar, name, content) for name, content in entries]
    code, printed = build(tmp_path / f"a.{kind}", tmp_path / "data")
    assert code == 0, printed
    assert f"2 files in a.{kind} left out: a later one has the same name (for example train/a/1.png)" in printed
    assert "train        3 images" in printed
    assert (tmp_path / "data/train/a/1.png").read_bytes() == png(3)


def test_links_in_a_zip_are_no_images(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        for label in "ab":
            zipped.writestr(f"train/{label}/1.png", png(1))
        for name, kind in (("link", stat.S_IFLNK), ("pipe", stat.S_IFIFO)):
            info = zipfile.ZipInfo(f"train/a/{name}.png")
            info.external_attr = (kind | 0o777) << 16
            zipped.writestr(info, "1.png")
    code, printed = build(tmp_path / "a.zip", tmp_path / "data")
    assert code == 0, printed
    assert "2 links and devices in a.zip left out" in printed
    assert "train        2 images" in printed


def test_a_killed_build_is_cleared_away_by_the_next_one_and_a_running_one_is_not(tmp_path):
    make_images(tmp_path / "photos", classes=2, per_class=3)
    code = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from model.images.build import dataset, items\n"
        "write = dataset.write_items\n"
        "dataset.write_items = lambda *args: (write(*args), print('built', flush=True), time.sleep(60))[0]\n"
        f"from pathlib import Path\n"
        f"dataset.build({str(tmp_path / 'photos')!r}, Path({str(tmp_path / 'data')!r}), items.BuildOptions())\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "built\n"
        work = {path: path / "dataset" for path in tmp_path.glob(".data-building-*")}
        assert len(work) == 2
        processes[0].kill(), processes[0].wait()
        assert all(path.exists() for path in work), "a kill leaves its work"
        dataset.remove_leftovers(tmp_path / "data")
        assert [path.exists() for path in work].count(True) == 1, "the other build is running"
        processes[1].kill(), processes[1].wait()
        code, printed = build(tmp_path / "photos", tmp_path / "data", "--test_fraction", 0)
        assert code == 0, printed
        assert not list(tmp_path.glob(".data*"))
    finally:
        for process in processes:
            process.kill()
            process.communicate()


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
        split_off(made, fraction, "valid")
        assert [item.split for item in made].count("valid") == count
    assert [split_off(items([""] * 2), 0.9, "test"), split_off(items([""]), 0.5, "test")] == [[], []]
    made = [Item("train", "a", str(n), Image.new("L", (2, 2), n > 7)) for n in range(10)]
    split_off(made, 0.5, "valid")
    assert [item.split for item in made] in (["train"] * 8 + ["valid"] * 2, ["valid"] * 8 + ["train"] * 2)
    made = [Item("train", "a", str(n), Image.new("L", (2, 2))) for n in range(4)]
    split_off(made, 0.5, "valid")
    assert {item.split for item in made} == {"train"}, "copies stay together, and train keeps its class"
    made = items("xxxxxyyyyy")
    split_off(made, 0.1, "valid")
    assert {item.group for item in made if item.split == "valid"} in ({"x"}, {"y"})
    assert [item.split for item in made].count("valid") == 5
    made[0].split = "valid"
    with pytest.raises(UserError, match="has a valid split already"):
        split_off(made, 0.1, "valid")


def test_names_that_are_taken_get_a_number(tmp_path):
    counts = write_items(
        [Item("train", "a", "x.png", Image.new("L", (2, 2), n)) for n in range(3)], tmp_path, Writer(None)
    )
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
