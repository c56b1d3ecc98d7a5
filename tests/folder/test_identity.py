"""Whose files they are: copies, moved folders, scratch disks, edited and swapped records, results without state."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kit import ROOT, call, experiment, interrupt, make_dataset, tree, wait_for, weights

from folder import aside
from folder.identity import Identity, is_copy
from folder.manifest import FORMAT, read_manifest, seal
from utils import UserError

TEMPLATE = {  # what the CS230 template leaves in a folder
    "metrics_val_best_weights.json": '{"accuracy": 0.9, "loss": 0.3}',
    "metrics_val_last_weights.json": '{"accuracy": 0.8, "loss": 0.4}',
    "train.log": "epoch 1\n",
}
LARGE = ("checkpoints", "tensorboard")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A folder of two epochs that is done, one that paused after the first, and one done with its state on scratch."""
    work = tmp_path_factory.mktemp("trained")
    for name, flags in (("done", []), ("paused", ["--until", 1]), ("scratch", ["--scratch_dir", work / "disk"])):
        folder = experiment(work / name, num_epochs=2)
        assert call("train", "--data_dir", data, "--model_dir", folder, *flags)[0] in (0, 143)
    return work


@pytest.fixture
def train(data):
    return lambda folder, *argv: call("train", "--data_dir", data, "--model_dir", folder, *argv)


@pytest.fixture
def work(trained, tmp_path):
    """The three, moved to a place of their own: what is recorded of the old place is blanked by moving it away."""
    place = tmp_path / "work"
    shutil.copytree(trained, place, symlinks=True)
    for name in LARGE:  # the copy has a scratch disk of its own, as after a move of everything
        link = place / "scratch" / name
        target = place / os.path.relpath(os.path.realpath(link), trained)
        link.unlink()
        link.symlink_to(target)
    return place


def read(folder: Path, name: str = "record/meta.json") -> dict:
    return json.loads((folder / name).read_text())


def ids(folder: Path) -> set[tuple[str, str]]:
    names = ("record/meta.json", "record/resolved.json", "checkpoints/manifest.json")
    return {(read(folder, name)["id"], read(folder, name)["attempt"]) for name in names}


def paste(printed: str, begins: str) -> list[str]:
    """The words of the command in a message that ends with the flag `begins`."""
    part = next(part for part in printed.replace("   or ", "\n").splitlines() if begins in part)
    return part[part.index("python train.py") :].split()[2:]


# --- seals ------------------------------------------------------------------------------------------------------


def test_every_record_is_sealed_with_the_same_ids(work):
    assert len(ids(work / "done")) == 1
    for name in ("record/meta.json", "record/resolved.json", "checkpoints/manifest.json"):
        record = read(work / "done", name)
        assert record == seal(record)
        assert record["format"] == FORMAT
    (work / "done/record/resolved.json").read_bytes().index(b"pinned")


@pytest.mark.parametrize("name", ["record/resolved.json", "record/meta.json", "checkpoints/manifest.json"])
def test_an_edited_record_is_refused_with_a_way_out_that_works(work, train, name):
    folder = work / "paused"
    path = folder / name
    text = path.read_text()
    path.write_text(
        text.replace('"seed": 0', '"seed": 1') if "seed" in text else text.replace('"step": 3', '"step": 2')
    )
    assert path.read_text() != text
    before = tree(folder)
    code, printed = train(folder)
    assert code == 3
    assert "edited" in printed
    assert tree(folder) == before
    assert call("train", *paste(printed, "--restart"))[0] == 0
    assert (folder / "attempts/1" / name).read_bytes() == before[name]


@pytest.mark.parametrize("name", ["record/resolved.json", "record/meta.json", "checkpoints"])
def test_records_of_another_folder_are_not_taken_up(work, train, name):
    mine, other = work / "paused", work / "done"
    shutil.rmtree(mine / name) if (mine / name).is_dir() else (mine / name).unlink()
    (shutil.copytree if (other / name).is_dir() else shutil.copy)(other / name, mine / name)
    before = tree(mine)
    code, printed = train(mine)
    assert code == 3
    assert "another experiment folder" in printed
    assert tree(mine) == before


def test_a_newer_format_is_one_line(work, train):
    path = work / "paused/record/meta.json"
    path.write_text(json.dumps(seal(json.loads(path.read_text()) | {"format": FORMAT + 1})))
    code, printed = train(work / "paused")
    assert code == 3
    assert f"format {FORMAT + 1}, which a newer version wrote" in printed
    assert len(printed.splitlines()) == 1


# --- copies and moves -------------------------------------------------------------------------------------------


def test_a_moved_folder_keeps_its_id_and_a_copy_gets_its_own(work, train):
    moved = work / "moved"
    assert train(work / "paused")[0] == 0  # recorded here
    [(first, attempt)] = ids(work / "paused")
    (work / "paused").rename(moved)
    assert train(moved, "--extend", 1)[0] == 0
    assert ids(moved) == {(first, attempt)}
    copy = Path(shutil.copytree(moved, work / "copy"))
    assert is_copy(copy, read(copy))
    before = tree(moved)
    assert train(copy, "--extend", 2)[0] == 0
    [(second, _)] = ids(copy)
    assert second != first
    assert read(copy)["copied_from"] == first
    assert "adopts" not in read(copy)
    assert tree(moved) == before
    assert train(moved, "--extend", 2)[0] == 0
    assert weights(copy) == weights(moved)


def test_a_copy_does_not_share_the_scratch_disk(work, train):
    folder = work / "scratch"
    assert train(folder, "--extend", 1)[0] == 0  # recorded here
    copy = Path(shutil.copytree(folder, work / "copy", symlinks=True))
    before = tree(folder) | tree(Path(os.path.realpath(folder / "checkpoints")))
    assert train(copy, "--extend", 2)[0] == 0
    assert os.path.realpath(copy / "checkpoints") != os.path.realpath(folder / "checkpoints")
    assert (copy / "checkpoints").is_symlink()
    assert tree(folder) | tree(Path(os.path.realpath(folder / "checkpoints"))) == before
    assert train(folder, "--extend", 2)[0] == 0
    assert weights(copy) == weights(folder)


def test_a_new_folder_under_an_old_name_has_its_own_scratch(data, train, tmp_path):
    disk = ("--scratch_dir", tmp_path / "disk")
    first = experiment(tmp_path / "a", num_epochs=2)
    train(first, *disk, "--until", 1)
    kept = first.rename(tmp_path / "b")
    new = experiment(tmp_path / "a", num_epochs=1, learning_rate=0.002)
    assert train(new, *disk)[0] == 0
    assert os.path.realpath(new / "checkpoints") != os.path.realpath(kept / "checkpoints")
    assert train(kept)[0] == 0
    assert read(kept, "record/resolved.json")["learning_rate"] != 0.002
    alone = experiment(tmp_path / "c", num_epochs=2)
    assert train(alone)[0] == 0
    assert weights(kept) == weights(alone)


@pytest.mark.parametrize("name", ["elsewhere", "under the old name"])
def test_a_copy_takes_no_scratch_files_though_its_original_was_renamed(data, train, tmp_path, name):
    first = experiment(tmp_path / "first", num_epochs=2)
    train(first, "--scratch_dir", tmp_path / "disk", "--until", 1)
    copy = Path(shutil.copytree(first, tmp_path / "copy", symlinks=True))
    renamed = first.rename(tmp_path / "renamed")
    copy = copy.rename(first) if name == "under the old name" else copy
    place = Path(os.path.realpath(renamed / "checkpoints"))
    before = tree(place)
    assert train(copy, "--num_epochs=3", "--learning_rate=0.3", "--accept", "params")[0] == 0
    assert tree(place) == before
    assert train(renamed)[0] == 0
    assert len(read(renamed, "history.json")) == 2
    alone = experiment(tmp_path / "alone", num_epochs=2)
    assert train(alone)[0] == 0
    assert weights(renamed) == weights(alone)
    assert read(copy)["copied_from"] == read(renamed)["id"] != read(copy)["id"]


def test_a_restart_leaves_the_old_scratch_files(work, train):
    folder = work / "scratch"
    assert train(folder, "--extend", 1)[0] == 0  # recorded here
    place = Path(os.path.realpath(folder / "checkpoints"))
    before = tree(place)
    assert train(folder, "--restart", "--scratch_dir", work / "disk", "--learning_rate=0.002")[0] == 0
    assert tree(place) == before
    assert Path(os.path.realpath(folder / "attempts/1/checkpoints")) == place
    assert Path(os.path.realpath(folder / "checkpoints")) != place


def test_links_into_the_scratch_files_of_another_folder_are_refused(work, train):
    folder = work / "paused"
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").symlink_to(os.path.realpath(work / "scratch/checkpoints"))
    code, printed = train(folder)
    assert code == 3
    assert "another" in printed


def test_two_folders_that_link_to_one_place_do_not_train_at_the_same_time(work, data):
    folder = work / "scratch"
    copy = Path(shutil.copytree(folder, work / "copy", symlinks=True))
    holder = "import sys, time; sys.path.insert(0, sys.argv[1])\nfrom folder.folder import Folder\n"
    holder += "with Folder(sys.argv[2]).locked(): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holder, str(ROOT), str(folder)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        code, printed = call("train", "--data_dir", data, "--model_dir", copy, "--extend", 1)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert code == 4
    assert "busy" in printed


def test_a_copy_by_hard_links_leaves_the_original_alone(work, train):
    folder, copy = work / "paused", work / "copy"
    shutil.copytree(folder, copy, copy_function=os.link)
    before = tree(folder)
    assert train(copy)[0] == 0
    assert tree(folder) == before


# --- results without state --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["checkpoints", "checkpoints/manifest.json"])
def test_results_without_state_are_not_overwritten(work, train, lost):
    folder = work / "paused"
    shutil.rmtree(folder / lost) if (folder / lost).is_dir() else (folder / lost).unlink()
    before = tree(folder)
    code, printed = train(folder)
    assert code == 3
    assert "no state of the run" in printed
    assert tree(folder) == before
    # both ways out work when pasted
    copy = Path(shutil.copytree(folder, work / "copy"))
    words = [word.replace(str(folder), str(copy)) for word in paste(printed, "--restore_file best")]
    assert call("train", *words)[0] == 0
    assert call("train", *paste(printed, "--restart"))[0] == 0
    for place in (folder, copy):
        assert (place / "attempts/1/history.json").read_bytes() == before["history.json"]


def test_purged_scratch_files_are_not_trained_over(data, train, tmp_path):
    folder = experiment(tmp_path / "x", num_epochs=2)
    train(folder, "--scratch_dir", tmp_path / "disk", "--until", 1)
    before = tree(folder / "record"), weights(folder, "last")
    for path in Path(os.path.realpath(folder / "checkpoints")).iterdir():
        path.unlink()
    assert train(folder)[0] == 3
    shutil.rmtree(tmp_path / "disk")
    code, printed = train(folder)
    assert code == 3
    assert "is gone" in printed
    assert (tree(folder / "record"), weights(folder, "last")) == before
    assert call("train", *paste(printed, "--restart"))[0] == 0


def test_a_folder_of_another_kit_is_not_overwritten(train, tmp_path):
    folder = experiment(tmp_path / "x", num_epochs=1)
    for name, text in TEMPLATE.items():
        (folder / name).write_text(text)
    before = tree(folder)
    code, printed = train(folder)
    assert code == 3
    assert tree(folder) == before
    assert call("train", *paste(printed, "--restart"))[0] == 0
    assert {name: (folder / "attempts/1" / name).read_text() for name in TEMPLATE} == TEMPLATE


def test_what_is_done_stays_done_without_its_checkpoints(work, train, data):
    folder = work / "done"
    shutil.rmtree(folder / "checkpoints")
    before = tree(folder)
    code, printed = train(folder)
    assert code == 0
    assert "is done" in printed
    code, printed = train(folder, "--extend", 1)
    assert code == 3
    assert "cannot go on" in printed
    code, printed = train(folder, "--learning_rate=0.002")
    assert code == 2
    assert "--restart" in printed
    assert tree(folder) == before
    assert call("evaluate", "--data_dir", data, "--model_dir", folder)[0] == 0
    image = next((data / "test").rglob("*.png"))
    assert call("predict", "--model_dir", folder, image)[0] == 0
    # its ways out
    words = paste(train(folder, "--extend", 1)[1], "NEW_FOLDER")
    new = [word.replace("NEW_FOLDER", str(work / "new")) for word in words]
    assert call("train", *new)[0] == 0
    words = paste(train(folder, "--learning_rate=0.002")[1], "NEW_FOLDER")
    other = [word.replace("NEW_FOLDER", str(work / "other")) for word in words]
    assert call("train", *other)[0] == 0
    assert read(work / "other", "record/resolved.json")["learning_rate"] == 0.002


def test_tables_and_pages_of_another_hand_are_left_alone(work):
    texts = {"results.md": "| | accuracy |\n|:--|:--|\n| a | 0.9 |\n", "report.html": "<html>mine</html>"}
    for name, text in texts.items():
        (work / name).write_text(text)
    for script in ("synthesize_results", "plot_results"):
        code, printed = call(script, "--parent_dir", work)
        assert code == 0
        assert "was not written by this kit: left alone" in printed
    assert {name: (work / name).read_text() for name in texts} == texts
    for name in texts:
        (work / name).unlink()
    for script in ("synthesize_results", "plot_results") * 2:  # its own are written again
        code, printed = call(script, "--parent_dir", work)
        assert code == 0
        assert "left alone" not in printed


# --- renamed while it trains ------------------------------------------------------------------------------------


def test_a_folder_renamed_while_it_trains_is_not_written_under_its_old_name(data, tmp_path):
    folder = experiment(tmp_path / "a", num_epochs=500)
    words = ["--data_dir", str(data), "--model_dir", str(folder)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for(folder / "history.json", process)
    moved = folder.rename(tmp_path / "b")
    new = experiment(folder, num_epochs=1)
    before = tree(new)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 5, printed
    assert tree(new) == before
    assert f"--model_dir {moved}" in printed
    assert interrupt(moved, data, when="continuing at") == 143


# --- an interrupted --restart -----------------------------------------------------------------------------------


class Kill(BaseException):
    """Stands for a kill: no handler of the kit catches it."""


def test_a_restart_that_is_killed_keeps_the_old_attempt_in_one_piece(work, train, monkeypatch):
    folder = work / "done"
    call("evaluate", "--data_dir", read(folder)["data_dir"], "--model_dir", folder)
    before = tree(folder)
    num_moves = len(aside.list_outputs(folder)) + 1
    rename = os.rename
    for number in range(num_moves + 1):
        copy = Path(shutil.copytree(folder, work / f"copy_{number}"))
        done = []

        def kill_after(source, target, done=done, number=number):
            if len(done) == number:
                raise Kill
            done.append(target)
            rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(aside.os, "rename", kill_after)
            if number < num_moves:
                with pytest.raises(Kill):
                    aside.move_aside(copy)
            else:
                aside.move_aside(copy)
        if number % 5 == 0 or number >= num_moves - 1:
            code, printed = train(copy)  # without the flag: what was begun is finished
            assert code == 0, printed
            if number:
                assert not (copy / "record/test_looks.jsonl").exists()
        elif number:
            aside.move_aside(copy)
        if number:
            assert [path.name for path in (copy / "attempts").iterdir()] == ["1"]
            kept = tree(copy / "attempts/1")
            assert kept == {name: before[name] for name in before if name != "params.json"}
        shutil.rmtree(copy)


def test_ids_are_random():
    assert len({Identity.make().id for _ in range(100)}) == 100
    assert read_manifest(Path("nowhere")) == {}


def test_a_fold_of_format_1_has_a_digest_of_its_own_and_no_seal(tmp_path):
    from folder.manifest import check_seal

    check_seal(tmp_path / "fold.json", {"fold": [1, 3], "k": 3, "digest": "of the parts", "counts": {}})
    with pytest.raises(UserError, match="damaged or edited"):
        check_seal(tmp_path / "fold.json", {"fold": [1, 3], "format": 2, "id": "a", "digest": "of the parts"})
