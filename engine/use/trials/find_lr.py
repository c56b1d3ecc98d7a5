"""`train.py --find_lr`: the loss at a learning rate that rises with every step, and the rates that it suggests.

The range test of Smith, Cyclical learning rates for training neural networks, arXiv:1506.01186; the suggestions have
the names that fastai gives them (Howard & Gugger, arXiv:2002.04688).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.events import Epoch, NonFiniteLoss
from engine.loop import Run, train_epoch
from engine.schedule import Schedule
from engine.state import State
from engine.use.trials.findings import write_findings
from include import EXIT_NONFINITE, LR_FIND, LR_FIND_PNG
from params import Params
from report.figures import BEST, MUTED, TRAIN, VALID, drawing
from report.rows import flatten
from utils import JsonObject, UserError, command, to_json

if TYPE_CHECKING:
    import numpy as np

    from engine.plan import Plan

LOWEST = 1e-7  # learning rates and number of steps: fastai's
HIGHEST = 10.0
NUM_STEPS = 100
SMOOTHING = 0.9  # of the losses, per step
DIVERGED = 4.0  # times the lowest smoothed loss
SKIPPED = 10  # number of first steps that the suggestions leave out
LEAST = 20  # number of steps that the suggestions need
BEGUN = 0.05  # fraction of the whole fall after which the loss counts as falling
FAR_WORSE = 3.0  # times the loss of guessing, after an epoch: the rate is called too high
HARDLY = 0.03  # a fall of less than this fraction of the loss is none
MARKS = {"valley": VALID, "steepest": BEST, "minimum over ten": "#8e5bb5"}


@dataclass
class Curve:
    """One entry per step: the largest learning rate of all layer groups, the loss, and the loss smoothed."""

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    ended: str = f"held out until {HIGHEST:g}"
    mean: float = 0.0

    def add(self, rate: float, loss: float) -> None:
        """Exponentially weighted mean, corrected for its start at 0 (Kingma & Ba, arXiv:1412.6980, section 3)."""
        self.rates.append(rate)
        self.losses.append(loss)
        self.mean = SMOOTHING * self.mean + (1 - SMOOTHING) * loss
        self.smoothed.append(self.mean / (1 - SMOOTHING ** len(self.rates)))

    @property
    def has_diverged(self) -> bool:
        lowest = min(self.smoothed)
        return self.smoothed[-1] > lowest + (DIVERGED - 1) * abs(lowest)


def peak_rate(params: Params) -> float:
    """The largest learning rate that the run would have."""
    if params.lr_schedule:
        return max(rate for _, rate in params.lr_schedule)
    return max(params.learning_rate) if isinstance(params.learning_rate, list) else params.learning_rate


def hint_at_rate(run: Run, event: Epoch, words: Sequence[str]) -> str:
    """What to do about a rate that is far too high; "" unless the first epoch ends far worse than guessing.

    Guessing has a loss of ln(number of classes). `words`: the command line of the run.
    """
    loss = event.row.get("val_loss")
    guessing = math.log(len(run.train_loader.classes))
    if event.epoch != 1 or loss is None or loss <= FAR_WORSE * guessing:
        return ""
    return (
        f"validation loss {loss:.4g}: {loss / guessing:.3g} times that of guessing ({guessing:.2f}). The learning rate "
        f"{peak_rate(run.params):g} is probably too high; Ctrl-C, then look for one: {command(*words, '--find_lr')}"
    )


def rate_at(step: int) -> float:
    """The largest learning rate of step `step`: from LOWEST to HIGHEST, by the same factor each step."""
    return LOWEST * (HIGHEST / LOWEST) ** (step / (NUM_STEPS - 1))


def range_test(run: Run, state: State) -> Curve:
    """The run's own training steps from its first epoch on, at rising rates, until the loss diverges.

    Net, loss, optimizer, precision, augmentation and order are the run's. Layer groups keep the proportions of their
    rates, layers that are frozen at first stay frozen, momentum is constant. A small dataset is used several
    times.
    """
    from tqdm import tqdm

    # The run, with rates that rise and a Step after each step; every epoch begins like the first.
    initial = 1.0 if run.params.lr_schedule else peak_rate(run.params)  # the rate that initial_lr is relative to
    begin_epoch = run.before_epoch
    run = replace(
        run,
        params=run.params.replace(save_summary_steps=1),
        total_steps=NUM_STEPS,
        schedule=Schedule(lambda step: rate_at(step) / initial),
        before_epoch=lambda epoch: begin_epoch(0),
    )
    state.ema = None
    curve = Curve()
    is_hidden = None if run.world.is_main else True  # None: hidden where there is no terminal
    with tqdm(total=NUM_STEPS, desc="range test", unit="step", leave=False, disable=is_hidden) as bar:
        while state.step < NUM_STEPS:
            try:
                for event in train_epoch(run, state):
                    curve.add(rate_at(event.step - 1), event.loss)
                    bar.update()
                    if curve.has_diverged:
                        curve.ended = f"diverged at {curve.rates[-1]:.2g}"
                        return curve
            except NonFiniteLoss:
                curve.ended = f"was no longer finite at {rate_at(len(curve.rates)):.2g}"
                return curve
            # Begin the next epoch without an evaluation.
            state.epoch += 1
            state.epoch_step = state.step
            state.sums = {}
    return curve


# --- what the curve suggests ----------------------------------------------------------------------------


def suggest_rates(curve: Curve) -> dict[str, float]:
    """Name -> learning rate, to two digits. UserError (exit 6) when the curve is too short to say anything."""
    import numpy as np

    if len(curve.rates) < LEAST:
        raise UserError(
            f"--find_lr: the loss {curve.ended}, after {len(curve.rates)} of {NUM_STEPS} steps: too few to suggest a "
            "learning rate; look at the data, the loss and the net",
            EXIT_NONFINITE,
        )
    rates, losses = np.array(curve.rates[SKIPPED:]), np.array(curve.smoothed[SKIPPED:])
    lowest = int(losses.argmin())
    slopes = np.gradient(losses, np.log(rates))
    suggestions = {
        "valley": rates[valley(losses)],
        "steepest": rates[slopes[: lowest + 1].argmin()],
        "minimum over ten": rates[lowest] / 10,
    }
    return {name: rounded(rate) for name, rate in suggestions.items()}


def rounded(rate: float) -> float:
    """To two digits."""
    return float(f"{rate:.2g}")


def valley(losses: np.ndarray) -> int:
    """The position at two thirds of the way from where `losses` (N,) begin to fall to the lowest of them.

    fastai's valley is the longest falling subsequence. That reaches far back into a noisy plateau, and its rates were
    a tenth of these, too low for every net that was tried.
    """
    import numpy as np

    lowest = int(losses.argmin())
    level = losses[0] - BEGUN * (losses[0] - losses[lowest])
    before = np.flatnonzero(losses[: lowest + 1] >= level)
    start = int(before[-1]) if len(before) else 0
    return start + 2 * (lowest - start) // 3


def warn_of_flat(curve: Curve) -> str:
    """A warning for a curve that hardly falls, or not below its noise; "" for a good one."""
    import numpy as np

    plateau = np.array(curve.losses[: 3 * SKIPPED])  # up to a rate of 5e-5, at which next to nothing is learned
    first = plateau.mean()
    lowest = min(curve.smoothed)
    if first - lowest > max(HARDLY * abs(first), plateau.std()):
        return ""
    fall = f"the loss hardly falls at any rate ({first:.3g} -> {lowest:.3g})"
    return f"{fall}: {NUM_STEPS} steps are few for this net, and the suggestions say little"


def with_rate(params: Params, rate: float) -> str:
    """The flag that makes `rate` the largest of the run; several rates keep their proportions."""
    factor = rate / peak_rate(params)
    if params.lr_schedule:
        return f"--lr_schedule={json.dumps([[until, rounded(one * factor)] for until, one in params.lr_schedule])}"
    if isinstance(params.learning_rate, list):
        return f"--learning_rate={json.dumps([rounded(one * factor) for one in params.learning_rate])}"
    return f"--learning_rate={rate:g}"


def next_command(plan: Plan, rate: float) -> str:
    """The command that trains with `rate`: this folder, or a new one when it holds a run already."""
    where = (
        ["--base", plan.folder.path, "--model_dir", "NEW_FOLDER"]
        if plan.holds_run
        else ["--model_dir", plan.folder.path]
    )
    words = ["--data_dir", plan.data_dir, *where]
    words += ["--restore_file", plan.start_weights] if plan.restore_name else []
    words += ["--cache_dir", plan.request.cache_dir] if plan.request.cache_dir else []
    others = {key: value for key, value in plan.overrides.items() if key not in ("learning_rate", "lr_schedule")}
    words += [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in flatten(others).items()
    ]
    return command("python", "train.py", *words, with_rate(plan.params, rate))


# --- the whole test -------------------------------------------------------------------------------------


def find_lr(plan: Plan, run: Run, state: State) -> str:
    """Test, write record/lr_find.json and lr_find.png, and return the text to print: "" on ranks other than 0."""
    params = run.params
    # Test, on all ranks; only one of them reports.
    curve = range_test(run, state)
    run.world.leave()
    suggestions = suggest_rates(curve)
    if not run.world.is_main:
        return ""
    # The findings, as they are printed.
    weights = plan.restore_name or ("published weights" if params.pretrain == 1 else params.pretrain or "fresh weights")
    path = plan.folder.path
    result: JsonObject = {
        "suggestions": {name.replace(" ", "_"): rate for name, rate in suggestions.items()},
        "learning_rate": peak_rate(params),
        "weights": str(weights),
        "steps": len(curve.rates),
        "ended": curve.ended,
        "remark": warn_of_flat(curve),
        "figure": str(path / LR_FIND_PNG),
        "command": next_command(plan, suggestions["valley"]),
    }
    about = {"arch": params.arch, "optimizer": params.optimizer, "batch_size": params.batch_size, "seed": params.seed}
    columns = {"rates": curve.rates, "losses": curve.losses, "smoothed": curve.smoothed}
    write_findings(plan, LR_FIND, result | about | {"overrides": plan.overrides} | columns)
    title = f"{params.arch}, {params.optimizer}, batches of {params.batch_size}"
    save_figure(path / LR_FIND_PNG, curve, suggestions, peak_rate(params), title)
    return to_json(result) if plan.request.json else format_result(result)


def format_result(result: JsonObject) -> str:
    """A line per suggestion, and the command that uses the first."""
    tested = f"{result['steps']} steps from {LOWEST:g} on, on {result['weights']}"
    lines = [f"range test: {tested}; the loss {result['ended']}"]
    lines += [f"{name.replace('_', ' '):17} {rate:g}" for name, rate in result["suggestions"].items()]
    lines += [f"{'now':17} {result['learning_rate']:g}", f"{'curve':17} {result['figure']}"]
    return "\n".join([*lines, result["remark"] or result["command"]]) + "\n"


def save_figure(path: Path, curve: Curve, suggestions: dict[str, float], current: float, title: str) -> None:
    """Loss over learning rate: each step faint, the smoothed curve, each suggestion, and the rate of params.json."""
    import numpy as np
    from matplotlib.ticker import FuncFormatter

    rates = np.array(curve.rates)
    smoothed = np.array(curve.smoothed)
    with drawing(path, 8.4, 4.8) as figure:
        panel = figure.subplots()
        # The losses.
        panel.plot(rates, curve.losses, ".", color=TRAIN, alpha=0.35, label="loss of each step", zorder=2)
        panel.plot(rates, smoothed, color=TRAIN, linewidth=2.2, label="smoothed", zorder=3)
        # The suggestions, and the rate as it is.
        for name, rate in suggestions.items():
            height = np.interp(np.log(rate), np.log(rates), smoothed)
            panel.axvline(rate, color=MARKS[name], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            panel.plot([rate], [height], "o", color=MARKS[name], markersize=8, label=f"{name}   {rate:g}", zorder=5)
        panel.axvline(current, color=MUTED, linewidth=1.4, linestyle=":", label=f"now   {current:g}", zorder=1)
        # The axes: from below the lowest loss to above the first; a loss that diverges leaves the panel.
        start = smoothed[min(SKIPPED, len(smoothed) - 1)]
        low = min(smoothed.min(), np.nanpercentile(curve.losses, 2))
        height = max(start - low, 0.05 * abs(start), 1e-6)
        panel.set_ylim(low - 0.15 * height, start + 0.8 * height)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.set_xlabel("learning rate")
        panel.set_ylabel("training loss")
        panel.set_title(f"range test   {title}")
        panel.legend(loc="lower left", fontsize=9)
