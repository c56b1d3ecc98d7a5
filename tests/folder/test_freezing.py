"""Freezing in a folder: what the log says, what stays byte for byte, kills in the middle of a step, refusals."""

import pytest
from kit import experiment, history, interrupt, tree, weights
from safetensors.torch import load_file

STEPS = [[2, 1], [1, 3]]


def tensors(folder):
    return load_file(folder / "weights/last.safetensors")


def test_the_log_says_which_groups_are_frozen_and_what_is_odd_about_it(train, tmp_path):
    code, output = train(experiment(tmp_path / "x", freeze=STEPS, num_epochs=2, learning_rate=[0.001, 0.01, 0.1]))
    assert code == 0
    lines = [" ".join(line.split()) for line in output.splitlines()]
    first = lines.index("layer group parameters rate frozen")
    assert lines[first + 1 : first + 6] == [
        "1 blocks.0 to blocks.1 1,164 0.001 until epoch 3",
        "2 blocks.2 3,520 0.01 until epoch 1",
        "3 head.1 51 0.1 no",
        "freeze: the frozen layers keep their random weights (pretrain is 0)",
        "freeze: 1 layer groups never train: frozen until epoch 3 of 2",
    ]
    code, output = train(experiment(tmp_path / "y", num_epochs=1, freeze=[[1, 0.5]], pretrain=str(tmp_path / "x")))
    assert code == 0
    assert "freeze:" not in output


def test_frozen_layers_keep_their_bytes_step_by_step_batch_norms_statistics_too(train, tmp_path):
    folder = experiment(tmp_path / "x", freeze=STEPS, num_epochs=4)
    seen = []
    for epoch in (1, 2, 3, None):
        assert train(folder, *(["--until", epoch] if epoch else []))[0] == 0
        seen.append(tensors(folder))
    moved = [
        {name.rsplit(".", 1)[0] for name in before if not before[name].equal(after[name])}
        for before, after in zip(seen, seen[1:], strict=False)
    ]
    norms = [{name for name in names if name.endswith("0.0.1") or name.endswith("2.0.1")} for names in moved]
    assert norms == [{"blocks.2.0.1"}, {"blocks.2.0.1"}, {"blocks.0.0.1", "blocks.2.0.1"}]
    assert not seen[0]["blocks.2.0.1.num_batches_tracked"]
    assert not seen[2]["blocks.0.0.1.running_mean"].any()
    assert seen[2]["blocks.2.0.1.running_mean"].any()
    whole = experiment(tmp_path / "whole", freeze=STEPS, num_epochs=4)
    train(whole)
    assert weights(folder, "last") == weights(whole, "last")
    assert history(folder) == history(whole)


def test_a_run_stopped_in_the_middle_of_a_step_of_freezing_goes_on_byte_for_byte(train, data, tmp_path):
    given = {"freeze": [[2, 2], [1, 30]], "num_epochs": 40, "optimizer": "adamw", "learning_rate": 0.01}
    whole = experiment(tmp_path / "whole", **given)
    assert train(whole)[0] == 0
    for when in ("epoch 1/", "epoch 3/", "epoch 29/"):
        folder = experiment(tmp_path / when[:-1].replace(" ", "_"), **given)
        assert interrupt(folder, data, when=when) in (0, 143)  # 0: it was done before the signal came
        assert train(folder)[0] == 0
        assert weights(folder, "last") == weights(whole, "last")
        assert history(folder) == history(whole)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"freeze": [[3, 1]]}, "3 given, but the net has 3 layer groups"),
        ({"freeze": [[1, 1], [2, 3]]}, "whole numbers of groups that fall, epochs that rise"),
        ({"freeze": [[2, 3], [1, 3]]}, "whole numbers of groups that fall, epochs that rise"),
        ({"freeze": [[1.5, 3]]}, "whole numbers of groups that fall"),
        ({"learning_rate": [0.1, 0.2]}, "2 rates for 3 layer groups"),
        ({"layer_decay": 0.5, "learning_rate": [0.1, 0.2, 0.3]}, "layer_decay: 0.5 given beside a list"),
    ],
)
def test_wrong_groups_are_refused_before_anything_is_written(train, tmp_path, params, words):
    folder = experiment(tmp_path / "x", **params)
    before = tree(folder)
    code, output = train(folder)
    assert code == 2
    assert words in output
    assert output.count("\n") == 1
    assert tree(folder) == before


def test_layer_decay_cannot_change_within_a_run(train, tmp_path):
    folder = experiment(tmp_path / "x", layer_decay=0.5)
    code, output = train(folder, "--until", 1)
    assert code == 0
    assert "0.000781 to 0.00625" in output
    assert len(history(folder)[0]["learning_rate"]) == 7
    code, output = train(folder, "--layer_decay=1", "--accept", "params")
    assert code == 2
    assert "layer_decay 0.5 -> 1.0" in output
    assert train(folder)[0] == 0
