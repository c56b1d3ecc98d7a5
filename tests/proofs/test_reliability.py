"""Nothing lost: the faults of docs/reliability.md, acted out on real files and real processes."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import faults
import pytest
import torch
from kit import ROOT, call, experiment, history, shell, tree, weights

from engine.checkpoint import Checkpoints, Snapshot, Writer, read_weights, weights_file
from engine.session import Commit
from folder.folder import Folder
from folder.manifest import read_manifest
from utils import UserError, describe_oserror, write_atomic

# --- the save ---------------------------------------------------------------------------------------------


def state(step: int, value: float) -> dict:
    plain = {"epoch": step, "step": step, "epoch_step": step, "phase": "train", "num_epochs": 9.0}
    tensors = {"net": {"w": torch.full((4, 3), value)}, "ema": None, "optimizer": {"state": {}}}
    return plain | tensors | {"history": rows(step)}


def rows(step: int) -> list[dict]:
    return [
        {
            "epoch": n,
            "step": n,
            "learning_rate": 0.1,
            "train_loss": 1.0,
            "val_loss": 0.5,
            "val_accuracy": 0.1 * n,
            "seconds": 1.0,
            "images_per_second": 1.0,
        }
        for n in range(1, step + 1)
    ]


def save(folder: Path, step: int, value: float | None = None) -> None:
    """What the writer's thread does at the end of an epoch that is the best. `value` stands in the weights."""
    value = float(step) if value is None else value
    exported = weights_file({"w": torch.full((4, 3), value)}, {"classes": []})
    history = rows(step)
    commit = Commit(Snapshot.of(state(step, value)), history, history[-1], exported, is_best=True, keep_last=1)
    commit.write(Folder(folder))


def fresh(tmp_path: Path, name: object) -> Path:
    folder = tmp_path / str(name)
    folder.mkdir()
    save(folder, 1)
    save(folder, 2)
    return folder


def check(folder: Path, fault: object) -> int:
    """The folder holds the state before the save or after it, and saving again works. Returns the step it holds."""
    held, remark = Checkpoints(folder).restore()
    assert held["step"] in (2, 3), fault
    assert not remark, fault
    assert held["history"] == rows(held["step"])
    assert held["net"]["w"][0, 0] in (held["step"], 2.5)
    assert Checkpoints(folder).read(read_manifest(folder / "checkpoints")["best"])["step"] in (2, 3)
    assert float(read_weights(folder / "weights/best.safetensors")[0]["w"][0, 0]) in (1.0, 2.0, 2.5, 3.0)
    Checkpoints(folder).clean()
    save(folder, 3)
    held, remark = Checkpoints(folder).restore()
    assert held["step"] == 3
    assert not remark
    left = [path.name for path in (folder / "checkpoints").iterdir() if path.suffix == ".pt" and not path.is_symlink()]
    assert len(left) <= 3, left
    return held["step"]


@pytest.mark.parametrize(("step", "value"), [(3, 3.0), (2, 2.0), (2, 2.5)], ids=["next", "same", "other"])
def test_a_crash_at_every_file_system_call_of_a_save_loses_nothing(tmp_path, step, value):
    """The next state is saved; the same once more; another one of the same step (after a change that was accepted)."""
    with faults.failing_files(0, 0) as made:
        folder = fresh(tmp_path, "count")
        before = len(made)
        save(folder, step, value)
        num = len(made) - before
    assert num > 60
    for at in range(1, num + 1):
        folder = fresh(tmp_path, at)

        def crash(at: int = at, folder: Path = folder) -> None:
            with faults.failing_files(at, faults.CRASH):
                save(folder, step, value)

        assert faults.in_a_child(crash) == faults.CRASHED
        check(folder, f"call {at}")


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("fault", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_an_error_at_every_file_system_call_of_a_save_loses_nothing(tmp_path, fault, for_good):
    at, said = 0, 0
    while True:
        at += 1
        folder = fresh(tmp_path, at)
        with faults.failing_files(at, fault, for_good) as made:
            try:
                save(folder, 3)
                error = None
            except OSError as caught:
                error = caught
        if error is not None:
            said += 1
            assert error.errno == fault
            assert str(folder) in str(error.filename)
            if fault in (errno.ENOSPC, errno.EDQUOT) and not str(error.filename).endswith(("weights", ".pt")):
                assert "bytes needed" in str(error)
                assert "free" in str(error)
        check(folder, f"call {at}: {os.strerror(fault)}")
        if len(made) < at:
            break
    assert said > 20


def test_the_calls_of_a_save_are_in_the_order_that_survives_power_loss(tmp_path, monkeypatch):
    """Content is synced before its name, the name before anything relies on it. (A kill cannot show this.)"""
    made: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def noted(*args, name=name, real=real):
            target = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else str(args[1])
            made.append(f"{name} {'folder' if os.path.isdir(target) else Path(target).name.split('-')[0]}")
            return real(*args)

        monkeypatch.setattr(os, name, noted)
    write_atomic(tmp_path / "file", b"x")
    assert made == ["fsync .tmp", "replace file", "fsync folder"]
    made.clear()
    save(fresh(tmp_path, "a"), 3)
    last = max(n for n, what in enumerate(made) if what.startswith("replace epoch_"))
    manifest = max(n for n, what in enumerate(made) if what == "replace manifest.json")
    assert made[last - 1] == "fsync .tmp"
    assert made[last + 1] == "fsync folder"
    assert last + 1 < manifest
    assert all(n > manifest for n, what in enumerate(made) if what == "replace best.safetensors" and n > last)


def test_a_full_disk_for_real(tmp_path, data):
    """A limit on the size of files, as a quota sets it: exit 5, one line, the state before stays; then it goes on."""
    folder = experiment(tmp_path / "e", num_epochs=1, arch_args={"n_filters": 64})  # the state is the largest file
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    largest = max(path.stat().st_size for path in (folder / "checkpoints").iterdir())
    limited = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv.pop(1)); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({largest // 2}, {largest // 2}))\n"
        "import train, utils; utils.run_script(train.main)"
    )
    command = [sys.executable, "-c", limited, ROOT, "--data_dir", data, "--model_dir", folder, "--extend=1"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert "checkpoints" in done.stderr
    assert "File too large" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert json.loads((folder / "record/status.json").read_text())["state"] == "failed"
    assert not list((folder / "checkpoints").glob(".tmp-*"))
    assert call("train", "--data_dir", data, "--model_dir", folder, "--extend=1")[0] == 0
    assert len(history(folder)) == 2


def test_a_copy_that_does_not_fit_names_the_file_that_was_written(tmp_path):
    """The kit's source is copied into the folder: when that fails, its own file is not what is too large."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(8192))

    def copy() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(OSError, match="File too large") as caught:
            shutil.copyfile(source, target)
        assert describe_oserror(caught.value) == f"{target}: File too large"

    assert faults.in_a_child(copy) == 0


def test_what_fails_in_the_background_surfaces():
    writer = Writer()

    def fail() -> None:
        raise OSError(errno.EIO, "no", "file")

    writer.submit(fail)
    while not writer.failed:
        pass
    with pytest.raises(OSError, match="no"):
        writer.submit(print)
    assert not writer.failed
    writer.wait()


# --- kills and signals --------------------------------------------------------------------------------------


def stress(*flags: object) -> dict:
    command = [sys.executable, str(ROOT / "tests/tools/faults.py"), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_killed_at_random_instants_it_comes_to_the_same_bytes():
    found = stress("--kills", 20, "--seed", 1)
    assert found["sent"] >= 20
    assert found["identical"] == found["finished"] >= 3


def test_a_signal_after_the_last_epoch_does_not_break_the_end_off(data, tmp_path):
    """It comes when the run is committed and its observers are closed, before the folder says that it is done."""
    folder = experiment(tmp_path / "e", observers=["late.py:Late"])
    (folder / "late.py").write_text(
        "import os, signal\n\n\nclass Late:\n    def __init__(self, folder, params, step):\n        pass\n\n"
        "    def step(self, event):\n        pass\n\n    def epoch(self, event, history):\n        pass\n\n"
        "    def close(self):\n        os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = shell("train", "--data_dir", data, "--model_dir", folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "record/status.json").read_text())["state"] == "done"
    assert (folder / "train_history.png").exists()


def test_a_signal_saves_and_leaves_nobody_behind():
    found = stress("--kills", 12, "--signal", "TERM,INT,HUP,USR1", "--seed", 2)
    assert found["orphans"] == 0
    assert found["slowest_exit"] < 10
    for number in (15, 2, 1, 10):  # ended by it, or, before anything was there to save, by the signal itself
        assert found["codes"].get(str(128 + number), 0) + found["codes"].get(str(-number), 0) == 3, found["codes"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_500_kills():
    print(stress("--kills", 500))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_100_terminations():
    print(stress("--kills", 100, "--signal", "TERM"))


# --- damage -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = experiment(tmp_path_factory.mktemp("t") / "e", ema=0.9, num_epochs=3)
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    assert call("train", "--data_dir", data, "--model_dir", folder, "--extend=1")[0] == 0
    return folder


def read_all(path: Path, folder: Path) -> None:
    """Read a weights file, or whatever checkpoints a manifest names."""
    if path.suffix == ".safetensors":
        read_weights(path)
        return
    manifest = read_manifest(folder / "checkpoints")
    for entry in (manifest["last"], manifest["best"], *manifest["epochs"]):
        Checkpoints(folder).read(entry)


def flip_and_look(folder: Path, num: int) -> None:
    rng = random.Random(num)
    checkpoints = folder / "checkpoints"
    files = [path for path in checkpoints.glob("*.pt") if not path.is_symlink()]
    files += [checkpoints / "manifest.json", folder / "weights/best.safetensors", folder / "weights/last.safetensors"]
    for _ in range(num):
        path = rng.choice(files)
        with faults.flipped_bit(path, rng) as bit, pytest.raises(UserError) as caught:
            read_all(path, folder)
        assert caught.value.code in (2, 3), (path, bit)


def test_every_flipped_bit_is_found(trained):
    flip_and_look(trained, 500)


@pytest.mark.slow
def test_every_one_of_10_000_flipped_bits_is_found(trained):
    flip_and_look(trained, 10_000)


def test_the_generation_before_is_used_and_said(tmp_path, data):
    whole, folder = (experiment(tmp_path / name, num_epochs=4, keep_last=0) for name in ("whole", "cut"))
    assert call("train", "--data_dir", data, "--model_dir", whole)[0] == 0
    stop = "import os, sys; sys.path.insert(0, sys.argv.pop(1)); import train, engine.session as s; real = s.Commit.write\n"
    stop += "def write(commit, folder):\n    real(commit, folder)\n    commit.state.epoch == 3 and os._exit(9)\n"
    stop += "s.Commit.write = write; train.main(sys.argv[1:])"
    command = [sys.executable, "-c", stop, ROOT, "--data_dir", data, "--model_dir", folder]
    assert subprocess.run([str(word) for word in command], capture_output=True).returncode == 9
    manifest = read_manifest(folder / "checkpoints")
    assert manifest["last"]["epoch"] == 3
    assert manifest["previous"]["epoch"] == 2
    path = folder / "checkpoints" / manifest["last"]["file"]
    path.write_bytes(path.read_bytes()[:-100])
    code, printed = call("train", "--data_dir", data, "--model_dir", folder)
    assert code == 0
    assert "is damaged" in printed
    assert "going on from the state before it" in printed
    assert weights(folder) == weights(whole)
    assert history(folder) == history(whole)


@pytest.mark.parametrize(
    "name", ["history.json", "history.csv", "metrics_val_best_weights.json", "weights/best.safetensors"]
)
def test_derived_files_come_back_from_the_checkpoint(trained, tmp_path, data, name):
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(trained), str(folder)], check=True)
    whole = (folder / name).read_bytes()
    for damage in (b"", whole[: len(whole) // 2]):
        (folder / name).write_bytes(damage)
        code, printed = call("train", "--data_dir", data, "--model_dir", folder, "--extend=1")
        assert code == 0, printed
        assert (folder / name).read_bytes() == whole
    (folder / name).unlink()
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    assert (folder / name).read_bytes() == whole


def test_of_a_damaged_best_state_the_exported_weights_are_left(data, tmp_path):
    """The best epoch is an early one: a rate of 0.5 after it makes things worse."""
    values = {"num_epochs": 3, "lr_schedule": [[1, 0.02], [3, 5.0]], "best_metric": "loss"}
    folder = experiment(tmp_path / "e", **values)
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    manifest, kept = read_manifest(folder / "checkpoints"), weights(folder)
    assert manifest["best"]["epoch"] == 1
    assert manifest["last"]["epoch"] == 3
    path = folder / "checkpoints" / manifest["best"]["file"]
    path.write_bytes(path.read_bytes()[:-9])
    code, printed = call("train", "--data_dir", data, "--model_dir", folder, "--extend=1")
    assert code == 0, printed
    assert "is damaged" in printed, printed
    assert "best.safetensors is whole and stays" in printed, printed
    assert weights(folder) == kept
    (folder / "weights/best.safetensors").write_bytes(kept[:-9])
    code, printed = call("train", "--data_dir", data, "--model_dir", folder, "--extend=2")
    assert code == 3, printed


# --- non-finite -----------------------------------------------------------------------------------------------


def test_a_non_finite_loss_names_step_rate_and_files(tmp_path, data):
    folder = experiment(tmp_path / "e", learning_rate=1e30, num_epochs=2, save_summary_steps=1, batch_size=12)
    code, printed = call("train", "--data_dir", data, "--model_dir", folder)
    assert code == 6, printed
    last = printed.strip().splitlines()[-1]
    for words in ("epoch 1", "at step", "learning rate", "train/class_", "more, listed in train.log"):
        assert words in last, f"{words} in {last}"
    assert not (folder / "weights/best.safetensors").exists()
    assert "the batch of that step:" in (folder / "train.log").read_text()


def test_best_weights_outlive_a_run_that_blows_up(tmp_path, data):
    values = {"num_epochs": 3, "lr_schedule": [[1, 0.01], [3, 1e30]], "save_summary_steps": 1}
    folder = experiment(tmp_path / "e", **values)
    code, printed = call("train", "--data_dir", data, "--model_dir", folder)
    assert code == 6
    assert "epoch 2" in printed
    state, _ = Checkpoints(folder).restore()
    assert all(value.isfinite().all() for value in state["net"].values() if value.is_floating_point())
    assert call("evaluate", "--data_dir", data, "--model_dir", folder)[0] == 0
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 6


# --- proof ----------------------------------------------------------------------------------------------------


def test_verify_trains_the_frozen_code_again(tmp_path, data):
    folder = experiment(tmp_path / "e", ema=0.9, mixup=0.2, num_epochs=2)
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    assert call("train", "--data_dir", data, "--model_dir", folder, "--extend=1")[0] == 0
    before = tree(folder)
    done = shell("train", "--model_dir", folder, "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "byte-identical" in done.stdout, done.stdout + done.stderr
    assert tree(folder) == before
    rows = json.loads((folder / "history.json").read_text())
    rows[1]["val_loss"] += 1e-9
    (folder / "history.json").write_text(json.dumps(rows))
    done = shell("train", "--model_dir", folder, "--verify")
    assert done.returncode == 3
    assert "history from epoch 2 on (val_loss" in done.stderr


def test_a_state_that_is_not_finite_is_not_kept(tmp_path, data):
    """Every loss is finite, and something that the net remembers is not."""
    folder = experiment(tmp_path / "e", num_epochs=1, arch="net.py:Net", arch_args={})
    (folder / "net.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n"
        "    def __init__(self, num_classes):\n        super().__init__()\n        self.fc = torch.nn.Linear(3, num_classes)\n"
        "        self.register_buffer('memory', torch.zeros(1))\n\n"
        "    def forward(self, x):\n        if self.training:\n            self.memory.fill_(float('inf'))\n"
        "        return self.fc(x.mean((2, 3)))\n"
    )
    code, printed = call("train", "--data_dir", data, "--model_dir", folder)
    assert code == 6, printed
    assert "memory" in printed, printed
    assert not (folder / "checkpoints/manifest.json").exists()
