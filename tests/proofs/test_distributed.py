"""Several processes of one run: the same metrics as one, on one machine and on two, and after one of them died."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from kit import ROOT, call, experiment, history, wait_for, weights
from safetensors.torch import load_file

from engine import precision
from engine.distributed import World, find_world, name_attempt, rendezvous_seconds
from engine.loop import train_step
from params import Params
from utils import UserError

LAUNCHER = [sys.executable, "-m", "torch.distributed.run"]
# No batch norm, which looks at the images of one process alone.
PLAIN = {"arch": "lenet", "arch_args": {}, "precision": "fp32", "batch_size": 20, "im_sz": 16}


def torchrun(data: Path, folder: Path, *flags: str, num: int = 2) -> list[str]:
    script = [str(ROOT / "train.py"), "--data_dir", str(data), "--model_dir", str(folder)]
    return [*LAUNCHER, "--nproc_per_node", str(num), "--standalone", *flags, *script]


def run(command: list[str]) -> str:
    """What a command printed that had to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def pid_of_rank(rank: int, folder: Path) -> int:
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            words = (path.parent / "cmdline").read_bytes()
            if f"RANK={rank}".encode() in path.read_bytes().split(b"\0") and str(folder).encode() in words:
                return int(path.parent.name)
    raise LookupError(rank)


VALUES = {"num_epochs": 10, "ema": 0.9, "checkpoint_minutes": 0.0003}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Two processes that nobody disturbed."""
    folder = experiment(tmp_path_factory.mktemp("whole") / "e", **VALUES)
    run(torchrun(data, folder))
    return folder


def test_when_a_rank_dies_the_others_say_so_and_the_same_command_continues(data, whole, tmp_path):
    folder = experiment(tmp_path / "e", **VALUES)
    process = subprocess.Popen(torchrun(data, folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(folder / "history.json", process)
    os.kill(pid_of_rank(1, folder), signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0, printed[-3000:]
    assert "another process of this run ended" in printed, printed[-3000:]
    assert "continuing at epoch" in run(torchrun(data, folder))
    assert weights(folder) == weights(whole)
    assert history(folder) == history(whole)


def test_a_signal_to_one_rank_saves_the_run_of_all(data, whole, tmp_path):
    """The ranks agree: all stop after the same step, and the state holds what each of them had."""
    folder = experiment(tmp_path / "e", **VALUES)
    process = subprocess.Popen(torchrun(data, folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(folder / "history.json", process)
    os.kill(pid_of_rank(1, folder), signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    status = json.loads((folder / "record/status.json").read_text())
    assert status["state"] == "interrupted", printed[-3000:]
    assert "SIGTERM: saved at step" in status["message"]
    assert "another process of this run ended" not in printed, printed[-3000:]
    run(torchrun(data, folder))
    assert weights(folder) == weights(whole)
    assert history(folder) == history(whole)


def test_torchrun_starts_it_again_by_itself(data, whole, tmp_path):
    folder = experiment(tmp_path / "e", **VALUES)
    command = torchrun(data, folder, "--max-restarts", "2")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(folder / "history.json", process)
    os.kill(pid_of_rank(1, folder), signal.SIGKILL)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed[-3000:]
    assert "continuing at epoch" in printed, printed[-3000:]
    assert weights(folder) == weights(whole)
    assert history(folder) == history(whole)


def test_metrics_do_not_depend_on_the_number_of_processes(data, tmp_path):
    """35 validation images in batches of 5 per process: the last batch of 2 and of 3 processes has padding."""
    odd = tmp_path / "odd"
    shutil.copytree(data, odd)
    next(path for path in sorted((odd / "valid").rglob("*")) if path.is_file()).unlink()
    rows = {}
    for num in (1, 2, 3):
        values = {
            **PLAIN,
            "num_epochs": 1,
            "learning_rate": 1e-12,
            "wd": 0,
            "bs_test": 5,
            "metrics": ["accuracy", "f1"],
        }
        folder = experiment(tmp_path / str(num), **values)
        run(torchrun(odd, folder, num=num))
        rows[num] = history(folder)[0]
    for num in (2, 3):
        assert rows[num]["val_accuracy"] == rows[1]["val_accuracy"]
        assert rows[num]["val_f1"] == rows[1]["val_f1"]
        assert rows[num]["train_accuracy"] == rows[1]["train_accuracy"]
        assert rows[num]["val_loss"] == pytest.approx(rows[1]["val_loss"], rel=1e-6)


def test_frozen_layers_on_two_processes_train_later(data, tmp_path):
    folder = experiment(tmp_path / "e", **PLAIN, num_epochs=2, freeze=[[2, 1]])
    run(torchrun(data, folder))
    rows = history(folder)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["train_loss"] < rows[0]["train_loss"]


def test_gradients_are_those_of_one_process(data, tmp_path):
    """A batch over two processes and two micro-batches each, nearly equal: the same weights up to rounding."""
    values = {**PLAIN, "num_epochs": 2, "batch_size": 18, "learning_rate": 0.02}
    alone, two = experiment(tmp_path / "alone", **values), experiment(tmp_path / "two", **values, accumulate=2)
    assert call("train", "--data_dir", data, "--model_dir", alone)[0] == 0
    run(torchrun(data, two))
    ours, theirs = (load_file(folder / "weights/last.safetensors") for folder in (alone, two))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.fixture
def group(tmp_path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_gradients_travel_once_per_step(group):
    """Each bucket is reduced in the last micro-batch alone."""
    net = torch.nn.Linear(6, 3)
    forward, travelled = torch.nn.parallel.DistributedDataParallel(net), []

    def note(state, bucket):
        travelled.append(len(travelled))
        done: torch.futures.Future = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    forward.register_comm_hook(None, note)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    batch = (torch.ones(2, 6), torch.zeros(2, dtype=torch.long), torch.arange(2), torch.ones(2))
    given = SimpleNamespace(
        params=SimpleNamespace(seed=0, grad_clip=None),
        world=World(0, 2),
        autocast=contextlib.nullcontext,
        metrics={},
        forward=forward,
        optimizer=optimizer,
        train_loader=SimpleNamespace(accumulate=4),
        net=net,
        loss_fn=lambda logits, labels: torch.nn.functional.cross_entropy(logits, labels, reduction="none"),
    )
    state = SimpleNamespace(scaler=None, step=0, ema=None)
    for steps in (1, 2, 3):
        train_step(given, state, [batch] * 4, 8)  # type: ignore[arg-type]
        assert len(travelled) == steps


LATE = """
import sys, time
sys.path.insert(0, {root!r})
import torch.distributed as dist
from engine import distributed
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://{meet}", rank=rank, world_size=2)
distributed._CONTROL[:] = [dist.group.WORLD]
time.sleep(1 - rank)
world = distributed.World(rank, 2)
world.agree(7 - rank)
under_way = distributed._UNDER_WAY[0][0]
world.leave()
print(int(under_way))
"""


def test_nobody_leaves_while_numbers_travel(tmp_path):
    """Python that ends while gloo's thread holds a tensor is aborted (SIGABRT): rank 1 waits for rank 0, who is late."""
    code = LATE.format(root=str(ROOT), meet=tmp_path / "meet")
    ranks = [
        subprocess.Popen([sys.executable, "-c", code, str(rank)], stdout=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    assert [rank.communicate(timeout=60)[0].split() for rank in ranks] == [["7"], ["7"]]


def test_each_start_of_the_ranks_has_a_name_of_its_own():
    """Words of an earlier start, whose rank 2 died before it was heard, lie in the store: nobody takes them for theirs."""
    store = dist.HashStore()
    for word in ("kit/here/1", "kit/here/2"):
        store.set(word, "of the dead")
    names = []
    for _ in range(3):
        with ThreadPoolExecutor(3) as threads:
            found = set(threads.map(lambda rank: name_attempt(store, rank, 3), [0, 2, 1]))
        assert len(found) == 1
        names += found
    assert len(set(names)) == 3


def alone(data: Path, folder: Path, rank: int, seconds: float) -> subprocess.Popen:
    """One rank of two, without torchrun; the other one never comes."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(ROOT / "train.py"), "--data_dir", str(data), "--model_dir", str(folder)]
    env = {**os.environ, **place, "RENDEZVOUS_SECONDS": str(seconds)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_a_rank_that_never_comes_is_named_and_waited_for_no_longer_than_said(data, tmp_path):
    folder = experiment(tmp_path / "e")
    before = sorted(folder.iterdir())
    ranks = [alone(data, folder, rank, 8) for rank in (0, 1)]
    ends = [(rank.communicate(timeout=100)[1], rank.returncode) for rank in ranks]
    assert [code for _, code in ends] == [5, 5], ends
    assert "waiting for rank 1 of 2, at most 8 s\n" in ends[0][0]
    assert "error: rank 1 of 2 did not come within 8 s: see what" in ends[0][0]
    assert re.search(r"rank 1 is waiting for rank 0 at 127.0.0.1:\d+, at most 8 s\n", ends[1][0])
    assert re.search(r"error: rank 1 did not meet rank 0 at 127.0.0.1:\d+ within 8 s", ends[1][0])
    assert not [text for text, _ in ends if "Traceback" in text]
    assert sorted(folder.iterdir()) == before


def test_a_rank_that_is_refused_ends_the_others(data, tmp_path):
    """One of the two finds no data, after they have met."""
    folder = experiment(tmp_path / "e")
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    empty = tmp_path / "empty"
    empty.mkdir()
    ranks = []
    for rank, images in enumerate((data, empty)):
        command = [sys.executable, str(ROOT / "train.py"), "--data_dir", str(images), "--model_dir", str(folder)]
        env = {**os.environ, **place, "RANK": str(rank)}
        ranks.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    ends = [(rank.communicate(timeout=100)[1], rank.returncode) for rank in ranks]
    assert [code for _, code in ends] == [5, 2], ends
    assert "another process of this run ended" in ends[0][0]
    assert "Traceback" not in ends[0][0]


MEETS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from engine import distributed
distributed.CONNECT_SECONDS = float(sys.argv[2])
rank = int(os.environ["RANK"])
world = distributed.World(rank, 2, rank, 2)
if sys.argv[3] == "dies" and rank:
    distributed.meet(1, 2)
    os._exit(9)
world.connect("cpu")
import time, torch
time.sleep(float(sys.argv[3]) if rank else 0)
assert float(world.all_sum(torch.ones(1))) == 2
world.leave()
"""


def meet_and(what: str, seconds: float) -> list[subprocess.Popen]:
    """Two ranks that meet and connect; then rank 1 takes `what` seconds, or it dies before it has connected."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-c", MEETS, str(ROOT), str(seconds), what]
    return [
        subprocess.Popen(command, env={**os.environ, **place, "RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]


def test_a_rank_that_dies_between_meeting_and_connecting_is_noticed():
    """Nobody has a connection to it that closes; without a limit of its own, the others waited for half an hour."""
    first, second = meet_and("dies", 3)
    text = first.communicate(timeout=60)[1]
    assert second.wait(timeout=60) == 9
    assert first.returncode == 1
    assert "UserError: another process of this run ended" in text


def test_the_limit_for_connecting_is_not_one_for_the_training():
    ranks = meet_and("8", 3)
    ends = [(rank.communicate(timeout=60)[1], rank.returncode) for rank in ranks]
    assert [code for _, code in ends] == [0, 0], ends


@pytest.mark.parametrize("given", ["0", "soon", "nan"])
def test_a_wait_must_be_a_number_of_seconds(monkeypatch, given):
    monkeypatch.setenv("RENDEZVOUS_SECONDS", given)
    with pytest.raises(UserError, match="a number of seconds from 1 to 86400 is expected"):
        rendezvous_seconds()


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    names = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    world = find_world()
    assert world == World(5, 8, 1, 2)
    monkeypatch.setattr(precision, "num_cores", lambda: 6)
    assert precision.choose(Params(), "cpu", 10, world.local_size).threads == 3
    assert precision.choose(Params(), "cpu", 10, 20).threads == 1
    assert precision.choose(Params(threads=5), "cpu", 10, 2).threads == 5


# --- two machines ---------------------------------------------------------------------------------------------


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces joined by a cable: hosts 10.77.0.1 and 10.77.0.2, with a common file system."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and iproute2, for two network namespaces")
    names = [f"kit{os.getpid()}a", f"kit{os.getpid()}b"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ends = [name[3:] for name in names]
            ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def on_two_hosts(hosts: list[str], data: Path, folder: Path) -> list[subprocess.Popen]:
    started = []
    for number, name in enumerate(hosts):
        rendezvous = [
            "--rdzv_backend",
            "c10d",
            "--rdzv_endpoint",
            "10.77.0.1:29400",
            "--rdzv_id",
            "kit",
            "--rdzv_conf",
            f"is_host={int(number == 0)}",
            "--local_addr",
            f"10.77.0.{number + 1}",
        ]
        words = [*LAUNCHER, "--nnodes", "2", "--node_rank", str(number), "--nproc_per_node", "1", *rendezvous]
        words += [str(ROOT / "train.py"), "--data_dir", str(data), "--model_dir", str(folder)]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": name[3:]}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(["ip", "netns", "exec", name, *words], env=environment, **pipes))  # type: ignore
    return started


def test_two_machines_train_as_two_processes_of_one_and_end_together(hosts, data, whole, tmp_path):
    """A signal to one of them ends both; the same commands go on, to the bytes of one machine."""
    folder = experiment(tmp_path / "e", **VALUES)
    first, second = on_two_hosts(hosts, data, folder)
    wait_for(folder / "history.json", first)
    os.kill(pid_of_rank(1, folder), signal.SIGTERM)
    for process in (first, second):
        printed, _ = process.communicate(timeout=60)
        assert process.returncode != 0, printed[-3000:]
    assert json.loads((folder / "record/status.json").read_text())["state"] == "interrupted"
    time.sleep(1)  # the port
    for process in on_two_hosts(hosts, data, folder):
        printed, _ = process.communicate(timeout=150)
        assert process.returncode == 0, printed[-3000:]
    assert weights(folder) == weights(whole)
    assert history(folder) == history(whole)
