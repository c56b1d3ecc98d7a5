"""Folders that the CS230 template or a descendant of it wrote are read, and left as they are."""

import json
from pathlib import Path

import pytest
from kit import call, tree

PARAMS = {"learning_rate": 1e-3, "batch_size": 32, "num_epochs": 3, "dropout_rate": 0.8, "num_channels": 32, "cuda": 0}
VALUES = (0.5, 0.9, 0.8)  # accuracy after each epoch, plus what the test adds


def log_lines(accuracies, num_epochs) -> str:
    """What its train.py logs, in its format; each epoch takes 12.5 s."""
    lines = [f"2019-12-17 10:00:00,000:INFO: Starting training for {num_epochs} epoch(s)"]
    for epoch, accuracy in enumerate(accuracies, 1):
        best = accuracy >= max(accuracies[:epoch])
        lines += [
            f"2019-12-17 10:0{epoch}:00,000:INFO: Epoch {epoch}/{num_epochs}",
            f"2019-12-17 10:0{epoch}:10,000:INFO: - Train metrics: accuracy: {accuracy + 0.01:05.3f} ; loss: 0.250",
            f"2019-12-17 10:0{epoch}:12,500:INFO: - Eval metrics : accuracy: {accuracy:05.3f} ; loss: 0.300",
            *([f"2019-12-17 10:0{epoch}:12,600:INFO: - Found new best accuracy"] if best else []),
        ]
    return "\n".join(lines) + "\n"


def write_folder(folder: Path, rate: float, accuracies=VALUES, num_epochs=3) -> Path:
    """A folder as its train.py leaves it; values as its save_dict_to_json writes them."""
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(
        json.dumps(PARAMS | {"learning_rate": rate, "num_epochs": num_epochs}, indent=4)
    )
    for name, accuracy in (("best", max(accuracies)), ("last", accuracies[-1])):
        metrics = {"accuracy": accuracy, "loss": 0.3}
        (folder / f"metrics_val_{name}_weights.json").write_text(json.dumps(metrics, indent=4))
        (folder / f"{name}.pth.tar").write_bytes(b"weights")
    (folder / "train.log").write_text(log_lines(accuracies, num_epochs))
    return folder


@pytest.fixture
def cs230(tmp_path) -> Path:
    """experiments/learning_rate/ as its search leaves it, results.md of its own table included."""
    search = tmp_path / "experiments" / "learning_rate"
    for rate, shift in ((0.01, 0.0), (0.001, 0.05)):
        write_folder(search / f"learning_rate_{rate}", rate, [value + shift for value in VALUES])
    (search / "params.json").write_text(json.dumps(PARAMS, indent=4))
    (search / "results.md").write_text("|   | accuracy |\n|:--|--:|\n| learning_rate_0.01 | 0.9 |")
    (search / "learning_rate_0.01" / "metrics_test_best.json").write_text('{"accuracy": 0.88, "loss": 0.4}')
    return tmp_path / "experiments"


def rows_of(parent) -> list[dict]:
    _, out = call("synthesize_results", "--parent_dir", parent, "--json")
    return json.loads(out[out.index("{") :])["rows"]  # after what stderr says of a results.md of theirs


def test_a_table_of_another_kit(cs230):
    before = tree(cs230)
    code, out = call("synthesize_results", "--parent_dir", cs230 / "learning_rate")
    assert code == 0
    assert out.count("written by another kit") == 2
    assert "malformed" not in out
    assert "0.9500" in out
    assert "Not done" not in out
    assert "Best: learning_rate 0.001, accuracy 0.9500; one run each, so no claim." in out
    after = tree(cs230)
    assert {path: after[path] for path in before} == before, "its own results.md too"


def test_epochs_come_from_its_log(cs230):
    best, tested = rows_of(cs230 / "learning_rate")
    assert (best["best_epoch"], best["epochs"], best["seconds"]) == (2, 3, 37.5)
    assert tested["test_accuracy"] == 0.88
    assert tested["test_looks"] is None, "nobody counted them"


def test_plots_of_another_kit(cs230):
    before = tree(cs230)
    search = cs230 / "learning_rate"
    code, out = call("plot_results", "--parent_dir", search)
    assert (code, "history_plots.png" in out, "parameters.png" in out) == (0, True, True)
    page = (search / "report.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["runs"][0]["series"]["val_accuracy"] == pytest.approx([0.55, 0.95, 0.85])
    assert 'href="learning_rate_0.001"' in page, "its folder: it has no page of its own"
    after = tree(cs230)
    assert {path: after[path] for path in before} == before
    assert {path.split("/")[0] for path in after.keys() - before.keys()} == {"learning_rate"}
    assert not [path for path in after.keys() - before.keys() if "learning_rate_0" in path]
    # A page inside such a folder does not make it ours.
    assert call("plot_results", search / "learning_rate_0.01")[0] == 0
    assert [row["status"] for row in rows_of(search)] == ["written by another kit"] * 2


def test_without_logs_the_parameters_are_drawn(cs230):
    for log in cs230.rglob("train.log"):
        log.unlink()
    code, out = call("plot_results", "--parent_dir", cs230)
    assert (code, "no history_plots.png" in out, "parameters.png\n" in out) == (0, True, True)
    code, out = call("plot_results", "--parent_dir", cs230, "--out", cs230 / "x.png")
    assert (code, "no folder with a history" in out) == (2, True)
    assert [row["epochs"] for row in rows_of(cs230)] == [None, None]


def test_the_last_training_of_a_log_counts(cs230):
    folder = cs230 / "learning_rate" / "learning_rate_0.01"
    log = folder / "train.log"
    # Trained again, from better weights; then a start that was stopped in its first epoch.
    log.write_text(log.read_text() + log_lines([0.9, 0.91], 2) + log_lines([], 4))
    (row,) = [row for row in rows_of(cs230) if row["folder"].endswith("0.01")]
    assert (row["epochs"], row["best_epoch"], row["status"]) == (2, 2, "written by another kit")


def test_a_training_that_was_stopped_is_not_done(cs230):
    write_folder(cs230 / "stopped", 0.1, [0.3, 0.4], num_epochs=5)
    code, out = call("synthesize_results", "--parent_dir", cs230)
    assert code == 0
    assert "`stopped`: interrupted at epoch 2 of 5, or still training: written by another kit" in out
    log = cs230 / "stopped" / "train.log"
    log.write_text(log.read_text() + "2019-12-17 10:09:00,000:INFO: - Early Stopping: val loss\n")
    assert "Not done" not in call("synthesize_results", "--parent_dir", cs230)[1]


def test_the_history_of_a_descendant(cs230):
    """It writes {"train": {metric: [...]}, "valid": {...}}, in full precision."""
    folder = cs230 / "learning_rate" / "learning_rate_0.01"
    splits = {
        split: {"accuracy": [0.51234, 0.9, 0.8], "loss": [1.0, float("nan"), 0.3]} for split in ("train", "valid")
    }
    (folder / "history.json").write_text(json.dumps(splits))  # json.dumps writes NaN, as theirs does
    assert call("plot_results", "--parent_dir", cs230)[0] == 0
    data = json.loads((cs230 / "report.html").read_text().split('id="data">')[1].split("</script>")[0])
    (run,) = [run for run in data["runs"] if run["name"].endswith("0.01")]
    assert run["series"]["val_accuracy"] == pytest.approx([0.51234, 0.9, 0.8])
    assert run["series"]["val_loss"] == [1.0, None, 0.3]
    for text in ("[1, 2]", "{}", '{"train": 3, "valid": {"loss": "x"}}', '{"valid": {"loss": []}}'):
        (folder / "history.json").write_text(text)
        assert "malformed" not in call("synthesize_results", "--parent_dir", cs230)[1]


def test_a_loss_that_is_not_a_number_is_empty(cs230):
    """Its json.dump writes NaN, and its log nan."""
    folder = cs230 / "learning_rate" / "learning_rate_0.01"
    for name in ("best", "last"):
        (folder / f"metrics_val_{name}_weights.json").write_text('{"accuracy": 0.9, "loss": NaN}')
    log = folder / "train.log"
    log.write_text(log.read_text().replace("loss: 0.300", "loss:   nan"))
    (row,) = [row for row in rows_of(cs230) if row["folder"].endswith("0.01")]
    assert (row["val_accuracy"], row["val_loss"], row["epochs"]) == (0.9, None, 3)
    assert call("plot_results", "--parent_dir", cs230)[0] == 0
    (folder / "metrics_val_last_weights.json").write_text("[1]")
    assert "malformed" in call("synthesize_results", "--parent_dir", cs230)[1]
    (folder / "metrics_val_best_weights.json").write_text('{"accuracy": 0.9')  # half written: it writes in place
    assert "malformed" in call("synthesize_results", "--parent_dir", cs230)[1]


def test_watching_another_kit(cs230):
    from report.tree import find_folders
    from report.watch import watch

    assert "2 written by another kit" in watch(find_folders(cs230), cs230)[0]


@pytest.mark.parametrize("script", ["train", "evaluate", "predict", "export"])
def test_what_to_do_with_a_trained_folder(cs230, script, data, tmp_path):
    """The command that the message names trains the same here."""
    folder = cs230 / "learning_rate" / "learning_rate_0.01"
    before = tree(cs230)
    code, out = call(script, "--model_dir", folder, *([data] if script == "predict" else []))
    assert code == (3 if script == "train" else 2)
    assert "was trained by another kit" in out
    assert tree(cs230) == before
    if script != "evaluate":
        return
    words = out.strip().split("To train the same here: python train.py ")[1].split()
    place = {"DATA": data, "NEW_FOLDER": tmp_path / "new"}
    small = ["--im_sz=8", "--num_epochs=1", "--device=cpu"]
    assert call("train", *(place.get(word, word) for word in words), *small)[0] == 0
    resolved = json.loads((tmp_path / "new" / "record" / "resolved.json").read_text())
    assert {key: resolved[key] for key in ("arch", "arch_args", "ps", "optimizer", "learning_rate", "batch_size")} == {
        "arch": "sign_net", "arch_args": {"num_channels": 32}, "ps": 0.8, "optimizer": "adam",
        "learning_rate": 0.01, "batch_size": 32,
    }  # fmt: skip


def test_a_folder_whose_parameters_are_known_here_is_a_base(tmp_path):
    folder = write_folder(tmp_path / "resnet18", 0.01)
    known = {"arch": "resnet18", "learning_rate": [0.002, 0.002, 0.002], "scheduler": "one_cycle", "num_epochs": 3}
    (folder / "params.json").write_text(json.dumps(known))
    code, out = call("evaluate", "--model_dir", folder)
    assert code == 2
    assert out.strip().endswith(f"--model_dir NEW_FOLDER --base {folder}")


def test_every_key_with_another_name_is_said_at_once(cs230):
    fresh = cs230 / "fresh"
    fresh.mkdir()
    (fresh / "params.json").write_text(json.dumps(PARAMS))
    before = tree(cs230)
    code, out = call("train", "--data_dir", "nowhere", "--model_dir", fresh)
    assert code == 2
    assert '2 unknown keys: "dropout_rate": did you mean \'ps\'?; "num_channels": an argument of the net' in out
    assert '"arch": "sign_net", the net of the CS230 template (see experiments/base_model)' in out
    assert tree(cs230) == before


def test_its_data_is_not_three_classes(tmp_path):
    from PIL import Image

    for split in ("train", "val", "test"):
        folder = tmp_path / "64x64_SIGNS" / f"{split}_signs"
        folder.mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number % 2}_IMG_{number}.jpg")
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "params.json").write_text("{}")
    code, out = call("train", "--data_dir", tmp_path / "64x64_SIGNS", "--model_dir", folder)
    assert code == 2
    assert "test_signs, train_signs, val_signs are splits without class folders" in out
    words = out.split("python build_dataset.py ")[1].split()
    words = [str(tmp_path / "signs") if word == "DATA" else word for word in words]
    assert call("build_dataset", *words)[0] == 0
    assert sorted(path.name for path in (tmp_path / "signs" / "train").iterdir()) == ["0", "1"]
