"""Experiments side by side, by hand."""

import pytest
from runs import make_folder, write

from report.diff import ExperimentDiff, diff_experiments, format_diff
from utils import UserError


def test_values_side_by_side(tmp_path):
    first = make_folder(tmp_path / "a", 0.75, test=0.5, ps=0.1)
    second = make_folder(tmp_path / "b", 0.5, ps=0.2)
    difference = diff_experiments([first, second])
    assert difference.folders == [str(first), str(second)]
    assert difference.params == {"ps": [0.1, 0.2]}
    assert difference.metrics == {
        "best_epoch": [3, 3],
        "epochs": [3, 3],
        "val_loss": [0.25, 0.5],
        "val_accuracy": [0.75, 0.5],
        "test_loss": [0.5, None],
        "test_accuracy": [0.5, None],
        "num_parameters": [None, None],
        "seconds": [4.5, 4.5],
        "status": ["done", "done"],
    }
    assert difference.code == {str(second): f"{first} holds no copy of its code"}
    assert difference.noise.startswith("One run each, so no claim about noise")


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_the_better_one_is_named(tmp_path, lower_is_better):
    for name, accuracy in (("a", 0.9), ("b", 0.5)):
        for seed in (0, 1, 2):
            folder = make_folder(tmp_path / f"{name}_{seed}", accuracy + seed / 100, net=name, seed=seed)
            write(folder / "record/meta.json", {"minimize": ["accuracy"] if lower_is_better else []})
    noise = diff_experiments([tmp_path / "a_0", tmp_path / "b_1"]).noise
    better = tmp_path / ("b_1" if lower_is_better else "a_0")
    assert noise.startswith(f"Beyond noise: {better} is better in accuracy at the 5% level over 3 and 3 seeds or folds")


def test_names_and_code_in_words():
    difference = ExperimentDiff(
        folders=["/p/a", "/p/b", "/p/c"],
        params={},
        metrics={"val_accuracy": [0.12345, None, 0.5], "epochs": [3, 4, 5], "num_parameters": [None, None, None]},
        code={"/p/b": [], "/p/c": [f"f{i}.py" for i in range(22)]},
        noise="Noise.",
    )
    params, metrics, same, differs, noise = format_diff(difference).strip().split("\n\n")
    assert params == "No params differ."
    assert [line.split("|")[1].strip() for line in metrics.splitlines()[2:]] == ["val_accuracy", "epochs"]
    assert "0.1235" in metrics or "0.1234" in metrics
    assert same == "Code: the same in a and b."
    assert differs == f"Code that differs in c: {', '.join(f'f{i}.py' for i in range(20))} and 2 more"
    assert noise == "Noise."


def test_what_cannot_be_compared(tmp_path):
    folder = make_folder(tmp_path / "a", 0.75)
    for folders, words in (
        ([folder], "two or more"),
        ([folder, folder], "given twice"),
        ([folder, tmp_path], "no results"),
    ):
        with pytest.raises(UserError, match=words):
            diff_experiments(folders)
