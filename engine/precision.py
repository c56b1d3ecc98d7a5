"""Precision, memory layout, threads and fused optimizers, chosen for the kind of machine, never by a timing."""

import contextlib
import ctypes
import os
import platform
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch

from params import Params
from utils import UserError, cache_home, num_cores

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
STEPS_WORTH_COMPILING = (
    10_000  # of some 10 ms each; compiling takes half a minute to a minute, once per net and machine
)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Choice:
    """What `auto` became. Pinned at the first start, because each of these can change the last bits."""

    device: str
    precision: str
    channels_last: bool
    fused: bool
    compile: bool
    threads: int

    def describe(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        extras = ("fused optimizer, " if self.fused else "") + ("compiled, " if self.compile else "")
        return f"{self.device}, {self.precision}, {layout}, {extras}{self.threads} threads"

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=DTYPES[self.precision])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def machine_kind(device: str) -> dict[str, str]:
    """What of the machine decides the last bits of a result."""
    features = torch.cpu.get_capabilities()
    extras = [name for name in ("avx512_bf16", "amx_bf16") if features.get(name)]
    cpu = " ".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *extras])
    kind = {"torch": str(torch.__version__), "cpu": cpu}
    if device.startswith("cuda"):
        kind["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return kind


def pick_device(params: Params, local_rank: int = 0) -> str:
    """ "cpu", "cuda:N" or "mps". UserError when the device asked for by name is not there."""
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    wanted = params.device
    if wanted == "auto":
        wanted = next(name for name in ("cuda", "mps", "cpu") if has[name]) if params.cuda else "cpu"
    if not has[wanted]:
        raise UserError(f"device: {wanted!r} is not available here; possible: {[n for n in has if has[n]]}")
    return f"cuda:{local_rank}" if wanted == "cuda" else wanted


def _fast_bf16(device: str) -> bool:
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= (8, 0)
    features = torch.cpu.get_capabilities()
    return device == "cpu" and bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def choose(params: Params, device: str, num_steps: float, num_local: int = 1) -> Choice:
    """What `precision`, `compile` and `threads` mean on this kind of machine.

    `num_steps`: of the run as it was first asked for. `num_local`: processes of the run on this machine.
    """
    precision = params.precision
    if precision == "auto":
        precision = "bf16" if _fast_bf16(device) else "fp16" if device.startswith("cuda") else "fp32"
    if precision == "fp16" and device == "cpu":
        raise UserError("precision: 'fp16' needs a GPU; possible on a CPU: 'auto', 'fp32', 'bf16'")
    return Choice(
        device=device.partition(":")[0],
        precision=precision,
        channels_last=device != "mps",
        fused=device != "mps",
        compile=_is_compiled(params, device, num_steps),
        threads=params.threads or max(1, num_cores() // num_local),
    )


def _is_compiled(params: Params, device: str, num_steps: float) -> bool:
    """`auto`: on a GPU, when the run is long enough to repay it. On CPUs it gained nothing (benchmarks/RESULTS.md)."""
    if params.compile != "auto":
        return bool(params.compile)
    has_compiler = find_spec("triton") is not None
    return device.startswith("cuda") and has_compiler and num_steps >= STEPS_WORTH_COMPILING


def apply(choice: Choice, params: Params) -> None:
    """Process-wide settings: threads, determinism, TF32."""
    keep_freed_memory()
    torch.set_num_threads(choice.threads)
    deterministic = bool(params.deterministic)
    if deterministic != torch.are_deterministic_algorithms_enabled():  # setting it imports the compiler: 1.7 s
        torch.use_deterministic_algorithms(deterministic, warn_only=False)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    if choice.device == "cuda" and not deterministic:
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
    torch.utils.deterministic.fill_uninitialized_memory = False


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors, not give it back and fetch it page by page in each step.

    A step on the CPU takes 0.65 to 0.8 of the time; the peak is the same. Elsewhere than on glibc it does nothing.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # bytes
        mallopt(M_MMAP_MAX, 0)


def place(net: torch.nn.Module, choice: Choice, device: str) -> torch.nn.Module:
    """The net on its device, in the chosen memory layout."""
    return net.to(device, memory_format=torch.channels_last if choice.channels_last else torch.contiguous_format)


def make_scaler(choice: Choice) -> "torch.amp.GradScaler | None":
    """Loss scaling, needed by fp16 alone."""
    return torch.amp.GradScaler(choice.device) if choice.precision == "fp16" else None


class Compiled(torch.nn.Module):
    """A net compiled for batches of `rows` images; any other, such as the last of an epoch, takes it as it is.

    One program per image size. What was compiled stays in the user's cache folder for the next start.
    """

    def __init__(self, net: torch.nn.Module, rows: int):
        super().__init__()
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_home() / "inductor"))
        self.net, self.rows = net, rows
        self.fast: Any = torch.compile(net, dynamic=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.fast if len(images) == self.rows else self.net)(images)


def compiled(net: torch.nn.Module, choice: Choice, rows: int) -> torch.nn.Module:
    return Compiled(net, rows) if choice.compile else net
