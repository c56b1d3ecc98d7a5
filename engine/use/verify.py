"""`train.py --verify`: repeat the training of a folder with the code that it keeps, and compare the bytes."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from folder.arguments import Request
from folder.folder import Folder
from folder.manifest import read_manifest
from folder.provenance import MARKER, check_frozen_code, consent_of, localise, references
from include import CHECKPOINTS, CODE, EXIT_DAMAGED, HISTORY_JSON, METRICS_BEST, METRICS_LAST, PARAMS
from params import move_paths
from utils import JsonObject, UserError, read_json, write_json

CLOCKS = ("seconds", "images_per_second")  # columns of the history that differ between any two trainings


def verify(folder: Folder, request: Request) -> str:
    """Train again with the folder's frozen code. Returns the line to print when the bytes are the same.

    Trains in a temporary folder, below --scratch_dir when given. UserError (exit 3) that names each difference;
    exit 2 when the folder is not done, was continued with changes, or brings code that is not sealed as this user's.
    """
    # Only a run that is done, with a single version of the code, can be repeated.
    manifest = read_manifest(folder.path / CHECKPOINTS)
    meta = folder.meta()
    resolved = folder.resolved()
    if not (folder.path / CODE / "train.py").is_file():
        raise UserError(f"--verify: {folder.path} holds no {CODE}/train.py")
    if not manifest.get("done"):
        raise UserError(f"--verify: {folder.path} is not done; finish it first")
    if changed := sorted({what for session in meta["sessions"] for what in session.get("accepted") or []}):
        raise UserError(
            f"--verify: {folder.path} was continued with changed {', '.join(changed)}: no single code made it"
        )
    check_frozen_code(folder.path, consent_of(request))
    # Train again, and once more for the epochs that came on top.
    data = Path(request.data_dir or meta["data_dir"])
    with tempfile.TemporaryDirectory(prefix="verify-", dir=request.scratch_dir) as name:
        again = Path(name) / folder.path.resolve().name
        again.mkdir()
        write_params(folder, resolved, again)
        flags = ["--restore_file", meta["restore_file"]] if meta.get("restore_file") else []
        train_again(folder, data, again, flags)
        extra = manifest["num_epochs"] - resolved["num_epochs"]
        if extra:
            train_again(folder, data, again, ["--extend", str(extra)])
        differences = list_differences(folder, Folder(again))
    if differences:
        raise UserError(f"{folder.path}: not byte-identical. {'; '.join(differences)}", EXIT_DAMAGED)
    return f"{folder.path}: byte-identical: weights, history and metrics came out the same again"


def write_params(folder: Folder, resolved: JsonObject, again: Path) -> None:
    """Write params.json with the parameters that ran, and copy the experiment's own files that ran."""
    values = {key: value for key, value in resolved.items() if key not in ("pinned", "data_dir", "base")}
    values["observers"] = []
    values |= move_paths({"pretrain": values["pretrain"]}, str(folder.path.resolve()))
    write_json(again / PARAMS, {key: localise(value) for key, value in values.items() if value is not None})
    for name in references(values):
        shutil.copy(folder.path / CODE / "experiment" / Path(name).name, again / Path(name).name)


def train_again(folder: Folder, data_dir: Path, again: Path, flags: list[str]) -> None:
    """Run the frozen train.py as a process of its own, which prints to the same terminal."""
    script = folder.path / CODE / "train.py"
    command = [sys.executable, str(script), "--data_dir", str(data_dir), "--model_dir", str(again), *flags]
    if subprocess.run(command, env=os.environ | {MARKER: "1"}).returncode:
        raise UserError(f"--verify: the frozen code of {folder.path} did not train again (see above)")


def list_differences(folder: Folder, again: Folder) -> list[str]:
    """Each difference between the results of two folders, in a few words; clocks aside."""
    differences = []
    began, begins = (place.meta().get("pretrained") or {} for place in (folder, again))
    if began.get("sha256") != begins.get("sha256"):
        differences.append(f"{began.get('source')}, which it began with, has another content now")
    for which in ("best", "last"):
        if folder.weights(which).read_bytes() != again.weights(which).read_bytes():
            differences.append(f"weights/{which}.safetensors differ")
    old = rows_without_clocks(folder)
    new = rows_without_clocks(again)
    for row, other in zip(old, new, strict=False):
        if first := next((key for key in row if row[key] != other.get(key)), None):
            differences.append(f"history from epoch {row['epoch']} on ({first} {row[first]} -> {other.get(first)})")
            break
    if len(old) != len(new):
        differences.append(f"{len(old)} epochs, then {len(new)}")
    for name in (METRICS_BEST, METRICS_LAST):
        if (folder.path / name).read_bytes() != (again.path / name).read_bytes():
            differences.append(f"{name} differs")
    return differences


def rows_without_clocks(folder: Folder) -> list[JsonObject]:
    """The history, without the columns that a clock wrote."""
    rows = read_json(folder.path / HISTORY_JSON)
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]
