"""Find a run's data and weights; no other module looks for them. No torch."""

from collections.abc import Callable
from pathlib import Path

from folder.folder import Folder
from folder.provenance import is_different, references
from folder.records import find_changed_results, weights_file
from include import CODE, EXIT_DAMAGED, META, RESOLVED, SPLIT_SYNONYMS, SPLITS
from params import Params, is_weights_tag
from utils import JsonObject, UserError, command, nearest


def find_data(given: str | Path | None, params: Params, remembered: str | None) -> Path:
    """The dataset folder: `given` on the command line, else in params.json, else `remembered` from an earlier start.

    It need not exist: reading it reports that. UserError when none of the three names one.
    """
    if given:
        return Path(given)
    if params.data_dir:
        return params.folder / params.data_dir
    if remembered:
        return Path(remembered)
    raise UserError(
        'no data: give --data_dir DATA, or "data_dir" in params.json. Digits need no download: '
        "python build_dataset.py --source digits --data_dir data/digits"
    )


def find_trained_data(folder: Folder, given: str | Path | None) -> Path:
    """The dataset folder: `given` on the command line, else the one that the folder was trained with."""
    if given:
        return Path(given)
    remembered = folder.meta().get("data_dir")
    if not remembered:
        raise UserError(f"{folder.path / META} does not say where the data is: give --data_dir DATA")
    return Path(remembered)


def find_present_data(folder: Folder, given: str | Path | None) -> Path:
    """find_trained_data, for reading it: UserError where nothing is there any more."""
    data_dir = find_trained_data(folder, given)
    folder.check_data(data_dir)
    return data_dir


def find_weights(folder: Folder, restore_file: str) -> Path:
    """The weights file that `restore_file` means: best or last of `folder`, a file, or another experiment folder."""
    path = folder.weights(restore_file) if restore_file in ("best", "last") else Path(restore_file)
    if path.is_dir():
        path = Folder(path).weights("best")
    if not path.is_file():
        raise UserError(
            f"--restore_file: {path}: no such weights file; possible: best, last, a file, or an experiment folder"
        )
    return path


def find_pretrained(params: Params) -> Path | None:
    """The weights file that `pretrain` names, of an experiment folder its best weights; None when it names no file.

    UserError for an experiment folder that has none.
    """
    if not isinstance(params.pretrain, str) or is_weights_tag(params.pretrain):
        return None
    path = params.folder / Path(params.pretrain).expanduser()
    if not path.is_dir():
        return path  # what is no file is said where it is read
    weights = Folder(path).weights("best")
    if not weights.is_file():
        train = command("python", "train.py", "--model_dir", path)
        raise UserError(f"pretrain: the experiment folder {path} holds no {weights_file('best')}; train it: {train}")
    check_own_weights(Folder(path), "best")
    return weights


def find_trained_weights(folder: Folder, restore_file: str) -> Path:
    """find_weights, for a folder that should have been trained: UserError says how to get weights when it has none."""
    if not folder.path.is_dir():
        raise UserError(f"{folder.path}: no such experiment folder")
    if restore_file in ("best", "last"):
        check_own_weights(folder, restore_file)
    if restore_file in ("best", "last") and not folder.weights(restore_file).is_file():
        folder.resolved()  # raises for a folder that has not been trained, with the command that trains it
        resume = command("python", "train.py", "--model_dir", folder.path)
        raise UserError(
            f"{folder.weights(restore_file)} does not exist: no epoch has finished yet; continue with {resume}"
        )
    return find_weights(folder, restore_file)


def check_own_weights(folder: Folder, which: str) -> None:
    """UserError (exit 3) when records are damaged, or the weights are not those that the run recorded at its end."""
    train = command("python", "train.py", "--model_dir", folder.path)
    try:
        changed = find_changed_results(folder, [weights_file(which)])
        if (folder.path / RESOLVED).exists():
            folder.resolved()
    except UserError as damaged:
        raise UserError(f"{damaged}; not touched. What can be done is said by: {train}", EXIT_DAMAGED) from None
    if changed:
        reason = "is not what the run wrote: it was damaged, or it is from another run"
        raise UserError(
            f"{folder.weights(which)} {reason}; not used. To write it again from the state: {train}", EXIT_DAMAGED
        )


def check_weights_code(folder: Path, weights: Path, metadata: JsonObject, say: Callable[[str], None]) -> None:
    """UserError when the file "net.py" that the metadata of `weights` name is another one where they lie than here.

    The net that runs is the copy in `folder`. One line is said where there is no code beside the weights to compare.
    """
    names = sorted({Path(name).name for name in references(metadata)})
    origin = weights.resolve().parent.parent
    if not names or origin == folder.resolve():
        return
    theirs = origin / CODE / "experiment"
    ours = folder / CODE / "experiment"
    if not all((ours / name).is_file() for name in names):
        return  # recorded_files() refuses it
    if not theirs.is_dir():
        shown = ", ".join(names)
        say(f"{weights}: the {shown} that made these weights is not beside them; the copy in {ours} runs, unverified")
        return
    if different := [name for name in names if is_different(theirs / name, ours / name)]:
        which = ["--restore_file", weights.stem] if weights.parent.name == "weights" and weights.stem == "last" else []
        raise UserError(
            f"{weights}: these weights were made with another {', '.join(different)} than that of {folder}; not used. "
            f"With their own: {command('--model_dir', origin, *which)}"
        )


def weights_name(restore_file: str) -> str:
    """A label for file names: best or last of the folder itself; of a path its stem, with the experiment's name."""
    if restore_file in ("best", "last"):
        return restore_file
    path = Path(restore_file)
    stem = path.name.removesuffix(".safetensors")
    return f"{path.resolve().parent.parent.name}_{stem}" if stem in ("best", "last") else stem


def parse_split(name: str) -> str:
    """train, valid or test. UserError for any other name."""
    split = str(SPLIT_SYNONYMS.get(name, name))
    if split not in SPLITS:
        raise UserError(f"--split: unknown split {split!r}; {nearest(split, SPLITS)}")
    return split
