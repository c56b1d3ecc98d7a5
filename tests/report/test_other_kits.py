"""Folders that another kit wrote, as the CS230 template leaves them, are read and left as they are."""

import json
from pathlib import Path

import pytest
from kit import call, tree

PARAMS = {"learning_rate": 1e-3, "batch_size": 32, "num_epochs": 10, "dropout_rate": 0.8, "num_channels": 32, "cuda": 0}


@pytest.fixture
def cs230(tmp_path) -> Path:
    """experiments/learning_rate/ as its search leaves it; values as its save_dict_to_json writes them."""
    for rate, accuracy in ((0.01, 0.9), (0.001, 0.95)):
        folder = tmp_path / "experiments" / "learning_rate" / f"learning_rate_{rate}"
        folder.mkdir(parents=True)
        (folder / "params.json").write_text(json.dumps(PARAMS | {"learning_rate": rate}, indent=4))
        for name in ("best", "last"):
            metrics = {"accuracy": accuracy, "loss": 0.25}
            (folder / f"metrics_val_{name}_weights.json").write_text(json.dumps(metrics, indent=4))
            (folder / f"{name}.pth.tar").write_bytes(b"weights")
        (folder / "train.log").write_text("2018-01-01 INFO: - Eval metrics : accuracy: 0.9")
    return tmp_path / "experiments"


def test_a_table_of_another_kit(cs230):
    before = {path: data for path, data in tree(cs230).items() if not path.startswith("results.")}
    code, out = call("synthesize_results", "--parent_dir", cs230)
    assert code == 0
    assert out.count("written by another kit") == 2
    assert "malformed" not in out
    assert "0.9500" in out
    assert "Not done" not in out
    assert {path: data for path, data in tree(cs230).items() if not path.startswith("results.")} == before


def test_watching_another_kit(cs230):
    from report.tree import find_folders
    from report.watch import watch

    assert "2 written by another kit" in watch(find_folders(cs230), cs230)[0]


def test_every_key_with_another_name_is_said_at_once(cs230):
    folder = cs230 / "learning_rate" / "learning_rate_0.01"
    before = tree(cs230)
    code, out = call("train", "--data_dir", "nowhere", "--model_dir", folder)
    assert (code, "holds results" in out) == (3, True)
    assert tree(cs230) == before
    # its params.json alone
    fresh = cs230 / "fresh"
    fresh.mkdir()
    (fresh / "params.json").write_bytes((folder / "params.json").read_bytes())
    before = tree(cs230)
    code, out = call("train", "--data_dir", "nowhere", "--model_dir", fresh)
    assert code == 2
    assert '2 unknown keys: "dropout_rate": did you mean \'ps\'?; "num_channels": did you mean' in out
    assert tree(cs230) == before
