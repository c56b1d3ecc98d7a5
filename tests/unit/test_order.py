"""The order of an epoch, against numpy's generators set up by hand and steps worked out by hand."""

import hashlib

import numpy as np
import pytest
from loaders import make_params

from model.images.order import EpochOrder, balanced, make_order, position_dtype, shuffled
from utils import UserError

SHUFFLED = [2, 7, 6, 3, 8, 1, 0, 4, 9, 5]  # of 10 images, seed 3, epoch 0
BALANCED = [2, 9, 1, 6, 4, 9, 7, 9, 0, 5]  # of 7, 2 and 1 images of three classes


def philox(seed: int, epoch: int) -> np.random.Generator:
    """The generator of an epoch, from its definition: 63 bits of BLAKE2b of the parts."""
    digest = hashlib.blake2b(f"{seed}\0order\0{epoch}".encode(), digest_size=8).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little") >> 1))


def order(num: int, batch_size: int, is_train: bool = False, **values) -> EpochOrder:
    return EpochOrder(np.zeros(num, np.int32), batch_size, 3, is_train, **values)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (3, 0), (3, 1), (12345, 99)])
def test_an_epoch_is_the_permutation_of_its_philox_generator(seed, epoch):
    positions = shuffled(100, seed, epoch)
    assert positions.tolist() == philox(seed, epoch).permutation(100).tolist()
    assert sorted(positions.tolist()) == list(range(100))


def test_the_order_of_0_1_0_is_kept():
    assert shuffled(10, 3, 0).tolist() == SHUFFLED
    assert balanced(np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 2]), 3, 0).tolist() == BALANCED


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(shuffled(50, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_a_balanced_epoch_is_the_weighted_choice_of_its_philox_generator():
    labels = np.array([0] * 90 + [1] * 9 + [2] * 1)
    weights = np.array([1 / 90] * 90 + [1 / 9] * 9 + [1.0])
    expected = philox(7, 4).choice(100, 100, p=weights / weights.sum())
    assert balanced(labels, 7, 4).tolist() == expected.tolist()


def test_a_balanced_epoch_gives_every_class_the_same_share():
    labels = np.array([2] * 500 + [0] * 50 + [1] * 5)
    drawn = np.concatenate([balanced(labels, 0, epoch) for epoch in range(40)])
    shares = np.bincount(labels[drawn]) / len(drawn)
    assert np.abs(shares - 1 / 3).max() < 4 * np.sqrt(2 / 9 / len(drawn))  # standard deviations of a share
    per_image = np.bincount(drawn, minlength=555)
    assert per_image[:500].max() < per_image[550:].min()  # rare images are drawn more often


STEPS = [  # images, batch_size, is it training, images of each step
    (10, 4, True, [4, 4, 2]),
    (10, 4, False, [4, 4, 2]),
    (8, 4, True, [4, 4]),
    (9, 4, True, [4, 5]),  # a last batch of one joins the one before
    (9, 4, False, [4, 4, 1]),
    (5, 4, True, [5]),
    (1, 4, True, [1]),
    (3, 1, True, [1, 1, 1]),
    (2, 4, True, [2]),
]


@pytest.mark.parametrize(("num", "batch_size", "is_train", "sizes"), STEPS)
def test_the_steps_of_an_epoch(num, batch_size, is_train, sizes):
    steps = order(num, batch_size, is_train)
    assert steps.num_batches == len(sizes)
    assert [steps.step_size(step) for step in range(len(sizes))] == sizes
    ends = np.cumsum(sizes).tolist()
    assert [steps.bounds(step) for step in range(len(sizes))] == list(zip([0, *ends[:-1]], ends, strict=True))
    taken = [len(batch.positions) for batch in steps.micro_batches(0)]
    assert taken == sizes
    together = np.concatenate([steps.positions_of_step(5, step) for step in range(len(sizes))])
    assert together.tolist() == steps.positions(5).tolist()


def parts(num: int, batch_size: int, rank: int, world: int, accumulate: int = 1) -> list[tuple]:
    batches = order(num, batch_size, rank=rank, world=world, accumulate=accumulate).micro_batches(0)
    return [(batch.step, batch.number, batch.positions.tolist(), batch.num_real) for batch in batches]


def test_ranks_and_micro_batches_by_hand():
    assert parts(10, 10, rank=0, world=2, accumulate=2) == [(0, 0, [0, 1, 2], 3), (0, 1, [6, 7, 0], 2)]
    assert parts(10, 10, rank=1, world=2, accumulate=2) == [(0, 0, [3, 4, 5], 3), (0, 1, [8, 9, 0], 2)]
    assert order(10, 10, world=2, accumulate=2).micro_batch_size == 3


def test_where_ranks_are_more_than_images_the_others_get_padding_alone():
    assert parts(5, 4, rank=0, world=3) == [(0, 0, [0, 1], 2), (1, 0, [4], 1)]
    assert parts(5, 4, rank=1, world=3) == [(0, 0, [2, 0], 1), (1, 0, [4], 0)]
    assert parts(5, 4, rank=2, world=3) == [(0, 0, [3, 0], 1), (1, 0, [4], 0)]


def test_an_evaluation_takes_the_order_of_the_index():
    assert order(5, 2).positions(3).tolist() == [0, 1, 2, 3, 4]
    assert parts(5, 2, rank=0, world=1) == [(0, 0, [0, 1], 2), (1, 0, [2, 3], 2), (2, 0, [4], 1)]


@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
def test_an_epoch_may_begin_at_any_step(sampler):
    labels = np.array([0] * 20 + [1] * 3, np.int32)
    steps = EpochOrder(labels, 6, 1, True, sampler, accumulate=2)
    whole = list(steps.micro_batches(2))
    assert len(whole) == 2 * steps.num_batches
    for start in range(steps.num_batches + 1):
        rest = list(steps.micro_batches(2, start))
        assert [(batch.step, batch.positions.tolist()) for batch in rest] == [
            (batch.step, batch.positions.tolist()) for batch in whole[2 * start :]
        ]


def test_positions_take_half_the_memory_while_they_can():
    assert [position_dtype(num) for num in (1, 1 << 32, (1 << 32) + 1)] == [np.uint32, np.uint32, np.int64]
    assert shuffled(10, 0, 0).dtype == order(10, 4).positions(0).dtype == np.uint32
    assert next(order(10, 4).micro_batches(0)).positions.dtype == np.int64  # what torch indexes with


def test_training_splits_its_batch_and_evaluation_has_one_per_rank():
    labels, params = np.zeros(40, np.int32), make_params(batch_size=12, bs_test=5, accumulate=3, sampler="balanced")
    train, valid = (make_order(labels, is_train, params, rank=1, world=2) for is_train in (True, False))
    assert (train.batch_size, train.accumulate, train.micro_batch_size, train.sampler) == (12, 3, 2, "balanced")
    assert (valid.batch_size, valid.accumulate, valid.micro_batch_size) == (10, 1, 5)
    assert (train.rank, train.world, train.seed) == (1, 2, 3)


def test_a_batch_that_cannot_be_split_is_refused():
    labels, params = np.zeros(40, np.int32), make_params(batch_size=6, bs_test=1, accumulate=2)
    assert make_order(labels, True, params, world=3).micro_batch_size == 1
    with pytest.raises(UserError, match="6 images cannot be split into 4 processes x 2 micro-batches"):
        make_order(labels, True, params, world=4)
    assert make_order(labels, False, params, world=4).batch_size == 4
