"""What happens to the pixels: both roads do the same, and draws depend on their counters alone."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kit import ROOT
from loaders import make_params, noise

from model.augment import PRESETS, Augment, make_augment, mix
from model.pixels import fused
from model.pixels.batched import (
    cutout_batch,
    draw_boxes,
    fit_batch,
    gather_windows,
    pad_batch,
    resize_boxes,
    resized_crop_batch,
    sample_boxes,
    uniform,
)
from model.pixels.fused import FusedGather, FusedResizedCrop, fuse
from model.pixels.per_image import PythonRandom
from utils import UserError, key64

NUM = 1500


def augment(what="flip_crop", im_sz=32, base=32, per_image=False, **values):
    return make_augment(make_params(augment=what, **values), im_sz, base, per_image)


def coordinates(side: int) -> np.ndarray:
    """(S, S, 3) uint8 whose pixels say where they come from: (row, column, 0)."""
    rows, columns = np.indices((side, side))
    return np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8)


def run(pipeline, image: np.ndarray, num: int, epoch: int = 0) -> np.ndarray:
    """(num, h, w, 3): the image as positions 0 .. num - 1 of a dataset, by the pipeline's own road."""
    if pipeline.is_batched:
        return pipeline.batch(torch.from_numpy(image).expand(num, *image.shape), epoch, np.arange(num)).numpy()
    return np.stack([pipeline.image(image, epoch, position) for position in range(num)])


def test_draws_are_uniform_and_depend_on_their_counters_alone():
    indices = np.arange(20_000)
    draws = uniform(0, 0, indices, ["top"])[0]
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-square, 19 degrees of freedom, p = 0.0007
    shuffled = np.random.default_rng(0).permutation(indices)
    assert (uniform(0, 0, shuffled, ["top"])[0] == draws[shuffled]).all()
    for other in (
        uniform(1, 0, indices, ["top"])[0],
        uniform(0, 1, indices, ["top"])[0],
        uniform(0, 0, indices, ["left"])[0],
    ):
        assert abs(np.corrcoef(draws, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.03


@pytest.mark.parametrize("per_image", [False, True])
def test_both_roads_of_flip_crop_draw_alike(per_image):
    """The offset and the flip of each image, read off its pixels: uniform over 81 offsets, half flipped."""
    out = run(augment(per_image=per_image), coordinates(32), NUM)
    middle = out[:, 12:20, 12:20].astype(int)  # whatever the offset, no border gets here
    is_flipped = middle[:, 0, 1, 1] < middle[:, 0, 0, 1]
    top = middle[:, 0, 0, 0] - 12 + 4
    left = np.where(is_flipped, middle[:, 0, -1, 1], middle[:, 0, 0, 1]) - 12 + 4
    assert abs(is_flipped.mean() - 0.5) < 0.06
    for offset in (top, left):
        counts = np.bincount(offset, minlength=9)
        assert len(counts) == 9
        assert ((counts - NUM / 9) ** 2 / (NUM / 9)).sum() < 30
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.1
    assert abs(np.corrcoef(top, is_flipped)[0, 1]) < 0.1


def test_both_roads_give_identical_pixels_for_the_same_offsets_and_flips():
    import albumentations

    image = noise(32, 32)
    padded = pad_batch(torch.from_numpy(image)[None], {"min_height": 41, "min_width": 40}, None)
    pad = albumentations.PadIfNeeded(41, 40, border_mode=4, p=1)
    assert np.array_equal(padded[0].numpy(), pad(image=image)["image"])
    top, left = np.array([0, 3, 9]), np.array([8, 5, 0])
    windows = gather_windows(padded.expand(3, -1, -1, -1), top, left, 32, 32)
    for window, y, x in zip(windows.numpy(), top, left, strict=True):
        crop = albumentations.Crop(x, y, x + 32, y + 32)
        assert np.array_equal(window, crop(image=padded[0].numpy())["image"])
    flip = [{"name": "HorizontalFlip", "p": 1.0}]
    assert np.array_equal(run(augment(flip), image, 2), run(augment(flip, per_image=True), image, 2))
    for preset, base in (("none", 36), ("none", 32)):
        assert np.array_equal(run(augment(preset, 32, base), noise(base, base), 1)[0], fit(noise(base, base), 32))


def fit(image: np.ndarray, side: int) -> np.ndarray:
    return fit_batch(torch.from_numpy(image)[None], side)[0].numpy()


def test_random_resized_crop():
    image = torch.from_numpy(noise(256, 256))[None]
    whole = {"size": [224, 224], "scale": [1.0, 1.0], "ratio": [1.0, 1.0]}
    out = resized_crop_batch(image, whole, lambda stream: np.array([0.3]))
    expected = torch.nn.functional.interpolate(image.permute(0, 3, 1, 2).float(), (224, 224), mode="bilinear")
    assert (out.permute(0, 3, 1, 2).float() - expected).abs().max() <= 1.01  # rounded twice: once per axis
    # Where the corners of the crop come from, by both roads: the same distribution of its area.
    ramp = np.indices((256, 256)).transpose(1, 2, 0)
    ramp = np.concatenate([ramp, np.zeros((256, 256, 1), int)], -1).astype(np.uint8)
    areas = {}
    for per_image in (False, True):
        out = run(augment("crop", 224, 256, per_image), ramp, 300).astype(float)
        areas[per_image] = (out[:, -1, 0, 0] - out[:, 0, 0, 0]) * (out[:, 0, -1, 1] - out[:, 0, 0, 1]) / 256**2
        assert out.shape[1:] == (224, 224, 3)
    assert areas[False].mean() == pytest.approx(areas[True].mean(), abs=0.05)
    assert areas[False].min() > 0.3
    assert areas[False].std() == pytest.approx(areas[True].std(), abs=0.04)


@pytest.mark.parametrize("base", [32, 256])
def test_both_ways_to_resize_boxes_agree(base):
    """In integers on a CPU, by grid_sample elsewhere: the same boxes, to the rounding."""
    arguments = {"size": [28, 24] if base == 32 else [224, 224], "scale": [0.05, 1.0], "ratio": [0.5, 2.0]}
    images = torch.from_numpy(np.stack([noise(base, base, seed) for seed in range(40)]))
    boxes = draw_boxes(base, base, arguments, lambda stream: uniform(5, 0, np.arange(40), [stream])[0])
    left, top, width, height = boxes
    assert min(boxes[2:].min(), (left + 1).min(), (top + 1).min()) >= 1
    assert max((left + width).max(), (top + height).max()) <= base
    fast = resize_boxes(images, np.arange(40), boxes, *arguments["size"]).float()
    difference = (fast - sample_boxes(images, boxes, *arguments["size"]).float()).abs()
    assert difference.mean() < 0.5
    assert difference.max() <= 1
    some = np.array([7, 3])
    assert torch.equal(resize_boxes(images, some, boxes[:, some], *arguments["size"]).float(), fast[some])


SIDES = st.integers(1, 24)
RECIPES = st.tuples(
    SIDES,
    SIDES,
    SIDES,
    st.lists(
        st.one_of(
            st.tuples(st.just("PadIfNeeded"), st.integers(1, 40), st.integers(1, 40)),
            st.tuples(st.sampled_from(["RandomCrop", "CenterCrop"]), SIDES, SIDES),
            st.tuples(st.just("HorizontalFlip"), st.just(0), st.just(0)),
            st.tuples(st.just("CoarseDropout"), SIDES, SIDES),
            st.tuples(st.just("RandomResizedCrop"), SIDES, SIDES),
        ),
        max_size=5,
    ),
)


def transform_of(kind: str, height: int, width: int) -> dict:
    if kind == "PadIfNeeded":
        return {"name": kind, "min_height": height, "min_width": width, "border_mode": 4}
    if kind in ("RandomCrop", "CenterCrop"):
        return {"name": kind, "height": height, "width": width}
    if kind == "CoarseDropout":
        sides = {"hole_height_range": [height, height], "hole_width_range": [width, width]}
        return {"name": kind, "num_holes_range": [1, 1], **sides, "fill": height}
    return {"name": kind, "size": [height, width]} if kind == "RandomResizedCrop" else {"name": kind}


def pieces(augment: Augment, store: torch.Tensor, rows: np.ndarray, epoch: int = 0) -> torch.Tensor:
    out = torch.empty(len(rows), augment.im_sz, augment.im_sz, 3, dtype=torch.uint8)
    for part, images in augment.pieces(store, rows, epoch, rows):
        out[part] = images
    return out


@settings(max_examples=400, deadline=None)
@given(RECIPES, st.sampled_from([1, 30]), st.integers(0, 3), st.booleans())
@example((8, 8, 8, [("PadIfNeeded", 10, 10), ("RandomCrop", 8, 8), ("HorizontalFlip", 0, 0)]), 30, 1, True)
@example((6, 6, 6, [("PadIfNeeded", 40, 40), ("HorizontalFlip", 0, 0), ("RandomCrop", 9, 9)]), 30, 1, False)
@example((9, 9, 5, [("RandomResizedCrop", 7, 8), ("HorizontalFlip", 0, 0), ("CoarseDropout", 3, 20)]), 30, 0, False)
@example((7, 7, 8, [("PadIfNeeded", 8, 8)]), 30, 0, False)  # a border on one side
@example((4, 2, 1, [("RandomCrop", 1, 1), ("PadIfNeeded", 1, 1)]), 3, 0, False)  # nothing to pad after a crop
@example((2, 2, 5, [("PadIfNeeded", 5, 5)]), 1, 0, False)  # fewer pixels in all than in a row of the window
def test_one_gather_is_what_the_transforms_do_one_after_another(recipe, num, epoch, alternate):
    """From whichever place, by runs or by pixels, in small pieces or in one: to the bit."""
    height, width, im_sz, steps = recipe
    augment = Augment([transform_of(*step) for step in steps], im_sz, seed=3, alternate=alternate)
    store = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, height, width, 3)).astype(np.uint8))
    rows = np.random.default_rng(1).integers(0, num, 17)
    rows[:2] = 0, num - 1  # windows there leave the whole array
    try:
        wanted = augment.batch(store[rows], epoch, rows)
    except UserError:  # a crop of more than there is
        with pytest.raises(UserError):
            pieces(augment, store, rows, epoch)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "PIECE", 4 * im_sz**2 * 3)
        assert torch.equal(pieces(augment, store, rows, epoch), wanted)
    gather = fuse(augment.batch_transforms, height, width, im_sz, on_cpu=False)
    if gather:
        drawn = gather.draw_windows(len(rows), lambda streams: augment.draw(epoch, rows, streams))
        assert torch.equal(gather.gather_by_pixel(store, rows, drawn), wanted)


@pytest.mark.parametrize("hole", [(3, 5), (8, 8), (1, 8), (20, 3)])
@pytest.mark.parametrize("crop", ["RandomCrop", "CenterCrop"])
def test_holes_of_a_gather_are_those_of_the_transforms(crop, hole):
    """By pixels, by runs and where nothing is cut off: some images with a hole, some without, to the bit."""
    steps = [("PadIfNeeded", 14, 13), (crop, 8, 8), ("HorizontalFlip", 0, 0)]
    steps += [("CoarseDropout", *hole), ("CoarseDropout", 2, 4)]
    transforms = [transform_of(*step) for step in steps]
    augment = Augment(transforms, 8, seed=3)
    store = torch.from_numpy(np.random.default_rng(0).integers(100, 256, (9, 12, 11, 3)).astype(np.uint8))
    rows, positions = np.arange(40) % 9, np.arange(40)
    wanted = augment.batch(store[rows], 2, positions)
    has_hole = (wanted == hole[0]).all(dim=3).flatten(1).any(dim=1)
    assert 8 < int(has_hole.sum()) < 32
    gather = fuse(augment.batch_transforms, 12, 11, 8, on_cpu=True)
    assert isinstance(gather, FusedGather)
    drawn = gather.draw_windows(40, lambda streams: augment.draw(2, positions, streams))
    assert torch.equal(gather.gather_by_pixel(store, rows, drawn), wanted)
    assert torch.equal(gather.gather_by_run(store, rows, drawn), wanted)


@pytest.mark.parametrize("size", [(8, 8), (12, 8), (8, 11), (12, 11)])
def test_crops_that_leave_a_side_whole_are_gathered(size):
    augment = Augment([transform_of("CenterCrop", *size), transform_of("CenterCrop", 8, 8)], 8, seed=3)
    assert isinstance(fuse(augment.batch_transforms, 12, 11, 8, on_cpu=True), FusedGather)
    store = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 12, 11, 3)).astype(np.uint8))
    top, left = (12 - size[0]) // 2 + (size[0] - 8) // 2, (11 - size[1]) // 2 + (size[1] - 8) // 2
    assert torch.equal(pieces(augment, store, np.arange(3)), store[:, top : top + 8, left : left + 8])


def test_what_the_presets_need_is_one_gather():
    for preset, base, kind in (
        ("none", 36, FusedGather),
        ("crop", 32, FusedGather),
        ("flip_crop", 32, FusedGather),
        ("flip_crop", 256, FusedResizedCrop),
    ):
        im_sz = min(base, 32) if base < 256 else 224
        transforms = augment(preset, im_sz, base).batch_transforms
        assert isinstance(fuse(transforms, base, base, im_sz, on_cpu=True), kind)
    hole = {"name": "CoarseDropout", "num_holes_range": [1, 1], "hole_height_range": [8, 8], "hole_width_range": [8, 8]}
    transforms = augment([*PRESETS["flip_crop"](32, 32), hole]).batch_transforms
    assert isinstance(fuse(transforms, 32, 32, 32, on_cpu=True), FusedGather)


@pytest.mark.parametrize("per_image", [False, True])
def test_alternating_flips(per_image):
    """Half of the images at first; each image in every second epoch. Else draws stay as they are."""
    image = coordinates(32)

    def is_flipped(epoch: int, **values) -> np.ndarray:
        out = run(augment(["HorizontalFlip"], per_image=per_image, **values), image, 600, epoch)
        assert ((out == image).all((1, 2, 3)) | (out == image[:, ::-1]).all((1, 2, 3))).all()
        return out[:, 0, 0, 1] == 31

    first = is_flipped(0, alternate_flip=1)
    assert 0.44 < first.mean() < 0.56
    for epoch in range(1, 5):
        assert (is_flipped(epoch, alternate_flip=1) == (first ^ (epoch % 2 == 1))).all()
    assert 0.4 < (is_flipped(1) == is_flipped(0)).mean() < 0.6
    assert (is_flipped(0, alternate_flip=1, seed=9) != first).any()
    batched = run(augment(["HorizontalFlip"], alternate_flip=1), image, 600, 3)
    assert (is_flipped(3, alternate_flip=1) == (batched[:, 0, 0, 1] == 31)).all()  # both roads flip the same images
    plain, turned = (run(augment("flip_crop", per_image=per_image, alternate_flip=on), image, 50, 1) for on in (0, 1))
    unflipped = [
        np.where((out[:, :1, 20:21, 1:2] < out[:, :1, 12:13, 1:2]), out[:, :, ::-1], out) for out in (plain, turned)
    ]
    if not per_image:
        assert np.array_equal(*unflipped)  # the crops are the same
    with pytest.raises(UserError, match="alternate_flip: HorizontalFlip has p 0.3"):
        augment([{"name": "HorizontalFlip", "p": 0.3}], alternate_flip=1)


def test_alternating_draws_by_hand(monkeypatch):
    """In odd epochs a flip's draw is mirrored about the middle of [0, 1), whose ends are 0 and 1 - 2^-53."""
    drawn, last = [], 1 - 2.0**-53

    def uniform_of(seed, epoch, indices, streams):
        drawn.append((epoch, streams))
        return np.array([[0.0, 0.25, last]] * len(streams))

    monkeypatch.setattr("model.augment.uniform", uniform_of)
    pipeline = Augment([], 8, 0, alternate=True)
    assert pipeline.draw(3, np.arange(3), ["0top", "1flip"]).tolist() == [[0.0, 0.25, last], [last, last - 0.25, 0.0]]
    assert drawn == [(3, ["0top", "1flip"]), (0, ["1flip"])]
    assert pipeline.draw(4, np.arange(3), ["1flip"]).tolist() == [[0.0, 0.25, last]]
    assert Augment([], 8, 0).draw(3, np.arange(3), ["1flip"]).tolist() == [[0.0, 0.25, last]]


def test_the_record_has_every_argument():
    pad, crop, flip = augment("flip_crop").record()["transform"]["transforms"]
    assert pad == {"__class_fullname__": "PadIfNeeded", "min_height": 40, "min_width": 40, "border_mode": 4, "p": 1.0}
    assert crop == {"__class_fullname__": "RandomCrop", "height": 32, "width": 32, "p": 1.0}
    assert flip == {"__class_fullname__": "HorizontalFlip", "p": 0.5}


def test_per_image_draws_are_philox_of_the_image_alone():
    """Numbers of both generators come from one fresh counter-based stream per image, whatever was drawn before."""
    pipeline = augment(["RandomBrightnessContrast"])
    image, drawn = noise(32, 32), []
    jitter = pipeline.pipeline.compose.transforms[0]
    jitter.get_params_dependent_on_data = lambda *_, **__: (
        drawn.append((jitter.random_generator.random(), jitter.py_random.random())) or {"alpha": 1.0, "beta": 0.0}
    )
    jitter.p = 1.0
    for index in (5, 6, 5):
        pipeline.pipeline.compose.py_random.getrandbits(40)
        pipeline.image(image, 2, index)
    rng = np.random.Generator(np.random.Philox(key=key64(3, "augment", 2, 5)))
    rng.random()  # Compose's own
    assert drawn[0] == drawn[2] == (rng.random(), rng.random())
    assert drawn[0] != drawn[1]
    python = PythonRandom(np.random.default_rng(0))
    bits = [python.getrandbits(13) for _ in range(4000)]
    assert min(bits) >= 0
    assert max(bits) < 2**13
    assert abs(np.mean(bits) - 4095.5) < 150
    assert {python.randint(1, 6) for _ in range(200)} == set(range(1, 7))
    assert python.getrandbits(200) < 2**200
    assert sorted(python.sample(range(9), 9)) == list(range(9))
    assert abs(python.gauss(0, 1)) < 9


def test_cutout_makes_one_hole_of_its_size():
    hole = {"num_holes_range": [1, 1], "hole_height_range": [6, 6], "hole_width_range": [4, 4], "fill": 7}
    for per_image in (False, True):
        pipeline = augment([{"name": "CoarseDropout", **hole, "p": 0.5}], per_image=per_image)
        assert pipeline.is_batched is not per_image
        filled = (run(pipeline, np.full((32, 32, 3), 200, np.uint8), 400) == 7).all(-1)
        sizes = filled.sum((1, 2))
        assert set(sizes) == {0, 24}
        assert abs((sizes > 0).mean() - 0.5) < 0.1
        tops = filled.any(2).argmax(1)[sizes > 0]
        assert tops.min() == 0
        assert tops.max() == 26
    unbatched = cutout_batch(torch.full((1, 8, 8, 3), 9, dtype=torch.uint8), {**hole, "p": 1.0}, lambda s: np.zeros(1))
    assert (unbatched[0, :6, :4] == 7).all()
    assert (unbatched[0, 6:] == 9).all()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("im_sz", "base"), [(8, 8), (32, 32), (64, 64), (224, 256)])
def test_presets(preset, im_sz, base):
    pipeline = augment(preset, im_sz, base)
    image = noise(base, base)
    out = run(pipeline, image, 3)
    assert out.shape == (3, im_sz, im_sz, 3)
    assert out.dtype == np.uint8
    assert np.array_equal(run(pipeline, image, 3), out)
    assert pipeline.is_batched is (preset != "strong")
    if preset != "none":
        assert not np.array_equal(run(pipeline, image, 3, epoch=1), out)
    json.dumps(pipeline.record())


def test_an_image_does_not_depend_on_those_before_it():
    pipeline = augment("strong")
    image = noise(32, 32)
    out = run(pipeline, image, 5)
    assert np.array_equal(augment("strong").image(image, 0, 3), out[3])
    assert not np.array_equal(out[2], out[3])


def test_a_list_of_ones_own():
    jitter = {"name": "ColorJitter", "brightness": 0.2, "p": 0.5}
    pipeline = augment(["HorizontalFlip", jitter, {"name": "Rotate", "limit": [-10, 10]}])
    assert not pipeline.is_batched
    assert run(pipeline, noise(32, 32), 2).shape == (2, 32, 32, 3)
    names = [t["__class_fullname__"] for t in pipeline.record()["transform"]["transforms"]]
    assert names == ["HorizontalFlip", "ColorJitter", "Rotate"]
    larger = augment([{"name": "PadIfNeeded", "min_height": 40, "min_width": 40, "border_mode": 4}])
    assert np.array_equal(run(larger, noise(32, 32), 1)[0], noise(32, 32))  # and the centre of what is larger
    assert run(augment([{"name": "RandomCrop", "height": 20, "width": 20}]), noise(32, 32), 1).shape[1:] == (
        32,
        32,
        3,
    )


@pytest.mark.parametrize(
    ("transform", "is_batched"),
    [
        ({"name": "PadIfNeeded", "min_height": 40, "min_width": 40}, False),  # albumentations pads with black
        ({"name": "PadIfNeeded", "min_height": 40, "min_width": 40, "border_mode": 4}, True),
        ({"name": "PadIfNeeded", "min_height": 40, "min_width": 40, "border_mode": 4, "p": 0.5}, False),
        (
            {"name": "CoarseDropout", "hole_height_range": [8, 8], "hole_width_range": [8, 8]},
            False,
        ),  # 1 or 2 holes
        ({"name": "CoarseDropout"}, False),
        ({"name": "RandomResizedCrop", "size": [32, 32]}, True),
        ({"name": "RandomResizedCrop", "size": [32, 32], "interpolation": 2}, False),
        ({"name": "HorizontalFlip", "p": 0}, True),
    ],
)
def test_batches_take_only_what_they_do_alike(transform, is_batched):
    assert augment([transform]).is_batched is is_batched


WRONG = [
    ("flip_corp", "unknown preset 'flip_corp'; did you mean 'flip_crop'?"),
    (["HorizontalFlop"], "albumentations has no 'HorizontalFlop'; did you mean 'HorizontalFlip'?"),
    (
        [{"name": "ColorJitter", "brigthness": 0.2}],
        "ColorJitter takes no 'brigthness'; did you mean 'brightness'?",
    ),
    ([{"name": "HorizontalFlip", "q": 0.2}], "HorizontalFlip takes no 'q'; possible: p"),
    ([{"name": "HorizontalFlip", "p": 2}], "HorizontalFlip refuses its arguments: p"),
    ([{"name": "HorizontalFlip", "p": "often"}], "HorizontalFlip refuses its arguments"),
    ([{"p": 2}], 'a transform needs its "name"'),
    (["Normalize"], "leave Normalize out; the kit normalises"),
    (["ToTensorV2"], "leave ToTensorV2 out"),
    ([{"name": "RandomCrop", "height": 64, "width": 64}], "RandomCrop of 64 x 64 pixels out of 32 x 32"),
    (
        [{"name": "RandomCrop", "height": 64, "width": 64}, "RandomBrightnessContrast"],
        "on images of 32 x 32 pixels",
    ),
    ([{"name": "RandomCrop", "height": -3, "width": 8}], "RandomCrop refuses its arguments"),
    ([{"name": "RandomCrop"}], "RandomCrop refuses its arguments"),
    (["Compose"], "albumentations has no 'Compose'"),
]


@pytest.mark.parametrize(("what", "message"), WRONG, ids=[str(what)[:40] for what, _ in WRONG])
def test_what_is_wrong_with_an_augmentation_is_said_in_one_line(what, message):
    with pytest.raises(UserError) as caught:
        augment(what)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.code == 2


def test_batched_augmentation_needs_no_albumentations():
    code = (
        "import sys; sys.path[:0] = ['tests/tools', '.']\n"
        "from loaders import make_params; from model.augment import make_augment\n"
        "record = make_augment(make_params(augment='flip_crop'), 32, 32).record(); assert record['transform']['__class_fullname__'] == 'Compose'\n"
        "names = [step['__class_fullname__'] for step in record['transform']['transforms']]\n"
        "assert names == ['PadIfNeeded', 'RandomCrop', 'HorizontalFlip'], names\n"
        "assert not {'albumentations', 'cv2', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_albumentationsx_is_refused(monkeypatch):
    from importlib import metadata

    monkeypatch.setattr(metadata, "version", lambda name: "2.1.0")
    with pytest.raises(UserError, match="AlbumentationsX .AGPL. is installed"):
        augment("strong")


def test_mixup_and_cutmix():
    images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(6)
    for key in range(20):
        mixed, soft = mix(images.clone(), labels, 6, 0.5, 0, key)  # image i is all i, and its label is i
        assert torch.allclose(mixed[:, 0, 0, 0], soft @ torch.arange(6.0), atol=1e-5)
        assert torch.equal(mixed, mix(images.clone(), labels, 6, 0.5, 0, key)[0])
        mixed, soft = mix(images.clone(), labels, 6, 0, 1.0, key)
        for image, share, own in zip(mixed, soft, labels, strict=True):
            assert (image == own).float().mean() == pytest.approx(float(share[own]), abs=1e-5)
            assert image.unique().numel() <= 2
    cuts = [mix(images.clone(), labels, 6, 1.0, 1.0, key)[0].frac().any().item() for key in range(100)]
    assert 25 < sum(cuts) < 75  # one of the two per batch
