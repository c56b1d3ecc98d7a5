"""Command lines of the older templates get the command that does the same here."""

import shlex

import pytest
from kit import ROOT, call

from folder.arguments import train_parser
from folder.older_templates import explain_older_command

GIN = "--data_dir DATA --model_dir save_to_folder --base experiments/simple_cnn"
COMMANDS = {
    "cifar10 results/test_run --n_filters=10": "--data_dir data/cifar10 --model_dir results/test_run "
    "--base experiments/simple_cnn --arch_args.n_filters=10",
    "cifar10 test_run --model.n_filters=10": "--data_dir data/cifar10 --model_dir test_run "
    "--base experiments/simple_cnn --model.n_filters=10",
    "cifar10 test_run_lenet --model=lenet": "--data_dir data/cifar10 --model_dir test_run_lenet "
    "--base experiments/simple_cnn --arch=lenet",
    "cifar10 t --lr_schedule='[[3, 0.1],[100, 0.01]]'": "--data_dir data/cifar10 --model_dir t "
    "--base experiments/simple_cnn '--lr_schedule=[[3, 0.1],[100, 0.01]]'",
    "root results/mine --n_layers=10": "--data_dir data/root --model_dir results/mine --base experiments/simple_cnn",
    "save_to_folder configs/cnn.gin": f"{GIN}",
    "save_to_folder configs/cnn.gin -b='training_loop.n_epochs=5;training_loop.reload=True'": f"{GIN} --num_epochs=5",
    "save_to_folder configs/cnn.gin -b 'training_loop.n_epochs=5'": f"{GIN} --num_epochs=5",
}


@pytest.mark.parametrize("older", COMMANDS)
def test_the_answer_holds_a_command_that_is_understood(older):
    message = explain_older_command(shlex.split(older))
    assert f"python train.py {COMMANDS[older]}" in message
    words = shlex.split(COMMANDS[older])
    flags, overrides = train_parser("").parse(words)  # raises for a flag that does not exist
    assert flags.model_dir
    assert len(overrides) == sum("=" in word for word in words)


def test_what_has_no_counterpart_is_said_beside_the_command():
    message = explain_older_command(["cifar10", "t", "--n_layers=10", "--n_filters=10"])
    assert message.endswith("(a net of your own: --arch_args.n_layers=N)")
    assert "--base experiments/simple_cnn --arch_args.n_filters=10   --n_layers=10: no net of this kit" in message


@pytest.mark.parametrize("older", [words for words in COMMANDS if "lr_schedule" not in words])
def test_the_command_trains(older, data, tmp_path):
    """The answer as it stands, on small data; lr_schedule is compared with what it meant in test_schedule.py."""
    words = shlex.split(COMMANDS[older])
    words[words.index("--data_dir") + 1] = str(data)
    words[words.index("--model_dir") + 1] = str(tmp_path / "run")
    words[words.index("--base") + 1] = str(ROOT / "experiments/simple_cnn")
    code, out = call("train", *words, "--num_epochs=1", "--im_sz=16", "--device=cpu")
    assert code == 0, out


def test_a_folder_that_is_there_is_taken_as_it_is(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/params.json").write_text("{}")
    message = explain_older_command([str(tmp_path), str(tmp_path / "run")])
    assert f"--data_dir {tmp_path} --model_dir {tmp_path / 'run'}" in message
    assert "--base" not in message


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("experiments/quickstart reload=True", "a run continues when its command is repeated"),
        ("experiments/quickstart ps=0.5", "begins with two dashes: --ps=0.5"),
        ("experiments/quickstart --reload=True", "a run continues when its command is repeated"),
        ("experiments/quickstart --training_loop.reload=True", "a run continues when its command is repeated"),
        ("experiments/quickstart --overfit", "how many images? --overfit 64 learns them by heart"),
        ("experiments/quickstart --overfit --seed=1", "how many images? --overfit 64 learns them by heart"),
        ("cifar10 t --overfit --ps=0.5", "--base experiments/simple_cnn --ps=0.5   --overfit: how many images?"),
        ("experiments/quickstart --n_layers=10", "choose a deeper one, as --arch=resnet9"),
    ],
)
def test_one_line_for_words_of_the_older_templates(words, answer):
    code, out = call("train", *shlex.split(words))
    assert code == 2
    assert answer in out
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    "words", ["experiments/a", "--data_dir a=b --model_dir M", "M --arch net.py:Net", "M -h", "M --overfit 9", ""]
)
def test_command_lines_of_today_are_left_alone(words):
    assert explain_older_command(shlex.split(words)) == ""
