"""Try thousands of mutated inputs: each must give a value or a one-line error, never a traceback, crash or hang.

    python tests/tools/fuzz.py --num 100000 --seed 0

Inputs are real files of each kind, mutated. They are tried in child processes, so that a crash is counted.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import random
import resource
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/tools")]

TOKENS = [
    b"null",
    b"NaN",
    b"-1",
    b"1e999",
    b"[]",
    b"{}",
    b'""',
    b"true",
    b"\xff\xfe",
    b"\0" * 9,
    b"9" * 400,
    b'"lr"',
    b"//",
    b"[" * 3000,
    b'{"a":' * 500,
    b"\xf0\x9f\x98\x80",
    b"../../x",
    b"\r\n",
    b",",
    b":",
]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few bits flipped, stretches cut, doubled or replaced."""
    wrong = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at, length = rng.randrange(len(wrong) + 1), rng.choice((1, 2, 8, 64, 512))
        kind = rng.randrange(6)
        if kind == 0 and wrong:
            wrong[at % len(wrong)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del wrong[at : at + length]
        elif kind == 2:
            wrong[at:at] = wrong[at : at + length]
        elif kind == 3:
            wrong[at : at + length] = rng.randbytes(length)
        elif kind == 4:
            wrong[at:at] = rng.choice(TOKENS)
        else:
            del wrong[at:]
    return bytes(wrong)


# --- what reads which kind ----------------------------------------------------------------------------------


def read_params(work: Path, data: bytes) -> None:
    import params

    (work / "params.json").write_bytes(data)
    params.load(work, {})


def read_metrics(work: Path, data: bytes, name: str = "metrics_val_best_weights.json") -> None:
    from report.formats import to_markdown
    from report.rows import read_rows
    from report.tables import make_table

    folder = work / "run"
    (folder / "record").mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text("{}")
    (folder / name).write_bytes(data)
    rows, _ = read_rows([folder], work)
    if rows:
        to_markdown(make_table(rows))
    (folder / name).unlink()


def read_history(work: Path, data: bytes) -> None:
    from folder.folder import Folder

    (work / "history.json").write_bytes(data)
    Folder(work).history()
    read_metrics(work, data, "history.json")


def read_state(work: Path, data: bytes) -> None:
    import hashlib

    from engine.checkpoint import Checkpoints
    from folder.manifest import FORMAT, seal

    folder = work / "checkpoints"
    folder.mkdir(exist_ok=True)
    (folder / "a.pt").write_bytes(data)
    entry = {"file": "a.pt", "sha256": hashlib.sha256(data).hexdigest(), "epoch": 1, "step": 1}
    manifest = {"format": FORMAT, "last": entry, "previous": None, "best": entry, "epochs": [], "done": False}
    (folder / "manifest.json").write_text(json.dumps(seal(manifest)))
    Checkpoints(work).restore()


def read_manifest(work: Path, data: bytes) -> None:
    from folder.manifest import read_manifest

    (work / "manifest.json").write_bytes(data)
    read_manifest(work)


def read_weights(work: Path, data: bytes) -> None:
    from engine.checkpoint import read_weights
    from utils import read_tensors

    for name in ("w.safetensors", "w.pth"):
        (work / name).write_bytes(data)
    from utils import UserError

    with contextlib.suppress(UserError):
        read_tensors(work / "w.pth")
    read_weights(work / "w.safetensors")


def read_picture(work: Path, data: bytes) -> None:
    from model.images.decode import decode

    image = decode(data, "picture")
    assert image.dtype.name == "uint8"
    assert image.ndim == 3
    assert image.shape[2] == 3


def read_archive(work: Path, data: bytes, name: str) -> None:
    from model.images.build.archives import extract

    (work / name).write_bytes(data)
    with tempfile.TemporaryDirectory(dir=work) as target:
        extract(work / name, Path(target) / "here", [])


def seeds() -> dict[str, tuple[Callable[[Path, bytes], None], list[bytes]]]:
    """kind -> (reader, real files of the kind)."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save

    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3)).astype(np.uint8)
    pictures = []
    for form in ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, form)
        pictures.append(buffer.getvalue())
    sixteen = io.BytesIO()
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(sixteen, "PNG")
    state = io.BytesIO()
    net = {"w": torch.randn(4, 3), "b": torch.zeros(4, dtype=torch.int64)}
    torch.save({"net": net, "step": 1, "history": [{"epoch": 1, "val_loss": 0.5}], "optimizer": {"state": {}}}, state)
    rows = [{"epoch": n, "step": 9 * n, "learning_rate": 0.1, "train_loss": 1.5, "val_accuracy": 0.5} for n in range(4)]
    tar, archive = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as file:
        for name in ("train/a/1.png", "train/b/2.png"):
            info = tarfile.TarInfo(name)
            info.size = len(pictures[1])
            file.addfile(info, io.BytesIO(pictures[1]))
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train/a/1.png", pictures[1])
    shipped = [path.read_bytes() for path in sorted((ROOT / "experiments").glob("*/params.json"))]
    manifest = {"format": 1, "last": {"file": "a.pt", "sha256": "0" * 64}, "best": None, "epochs": [], "done": False}
    weights = [save({"w": torch.randn(3, 3)}, {"kit": json.dumps({"classes": ["a"], "digest": "0"})}), state.getvalue()]
    return {
        "params": (read_params, shipped),
        "metrics": (read_metrics, [json.dumps({"epoch": 3, "loss": 0.5, "accuracy": 0.25}).encode()]),
        "history": (read_history, [json.dumps(rows).encode()]),
        "state": (read_state, [state.getvalue()]),
        "manifest": (read_manifest, [json.dumps(manifest).encode()]),
        "weights": (read_weights, weights),
        "picture": (read_picture, [*pictures, sixteen.getvalue()]),
        "tar": (lambda work, data: read_archive(work, data, "x.tar.gz"), [tar.getvalue()]),
        "zip": (lambda work, data: read_archive(work, data, "x.zip"), [archive.getvalue()]),
    }


MAX_MIB = 512  # that reading any of the inputs may take


# --- many of them -------------------------------------------------------------------------------------------


def try_many(numbers: range, seed: int, results: Any) -> None:
    """In a child: each number is one input. Notes what it is at, so that a crash can be told."""
    from utils import UserError

    before = peak_mib()  # a fork begins with what its parent holds
    kinds = seeds()
    names = list(kinds)
    with tempfile.TemporaryDirectory() as name:
        for number in numbers:
            kind = names[number % len(names)]
            reader, files = kinds[kind]
            rng = random.Random(f"{seed} {number}")
            data = mutate(rng.choice(files), rng)
            results.put(("at", number, kind, ""))
            begun = time.monotonic()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                try:
                    reader(Path(name), data)
                except UserError as error:
                    if "\n" in str(error) or error.code not in (2, 3):
                        results.put(("bad", number, kind, f"code {error.code}: {error}"))
                except BaseException:
                    results.put(("bad", number, kind, traceback.format_exc(limit=-4)))
            if time.monotonic() - begun > 10:
                results.put(("bad", number, kind, "took more than 10 s"))
    results.put(("end", peak_mib() - before, "", ""))


def peak_mib() -> int:
    """The most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def run(num: int, seed: int) -> dict[str, Any]:
    """Every input is tried; a child that dies is named, and the rest go on."""
    context = multiprocessing.get_context("fork")
    found: dict[str, Any] = {"inputs": num, "seed": seed, "failures": [], "largest_mib": 0}
    start = 0
    while start < num:
        results = context.SimpleQueue()
        child = context.Process(target=try_many, args=(range(start, min(start + 5000, num)), seed, results))
        child.start()
        at = start, "start"
        while True:
            if not results._reader.poll(30):  # type: ignore[attr-defined]
                child.kill()
                found["failures"].append(f"{at}: hangs" if child.is_alive() else f"{at}: died")
                break
            try:
                what, number, kind, text = results.get()
            except EOFError:
                break
            if what == "end":
                found["largest_mib"] = max(found["largest_mib"], number)
                start = min(start + 5000, num)
                break
            if what == "bad":
                found["failures"].append(f"{number} {kind}: {text}")
            at = number, kind
            if not child.is_alive() and results.empty():
                found["failures"].append(f"{at}: the process died with {child.exitcode}")
                break
        else:
            continue
        child.join(5)
        if found["failures"] and found["failures"][-1].startswith("("):
            start = at[0] + 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begun = time.monotonic()
    found = run(args.num, args.seed)
    shown = {"failures": found["failures"][:20], "num_failures": len(found["failures"])}
    print(json.dumps(found | shown | {"seconds": round(time.monotonic() - begun)}, indent=2))
    sys.exit(1 if found["failures"] or found["largest_mib"] >= MAX_MIB else 0)


if __name__ == "__main__":
    main()
