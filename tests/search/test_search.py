"""A search for real: its children, their order, and that no kill makes it lose or repeat one."""

import json
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
from kit import ROOT, call, copy_kit, experiment, gone_pid, history, shell, tree, weights

from folder.lock import is_alive
from folder.manifest import check_seal
from utils import write_json

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


@pytest.mark.parametrize("what", ["no classes", "one class", "n_clas"])
def test_data_that_every_child_would_refuse_is_refused_once(data, tmp_path, what):
    """Before any child is made."""
    folder = parent(tmp_path / "p", {"ps": [0.1, 0.2]}, **({"n_clas": 7} if what == "n_clas" else {}))
    before = tree(folder)
    target = data
    if what != "n_clas":
        target = tmp_path / "data"
        shutil.copytree(data / "train/class_0", target / ("train" if what == "no classes" else "train/only"))
    for flags in ([], ["--dry_run"]):
        code, printed = call("search_hyperparams", "--data_dir", target, "--parent_dir", folder, *flags)
        assert code == 2, printed
        assert len(printed.strip().splitlines()) == 1, printed
        assert "class" in printed
        assert tree(folder) == before


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
    assert "continues with the code it began with (engine/loop.py, own.py changed since)" in printed
    sizes = {len(weights(path)) for path in folder.glob("learning_rate_*")}
    assert len(sizes) == 1
    assert len(states(folder)) == 2


def test_two_searches_of_one_parent(data, tmp_path):
    folder = parent(tmp_path / "p", num_epochs=1000)  # longer than any start of the second search
    first = start(data, folder)
    wait_until(lambda: states(folder), first)
    code, printed = search(data, folder)
    assert code == 4
    assert str(first.pid) in printed
    first.send_signal(signal.SIGTERM)
    printed, _ = first.communicate(timeout=60)
    assert first.returncode == 143
    assert "the same command continues" in printed
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


def test_a_child_that_was_killed_before_it_said_that_it_is_done_says_so(data, tmp_path):
    folder = parent(tmp_path / "p", {"learning_rate": [0.01]})
    assert search(data, folder)[0] == 0
    path = folder / "learning_rate_0.01/record/status.json"
    write_json(path, json.loads(path.read_text()) | {"state": "running", "pid": gone_pid()})
    code, printed = search(data, folder)
    assert code == 0, printed
    assert states(folder) == {"learning_rate_0.01": "done"}
    assert "killed at" not in printed


def test_a_search_stays_on_its_data_wherever_that_lies(data, tmp_path):
    """Another dataset is refused before a child begins; a copy of the same one is not."""
    folder = parent(tmp_path / "p", {"learning_rate": [0.01]})
    assert search(data, folder)[0] == 0
    write_json(
        folder / "params.json",
        json.loads((folder / "params.json").read_text()) | {"hyper_search": {"learning_rate": [0.01, 0.1]}},
    )
    other = tmp_path / "other"
    shutil.copytree(data, other)
    code, printed = search(other, folder, "--dry_run")
    assert code == 0, printed
    first, second, *_ = sorted(path for path in (other / "valid").rglob("*") if path.is_file())
    shutil.copy(second, first)
    before = tree(folder)
    code, printed = search(other, folder)
    assert code == 2, printed
    assert f"learning_rate_0.01 was trained on {data}, and {other} holds other images or labels" in printed
    assert tree(folder) == before


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


def test_records_of_a_search_are_sealed_and_older_ones_still_read(data, tmp_path):
    space = {"learning_rate": {"min": 1e-4, "max": 0.1, "log": True}}
    folder = parent(tmp_path / "p", space, {"sampler": "tpe", "num_trials": 1, "folds": 2})
    code, printed = search(data, folder, "--ps=0.3")
    assert code == 0, printed
    files = [folder / "record/search.json", folder / "record/folds.json", next(folder.glob("*/record/trial.json"))]
    for path in files:
        record = json.loads(path.read_text())
        check_seal(path, record)
        assert record["format"] == 2
        assert record["digest"]
    # an edit and a torn file are refused, with the way out
    whole = {path: json.loads(path.read_text()) for path in files}
    for path, key in ((files[0], "overrides"), (files[2], "values")):
        for text in (json.dumps(whole[path] | {key: {"learning_rate": 0.5}}), "{}}"):
            path.write_text(text)
            code, printed = search(data, folder)
            assert code == 3, printed
            assert f"{path}" in printed
            assert "or remove it" in printed
        path.write_text(json.dumps(whole[path]))
    # records as an older version wrote them, and none: nothing is trained again
    for path in files:
        old = {name: value for name, value in whole[path].items() if name not in ("format", "digest")}
        path.write_text(json.dumps(old))
    code, printed = search(data, folder)
    assert (code, "started" in printed) == (0, False), printed
    for path in files:
        path.unlink()
    code, printed = search(data, folder, "--ps=0.3")
    assert (code, "started" in printed) == (0, False), printed


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
