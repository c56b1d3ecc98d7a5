"""`train.py --overfit N`: can the net learn N training images by heart? If not, something blocks it.

The same N images in every epoch, without augmentation and without what would hold the net back (dropout, decay,
smoothing, mixing), at a constant learning rate. Leaves record/overfit.json and no weights.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.changes import OVERFIT_STEPS
from engine.events import NonFiniteLoss
from engine.loop import Run, close_epoch, close_training, train_epoch, validate
from engine.measure import read_means
from engine.schedule import Schedule
from engine.state import State
from engine.use.trials.find_lr import peak_rate
from engine.use.trials.findings import write_findings
from folder.console import name_some
from include import OVERFIT
from utils import JsonObject, to_json

if TYPE_CHECKING:
    from engine.plan import Plan

LEARNED = 0.05  # of the loss of guessing
STUCK = 0.9  # of the loss of guessing
SETTLED = 100  # steps, after which the statistics of batch norm serve for evaluation


def learn(run: Run, state: State) -> Iterator[dict[str, float]]:
    """Means over each epoch of the N images: loss and metrics, while they train at a constant rate."""
    rate = peak_rate(run.params)
    constant = Schedule(lambda step: 1.0 if not run.params.lr_schedule else rate)
    run = replace(
        run, schedule=constant, total_steps=OVERFIT_STEPS, params=run.params.replace(save_summary_steps=OVERFIT_STEPS)
    )
    while state.step < OVERFIT_STEPS:
        for _ in train_epoch(run, state):
            pass
        yield read_means(state.sums, run.world.all_sum)
        # Begin the next epoch without an evaluation.
        state.epoch += 1
        state.epoch_step = state.step
        state.sums = {}


def overfit(plan: Plan, run: Run, state: State) -> str:
    """Train, write record/overfit.json, and return the text to print: "" on ranks other than 0."""
    loader = run.train_loader
    learned_at = None
    means: dict[str, float] = {}
    try:
        blocked = describe_frozen(run)
        for means in [] if blocked else learn(run, state):
            if learned_at is None and is_learned(run, means):
                learned_at = state.step
            if state.step >= SETTLED and (learned_at is not None or is_stuck(run, means)):
                break
        if learned_at is None:
            blocked = blocked or explain_failure(run, means)
    except NonFiniteLoss as error:
        blocked = f"{error}".partition(";")[0]
    validation = "" if blocked else describe_validation(run, state)
    run.world.leave()
    if not run.world.is_main:
        return ""
    # The findings, as they are printed.
    result: JsonObject = {
        "images": loader.num_images,
        "passed": not blocked,
        "steps": state.step if learned_at is None else learned_at,
        "loss": means.get("loss"),
        "accuracy": means.get("accuracy"),
        "blocked": blocked,
        "validation": validation,
    }
    write_findings(plan, OVERFIT, result)
    return to_json(result) if plan.request.json else format_result(result)


def is_learned(run: Run, means: dict[str, float]) -> bool:
    """Every image of the epoch was right, with a loss that is small beside that of guessing."""
    return means["accuracy"] == 1 and means["loss"] < LEARNED * math.log(len(run.train_loader.classes))


def is_stuck(run: Run, means: dict[str, float]) -> bool:
    """The loss is still that of guessing, or far above it."""
    return means["loss"] > STUCK * math.log(len(run.train_loader.classes))


def describe_frozen(run: Run) -> str:
    """What to say where no parameter trains, "" elsewhere."""
    run.before_epoch(0)
    return "" if any(p.requires_grad for p in run.net.parameters()) else "nothing is trained: every parameter is frozen"


def explain_failure(run: Run, means: dict[str, float]) -> str:
    """What blocks it, as far as can be seen: equal images with different labels, or the rate."""
    conflicts = find_conflicts(run)
    if conflicts:
        return f"equal images have different labels: {name_some(conflicts)}"
    guessing = math.log(len(run.train_loader.classes))
    rate = peak_rate(run.params)
    if means["loss"] > 2 * guessing:
        return f"the loss is far above that of guessing ({guessing:.3f}): the learning rate {rate:g} is too high"
    if is_stuck(run, means):
        return (
            f"the loss stays at that of guessing ({guessing:.3f}): the learning rate {rate:g} is far too high or far "
            "too low, or nothing of the image reaches the output: see --doctor"
        )
    return (
        f"it learns, but not to the end in {OVERFIT_STEPS} steps: another learning rate than {rate:g}, or a larger net"
    )


def find_conflicts(run: Run) -> list[str]:
    """Pairs of training images that are equal and have different labels."""
    loader = run.train_loader
    seen = defaultdict(list)
    for images, labels, positions, _ in loader.batches(0):
        for image, label, position in zip(images, labels.tolist(), positions.tolist(), strict=True):
            seen[image.cpu().numpy().tobytes()].append((label, position))
    groups = [group for group in seen.values() if len({label for label, _ in group}) > 1]
    return [" = ".join(loader.paths[position] for _, position in group[:2]) for group in groups]


def describe_validation(run: Run, state: State) -> str:
    """Whether what was learned by heart says anything about other images."""
    close_training(run, state)
    for _ in validate(run, state):
        pass
    row = close_epoch(run, state).row
    accuracy = row["val_accuracy"]
    loader = run.valid_loader
    guessing = max(loader.class_counts) / loader.num_images
    spread = math.sqrt(guessing * (1 - guessing) / loader.num_images)
    text = f"validation accuracy {accuracy:.3f}, where the largest class is {guessing:.3f}"
    if accuracy > guessing + 2 * spread:
        return text
    return (
        f"{text}: no better than guessing. More images should change that; if not, do the labels belong to the images?"
    )


def format_result(result: JsonObject) -> str:
    """One line for the test, one for what it means."""
    if result["passed"]:
        learned = f"pass: {result['images']} images learned by heart in {result['steps']} steps"
        return f"{learned} (loss {result['loss']:.3g})\n{result['validation']}\n"
    reached = f", loss {result['loss']:.3g}, accuracy {result['accuracy']:.3f}" if result["loss"] is not None else ""
    return f"FAIL: {result['images']} images are not learned in {result['steps']} steps{reached}\n{result['blocked']}\n"
