"""A search: what it tries, what it does next, and that no kill makes it lose or repeat a child."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from kit import ROOT, call, copy_kit, experiment, history, shell, tree, weights

from folder.lock import is_alive
from search.strategy import (
    ChildProgress,
    Trial,
    bracket,
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
from utils import UserError

SMALL = {"arch": "lenet", "arch_args": {}, "im_sz": 16, "batch_size": 16, "num_epochs": 1, "precision": "fp32"}
RATES = [0.001, 0.01, 0.1]


def parent(folder: Path, space: dict | None = None, search: dict | None = None, **params) -> Path:
    space = {"learning_rate": RATES} if space is None else space
    return experiment(folder, **(SMALL | params), hyper_search=space, search=search or {})


def search(data: Path, folder: Path, *flags: object) -> tuple[int, str]:
    done = shell("search_hyperparams", "--data_dir", data, "--parent_dir", folder, *flags)
    return done.returncode, done.stdout + done.stderr


def states(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("*/record/status.json"))
    return {path.parent.parent.name: json.loads(path.read_text())["state"] for path in files}


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
    rates = [point["learning_rate"] for point in points]
    assert all(1e-5 <= rate <= 0.1 and float(f"{rate:.4g}") == rate for rate in rates)
    assert 0.4 < sum(rate < 1e-3 for rate in rates) / 400 < 0.6  # half of the decades
    assert {point["batch_size"] for point in points} >= {16, 64}
    assert all(0.1 <= p["ps"] <= 0.5 for p in points)
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
    assert suggest_point(space, 0, [*past, ({"learning_rate": 5.0, "arch": "added by hand"}, 0.0)])["arch"] in "ab"


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
        scores = {
            name_of(Trial(0, point)): [point["learning_rate"] + 0.01 * epoch for epoch in range(9)] for point in points
        }
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


# --- for real -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(data, tmp_path_factory):
    """One key, three values: as the seed template has it."""
    folder = parent(tmp_path_factory.mktemp("search") / "learning_rate")
    code, printed = search(data, folder)
    assert code == 0, printed
    assert "leak" not in printed, printed  # the pool ends as quietly as a train.py
    return folder, printed


def test_one_key_gives_the_folders_of_the_seed_template(searched, data):
    folder, printed = searched
    assert states(folder) == {f"learning_rate_{rate}": "done" for rate in RATES}
    values = json.loads((folder / "learning_rate_0.01/params.json").read_text())
    assert values["learning_rate"] == 0.01
    assert values["threads"] == 1
    assert not {"base", "search", "hyper_search"} & set(values)
    for name in ("results.md", "results.csv", "history_plots.png", "report.html"):
        assert (folder / name).stat().st_size > 100, name
    assert "learning_rate_0.01" in (folder / "results.md").read_text()
    assert not any(re.search("second|time", line) for line in (folder / "results.csv").read_text().splitlines()[:1])


def test_a_child_is_an_experiment_like_any_other(searched, data, tmp_path):
    folder, _ = searched
    alone = experiment(tmp_path / "alone", **(SMALL | {"learning_rate": 0.01}))
    assert call("train", "--data_dir", data, "--model_dir", alone)[0] == 0
    child = folder / "learning_rate_0.01"
    assert weights(child) == weights(alone)
    assert history(child) == history(alone)
    assert call("evaluate", "--data_dir", data, "--model_dir", child)[0] == 0
    code, printed = call("train", child)
    assert code == 0
    assert "is done" in printed


def test_again_it_trains_nothing_and_a_larger_space_only_what_is_missing(searched, data, tmp_path):
    folder = tmp_path / "p"
    shutil.copytree(searched[0], folder)
    before = tree(folder / "learning_rate_0.01")
    code, printed = search(data, folder)
    assert code == 0
    assert "started" not in printed
    values = json.loads((folder / "params.json").read_text())
    values["hyper_search"]["learning_rate"] = [0.01, 0.1, 0.2]
    (folder / "params.json").write_text(json.dumps(values))
    code, printed = search(data, folder)
    assert re.findall("started (.*)", printed) == ["learning_rate_0.2"]
    assert {k: v for k, v in tree(folder / "learning_rate_0.01").items() if "report" not in k} == {
        k: v for k, v in before.items() if "report" not in k
    }
    assert states(folder)["learning_rate_0.001"] == "done"  # no longer in the space, and kept


def test_dry_run_writes_the_children_and_edited_and_added_ones_are_respected(data, tmp_path):
    folder = parent(tmp_path / "p", {"learning_rate": [0.01, 0.02], "ps": [0.1]}, {"seeds": 2})
    code, printed = search(data, folder, "--dry_run")
    names = [f"learning_rate_{rate}__ps_0.1__seed_{seed}" for seed in (0, 1) for rate in (0.01, 0.02)]
    assert code == 0
    assert printed.splitlines() == [*names, "4 children"]
    assert not states(folder)
    assert search(data, folder, "--dry_run")[1] == printed  # the order is that of the search, not of the names
    edited = folder / names[1] / "params.json"
    edited.write_text(json.dumps(json.loads(edited.read_text()) | {"wd": 0.01}))
    experiment(folder / "mine", **SMALL, wd=0.02)
    values = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(values | {"momentum": 0.8}))
    code, printed = search(data, folder)
    assert code == 0
    assert f"{names[1]}: made with other parameters than now, or edited" in printed
    resolved = {path.parent.parent.name: json.loads(path.read_text()) for path in folder.glob("*/record/resolved.json")}
    assert set(resolved) == {*names, "mine"}
    assert resolved[names[1]]["wd"] == 0.01
    assert resolved["mine"]["wd"] == 0.02
    assert resolved[names[1]]["momentum"] == 0.9
    assert resolved[names[0]]["momentum"] == 0.8
    assert resolved[names[2]]["seed"] == 1


def test_a_failing_child_says_why_and_the_others_go_on(data, tmp_path):
    folder = parent(tmp_path / "p", {"arch": ["lenet", "file.py:Crash", "simple_cnn"]})
    (folder / "file.py").write_text("import os\n\ndef Crash(num_classes, **kwargs):\n    os.abort()\n")
    code, printed = search(data, folder)
    assert code == 1, printed
    assert list(states(folder).values()).count("done") == 2, printed
    (crashed,) = [name for name, state in states(folder).items() if state == "failed"]
    assert "exit -6" in printed
    assert "Crash" in crashed
    code, printed = search(data, folder, "--fail_fast")  # tried again, and nothing else is
    assert code == 1
    assert "done" not in re.findall(r"\] (\w+) ", printed)


def test_fail_fast_starts_no_more(data, tmp_path):
    folder = parent(tmp_path / "p", {"learning_rate": [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], 0.1, 0.2]})
    code, printed = search(data, folder, "--fail_fast")
    assert code == 1
    assert "learning_rate: 7 rates" in printed
    assert printed.count("started") == 1


def test_the_code_of_the_beginning_is_what_runs(data, tmp_path):
    """The tree is edited between two sessions of a search; its own net.py, too."""
    kit = copy_kit(tmp_path / "kit")
    folder = parent(tmp_path / "p", {"learning_rate": [0.01]}, arch="own.py:Own")
    own = (
        "from torch import nn\n\n\nclass Own(nn.Sequential):\n    def __init__(self, num_classes, **kwargs):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(768, num_classes, bias={}))\n"
    )
    (folder / "own.py").write_text(own.format(False))

    def again(*flags):
        command = [
            sys.executable,
            str(kit / "search_hyperparams.py"),
            "--data_dir",
            str(data),
            "--parent_dir",
            str(folder),
        ]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    assert again()[0] == 0
    (folder / "own.py").write_text(own.format(True))
    (kit / "engine/loop.py").write_text("raise SystemExit('the tree is broken')\n")
    values = json.loads((folder / "params.json").read_text())
    values["hyper_search"]["learning_rate"] = [0.01, 0.02]
    (folder / "params.json").write_text(json.dumps(values))
    code, printed = again()
    assert code == 0
    assert "goes on with the code it began with (engine/loop.py, own.py changed since)" in printed
    sizes = {len(weights(path)) for path in folder.glob("learning_rate_*")}
    assert len(sizes) == 1
    assert len(states(folder)) == 2


def test_two_searches_of_one_parent(data, tmp_path):
    folder = parent(tmp_path / "p", num_epochs=30)
    first = start(data, folder)
    wait_until(lambda: states(folder), first)
    code, printed = search(data, folder)
    assert code == 4
    assert str(first.pid) in printed
    first.send_signal(signal.SIGTERM)
    printed, _ = first.communicate(timeout=60)
    assert first.returncode == 143
    assert "the same command goes on" in printed
    assert "interrupted" in states(folder).values()


def test_a_child_that_somebody_else_trains_is_waited_for(data, tmp_path):
    folder = parent(tmp_path / "p", {"learning_rate": [0.01]}, num_epochs=100)
    assert search(data, folder, "--dry_run")[0] == 0
    child = folder / "learning_rate_0.01"
    words = [sys.executable, str(ROOT / "train.py"), "--data_dir", str(data), "--model_dir", str(child)]
    other = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    wait_until(lambda: (child / "history.json").exists(), other)
    other.send_signal(signal.SIGSTOP)  # it holds the folder for as long as the test wants
    try:
        process = start(data, folder)
        assert process.stdout
        assert any("waiting learning_rate_0.01" in line for line in process.stdout)
    finally:
        other.send_signal(signal.SIGCONT)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert other.wait(timeout=60) == 0, printed
    assert states(folder) == {"learning_rate_0.01": "done"}
    assert len(json.loads((child / "record/meta.json").read_text())["sessions"]) == 1


def test_children_start_from_given_weights(searched, data, tmp_path):
    given = searched[0] / "learning_rate_0.1/weights/last.safetensors"
    folder = parent(tmp_path / "p", {"learning_rate": [1e-9]}, wd=0.0)
    shutil.copy(given, folder / "start.safetensors")
    code, printed = search(data, folder, "--search.restore_file=start.safetensors")
    assert code == 0, printed
    from safetensors.torch import load_file

    theirs, ours = load_file(given), load_file(folder / "learning_rate_1e-09/weights/last.safetensors")
    assert all((ours[name] - tensor).abs().max() < 1e-6 for name, tensor in theirs.items())


def test_asha_goes_on_from_the_checkpoint_and_prunes_the_rest(data, tmp_path):
    folder = parent(
        tmp_path / "p",
        {"learning_rate": [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05]},
        {"pruner": "asha", "eta": 2, "parallel": 2},
        num_epochs=4,
        scheduler="constant",
    )
    code, printed = search(data, folder)
    assert code == 0, printed
    epochs = {path.name: len(history(path)) for path in folder.glob("learning_rate_*")}
    found = states(folder)
    assert set(epochs.values()) == {1, 2, 4}
    assert set(found.values()) == {"done", "pruned"}
    assert all((epochs[name] == 4) == (state == "done") for name, state in found.items())
    (winner, *_) = [name for name, state in found.items() if state == "done"]
    assert "continuing at epoch 3" in (folder / winner / "train.log").read_text()
    rate = json.loads((folder / winner / "params.json").read_text())["learning_rate"]
    alone = experiment(
        tmp_path / "alone", **(SMALL | {"num_epochs": 4, "scheduler": "constant", "learning_rate": rate})
    )
    assert call("train", "--data_dir", data, "--model_dir", alone)[0] == 0
    assert weights(folder / winner) == weights(alone)


def test_tpe_asks_for_as_many_points_as_wanted_in_all(data, tmp_path):
    space = {"learning_rate": {"min": 1e-4, "max": 0.1, "log": True}}
    folder = parent(tmp_path / "p", space, {"sampler": "tpe", "num_trials": 3, "seeds": 2})
    code, printed = search(data, folder)
    assert code == 0, printed
    assert len(states(folder)) == 6, printed
    code, printed = search(data, folder, "--search.num_trials=4")
    assert code == 0
    assert printed.count("started") == 2
    assert len(states(folder)) == 8
    trial = next(folder.glob("*/record/trial.json"))
    trial.write_text('{"number": "first", "values": {}}')
    code, printed = search(data, folder)
    assert code == 3
    assert f"{trial} is damaged (number)" in printed


def test_children_that_were_added_by_hand_are_points_of_tpe_too(data, tmp_path):
    space = {"learning_rate": {"min": 1e-4, "max": 0.1, "log": True}}
    folder = parent(tmp_path / "p", space, {"sampler": "tpe", "num_trials": 3})
    for rate in (0.01, 0.02):
        experiment(folder / f"mine_{rate}", **SMALL, learning_rate=rate)
    code, printed = search(data, folder)
    assert code == 0, printed
    assert len(states(folder)) == 3, printed


def test_a_grid_under_asha_is_begun_in_a_shuffled_order(data, tmp_path):
    rates = [round(0.01 * (1 + number), 2) for number in range(9)]
    folder = parent(tmp_path / "p", {"learning_rate": rates})
    rising, shuffled_once, again = [
        search(data, folder, "--dry_run", f"--search.pruner={pruner}")[1].splitlines()[:-1]
        for pruner in ("none", "asha", "asha")
    ]
    assert rising == sorted(rising) == sorted(shuffled_once)
    assert again == shuffled_once != rising


def test_budgets_are_of_the_whole_search(data, tmp_path):
    folder = parent(tmp_path / "p", search={"epochs": 5}, num_epochs=2)
    for _ in range(2):
        code, printed = search(data, folder)
        assert code == 0, printed
        assert len(states(folder)) == 2, printed
    folder = parent(tmp_path / "q", search={"minutes": 1e-9})
    code, printed = search(data, folder)
    assert code == 0
    assert "minutes are over" in printed
    assert not states(folder)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"hyper_search": {}}, ["nothing to search"]),
        ({"hyper_search": {"ps": {"min": 0, "max": 0.5}}}, ["hyper_search.ps", "sampled"]),
        ({"search": {"sampler": "random"}}, ["search.num_trials"]),
        ({"search": {"sampler": "tpe", "num_trials": 2, "pruner": "asha"}}, ["goes with sampler grid or random"]),
        ({"search": {"folds": 2, "pruner": "median"}}, ["every fold counts"]),
        ({"hyper_search": {"seed": [1, 2]}}, ["search.seeds"]),
        ({"search": {"restore_file": "nothing.safetensors"}}, ["nothing.safetensors", "no such weights file"]),
        ({"search": {"metric": "val_acuracy"}}, ["val_acuracy", "did you mean 'accuracy'?"]),
        ({"hyper_search": {"accumulate": [1, 64]}}, ["accumulate", "at most batch_size"]),
    ],
)
def test_what_does_not_go_together_is_one_line(data, tmp_path, params, words):
    folder = experiment(tmp_path / "p", **(SMALL | {"hyper_search": {"learning_rate": [0.1]}} | params))
    code, printed = search(data, folder)
    assert code == 2, printed
    assert all(word in printed for word in words), printed
    assert "Traceback" not in printed, printed


# --- kills ------------------------------------------------------------------------------------------------------

LEDGER = '''"""Notes every optimizer step, and the end of each run."""
import os


class Ledger:
    def __init__(self, folder, params, step):
        self.path, self.name = folder.parent / "ledger.txt", folder.name

    def note(self, word):
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{self.name} {word}\\n".encode())
        os.close(descriptor)

    def step(self, event):
        self.note("step")

    def epoch(self, event, history):
        pass

    def close(self):
        pass
'''


def start(data: Path, folder: Path, *flags: str) -> subprocess.Popen:
    command = [
        sys.executable,
        str(ROOT / "search_hyperparams.py"),
        "--data_dir",
        str(data),
        "--parent_dir",
        str(folder),
    ]
    return subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until(condition, process: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    assert condition(), process.communicate()[0] if process.poll() is not None else "too late"


def below(pid: int) -> list[int]:
    """The processes that a process has started, and theirs, nearest first."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found = [pid]
    for above in found:
        found += [child for child, parent in parents.items() if parent == above]
    return found[1:]


def wait_for_growth(path: Path, process: subprocess.Popen, seconds: float = 30) -> None:
    size, end = path.stat().st_size if path.exists() else 0, time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end and not (path.exists() and path.stat().st_size > size):
        time.sleep(0.01)


def kill_search(data: Path, folder: Path, kills: int, rng: random.Random) -> int:
    """Run the search to its end through so many kills. Returns how often it was started."""
    starts, process = 0, None
    while True:
        if process is None or process.poll() is not None:
            printed = process.communicate()[0] if process else ""
            assert process is None or process.returncode in (0, -signal.SIGKILL), printed
            if process and process.returncode == 0:
                return starts
            process, starts = start(data, folder, "--parallel", "3"), starts + 1
        if kills <= 0:
            process.wait(timeout=300)
            continue
        if rng.random() < 0.75:  # while somebody trains; else at any instant
            wait_for_growth(folder / "ledger.txt", process)
        time.sleep(rng.choice([0.0, 0.05, 0.2, 0.5]))
        others = below(process.pid)
        what = rng.choice(["search", "child", "child", "child", "pool", "all"])
        victims = {"search": [process.pid], "child": others[1:], "pool": others[:1], "all": [process.pid, *others]}[
            what
        ]
        for pid in [rng.choice(victims)] if what == "child" and victims else victims:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        kills -= bool(victims)
        if what in ("search", "all"):
            process.wait()


@pytest.mark.parametrize(
    ("num", "epochs", "kills"),
    [
        (6, 6, 15),
        pytest.param(50, 12, 200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_killed_at_any_instant_every_value_is_done_once(data, tmp_path, num, epochs, kills):
    folders = []
    for name in ("whole", "killed"):
        folder = parent(
            tmp_path / name / "p",
            {"learning_rate": [round(0.0002 * (1 + n), 4) for n in range(num)]},
            num_epochs=epochs,
            checkpoint_minutes=0.0003,
            save_summary_steps=1,
            observers=["ledger.py:Ledger"],
            batch_size=4,
            ema=0.9,
        )
        (folder / "ledger.py").write_text(LEDGER)
        folders.append(folder)
    whole, killed = folders
    assert search(data, whole, "--parallel", "3")[0] == 0
    starts = kill_search(data, killed, kills, random.Random(kills))
    steps = Counter((killed / "ledger.txt").read_text().split()[::2])
    planned = Counter((whole / "ledger.txt").read_text().split()[::2])
    print(f"{kills} kills, {starts} starts, {sum(steps.values())} steps for {sum(planned.values())}")
    assert states(killed) == dict.fromkeys(states(whole), "done")
    assert len(states(whole)) == num
    assert sum(steps.values()) <= 1.1 * sum(planned.values())
    assert all(steps[name] >= planned[name] for name in planned)
    for name in states(whole):
        assert weights(killed / name) == weights(whole / name)
        assert history(killed / name) == history(whole / name)
    assert (killed / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
