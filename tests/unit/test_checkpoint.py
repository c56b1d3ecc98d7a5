"""The states that a folder keeps: which files there are, what the manifest and the links name, and what is in them."""

import pytest
import torch

from engine.checkpoint import Checkpoints, Snapshot


def state(epoch: int, in_epoch: int = 0, phase: str = "train") -> dict:
    """The state after `epoch` epochs of 10 steps, or `in_epoch` steps later."""
    step = 10 * epoch + in_epoch
    return {
        "net": {"weight": torch.full((3,), float(step))},
        "optimizer": {"momentum": torch.ones(3)},
        "history": [],
        "epoch": epoch,
        "step": step,
        "epoch_step": 10 * epoch,
        "phase": phase,
        "num_epochs": 4,
    }


@pytest.fixture
def run(tmp_path):
    """Checkpoints after four epochs, the second of which is the best, and a step into the third; two epochs stay."""
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2):
        commit(checkpoints, state(epoch), is_best=True)
    commit(checkpoints, state(2, in_epoch=5), epoch_done=False)
    commit(checkpoints, state(3))
    commit(checkpoints, state(4))
    return checkpoints


def commit(checkpoints: Checkpoints, saved: dict, epoch_done: bool = True, is_best: bool = False) -> None:
    checkpoints.commit(Snapshot.of(saved), epoch_done=epoch_done, is_best=is_best, keep_last=2)


def files(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.path.glob("*.pt") if not path.is_symlink())


def test_the_best_the_last_two_and_the_one_before_stay(run):
    assert files(run) == ["epoch_0002.pt", "epoch_0003.pt", "epoch_0004.pt"]
    manifest = run.manifest()
    assert [entry["epoch"] for entry in manifest["epochs"]] == [3, 4]
    assert [manifest[name]["step"] for name in ("best", "previous", "last")] == [20, 30, 40]
    assert not manifest["done"]
    assert run.read(manifest["best"])["net"]["weight"].tolist() == [20, 20, 20]


def test_links_are_moved_with_each_commit(run):
    links = {name: (run.path / f"{name}.pt").readlink().name for name in ("best", "last")}
    assert links == {"best": "epoch_0002.pt", "last": "epoch_0004.pt"}
    assert torch.load(run.path / "last.pt", weights_only=True)["step"] == 40


def test_a_finished_run_has_one_optimizer_state(run):
    run.finish()
    assert files(run) == ["epoch_0002_weights.pt", "epoch_0003_weights.pt", "epoch_0004.pt"]
    manifest = run.manifest()
    assert manifest["done"]
    assert manifest["previous"] is None
    assert [entry["file"] for entry in manifest["epochs"]] == ["epoch_0003_weights.pt", "epoch_0004.pt"]
    assert (run.path / "best.pt").readlink().name == "epoch_0002_weights.pt"
    for name, weight in (("best", 20), ("last", 40)):
        read = run.read(manifest[name])
        assert read["net"]["weight"].tolist() == [weight] * 3
        assert (read["optimizer"] is None) == (name == "best")


def test_a_committed_file_is_never_overwritten(run):
    """The same epoch again, with other weights: its file gets a number, and the committed one is read until then."""
    again = state(4)
    again["net"]["weight"] += 1
    commit(run, again)
    assert run.manifest()["last"]["file"] == "epoch_0004_2.pt"
    assert run.manifest()["previous"]["file"] == "epoch_0004.pt"
    assert run.read(run.manifest()["last"])["net"]["weight"].tolist() == [41, 41, 41]


def test_names_say_where_a_state_was_taken():
    assert Snapshot.of(state(2)).name == "epoch_0002"
    assert Snapshot.of(state(2, in_epoch=5)).name == "step_00000025_train"
    assert Snapshot.of(state(2, phase="eval")).name == "step_00000020_eval"
