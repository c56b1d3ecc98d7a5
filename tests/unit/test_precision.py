"""What `auto` becomes on each kind of machine, as a table; and the settings that follow from it."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kit import ROOT
from torch import nn

from engine import precision
from engine.distributed import World
from engine.precision import STEPS_WORTH_COMPILING, Choice, hash_arithmetic, machine_kind
from params import Params
from utils import UserError

OLD_CPU = {"avx2": True}
NEW_CPU = {"avx512_bf16": True}
AMX_CPU = {"amx_bf16": True, "avx512_bf16": False}


@pytest.fixture
def machine(monkeypatch):
    """A function that pretends to be on a machine with these CPU features, GPUs and compilers."""

    def pretend(features=OLD_CPU, capability=(8, 0), cores=6, cuda=False, mps=False, compiler=True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(precision, "num_cores", lambda: cores)
        monkeypatch.setattr(precision, "find_spec", lambda name: object() if compiler else None)

    return pretend


@pytest.mark.parametrize(
    ("asked", "device", "features", "capability", "chosen"),
    [
        ("auto", "cpu", OLD_CPU, (0, 0), "fp32"),
        ("auto", "cpu", NEW_CPU, (0, 0), "bf16"),
        ("auto", "cpu", AMX_CPU, (0, 0), "bf16"),
        ("auto", "mps", NEW_CPU, (0, 0), "fp32"),
        ("auto", "cuda:0", OLD_CPU, (8, 0), "bf16"),
        ("auto", "cuda:0", OLD_CPU, (9, 0), "bf16"),
        ("auto", "cuda:0", NEW_CPU, (7, 5), "fp16"),
        ("fp32", "cuda:0", NEW_CPU, (8, 0), "fp32"),
        ("fp16", "cuda:0", NEW_CPU, (8, 0), "fp16"),
        ("bf16", "cpu", OLD_CPU, (0, 0), "bf16"),
    ],
)
def test_precision(machine, asked, device, features, capability, chosen):
    machine(features=features, capability=capability)
    assert precision.choose(Params(precision=asked), device, 1).precision == chosen


def test_fp16_needs_a_gpu(machine):
    machine()
    with pytest.raises(UserError, match="fp16.*needs a GPU"):
        precision.choose(Params(precision="fp16"), "cpu", 1)


@pytest.mark.parametrize(
    ("device", "name", "channels_last", "fused"),
    [("cpu", "cpu", True, True), ("cuda:1", "cuda", True, True), ("mps", "mps", False, False)],
)
def test_layout_and_optimizer(machine, device, name, channels_last, fused):
    machine()
    choice = precision.choose(Params(), device, 1)
    assert (choice.device, choice.channels_last, choice.fused) == (name, channels_last, fused)


@pytest.mark.parametrize(
    ("asked", "device", "steps", "compiler", "compiled"),
    [
        ("auto", "cuda:0", STEPS_WORTH_COMPILING, True, True),
        ("auto", "cuda:0", STEPS_WORTH_COMPILING - 1, True, False),
        ("auto", "cuda:0", STEPS_WORTH_COMPILING, False, False),
        ("auto", "cpu", 100 * STEPS_WORTH_COMPILING, True, False),
        ("auto", "mps", 100 * STEPS_WORTH_COMPILING, True, False),
        (1, "cpu", 1, False, True),
        (0, "cuda:0", 100 * STEPS_WORTH_COMPILING, True, False),
    ],
)
def test_compile(machine, asked, device, steps, compiler, compiled):
    machine(compiler=compiler)
    assert precision.choose(Params(compile=asked), device, steps).compile is compiled


@pytest.mark.parametrize(
    ("asked", "cores", "num_local", "threads"),
    [(None, 6, 1, 6), (None, 6, 2, 3), (None, 6, 4, 1), (None, 2, 8, 1), (5, 6, 2, 5)],
)
def test_threads(machine, asked, cores, num_local, threads):
    machine(cores=cores)
    assert precision.choose(Params(threads=asked), "cpu", 1, num_local).threads == threads


@pytest.mark.parametrize(
    ("asked", "cuda", "mps", "accelerated", "device"),
    [
        ("auto", True, True, 1, "cuda:3"),
        ("auto", False, True, 1, "mps"),
        ("auto", False, False, 1, "cpu"),
        ("auto", True, True, 0, "cpu"),
        ("cpu", True, True, 1, "cpu"),
        ("cuda", True, False, 0, "cuda:3"),
        ("mps", False, True, 0, "mps"),
    ],
)
def test_device(machine, asked, cuda, mps, accelerated, device):
    machine(cuda=cuda, mps=mps)
    assert precision.pick_device(Params(device=asked, cuda=accelerated), local_rank=3) == device


def test_a_device_that_is_not_there_is_said(machine):
    machine(mps=True)
    with pytest.raises(UserError, match=r"device: 'cuda' is not available here; possible: \['mps', 'cpu'\]"):
        precision.pick_device(Params(device="cuda"))


def choice(**changes):
    return Choice(
        **(
            {"device": "cpu", "precision": "fp32", "channels_last": True, "fused": True, "compile": False, "threads": 2}
            | changes
        )
    )


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_net_computes_in_the_precision_chosen(name, dtype):
    with choice(precision=name).autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


def test_a_choice_in_words_and_as_json():
    assert choice().describe() == "cpu, fp32, channels_last, fused optimizer, 2 threads"
    other = choice(device="cuda", precision="bf16", channels_last=False, fused=False, compile=True)
    assert other.describe() == "cuda, bf16, contiguous, compiled, 2 threads"
    assert list(other.to_dict()) == ["device", "precision", "channels_last", "fused", "compile", "threads"]


def test_only_fp16_scales_its_loss():
    scalers = {name: precision.make_scaler(choice(precision=name)) for name in ("fp32", "bf16", "fp16")}
    assert scalers["fp32"] is None
    assert scalers["bf16"] is None
    assert isinstance(scalers["fp16"], torch.amp.GradScaler)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_net_is_placed_in_its_layout(channels_last):
    net = precision.place(nn.Conv2d(3, 4, 3), choice(channels_last=channels_last), "cpu")
    assert net.weight.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_settings_of_the_process(monkeypatch):
    made = {}
    monkeypatch.setattr(torch, "set_num_threads", lambda number: made.update(threads=number))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: made.update(matmul=name))
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, warn_only: made.update(deterministic=mode))
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace())
    precision.apply(choice(device="cuda", threads=3), Params(deterministic=0))
    assert made == {"threads": 3, "matmul": "high"}
    assert vars(torch.backends.cudnn) == {"deterministic": False, "benchmark": True}
    made.clear()
    precision.apply(choice(device="cuda", threads=3), Params(deterministic=1))
    assert made == {"threads": 3, "deterministic": True}
    assert vars(torch.backends.cudnn) == {"deterministic": True, "benchmark": False}


def test_the_kind_of_machine_names_what_changes_the_last_bits(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": True})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    kind = machine_kind(choice(), Params(), "cpu", World())
    assert list(kind) == ["torch", "cpu", "arithmetic"]
    assert kind["torch"] == torch.__version__
    assert kind["cpu"].endswith(" amx_bf16")
    assert "avx512_bf16" not in kind["cpu"]
    on_gpu = machine_kind(choice(device="cuda"), Params(), "cuda:1", World())
    assert on_gpu["gpu"] == "GPU 1"
    assert "arithmetic" not in on_gpu, "nothing promises the same bits without `deterministic`"


def test_arithmetic_is_a_function_of_precision_layout_and_nothing_else():
    before = torch.get_rng_state()
    plain = hash_arithmetic(choice(), "cpu")
    assert plain == hash_arithmetic(choice(), "cpu")
    assert plain != hash_arithmetic(choice(precision="bf16"), "cpu")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_bf16"), reason="no bf16 instructions to switch off")
def test_arithmetic_shows_emulated_bf16():
    """Only numbers of many sizes show it: sums of numbers of one size round nowhere."""
    script = "from test_precision import *; print(hash_arithmetic(choice(precision='bf16', threads=1), 'cpu'))"
    path = f"{ROOT}{os.pathsep}{Path(__file__).parent}{os.pathsep}{ROOT / 'tests/tools'}"

    def run(**switches):
        env = {**os.environ, "PYTHONPATH": path, **switches}
        return subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
        ).stdout

    assert len(run()) == 17
    assert run() == run()
    assert run() != run(ONEDNN_MAX_CPU_ISA="AVX512_CORE")


def test_ranks_that_differ_are_recorded_one_by_one():
    def kind(*hashes):
        world = SimpleNamespace(gather=lambda own: list(hashes))
        return machine_kind(choice(), Params(), "cpu", world)["arithmetic"]

    assert kind("aa", "aa") == "aa"
    assert kind("aa", "bb") == "aa bb"


def test_a_compiled_net_leaves_other_batch_sizes_to_the_plain_one(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "compile", lambda net, dynamic: lambda images: ("compiled", dynamic))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    plain = nn.Identity()
    assert precision.compile_net(plain, choice(), 4) is plain
    net = precision.compile_net(plain, choice(compile=True), 4)
    assert net(torch.ones(4, 1)) == ("compiled", False)
    assert torch.equal(net(torch.ones(3, 1)), torch.ones(3, 1))
