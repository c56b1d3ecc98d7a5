"""A trained net, ready for use by evaluate and predict. Always in fp32, so that both give the same results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
from utils import JsonObject, UserError

NET_KEYS = ("arch", "arch_args", "ps", "im_sz", "resize", "n_clas")


@dataclass(frozen=True)
class Trained:
    """A net in evaluation mode on `device`, and the metadata of its weights file."""

    net: nn.Module
    path: Path
    name: str  # best, last or the name of the file
    epoch: int | None
    kit: JsonObject
    device: str
    average_views: Callable[..., Tensor]  # (net, images, tta) -> logits
    tta: str

    @property
    def classes(self) -> list[str]:
        return self.kit["classes"]

    @property
    def pinned(self) -> JsonObject:
        """The classes, image size and normalisation of the training, in the form that fetch_dataloader takes."""
        return {"classes": self.classes, "im_sz": self.kit["im_sz"], **self.kit["normalisation"]}

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K) logits, float64 on the CPU; the log of predict() where the net has one."""
        predict = getattr(self.net, "predict", None)
        with torch.inference_mode():
            values = self.average_views(predict or self.net, images, self.tta).float().cpu().double()
            return values.clamp_min(1e-300).log() if predict else values


def params_with_frozen_files(folder: Path, values: JsonObject) -> Params:
    """Params whose "file.py:Name" values name the copies in record/code/, when all of these are there."""
    frozen = folder / CODE / "experiment"
    names = references(values)
    if names and all((frozen / Path(name).name).is_file() for name in names):
        return params_module.from_resolved(localise(values), frozen)
    return params_module.from_resolved(values, folder)


def load_trained(
    folder: Folder,
    restore_file: str,
    make_net: Callable[..., tuple[nn.Module, str]],
    average_views: Callable[..., Tensor],
    overrides: JsonObject,
) -> Trained:
    """The net with the weights that `restore_file` (best, last or a path) names.

    `average_views`: (net, images, tta) -> logits. Of `overrides`, only device, cuda and tta are used.
    UserError when the folder is not trained, or the file is damaged.
    """
    path = find_trained_weights(folder, restore_file)
    tensors, kit = read_weights(path)
    missing = {*NET_KEYS, "classes", "normalisation"} - kit.keys()
    if missing:
        raise UserError(f"{path}: its metadata lack {', '.join(sorted(missing))}; it was not written by this version")
    # The net that the metadata describe, on the device asked for, in fp32.
    values = {key: kit[key] for key in NET_KEYS}
    values |= {"tta": kit.get("tta", "none")}
    values |= {key: overrides[key] for key in ("device", "cuda", "tta") if key in overrides}
    params = params_with_frozen_files(folder.path, values)
    device = pick_device(params)
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    net, _ = make_net(params, len(kit["classes"]), weights=tensors)
    # Its weights.
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise UserError(f"{path}: these weights do not fit the net {params.arch!r} as it is now: {reason}") from None
    layout = torch.preserve_format if device == "mps" else torch.channels_last
    net = net.to(device, memory_format=layout).eval()  # pyright: ignore[reportCallIssue]  (the stubs lack this overload)
    return Trained(
        net=net,
        path=path,
        name=weights_name(restore_file),
        epoch=find_epoch(folder, restore_file),
        kit=kit,
        device=device,
        average_views=average_views,
        tta=params.tta,
    )


def find_epoch(folder: Folder, restore_file: str) -> int | None:
    """The epoch of the best or last weights; None when the folder does not say, and for other files."""
    name = {"best": METRICS_BEST, "last": METRICS_LAST}.get(restore_file)
    return (folder.read(name, {}) or {}).get("epoch") if name else None


def load_params(folder: Folder, overrides: JsonObject, trained: Trained) -> Params:
    """The parameters that ran, with `overrides`. UserError for an override that would describe another net."""
    free = ("metrics", "bs_test", "num_workers", "cache", "threads", "on_bad_image", "device", "cuda", "tta")
    for key in overrides:
        if key not in free:
            raise UserError(
                f"--{key} belongs to the trained net and cannot be changed; possible here: {', '.join(free)}"
            )
    values = {key: value for key, value in folder.resolved().items() if key != "pinned"} | overrides
    values |= {"resize": trained.kit["resize"]}
    return params_with_frozen_files(folder.path, values)
