"""A trained net is measured by the code that trained it, whatever has become of the tree; a sealed test split is looked
at once."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from kit import ROOT, call, copy_kit, experiment, make_dataset, tree, wait_for

from engine.checkpoint import Snapshot, weights_file
from engine.session import Commit
from engine.use import evaluation, inference, looks
from folder.folder import Folder
from folder.identity import Identity
from folder.provenance import INFERENCE_CODE, is_result_code, pick_code, source_files
from folder.trust import seal
from utils import UserError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A dataset, and two experiments trained on it: `m`, and `sealed`, whose best epoch is not its last."""
    root = tmp_path_factory.mktemp("world")
    make_dataset(root / "data")
    experiment(root / "m", num_epochs=1)
    experiment(root / "sealed", num_epochs=2, test="sealed", metrics=["accuracy", "f1"])
    for name in ("m", "sealed"):
        code, printed = call("train", "--data_dir", root / "data", "--model_dir", root / name)
        assert code == 0, printed
    return root


@pytest.fixture
def folders(world, tmp_path):
    for name in ("m", "sealed"):
        shutil.copytree(world / name, tmp_path / name, symlinks=True)
    return tmp_path


def change_frozen(folder, name="model/net.py", old="features.mean(dim=(2, 3)))", new="features.mean(dim=(2, 3)) ** 2)"):
    """As if the folder had been trained by other code than that of the tree: one line differs."""
    path = folder / "record/code" / name
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    seal(folder, folder / "record/code")


def measure(folder, out, *flags):
    code, printed = call("evaluate", "--model_dir", folder, "--out", out, "--json", *flags)
    assert code == 0, printed
    head, brace, rest = printed.partition("\n{")
    return head, json.loads((brace + rest) if brace else printed)


def read_looks(folder):
    return [json.loads(line) for line in (folder / "record/test_looks.jsonl").read_text().splitlines()]


# --- by which code --------------------------------------------------------------------------------------------


def test_the_frozen_copy_gives_what_the_tree_gave_byte_for_byte(folders):
    folder = folders / "m"
    head, by_tree = measure(folder, folders / "tree")
    assert "changed since the training" not in head
    head, by_copy = measure(folder, folders / "copy", "--code", "folder", "--bs_test=256", "--device=cpu")
    assert "36 images of 3 classes" in head
    assert (by_tree["code"], by_copy["code"]) == ("tree", "folder")
    assert by_tree["metrics"] == by_copy["metrics"]
    first, second = tree(folders / "tree"), tree(folders / "copy")
    origins = [json.loads(files.pop("evaluation/origin.json")) for files in (first, second)]
    assert first == second
    assert len(first) == 7
    assert [origin.pop("code") for origin in origins] == ["tree", "folder"]
    assert origins[0] == origins[1]
    assert [look["code"] for look in read_looks(folder)] == ["tree", "folder"]


def test_where_the_tree_has_changed_the_folder_computes(folders, world):
    folder = folders / "m"
    _, by_tree = measure(folder, folders / "before")
    change_frozen(folder)
    head, by_copy = measure(folder, folders / "after")
    assert "model/net.py changed since the training" in head
    assert "--code tree" in head
    assert by_copy["code"] == "folder"
    assert abs(by_copy["metrics"]["loss"] - by_tree["metrics"]["loss"]) > 1e-3
    head, again = measure(folder, folders / "asked", "--code", "tree")
    assert "computed by this tree, as asked, though model/net.py changed" in head
    assert again["metrics"] == by_tree["metrics"]
    # predict.py agrees with evaluate.py, by either code
    for way, out in (([], "after"), (["--code=tree"], "asked")):
        code, printed = call("predict", "--model_dir", folder, world / "data/test", "--top", 3, "--json", *way)
        assert code == 0, printed
        rows = json.loads(printed[printed.index("{") :])["rows"]
        table = (folders / out / "evaluation/predictions.csv").read_text().splitlines()
        expected = {line.split(",")[0]: line.split(",")[2:] for line in table[1:]}
        for row in rows:
            predicted, *probabilities = expected[os.path.relpath(row["path"], world / "data")]
            assert row["label_1"] == predicted
            assert row["prob_1"] == pytest.approx(max(map(float, probabilities)), abs=1e-6)
    assert len(rows) == 36


def test_where_no_copy_is_kept_other_code_is_said(folders, world):
    folder = folders / "m"
    shutil.rmtree(folder / "record/code")
    image = next((world / "data/test").rglob("*.png"))
    code, printed = call("predict", folder, image)
    assert code == 0, printed
    assert "changed since the training" not in printed
    code, printed = call("predict", folder, image, "--code", "folder")
    assert code == 2
    assert "keeps no copy of its code (record/code): leave --code out" in printed
    # one byte in the list of what ran
    listed = json.loads((folder / "record/trust.json").read_text())
    digest = listed["files"]["model/net.py"]
    listed["files"]["model/net.py"] = ("1" if digest[0] == "0" else "0") + digest[1:]
    del listed["files"]["model/tta.py"]
    (folder / "record/trust.json").write_text(json.dumps(listed))
    code, printed = call("predict", folder, image)
    assert code == 0, printed
    assert "model/net.py, model/tta.py changed since the training; " in printed
    head, _ = measure(folder, folders / "out")
    assert "model/net.py, model/tta.py changed since the training" in head


def test_metrics_are_those_of_the_tree_and_mistakes_of_the_copy_are_one_line(folders):
    folder = folders / "m"
    change_frozen(folder)
    _, result = measure(folder, folders / "o", '--metrics=["f1", "ece"]')
    assert list(result["metrics"]) == ["loss", "f1", "ece", "accuracy"]
    looked = read_looks(folder)
    assert looked[0]["overrides"] == {"metrics": ["f1", "ece"]}
    weights = folder / "weights/best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    code, printed = call("evaluate", "--model_dir", folder)
    assert code == 3, printed
    assert "is not what the run wrote" in printed.splitlines()[-1]
    # weights from elsewhere: the copy reads them, and says what is wrong
    damaged = shutil.copy(weights, folder.parent / "damaged.safetensors")
    code, printed = call("evaluate", "--model_dir", folder, "--restore_file", damaged)
    assert code == 3, printed
    assert "does not have the recorded digest" in printed.splitlines()[-1]
    code, printed = call("predict", "--model_dir", folder, "--restore_file", damaged, "no such file.png")
    assert code == 3, printed
    (folder / "record/code/evaluate.py").unlink()
    (folder / "record/code/engine/use/frozen.py").unlink()
    seal(folder, folder / "record/code")
    code, printed = call("evaluate", "--model_dir", folder)
    assert code == 2, printed
    assert "holds no record/code/evaluate.py: --code tree computes" in printed
    assert read_looks(folder) == looked


def test_images_that_cannot_be_read_are_named_by_the_copy_too(folders):
    change_frozen(folders / "m")
    code, printed = call("predict", "--model_dir", folders / "m", "gone.png", "--json")
    assert code == 2, printed
    assert json.loads(printed[printed.index("{") : printed.rindex("}") + 1])["failed"] == 1


def test_logits_alone_are_for_the_caller_that_records_the_look(folders):
    code, printed = call("evaluate", "--model_dir", folders / "m", "--logits", folders / "x.npz")
    assert code == 2, printed
    assert not (folders / "x.npz").exists()


def test_what_the_net_and_its_input_depend_on():
    counted = {name.as_posix() for name in source_files(ROOT) if is_result_code(name, INFERENCE_CODE)}
    assert {"include.py", "utils.py", "engine/use/inference.py", "params/keys.py", "model/nets/build.py"} <= counted
    rooms = {name.split("/")[0] for name in counted}
    assert rooms == {"include.py", "utils.py", "params", "model", "engine"}
    assert [name for name in counted if name.startswith("engine")] == ["engine/use/inference.py"]
    assert not [name for name in counted if "images/build" in name or name.endswith("check.py")]


def test_comments_do_not_count(folders):
    folder = Folder(folders / "m")
    said = []
    assert pick_code(folder, None, said.append) == "tree"
    change_frozen(folder.path, old="return self.head(features", new="# a remark\n        return self.head(features")
    assert pick_code(folder, None, said.append) == "tree"
    assert said == []


# --- a sealed test split --------------------------------------------------------------------------------------


def look_at(folder, *flags):
    return call("evaluate", "--model_dir", folder, *flags)


def test_a_sealed_split_is_looked_at_once_and_the_same_weights_get_the_recorded_metrics(folders, monkeypatch):
    folder = folders / "sealed"
    assert look_at(folder)[0] == 0
    before = tree(folder)
    first = json.loads((folder / "metrics_test_best.json").read_text())
    # again: no second computation
    monkeypatch.setattr(evaluation, "collect_outputs", None)
    code, printed = look_at(folder)
    assert code == 0, printed
    assert "the test split is sealed" in printed
    assert f"accuracy {first['accuracy']:.4f}" in printed
    code, printed = look_at(folder, "--json")
    result = json.loads(printed[printed.index("{") :])
    assert {"epoch": result["epoch"]} | result["metrics"] == first
    # other weights, metrics and views are refused
    if (folder / "weights/last.safetensors").read_bytes() == (folder / "weights/best.safetensors").read_bytes():
        pytest.fail("the fixture wants two different sets of weights")
    for flags in (["--restore_file", "last"], ["--tta=flip"], ['--metrics=["ece"]']):
        code, printed = look_at(folder, *flags)
        assert code == 2, printed
        assert len(printed.strip().splitlines()) == 1, printed
        assert '"test": "sealed"' in printed
    assert tree(folder) == before
    # the way out that is named works
    monkeypatch.undo()
    assert look_at(folder, "--restore_file", "last", "--split", "valid")[0] == 0


def test_a_kill_after_the_look_does_not_lock_its_owner_out(folders, monkeypatch):
    folder = folders / "sealed"

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "write_evaluation", stop)
    with pytest.raises(KeyboardInterrupt):
        look_at(folder)
    monkeypatch.undo()
    (look,) = read_looks(folder)
    assert not (folder / "metrics_test_best.json").exists()
    code, printed = look_at(folder, "--restore_file", "last")
    assert code == 2, printed
    assert look_at(folder)[0] == 0
    metrics = json.loads((folder / "metrics_test_best.json").read_text())
    assert {name: metrics[name] for name in look["metrics"]} == look["metrics"]
    assert (folder / "evaluation/top_losses.png").exists()
    assert read_looks(folder) == [look]


def test_the_one_look_is_at_one_set_of_images(folders, world):
    folder = folders / "sealed"
    other = make_dataset(folders / "other", per_class=7)
    assert look_at(folder)[0] == 0
    before = tree(folder)
    code, printed = look_at(folder, "--data_dir", other)
    assert code == 2, printed
    assert "other images, labels or groups" in printed.splitlines()[-1]
    assert tree(folder) == before
    moved = folders / "moved"
    shutil.copytree(world / "data", moved)
    assert look_at(folder, "--data_dir", moved)[0] == 0, "a plain copy is the same dataset"
    assert len(read_looks(folder)) == 1


def test_other_data_does_not_spend_the_one_look(folders, world):
    folder = folders / "sealed"
    other = make_dataset(folders / "other", per_class=7)
    before = tree(folder)
    code, printed = look_at(folder, "--data_dir", other)
    assert code == 2, printed
    assert "The look is not spent" in printed.splitlines()[-1]
    assert tree(folder) == before
    # the way out that is named works, and gives what the folder's own data gives
    assert f"--data_dir ({world / 'data'} when" in printed
    assert look_at(folder, "--data_dir", world / "data")[0] == 0
    _, own = measure(folders / "m", folders / "o", "--data_dir", world / "data")
    (look,) = read_looks(folder)
    assert look["data"] == read_looks(folders / "m")[0]["data"]
    assert look["metrics"].keys() > own["metrics"].keys() - {"f1"}


# --- beside a training that goes on -----------------------------------------------------------------------------


def test_digest_and_numbers_are_of_the_same_bytes_when_the_file_is_replaced_meanwhile(folders):
    """A thread exchanges two sets of weights for as long as they are measured."""
    folder, changing = folders / "sealed", folders / "changing.safetensors"
    sets = [folder / f"weights/{name}.safetensors" for name in ("best", "last")]
    assert sets[0].read_bytes() != sets[1].read_bytes()
    shutil.copy(sets[0], changing)
    argv = ["--split", "valid", "--restore_file", changing]
    expected = {}
    for weights in sets:
        _, result = measure(folder, folders / "expected", "--split", "valid", "--restore_file", weights)
        origin = json.loads(next((folders / "expected").glob("evaluation_*/origin.json")).read_text())
        expected[origin["weights"]] = result["metrics"]
        shutil.rmtree(folders / "expected")
    ended = threading.Event()

    def exchange():
        for number in itertools.count():
            temporary = shutil.copy(sets[number % 2], folders / "temporary")
            os.replace(temporary, changing)
            if ended.wait(0.003):
                return

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        for number in range(6):
            _, result = measure(folder, folders / str(number), *argv)
            origin = json.loads((folders / str(number) / "evaluation_valid_changing/origin.json").read_text())
            assert result["metrics"] == expected[origin["weights"]]
    finally:
        ended.set()
        thread.join()


def test_the_epoch_is_that_of_the_weights(tmp_path):
    """A writer commits one epoch after the other, in the order in which a training does."""
    folder = Folder(tmp_path)
    folder.identity = Identity.make()
    for name in ("record", "weights", "checkpoints"):
        (tmp_path / name).mkdir()
    metadata = dict.fromkeys(inference.NET_KEYS, 0) | {"classes": ["a"], "normalisation": {}}
    ended = threading.Event()

    def write():
        for epoch in itertools.count(1):
            state = Snapshot(b"state", f"epoch_{epoch:04d}", epoch, epoch, 9)
            tensors = {"epoch": torch.tensor([float(epoch)])}
            row = {"epoch": epoch, "val_loss": 1.0}
            Commit(state, [row], row, weights_file(tensors, metadata), is_best=True, keep_last=1).write(folder)
            if ended.is_set():
                return

    Commit(Snapshot(b"", "epoch_0000", 0, 0, 9), [], None, None, False, 1).write(folder)
    folder.write_status("running")
    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_for(tmp_path / "metrics_val_last_weights.json")
        epochs = []
        for number in range(60):
            weights = inference.find_trained(folder, ("best", "last")[number % 2])
            epochs.append(weights.epoch)
            assert weights.epoch in (None, float(weights.tensors["epoch"]))
        assert len(set(epochs) - {None}) > 3
    finally:
        ended.set()
        thread.join()


def test_a_copy_of_the_code_that_measured_other_weights_is_not_believed(folders):
    folder, changing = folders / "sealed", folders / "changing.safetensors"
    shutil.copy(folder / "weights/best.safetensors", changing)
    other = shutil.copy(folder / "weights/last.safetensors", folders / "other")
    change_frozen(folder)
    script = folder / "record/code/evaluate.py"
    head, line, rest = script.read_text().partition("from __future__ import annotations\n")
    assert line
    script.write_text(f"{head}{line}import os\nos.replace({str(other)!r}, {str(changing)!r})\n{rest}")
    seal(folder, folder / "record/code")
    before = tree(folder)
    code, printed = look_at(folder, "--restore_file", changing)
    assert code == 2, printed
    assert "was replaced while it was measured" in printed.splitlines()[-1]
    assert tree(folder) == before
    assert not (folder / "record/test_looks.jsonl").exists()


# --- other data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["test", "valid"])
def test_numbers_of_other_data_are_not_the_folders_own(folders, world, split):
    folder = folders / "m"
    other = make_dataset(folders / "other data", per_class=7)
    assert look_at(folder, "--split", split)[0] == 0
    before = tree(folder)
    code, printed = look_at(folder, "--data_dir", other, "--split", split)
    assert code == 0, printed
    assert f"these numbers are not the folder's {split} metrics" in printed
    after = tree(folder)
    new = {name for name in after if after[name] != before.get(name)}
    assert {name.split("/")[0] for name in new - {"record/test_looks.jsonl"}} == {"other_data"}
    (place,) = (folder / "other_data").iterdir()
    assert place.name.startswith("other_data_")
    assert (place / f"metrics_{split}_best.json").exists()
    # it is recorded, and not counted
    if split == "test":
        own, added = read_looks(folder)
        assert "other_data" not in own
        assert added["other_data"] == str(other)
        assert "look 2 at" in look_at(folder)[1]
    # a new attempt does not inherit it
    code, printed = call("train", "--data_dir", world / "data", "--model_dir", folder, "--restart")
    assert code == 0, printed
    assert not (folder / "other_data").exists()
    assert (folder / "attempts/1/other_data").exists()


@pytest.mark.parametrize("how", ["moved", "without its cache", "one image more"])
def test_the_same_data_elsewhere_is_the_folders_own(folders, world, how):
    """One image more in train: valid is what it was, and so the data is known."""
    folder, moved = folders / "m", folders / "moved"
    shutil.copytree(world / "data", moved)
    cache = ["--cache_dir", folders / "cache"] if how == "without its cache" else []
    if how == "one image more":
        image = moved / "train/class_0/000.png"
        shutil.copy(image, image.with_name("more.png"))
    code, printed = look_at(folder, "--data_dir", moved, *cache)
    assert code == 0, printed
    assert "other data" not in printed
    assert not (folder / "other_data").exists()
    assert (folder / "metrics_test_best.json").exists()


def test_data_is_recognised_where_the_tree_splits_in_another_way(folders, world):
    """The folder's copy of the code says which data it is."""
    data = shutil.copytree(world / "data", folders / "data")
    shutil.rmtree(data / "valid")
    kit = copy_kit(folders / "kit")
    subsets = kit / "model/images/subsets.py"
    assert subsets.read_text().count("is_valid[members[:count]]") == 1
    subsets.write_text(subsets.read_text().replace("is_valid[members[:count]]", "is_valid[members[-count:]]"))
    folder = experiment(folders / "n", num_epochs=1)
    words = [sys.executable, kit / "train.py", "--data_dir", data, "--model_dir", folder]
    assert subprocess.run(words).returncode == 0
    code, printed = look_at(folder)
    assert code == 0, printed
    assert "model/images/subsets.py changed since the training" in printed
    assert "other data" not in printed
    code, printed = look_at(folder, "--code", "tree")
    assert "other data" in printed


def test_two_looks_at_once_with_other_weights_are_not_both_taken(folders):
    """The second process had found no look when it began."""
    looks.record_look(folders / "sealed", {"weights": "a", "time": "today", "restore_file": "best"}, once=True)
    with pytest.raises(UserError, match="taken at other weights 'best' on today"):
        looks.record_look(folders / "sealed", {"weights": "b"}, once=True)
    assert len(read_looks(folders / "sealed")) == 1


def test_it_is_pinned_at_the_first_start(folders, world):
    for name, given in (("sealed", "counted"), ("m", "sealed")):
        folder = folders / name
        for flags in ((), ("--accept", "params"), ("--num_epochs=5", "--accept", "params")):
            code, printed = call(
                "train", "--data_dir", world / "data", "--model_dir", folder, f"--test={given}", *flags
            )
            assert code == 2, printed
            assert "since the first start of" in printed
        code, printed = look_at(folder, f"--test={given}")
        assert code == 2, printed


# --- the list of looks ----------------------------------------------------------------------------------------


def test_a_list_that_was_removed_counts_as_a_look(folders):
    folder = folders / "m"
    assert "look 1 at" in look_at(folder)[1]
    (folder / "record/test_looks.jsonl").unlink()
    assert "look 2 at" in look_at(folder)[1]
    assert "at least one earlier look" in read_looks(folder)[0]["lost"]
    sealed = folders / "sealed"
    assert look_at(sealed)[0] == 0
    (sealed / "record/test_looks.jsonl").unlink()
    code, printed = look_at(sealed)
    assert code == 3, printed
    assert "metrics_test_best.json was there without this list" in printed
    assert not (sealed / "record/test_looks.jsonl").exists()


def test_a_copy_by_hard_links_leaves_the_list_of_the_original_alone(folders):
    folder, copy = folders / "m", folders / "copy"
    assert look_at(folder)[0] == 0
    shutil.copytree(folder, copy, copy_function=os.link, symlinks=True)
    before = tree(folder)
    assert "look 2 at" in look_at(copy)[1]
    assert tree(folder)["record/test_looks.jsonl"] == before["record/test_looks.jsonl"]
