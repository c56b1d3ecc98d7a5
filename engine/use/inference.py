"""A trained net, ready for use by evaluate and predict. Always in fp32, so that both give the same results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import params as params_module
from engine.checkpoint import read_metadata, read_weights
from engine.precision import keep_freed_memory, pick_device
from folder.folder import Folder
from folder.locate import check_weights_code, find_trained_weights, weights_name
from folder.manifest import read_manifest
from folder.provenance import recorded_files
from folder.trust import NO_CONSENT, Consent
from include import CHECKPOINTS, EXIT_DAMAGED, METRICS_BEST, METRICS_LAST
from params import Params
from utils import JsonObject, UserError

PATIENCE, PAUSE = 50, 0.1  # times, seconds: for a training to write what belongs to its last commit
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
    def description(self) -> str:
        """One line for people."""
        of_epoch = f" (epoch {self.epoch})" if self.epoch else ""
        views = f", tta {self.tta}" if self.tta != "none" else ""
        return f"weights  {self.path}{of_epoch}, {self.device}, fp32{views}"

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


@dataclass(frozen=True)
class Weights:
    """A weights file that train.py wrote, read once: what is said of it and what is computed are of the same bytes."""

    path: Path
    name: str  # best, last or the name of the file
    epoch: int | None
    kit: JsonObject  # its metadata
    tensors: dict[str, Tensor] = field(repr=False)

    @property
    def classes(self) -> list[str]:
        return self.kit["classes"]


def find_trained(folder: Folder, restore_file: str, say: Callable[[str], None] = print) -> Weights:
    """The weights that `restore_file` (best, last or a path) names.

    UserError when the folder is not trained, the file is damaged, or it belongs to other code of the experiment's own.
    """
    path = find_trained_weights(folder, restore_file)
    tensors, kit, epoch = read_with_epoch(folder, path, restore_file)
    check_metadata(path, kit)
    check_finite_weights(path, tensors)
    check_weights_code(folder.path, path, {key: kit[key] for key in NET_KEYS}, say)
    return Weights(path, weights_name(restore_file), epoch, kit, tensors)


def read_with_epoch(folder: Folder, path: Path, restore_file: str) -> tuple[dict[str, Tensor], JsonObject, int | None]:
    """(tensors, metadata, epoch) of a weights file; no epoch for other files than best and last, or if it is uncertain.

    A training that goes on replaces the weights, then the metrics, which name the epoch.
    """
    for _ in range(PATIENCE):
        epoch = find_epoch(folder, restore_file)
        tensors, kit = read_weights(path)
        if epoch is None or is_committed(folder, restore_file, epoch):
            return tensors, kit, epoch
        if folder.status()["state"] != "running":
            return tensors, kit, None
        time.sleep(PAUSE)
    return *read_weights(path), None


def is_committed(folder: Folder, which: str, epoch: int) -> bool:
    """True unless the training has committed another epoch as best or last than the metrics name.

    Weights are written after the commit and before the metrics. So if they are read between the metrics and the
    manifest, and both name one epoch, they are of this epoch.
    """
    with contextlib.suppress(UserError):
        entry = read_manifest(folder.path / CHECKPOINTS).get(which)
        return not entry or entry["epoch"] == epoch
    return True


def check_unchanged(weights: Weights) -> None:
    """UserError when another process, a frozen copy, may have read other weights: the file is not the one read here."""
    if read_metadata(weights.path).get("digest") != weights.kit["digest"]:
        raise UserError(
            f"{weights.path} was replaced while it was measured: a training goes on. Nothing was recorded; repeat the "
            "command when it has ended, or give a copy of the file with --restore_file"
        )


def check_metadata(path: Path, kit: JsonObject) -> JsonObject:
    """`kit`, the metadata of a weights file, if they say what the net is. UserError otherwise."""
    if not isinstance(kit, dict):
        raise UserError(f"{path} is damaged (its metadata are no JSON object)", EXIT_DAMAGED)
    missing = {*NET_KEYS, "classes", "normalisation", "digest"} - kit.keys()
    if missing:
        raise UserError(f"{path}: its metadata lack {', '.join(sorted(missing))}; it was not written by this version")
    return kit


def check_finite_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """UserError when a weight is not finite: every probability would be, too."""
    wrong = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} of {len(tensors)} tensors hold NaN or infinity, first {wrong[0]}: "
            "give other weights with --restore_file, or train again",
            EXIT_DAMAGED,
        )


def check_classes(folder: Folder, weights: Weights) -> None:
    """UserError unless the weights have the classes that the folder froze at its first start."""
    classes = weights.classes
    frozen = folder.resolved().get("pinned", {}).get("classes", classes)
    if frozen != classes:
        raise UserError(
            f"{weights.path} was trained with {len(classes)} classes ({', '.join(classes[:5])}, ...), "
            f"{folder.path} with {len(frozen)} ({', '.join(frozen[:5])}, ...): give weights of this experiment"
        )


def recorded_params(folder: Path, values: JsonObject, consent: Consent) -> Params:
    """Params of recorded `values`. Code that they name is its copy in record/code/; UserError if it may not run."""
    return params_module.from_resolved(*recorded_files(folder, values, consent))


def load_trained(
    folder: Folder,
    weights: Weights,
    make_net: Callable[..., tuple[nn.Module, object]],
    average_views: Callable[..., Tensor],
    overrides: JsonObject,
    consent: Consent = NO_CONSENT,
) -> Trained:
    """The net with `weights`, as find_trained gives them.

    `average_views`: (net, images, tta) -> logits. Of `overrides`, only device, cuda and tta are used.
    UserError when the weights do not fit, or the net's own code is neither sealed by this user nor trusted.
    """
    path, tensors, kit = weights.path, weights.tensors, weights.kit
    # The net that the metadata describe, on the device asked for, in fp32.
    values = {key: kit[key] for key in NET_KEYS}
    values |= {"tta": kit.get("tta", "none")}
    values |= {key: overrides[key] for key in ("device", "cuda", "tta") if key in overrides}
    params = recorded_params(folder.path, values, consent)
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
        name=weights.name,
        epoch=weights.epoch,
        kit=kit,
        device=device,
        average_views=average_views,
        tta=params.tta,
    )


def find_epoch(folder: Folder, restore_file: str) -> int | None:
    """The epoch of the best or last weights; None when the folder does not say, and for other files."""
    name = {"best": METRICS_BEST, "last": METRICS_LAST}.get(restore_file)
    return (folder.read(name, {}) or {}).get("epoch") if name else None


def load_params(folder: Folder, overrides: JsonObject, resize: str, consent: Consent = NO_CONSENT) -> Params:
    """The parameters that ran, with `overrides`. UserError for an override that would describe another net.

    Code that `overrides` name is relative to the folder: the user has just named it.
    """
    free = ("metrics", "bs_test", "num_workers", "cache", "threads", "on_bad_image", "device", "cuda", "tta")
    for key in overrides:
        if key not in free:
            raise UserError(
                f"--{key} belongs to the trained net and cannot be changed; possible here: {', '.join(free)}"
            )
    recorded = {key: value for key, value in folder.resolved().items() if key != "pinned"} | {"resize": resize}
    recorded = {key: value for key, value in recorded.items() if key not in overrides}
    values, copies = recorded_files(folder.path, recorded, consent)
    given = overrides if copies == folder.path else params_module.move_paths(overrides, str(folder.path.absolute()))
    return params_module.from_resolved(values | given, copies)
