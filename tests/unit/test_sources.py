"""Splits, statistics, folds, digests and caches, against numpy, scikit-learn, Pillow, hashlib and values by hand."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from loaders import batches, loader, loaders, noise
from PIL import Image
from sklearn.model_selection import StratifiedKFold

from model.images import cache, folds, subsets
from model.images.cache import open_decoded
from model.images.cached.intact import CheckedJpegs
from model.images.decode import base_image, image_size
from model.images.image_folder import base_size
from model.images.index import Index, by_class, index_split
from model.images.paths import Paths
from model.images.source import JoinedImages, Source, join, mean_and_std, subset
from utils import UserError


def make_source(labels: list[int], digests: np.ndarray | None = None, images: np.ndarray | None = None) -> Source:
    """A source of files that do not exist, whose digests count upwards unless they are given."""
    num = len(labels)
    numbers = np.arange(num)
    if digests is None:
        digests = numbers.astype(">u8").view(np.uint8).reshape(num, 8).repeat(2, axis=0).reshape(num, 16)
    classes = list("abcdefgh")[: max(labels) + 1]
    paths = Paths.of(f"{n}.png" for n in range(num))
    index = Index(Path(), "train", classes, paths, np.array(labels, np.int32), numbers, numbers, numbers)
    size = 8 if images is None else images.shape[1]
    return Source(index, digests, images, numbers, size, "crop", "off" if images is None else "ram")


# --- statistics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num", "side"), [(1, 5), (255, 4), (256, 4), (257, 4), (700, 3)])
def test_mean_and_std_are_those_of_numpy_in_float64(num, side):
    images = np.random.default_rng(num).integers(0, 256, (num, side, side, 3)).astype(np.uint8)
    images[..., 1] //= 3  # the channels differ
    images[..., 2] = images[..., 2] // 2 + 128
    mean, std = mean_and_std(make_source([0] * num, images=images))
    pixels = images.astype(np.float64).reshape(-1, 3) / 255
    assert mean == pytest.approx(pixels.mean(axis=0), abs=6e-7)
    assert std == pytest.approx(pixels.std(axis=0), abs=6e-7)
    assert mean == [round(value, 6) for value in mean]


def test_the_std_of_equal_pixels_is_not_zero():
    images = np.full((4, 2, 2, 3), 255, np.uint8)
    assert mean_and_std(make_source([0] * 4, images=images)) == ([1.0, 1.0, 1.0], [0.001, 0.001, 0.001])


def test_statistics_of_many_images_are_of_evenly_spaced_ones():
    images = np.zeros((30_001, 1, 1, 3), np.uint8)
    images[-1] = 255  # the last one counts, as 1 of 20,000
    assert mean_and_std(make_source([0] * 30_001, images=images))[0] == [0.00005] * 3
    images[1::3] = 255  # nothing between 0 and 1.5 images is taken but 0 and (rounded down) 1
    taken = np.linspace(0, 30_000, 20_000).astype(int)
    expected = (images[taken].astype(np.float64) / 255).mean()
    assert mean_and_std(make_source([0] * 30_001, images=images))[0] == pytest.approx([expected] * 3, abs=6e-7)


def test_fewer_images_are_decoded_for_statistics(monkeypatch):
    seen = []

    def read(self, positions, begin=None):
        seen.extend(positions.tolist())
        return np.zeros((len(positions), 8, 8, 3), np.uint8)

    monkeypatch.setattr(Source, "read", read)
    mean_and_std(make_source([0] * 5_000))
    assert len(seen) == 2_000
    assert seen == np.linspace(0, 4_999, 2_000).astype(int).tolist()


# --- splits and subsets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "counts"), [(0.1, [4, 1, 2, 1]), (0.5, [20, 4, 12, 1]), (0.9, [36, 6, 22, 1]), (0.001, [1, 1, 1, 1])]
)
def test_the_number_of_valid_images_of_each_class(fraction, counts):
    """Of 40, 7, 25 and 2 images: the rounded fraction (halves to even), at least one, and never all."""
    labels = [0] * 40 + [1] * 7 + [2] * 25 + [3] * 2
    is_valid = subsets.split_by_content(make_source(labels), fraction)
    assert np.bincount(np.array(labels)[is_valid]).tolist() == counts
    for label in range(4):  # the smallest digests, which here count upwards
        members = np.flatnonzero(np.array(labels) == label)
        assert np.flatnonzero(is_valid[members]).tolist() == list(range(counts[label]))


def test_copies_stay_on_one_side_and_the_nearest_cut_is_taken():
    digests = np.zeros((10, 16), np.uint8)
    digests[:, 15] = [0, 0, 0, 1, 1, 1, 1, 1, 2, 2]  # cuts are possible after 3 and 8
    for fraction, count in ((0.1, 3), (0.5, 3), (0.6, 8), (0.9, 8)):
        is_valid = subsets.split_by_content(make_source([0] * 10, digests), fraction)
        assert is_valid.tolist() == [True] * count + [False] * (10 - count)


@pytest.mark.parametrize(("fraction", "count"), [(0.05, 1), (0.5, 2), (0.95, 3)])
def test_a_class_of_copies_alone_is_divided_with_one_left_for_each_side(fraction, count):
    is_valid = subsets.split_by_content(make_source([0] * 4, np.zeros((4, 16), np.uint8)), fraction)
    assert is_valid.sum() == count


def test_a_limit_keeps_the_proportions_of_the_classes():
    labels = [0] * 60 + [1] * 30 + [2] * 10
    source = make_source(labels)
    for number, counts in (
        (10, [6, 3, 1]),
        (0.5, [30, 15, 5]),
        (0.2, [12, 6, 2]),
        (1.0, [60, 30, 10]),
        (1_000, [60, 30, 10]),
    ):
        assert subsets.limit(source, number, 0).class_counts() == counts
    assert subsets.limit(source, 3, 0).class_counts() == [1, 1, 1]
    with pytest.raises(UserError, match="limit_train: 2 images for 3 classes"):
        subsets.limit(source, 0.02, 0)
    chosen = [set(subsets.limit(source, number, 5).index.paths) for number in (3, 10, 31, 77)]
    assert all(few < more for few, more in zip(chosen, chosen[1:], strict=False))


def test_positions_by_class():
    positions, starts = by_class(np.array([2, 0, 2, 1, 0], np.int32), 4)
    assert positions.tolist() == [1, 4, 3, 0, 2]
    assert starts.tolist() == [0, 2, 3, 5, 5]
    many = np.arange(70_000, dtype=np.int32)[::-1]  # more classes than 16 bits number
    assert by_class(many, 70_000)[0].tolist() == list(range(70_000))[::-1]


def test_a_lossy_cache_goes_with_the_training_part_alone():
    source = make_source([0, 0, 1, 1])
    digests = np.zeros((4, 32), np.uint8)
    source.jpegs = CheckedJpegs(np.empty(0, np.uint8), np.zeros(5), 8, digests, lambda row: b"", lambda: None)
    source.form, source.skipped = "jpeg", ("x",)
    mask = np.array([True, False, True, False])
    train, valid = subset(source, mask, "train"), subset(source, ~mask, "valid")
    assert (train.jpegs, train.form, train.skipped) == (source.jpegs, "jpeg", ("x",))
    assert (valid.jpegs, valid.form, valid.skipped) == (None, "off", ())
    assert valid.note == "not cached: the jpeg cache is lossy, and for training alone"


# --- folds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3, 5, 7])
@pytest.mark.parametrize("counts", [(23, 8, 13), (10, 10), (50, 7, 9, 31), (7, 8, 9)])
def test_parts_have_the_sizes_of_scikit_learns_stratified_folds(k, counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    source = make_source(labels.tolist())
    parts = folds.assign_parts(source, k)
    described = folds.describe(source, parts, k)
    expected = [np.bincount(labels[rows]).tolist() for _, rows in StratifiedKFold(k).split(labels, labels)]
    assert np.array(list(described["counts"].values())).T.tolist() == expected
    assert sorted(set(parts.tolist())) == list(range(1, k + 1))
    digest = hashlib.sha256(source.fingerprint().encode() + np.array(parts, "<i4").tobytes()).hexdigest()
    assert described["parts_digest"] == digest
    assert described["images"] == len(labels)


def test_two_folders_are_joined_in_the_order_of_their_images():
    whole = make_source([0, 0, 1, 1, 0])
    mask = np.array([True, False, True, False, True])
    again = join(subset(whole, mask, "train"), subset(whole, ~mask, "valid"))  # one was split off the other
    assert again.index.paths == whole.index.paths
    assert again.cache_rows.tolist() == [0, 1, 2, 3, 4]
    assert again.index.labels.tolist() == [0, 0, 1, 1, 0]
    assert again.fingerprint() == whole.fingerprint()
    first = make_source([0, 1], images=np.full((2, 4, 4, 3), 10, np.uint8))
    second = make_source([1, 0, 1], images=np.arange(3, dtype=np.uint8).repeat(48).reshape(3, 4, 4, 3))
    both = join(first, second)
    assert both.index.labels.tolist() == [0, 1, 1, 0, 1]
    assert both.cache_rows.tolist() == [0, 1, 2, 3, 4]
    assert isinstance(both.images, JoinedImages)
    assert both.form == "ram"
    assert both.read(np.array([4, 0, 2, 3]))[:, 0, 0, 0].tolist() == [2, 10, 0, 1]


# --- the index --------------------------------------------------------------------------------------------------


def test_the_order_of_an_index_is_that_of_code_points(tmp_path):
    names = ["10.png", "2.png", "A.png", "B/b.png", "a.png", "b/z.png", "b.png", "é.png"]
    for label in ("z", "Y"):
        for name in names:
            (tmp_path / "train" / label / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "train" / label / name).write_bytes(b"12" * (label == "z"))
    index = index_split(tmp_path / "train", "train", tmp_path)
    in_order = ["10.png", "2.png", "A.png", "B/b.png", "a.png", "b/z.png", "b.png", "é.png"]
    assert list(index.paths) == [f"train/{label}/{name}" for label in "Yz" for name in in_order]
    assert index.classes == ["Y", "z"]
    assert index.labels.tolist() == [0] * 8 + [1] * 8
    assert index.sizes.tolist() == [0] * 8 + [2] * 8


# --- digests and the cache --------------------------------------------------------------------------------------


def make_files(folder: Path) -> Path:
    for label in "ab":
        for number in range(3):
            path = folder / "train" / label / f"{label}{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(8, 8, seed=number + 10 * (label == "b"))).save(path)
            os.utime(path, ns=(0, 1_700_000_000_000_000_000 + number))
    return folder


def test_the_names_and_contents_of_a_cache_by_hand(tmp_path):
    data = make_files(tmp_path / "data")
    files = sorted((data / "train").rglob("*.png"))
    index = index_split(data / "train", "train", data)
    open_decoded(index, 8, "crop", "disk", tmp_path / "cache")
    state = hashlib.sha256(repr(((4,), 6)).encode())
    state.update(b"".join(str(path.relative_to(data)).encode() for path in files))
    state.update(np.array([len("train/a/a0.png")] * 6, "<u2").tobytes())
    state.update(np.array([path.stat().st_size for path in files], "<i8").tobytes())
    state.update(np.array([path.stat().st_mtime_ns for path in files], "<i8").tobytes())
    parts = "\0".join([os.fsencode(data.resolve()).hex(), "train", "8", "crop"])
    key = int.from_bytes(hashlib.blake2b(parts.encode(), digest_size=8).digest(), "little") >> 1
    stem = f"data-train-8crop-{key:016x}"
    short = state.hexdigest()[:12]
    kinds = (".npy", ".digests", ".blocks", ".ctimes")
    made = {path.name for path in (tmp_path / "cache").iterdir()}
    assert made == {f"{stem}.json", f"{stem}.lock", *(f"{stem}-{short}{kind}" for kind in kinds)}
    digests = [hashlib.blake2b(path.read_bytes(), digest_size=16).digest() for path in files]
    assert (tmp_path / "cache" / f"{stem}-{short}.digests").read_bytes() == b"".join(digests)
    images = np.load(tmp_path / "cache" / f"{stem}-{short}.npy")
    assert np.array_equal(images, np.stack([np.array(Image.open(path)) for path in files]))


def test_the_fingerprint_by_hand(tmp_path):
    data = make_files(tmp_path / "data")
    files = sorted((data / "train").rglob("*.png"))
    names = hashlib.sha256(b"".join(str(path.relative_to(data)).encode() for path in files))
    columns = hashlib.sha256(np.array([len("train/a/a0.png")] * 6, "<u2").tobytes())
    columns.update(np.array([path.stat().st_size for path in files], "<i8").tobytes())
    columns.update(np.array([0, 0, 0, 1, 1, 1], "<i4").tobytes())
    columns.update(b"".join(hashlib.blake2b(path.read_bytes(), digest_size=16).digest() for path in files))
    (data / "valid").symlink_to("train")
    expected = hashlib.sha256(names.digest() + columns.digest()).hexdigest()
    assert loader(data).fingerprint == expected
    lossy = hashlib.sha256(names.digest() + columns.digest() + b"jpeg 90").hexdigest()
    assert loader(data, cache="jpeg", num_workers=0).fingerprint == lossy


@pytest.mark.parametrize(
    ("cached", "free", "form", "note"),
    [
        (8 << 30, 64 << 30, "disk", ""),
        ((8 << 30) + 1, 64 << 30, "off", "not cached: 8 GiB of images, 8 GiB allowed"),
        (1 << 30, 4 << 30, "disk", ""),
        ((1 << 30) + 1, 4 << 30, "off", "not cached: 1 GiB of images, a quarter of the 4 GiB free on disk allowed"),
    ],
)
def test_when_auto_keeps_images_on_disk(tmp_path, monkeypatch, cached, free, form, note):
    usage = cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage._replace(free=free))
    assert cache._choose("auto", cached, tmp_path / "not" / "made") == (form, note)
    assert cache._choose("device", cached, tmp_path) == (("disk", "") if form == "disk" else ("ram", ""))
    for stated in ("disk", "ram", "jpeg", "off"):
        assert cache._choose(stated, cached, tmp_path) == (stated, "")


# --- base images ------------------------------------------------------------------------------------------------


def test_sizes_of_base_images():
    assert [base_size(im_sz) for im_sz in (8, 32, 64, 65, 96, 112, 224, 384)] == [8, 32, 64, 74, 110, 128, 256, 439]


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(20, 40, (8, 0, 24, 32)), (40, 20, (0, 8, 32, 24)), (16, 16, (0, 0, 32, 32)), (9, 100, (14, 0, 17, 32))],
)
def test_a_letterbox_is_the_resized_image_on_grey(height, width, box):
    """`box`: (top, left, bottom, right) of the image in 32 x 32."""
    top, left, bottom, right = box
    image = noise(height, width)
    boxed = base_image(image, 32, "letterbox").astype(int)
    inner = Image.fromarray(image).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    assert np.abs(boxed[top:bottom, left:right] - np.asarray(inner)).max() <= 1
    boxed[top:bottom, left:right] = 128
    assert (boxed == 128).all()


def test_the_size_in_the_header_is_as_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "a.png", "a.webp", "a.gif", "a.tiff", "a.bmp"):
        image = Image.fromarray(noise(20, 30))
        image.save(tmp_path / name, exif=exif.tobytes()) if name == "a.jpg" else image.save(tmp_path / name)
        assert image_size(tmp_path / name) == Image.open(tmp_path / name).size == (30, 20)


# --- batches ----------------------------------------------------------------------------------------------------


def test_padding_weighs_nothing(tmp_path):
    data = make_files(tmp_path / "data")
    (data / "valid").symlink_to("train")
    weights = []
    for rank in range(4):
        part = loaders(data, "valid", rank=rank, world=4, bs_test=1)["valid"]
        weights.append([batch[3].tolist() for batch in batches(part)])
    assert weights == [[[1.0], [1.0]], [[1.0], [1.0]], [[1.0], [0.0]], [[1.0], [0.0]]]  # 6 images: 4, then 2


def test_a_fingerprint_is_sha256_over_names_and_over_columns_in_blocks_of_65_536_files():
    num = 65_540
    digests = np.random.default_rng(0).integers(0, 256, (num, 16)).astype(np.uint8)
    labels = np.arange(num) % 3
    names = [f"{number}.png".encode() for number in range(num)]
    columns = hashlib.sha256()
    for part in (slice(0, 65_536), slice(65_536, num)):
        columns.update(np.array([len(name) for name in names[part]], "<u2").tobytes())
        columns.update(np.arange(num, dtype="<i8")[part].tobytes())  # the sizes of make_source
        columns.update(labels[part].astype("<i4").tobytes())
        columns.update(digests[part].tobytes())
    expected = hashlib.sha256(hashlib.sha256(b"".join(names)).digest() + columns.digest()).hexdigest()
    assert make_source(labels.tolist(), digests).fingerprint() == expected
