"""Precision, memory layout, threads and fused optimizers, chosen for the kind of machine, never by a timing."""

import contextlib
import ctypes
import hashlib
import math
import os
import platform
from dataclasses import asdict, dataclass
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, cross_entropy, linear

from engine.distributed import World
from params import Params
from utils import UserError, cache_home, num_cores

M_TRIM_THRESHOLD = -1  # malloc.h
M_MMAP_MAX = -4
# Steps of some 10 ms each; compiling takes half a minute to a minute, once per net and machine.
STEPS_WORTH_COMPILING = 10_000
NUM_CHANNELS = 32  # with fewer than 16, or on fewer than 8 x 8 px, oneDNN's instruction sets give the same bits
SIZE = 8  # px
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Choice:
    """The value of everything that was `auto`. Pinned at the first start: each can change the last bits of a result."""

    device: str
    precision: str
    channels_last: bool
    fused: bool
    compile: bool
    threads: int

    def describe(self) -> str:
        """One line for the log."""
        layout = "channels_last" if self.channels_last else "contiguous"
        extras = ("fused optimizer, " if self.fused else "") + ("compiled, " if self.compile else "")
        return f"{self.device}, {self.precision}, {layout}, {extras}{self.threads} threads"

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context in which the net computes."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=DTYPES[self.precision])

    def to_dict(self) -> dict[str, str | bool | int]:
        return asdict(self)


def machine_kind(choice: Choice, params: Params, device: str, world: World) -> dict[str, str]:
    """The properties of the machine that decide the last bits of a result.

    "arithmetic", the hash of all ranks (or those of each in turn, where they differ), is left out on a GPU, unless
    params.deterministic asks for results that can be repeated to the last bit.
    """
    # what can be asked
    features = torch.cpu.get_capabilities()
    extras = [name for name in ("avx512_bf16", "amx_bf16") if features.get(name)]
    cpu = " ".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *extras])
    kind = {"torch": str(torch.__version__), "cpu": cpu}
    if device.startswith("cuda"):
        kind["gpu"] = torch.cuda.get_device_name(torch.device(device))
    # what must be tried
    if device == "cpu" or params.deterministic:
        hashes = world.gather(hash_arithmetic(choice, device))
        kind["arithmetic"] = hashes[0] if len(set(hashes)) == 1 else " ".join(hashes)
    return kind


def hash_arithmetic(choice: Choice, device: str) -> str:
    """Hash of a convolution, batch norm, product, exponentials and sums, forward and backward, as `choice` computes.

    Takes milliseconds and no random numbers. Call it after `precision.apply`: the number of threads counts.
    """
    layout = torch.channels_last if choice.channels_last else torch.contiguous_format
    images = _wave(4, NUM_CHANNELS, SIZE, SIZE, device=device).contiguous(memory_format=layout).requires_grad_()
    kernel = _wave(NUM_CHANNELS, NUM_CHANNELS, 3, 3, device=device).contiguous(memory_format=layout).requires_grad_()
    matrix = _wave(10, NUM_CHANNELS * SIZE * SIZE, device=device).requires_grad_()
    # forward, as a net computes
    with choice.autocast():
        features = batch_norm(conv2d(images, kernel, padding=1), None, None, training=True)
        logits = linear(features.flatten(1), matrix)  # (4, 10)
    loss = cross_entropy(logits.float(), torch.arange(4, device=device))
    # backward
    gradients = torch.autograd.grad(loss, [images, kernel, matrix])
    # every bit of the results
    digest = hashlib.blake2b(digest_size=8)
    for tensor in (features, logits, loss, *gradients):
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _wave(*shape: int, device: str) -> Tensor:
    """Numbers of both signs between 2^-13 and 1, the same everywhere.

    Numbers of one size would add up without rounding, so that the order of a sum would not show.
    """
    count = torch.arange(math.prod(shape))
    sizes = torch.ones_like(count) << (5 * count % 13)
    return ((0.7 * count) % 2 - 1).mul(0.61).div(sizes).view(shape).to(device, torch.float32)


def pick_device(params: Params, local_rank: int = 0) -> str:
    """ "cpu", "cuda:N" or "mps". UserError when the device that `params` names is not available."""
    is_available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    wanted = params.device
    if wanted == "auto":
        wanted = next(name for name in ("cuda", "mps", "cpu") if is_available[name]) if params.cuda else "cpu"
    if not is_available[wanted]:
        possible = [name for name in is_available if is_available[name]]
        raise UserError(f"device: {wanted!r} is not available here; possible: {possible}")
    return f"cuda:{local_rank}" if wanted == "cuda" else wanted


def _has_fast_bf16(device: str) -> bool:
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= (8, 0)
    features = torch.cpu.get_capabilities()
    return device == "cpu" and bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def choose(params: Params, device: str, num_steps: float, num_local: int = 1) -> Choice:
    """Fill in precision, compile and threads for this kind of machine.

    `num_steps`: of the run as it was first asked for. `num_local`: number of processes of the run on this machine.
    """
    precision = params.precision
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(device) else "fp16" if device.startswith("cuda") else "fp32"
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
    """Under `auto` true on a GPU when the run is long enough to repay it. CPUs gain nothing (benchmarks/RESULTS.md)."""
    if params.compile != "auto":
        return bool(params.compile)
    has_compiler = find_spec("triton") is not None
    return device.startswith("cuda") and has_compiler and num_steps >= STEPS_WORTH_COMPILING


def apply(choice: Choice, params: Params) -> None:
    """Make the process-wide settings: memory, threads, determinism, TF32."""
    keep_freed_memory()
    torch.set_num_threads(choice.threads)
    is_deterministic = bool(params.deterministic)
    if is_deterministic != torch.are_deterministic_algorithms_enabled():  # setting it imports the compiler: 1.7 s
        torch.use_deterministic_algorithms(is_deterministic, warn_only=False)
    torch.backends.cudnn.deterministic = is_deterministic
    torch.backends.cudnn.benchmark = not is_deterministic
    if choice.device == "cuda" and not is_deterministic:
        torch.set_float32_matmul_precision("high")  # TF32 for the operations that autocast leaves in fp32
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]  (a property of the module's class)


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones, instead of returning it to the system each step.

    A step on the CPU takes 0.65 to 0.8 of the time, with the same peak of memory. Without glibc this does nothing.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # bytes
        mallopt(M_MMAP_MAX, 0)


def place(net: torch.nn.Module, choice: Choice, device: str) -> torch.nn.Module:
    """Move the net to its device, in the chosen memory layout."""
    layout = torch.channels_last if choice.channels_last else torch.contiguous_format
    return net.to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]  (the stubs lack this overload)


def make_scaler(choice: Choice) -> "torch.amp.GradScaler | None":
    """The loss scaler that fp16 needs; None for other precisions."""
    return torch.amp.GradScaler(choice.device) if choice.precision == "fp16" else None


class Compiled(torch.nn.Module):
    """A net compiled for batches of `batch_size` images. Other batches, e.g. the last of an epoch, run uncompiled.

    One program per image size. The compiled programs stay in the user's cache folder for the next start.
    """

    def __init__(self, net: torch.nn.Module, batch_size: int):
        super().__init__()
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_home() / "inductor"))
        self.net = net
        self.batch_size = batch_size
        self.compiled = torch.compile(net, dynamic=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        forward = self.compiled if len(images) == self.batch_size else self.net
        return forward(images)


def compile_net(net: torch.nn.Module, choice: Choice, batch_size: int) -> torch.nn.Module:
    """The net, compiled where `choice` says so."""
    return Compiled(net, batch_size) if choice.compile else net
