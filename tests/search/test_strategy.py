"""What a search tries and what it does next, against values worked out by hand."""

import json
import math
import random
import re
from collections import Counter

import pytest

from search.strategy import (
    ChildProgress,
    State,
    Trial,
    as_word,
    bracket,
    draw,
    grid,
    is_below_median,
    name_of,
    names_of,
    promote,
    rungs,
    sample,
    shuffled,
    suggest_point,
    trials_of,
)
from utils import UserError, key64

# --- the space ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"learning_rate": 0.001}, "learning_rate_0.001"),
        ({"learning_rate": 1e-05, "ps": 0.5}, "learning_rate_0.00001__ps_0.5"),
        ({"learning_rate": [0.001, 0.01]}, "learning_rate_0.001_0.01"),
        ({"arch": "../other net.py:Net"}, "arch_..-other-net.py-Net"),
        ({"freeze": {"groups": 2, "epochs": 1}}, "freeze_-epochs-1-groups-2-"),
        (
            {"cuda": True, "pretrain": None, "wd": 0.0, "num_epochs": 1e9},
            "cuda_true__pretrain_null__wd_0.0__num_epochs_1000000000.0",
        ),
    ],
)
def test_names_say_the_values(values, name):
    assert name_of(Trial(0, values)) == name


def test_names_are_safe_and_short_and_differ():
    long = [Trial(0, {"arch": "x" * 300 + end}) for end in "ab"]
    same = [Trial(0, {"arch": word}) for word in ("a b", "a/b", "A-B", "c")]
    names = names_of([*long, *same])
    assert len({name.lower() for name in names}) == 6
    assert all(len(name) <= 120 for name in names)
    assert all(re.fullmatch(r"[\w.+-]+", name) for name in names)
    assert names[-1] == "arch_c"
    assert name_of(Trial(0, {"ps": 0.5}, seed=2, fold=(1, 5))) == "ps_0.5__fold_1__seed_2"


def test_a_grid_is_the_product_and_a_range_is_none():
    points = grid({"ps": [0.1, 0.2], "arch": {"choice": ["lenet", "resnet9"]}})
    assert points == [{"ps": p, "arch": a} for p in (0.1, 0.2) for a in ("lenet", "resnet9")]
    with pytest.raises(UserError, match="a range is sampled"):
        grid({"ps": {"min": 0, "max": 0.5}})


def test_seeds_and_folds_multiply_and_the_first_seed_comes_first():
    trials = trials_of([{"ps": 0.1}, {"ps": 0.2}], [3, 4], 2)
    assert [(t.number, t.seed, t.fold) for t in trials[:4]] == [
        (0, 3, (1, 2)),
        (1, 3, (1, 2)),
        (0, 3, (2, 2)),
        (1, 3, (2, 2)),
    ]
    assert len(trials) == 8
    assert {t.seed for t in trials} == {3, 4}
    assert [t.seed for t in trials_of([{"ps": 0.1}], [7], None)] == [None]


def test_random_points_lie_in_the_space_are_new_and_are_those_of_the_seed():
    space = {
        "learning_rate": {"min": 1e-5, "max": 0.1, "log": True},
        "batch_size": {"min": 16, "max": 64, "int": 1},
        "ps": {"min": 0.1, "max": 0.5},
        "optimizer": {"choice": ["sgd", "adam"]},
    }
    points = [point for point, _ in zip(sample(space, 1), range(400), strict=False)]
    rates: list = [point["learning_rate"] for point in points]
    dropouts: list = [point["ps"] for point in points]
    assert all(1e-5 <= rate <= 0.1 and float(f"{rate:.4g}") == rate for rate in rates)
    assert 0.4 < sum(rate < 1e-3 for rate in rates) / 400 < 0.6  # half of the decades
    assert {point["batch_size"] for point in points} >= {16, 64}
    assert all(0.1 <= dropout <= 0.5 for dropout in dropouts)
    assert len({json.dumps(point) for point in points}) == 400
    assert points == [point for point, _ in zip(sample(space, 1), range(400), strict=False)]
    assert points[:5] != [point for point, _ in zip(sample(space, 2), range(5), strict=False)]
    assert len(list(sample({"ps": [0.1, 0.2], "cuda": [0, 1]}, 0))) == 4  # ends when there is nothing new


def test_tpe_finds_the_better_region_and_depends_on_nothing_but_the_past():
    space = {"learning_rate": {"min": 1e-5, "max": 1.0, "log": True}, "arch": ["a", "b"]}

    def loss(point):
        return (math.log10(point["learning_rate"]) + 2) ** 2 + (point["arch"] == "a")

    past: list = []
    for _ in range(40):
        point = suggest_point(space, 0, past)
        assert point == suggest_point(space, 0, past)
        past.append((point, -loss(point)))
    early, late = (sum(loss(point) for point, _ in part) / 10 for part in (past[:10], past[-10:]))
    assert late < 0.5 * early
    outside = {"learning_rate": 5.0, "arch": "added by hand"}
    assert suggest_point(space, 0, [*past, (outside, 0.0)])["arch"] in ("a", "b")


def test_tpe_counts_what_is_under_way_as_optuna_does_by_hand():
    """Points that are being trained are given to optuna as running trials, with constant_liar: it avoids them."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng = random.Random(3)
    space: dict[str, object] = {"ps": {"min": 0.0, "max": 1.0}}
    scored = [({"ps": round(rng.random(), 4)}, rng.random()) for _ in range(14)]
    under_way = [({"ps": value}, None) for value in (0.31, 0.32, 0.33)]
    past = [*scored, *under_way]
    bounds = {"ps": optuna.distributions.FloatDistribution(0.0, 1.0)}

    def by_hand(seed, liar, known):
        key = key64(seed, "tpe", len(past)) % 2**32
        sampler = optuna.samplers.TPESampler(seed=key, constant_liar=liar)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for point, score in known:
            state = optuna.trial.TrialState.COMPLETE if score is not None else optuna.trial.TrialState.RUNNING
            study.add_trial(optuna.trial.create_trial(params=point, distributions=bounds, value=score, state=state))
        return float(f"{study.ask(bounds).params['ps']:.4g}")

    asked = [suggest_point(space, seed, past)["ps"] for seed in range(12)]
    assert asked == [by_hand(seed, True, past) for seed in range(12)]
    assert asked != [by_hand(seed, False, past) for seed in range(12)], "what is under way makes a difference"


def test_a_child_without_a_score_is_worse_than_any():
    assert ChildProgress("a", 0).best(3) == -math.inf
    assert ChildProgress("a", 0, scores=[0.1, 0.3, 0.9]).best(2) == 0.3


class FixedShare(random.Random):
    """Draws one number again and again."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def random(self):
        return self.share


@pytest.mark.parametrize(
    ("dimension", "values"),
    [
        (["a", "b", "c"], {0.0: "a", 0.33: "a", 0.34: "b", 0.66: "b", 0.67: "c", 0.9999: "c"}),
        ({"choice": [None, 2]}, {0.0: None, 0.49: None, 0.5: 2}),
        ({"min": 1, "max": 3}, {0.0: 1.0, 0.25: 1.5, 0.5: 2.0, 0.9999999: 3.0}),
        ({"min": -1.0, "max": 1.0}, {0.0: -1.0, 0.5: 0.0, 0.75: 0.5}),
        ({"min": 0.001, "max": 0.1, "log": True}, {0.0: 0.001, 0.25: 0.003162, 0.5: 0.01, 0.9999999: 0.1}),
        ({"min": 0.12344, "max": 0.12346}, {0.0: 0.12344, 0.9: 0.12346}),  # four digits would leave the range
        (
            {"min": 1, "max": 4, "int": True},  # a quarter of the draws for each of the four
            {0.0: 1, 0.24: 1, 0.26: 2, 0.49: 2, 0.51: 3, 0.74: 3, 0.76: 4, 0.9999: 4},
        ),
        ({"min": 1, "max": 100, "int": True, "log": True}, {0.0: 1, 0.5: 7, 0.9999999: 100}),  # 7: sqrt(0.5 * 100.5)
    ],
)
def test_a_draw_is_uniform_over_the_values_or_the_range_with_both_ends(dimension, values):
    for share, value in values.items():
        drawn = draw(dimension, FixedShare(share))
        assert drawn == value
        assert type(drawn) is type(value)


def test_whole_numbers_come_equally_often():
    rng = random.Random(0)
    counts = Counter(draw({"min": 3, "max": 7, "int": True}, rng) for _ in range(5000))
    assert set(counts) == {3, 4, 5, 6, 7}
    assert all(900 < count < 1100 for count in counts.values())  # 1000 expected, standard deviation 28


def test_the_last_key_of_a_grid_varies_fastest():
    points = grid({"a": [2, 1], "b": ["x"], "c": {"choice": [True, False]}})
    assert [list(point.values()) for point in points] == [
        [2, "x", True],
        [2, "x", False],
        [1, "x", True],
        [1, "x", False],
    ]
    assert list(points[0]) == ["a", "b", "c"]


def test_shuffled_points_are_a_permutation():
    points = grid({"a": list(range(20)), "b": [[1, 2], None]})
    order = shuffled(points, 3)
    assert order != points
    assert sorted(map(json.dumps, order)) == sorted(map(json.dumps, points))


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (1e-7, "0.0000001"),
        (9.9e-8, "9.9e-08"),
        (9999999.0, "9999999.0"),
        (1e7, "10000000.0"),
        (1e16, "1e+16"),
        (-0.5, "-0.5"),
        (-1e-5, "-0.00001"),
        (True, "true"),
        (3, "3"),
        ([1, [0.00001, "b"]], "1_0.00001_b"),
        ({"b": 1, "a": 2}, '{"a": 2, "b": 1}'),
    ],
)
def test_a_value_as_a_word(value, word):
    assert as_word(value) == word


def test_a_name_has_120_characters_at_most_and_only_a_longer_one_gets_a_hash():
    fits = name_of(Trial(0, {"arch": "x" * 115}))
    assert fits == "arch_" + "x" * 115
    cut = name_of(Trial(0, {"arch": "x" * 116}))
    assert cut[:108] == "arch_" + "x" * 102 + "-"
    assert re.fullmatch("[0-9a-f]{12}", cut[108:])


def test_only_names_that_collide_get_a_hash():
    trials = [Trial(0, {"arch": word}) for word in ("Net", "net", "other")]
    upper, lower, other = names_of(trials)
    assert other == "arch_other"
    assert re.fullmatch("arch_Net-[0-9a-f]{12}", upper)
    assert re.fullmatch("arch_net-[0-9a-f]{12}", lower)
    assert upper[-12:] != lower[-12:]


def test_replicates_are_ordered_by_seed_then_fold_then_point():
    trials = trials_of([{"ps": 0.1}, {"ps": 0.2}], [5, 7], 2)
    assert [(trial.seed, trial.fold, trial.number) for trial in trials] == [
        (5, (1, 2), 0),
        (5, (1, 2), 1),
        (5, (2, 2), 0),
        (5, (2, 2), 1),
        (7, (1, 2), 0),
        (7, (1, 2), 1),
        (7, (2, 2), 0),
        (7, (2, 2), 1),
    ]
    assert names_of(trials)[3] == "ps_0.2__fold_2__seed_5"


# --- what next ------------------------------------------------------------------------------------------------


def play(scores: dict[str, list[float]], ladder: list[int], eta: int, rng: random.Random, slots: int = 1) -> Counter:
    """The epochs that each child trains when ASHA says who is next and the end of a stretch comes in any order."""
    children = {name: ChildProgress(name, number) for number, name in enumerate(scores)}
    under_way: dict[str, int] = {}
    trained: Counter = Counter()
    while True:
        while len(under_way) < slots and (found := promote(list(children.values()), ladder, eta)):
            child, until = found
            child.state, under_way[child.name] = "running", until or ladder[-1]
        if not under_way:
            return trained
        name = rng.choice(sorted(under_way))
        until, child = under_way.pop(name), children[name]
        assert until > len(child.scores)
        trained[name] += until - len(child.scores)
        child.scores = scores[name][:until]
        child.state = "done" if until == ladder[-1] else "paused"


@pytest.mark.parametrize("slots", [1, 4])
def test_asha_trains_the_best_to_the_end_at_a_fraction_of_the_epochs(slots):
    rng = random.Random(0)
    quality = {f"c{number}": rng.random() for number in range(27)}
    scores = {name: [value + 0.01 * epoch for epoch in range(9)] for name, value in quality.items()}
    trained = play(scores, rungs(9, 3, 1), 3, rng, slots)
    assert set(trained) == set(scores)
    assert trained[max(quality, key=lambda name: quality[name])] == 9
    assert sum(trained.values()) <= 0.5 * 27 * 9


def test_asha_over_a_grid_whose_values_rise_promotes_no_more_than_over_random_points():
    rates = grid({"learning_rate": [number / 100 for number in range(1, 82)]})
    means = {}
    for order, points in (("rising", rates), ("shuffled", shuffled(rates, 1))):
        values: dict = {name_of(Trial(0, point)): point["learning_rate"] for point in points}
        scores = {name: [value + 0.01 * epoch for epoch in range(9)] for name, value in values.items()}
        means[order] = sum(play(scores, [1, 3, 9], 3, random.Random(0), 2).values()) / 9 / len(points)
    assert means["rising"] > 0.5
    assert means["shuffled"] < 0.35
    assert shuffled(rates, 1) == shuffled(rates[::-1], 1) != shuffled(rates, 2)
    assert all(point in shuffled(rates, 1) for point in rates)
    assert len(shuffled(rates, 1)) == 81


def test_too_few_children_for_a_rung_still_have_one_that_is_done():
    for num in (1, 2, 3, 4):
        scores = {f"c{number}": [number / 10] * 9 for number in range(num)}
        assert max(play(scores, rungs(9, 3, 1), 3, random.Random(0)).values()) == 9


def test_a_child_interrupted_between_rungs_goes_on_first():
    children = [ChildProgress("new", 0), ChildProgress("half", 1, "paused", [0.1, 0.1])]
    assert promote(children, [1, 3, 9], 3) == (children[1], 3)


def test_rungs_end_with_the_whole_run():
    assert rungs(9, 3, 1) == [1, 3, 9]
    assert rungs(10, 3, 2) == [3, 10]
    assert rungs(2.5, 3, 1) == [1, 3]
    assert rungs(1, 3, 1) == [1]


def test_hyperband_has_brackets_in_its_proportions():
    share = Counter(bracket(number, 3, 3) for number in range(1700))
    assert [round(share[index] / 100) for index in range(3)] == [9, 5, 3]  # 9, ceil(3/2 * 3), ceil(3)


def test_the_median_stops_who_is_behind_but_not_early():
    others = [ChildProgress(f"o{number}", number, "done", [0.5, 0.6, 0.7]) for number in range(5)]
    slow, good = ChildProgress("s", 9, "running", [0.1, 0.2]), ChildProgress("g", 8, "running", [0.1, 0.65])
    assert is_below_median(slow, others)
    assert not is_below_median(good, others)
    assert not is_below_median(ChildProgress("n", 7, "running", [0.1]), others)  # the first epoch says little
    assert not is_below_median(slow, others[:4])


@pytest.mark.parametrize(
    ("num_epochs", "eta", "first", "ladder"),
    [
        (27, 3, 1, [1, 3, 9, 27]),
        (81, 3, 3, [3, 9, 27, 81]),
        (16, 2, 1, [1, 2, 4, 8, 16]),
        (16, 4, 1, [1, 4, 16]),
        (100, 3, 5, [11, 33, 100]),  # 100 / 3, 100 / 9; 100 / 27 is below 5
        (9, 3, 4, [9]),
        (0.5, 3, 1, [1]),
    ],
)
def test_rungs_by_hand(num_epochs, eta, first, ladder):
    assert rungs(num_epochs, eta, first) == ladder


def test_brackets_by_hand():
    """9, 5 and 3 of 17 points; the fractional part of (number + 0.5) / golden ratio, times 17, says which."""
    # 5.3, 15.8, 9.3, 2.8, 13.3, 6.8, 0.3, 10.8, 4.3, 14.8
    assert [bracket(number, 3, 3) for number in range(10)] == [0, 2, 1, 0, 1, 0, 0, 1, 0, 2]
    assert [bracket(number, 1, 3) for number in range(5)] == [0] * 5
    assert Counter(bracket(number, 2, 2) for number in range(4000)) == {0: 2000, 1: 2000}  # 2 and ceil(2 / 1 * 1)


def children(*told: tuple[State, list[float]]) -> list[ChildProgress]:
    return [ChildProgress(f"c{number}", number, state, scores) for number, (state, scores) in enumerate(told)]


def promoted(told: list[tuple[State, list[float]]], ladder: list[int], eta: int = 3) -> tuple[int, int | None] | None:
    """(number of the child, epoch to go to)"""
    promotion = promote(children(*told), ladder, eta)
    return promotion and (promotion[0].number, promotion[1])


SIX = [("paused", [score]) for score in (0.3, 0.6, 0.1, 0.5, 0.2, 0.4)]


@pytest.mark.parametrize(
    ("told", "ladder", "promotion"),
    [
        # the best two of six go on
        (SIX, [1, 3, 9], (1, 3)),
        ([*SIX[:1], ("running", [0.6]), *SIX[2:]], [1, 3, 9], (3, 3)),
        ([*SIX[:1], ("running", [0.6]), SIX[2], ("running", [0.5]), *SIX[4:]], [1, 3, 9], None),
        # five: 5 // 3 = 1
        ([("running", [0.6]), *SIX[2:]], [1, 3, 9], None),
        # of two that are equal the earlier one
        ([("paused", [0.5]), ("paused", [0.5]), ("paused", [0.1])], [1, 3, 9], (0, 3)),
        # the top rung first, before the lower one and before a new child
        ([("new", []), *SIX, *[("paused", [0.0, 0.0, score]) for score in (0.1, 0.3, 0.2)]], [1, 3, 9], (8, None)),
        # the best epoch up to the rung counts, not the last one, and none after the rung
        (
            [("paused", [0.1, 0.9, 0.1]), ("paused", [0.2] * 3), ("running", [0.3, 0.3, 0.3, 0.99])],
            [1, 3, 9],
            (0, None),
        ),
        # one that is done still takes its place among the best
        ([("done", [0.9] * 9), *SIX[:2], ("new", [])], [1, 3, 9], (3, 1)),
        # one that failed does, too
        ([("failed", [0.9]), *SIX[:2]], [1, 3, 9], (2, 3)),
        # a new one begins when nobody is promoted
        ([SIX[0], SIX[1], ("new", []), ("new", [])], [1, 3, 9], (2, 1)),
        # a ladder of one rung: straight to the end
        ([("done", [0.9] * 9), ("new", [])], [9], (1, None)),
        ([("done", [0.9] * 9), ("running", [0.1])], [9], None),
        ([("paused", [0.5] * 4), ("new", [])], [9], (0, None)),
        # too few for any 1/3: the best of the highest rung
        ([("paused", [0.2]), ("paused", [0.3])], [1, 3, 9], (1, 3)),
        ([("paused", [0.9]), ("paused", [0.1] * 3)], [1, 3, 9], (1, None)),
        ([("failed", []), ("pruned", [0.3])], [1, 3, 9], None),
        ([], [1, 3, 9], None),
    ],
)
def test_promotions_by_hand(told, ladder, promotion):
    assert promoted(told, ladder) == promotion


def test_with_one_rung_every_child_is_trained_to_its_end():
    scores = {f"c{number}": [0.1 * number] for number in range(4)}
    assert play(scores, rungs(1, 3, 1), 3, random.Random(0), 2) == dict.fromkeys(scores, 1)


@pytest.mark.parametrize(
    ("scores", "others", "is_below"),
    [
        ([0.0, 0.29], [0.1, 0.2, 0.3, 0.4, 0.5], True),  # median 0.3
        ([0.0, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5], False),
        ([0.0, 0.34], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], True),  # median 0.35
        ([0.0, 0.36], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], False),
        ([0.31, 0.0], [0.1, 0.2, 0.3, 0.4, 0.5], False),  # its best epoch counts
    ],
)
def test_the_median_by_hand(scores, others, is_below):
    child = ChildProgress("c", 9, "running", scores)
    # what the others reached later does not count, and those that are not as far do not either
    known = [ChildProgress(f"o{number}", number, "done", [0.0, best, 0.9]) for number, best in enumerate(others)]
    known += [ChildProgress(f"s{number}", number, "running", [0.99]) for number in range(5)]
    assert is_below_median(child, [*known, child]) == is_below
