"""train.py on real files: the states of a folder, exactness, and what a user sees."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import weakref

import pytest
from kit import ROOT, call, experiment, gone_pid, history, interrupt, make_dataset, shell, tree, weights

from engine import session
from utils import write_json

EXPECTED = [
    "batch_train.png",
    "checkpoints/manifest.json",
    "history.csv",
    "history.json",
    "metrics_val_best_weights.json",
    "metrics_val_last_weights.json",
    "params.json",
    "record/augm.json",
    "record/code/train.py",
    "record/code/model/net.py",
    "record/code/engine/loop.py",
    "record/meta.json",
    "record/requirements.txt",
    "record/resolved.json",
    "record/status.json",
    "record/stderr.txt",
    "record/stdout.txt",
    "train.log",
    "train_history.png",
    "weights/best.safetensors",
    "weights/last.safetensors",
]


def test_a_run_writes_the_folder_and_says_what_next(train, tmp_path, data):
    folder = experiment(tmp_path / "a b", observers=["tensorboard", "live_plot"])
    before = (folder / "params.json").read_bytes()
    code, printed = train(folder)
    assert code == 0, printed
    files = tree(folder)
    assert not [name for name in EXPECTED if name not in files]
    assert any(name.startswith("tensorboard/events") for name in files)
    assert (folder / "params.json").read_bytes() == before
    for word in ("evaluate.py", "predict.py", "--extend", "synthesize_results.py"):
        assert word in printed
    assert f"'{folder}'" in printed, "paths with spaces are quoted"
    rows = json.loads(files["history.json"])
    assert list(rows[0])[:3] == ["epoch", "step", "learning_rate"]
    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "images_per_second"} <= set(rows[0])
    best = json.loads(files["metrics_val_best_weights.json"])
    assert set(best) == {"epoch", "loss", "accuracy"}
    status = json.loads(files["record/status.json"])
    assert status["state"] == "done"
    assert status["epoch"] == 2
    resolved = json.loads(files["record/resolved.json"])
    assert resolved["im_sz"] == 16
    assert resolved["n_clas"] == 3
    assert resolved["precision"] in ("fp32", "bf16")
    assert resolved["pinned"]["classes"] == ["class_0", "class_1", "class_2"]
    log = files["train.log"].decode()
    assert "epoch 2/2" in log
    assert "best epoch" in log


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers(train, tmp_path):
    folders = [experiment(tmp_path / name) for name in ("a", "b", "c")]
    for folder, workers in zip(folders, (0, 0, 2), strict=True):
        assert train(folder, f"--num_workers={workers}", "--ema=0.9", "--mixup=0.4")[0] == 0
    first, *others = folders
    for folder in others:
        assert weights(folder) == weights(first)
        assert weights(folder, "last") == weights(first, "last")
        assert history(folder) == history(first)


def test_another_seed_gives_others(train, tmp_path):
    folders = [experiment(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    for folder in folders:
        train(folder)
    assert weights(folders[0]) != weights(folders[1])


def test_done_is_said_and_nothing_is_touched(train, tmp_path):
    folder = experiment(tmp_path / "x")
    train(folder)
    before = tree(folder)
    code, printed = train(folder)
    assert code == 0
    assert "is done" in printed
    assert tree(folder) == before


def test_a_run_that_was_killed_after_its_last_commit_says_that_it_is_done(train, tmp_path):
    folder = experiment(tmp_path / "e")
    train(folder)
    path = folder / "record/status.json"
    ended = json.loads(path.read_text())
    write_json(path, ended | {"state": "running", "epoch": 0, "step": 0, "pid": gone_pid()})
    (folder / "train_history.png").unlink()
    assert "is done" in train(folder)[1]
    status = json.loads(path.read_text())
    assert all(status[key] == ended[key] for key in ("state", "epoch", "step"))
    assert (folder / "train_history.png").exists()


def test_a_run_that_is_done_says_that_other_data_was_not_looked_at(train, tmp_path, data):
    folder = experiment(tmp_path / "e")
    train(folder)
    for other in (make_dataset(tmp_path / "other"), tmp_path / "nonsuch"):
        code, printed = call("train", "--data_dir", other, "--model_dir", folder)
        assert code == 0
        assert f"{other} was not looked at: {folder} is done, and was trained on {data}" in printed
        assert f"--data_dir {data} --model_dir" in printed
    assert "was not looked at" not in call("train", "--data_dir", data, "--model_dir", folder)[1]


def test_the_closing_lines_extend_further_than_the_last_extension(train, tmp_path):
    folder = experiment(tmp_path / "e", num_epochs=1)
    assert "--extend 5" in train(folder)[1]
    code, printed = train(folder, "--extend", "1")
    assert "--extend 6" in printed


def test_done_with_other_parameters_is_refused_with_both_ways_out(train, tmp_path):
    folder = experiment(tmp_path / "x")
    train(folder)
    before = tree(folder)
    code, printed = train(folder, "--learning_rate=0.2")
    assert code == 2
    assert "learning_rate 0.05 -> 0.2" in printed
    assert "--restart" in printed
    assert "--base" in printed
    assert tree(folder) == before
    assert train(folder, "--num_workers=1")[0] == 0, "execution keys change freely"


def test_a_run_that_is_done_cannot_become_shorter(train, tmp_path):
    folder = experiment(tmp_path / "x")
    train(folder)
    before = tree(folder)
    code, printed = train(folder, "--num_epochs=1", "--accept", "params")
    assert code == 2
    assert "num_epochs 2 -> 1" in printed
    assert tree(folder) == before


def test_an_extension_follows_a_stated_schedule(train, tmp_path):
    folder = experiment(tmp_path / "x", lr_schedule=[[1, 0.1], [100, 0.01]])
    train(folder)
    for extend in (1, 2):
        code, printed = train(folder, "--extend", extend)
        assert code == 0
        assert "learning rate as lr_schedule states, 0.01 at first" in printed
    assert [row["learning_rate"] for row in history(folder)] == pytest.approx([0.1, 0.01, 0.01, 0.01])


def test_extend_continues_and_is_idempotent(train, tmp_path):
    folder = experiment(tmp_path / "x")
    train(folder)
    code, printed = train(folder, "--extend", 2)
    assert code == 0
    assert "extension" in printed
    assert len(history(folder)) == 4
    code, printed = train(folder, "--extend", 2)
    assert code == 0
    assert "is done" in printed
    assert len(history(folder)) == 4
    code, printed = train(folder)
    assert code == 0
    assert "is done" in printed
    code, printed = train(folder, "--num_epochs=5")
    assert code == 0
    assert len(history(folder)) == 5
    rates = [row["learning_rate"] for row in history(folder)]
    assert rates[2] <= 0.05 / 10 + 1e-12
    assert rates[3] < rates[2]


def test_restart_keeps_the_old_attempt(train, tmp_path):
    folder = experiment(tmp_path / "x")
    train(folder)
    old = tree(folder)
    code, _ = train(folder, "--restart", "--learning_rate=0.2")
    assert code == 0
    moved = tree(folder / "attempts" / "1")
    assert moved["weights/best.safetensors"] == old["weights/best.safetensors"]
    assert moved["train.log"] == old["train.log"]
    code, printed = train(folder, "--restart", "--learnig_rate=0.2")
    assert code == 2
    assert "learning_rate" in printed
    assert not (folder / "attempts" / "2").exists(), "validated first"


def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(train, tmp_path, data):
    options = {"num_epochs": 40, "ema": 0.9, "mixup": 0.2, "accumulate": 2, "scheduler": "plateau"}
    whole, parts = experiment(tmp_path / "whole", **options), experiment(tmp_path / "parts", **options)
    train(whole)
    assert interrupt(parts, data) == 143
    status = json.loads((parts / "record/status.json").read_text())
    assert status["state"] == "interrupted"
    assert status["step"] < 40 * 3
    code, printed = train(parts, "--resume")
    assert code == 0
    assert "continuing at epoch" in printed
    assert weights(parts) == weights(whole)
    assert weights(parts, "last") == weights(whole, "last")
    assert history(parts) == history(whole)


def test_the_loaded_checkpoint_is_freed_before_training_goes_on(train, tmp_path, monkeypatch):
    folder = experiment(tmp_path / "x", ema=0.9)
    assert train(folder, "--until", 1)[0] == 0
    loaded, alive = [], []

    def load(plan, load=session.load_committed_state):
        saved, remarks = load(plan)
        loaded.extend(weakref.ref(tensor) for key in ("net", "ema") for tensor in saved[key].values())
        return saved, remarks

    def record(self, event, record=session.Session.record):
        alive.append(sum(tensor() is not None for tensor in loaded))
        record(self, event)

    monkeypatch.setattr(session, "load_committed_state", load)
    monkeypatch.setattr(session.Session, "record", record)
    assert train(folder)[0] == 0
    assert loaded
    assert alive
    assert not any(alive)


def test_what_a_killed_run_left_of_a_checkpoint_is_removed(train, tmp_path):
    folder = experiment(tmp_path / "e")
    assert train(folder, "--until", 1)[0] == 0
    for name in ("step_8.pt", "manifest.json"):
        (folder / "checkpoints" / f".tmp-0a1b2c3d-{name}").write_bytes(b"half")
    assert train(folder)[0] == 0
    assert not list((folder / "checkpoints").glob(".tmp-*"))


def test_changes_are_refused_until_accepted(train, tmp_path, data):
    folder = experiment(tmp_path / "x", num_epochs=40)
    assert interrupt(folder, data) == 143
    before = tree(folder)
    code, printed = train(folder, "--learning_rate=0.01")
    assert code == 2
    assert "learning_rate 0.05 -> 0.01" in printed
    assert "--accept params" in printed
    code, printed = train(folder, "--extend", 3)
    assert code == 2
    assert "not done yet" in printed
    code, printed = train(folder, "--restore_file", "best")
    assert code == 2
    assert "--restore_file" in printed
    assert tree(folder) == before
    code, printed = train(folder, "--learning_rate=0.01", "--accept", "params", "--num_epochs=3")
    assert code == 0
    assert "as accepted" in printed
    assert json.loads((folder / "record/resolved.json").read_text())["learning_rate"] == 0.01
    meta = json.loads((folder / "record/meta.json").read_text())
    assert [s.get("accepted") for s in meta["sessions"]] == [None, ["params"]]


def test_changed_data_is_refused_until_accepted(tmp_path):
    data = make_dataset(tmp_path / "data", ("train", "valid"))
    folder = experiment(tmp_path / "x", num_epochs=40)
    assert interrupt(folder, data) == 143
    extra = next((data / "train/class_0").iterdir())
    (data / "train/class_0/more.png").write_bytes(extra.read_bytes())
    code, printed = call("train", "--data_dir", data, "--model_dir", folder)
    assert code == 2
    assert "the train images" in printed
    assert "--accept data" in printed


def test_changed_code_is_refused_but_comments_are_not(tmp_path, data):
    import shutil

    copy = tmp_path / "kit"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "data", "experiments", "tests", ".*cache", "logs")
    )
    folder = experiment(tmp_path / "x", num_epochs=30)

    def run(*argv):
        return subprocess.run(
            [sys.executable, str(copy / "train.py"), "--data_dir", str(data), "--model_dir", str(folder), *argv],
            capture_output=True,
            text=True,
        )

    process = subprocess.Popen(
        [sys.executable, str(copy / "train.py"), "--data_dir", str(data), "--model_dir", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    next(line for line in process.stdout if "epoch 1/" in line)
    process.send_signal(signal.SIGTERM)
    process.stdout.read()
    assert process.wait() == 143
    loop = copy / "engine" / "loop.py"
    loop.write_text("# a remark\n" + loop.read_text() + "\nCHANGED = 1\n")
    refused = run()
    assert refused.returncode == 2
    assert "engine/loop.py" in refused.stderr
    assert "--accept code" in refused.stderr
    loop.write_text(loop.read_text().replace("\nCHANGED = 1\n", "\n# another\n"))
    assert run("--num_epochs=2", "--accept", "params").returncode == 0


def test_a_frozen_copy_can_run(tmp_path, data):
    folder = experiment(tmp_path / "x", num_epochs=30)
    assert interrupt(folder, data) == 143
    frozen = folder / "record/code/engine/session.py"
    frozen.write_text(frozen.read_text().replace('"continuing at', '"FROZEN continuing at'))
    flags = ["--data_dir", data, "--model_dir", folder, "--code", "folder"]
    refused = shell("train", *flags)
    assert refused.returncode == 2
    assert "changed in record/code since you sealed it: engine/session.py" in refused.stderr
    done = shell("train", *flags, "--trust")
    assert done.returncode == 0, done.stderr
    assert "FROZEN continuing" in done.stdout


def test_a_second_start_on_a_busy_folder_exits_4(tmp_path, data):
    folder = experiment(tmp_path / "x", num_epochs=2000)
    command = [sys.executable, str(ROOT / "train.py"), "--data_dir", str(data), "--model_dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        next(line for line in process.stdout if "epoch 1/" in line)
        second = shell("train", "--data_dir", data, "--model_dir", folder)
        assert second.returncode == 4
        assert str(process.pid) in second.stderr
        assert os.uname().nodename in second.stderr
        assert len(second.stderr.splitlines()) == 1
    finally:
        process.kill()
        process.stdout.read()
        process.wait()
    time.sleep(0.1)
    code, printed = call("train", "--data_dir", data, "--model_dir", folder, "--num_epochs=3", "--accept", "params")
    assert code == 0, "a killed run leaves no lock behind"


def test_restore_file_starts_from_weights(train, tmp_path):
    first, second = experiment(tmp_path / "a"), experiment(tmp_path / "b", learning_rate=1e-9, num_epochs=1)
    train(first)
    code, printed = train(second, "--restore_file", first)
    assert code == 0
    assert "38 of the net's 38 tensors loaded" in printed
    best = json.loads((first / "metrics_val_best_weights.json").read_text())
    started = json.loads((second / "metrics_val_best_weights.json").read_text())
    assert started["loss"] == pytest.approx(best["loss"], rel=0.2)
    assert train(second, "--restore_file", first)[0] == 0, "the same command again"


def test_base_starts_a_new_folder(train, tmp_path):
    base = experiment(tmp_path / "base", learning_rate=0.01)
    folder = tmp_path / "deep" / "new"
    assert train(folder, "--base", base, "--num_epochs=1")[0] == 0
    written = json.loads((folder / "params.json").read_text())
    assert written == {"base": "../../base", "num_epochs": 1}
    resolved = json.loads((folder / "record/resolved.json").read_text())
    assert resolved["learning_rate"] == 0.01
    assert resolved["num_epochs"] == 1
    assert train(folder, "--base", base, "--num_epochs=1")[0] == 0, "the same command again"


def test_a_folder_knows_its_data_and_its_overrides(train, tmp_path, data):
    folder = experiment(tmp_path / "x")
    train(folder, "--num_epochs=1")
    code, printed = call("train", folder)
    assert code == 0
    assert "is done" in printed


def test_early_stopping_stops_and_stays_stopped(train, tmp_path):
    rule = {"patience": 2, "monitor_metric": "loss", "min_delta": 100.0, "minimize": 1}
    folder = experiment(tmp_path / "x", num_epochs=50, early_stopping=rule)
    code, printed = train(folder)
    assert code == 0
    assert "stopped early" in printed
    assert len(history(folder)) == 3
    assert "is done" in train(folder)[1]


def test_a_non_finite_loss_exits_6_and_keeps_the_last_good_state(train, tmp_path):
    folder = experiment(tmp_path / "x", learning_rate=1e30, save_summary_steps=1, scheduler="constant")
    code, printed = train(folder)
    assert code == 6
    assert "learning rate 1e+30" in printed
    assert "epoch 1" in printed
    assert json.loads((folder / "record/status.json").read_text())["state"] == "failed"
    assert not (folder / "weights/best.safetensors").exists()


def test_scratch_disk_holds_what_is_large(train, tmp_path):
    folder = experiment(tmp_path / "x")
    assert train(folder, "--scratch_dir", tmp_path / "scratch")[0] == 0
    assert (folder / "checkpoints").is_symlink()
    assert (folder / "tensorboard").is_symlink()
    assert not (folder / "weights").is_symlink()
    (tmp_path / "scratch").rename(tmp_path / "gone")
    code, printed = train(folder)
    assert code == 0, "what is done stays done"
    code, printed = train(folder, "--num_epochs=3")
    assert code == 3
    assert "it cannot go on" in printed
    assert len(printed.splitlines()) == 1


def test_json_prints_one_object(tmp_path, data):
    folder = experiment(tmp_path / "x", num_epochs=1)
    done = shell("train", "--data_dir", data, "--model_dir", folder, "--json")
    assert json.loads(done.stdout)["status"]["state"] == "done"
    assert "epoch 1/1" in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adamw", "learning_rate": [1e-4, 1e-3, 1e-2]},
        {"optimizer": "rmsprop", "learning_rate": 1e-3},
        {"loss": "focal", "class_weights": "balanced"},
        {"cutmix": 1.0, "mixup": 0.2, "label_smoothing": 0.1},
        {"accumulate": 3},
        {"freeze": {"groups": 2, "epochs": 1}},
        {"scheduler": "step"},
        {"scheduler": "linear", "warmup": 1},
        {"num_epochs": 1.5},
        {"lr_schedule": [[1, 0.1], [2, 0.01]]},
        {"metrics": ["f1", "auc"], "best_metric": "auc"},
        {"sampler": "balanced"},
        {"augment": "none"},
        {"augment": "strong"},
        {"augment": ["Rotate", {"name": "HorizontalFlip", "p": 1}]},
        {"cache": "off"},
        {"cache": "ram", "limit_train": 10},
        {"resize": "letterbox", "im_sz": 24},
        {"keep_last": 2},
        {"grad_clip": 0.1},
        {"precision": "fp32"},
        {"precision": "bf16"},
        {"arch": "resnet9", "arch_args": {"widths": [4, 4, 8]}},
        {"arch": "lenet", "im_sz": 32, "arch_args": {}},
        {"normalize": "imagenet"},
        {"deterministic": 1},
        {"early_stopping": {"patience": 1}},
        {"best_metric": "loss"},
    ],
    ids=lambda change: "-".join(change),
)
def test_every_parameter_trains(train, tmp_path, change):
    folder = experiment(tmp_path / "x", **change)
    code, printed = train(folder)
    assert code == 0, printed
    assert history(folder)


def test_own_files_of_the_folder(train, tmp_path):
    folder = experiment(
        tmp_path / "x", arch="net.py:Own", arch_args={}, loss="net.py:my_loss", metrics=["net.py:my_metric"]
    )
    (folder / "net.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Own(nn.Sequential):\n    def __init__(self, num_classes):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(3 * 16 * 16, num_classes))\n\n"
        "def my_loss(logits, labels):\n    return nn.functional.cross_entropy(logits, labels, reduction='none')\n\n"
        "def my_metric(logits, labels):\n    return (logits.argmax(1) == labels).float()\n"
    )
    code, printed = train(folder)
    assert code == 0, printed
    assert "val_my_metric" in history(folder)[0]
    assert (folder / "record/code/experiment/net.py").exists()


@pytest.mark.parametrize("change", ["--learning_rate=0.3", "--wd=0.5", "--momentum=0.1"])
def test_an_accepted_parameter_acts_on_what_is_left(tmp_path, data, change):
    plain, changed = (experiment(tmp_path / name, num_epochs=3) for name in ("plain", "changed"))
    for folder, words in ((plain, []), (changed, [change, "--accept", "params"])):
        assert call("train", "--data_dir", data, "--model_dir", folder, "--until", "1")[0] == 0
        code, printed = call("train", "--model_dir", folder, *words)
        assert code == 0, printed
    assert history(plain)[0] | {"seconds": 0, "images_per_second": 0} == history(changed)[0] | {
        "seconds": 0,
        "images_per_second": 0,
    }
    assert weights(plain, "last") != weights(changed, "last")
    if "learning_rate" in change:
        assert history(changed)[1]["learning_rate"] == pytest.approx(6 * history(plain)[1]["learning_rate"])


@pytest.mark.parametrize(
    "change", ["--optimizer=adamw", "--ema=0.9", "--best_metric=f1", "--im_sz=24", "--normalize=imagenet"]
)
def test_what_cannot_change_within_a_run_is_refused_whatever_is_accepted(tmp_path, data, change):
    folder = experiment(tmp_path / "x", num_epochs=3)
    assert call("train", "--data_dir", data, "--model_dir", folder, "--until", "1")[0] == 0
    before = tree(folder)
    code, printed = call("train", "--model_dir", folder, change, "--accept", "params")
    assert code == 2
    assert "holds a run, within which this cannot change" in printed
    assert f"--data_dir {data} --model_dir NEW_FOLDER {change}" in printed
    assert tree(folder) == before
    assert call("train", "--model_dir", folder)[0] == 0


def test_the_way_into_a_new_folder_repeats_what_was_recorded(tmp_path, data):
    folder = experiment(tmp_path / "x", num_epochs=1)
    assert call("train", "--data_dir", data, "--model_dir", folder, "--learning_rate=0.2")[0] == 0
    code, printed = call("train", "--model_dir", folder, "--wd=0.1")
    assert code == 2
    words = shlex.split(printed[printed.index("python train.py --base") :].partition("   or ")[0])
    new = tmp_path / "new"
    assert call("train", *[str(new) if word == "NEW_FOLDER" else word for word in words[2:]])[0] == 0
    resolved = json.loads((new / "record/resolved.json").read_text())
    assert (resolved["learning_rate"], resolved["wd"]) == (0.2, 0.1)


def test_a_moved_run_whose_base_is_gone_goes_on_with_what_was_recorded(data, train, tmp_path):
    """`base` is relative: from the new place it leads nowhere. The result is that of a run that was left alone."""
    for name in ("alone", "parent"):
        experiment(tmp_path / name, num_epochs=2, ps=0.3, early_stopping={"patience": 5})
        (tmp_path / name / "child").mkdir()
        (tmp_path / name / "child/params.json").write_text('{"base": "..", "early_stopping": {"min_delta": 0.01}}')
        assert train(tmp_path / name / "child", "--learning_rate=0.02", "--until", 1)[0] == 0
    assert train(tmp_path / "alone/child")[0] == 0
    moved = tmp_path / "elsewhere/deep/child"
    moved.parent.mkdir(parents=True)
    (tmp_path / "parent/child").rename(moved)
    code, printed = train(moved)
    assert code == 0, printed
    assert "its parameters are those that were recorded" in printed
    assert weights(moved) == weights(tmp_path / "alone/child")
    assert history(moved) == history(tmp_path / "alone/child")
    resolved = [json.loads((path / "record/resolved.json").read_text()) for path in (moved, tmp_path / "alone/child")]
    assert resolved[0]["pinned"]["automatic"] == resolved[1]["pinned"]["automatic"]
    # again, extended, and with an edit of its own file
    assert train(moved)[0] == 0
    assert train(moved, "--extend", 1)[0] == 0
    (moved / "params.json").write_text('{"base": "..", "early_stopping": {"min_delta": 0.01}, "ps": 0.1}')
    code, printed = train(moved)
    assert code == 2, printed
    assert "ps 0.3 -> 0.1" in printed
    # back in its place it is the same run; a folder without a run still needs its base
    (moved / "params.json").write_text('{"base": "..", "early_stopping": {"min_delta": 0.01}}')
    moved.rename(tmp_path / "parent/child")
    assert train(tmp_path / "parent/child")[0] == 0
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "params.json").write_text('{"base": "../nowhere"}')
    assert train(fresh)[0] == 2


def test_an_edit_that_a_recorded_override_hides_is_said(data, train, tmp_path):
    folder = experiment(tmp_path / "m", num_epochs=1, arch_args={"n_filters": 4})
    assert train(folder, "--learning_rate=0.02", "--arch_args.n_filters=6")[0] == 0
    before = tree(folder)
    experiment(folder, num_epochs=1, learning_rate=0.5, arch_args={"n_filters": 4})
    code, printed = train(folder)
    assert code == 0, printed
    (line,) = [line for line in printed.splitlines() if "count, not params.json" in line]
    assert "learning_rate 0.02 (params.json: 0.5)" in line
    assert {name for name, content in tree(folder).items() if before[name] != content} == {"params.json"}
    # given again, or not hidden: nothing to say
    assert "params.json:" not in train(folder, "--learning_rate=0.02", "--arch_args.n_filters=6")[1]
    experiment(folder, num_epochs=1, learning_rate=0.02, arch_args={"n_filters": 6})
    assert "count, not params.json" not in train(folder)[1]


def test_a_restart_says_which_recorded_overrides_it_does_not_repeat(data, train, tmp_path):
    folder = experiment(tmp_path / "m", num_epochs=1, arch_args={"n_filters": 4})
    given = ["--learning_rate=0.02", "--arch_args.n_filters=6", "--early_stopping.patience=3"]
    assert train(folder, *given)[0] == 0
    first = weights(folder)
    code, printed = train(folder, "--restart")
    assert code == 0, printed
    assert weights(folder) != first
    (line,) = [line for line in printed.splitlines() if "is not repeated. With it: " in line]
    # the way out: the same again
    (folder / "record/meta.json").write_bytes((folder / "attempts/1/record/meta.json").read_bytes())
    words = shlex.split(line.split("With it: ")[1])
    assert words[:2] == ["python", "train.py"]
    code, printed = call("train", *words[2:])
    assert code == 0, printed
    assert weights(folder) == first
    assert "not repeated" not in printed


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--arch=simple_cn", "arch: unknown net 'simple_cn'; did you mean 'simple_cnn'?"),
        ("--loss=focall", "loss: unknown name 'focall'; did you mean 'focal'?"),
        ("--optimizer=adamww", "optimizer: unknown name 'adamww'"),
        ('--metrics=["acuracy"]', "metrics: unknown name 'acuracy'"),
        ("--dataset=image_foldr", "dataset: unknown name 'image_foldr'"),
    ],
)
@pytest.mark.parametrize("state", ["done", "interrupted"])
def test_an_unknown_name_is_said_before_changed_parameters_are_asked_about(
    train, data, tmp_path_factory, state, flag, words
):
    folder = tmp_path_factory.getbasetemp() / f"named_{state}"
    if not folder.exists():
        experiment(folder)
        assert train(folder, *([] if state == "done" else ["--until", 1]))[0] == 0
    before = tree(folder)
    code, printed = train(folder, flag)
    assert code == 2, printed
    assert words in printed
    assert "--accept" not in printed
    assert "--restart" not in printed
    assert tree(folder) == before
