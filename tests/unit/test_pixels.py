"""The pixels against albumentations, torchvision, Pillow and numbers worked out by hand."""

import albumentations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loaders import noise
from PIL import Image
from torchvision.transforms.v2 import functional as torchvision

from model.augment import PRESETS, mix
from model.pixels import batched
from model.pixels.batched import (
    BATCHED,
    center_crop_batch,
    crop_batch,
    cutout_batch,
    draw_boxes,
    draw_integers,
    find_batched,
    fit_batch,
    flip_batch,
    pad_batch,
    resize_boxes,
    sample_boxes,
    uniform,
)
from model.pixels.normalise import Normalise

SIDES = st.integers(1, 13)


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def batch_of(pixels: np.ndarray, num: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.stack([pixels] * num))


def script(**draws):
    """A `draw` that gives these numbers: stream=(B,) values."""
    return lambda stream: np.array(draws[stream], np.float64)


# --- draws ----------------------------------------------------------------------------------------------------


def test_draws_are_splitmix64(monkeypatch):
    """The first outputs for the seed 1234567, as published with other implementations of it."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    monkeypatch.setattr(batched, "key64", lambda *parts: 1234567)
    draws = uniform(0, 0, np.arange(5), ["top"])
    assert draws.shape == (1, 5)
    assert draws[0].tolist() == [(value >> 11) / 2**53 for value in published]
    assert uniform(0, 0, np.array([4, 0]), ["top"])[0].tolist() == [draws[0, 4], draws[0, 0]]


def test_draws_become_whole_numbers():
    assert draw_integers(np.array([0.0, 0.3334, 0.6667, 1 - 2**-53]), 3).tolist() == [0, 1, 2, 2]
    assert draw_integers(np.array([0.5, 0.5]), np.array([1, 8])).tolist() == [0, 4]


# --- padding, crops and flips ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 13), st.integers(2, 13), st.integers(1, 24), st.integers(1, 24))
def test_padding_is_albumentations(height, width, min_height, min_width):
    pixels = image(height, width)
    padded = pad_batch(batch_of(pixels, 2), {"min_height": min_height, "min_width": min_width}, script())
    reference = albumentations.PadIfNeeded(min_height, min_width, border_mode=4, p=1)(image=pixels)["image"]
    assert np.array_equal(padded[0], reference)
    assert np.array_equal(padded[1], reference)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.data())
def test_the_centre_is_albumentations(height, width, data):
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    pixels = image(height, width)
    reference = albumentations.CenterCrop(h, w)(image=pixels)["image"]
    assert np.array_equal(center_crop_batch(batch_of(pixels), {"height": h, "width": w}, script())[0], reference)


def test_crops_are_where_the_draws_say():
    pixels = [image(5, 7, seed) for seed in range(4)]
    draw = script(top=[0.0, 0.5, 0.34, 1 - 2**-53], left=[0.0, 0.9, 0.5, 1 - 2**-53])
    cropped = crop_batch(torch.from_numpy(np.stack(pixels)), {"height": 3, "width": 2}, draw)
    for one, whole, (top, left) in zip(cropped, pixels, [(0, 0), (1, 5), (1, 3), (2, 5)], strict=True):
        assert np.array_equal(one, albumentations.Crop(left, top, left + 2, top + 3)(image=whole)["image"])


def test_flips_are_albumentations_for_the_draws_below_p():
    pixels = image(5, 7)
    mirrored = albumentations.HorizontalFlip(p=1)(image=pixels)["image"]
    for p, expected in ((0.0, [0, 0, 0, 0]), (0.5, [1, 1, 0, 0]), (1.0, [1, 1, 1, 1])):
        flipped = flip_batch(batch_of(pixels, 4), {"p": p}, script(flip=[0.0, 0.499, 0.5, 0.999]))
        for one, is_flipped in zip(flipped, expected, strict=True):
            assert np.array_equal(one, mirrored if is_flipped else pixels)


def test_holes_are_where_the_draws_say():
    arguments = {"hole_height_range": [2, 2], "hole_width_range": [3, 3], "fill": 7, "p": 0.5}
    draw = script(hole_top=[0.0, 0.999, 0.5, 0.5], hole_left=[0.999, 0.0, 0.25, 0.5], hole=[0.0, 0.499, 0.3, 0.5])
    pixels = image(5, 7) | 8  # no 7 in it
    cut = cutout_batch(batch_of(pixels, 4), arguments, draw)
    for one, corner in zip(cut.numpy(), [(0, 4), (3, 0), (2, 1), None], strict=True):
        expected = pixels.copy()
        if corner:
            expected[corner[0] : corner[0] + 2, corner[1] : corner[1] + 3] = 7
        assert np.array_equal(one, expected)


# --- resized crops ----------------------------------------------------------------------------------------------


def boxes_of(height: int, width: int, scale: list[float], ratio: list[float], **draws: float) -> list[int]:
    """left, top, width, height where every draw is a half, but for these."""
    draw = lambda stream: np.array([draws.get(stream, 0.5)])  # noqa: E731
    return draw_boxes(height, width, {"scale": scale, "ratio": ratio}, draw)[:, 0].tolist()


@pytest.mark.parametrize(
    ("scale", "ratio", "draws", "expected"),
    [
        ([0.25, 0.25], [0.5, 2.0], {}, [25, 25, 50, 50]),  # ratio 1 is the middle of the logarithms
        (
            [0.25, 0.25],
            [0.5, 2.0],
            {"ratio0": 0.0, "left": 0.0, "top": 0.999},
            [0, 29, 35, 71],
        ),  # sqrt(1250), sqrt(5000)
        ([0.25, 0.25], [0.5, 2.0], {"ratio0": 1 - 1e-12, "left": 0.999, "top": 0.0}, [29, 0, 71, 35]),
        ([0.2, 0.6], [1.0, 1.0], {"area0": 0.25, "left": 0.0, "top": 0.0}, [0, 0, 55, 55]),  # 0.3 of the area
        ([0.1, 0.9], [1.0, 3.0], {"area0": 1.0, "ratio0": 1.0, "left": 0.0, "top": 0.0}, [0, 0, 93, 54]),  # the second
        (
            [1.0, 1.0],
            [2.0, 4.0],
            {"left": 0.0, "top": 0.999},
            [0, 50, 100, 50],
        ),  # none fits: the allowed ratio next to 1
        ([1.0, 1.0], [0.25, 0.5], {"left": 0.999, "top": 0.0}, [50, 0, 50, 100]),
        (
            [0.5, 0.5],
            [1.0, 2.0],
            {"ratio0": 1.0, "left": 0.0, "top": 0.0},
            [0, 0, 100, 50],
        ),  # just as wide as the image
        ([0.5, 0.5], [0.5, 1.0], {"ratio0": 0.0, "left": 0.0, "top": 0.0}, [0, 0, 50, 100]),
    ],
)
def test_boxes_by_hand(scale, ratio, draws, expected):
    assert boxes_of(100, 100, scale, ratio, **draws) == expected


def test_boxes_of_images_that_are_not_square():
    assert boxes_of(40, 90, [0.25, 0.25], [1.0, 1.0], left=0.0, top=0.999) == [0, 10, 30, 30]
    assert boxes_of(40, 90, [1.0, 1.0], [1.0, 1.0], left=0.999, top=0.0) == [50, 0, 40, 40]
    assert boxes_of(90, 40, [1.0, 1.0], [1.0, 1.0], left=0.0, top=0.999) == [0, 50, 40, 40]
    assert boxes_of(1, 1, [0.01, 0.01], [1.0, 1.0]) == [0, 0, 1, 1]  # never less than a pixel


@pytest.mark.parametrize("resize", [resize_boxes, sample_boxes])
@pytest.mark.parametrize("out", [(9, 14), (31, 40)])
def test_resized_crops_are_torchvisions(resize, out):
    pixels = np.stack([noise(24, 30, seed) for seed in range(5)])
    boxes = np.array([[0, 3, 10, 29, 0], [0, 2, 5, 23, 0], [30, 11, 20, 1, 1], [24, 17, 8, 1, 24]])
    images = torch.from_numpy(pixels)
    given = (images, np.arange(5), boxes, *out) if resize is resize_boxes else (images, boxes, *out)
    for one, whole, (left, top, w, h) in zip(resize(*given), images, boxes.T.tolist(), strict=True):
        reference = torchvision.resized_crop(
            whole.permute(2, 0, 1).float(), top, left, h, w, list(out), antialias=False
        )
        difference = (one.permute(2, 0, 1).float() - reference).abs()
        assert difference.max() <= 1.01
        assert difference.mean() < 0.5


def test_what_comes_out_is_fitted_to_size():
    larger = image(9, 8)
    assert np.array_equal(fit_batch(batch_of(larger), 5)[0], albumentations.CenterCrop(5, 5)(image=larger)["image"])
    assert np.array_equal(fit_batch(batch_of(larger), 8)[0], larger[:8])
    for height, width in ((6, 9), (9, 6), (7, 7)):  # a side that is too short: the whole image, resized
        pixels = noise(height, width)
        reference = np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BILINEAR))
        assert np.abs(fit_batch(batch_of(pixels), 8)[0].numpy().astype(int) - reference).max() <= 1


def test_normalised_images_are_torchvisions():
    mean, std = [0.1, 0.4, 0.8], [0.5, 0.25, 0.125]
    pixels = image(8, 8)
    reference = torchvision.normalize(torch.from_numpy(pixels).permute(2, 0, 1) / 255, mean, std)
    normalised = Normalise(8, mean, std, "cpu")(batch_of(pixels, 3))
    torch.testing.assert_close(normalised, reference.expand(3, -1, -1, -1), rtol=1e-6, atol=1e-6)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    centre = Normalise(4, mean, std, "cpu")(batch_of(pixels))
    torch.testing.assert_close(centre[0], reference[:, 2:6, 2:6], rtol=1e-6, atol=1e-6)


# --- which of them are done in batches --------------------------------------------------------------------------

HOLE = {"num_holes_range": [1, 1], "hole_height_range": [4, 4], "hole_width_range": [4, 4]}


@pytest.mark.parametrize(
    ("name", "arguments", "is_batched"),
    [
        ("HorizontalFlip", {"p": 0.3}, True),
        ("HorizontalFlip", {"p": -0.1}, False),
        ("HorizontalFlip", {"p": True}, False),
        ("RandomCrop", {"height": 4, "width": 4}, True),
        ("RandomCrop", {"height": 4, "width": 4, "p": 0.5}, False),
        ("RandomCrop", {"height": 4, "width": 0}, False),
        ("RandomCrop", {"height": 4.0, "width": 4}, False),
        ("RandomCrop", {"height": 4}, False),
        ("CenterCrop", {"height": 4, "width": 4, "p": 1}, True),
        ("CenterCrop", {"height": 4, "width": 4, "pad_if_needed": True}, False),
        ("PadIfNeeded", {"min_height": 4, "min_width": True, "border_mode": 4}, False),
        ("RandomResizedCrop", {"size": (4, 4)}, True),
        ("RandomResizedCrop", {"size": [4, 0]}, False),
        ("RandomResizedCrop", {"size": [4]}, False),
        ("RandomResizedCrop", {"size": 4}, False),
        ("RandomResizedCrop", {"size": [4, 4], "scale": [0.5, 1]}, True),
        ("RandomResizedCrop", {"size": [4, 4], "scale": [0.5, 0.5]}, True),
        ("RandomResizedCrop", {"size": [4, 4], "scale": [0.5, 1.1]}, False),
        ("RandomResizedCrop", {"size": [4, 4], "scale": [0.6, 0.5]}, False),
        ("RandomResizedCrop", {"size": [4, 4], "scale": [0.0, 0.5]}, False),
        ("RandomResizedCrop", {"size": [4, 4], "scale": [0.1, 0.5, 0.7]}, False),
        ("RandomResizedCrop", {"size": [4, 4], "ratio": [1.0, 3.0]}, True),
        ("RandomResizedCrop", {"size": [4, 4], "ratio": [1.0, "3"]}, False),
        ("CoarseDropout", HOLE, True),
        ("CoarseDropout", HOLE | {"num_holes_range": (1, 1), "fill": 255, "p": 0.2}, True),
        ("CoarseDropout", HOLE | {"num_holes_range": [1, 2]}, False),
        ("CoarseDropout", HOLE | {"fill": 256}, False),
        ("CoarseDropout", HOLE | {"fill": -1}, False),
        ("CoarseDropout", HOLE | {"fill": "random"}, False),
        ("CoarseDropout", HOLE | {"hole_height_range": [4, 5]}, False),
        ("CoarseDropout", HOLE | {"hole_width_range": [0.5, 0.5]}, False),
        ("CoarseDropout", HOLE | {"hole_width_range": [0, 0]}, False),
        ("Rotate", {}, False),
    ],
)
def test_what_is_done_in_batches(name, arguments, is_batched):
    assert (find_batched({"name": name, **arguments}) is not None) is is_batched


REQUIRED = {
    "PadIfNeeded": {"min_height": 4, "min_width": 4},
    "RandomCrop": {"height": 4, "width": 4},
    "CenterCrop": {"height": 4, "width": 4},
    "RandomResizedCrop": {"size": (4, 4)},
    "HorizontalFlip": {},
    "CoarseDropout": {"hole_height_range": (4, 4), "hole_width_range": (4, 4)},
}


@pytest.mark.parametrize("name", BATCHED)
def test_defaults_of_batched_transforms_are_albumentations(name):
    """What params.json does not say is what albumentations would do."""
    reference = getattr(albumentations, name)(**REQUIRED[name])
    defaults = BATCHED[name].arguments
    assert {key for key, value in defaults.items() if value is None} == set(REQUIRED[name])
    for key, value in defaults.items():
        theirs = getattr(reference, key)
        assert value is None or (list(theirs) if isinstance(theirs, tuple) else theirs) == pytest.approx(value), key


def test_presets_are_what_their_docstrings_say():
    assert PRESETS["none"](32, 32) == []
    assert PRESETS["none"](32, 40) == [{"name": "CenterCrop", "height": 32, "width": 32}]
    for im_sz, padded in ((32, 40), (64, 80), (7, 7)):
        pad, cut = PRESETS["crop"](im_sz, im_sz)
        assert (pad["min_height"], pad["min_width"], cut["height"], cut["width"]) == (padded, padded, im_sz, im_sz)
    (box,) = PRESETS["crop"](224, 256)
    assert box == {"name": "RandomResizedCrop", "size": [224, 224], "scale": [0.35, 1.0], "ratio": [0.75, 4 / 3]}
    assert PRESETS["flip_crop"](32, 32) == [*PRESETS["crop"](32, 32), {"name": "HorizontalFlip", "p": 0.5}]
    *before, colours, turn, hole = PRESETS["strong"](32, 32)
    assert before == PRESETS["flip_crop"](32, 32)
    assert turn["rotate"] == [-15, 15]
    assert turn["scale"] == [0.9, 1.1]
    assert colours["brightness"] == colours["contrast"] == colours["saturation"] == [0.7, 1.3]
    assert colours["hue"] == [-0.05, 0.05]
    assert [step["p"] for step in (colours, turn, hole)] == [0.8, 0.5, 0.5]
    assert hole["hole_height_range"] == hole["hole_width_range"] == [8, 8]
    assert hole["num_holes_range"] == [1, 1]


# --- mixing -------------------------------------------------------------------------------------------------------


def mix_by_hand(images: np.ndarray, labels: np.ndarray, num_classes: int, mixup: float, cutmix: float, key: int):
    """mixup and CutMix as their papers write them, image by image."""
    rng = np.random.Generator(np.random.Philox(key=key))
    partner = rng.permutation(len(images))
    if mixup and cutmix:
        alpha = cutmix if (is_cut := rng.random() < 0.5) else mixup
    else:
        alpha, is_cut = mixup or cutmix, bool(cutmix)
    lam = rng.beta(alpha, alpha)
    height, width = images.shape[2:]
    if is_cut:
        h, w = int(height * np.sqrt(1 - lam)), int(width * np.sqrt(1 - lam))
        y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        box = np.zeros((height, width), bool)
        box[y : y + h, x : x + w] = True
        lam = 1 - box.mean()
        mixed = np.stack([np.where(box, images[j], images[i]) for i, j in enumerate(partner)])
    else:
        mixed = np.stack([lam * images[i] + (1 - lam) * images[j] for i, j in enumerate(partner)])
    one_hot = np.eye(num_classes)[labels]
    return mixed, np.stack([lam * one_hot[i] + (1 - lam) * one_hot[j] for i, j in enumerate(partner)])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.0, 0.3), (0.2, 1.0)])
def test_mixing_by_hand(mixup, cutmix):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(6, 3, 8, 12)).astype(np.float32), rng.integers(0, 4, 6)
    for key in range(30):
        original = torch.from_numpy(images.copy())
        mixed, soft = mix(original, torch.from_numpy(labels), 4, mixup, cutmix, key)
        expected_images, expected_labels = mix_by_hand(images, labels, 4, mixup, cutmix, key)
        np.testing.assert_allclose(mixed.numpy(), expected_images, rtol=0, atol=1e-5)
        np.testing.assert_allclose(soft.numpy(), expected_labels, rtol=0, atol=1e-6)
        assert soft.shape == (6, 4)
        assert np.array_equal(original, images)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_of_mixup_have_the_variance_of_their_beta_distribution(alpha):
    images, labels = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 3, 1, 1), torch.arange(2)
    shares = [float(mix(images, labels, 2, alpha, 0.0, key)[1][0, 0]) for key in range(4000)]
    mixed = np.array([share for share in shares if 0 < share < 1])  # the others were mixed with themselves
    assert 0.45 < len(mixed) / 4000 < 0.55
    assert mixed.mean() == pytest.approx(0.5, abs=0.03)
    assert mixed.var() == pytest.approx(1 / (8 * alpha + 4), rel=0.1)
