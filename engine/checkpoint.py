"""Commit, verify, restore: the one place that writes resumable state and exported weights.

`checkpoints/manifest.json` is the commit record. It names, for `last`, `previous`, `best` and the kept
epochs, a file and its SHA-256. State files are never overwritten: a new one is written and made durable,
then the manifest is replaced, then files that it no longer names are removed. A crash at any instant
leaves the old commit or the new one.
"""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from folder.manifest import FORMAT, MANIFEST, read_manifest
from include import CHECKPOINTS, EXIT_DAMAGED
from utils import UserError, sealed, to_json, write_atomic


class Writer:
    """Does one job at a time in a thread of its own, so that training goes on. What fails in it surfaces here."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, "writer")
        self.job: Future[None] | None = None

    def submit(self, job: Callable[..., None], *args: Any) -> None:
        """Start `job`, after the one before it has ended. Raises what that one raised."""
        self.wait()
        self.job = self.pool.submit(job, *args)

    def wait(self) -> None:
        """Until nothing is being written. Raises what the job raised."""
        job, self.job = self.job, None
        if job:
            job.result()

    @property
    def failed(self) -> bool:
        return self.job is not None and self.job.done() and self.job.exception() is not None


@dataclass(frozen=True)
class Snapshot:
    """A state as bytes. Made by the thread that trains: on a CPU, Python at work in a second one would slow it more."""

    data: bytes
    name: str
    epoch: int
    step: int
    num_epochs: float

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Snapshot":
        buffer = io.BytesIO()
        torch.save(state, buffer)
        is_closed = state["phase"] == "train" and state["step"] == state["epoch_step"]  # right after an evaluation
        name = f"epoch_{state['epoch']:04d}" if is_closed else f"step_{state['step']:08d}_{state['phase']}"
        return cls(buffer.getvalue(), name, state["epoch"], state["step"], state["num_epochs"])


class Checkpoints:
    """The resumable state of one experiment folder, under `checkpoints/`."""

    def __init__(self, folder: Path):
        self.path = folder / CHECKPOINTS

    def manifest(self) -> dict[str, Any]:
        """The last commit, or {} when there is none. UserError (exit 3) when it is there and unreadable."""
        return read_manifest(self.path)

    def commit(self, state: Snapshot, *, epoch_done: bool, is_best: bool, keep_last: int) -> None:
        """Make `state` the state to resume from. `epoch_done`: it stands right after an evaluation."""
        self.path.mkdir(exist_ok=True)
        old = self.manifest()
        entry = self._write(state, "")
        epochs = [*old.get("epochs", []), entry] if epoch_done else old.get("epochs", [])
        epochs = [e for i, e in enumerate(epochs) if e not in epochs[i + 1 :]][-keep_last or len(epochs) :]
        manifest = {
            "format": FORMAT,
            "last": entry,
            "previous": old.get("last"),
            "best": entry if is_best else old.get("best"),
            "epochs": epochs if keep_last else [],
            "num_epochs": state.num_epochs,
            "done": False,
        }
        self._publish(manifest)

    def finish(self) -> None:
        """The run is done: optimizer state stays in `last` alone, and the previous generation goes."""
        manifest = self.manifest()
        last = manifest["last"]
        slim: dict[str, Any] = {}
        for entry in [manifest["best"], *manifest["epochs"]]:
            if entry and entry["file"] != last["file"] and not entry.get("slim") and entry["file"] not in slim:
                with contextlib.suppress(UserError):  # damaged since: it was said at the start, and stays as it is
                    state = Snapshot.of(self.read(entry) | {"optimizer": None})
                    slim[entry["file"]] = self._write(state, "_weights") | {"slim": True}
        manifest["best"] = slim.get((manifest["best"] or last)["file"], manifest["best"])
        manifest["epochs"] = [slim.get(entry["file"], entry) for entry in manifest["epochs"]]
        self._publish(manifest | {"previous": None, "done": True})

    def read(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The state that a manifest entry names. UserError (exit 3) when its bytes are not the committed ones."""
        path = self.path / entry["file"]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; not touched", EXIT_DAMAGED) from None
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise UserError(f"{path} is damaged (its SHA-256 is not the committed one); not touched", EXIT_DAMAGED)
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a file raises that only looks like ours
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} is no state of this kit ({reason}); not touched", EXIT_DAMAGED) from None
        if not isinstance(state, dict) or not {"net", "step", "history"} <= state.keys():
            raise UserError(f"{path} is no state of this kit; not touched", EXIT_DAMAGED)
        return state

    def restore(self) -> tuple[dict[str, Any], str]:
        """The last committed state, and a remark: when it is damaged the generation before it is used, and said."""
        manifest = self.manifest()
        try:
            return self.read(manifest["last"]), ""
        except UserError as damaged:
            if not manifest.get("previous"):
                raise
            state = self.read(manifest["previous"])
            return state, f"{damaged}; going on from the state before it (step {state['step']})"

    def _write(self, state: Snapshot, suffix: str) -> dict[str, Any]:
        stem = state.name + suffix
        name, number = f"{stem}.pt", 2
        while (self.path / name).exists():  # a committed file is never overwritten
            name, number = f"{stem}_{number}.pt", number + 1
        write_atomic(self.path / name, state.data)
        digest = hashlib.sha256(state.data).hexdigest()
        return {"file": name, "sha256": digest, "bytes": len(state.data), "epoch": state.epoch, "step": state.step}

    def _publish(self, manifest: dict[str, Any]) -> None:
        write_atomic(self.path / MANIFEST, to_json(sealed(manifest)))
        named = [manifest["last"], manifest["previous"], manifest["best"], *manifest["epochs"]]
        keep = {entry["file"] for entry in named if entry}
        for path in self.path.iterdir():
            if path.suffix == ".pt" and not path.is_symlink() and path.name not in keep:
                path.unlink()
        for name in ("last", "best"):
            with contextlib.suppress(OSError):  # a convenience for people; some file systems have no links
                _link(self.path / f"{name}.pt", manifest[name])

    def clean(self) -> None:
        """Remove temporary files that a killed run left. Only under the folder's lock."""
        for path in self.path.glob(".tmp-*"):
            path.unlink(missing_ok=True)


def _link(link: Path, entry: dict[str, Any] | None) -> None:
    if entry:
        temporary = link.with_name(f".tmp-{link.name}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(entry["file"])
        os.replace(temporary, link)


# --- exported weights ---------------------------------------------------------------------------------


def digest_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def with_digest(kit: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """`kit` with the digest of the tensors and of the rest of `kit`, which says what their numbers mean."""
    kit = {key: value for key, value in kit.items() if key != "digest"}
    return kit | {"digest": sealed(kit | {"tensors": digest_tensors(tensors)})["digest"]}


def weights_file(tensors: dict[str, Tensor], kit: dict[str, Any]) -> bytes:
    """Weights alone, contiguous, with one metadata key `kit` (JSON, sorted keys): enough to predict."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return save(tensors, {"kit": json.dumps(with_digest(kit | {"format": FORMAT}, tensors), sort_keys=True)})


def weights_kit(path: Path) -> dict[str, Any]:
    """The `kit` metadata of a weights file, {} when it has none. UserError when it is no safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("kit", "{}"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights file") from None
    except Exception as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})", EXIT_DAMAGED) from None


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, kit) of a weights file that the kit wrote. UserError (exit 3) when the digest does not agree."""
    kit = weights_kit(path)
    if "digest" not in kit:
        raise UserError(f"{path}: not written by train.py (no 'kit' metadata); give it as \"pretrain\" instead")
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if with_digest(kit, tensors) != kit:
        raise UserError(f"{path} is damaged (its content does not have the recorded digest)", EXIT_DAMAGED)
    return tensors, kit
