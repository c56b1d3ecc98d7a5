"""What a start is planned to do, decided from the folder and the command line alone; and how errors are explained."""

from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kit import experiment

from engine.changes import changed_params, drop_flags
from engine.distributed import World
from engine.events import NonFiniteLoss
from engine.failures import explain
from engine.plan import changed_machine, decide, refuse
from folder.arguments import Request, train_parser
from folder.folder import Folder
from include import EXIT_NONFINITE, EXIT_SYSTEM
from utils import UserError


def parse(*words):
    """The request of a command line of train.py."""
    flags, overrides = train_parser(None).parse(list(words))
    return Request.of(flags, overrides, words)


@pytest.fixture
def folder(tmp_path):
    return Folder(experiment(tmp_path / "x"))


@pytest.fixture
def plan(folder):
    return decide(folder, parse("--data_dir", "data"))


class Images:
    """A loader, as far as `pin` looks at it."""

    def __init__(self, fingerprint):
        self.fingerprint = fingerprint
        self.classes = ["cat", "dog"]
        self.pinned = {"classes": self.classes, "im_sz": 16, "mean": [0.5], "std": [0.2]}


CHOICE = {"device": "cpu", "precision": "fp32", "threads": 2, "compile": False, "fused": True}
MACHINE = {"torch": "2", "cpu": "avx2"}


def pin(plan, fingerprint="a", choice=CHOICE, machine=MACHINE):
    return plan.pin({"train": Images(fingerprint), "valid": Images("v")}, choice, machine)


def test_a_plan_is_a_value(plan):
    with pytest.raises(FrozenInstanceError):
        plan.verb = "done"
    assert plan.add_remarks(["one"]).remarks == ("one",)
    assert plan.remarks == ()


def test_pin_returns_a_plan_with_every_automatic_choice_filled_in(plan):
    pinned = pin(plan)
    assert (pinned.params.im_sz, pinned.params.n_clas, pinned.params.precision) == (16, 2, "fp32")
    assert pinned.pinned["data"] == {"train": "a", "valid": "v"}
    assert pinned.pinned["automatic"] == {"im_sz": None, "n_clas": None} | dict.fromkeys(
        ("device", "precision", "compile"), "auto"
    )
    assert plan.pinned == {}
    assert plan.params.precision == "auto"


def test_another_machine_or_other_data_are_refused_until_accepted(folder, plan):
    first = pin(plan)
    assert pin(first).remarks == ()
    with pytest.raises(
        UserError, match=r"the data changed since this run began: the train images, labels or groups\. "
    ):
        pin(first, "b")
    with pytest.raises(UserError, match=r"the machine changed since this run began: cpu avx2 -> avx512\. "):
        pin(first, machine=MACHINE | {"cpu": "avx512"})
    accepting = decide(folder, parse("--data_dir", "data", "--accept", "machine", "--accept", "data"))
    second = pin(accepting.__class__(**vars(accepting) | {"pinned": first.pinned}), "b", machine=MACHINE | {"cpu": "x"})
    assert second.remarks == (
        "continuing with changed data, as accepted: the train images, labels or groups",
        "continuing with changed machine, as accepted: cpu avx2 -> x",
        "not bitwise: on this machine the result may differ in the last bits",
    )


def test_an_accepted_precision_is_no_change_of_the_machine(folder, plan):
    first = pin(plan)
    other = CHOICE | {"precision": "bf16"}
    assert changed_machine(first, other, MACHINE) == ["precision fp32 -> bf16"]
    accepting = decide(folder, parse("--data_dir", "data", "--accept", "params"))
    accepting = accepting.__class__(**vars(accepting) | {"pinned": first.pinned})
    assert changed_machine(accepting, other, MACHINE) == []


def test_arithmetic_is_compared_where_both_know_it(folder, plan):
    known = MACHINE | {"arithmetic": "aa"}
    other = MACHINE | {"arithmetic": "bb"}
    first = pin(plan, machine=known)
    with pytest.raises(UserError, match="the machine changed since this run began: arithmetic aa -> bb") as refused:
        pin(first, machine=other)
    assert "--accept machine" in str(refused.value)
    assert changed_machine(first, CHOICE, MACHINE) == [], "a GPU, no longer asked"
    assert changed_machine(pin(plan), CHOICE, other) == [], "a record of format 1"
    # In another precision the same machine gives another hash.
    accepting = decide(folder, parse("--data_dir", "data", "--accept", "params"))
    accepting = accepting.__class__(**vars(accepting) | {"pinned": first.pinned})
    assert changed_machine(accepting, CHOICE | {"precision": "bf16"}, other) == []


def test_a_refusal_lists_eight_changes_and_the_command(plan):
    assert refuse(plan, "params", []) == []
    with pytest.raises(UserError, match="a; b; c; d; e; f; g; h; and 2 more. To continue") as refused:
        refuse(plan, "params", list("abcdefghij"))
    assert "python train.py --data_dir data --accept params" in str(refused.value)
    with pytest.raises(UserError, match="--code folder runs the frozen copy"):
        refuse(plan, "code", ["train.py"])


def test_changed_parameters_are_those_that_decide_the_result(plan):
    resolved = plan.params.resolved()
    assert changed_params(plan.params.replace(num_workers=3, num_epochs=9), resolved, {}) == []
    assert changed_params(plan.params.replace(learning_rate=0.5), resolved, {}) == ["learning_rate 0.05 -> 0.5"]
    # null was filled in at the first start: null again is no change, another value is
    ran = resolved | {"im_sz": 16}
    automatic = {"automatic": {"im_sz": None}}
    assert changed_params(plan.params, ran, automatic) == []
    assert changed_params(plan.params.replace(im_sz=32), ran, automatic) == ["im_sz 16 -> 32"]


def test_a_key_that_an_earlier_version_did_not_know_had_its_default(plan):
    resolved = {key: value for key, value in plan.params.resolved().items() if key != "tta"}
    assert changed_params(plan.params, resolved, {}) == []
    assert changed_params(plan.params.replace(tta="flip"), resolved, {}) == ["tta 'none' -> 'flip'"]


def test_flags_that_a_suggestion_adds_are_dropped():
    words = ["x", "--restart", "--accept", "params", "--accept=data", "--resume", "--ema=0.9"]
    assert drop_flags(words) == ["x", "--ema=0.9"]


# --- errors -----------------------------------------------------------------------------------------------


def make_run(size=1) -> Any:
    """A run, as far as `explain` looks at it."""
    files = [f"{number}.png" for number in range(5)]
    return SimpleNamespace(
        world=World(size=size),
        params=SimpleNamespace(batch_size=64, accumulate=2),
        train_loader=SimpleNamespace(files=lambda epoch, step: files),
    )


@pytest.mark.parametrize(
    ("error", "size", "code", "words"),
    [
        (NonFiniteLoss("nan", 0, 1), 1, EXIT_NONFINITE, "nan. Its batch: 0.png, 1.png, 2.png and 2 more, listed in"),
        (NonFiniteLoss("nan"), 1, EXIT_NONFINITE, "nan"),
        (OSError(28, "No space left on device", "file"), 1, EXIT_SYSTEM, "file: No space left on device"),
        (
            MemoryError(),
            1,
            EXIT_SYSTEM,
            "out of memory with batch_size 64, accumulate 2: try --accumulate=4 --accept params",
        ),
        (RuntimeError("gloo: closed"), 2, EXIT_SYSTEM, "another process of this run ended (gloo: closed); the same"),
    ],
    ids=["batch", "no batch", "disk", "memory", "rank"],
)
def test_an_error_that_is_no_bug_says_what_to_do(error, size, code, words):
    explained = explain(error, make_run(size))
    assert isinstance(explained, UserError)
    assert explained.code == code
    assert str(explained).startswith(words)


@pytest.mark.parametrize("error", [UserError("x"), KeyError("x"), RuntimeError("gloo: closed"), KeyboardInterrupt()])
def test_other_errors_stay_as_they_are(error):
    assert explain(error, make_run()) is error


def test_the_request_holds_the_flags_of_train_py():
    request = parse("x", "--until", "3", "--accept", "code", "--scratch_dir", "s", "--ema=0.9", "--json")
    assert (request.until, request.accept, request.scratch_dir, request.json) == (3, ["code"], Path("s"), True)
    assert request.overrides == {"ema": 0.9}
