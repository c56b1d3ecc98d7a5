"""Processes and places: busy folders, dying workers, vanishing disks, closed consoles, odd names."""

import contextlib
import errno
import fcntl
import json
import multiprocessing.process
import multiprocessing.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
from kit import ROOT, call, experiment, history, make_dataset, shell, tree, wait_for, weights
from loaders import batches, loader

from engine.checkpoint import Checkpoints, Snapshot
from folder.folder import Folder
from folder.lock import is_alive
from model.images.decode import ImageError
from model.images.workers import _start_worker, signals_blocked
from utils import UserError

TRAIN = [sys.executable, str(ROOT / "train.py")]


def train(data: Path, folder: Path, *flags: object, **kwargs) -> subprocess.Popen:
    command = [*TRAIN, "--data_dir", str(data), "--model_dir", str(folder), *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


# --- the machine ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="a switch of oneDNN on x86")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_arithmetic_that_no_query_shows_is_refused_until_accepted(data, tmp_path, precision):
    folder = experiment(tmp_path / "e", precision=precision, threads=1)
    command = [*TRAIN, "--data_dir", str(data), "--model_dir", str(folder)]
    subprocess.run([*command, "--until", "1"], check=True, capture_output=True, timeout=120)
    before = tree(folder)
    other = {**os.environ, "ONEDNN_MAX_CPU_ISA": "SSE41"}
    refused = subprocess.run(command, env=other, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert "the machine changed since this run began: arithmetic" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert tree(folder) == before
    # The way out that the message names, then the same machine again.
    accepted = subprocess.run([*command, "--accept", "machine"], env=other, capture_output=True, text=True, timeout=120)
    assert accepted.returncode == 0, accepted.stderr
    assert "not bitwise" in accepted.stdout


# --- one folder, many starts ----------------------------------------------------------------------------------


def starts(data: Path, tmp_path: Path, num: int) -> None:
    folder, alone = experiment(tmp_path / "e", num_epochs=4), experiment(tmp_path / "alone", num_epochs=4)
    assert call("train", "--data_dir", data, "--model_dir", alone)[0] == 0
    others = [train(data, folder) for _ in range(num)]
    ends = [(process.communicate(), process.returncode) for process in others]
    codes = sorted(code for _, code in ends)
    assert set(codes) <= {0, 4}, codes
    winners = [out for (out, _), code in ends if code == 0 and "epoch 4/4" in out]
    assert len(winners) == 1  # whoever comes after it has ended is told that it is done
    for (_, err), code in ends:
        if code == 4:
            assert re.search(r"is busy: process \d+ on \S+ is training it", err), err
            assert len(err.splitlines()) == 1, err
    assert weights(folder) == weights(alone)
    assert history(folder) == history(alone)


def test_of_20_simultaneous_starts_one_trains(data, tmp_path):
    starts(data, tmp_path, 20)


@pytest.mark.slow
def test_of_200_simultaneous_starts_one_trains(data, tmp_path):
    starts(data, tmp_path, 200)


def test_a_busy_folder_is_said_at_once(data, tmp_path):
    folder = experiment(tmp_path / "e", num_epochs=500)
    first = train(data, folder)
    wait_for(folder / "record/status.json", first)
    begun = time.monotonic()
    done = shell("train", "--data_dir", data, "--model_dir", folder)
    assert done.returncode == 4
    assert f"process {first.pid} on" in done.stderr
    assert time.monotonic() - begun < 10
    first.kill(), first.communicate()
    assert call("train", "--data_dir", data, "--model_dir", folder, "--num_epochs=500", "--json")[0] in (0, 2)


def test_orphaned_workers_hold_no_lock_and_die(data, tmp_path):
    folder = experiment(tmp_path / "e", num_epochs=200, num_workers=2, augment=["HorizontalFlip", "RandomGamma"])
    first = train(data, folder, start_new_session=True)
    wait_for(folder / "history.json", first)
    workers: list[int] = []
    while len(workers) < 2:
        workers = children(first.pid)
    first.kill(), first.communicate()
    Folder(folder).acquire()  # at once: nobody else holds it
    end = time.monotonic() + 2
    while any(map(is_alive, workers)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(is_alive, workers))


def test_a_child_that_outlives_its_parent_holds_no_lock(tmp_path):
    folder = experiment(tmp_path / "e")
    parent = os.fork()
    if parent == 0:
        Folder(folder).acquire()
        if os.fork() == 0:
            time.sleep(20)
        (folder / "held").touch()
        time.sleep(20)
        os._exit(0)
    wait_for(folder / "held")
    child = children(parent)[0]
    os.kill(parent, signal.SIGKILL), os.waitpid(parent, 0)
    begun = time.monotonic()
    with Folder(folder).locked():
        assert is_alive(child)
        assert time.monotonic() - begun < 1
    os.kill(child, signal.SIGKILL)


def test_a_signal_to_the_workers_changes_nothing(data, tmp_path):
    folder = experiment(tmp_path / "e", num_epochs=6, num_workers=2, augment=["HorizontalFlip", "RandomGamma"])
    process = train(data, folder)
    wait_for(folder / "history.json", process)
    reached = 0
    while process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
            for child in children(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, number)
                    reached += 1
        time.sleep(0.05)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert reached >= 8, err


def children(pid: int) -> list[int]:
    """Its child processes, whichever of its threads began them."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in path.read_text().split()]
    return found


def test_where_folders_cannot_be_locked_params_json_is(data, tmp_path, monkeypatch):
    """NFS: flock of a directory is an error there; there is no NFS here, so the error is made."""
    real = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(descriptor, how)

    monkeypatch.setattr("folder.lock.fcntl.flock", flock)
    folder = experiment(tmp_path / "e")
    with Folder(folder).locked(), pytest.raises(UserError, match=f"is busy: process {os.getpid()} on") as caught:
        Folder(folder).acquire()
    assert caught.value.code == 4
    with Folder(folder).locked():
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["params.json"]


# --- loader workers -------------------------------------------------------------------------------------------


def test_a_worker_that_dies_names_the_file(data, monkeypatch):
    part = loader(data, cache="off", num_workers=2, sampler="shuffle")
    victim = part.paths[7]
    real = part.source.read.__func__.__globals__["read_image"]

    def read(path):
        if str(path).endswith(victim):
            os.kill(os.getpid(), signal.SIGSEGV)
        return real(path)

    monkeypatch.setattr("model.images.source.read_image", read)
    with pytest.raises(ImageError, match="a loader worker died or hung") as caught:
        batches(part)
    assert victim in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_worker_that_hangs_names_the_file(data, monkeypatch):
    part = loader(data, cache="off", num_workers=1)
    victim = part.paths[3]
    real = part.source.read.__func__.__globals__["read_image"]
    monkeypatch.setattr(
        "model.images.source.read_image", lambda p: time.sleep(20) if str(p).endswith(victim) else real(p)
    )
    monkeypatch.setattr("model.images.workers.WORKER_SECONDS", 1)
    with pytest.raises(ImageError, match="died or hung") as caught:
        batches(part)
    assert victim in str(caught.value)


def test_a_worker_that_hangs_dies_with_its_parent(data, monkeypatch):
    part = loader(data, cache="off", num_workers=1)
    monkeypatch.setattr("model.images.source.read_image", lambda path: time.sleep(20))
    parent = os.fork()
    if parent == 0:
        with contextlib.suppress(BaseException):
            batches(part)
        os._exit(1)
    while not (workers := children(parent)):
        time.sleep(0.02)
    time.sleep(0.5)  # it is hanging now
    os.kill(parent, signal.SIGKILL), os.waitpid(parent, 0)
    end = time.monotonic() + 2
    while any(map(is_alive, workers)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(is_alive, workers))


def test_a_worker_that_hangs_ends_when_its_parent_does(data, monkeypatch):
    """The parent is interrupted while it waits for a batch: at its exit it must not wait for the worker for ever."""
    part = loader(data, cache="off", num_workers=1)
    monkeypatch.setattr("model.images.source.read_image", lambda path: time.sleep(60))
    parent = os.fork()
    if parent == 0:
        code = 1
        try:
            multiprocessing.process._children.clear()  # those of the tests before are not its own
            multiprocessing.util._finalizer_registry.clear()
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.alarm(2)
            next(part.batches(0))
        except KeyboardInterrupt:
            multiprocessing.util._exit_function()  # what the interpreter does at its end
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    begun = time.monotonic()
    while not (ended := os.waitpid(parent, os.WNOHANG))[0] and time.monotonic() - begun < 30:
        time.sleep(0.05)
    if not ended[0]:
        os.kill(parent, signal.SIGKILL)
    assert ended[0]
    assert os.waitstatus_to_exitcode(ended[1]) == 0


def test_a_worker_that_is_told_to_end_exits_with_0():
    """torch reports any other exit code of a worker as a crash, even while the parent exits."""
    parent = os.getpid()
    with signals_blocked():
        worker = os.fork()
        if worker == 0:
            try:
                _start_worker(0, parent)
                time.sleep(20)  # it hangs
            finally:
                os._exit(3)
    os.kill(worker, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 0


def test_little_shared_memory_means_no_workers(data, monkeypatch):
    monkeypatch.setattr("model.images.workers.free_shared_memory", lambda: 1000)
    part = loader(data, cache="off", num_workers=2)
    assert part.num_workers == 0
    assert "no workers: 0 MiB of shared memory" in part.description
    assert len(batches(part)) == part.num_batches


# --- places ---------------------------------------------------------------------------------------------------


def test_a_folder_that_is_gone_while_it_trains_is_not_made_again(data, tmp_path):
    folder = experiment(tmp_path / "e", num_epochs=2000)
    process = train(data, folder)
    wait_for(folder / "history.json", process)
    folder.rename(tmp_path / "elsewhere")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    assert "Traceback" not in err, err
    assert "was moved or replaced" in err, err
    assert f"--model_dir {tmp_path / 'elsewhere'}" in err, err
    assert not folder.exists()
    with pytest.raises(FileNotFoundError):  # whichever write came first above
        Checkpoints(folder).commit(Snapshot(b"", "epoch_0001", 1, 1, 1.0), epoch_done=True, is_best=True, keep_last=1)
    assert not folder.exists()


def test_a_folder_may_move_between_two_starts(data, tmp_path):
    whole, folder = experiment(tmp_path / "whole", num_epochs=6), experiment(tmp_path / "e", num_epochs=6)
    assert call("train", "--data_dir", data, "--model_dir", whole)[0] == 0
    process = train(data, folder)
    wait_for(folder / "history.json", process)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    moved = tmp_path / "elsewhere" / "with a new name"
    moved.parent.mkdir()
    folder.rename(moved)
    assert call("train", "--data_dir", data, "--model_dir", moved)[0] == 0
    assert weights(moved) == weights(whole)
    assert not folder.exists()
    assert call("evaluate", "--data_dir", data, "--model_dir", moved)[0] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_what_may_not_be_written_is_said_before_anything_is_loaded(data, tmp_path):
    folder = experiment(tmp_path / "e")
    for path in [tmp_path, *tmp_path.parents, *data.parents]:
        if path.stat().st_uid == 0 and path not in (Path("/"), Path("/tmp")):
            path.chmod(path.stat().st_mode | 0o055)
    become = "import os, sys; sys.path.insert(0, sys.argv.pop(1)); import train, utils, engine.session, model.data_loader, model.net, encodings.utf_8_sig\n"
    become += "os.setgroups([]); os.setgid(65534); os.setuid(65534); utils.run_script(train.main)"
    words = [sys.executable, "-c", become, ROOT, "--data_dir", data, "--model_dir", folder]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert str(folder) in done.stderr, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["params.json"]


def test_a_closed_console_stops_nothing(data, tmp_path):
    for number, how in enumerate(("head -1", "true", "cat >&-")):
        folder = experiment(tmp_path / str(number))
        words = [*TRAIN, "--data_dir", str(data), "--model_dir", str(folder)]
        done = subprocess.run(["sh", "-c", f'"$@" | {how}', "sh", *words], capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        assert json.loads((folder / "record/status.json").read_text())["state"] == "done", how
    folder = experiment(tmp_path / "closed")
    subprocess.run(["sh", "-c", '"$@" >&- 2>&- <&-', "sh", *TRAIN, "--data_dir", str(data), "--model_dir", str(folder)])
    assert json.loads((folder / "record/status.json").read_text())["state"] == "done"


ODD_NAMES = [
    "a b",
    "it's",
    'say "x"',
    "$(touch OUT)",
    "`touch OUT`",
    "; touch OUT",
    "new\nline",
    "-dash",
    "ünï",
    "🦆",
    "x" * 200,
    "%s{0}",
    "*",
    "#1",
    "~",
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
def test_odd_names_of_folders_classes_and_images(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    data = Path(name) / "data"
    for label, path in enumerate(sorted((make_dataset(tmp_path / "plain") / "train").iterdir())):
        target = data / "train" / (name if label == 0 else path.name)
        shutil.copytree(path, target)
        if label == 0:
            next(target.iterdir()).rename(target / f"{name[:100]}.png")
    folder = experiment(Path(name) / "experiment", num_epochs=1)
    code, printed = call("train", f"--data_dir={data}", f"--model_dir={folder}")
    assert code == 0, printed
    code, printed = call("evaluate", f"--data_dir={data}", f"--model_dir={folder}", "--split", "valid")
    assert code == 0, printed
    code, printed = call("predict", f"--model_dir={folder}", "--", str(data / "train" / name))
    assert code == 0, printed
    assert call("synthesize_results", f"--parent_dir={Path(name)}")[0] == 0
    assert call("plot_results", f"--parent_dir={Path(name)}")[0] == 0
    assert not list(tmp_path.rglob("OUT"))
    assert json.loads((folder / "record/resolved.json").read_text())["pinned"]["classes"][0] in (name, "class_1")


def test_names_that_are_no_text(tmp_path):
    data = make_dataset(tmp_path / "data", ("train",))
    some = next((data / "train/class_0").iterdir())
    with contextlib.suppress(OSError):
        os.rename(some, os.fsencode(data / "train/class_0") + b"/\xff\xfe.png")
    folder = experiment(tmp_path / "e", num_epochs=1)
    done = shell("train", "--data_dir", data, "--model_dir", folder)
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode == 0:
        done = shell("evaluate", "--data_dir", data, "--model_dir", folder, "--split", "valid")
        assert done.returncode == 0, done.stderr


def test_nothing_listens_on_a_port(data, tmp_path):
    folder = experiment(tmp_path / "e", num_epochs=300, observers=["tensorboard"])
    process = train(data, folder)
    wait_for(folder / "history.json", process)
    held = {os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir() if path.is_symlink()}
    listening = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process.pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening.add(f"socket:[{fields[9]}]")
    process.kill(), process.communicate()
    assert not held & listening


# --- memory, clocks -------------------------------------------------------------------------------------------


def test_too_little_memory_is_said_with_the_batch_size(data, tmp_path):
    folder = experiment(tmp_path / "e", batch_size=32, arch_args={"n_filters": 4096}, num_epochs=1)
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)); sys.path.insert(0, sys.argv.pop(1))\n"
    limit += "import train, utils; utils.run_script(train.main)"
    words = [sys.executable, "-c", limit, str(ROOT), "--data_dir", str(data), "--model_dir", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert "memory" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_clock_that_jumps_back_changes_nothing(data, tmp_path, monkeypatch):
    plain, jumpy = experiment(tmp_path / "plain"), experiment(tmp_path / "jumpy")
    assert call("train", "--data_dir", data, "--model_dir", plain)[0] == 0
    real, jumps = time.time, iter(range(0, 10**9, 3600))
    monkeypatch.setattr(time, "time", lambda: real() - next(jumps))
    assert call("train", "--data_dir", data, "--model_dir", jumpy)[0] == 0
    assert weights(plain) == weights(jumpy)
    assert all(row["seconds"] >= 0 for row in json.loads((jumpy / "history.json").read_text()))


# --- the state, whatever the workers ----------------------------------------------------------------------------


def test_a_resume_may_have_other_workers(data, tmp_path):
    values = {"num_epochs": 6, "augment": ["HorizontalFlip", "RandomGamma"], "mixup": 0.3}
    whole, folder = experiment(tmp_path / "whole", **values), experiment(tmp_path / "e", **values)
    assert call("train", "--data_dir", data, "--model_dir", whole, "--num_workers=0")[0] == 0
    for workers in (1, 2, 0):
        process = train(data, folder, f"--num_workers={workers}")
        with contextlib.suppress(AssertionError):
            wait_for(folder / "history.json", process)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert call("train", "--data_dir", data, "--model_dir", folder, "--num_workers=4")[0] == 0
    assert weights(folder) == weights(whole)
    assert history(folder) == history(whole)


def test_evaluation_leaves_the_trained_files_alone(data, tmp_path):
    folder = experiment(tmp_path / "e")
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    before = tree(folder)
    assert call("evaluate", "--data_dir", data, "--model_dir", folder)[0] == 0
    after = tree(folder)
    assert {name: after[name] for name in before} == before
    assert np.isfinite(json.loads((folder / "metrics_test_best.json").read_text())["loss"])
