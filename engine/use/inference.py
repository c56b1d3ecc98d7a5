"""A trained net, ready to be used: what evaluate and predict share. Always in fp32, so that they agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import params as params_module
from engine.checkpoint import read_weights
from engine.precision import keep_freed_memory, pick_device
from folder.folder import Folder
from folder.locate import find_trained_weights, weights_name
from folder.provenance import localise, references
from include import CODE, METRICS_BEST, METRICS_LAST
from params import Params
from utils import UserError

OF_THE_NET = ("arch", "arch_args", "ps", "im_sz", "resize", "n_clas")


@dataclass(frozen=True)
class Trained:
    """A net in evaluation mode on `device`, and what its weights file says of it."""

    net: nn.Module
    path: Path
    which: str  # best, last or the name of the file
    epoch: int | None
    kit: dict[str, Any]
    device: str
    averaged: Callable[..., Tensor]  # (net, images, tta) -> logits
    tta: str

    @property
    def classes(self) -> list[str]:
        return self.kit["classes"]

    @property
    def pinned(self) -> dict[str, Any]:
        """What the weights need of their images, in the shape that fetch_dataloader takes."""
        return {"classes": self.classes, "im_sz": self.kit["im_sz"], **self.kit["normalisation"]}

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K) logits, float64 on the CPU; the log of predict() where the net has one."""
        own = getattr(self.net, "predict", None)
        with torch.inference_mode():
            values = self.averaged(own or self.net, images, self.tta).float().cpu().double()
            return values.clamp_min(1e-300).log() if own else values


def with_its_code(folder: Path, values: dict[str, Any]) -> Params:
    """Params whose "file.py:Name" values are the copies that ran, when all of these are there."""
    frozen = folder / CODE / "experiment"
    names = references(values)
    if names and all((frozen / Path(name).name).is_file() for name in names):
        return params_module.from_resolved(localise(values), frozen)
    return params_module.from_resolved(values, folder)


def load_trained(
    folder: Folder,
    restore_file: str,
    make_net: Callable[..., tuple[nn.Module, str]],
    averaged: Callable[..., Tensor],
    overrides: dict[str, Any],
) -> Trained:
    """The net that `restore_file` (best, last or a path) holds the weights of.

    `averaged`: (net, images, tta) -> logits. Of `overrides`, device, cuda and tta count.
    UserError when the folder is not trained, or the file is damaged.
    """
    path = find_trained_weights(folder, restore_file)
    tensors, kit = read_weights(path)
    missing = {*OF_THE_NET, "classes", "normalisation"} - kit.keys()
    if missing:
        raise UserError(f"{path}: its metadata lack {', '.join(sorted(missing))}; it was not written by this version")
    values = {key: kit[key] for key in OF_THE_NET}
    values |= {"tta": kit.get("tta", "none")}
    values |= {key: overrides[key] for key in ("device", "cuda", "tta") if key in overrides}
    params = with_its_code(folder.path, values)
    place = pick_device(params)
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    net, _ = make_net(params, len(kit["classes"]), weights=tensors)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise UserError(f"{path}: these weights are not of the net {params.arch!r} as it is now: {reason}") from None
    layout = torch.preserve_format if place == "mps" else torch.channels_last
    net = net.to(place, memory_format=layout).eval()  # type: ignore
    name, epoch = weights_name(restore_file), best_epoch(folder, restore_file)
    return Trained(net, path, name, epoch, kit, place, averaged, params.tta)


def best_epoch(folder: Folder, restore_file: str) -> int | None:
    """The epoch that the weights are of, as far as the folder knows."""
    name = {"best": METRICS_BEST, "last": METRICS_LAST}.get(restore_file)
    return (folder.read(name, {}) or {}).get("epoch") if name else None


def parameters(folder: Folder, overrides: dict[str, Any], trained: Trained) -> Params:
    """What ran, with `overrides`. UserError for one that would describe another net than was trained."""
    free = ("metrics", "bs_test", "num_workers", "cache", "threads", "on_bad_image", "device", "cuda", "tta")
    for key in overrides:
        if key not in free:
            raise UserError(f"--{key}: it is part of what was trained; possible here: {', '.join(free)}")
    values = {key: value for key, value in folder.resolved().items() if key != "pinned"} | overrides
    values |= {"resize": trained.kit["resize"]}
    return with_its_code(folder.path, values)
