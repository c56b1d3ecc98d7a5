"""Records and weights that were damaged, removed or exchanged by hand: said in one line, with a way out that works."""

import shutil

import pytest
from kit import call, experiment, weights

from engine.plan import decide
from engine.session import load_committed_state
from folder.arguments import Request
from folder.folder import Folder
from utils import UserError


def test_weights_of_another_experiment_are_not_measured_as_ones_own(train, data, tmp_path):
    one, two = experiment(tmp_path / "one"), experiment(tmp_path / "two", seed=1)
    assert train(one)[0] == 0
    assert train(two)[0] == 0
    own = weights(one)
    shutil.copy(two / "weights/best.safetensors", one / "weights/best.safetensors")
    code, printed = call("evaluate", "--data_dir", data, "--model_dir", one)
    assert code == 3
    assert "is not what the run wrote" in printed
    assert f"python train.py --model_dir {one}" in printed
    assert not (one / "record/test_looks.jsonl").exists()
    code, printed = train(one)
    assert code == 0, printed
    assert "written again from the state" in printed
    assert weights(one) == own
    assert call("evaluate", "--data_dir", data, "--model_dir", one)[0] == 0


def test_a_record_that_is_missing_or_cut_off_names_the_way_out(train, data, tmp_path):
    folder = experiment(tmp_path / "e")
    train(folder, "--until=1")
    for name, damage in (("resolved.json", None), ("meta.json", 100), ("resolved.json", 0)):
        path = folder / "record" / name
        whole = path.read_bytes()
        path.unlink() if damage is None else path.write_bytes(whole[:damage])
        code, printed = train(folder)
        assert code == 3, printed
        assert len(printed.splitlines()) == 1
        assert "--restart" in printed
        code, printed = call("evaluate", "--data_dir", data, "--model_dir", folder)
        assert code == 3, printed
        assert f"python train.py --model_dir {folder}" in printed
        path.write_bytes(whole)
    assert train(folder)[0] == 0


def test_a_state_that_goes_while_a_start_gets_ready_is_said(train, data, tmp_path):
    folder = experiment(tmp_path / "e")
    train(folder, "--until=1")
    plan = decide(Folder(folder), Request(data_dir=str(data)))
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="removed while this start was getting ready"):
        load_committed_state(plan)
