"""The kind of machine that a run is on: everything about it that decides the last bits of a result.

Switches that no query shows change them, too, e.g. the environment variable ONEDNN_MAX_CPU_ISA. So the machine's
arithmetic is tried out on a tiny computation.
"""

import hashlib
import math
import platform

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, cross_entropy, linear

from engine.distributed import World
from engine.precision import Choice
from params import Params

NUM_CHANNELS = 32  # with fewer than 16, or on fewer than 8 x 8 px, oneDNN's instruction sets give the same bits
SIZE = 8  # px


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
