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
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from engine.state import SavedState
from folder.identity import Identity
from folder.manifest import MANIFEST, read_manifest, seal
from include import CHECKPOINTS, EXIT_DAMAGED, EXIT_SYSTEM
from utils import JsonObject, UserError, to_json, write_atomic

WEIGHTS_FORMAT = 1  # of exported weights; they know nothing of the folder


class Entry(TypedDict):
    """The manifest's entry for a state file."""

    file: str
    sha256: str
    bytes: int
    epoch: int
    step: int
    slim: NotRequired[bool]  # without optimizer state


class Writer:
    """Runs one job at a time in a thread of its own, while training continues. The next call raises its errors."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, "writer")
        self.job: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Start `job` once the previous job has ended. Raises what the previous one raised."""
        self.wait()
        self.job = self.pool.submit(job)

    def wait(self) -> None:
        """Wait until nothing is being written. Raises what the job raised."""
        job = self.job
        self.job = None
        if job:
            job.result()

    @property
    def failed(self) -> bool:
        return self.job is not None and self.job.done() and self.job.exception() is not None


@dataclass(frozen=True)
class Snapshot:
    """A state as bytes, ready to be written.

    It is made by the thread that trains: pickling in a second thread would slow training on a CPU down more.
    """

    data: bytes
    name: str
    epoch: int
    step: int
    num_epochs: float

    @classmethod
    def of(cls, state: SavedState) -> "Snapshot":
        buffer = io.BytesIO()
        torch.save(state, buffer)
        is_closed = state["phase"] == "train" and state["step"] == state["epoch_step"]  # right after an evaluation
        name = f"epoch_{state['epoch']:04d}" if is_closed else f"step_{state['step']:08d}_{state['phase']}"
        return cls(buffer.getvalue(), name, state["epoch"], state["step"], state["num_epochs"])


class Checkpoints:
    """The resumable state of one experiment folder, under `checkpoints/`."""

    def __init__(self, folder: Path, identity: Identity | None = None, check: Callable[[], None] | None = None):
        """`identity`: whose state it is; needed to write, and checked against what is there before it is replaced.

        `check`: called before each file gets its name, to raise where nothing may be written any more.
        """
        self.check = check
        self.path = folder / CHECKPOINTS
        self.identity = identity

    def manifest(self) -> JsonObject:
        """The last commit, or {} when there is none. UserError (exit 3) when it exists but cannot be read."""
        return read_manifest(self.path)

    def commit(self, state: Snapshot, *, epoch_done: bool, is_best: bool, keep_last: int) -> None:
        """Make `state` the state to resume from. `epoch_done`: an evaluation has just ended."""
        # The state file comes first, and is durable before the manifest names it.
        self.path.mkdir(exist_ok=True)
        old = self._own_manifest()
        entry = self._write(state)
        # The last `keep_last` epochs stay; of two entries for the same state, the later one.
        epochs = [*old.get("epochs", []), entry] if epoch_done else old.get("epochs", [])
        epochs = [kept for number, kept in enumerate(epochs) if kept not in epochs[number + 1 :]]
        epochs = epochs[-keep_last or len(epochs) :]
        # The new manifest is the commit.
        manifest = {
            "last": entry,
            "previous": old.get("last"),
            "best": entry if is_best else old.get("best"),
            "epochs": epochs if keep_last else [],
            "num_epochs": state.num_epochs,
            "done": False,
        }
        self._publish(manifest)

    def finish(self) -> None:
        """The run is done: keep optimizer state in `last` alone, and drop the generation before it."""
        manifest = self._own_manifest()
        last = manifest["last"]
        # Write the best and the kept epochs again, without optimizer state.
        slim: dict[str, Entry] = {}
        for entry in [manifest["best"], *manifest["epochs"]]:
            if entry and entry["file"] != last["file"] and not entry.get("slim") and entry["file"] not in slim:
                with contextlib.suppress(UserError):  # a damaged one stays as it is; the log said so at the start
                    state = Snapshot.of(self.read(entry) | {"optimizer": None})
                    slim[entry["file"]] = {**self._write(state, "_weights"), "slim": True}
        # Name the new files in their place.
        manifest["best"] = slim.get((manifest["best"] or last)["file"], manifest["best"])
        manifest["epochs"] = [slim.get(entry["file"], entry) for entry in manifest["epochs"]]
        self._publish(manifest | {"previous": None, "done": True})

    def adopt(self) -> None:
        """Seal the last commit with the identity of this folder: it was copied, or written without ids."""
        if manifest := self.manifest():
            self._publish(manifest)

    def _own_manifest(self) -> JsonObject:
        """The last commit. UserError (exit 5) when another run has written it since this one began."""
        manifest = self.manifest()
        if manifest and self.identity and (manifest.get("id"), manifest.get("attempt")) != self.identity.ids:
            raise UserError(
                f"{self.path / MANIFEST} was written by another run meanwhile; nothing was written", EXIT_SYSTEM
            )
        return manifest

    def read(self, entry: Entry) -> SavedState:
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
        except Exception as error:  # a file of another kind makes torch raise almost anything
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path} is not a state that train.py wrote ({reason}); not touched", EXIT_DAMAGED
            ) from None
        if not isinstance(state, dict) or not {"net", "step", "history"} <= state.keys():
            raise UserError(f"{path} is not a state that train.py wrote; not touched", EXIT_DAMAGED)
        return state

    def restore(self) -> tuple[SavedState, str]:
        """The last committed state and "", or, where it is damaged, the state before it and a remark that says so."""
        manifest = self.manifest()
        try:
            return self.read(manifest["last"]), ""
        except UserError as damaged:
            if not manifest.get("previous"):
                raise
            state = self.read(manifest["previous"])
            return state, f"{damaged}; going on from the state before it (step {state['step']})"

    def _write(self, state: Snapshot, suffix: str = "") -> Entry:
        """Write a new state file; a committed file is never overwritten. Returns its manifest entry."""
        stem = state.name + suffix
        name = f"{stem}.pt"
        number = 1
        while (self.path / name).exists():
            number += 1
            name = f"{stem}_{number}.pt"
        write_atomic(self.path / name, state.data, self.check)
        digest = hashlib.sha256(state.data).hexdigest()
        return {"file": name, "sha256": digest, "bytes": len(state.data), "epoch": state.epoch, "step": state.step}

    def _publish(self, manifest: JsonObject) -> None:
        """Replace the manifest, which commits it; then remove the state files that it no longer names."""
        record = self.identity.seal(manifest) if self.identity else seal({"format": 1, **manifest})
        write_atomic(self.path / MANIFEST, to_json(record), self.check)
        named = [manifest["last"], manifest["previous"], manifest["best"], *manifest["epochs"]]
        keep = {entry["file"] for entry in named if entry}
        for path in self.path.iterdir():
            if path.suffix == ".pt" and not path.is_symlink() and path.name not in keep:
                path.unlink()
        for name in ("last", "best"):
            with contextlib.suppress(OSError):  # links are for people; some file systems have none
                _link(self.path / f"{name}.pt", manifest[name])

    def clean(self) -> None:
        """Remove temporary files that a killed run left. The folder must be locked."""
        for path in self.path.glob(".tmp-*"):
            path.unlink(missing_ok=True)


def _link(link: Path, entry: Entry | None) -> None:
    """Point a symbolic link at the file of `entry`, replacing the link that was there."""
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
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_metadata(resolved: JsonObject) -> dict[str, object]:
    """The metadata of a weights file: its net and the images it needs, from record/resolved.json."""
    metadata = {key: resolved[key] for key in ("arch", "arch_args", "ps", "im_sz", "resize", "n_clas")}
    metadata |= {"tta": resolved["tta"]} if resolved["tta"] != "none" else {}
    pinned = resolved["pinned"]
    return metadata | {"classes": pinned["classes"], "normalisation": {key: pinned[key] for key in ("mean", "std")}}


def with_digest(metadata: Mapping[str, object], tensors: dict[str, Tensor]) -> dict[str, object]:
    """`metadata` with a digest of the tensors and of the rest of `metadata`, which says what their numbers mean."""
    rest = {key: value for key, value in metadata.items() if key != "digest"}
    return rest | {"digest": seal(rest | {"tensors": digest_tensors(tensors)})["digest"]}


def weights_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> bytes:
    """Weights alone, contiguous, with one metadata key `kit` (JSON, sorted keys): enough to predict."""
    own = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    complete = with_digest({**metadata, "format": WEIGHTS_FORMAT}, own)
    return save(own, {"kit": json.dumps(complete, sort_keys=True)})


def read_metadata(path: Path) -> JsonObject:
    """The metadata of a weights file, {} when it has none. UserError when it is not a safetensors file."""
    with _open_weights(path) as file:
        return _metadata_in(path, file)


def read_weights(path: Path) -> tuple[dict[str, Tensor], JsonObject]:
    """(tensors, metadata) of a weights file that the kit wrote. UserError (exit 3) when the digest does not agree.

    Both are of one file, though a training may put another one in its place meanwhile.
    """
    with _open_weights(path) as file:
        metadata = _metadata_in(path, file)
        if "digest" not in metadata:
            raise UserError(f"{path}: not written by train.py (no 'kit' metadata); give it as \"pretrain\" instead")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
    if with_digest(metadata, tensors) != metadata:
        raise UserError(f"{path} is damaged (its content does not have the recorded digest)", EXIT_DAMAGED)
    return tensors, metadata


def _open_weights(path: Path) -> safe_open:
    if path.suffix in (".pt", ".pth", ".tar") and path.is_file():
        raise UserError(
            f"{path}: a file of PyTorch's, without the classes and the image size that its net needs; train.py "
            "--restore_file takes it, the other commands take .safetensors"
        )
    try:
        return safe_open(path, "pt")
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights file") from None
    except Exception as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})", EXIT_DAMAGED) from None


def _metadata_in(path: Path, file: safe_open) -> JsonObject:
    try:
        return json.loads((file.metadata() or {}).get("kit", "{}"))
    except Exception as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})", EXIT_DAMAGED) from None
