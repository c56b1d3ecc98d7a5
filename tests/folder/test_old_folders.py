"""Folders that 0.1.0 left (tests/data/README.md) are read, refused with a way out, and finished by their own code."""

import json
import shlex
import shutil
import subprocess
import sys
import tarfile

import pytest
from kit import ROOT, call, make_dataset, shell, tree

ARCHIVE = ROOT / "tests/data/version_0_1_0.tar.xz"
CHILDREN = [f"learning_rate_{rate}__ps_{ps}" for rate in (0.01, 0.02) for ps in (0.1, 0.2)]
ON_ANOTHER_MACHINE = "the machine changed"  # what a resume says where the machine is of another kind than the samples'


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """The three folders as 0.1.0 left them: with its code in record/code/ of each."""
    place = tmp_path_factory.mktemp("samples")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(place, filter="data")
    for name in ("finished", "interrupted", "search"):
        shutil.copytree(place / "code", place / name / "record/code", dirs_exist_ok=True)
    return place


@pytest.fixture
def old(samples, tmp_path):
    """Copies of the three, for one test to change."""
    for name in ("finished", "interrupted", "search"):
        shutil.copytree(samples / name, tmp_path / name)
    return tmp_path


def read(path):
    return json.loads(path.read_text())


def assert_done(folder, num_epochs):
    assert read(folder / "record/status.json")["state"] == "done"
    assert [row["epoch"] for row in read(folder / "history.json")] == list(range(1, num_epochs + 1))


def test_a_finished_folder_stays_done(old, data):
    before = tree(old / "finished")
    code, printed = call("train", "--data_dir", data, "--model_dir", old / "finished")
    assert code == 0
    assert "is done" in printed
    assert tree(old / "finished") == before


def test_its_damaged_table_comes_back_from_its_state(old, data):
    """It has no digests of its results: what can be seen is that history.csv is not that of history.json."""
    path = old / "finished/history.csv"
    before = path.read_bytes()
    path.write_bytes(before[:-9])
    code, printed = call("train", "--data_dir", data, "--model_dir", old / "finished")
    assert code == 0
    assert "written again" in printed
    assert path.read_bytes() == before


def test_tables_plots_and_pages_read_it(old):
    code, printed = call("synthesize_results", old / "finished", old / "interrupted", "--json")
    assert code == 0
    values = {row["folder"]: row for row in json.loads(printed)["rows"]}
    metrics = read(old / "finished/metrics_val_best_weights.json")
    assert values[str(old / "finished")]["val_accuracy"] == metrics["accuracy"]
    assert values[str(old / "finished")]["test_looks"] == 1
    assert "interrupted at epoch 3, step 10" in printed
    code, printed = call("plot_results", old / "finished", old / "interrupted")
    assert code == 0
    assert (old / "history_plots.png").stat().st_size > 1000
    assert "finished" in (old / "report.html").read_text()


def test_it_is_evaluated_by_its_own_code_and_gives_the_metrics_it_gave(old, data):
    folder = old / "finished"
    recorded = read(folder / "metrics_test_best.json")
    before = tree(folder)
    refused = shell("evaluate", "--data_dir", data, "--model_dir", folder)
    assert refused.returncode == 2, refused.stdout
    assert "run it with: python evaluate.py --data_dir" in refused.stderr
    assert tree(folder) == before
    for way in ("--trust", "--code=tree"):  # the second one needs no other consent for the net of its own
        done = shell("evaluate", "--data_dir", data, "--model_dir", folder, way)
        assert done.returncode == 0, done.stderr
        assert f"look {2 if way == '--trust' else 3} at this test set" in done.stdout
        assert read(folder / "metrics_test_best.json") == pytest.approx(recorded, abs=1e-4)
    looks = [json.loads(line) for line in (folder / "record/test_looks.jsonl").read_text().splitlines()]
    assert [look.get("code") for look in looks] == [None, None, "tree"], "0.1.0 writes no such key"


def test_it_predicts(old, data):
    probabilities = []
    for way in (["--trust"], ["--code", "tree"]):
        done = shell("predict", "--model_dir", old / "finished", data / "test/class_1", "--json", *way)
        assert done.returncode == 0, done.stderr
        predictions = json.loads(done.stdout)["rows"]
        assert len(predictions) == 12
        assert {line["label_1"] for line in predictions} == {"class_1"}
        probabilities.append([line["prob_1"] for line in predictions])
    assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-4)


def test_an_interrupted_folder_is_refused_with_the_way_out_and_its_own_code_finishes_it(old, data):
    folder = old / "interrupted"
    before = tree(folder)
    code, printed = call("train", "--data_dir", data, "--model_dir", folder)
    assert code == 2
    assert "the code changed since this run began" in printed
    assert "--code folder" in printed
    assert tree(folder) == before

    flags = ("--data_dir", data, "--model_dir", folder, "--code", "folder")
    refused = shell("train", *flags)
    assert refused.returncode == 2
    assert f"{shlex.join(map(str, flags))} --trust" in refused.stderr
    flags = (*flags, "--trust")
    done = shell("train", *flags)
    if done.returncode == 2 and ON_ANOTHER_MACHINE in done.stderr:
        done = shell("train", *flags, "--accept", "machine")
    assert done.returncode == 0, done.stderr
    assert_done(folder, 200)
    first, now = (json.loads(text) for text in (before["history.json"], (folder / "history.json").read_bytes()))
    assert now[: len(first)] == first, "it goes on where it was"
    assert (folder / "record/code/engine/provenance.py").exists(), "the frozen code stays that of 0.1.0"


def test_a_search_is_finished_by_its_own_code(old, data):
    folder = old / "search"
    before = tree(folder / CHILDREN[0])
    flags = ("--data_dir", data, "--parent_dir", folder)
    refused = shell("search_hyperparams", *flags)
    assert refused.returncode == 2
    assert f"{shlex.join(map(str, flags))} --trust" in refused.stderr
    done = shell("search_hyperparams", *flags, "--trust")
    if done.returncode and ON_ANOTHER_MACHINE in "".join(p.read_text() for p in folder.glob("**/stderr.txt")):
        train = [
            sys.executable,
            folder / "record/code/train.py",
            "--data_dir",
            data,
            "--model_dir",
            folder / CHILDREN[1],
        ]
        subprocess.run([*train, "--accept", "machine"], check=True, timeout=240)
        done = shell("search_hyperparams", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the search continues with the code it began with" in done.stdout + done.stderr
    for child in CHILDREN:
        assert_done(folder / child, 30)
        assert read(folder / child / "record/meta.json")["kit"] == "0.1.0"
    after = tree(folder / CHILDREN[0])
    assert {name for name in before if after[name] != before[name]} == set(), "what is done is left alone"
    assert len((folder / "results.csv").read_text().splitlines()) == 5
    assert not (folder / "record/code/folder").exists()
