"""The notebooks run from top to bottom on a trained folder."""

import nbformat
import pytest
from kit import ROOT, call, experiment, make_dataset
from nbclient import NotebookClient


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    folder = experiment(tmp_path / "e", num_epochs=1)
    assert call("train", "--data_dir", make_dataset(tmp_path / "data"), "--model_dir", folder)[0] == 0
    monkeypatch.setenv("EXPERIMENT", str(folder))
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    assert "class_0" in str(notebook.cells[-1].outputs)
