"""Dataset folders, image files, caches and loaders, with what people's disks really hold."""

import dataclasses
import errno
import os
import shutil
import struct
import sys
import unicodedata
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from kit import make_dataset, make_images
from loaders import are_equal, batches, loader, loaders, make_params, noise
from PIL import Image

from model.images import cache, reading, source, subsets
from model.images import index as indexing
from model.images import paths as path_names
from model.images.decode import ImageError, base_image, image_size, jpeg_orientation, orient, read_image
from model.images.index import describe_ignored, find_splits, index_split
from model.images.order import EpochOrder, position_dtype
from model.images.paths import Paths
from model.pixels.normalise import BatchBuffer
from model.pixels.progressive import describe_training_sizes, list_training_sizes, size_at
from utils import UserError, key64

ORIENTATION = 0x0112


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """train, valid and test; 3 classes of 12 images of 16 px in each."""
    return make_dataset(tmp_path / "data")


# --- the folder -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["val", "validation", "Valid"])
def test_names_of_the_valid_split(tmp_path, name):
    data = make_dataset(tmp_path / "data", ("train", name))
    assert find_splits(data) == {"train": data / "train", "valid": data / name}
    assert loader(data, "valid").split == "valid"


def test_class_folders_at_the_root_are_train(tmp_path):
    make_images(tmp_path / "data")
    both = loaders(tmp_path / "data", "train", "valid", valid_fraction=0.25)
    assert (both["train"].num_images, both["valid"].num_images) == (27, 9)
    assert both["valid"].class_counts == [3, 3, 3]
    assert both["valid"].split == "valid"


def test_what_is_no_image_is_ignored_and_counted(data):
    folder = data / "train" / "class_0"
    for name in (".DS_Store", "Thumbs.db", "._000.png", "a.heic", "b.HEIC", "notes.txt", "README"):
        (folder / name).write_bytes(b"x")
    os.mkfifo(folder / "pipe.png")
    (folder / "loop").symlink_to(folder)
    (folder / "self").symlink_to("self")
    shutil.copy(folder / "000.png", folder / "UPPER.PNG")
    index = index_split(data / "train", "train", data)
    assert len(index) == 37
    assert index.paths[-1] == "train/class_2/011.png"
    assert index.ignored["hidden files"] == 3
    assert index.ignored["pipes, sockets and devices"] == 1
    text = describe_ignored(index.ignored)
    assert "2 .heic files ignored: convert them, or install pillow-heif" in text
    assert "1 .txt files ignored" in text
    assert "2 .heic files" in loader(data).description


def test_a_dangling_link_is_a_broken_image(data):
    (data / "train" / "class_0" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"1 of 37 train images cannot be used: .*gone.png: No such file"):
        loader(data)
    train = loader(data, on_bad_image="skip")
    assert train.skipped == ["train/class_0/gone.png"]
    assert train.num_images == 36
    shutil.copy(data / "train/class_0/000.png", data / "train/class_0/nowhere.png")
    assert loader(data).num_images == 38


def test_composed_and_decomposed_names_are_one_class(tmp_path):
    forms: dict[str, Literal["NFC", "NFD"]] = {"train": "NFC", "valid": "NFD"}
    for split, form in forms.items():
        make_images(tmp_path / "data" / split)
        for old, new in (("class_0", "caf\u00e9"), ("class_1", "cafz")):  # NFD sorts before z, NFC after
            (tmp_path / "data" / split / old).rename(tmp_path / "data" / split / unicodedata.normalize(form, new))
    both = loaders(tmp_path / "data", "train", "valid")
    assert both["train"].classes == both["valid"].classes
    colour = {split: [part.labels[part.paths.index(path)] for path in part.paths] for split, part in both.items()}
    assert colour["train"] == colour["valid"]


def test_paths_are_a_sequence_of_str(monkeypatch):
    names = ["a/b.png", "cafe\u0301/\u65e5.png", "odd/\udcff\n.png", "", "z" * 300]
    for block in (1, 2, 100):
        monkeypatch.setattr(path_names, "BLOCK", block)
        paths = Paths.of(names)
        assert paths == names
        assert list(paths) == names
        assert paths == Paths.of(names)
        assert len(paths) == 5
        assert [paths[i] for i in range(-5, 5)] == names + names
        position: Any = torch.tensor(1)
        assert paths[position] == names[1]
        assert paths[1:] == names[1:]
        assert paths[::-1] == names[::-1]
        assert paths.index(names[2]) == 2
        assert paths[np.array([3, 0, 0, -1])] == [names[i] for i in (3, 0, 0, -1)]
        assert paths[np.array([False, True, True, False, False])][1:] == [names[2]]
        assert paths != names[:4]
        assert paths != [*names[:4], "y"]
        assert names[0] in paths
        assert paths[:0] == []
        with pytest.raises(IndexError):
            paths[5]


def test_an_index_is_compact_and_parts_share_the_names(data):
    index = index_split(data / "train", "train", data)
    columns = (index.paths.starts, index.paths.lengths, index.labels, index.sizes, index.mtimes, index.ctimes)
    assert sum(column.nbytes for column in columns) == 38 * len(index)
    assert len(index.paths.names) == sum(map(len, index.paths))
    part = index.select(np.array([30, 2]), "valid")
    assert part.paths.names is index.paths.names
    assert part.paths == [index.paths[30], index.paths[2]]
    assert part.labels.tolist() == [2, 0]
    assert part.sizes.tolist() == [index.sizes[30], index.sizes[2]]
    assert (data / index.paths[2]).stat().st_mtime_ns == part.mtimes[1]


def test_the_state_of_an_index_tells_names_sizes_and_times_apart(data):
    index = index_split(data / "train", "train", data)
    states = {index.state(1), index.state(2)}
    names = [*index.paths]
    joined = [names[0] + names[1][0], names[1][1:], *names[2:]]  # the same letters, cut elsewhere
    for change in ({"paths": Paths.of(joined)}, {"sizes": index.sizes + 1}, {"mtimes": index.mtimes + 1}):
        states.add(dataclasses.replace(index, **change).state(1))
    assert len(states) == 5
    assert dataclasses.replace(index, paths=Paths.of(names)).state(1) == index.state(1)


def remove(data: Path, name: str) -> None:
    shutil.rmtree(data / name)


def flatten(data: Path) -> None:
    for number, path in enumerate(sorted((data / "train").rglob("*.png"))):
        path.rename(data / "train" / f"{number}.png")
    for folder in (data / "train").iterdir():
        if folder.is_dir():
            folder.rmdir()


def empty(data: Path) -> None:
    remove(data, "train/class_1")
    (data / "train" / "class_1").mkdir()
    (data / "train" / "class_1" / "a.heic").touch()


def only_test(data: Path) -> None:
    remove(data, "train"), remove(data, "valid")


WRONG = [
    (lambda d: shutil.rmtree(d), {}, "no such dataset folder; make one: python build_dataset.py"),
    (lambda d: (shutil.rmtree(d), d.write_text("")), {}, "is a file; a dataset is a folder"),
    (flatten, {}, "36 images and no class folders"),
    (empty, {}, r"class_1: no images in this class folder \(1 .heic files ignored: convert them"),
    (only_test, {}, "no train folder and no class folders"),
    (lambda d: (remove(d, "train/class_1"), remove(d, "train/class_2")), {}, r"1 class folders \(class_0\)"),
    (
        lambda d: remove(d, "valid/class_1"),
        {},
        r"valid: its classes are not those of .*train \(missing: class_1\)",
    ),
    (lambda d: make_images(d / "valid", 4), {}, r"\(extra: class_3\); labels are positions in the list"),
    (lambda d: (d / "val").mkdir(), {}, "val and valid are the same split"),
    (lambda d: None, {"n_clas": 5}, "n_clas: 5 given, but .* has 3 classes: class_0, class_1, class_2"),
    (lambda d: None, {"limit_train": 2}, "limit_train: 2 images for 3 classes"),
    (lambda d: None, {"accumulate": 9}, "accumulate: 9 given; at most batch_size, 8"),
    (lambda d: None, {"dataset": "image_foldr"}, "did you mean 'image_folder'?"),
    (
        lambda d: None,
        {"pinned": {"classes": ["class_0", "dog"]}},
        r"the run \(missing: dog; extra: class_1, class_2\)",
    ),
]


@pytest.mark.parametrize(("damage", "values", "message"), WRONG, ids=[message[:30] for *_, message in WRONG])
def test_what_is_wrong_with_the_data_is_said_in_one_line(data, damage, values, message):
    damage(data)
    with pytest.raises(UserError, match=message) as caught:
        loaders(data, "train", "valid", **values)
    assert "\n" not in str(caught.value)
    assert caught.value.code == 2


def test_no_test_split(tmp_path):
    make_images(tmp_path / "data")
    with pytest.raises(UserError, match="has no test split; possible: train, valid: --split valid measures"):
        loader(tmp_path / "data", "test")


def test_training_never_touches_the_test_split(data, tmp_path):
    """Nothing below test/ is opened or listed, and what is wrong with it is not noticed."""
    seen, is_on = [], [True]

    def hook(event: str, arguments: tuple) -> None:
        if is_on[0] and event in ("open", "os.scandir", "os.listdir"):
            seen.append(str(arguments[0]))

    shutil.rmtree(data / "test" / "class_0")
    sys.addaudithook(hook)
    both = loaders(data, "train", "valid", cache="off", num_workers=0)
    batches(both["train"]), batches(both["valid"])
    is_on[0] = False
    assert any("/valid/" in path for path in seen)
    assert not any("/test" in path[len(str(tmp_path)) :] for path in seen)


# --- images -----------------------------------------------------------------------------------------------


def save(folder: Path, name: str, pixels, **kwargs) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(folder / name, **kwargs)
    return folder / name


def pillow(path: Path) -> np.ndarray:
    from PIL import ImageOps

    with Image.open(path) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_what_pillow_reads(tmp_path, mode):
    path = save(tmp_path, "a.jpg", Image.fromarray(noise(41, 67)).convert(mode), quality=75)
    assert np.array_equal(read_image(path), pillow(path))
    assert image_size(path) == (67, 41)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, name, orientation):
    image = Image.fromarray(noise())
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path, name, image, exif=exif.tobytes())
    assert np.array_equal(read_image(path), pillow(path))
    assert read_image(path).shape == ((30, 20, 3) if orientation > 4 else (20, 30, 3))


def test_orientation_in_either_byte_order_and_never_a_crash():
    for order in "<>":
        entry = struct.pack(order + "HHIHH", ORIENTATION, 3, 1, 6, 0)
        tiff = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 1) + entry
        segment = b"Exif\0\0" + tiff
        data = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
        assert jpeg_orientation(data) == 6
        assert all(jpeg_orientation(data[:end]) in (1, 6) for end in range(len(data)))


def test_a_mirrored_image_of_one_pixel_keeps_no_negative_strides():
    for orientation in range(1, 9):
        for shape in ((1, 1, 3), (1, 5, 3), (5, 1, 3)):
            base_image(orient(np.zeros(shape, np.uint8), orientation), 16, "crop")  # torch takes no negative strides


def test_conversions(tmp_path):
    grey = np.array([[0, 257, 65535, 256]], np.uint16)
    assert read_image(save(tmp_path, "grey16.png", grey))[0, :, 0].tolist() == [0, 1, 255, 0]
    alpha = np.zeros((1, 2, 4), np.uint8)
    alpha[0, 1] = (10, 20, 30, 255)
    expected = [[[255, 255, 255], [10, 20, 30]]]
    assert read_image(save(tmp_path, "alpha.png", alpha)).tolist() == expected
    palette = Image.fromarray(alpha[:, :, :3]).quantize(4)
    transparent = palette.getpixel((0, 0))
    path = save(tmp_path, "palette.png", palette, transparency=transparent)
    assert read_image(path).tolist() == expected
    frames = [Image.fromarray(np.full((4, 4, 3), v, np.uint8)) for v in (0, 255)]
    path = save(tmp_path, "animated.gif", frames[0], save_all=True, append_images=frames[1:])
    assert read_image(path).max() == 0
    assert read_image(save(tmp_path, "one.bmp", Image.new("1", (3, 2), 1))).tolist() == [[[255] * 3] * 3] * 2


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = (chunk, pixels, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def test_what_cannot_be_used_names_the_file_and_the_reason(tmp_path):
    jpeg = save(tmp_path, "a.jpg", noise(64, 64)).read_bytes()
    png = save(tmp_path, "a.png", noise(64, 64)).read_bytes()
    bad = {
        "cut.jpg": (jpeg[:-40], "truncated"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "Truncated"),
        "cut.png": (png[:-100], "truncated"),
        "empty.jpg": (b"", "empty file"),
        "page.jpg": (b"<html>not found</html>", "not a JPEG, PNG"),
        "bomb.png": (png_header(60_000, 60_000), "bomb"),
        "large.png": (png_header(10_000, 6_000), "10000 x 6000 pixels; more than 50 million"),
    }
    for name, (content, reason) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=reason) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    save(tmp_path, "float.tiff", np.zeros((4, 4), np.float32))
    with pytest.raises(ImageError, match="float pixels have no defined range"):
        read_image(tmp_path / "float.tiff")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in (
        ("pipe.jpg", "not a regular file"),
        ("none.jpg", "No such file"),
        (".", "not a regular file"),
    ):
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / name)


def test_base_image():
    image = noise(40, 80)
    assert base_image(noise(32, 32), 32, "crop") is not None
    assert np.array_equal(base_image(noise(32, 32), 32, "crop"), noise(32, 32))
    assert {base_image(image, 20, mode).shape for mode in ("crop", "squash", "letterbox")} == {(20, 20, 3)}
    whole = np.array(Image.fromarray(image).resize((40, 20), Image.Resampling.BILINEAR))
    assert np.array_equal(base_image(image, 20, "crop"), whole[:, 10:30])
    boxed = base_image(image, 20, "letterbox")
    assert (boxed[:5] == 128).all()
    assert (boxed[15:] == 128).all()
    assert boxed[5:15].std() > 5
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert abs(base_image(checks, 16, "squash")[2:-2, 2:-2].astype(int) - 127.5).max() < 20  # antialiased


# --- the cache --------------------------------------------------------------------------------------------


def test_a_cache_is_used_again_and_never_stale(data, monkeypatch):
    first = batches(loader(data))
    decode = reading.decode
    monkeypatch.setattr(reading, "decode", lambda *_: pytest.fail("decoded again"))
    assert are_equal(batches(loader(data)), first)
    monkeypatch.setattr(reading, "decode", decode)
    path = data / "train" / "class_0" / "000.png"
    status = path.stat()
    image = Image.open(path).convert("RGB")
    save(path.parent, path.name, 255 - np.array(image))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # the least there is to see
    assert not are_equal(batches(loader(data)), first)
    assert len(list((data.parent / "cache").glob("*train*.npy"))) == 1  # the old one went


@pytest.mark.parametrize(
    "damage",
    [lambda p: p.write_bytes(p.read_bytes()[:-1000]), lambda p: p.unlink(), lambda p: p.write_text("{")],
)
@pytest.mark.parametrize("kind", ["npy", "json"])
def test_a_damaged_cache_is_built_again(data, damage, kind):
    first = batches(loader(data))
    (path,) = (data.parent / "cache").glob(f"*train*.{kind}")
    damage(path)
    assert are_equal(batches(loader(data)), first)


def test_every_form_of_cache_gives_the_same_batches(data, tmp_path):
    def run(form: str, split: str = "train", **values: Any) -> list:
        return batches(loader(data, split, cache=form, cache_dir=tmp_path / form, **values), epoch=1)

    cases: list[dict[str, Any]] = [
        {},
        {"split": "valid"},
        {"im_sz": 72},
        {"alternate_flip": 1, "progressive": {}},
        {"augment": "none"},
    ]
    for values in cases:
        first = run("off", **values)
        assert all(are_equal(run(form, **values), first) for form in ("auto", "disk", "ram", "device"))
    assert not list((tmp_path / "off").glob("*.npy"))


def test_a_full_disk(data, monkeypatch, tmp_path):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = batches(loader(data, cache="off"))
    monkeypatch.setattr(os, "posix_fallocate", full)
    train = loader(data, cache_dir=tmp_path / "other", num_workers=0)
    assert "No space left on device" in train.description
    assert are_equal(batches(train), expected)
    assert not list((tmp_path / "other").glob("*.npy"))
    assert not list((tmp_path / "other").glob(".tmp*"))
    with pytest.raises(UserError, match="No space left on device; give another --cache_dir") as caught:
        loader(data, cache="disk", cache_dir=tmp_path / "third")
    assert caught.value.code == 5


def test_a_file_that_was_repaired_unseen_is_read_again(data, monkeypatch):
    decode = cache.decode

    def fail(content: bytes, path: str) -> np.ndarray:
        if str(path).endswith("train/class_1/003.png"):
            raise ImageError(f"{path}: Permission denied")
        return decode(content, path)

    for module in (cache, reading):
        monkeypatch.setattr(module, "decode", fail)
    assert loader(data, on_bad_image="skip").num_images == 35
    for module in (cache, reading):
        monkeypatch.setattr(module, "decode", decode)
    assert loader(data).num_images == 36


def test_bad_images_are_listed_or_skipped(data):
    for number in range(7):
        (data / "train" / "class_1" / f"00{number}.png").write_bytes(b"no image")
    with pytest.raises(
        UserError, match=r"7 of 36 train images cannot be used: .*000.png.*004.png[^;]*; \.\.\."
    ) as caught:
        loader(data)
    assert "005.png" not in str(caught.value)
    for form in ("disk", "off"):
        train = loader(data, on_bad_image="skip", cache=form, num_workers=0)
        assert train.num_images == 29
        assert len(train.skipped) == 7
        assert "7 unreadable images skipped" in train.description
        assert sum(len(batch[0]) for batch in batches(train)) == 29


# --- splits, subsets, statistics ------------------------------------------------------------------------------


def members(part) -> set[bytes]:
    return {(part.source.index.root / path).read_bytes() for path in part.paths}


def test_the_valid_split_is_by_content(tmp_path):
    make_images(tmp_path / "a", per_class=40)
    first = loaders(tmp_path / "a", "train", "valid", seed=0)
    assert not members(first["train"]) & members(first["valid"])
    assert first["valid"].class_counts == [4, 4, 4]
    for number, path in enumerate(sorted((tmp_path / "a").rglob("*.png"), reverse=True)):  # the same files, renamed
        target = tmp_path / "b" / path.parent.name / f"x{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    second = loaders(tmp_path / "b", "train", "valid", seed=9)
    assert members(second["valid"]) == members(first["valid"])
    for part in ("train", "valid"):  # copies go where their original is
        for path in first[part].paths[::3]:
            shutil.copy(tmp_path / "a" / path, (tmp_path / "a" / path).with_name(f"copy_{Path(path).name}"))
    third = loaders(tmp_path / "a", "train", "valid")
    assert not members(third["train"]) & members(third["valid"])


def test_the_smallest_valid_splits(tmp_path):
    make_images(tmp_path / "data", per_class=2)
    both = loaders(tmp_path / "data", "train", "valid", valid_fraction=0.9)
    assert both["train"].class_counts == both["valid"].class_counts == [1, 1, 1]
    shutil.copy(tmp_path / "data/class_0/000.png", tmp_path / "data/class_0/001.png")  # nothing but copies
    assert loader(tmp_path / "data").class_counts == [1, 1, 1]
    (tmp_path / "data/class_0/001.png").unlink()
    with pytest.raises(UserError, match="class 'class_0' has one image; two are needed"):
        loader(tmp_path / "data")


def test_a_plain_copy_is_the_same_dataset(data, tmp_path):
    first = loaders(data, "train", "test")
    shutil.copytree(data, tmp_path / "copy" / "data", copy_function=shutil.copyfile)
    copy = loaders(tmp_path / "copy" / "data", "train", "test")
    assert all(copy[split].fingerprint == first[split].fingerprint for split in copy)
    assert loader(data, limit_train=9).fingerprint == first["train"].fingerprint  # a parameter, not other data
    assert first["train"].fingerprint != first["test"].fingerprint
    os.replace(data / "train/class_0/000.png", data / "train/class_0/zzz.png")
    assert loader(data).fingerprint != first["train"].fingerprint


def test_the_fingerprint_does_not_depend_on_the_order_of_listing_nor_on_unicode_form(data, tmp_path, monkeypatch):
    for number, accented in enumerate(("\u00e9t\u00e9.png", "zo\u00eb.png", "\uac00.png")):
        (data / f"train/class_1/{number:03d}.png").rename(data / "train/class_1" / accented)
    first = loader(data).fingerprint
    entries = indexing.os.scandir

    class Backwards:
        def __init__(self, folder):
            with entries(folder) as found:
                self.found = list(found)[::-1]

        __enter__ = lambda self: iter(self.found)  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731

    monkeypatch.setattr(indexing.os, "scandir", Backwards)
    index = index_split(data / "train", "train", data)
    monkeypatch.undo()
    assert index.paths == index_split(data / "train", "train", data).paths
    for path in list((data / "train/class_1").iterdir()):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    assert "zoe\u0308.png" in {path.name for path in (data / "train/class_1").iterdir()}
    assert loader(data).fingerprint == first


def test_the_fingerprint_is_of_names_sizes_labels_and_contents(data, monkeypatch):
    part = loader(data).source
    index, prints = part.index, {part.fingerprint()}
    digests = part.digests.copy()
    digests[7, 15] ^= 1
    prints.add(dataclasses.replace(part, digests=digests).fingerprint())
    for column in ("labels", "sizes"):
        changed = getattr(index, column).copy()
        changed[7] += 1
        prints.add(dataclasses.replace(part, index=dataclasses.replace(index, **{column: changed})).fingerprint())
    names = [*index.paths]
    joined = Paths.of([names[0] + names[1][0], names[1][1:], *names[2:]])
    prints.add(dataclasses.replace(part, index=dataclasses.replace(index, paths=joined)).fingerprint())
    assert len(prints) == 5


def part_of(labels: np.ndarray, digests: np.ndarray) -> source.Source:
    """A Source of files that are nowhere."""
    num = len(labels)
    paths, numbers = Paths.of(map(str, range(num))), np.arange(num)
    index = indexing.Index(Path(), "train", list("abcd"), paths, labels, numbers, numbers, numbers)
    return source.Source(index, digests, None, numbers, 8, "crop", "off")


def split_slowly(labels: np.ndarray, digests: list[str], fraction: float) -> np.ndarray:
    """The definition of the split by content, one class after the other, digests as text."""
    is_valid = np.zeros(len(labels), bool)
    for label in range(4):
        members = sorted(np.flatnonzero(labels == label), key=lambda position: digests[position])
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        cuts = [i for i in range(1, len(members)) if digests[members[i]] != digests[members[i - 1]]]
        is_valid[members[: min(cuts, key=lambda cut: abs(cut - count)) if cuts else count]] = True
    return is_valid


def limit_slowly(labels: np.ndarray, count: int, seed: int) -> list[int]:
    """The definition of a limited split: rank in the class over its size, in a random order; first ones first."""
    order = np.random.Generator(np.random.Philox(key=key64(seed, "limit"))).permutation(len(labels)).tolist()
    seen, place = [0] * 4, []
    for position in order:
        label = labels[position]
        place.append(-1 if not seen[label] else (seen[label] + 0.5) / np.sum(labels == label))
        seen[label] += 1
    ranked = sorted(range(len(order)), key=lambda row: place[row])
    return sorted(order[row] for row in ranked[:count])


@pytest.mark.parametrize("seed", range(6))
def test_splits_and_subsets_are_those_of_their_definitions(seed):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(4), 2), rng.choice(4, 200, p=[0.8, 0.1, 0.07, 0.03])]).astype(np.int32)
    digests = rng.integers(0, 256, (len(labels), 16)).astype(np.uint8)
    digests[:, : rng.integers(0, 16)] = 0  # they differ in late bytes only
    digests[rng.integers(0, len(labels), 60)] = digests[0]  # copies
    part = part_of(labels, digests)
    text = [bytes(row).hex() for row in digests]
    for fraction in (0.01, 0.1, 0.5, 0.9):
        is_valid = subsets.split_by_content(part, fraction)
        assert is_valid.tolist() == split_slowly(labels, text, fraction).tolist()
    for count in (4, 5, 21, 104, 208):
        assert sorted(map(int, subsets.limit(part, count, seed).index.paths)) == limit_slowly(labels, count, seed)
    valid = source.subset(part, is_valid, "valid")
    assert [bytes(valid.digests[row]).hex() for row in valid.cache_rows] == [
        t for t, v in zip(text, is_valid, strict=True) if v
    ]
    assert valid.fingerprint() != part.fingerprint()


def test_limit_train(tmp_path):
    for name, per_class in (("a", 40), ("b", 20), ("c", 3)):
        make_images(tmp_path / "data" / "train", 1, per_class)
        (tmp_path / "data/train/class_0").rename(tmp_path / "data/train" / name)
    make_images(tmp_path / "data" / "valid", 3, 2)
    for old, new in (("class_0", "a"), ("class_1", "b"), ("class_2", "c")):
        (tmp_path / "data/valid" / old).rename(tmp_path / "data/valid" / new)
    assert loader(tmp_path / "data", limit_train=0.5).class_counts in ([20, 10, 2], [20, 10, 1], [19, 10, 2])
    few = loader(tmp_path / "data", limit_train=6)
    more = loader(tmp_path / "data", limit_train=12)
    assert few.num_images == 6
    assert min(few.class_counts) >= 1
    assert set(few.paths) <= set(more.paths)
    assert set(loader(tmp_path / "data", limit_train=6, seed=4).paths) != set(few.paths)
    assert loader(tmp_path / "data", limit_train=1.0).num_images == 63


def test_normalisation(data):
    both = loaders(data, "train", "valid", normalize="dataset")
    pixels = np.stack([read_image(data / path) for path in both["train"].paths]) / 255
    assert both["train"].pinned["mean"] == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-6)
    assert both["valid"].pinned["std"] == pytest.approx(pixels.std((0, 1, 2)), abs=1e-6)
    assert loader(data, "valid").pinned == both["train"].pinned  # train's numbers, though train is not asked for
    images = torch.cat([batch[0] for batch in batches(loader(data, augment="none"))])
    assert images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-2
    assert loader(data, normalize="imagenet").pinned["mean"] == [0.485, 0.456, 0.406]
    assert loader(data, pretrain=1).pinned["std"] == [0.229, 0.224, 0.225]
    stated = loader(data, normalize=[[0.1, 0.2, 0.3], [1, 1, 1]])
    assert stated.pinned["mean"] == [0.1, 0.2, 0.3]
    pinned = stated.pinned | {"mean": [0.5, 0.5, 0.5], "im_sz": 12}
    again = loader(data, pinned=pinned)
    assert again.pinned == pinned
    assert next(again.batches(0))[0].shape[2:] == (12, 12)


def test_statistics_do_not_depend_on_how_they_are_summed(data):
    part = loader(data).source
    assert source.mean_and_std(part) == source.mean_and_std(part, chunk=5)


def test_image_size_is_derived_from_the_training_images(tmp_path, data):
    assert loader(data).im_sz == 16
    assert loader(data, im_sz=24).im_sz == 24
    make_images(tmp_path / "large", 2, 3, side=80)
    large = loader(tmp_path / "large", batch_size=2)
    assert large.im_sz == 224
    assert large.source.size == 256
    images = next(large.batches(0))[0]
    assert images.shape == (2, 3, 224, 224)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert next(loader(tmp_path / "large", "valid").batches(0))[0].shape[2:] == (224, 224)


# --- batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"augment": "strong", "mixup": 0.4, "alternate_flip": 1},
        {"cache": "off"},
        {"alternate_flip": 1, "progressive": {}, "cutmix": 1.0},
    ],
    ids=["batched", "per image", "off", "progressive"],
)
def test_0_1_and_2_workers_give_identical_batches(data, values):
    states = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    runs = [batches(loader(data, num_workers=workers, **values), epoch=2) for workers in (0, 1, 2)]
    assert are_equal(runs[0], runs[1])
    assert are_equal(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state(legacy=False)["state"]["key"] == states[1]).all()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "values",
    [{}, {"accumulate": 3, "cutmix": 1.0, "mixup": 0.2}, {"alternate_flip": 1, "progressive": {}}],
    ids=["plain", "accumulate", "progressive"],
)
def test_starting_in_the_middle(data, workers, values):
    part = loader(data, num_workers=workers, **values)
    whole = batches(part, 1)
    assert len(whole) == part.num_batches * part.accumulate
    for step in range(part.num_batches + 1):
        assert are_equal(batches(part, 1, step), whole[step * part.accumulate :])


def test_a_batch_stays_as_it_is_while_somebody_holds_a_part_of_it(data):
    """Its memory is used again, but not before."""
    part = loader(data)
    wanted = [images for images, *_ in batches(part)]
    held, places = [], []
    for images, *_ in part.batches(0):
        held.append(images[1:, :, 2:] if len(held) % 2 else images.permute(0, 2, 3, 1).view(-1))
        places.append(images.data_ptr())
    for number, (one, other) in enumerate(zip(held, wanted, strict=True)):
        assert torch.equal(one, other[1:, :, 2:] if number % 2 else other.permute(0, 2, 3, 1).reshape(-1))
    assert len(set(places)) == len(places)
    weight = torch.ones(1, 3, 3, 3, requires_grad=True)
    losses = [torch.nn.functional.conv2d(images, weight).square().sum() for images, *_ in part.batches(0)]
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in losses]
    for gradient, images in zip(gradients, wanted, strict=True):  # autograd held the images
        loss = torch.nn.functional.conv2d(images, weight).square().sum()
        assert torch.equal(gradient, torch.autograd.grad(loss, weight)[0])
    buffer = BatchBuffer(8, "cpu")
    first = buffer.take(4)
    memory = buffer.lent[0][0]
    view = first[2:, 0]
    del first
    buffer.take(3)
    assert buffer.lent[-1][0] is not memory
    del view
    buffer.take(4)  # the only one that is large enough
    assert buffer.lent[-1][0] is memory
    assert len(buffer.lent) == 2


def test_data_work_takes_one_thread_and_leaves_the_number_as_it_was(data):
    before, part = torch.get_num_threads(), loader(data)
    normalise, seen = part._normalise.write, []

    def write(images: torch.Tensor, out: torch.Tensor) -> None:
        seen.append(torch.get_num_threads())
        normalise(images, out)

    part._normalise.write = write
    torch.set_num_threads(2)
    try:
        for _ in part.batches(0):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


@pytest.mark.parametrize(("finetune", "num_epochs", "full"), [(0.0, 10.0, 10), (0.2, 10.0, 8), (0.0, 2.5, 3)])
def test_the_epoch_that_is_said_is_the_first_of_full_size(finetune, num_epochs, full):
    how = {"initial_scale": 0.5, "delay_fraction": 0.0, "finetune_fraction": finetune, "size_increment": 1}
    params = make_params(progressive=how, num_epochs=num_epochs)
    sides = [size_at(params, 200, epoch) for epoch in range(full + 1)]
    assert sides[0] == 100
    assert all(side < 200 for side in sides[:full])
    assert sides[full] == 200
    assert describe_training_sizes(params, 200) == f"progressive: 100 px to 200 px by epoch {full}"


def test_progressive_resizing(tmp_path):
    """Sizes by epoch; the images are those of full size, made smaller; evaluation is at full size."""
    make_images(tmp_path / "data" / "train", 3, 6, side=32)
    make_images(tmp_path / "data" / "valid", 3, 2, side=32)
    how = {"initial_scale": 0.5, "delay_fraction": 0.4, "finetune_fraction": 0.2}
    values = {"progressive": how, "num_epochs": 10.0, "mixup": 0.3}
    both, plain = loaders(tmp_path / "data", "train", "valid", **values), loader(tmp_path / "data", mixup=0.3)
    found = [next(both["train"].batches(epoch))[0].shape[2] for epoch in range(12)]
    assert found == [16, 16, 16, 16, 16, 20, 24, 28, 32, 32, 32, 32]  # the last two: after an extension
    assert list_training_sizes(both["train"].params, 32) == [16, 20, 24, 28, 32]
    assert list_training_sizes(plain.params, 32) == [32]
    assert "augmented in batches, progressive: 16 px to 32 px by epoch 8, decoded" in both["train"].description
    assert "progressive" not in both["valid"].description
    assert "progressive" not in plain.description
    assert both["train"].augmentation["progressive"]["size_increment"] == 4
    assert "progressive" not in plain.augmentation | both["valid"].augmentation
    assert next(both["valid"].batches(0))[0].shape[2:] == (32, 32)
    for epoch in (0, 6, 9):
        for small, large in zip(both["train"].batches(epoch), plain.batches(epoch), strict=True):
            side = small[0].shape[2]
            resized = torch.nn.functional.interpolate(large[0], (side, side), mode="bilinear", antialias=True)
            assert torch.allclose(small[0], resized, atol=1e-4)
            assert torch.equal(small[1], large[1])
            assert small[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("how", "im_sz", "num_epochs", "wanted"),
    [
        ({}, 32, 1.0, [16]),
        ({}, 32, 5.0, [16, 16, 16, 24, 32]),
        ({}, 32, 4.5, [16, 16, 16, 28, 32]),
        ({"initial_scale": 1.0}, 32, 3.0, [32, 32, 32]),
        ({"initial_scale": 0.01}, 32, 3.0, [4, 4, 20]),
        ({"delay_fraction": 0.5, "finetune_fraction": 0.5}, 32, 4.0, [16, 16, 32, 32]),
        ({"delay_fraction": 0.0, "finetune_fraction": 0.0, "size_increment": 32}, 224, 4.0, [128, 128, 160, 192]),
        ({"delay_fraction": 1.0, "finetune_fraction": 0.0}, 30, 2.0, [16, 16]),
        ({"size_increment": 64}, 48, 2.0, [48, 48]),
    ],
)
def test_sizes_of_progressive_resizing(how, im_sz, num_epochs, wanted):
    params = make_params(progressive=how, num_epochs=num_epochs)
    assert [size_at(params, im_sz, epoch) for epoch in range(len(wanted))] == wanted
    assert list_training_sizes(params, im_sz) == sorted({*wanted, im_sz})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"progressive": {"delay_fraction": 0.7, "finetune_fraction": 0.4}}, "0.7 and finetune_fraction 0.4 given"),
        ({"progressive": {"initial_scale": 0}}, "progressive.initial_scale: 0 given"),
        ({"progressive": {"scale": 0.5}}, 'unknown key "progressive.scale"; possible: delay_fraction'),
        ({"alternate_flip": 2}, "alternate_flip: 2 given"),
    ],
)
def test_what_is_wrong_with_these_parameters_is_one_line(values, message):
    with pytest.raises(UserError, match=message) as caught:
        make_params(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "idle"),
    [
        ({"alternate_flip": 1, "augment": "crop"}, ["alternate_flip: augment has no HorizontalFlip"]),
        ({"alternate_flip": 1, "augment": ["RandomRotate90"]}, ["alternate_flip: augment has no HorizontalFlip"]),
        ({"alternate_flip": 1, "augment": [{"name": "HorizontalFlip"}]}, []),
        ({"alternate_flip": 1}, []),
        ({"progressive": {"initial_scale": 1}}, ["progressive: initial_scale 1 is full size"]),
        ({"progressive": {}}, []),
    ],
)
def test_what_has_no_effect_is_said(values, idle):
    assert make_params(**values).no_effect() == idle


def test_order_and_augmentation_are_functions_of_seed_and_epoch(data):
    one, other = loader(data), loader(data, seed=4)
    assert are_equal(batches(one, 0), batches(loader(data), 0))
    orders = [torch.cat([batch[2] for batch in batches(part, epoch)]) for part in (one, other) for epoch in (0, 1)]
    assert all(sorted(order.tolist()) == list(range(36)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    # An image looks the same in whatever batch it is.
    small = {
        int(i): image
        for images, _, indices, _ in batches(loader(data, batch_size=5))
        for i, image in zip(indices, images, strict=True)
    }
    for images, labels, indices, weights in batches(one):
        assert all(torch.equal(image, small[int(i)]) for i, image in zip(indices, images, strict=True))
        assert labels.tolist() == [one.labels[i] for i in indices]
        assert weights.tolist() == [1.0] * len(images)


def test_the_order_is_a_permutation_by_philox(data):
    part = loader(data)
    for epoch in (0, 7):
        rng = np.random.Generator(np.random.Philox(key=key64(3, "order", epoch)))
        assert part.order.positions(epoch).tolist() == rng.permutation(36).tolist()
        assert part.order.positions(epoch).dtype == np.uint32
    start, end = 8, 16
    assert part.files(7, 1) == [part.paths[i] for i in part.order.positions(7)[start:end]]
    assert loader(data, "valid").order.positions(5).tolist() == list(range(36))
    assert [position_dtype(num) for num in (1 << 32, (1 << 32) + 1)] == [np.uint32, np.int64]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_is_not_planned_further_than_the_workers_are(data, workers, monkeypatch):
    part = loader(data, num_workers=workers, batch_size=1)
    planned, micro_batches = [], EpochOrder.micro_batches

    def counted(*args):
        for one in micro_batches(*args):
            planned.append(one)
            yield one

    monkeypatch.setattr(EpochOrder, "micro_batches", counted)
    running = part.batches(0)
    for taken in range(1, 6):
        next(running)
        assert len(planned) <= taken + 3
    running.close()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("limit", [36, 33, 35, 12])
def test_ranks_and_micro_batches_share_a_step(data, world, accumulate, limit):
    values = {"batch_size": 8, "accumulate": accumulate, "limit_train": limit}
    ranks = [loader(data, rank=rank, world=world, **values) for rank in range(world)]
    order, taken = ranks[0].order.positions(0), 0
    parts = [batches(part) for part in ranks]
    assert len({len(part) for part in parts}) == 1
    for step in range(ranks[0].num_batches):
        rows = [batch for part in parts for batch in part[step * accumulate : (step + 1) * accumulate]]
        assert len({len(batch[0]) for batch in rows}) == 1
        assert len(rows[0][0]) > 0
        real = sorted(int(i) for batch in rows for i in batch[2][batch[3] > 0])
        size = ranks[0].step_size(step)
        assert real == sorted(order[taken : taken + size].tolist())
        taken += size
    assert taken == limit
    if world == accumulate == 1:
        assert [len(batch[0]) for batch in parts[0]][-1] == {36: 4, 33: 9, 35: 3, 12: 4}[limit]  # 33: 1 joined 8


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_counts_every_image_once_and_in_order(data, world):
    ranks = [batches(loader(data, "valid", rank=rank, world=world, bs_test=7)) for rank in range(world)]
    assert len({len(part) for part in ranks}) == 1
    seen = [int(i) for step in zip(*ranks, strict=True) for batch in step for i in batch[2][batch[3] > 0]]
    assert seen == list(range(36))


def test_balanced_sampling(tmp_path):
    make_dataset(tmp_path / "data", per_class=4)
    make_images(tmp_path / "data" / "train", 1, 100)
    part = loader(tmp_path / "data", sampler="balanced", augment="none")
    counts = np.bincount(np.concatenate([np.array(part.labels)[part.order.positions(epoch)] for epoch in range(40)]))
    assert part.class_counts == [100, 4, 4]
    assert (abs(counts / counts.sum() - 1 / 3) < 0.03).all()
    assert (part.order.positions(0) == loader(tmp_path / "data", sampler="balanced").order.positions(0)).all()


def test_soft_labels(data):
    cases: list[dict[str, Any]] = [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}]
    for values in cases:
        for images, labels, indices, _ in batches(loader(data, **values)):
            assert labels.shape == (len(images), 3)
            assert torch.allclose(labels.sum(1), torch.ones(len(images)))
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert images.dtype == torch.float32
            assert indices.dtype == torch.int64
    assert next(loader(data, "valid", mixup=0.4).batches(0))[1].ndim == 1


def test_an_image_that_vanishes_is_one_line_from_a_worker_too(data):
    for workers in (0, 1):
        part = loader(data, cache="off", num_workers=workers)
        victim = data / part.paths[5]
        content = victim.read_bytes()
        victim.unlink()
        with pytest.raises(ImageError) as caught:
            batches(part)
        assert str(caught.value) == f"{victim}: No such file or directory"
        victim.write_bytes(content)
        os.utime(victim)


def test_descriptions_and_what_a_loader_says(data):
    both = loaders(data, "train", "valid")
    text = both["train"].description
    assert text == "train: 36 images of 3 classes at 16 px, augmented in batches, decoded images on disk, 0 workers"
    assert both["train"].pinned["classes"] == ["class_0", "class_1", "class_2"]
    assert both["train"].augmentation["mixup"] == 0
    assert both["train"].num_batches == 5
    assert both["train"].accumulate == 1
    assert make_params().batch_size == both["train"].batch_size
