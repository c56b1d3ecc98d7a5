"""Make experiments/example anew: the finished experiment that a fresh clone can look at and predict with.

python tests/tools/make_example.py            # train, evaluate, draw, blank what names this machine, replace the folder
python tests/tools/make_example.py --check    # exit 1 when a file of the folder is not the one that was made

Run it last before a release, on a clean tree. It needs half a minute and no network. tests/data/example.sha256 lists
what was made. Whatever else the commands write stays out: LEFT_OUT says what, and a file in neither list is an error.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from folder.manifest import digest_file, seal  # noqa: E402
from folder.provenance import is_result_code, source_files  # noqa: E402
from include import META, STATUS, TRUST  # noqa: E402
from report.html.experiment_page import write_experiment_page  # noqa: E402
from utils import JsonObject, read_json, write_json  # noqa: E402

EXAMPLE, DATA = "experiments/example", "data/digits"
DIGESTS = ROOT / "tests/data/example.sha256"  # in the form of sha256sum
AT_MOST, WEIGHTS_AT_MOST = 300_000, 100_000  # bytes: of the folder, of a weights file
PICTURE, PICTURE_CLASS = "three.png", "3"  # an image of the test split, to predict

WRITTEN_BY_HAND = ("params.json", "README.md")
MADE = (
    PICTURE,
    "batch_train.png",
    "evaluation/confusion_matrix.csv",
    "evaluation/confusion_matrix.png",
    "evaluation/origin.json",
    "evaluation/per_class.csv",
    "evaluation/per_class.md",
    "evaluation/predictions.csv",
    "evaluation/top_losses.png",
    "history.csv",
    "history.json",
    "metrics_test_best.json",
    "metrics_val_best_weights.json",
    "metrics_val_last_weights.json",
    "record/augm.json",
    "record/meta.json",
    "record/requirements.txt",
    "record/resolved.json",
    "record/status.json",
    "record/stderr.txt",
    "record/stdout.txt",
    "record/test_looks.jsonl",
    "record/trust.json",
    "report.html",
    "train.log",
    "train_history.png",
    "weights/best.safetensors",
    "weights/last.safetensors",
)
LEFT_OUT = (
    "checkpoints/",  # the state to continue from: as large as the rest
    "tensorboard/",  # events carry the name of the machine
    "record/code/",  # a second copy of the kit; record/trust.json has its digests
    "record/diff.patch",  # of a tree with changes
    "record/plotly.min.js",  # 5 MB; plot_results.py writes it
)


def main(argv: list[str]) -> int:
    if argv == ["--check"]:
        wrong = list_wrong_files()
        print("\n".join(wrong) or f"{EXAMPLE}: {len(read_digests())} files, as they were made")
        return 1 if wrong else 0
    with tempfile.TemporaryDirectory(prefix="example-") as name:
        place = Path(name)
        folder = make(place)
        blank(folder)
        pack_pictures(folder)
        leave_out(folder)  # before the page, which links to what is there
        write_experiment_page(folder)
        check(folder, place)
        replace(folder)
    print(f"{EXAMPLE}: {sum(path.stat().st_size for path in list_files())} bytes in {len(list_files())} files")
    return 0


# --- making ---------------------------------------------------------------------------------------------


def make(place: Path) -> Path:
    """Train and evaluate in the empty folder `place`, by the commands that a user types -> the experiment."""
    folder = place / EXAMPLE
    folder.mkdir(parents=True)
    for name in WRITTEN_BY_HAND:
        shutil.copy(ROOT / EXAMPLE / name, folder)
    for words in (
        ["build_dataset.py", "--source", "digits", "--data_dir", DATA],
        ["train.py", "--data_dir", DATA, "--model_dir", EXAMPLE],
        ["evaluate.py", "--data_dir", DATA, "--model_dir", EXAMPLE],
    ):
        run(place, words)
    shutil.copy(choose_picture(place), folder / PICTURE)
    return folder


def run(place: Path, words: list[str]) -> str:
    """What a root script prints, started in `place` as a user without settings of their own starts it."""
    environ = os.environ | {"XDG_STATE_HOME": str(place / "state"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    return subprocess.run(command, cwd=place, env=environ, check=True, stdout=subprocess.PIPE, text=True).stdout


def choose_picture(place: Path) -> Path:
    """The first image of its class in the test split that the net names rightly."""
    images = sorted((place / DATA / "test" / PICTURE_CLASS).glob("*.png"))
    lines = run(place, ["predict.py", EXAMPLE, *map(str, images)]).splitlines()
    return next(path for path in images for line in lines if line.split()[:2] == [str(path), PICTURE_CLASS])


def blank(folder: Path) -> None:
    """Take out of the records what names this machine and its repository, seal them again, and list the code."""
    meta = read_json(folder / META)
    for record in (meta, *meta["sessions"]):
        record["host"] = ""
        record["command"] = ["train.py", *record["command"][1:]]
    for session in meta["sessions"]:
        session["pid"] = 0
    meta |= {"path": None, "git": None, "data_dir": DATA, "platform": f"{platform.system()} {platform.machine()}"}
    write_json(folder / META, seal(meta))
    write_json(folder / STATUS, read_json(folder / STATUS) | {"host": "", "pid": 0})
    write_json(folder / TRUST, {"files": list_result_code(), "seals": {}})


def pack_pictures(folder: Path) -> None:
    """The same pixels in fewer bytes."""
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            is_opaque = image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255)
            packed = image.convert("RGB") if is_opaque else image.copy()
        packed.save(path, optimize=True)


def leave_out(folder: Path) -> None:
    for name in LEFT_OUT:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def list_result_code() -> JsonObject:
    """Name -> digest of each file of the kit that a result depends on."""
    return {path.as_posix(): digest_file(ROOT / path) for path in source_files(ROOT) if is_result_code(path)}


def check(folder: Path, place: Path) -> None:
    """Raise unless the folder holds what it should and nothing else, is small, and does not name this machine."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    kept = {name for name in names if not name.startswith(LEFT_OUT)}
    if kept != {*MADE, *WRITTEN_BY_HAND}:
        raise SystemExit(f"in MADE or LEFT_OUT, what is to become of {sorted(kept ^ {*MADE, *WRITTEN_BY_HAND})}?")
    sizes = {name: (folder / name).stat().st_size for name in kept}
    if (size := sum(sizes.values())) > AT_MOST:
        raise SystemExit(f"{size} bytes; at most {AT_MOST}: {sorted(sizes.items(), key=lambda item: -item[1])[:8]}")
    for name in kept:
        if name.endswith(".safetensors") and sizes[name] > WEIGHTS_AT_MOST:
            raise SystemExit(f"{name}: {sizes[name]} bytes; at most {WEIGHTS_AT_MOST}")
        content = (folder / name).read_bytes()
        for word in (str(place), str(ROOT), str(Path.home()) + "/", f'"{socket.gethostname()}"'):
            if word.encode() in content:
                raise SystemExit(f"{name} holds {word}")


def replace(folder: Path) -> None:
    """Put what was made in the place of the earlier files, and list its digests."""
    target = ROOT / EXAMPLE
    for name in MADE:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    lines = [f"{digest_file(path)}  {path.relative_to(ROOT).as_posix()}\n" for path in list_files()]
    DIGESTS.write_text("".join(lines))


# --- checking -------------------------------------------------------------------------------------------


def list_files() -> list[Path]:
    return [ROOT / EXAMPLE / name for name in sorted([*MADE, *WRITTEN_BY_HAND])]


def read_digests() -> dict[str, str]:
    """Path -> digest of what was made."""
    return {path: digest for digest, path in (line.split("  ", 1) for line in DIGESTS.read_text().splitlines())}


def list_wrong_files() -> list[str]:
    """The files that are missing, or not those that were made."""
    digests = read_digests()
    paths = {path.relative_to(ROOT).as_posix(): path for path in list_files()}
    missing = [name for name, path in paths.items() if not path.is_file()]
    there = {name: digest_file(path) for name, path in paths.items() if name not in missing}
    changed = [name for name, digest in there.items() if digests.get(name) != digest]
    return [*(f"{name} is missing" for name in missing), *(f"{name} is not as it was made" for name in changed)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
