"""The diffs of CONTRIBUTING.md apply, and a training with all four of them works."""

import json
import re
import subprocess
import sys

from kit import ROOT, copy_kit, experiment, history, make_dataset


def test_the_four_diffs_apply_and_train(tmp_path):
    copy = copy_kit(tmp_path / "kit")
    diffs = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    assert len(diffs) == 4
    for diff in diffs:
        apply = ["git", "apply", "--recount", "--unsafe-paths", "--directory", str(copy), "-"]
        done = subprocess.run(apply, input=diff, text=True, capture_output=True, cwd=tmp_path)
        assert done.returncode == 0, f"{done.stderr}{diff}"
    values = {"arch": "linear", "arch_args": {}, "metrics": ["accuracy", "margin"], "augment": "grey"}
    folder = experiment(tmp_path / "e", **values, observers=["bell"], learning_rate=0.001)
    command = [sys.executable, copy / "train.py", "--data_dir", make_dataset(tmp_path / "data"), "--model_dir", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"train_margin", "val_margin"} <= set(history(folder)[-1])
    assert (folder / "bell.txt").read_text() == "epoch 2\n"
    assert "ToGray" in json.dumps(json.loads((folder / "record/augm.json").read_text()))
