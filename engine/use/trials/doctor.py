"""`train.py --doctor`: what is unusual about a run before it is trained, in one page.

It looks at the data, at the net's first step, at the schedule and at 100 steps of rising rates. It leaves no weights.
docs/doctor.md says what to do about each finding.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from torch.nn.functional import cross_entropy

from engine.loop import Run, seed_device
from engine.observers.probe import is_activation, measure_layers
from engine.observers.steps import peak_memory
from engine.protocols import Loader
from engine.state import State
from engine.use.trials.find_lr import peak_rate, range_test, suggest_rates, warn_of_flat
from engine.use.trials.findings import write_findings
from folder.console import name_some
from include import DOCTOR
from utils import UserError, key64, to_json

if TYPE_CHECKING:
    from torch import Tensor

    from engine.plan import Plan
    from params import Params

UNEQUAL = 10  # times as many images in the largest class as in the smallest
FEW_IMAGES = 10  # of a class
FEW_STEPS = 50  # of the whole run
FAR_OFF = 1.5  # mean of a channel, in standard deviations
NARROW, WIDE = 0.2, 4.0  # standard deviation of a channel
ABOVE_GUESSING = 1.5  # times ln(number of classes)
MOSTLY_DEAD = 0.5  # of the units of an activation function
TOO_FAST = 10  # times the highest rate that the range test suggests


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was seen, and whether to look at it before training."""

    about: str
    text: str
    is_odd: bool = False


# --- what costs nothing: at every start ---------------------------------------------------------------------


def look_at_plan(run: Run) -> list[Finding]:
    """What the data and the schedule say without a pixel read or a step taken."""
    return [*look_at_classes(run.params, run.train_loader), *look_at_schedule(run)]


def look_at_classes(params: Params, loader: Loader) -> list[Finding]:
    """The balance of the classes of the training images."""
    counts = dict(zip(loader.classes, loader.class_counts, strict=True))
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    text = f"{len(counts)} classes of {counts[least]} ({least}) to {counts[most]} ({most}) images"
    few = [name for name, count in counts.items() if count < FEW_IMAGES]
    if few:
        return [Finding("classes", f"{text}; fewer than {FEW_IMAGES} images: {name_some(few)}", is_odd=True)]
    is_balanced = params.sampler == "balanced" or params.class_weights is not None
    if counts[most] >= UNEQUAL * counts[least] and not is_balanced:
        advice = 'class_weights: "balanced" or sampler: "balanced" gives the small ones more weight'
        return [Finding("classes", f"{text}; {advice}", is_odd=True)]
    return [Finding("classes", text)]


def look_at_schedule(run: Run) -> list[Finding]:
    """The learning rate over the run, and what of the schedule the run does not reach."""
    params, total = run.params, run.total_steps
    places = sorted({0, total // 4, total // 2, 3 * total // 4, total - 1})
    peak = peak_rate(params)
    initial = 1.0 if params.lr_schedule else peak
    rates = ", ".join(f"{initial * run.schedule.multiplier(step):.2g}" for step in places)
    text = f"{total} steps; learning rate at the start, the quarters and the end: {rates}"
    odd = []
    if total < FEW_STEPS:
        odd.append(f"{total} steps are few: more num_epochs, or a smaller batch_size")
    if params.lr_schedule:
        late = [until for until, _ in params.lr_schedule[:-1] if until >= params.num_epochs]
        odd += [f"lr_schedule changes after epoch {late[0]:g}, the run ends at {params.num_epochs:g}"] if late else []
    if params.early_stopping and params.early_stopping.patience >= params.num_epochs:
        odd.append(f"early_stopping waits {params.early_stopping.patience} epochs, the run has {params.num_epochs:g}")
    return [Finding("schedule", "; ".join([text, *odd]), is_odd=bool(odd))]


# --- what takes a look at images and net ----------------------------------------------------------------------


def look_at_duplicates(train: Loader, valid: Loader) -> Finding:
    """Files with the same content on both sides."""
    positions = defaultdict(list)
    for position, digest in enumerate(train.digests):
        positions[bytes(digest)].append(position)
    shared = [(positions[bytes(d)][0], n) for n, d in enumerate(valid.digests) if bytes(d) in positions]
    if not shared:
        return Finding("duplicates", "no validation image is also a training image")
    pairs = [f"{valid.paths[there]} = {train.paths[here]}" for here, there in shared]
    text = f"{len(shared)} of {valid.num_images} validation images are training images too: {name_some(pairs)}"
    return Finding("duplicates", text, is_odd=True)


def look_at_pixels(images: Tensor) -> Finding:
    """(B, 3, H, W) as the net gets them: about mean 0 and standard deviation 1."""
    mean = images.mean(dim=(0, 2, 3)).tolist()
    std = images.std(dim=(0, 2, 3)).tolist()
    text = f"mean {', '.join(f'{x:.2f}' for x in mean)}, std {', '.join(f'{x:.2f}' for x in std)} of a training batch"
    is_odd = max(map(abs, mean)) > FAR_OFF or min(std) < NARROW or max(std) > WIDE
    return Finding("pixels", f"{text}; about 0 and 1 is usual: see normalize" if is_odd else text, is_odd)


def look_at_loss(logits: Tensor, labels: Tensor, is_fresh: bool) -> Finding:
    """The loss before the first step, beside that of guessing."""
    guessing = math.log(logits.shape[1])
    loss = cross_entropy(logits.float(), labels).item()
    text = f"{loss:.3f} before the first step; guessing has ln({logits.shape[1]}) = {guessing:.3f}"
    if is_fresh and not loss <= ABOVE_GUESSING * guessing + 0.5:
        return Finding("loss", f"{text}: the outputs of a fresh net should be small", is_odd=True)
    return Finding("loss", text)


def look_at_units(run: Run, images: Tensor) -> Finding:
    """Activation functions most of whose units give one value for all images."""
    layers = dict(run.net.named_modules())
    measured = measure_layers(run.net, images, run.autocast)
    acts = {name: out for name, out in measured.items() if is_activation(layers[name.partition(":")[0]])}
    dead = [f"{name} {out.dead:.0%}" for name, out in acts.items() if out.dead > MOSTLY_DEAD]
    if dead:
        return Finding("units", f"dead units, the same for every image: {name_some(dead)}", is_odd=True)
    return Finding("units", f"{len(acts)} activation functions of {len(measured)} layers, none mostly dead")


def look_at_gradients(run: Run) -> Finding:
    """Which parameters the loss reaches. Gradients must be there."""
    named = list(run.net.named_parameters())
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if not trained:
        return Finding("gradients", "nothing is trained: every parameter is frozen", is_odd=True)
    total = sum(parameter.numel() for _, parameter in named)
    number = sum(parameter.numel() for _, parameter in trained)
    text = f"{number:,} of {total:,} parameters train at first"
    if bad := [name for name, p in trained if p.grad is not None and not bool(p.grad.isfinite().all())]:
        return Finding("gradients", f"{text}; not finite: {name_some(bad)}", is_odd=True)
    unused = [name for name, parameter in trained if parameter.grad is None]
    still = [(name, p.numel()) for name, p in trained if p.grad is not None and not bool(p.grad.any())]
    if unused:
        return Finding("gradients", f"{text}; not used by the forward pass: {name_some(unused)}", is_odd=True)
    if sum(size for _, size in still) > number / 2:
        return Finding("gradients", f"{text}; most of them get none: {name_some([n for n, _ in still])}", is_odd=True)
    return Finding("gradients", text)


def look_at_rate(run: Run, state: State) -> list[Finding]:
    """The peak rate beside those that the range test suggests, and how long the run will take. Changes the state."""
    begun = time.perf_counter()
    curve = range_test(run, state)
    seconds = (time.perf_counter() - begun) / max(len(curve.rates), 1)
    findings = []
    peak = peak_rate(run.params)
    try:
        suggestions = suggest_rates(curve)
    except UserError as error:
        findings.append(Finding("rate", str(error), is_odd=True))
    else:
        text = f"{peak:g}; --find_lr suggests {', '.join(f'{rate:g} ({name})' for name, rate in suggestions.items())}"
        flat = warn_of_flat(curve)
        is_odd = not flat and peak > TOO_FAST * max(suggestions.values())
        text = f"{peak:g}; {flat}" if flat else text
        findings.append(Finding("rate", f"{text}: far too high" if is_odd else text, is_odd))
    minutes = seconds * run.total_steps / 60
    text = f"about {minutes:.3g} minutes for {run.total_steps} steps at {seconds:.3g} s, without evaluation"
    return [*findings, Finding("cost", f"{text}; {peak_memory():.0f} MiB of memory so far")]


# --- all of it ------------------------------------------------------------------------------------------------


def examine(plan: Plan, run: Run, state: State) -> list[Finding]:
    """Everything, in the order in which a mistake would show. The state is no longer that of the run afterwards."""
    train = run.train_loader
    device = next(run.net.parameters()).device
    run.net.train()
    run.before_epoch(0)
    images, labels, _, _ = next(iter(train.batches(0)))
    seed_device(device, key64(run.params.seed, "step", 0, run.world.rank))
    with run.autocast():
        logits = run.forward(images)
    losses = run.loss_fn(logits.float(), labels)
    if losses.requires_grad:
        losses.mean().backward()
    is_fresh = plan.start_weights is None and not run.params.pretrain
    findings = look_at_plan(run)
    findings += [look_at_duplicates(train, run.valid_loader), look_at_pixels(images)]
    findings += [look_at_loss(logits.detach(), labels, is_fresh), look_at_units(run, images), look_at_gradients(run)]
    run.optimizer.zero_grad(set_to_none=True)
    return findings + (look_at_rate(run, state) if losses.requires_grad else [])


def doctor(plan: Plan, run: Run, state: State) -> str:
    """Examine, write record/doctor.json, and return the text to print: "" on ranks other than 0."""
    findings = examine(plan, run, state)
    run.world.leave()
    if not run.world.is_main:
        return ""
    result = {"findings": [asdict(finding) for finding in findings], "odd": sum(one.is_odd for one in findings)}
    write_findings(plan, DOCTOR, result | {"overrides": plan.overrides})
    return to_json(result) if plan.request.json else format_findings(findings)


def format_findings(findings: list[Finding]) -> str:
    """A line for each, those to look at marked, and the number of them."""
    lines = [f"{'LOOK' if one.is_odd else 'ok':5}{one.about:11} {one.text}" for one in findings]
    odd = sum(one.is_odd for one in findings)
    verdict = f"{odd} to look at: docs/doctor.md says what to do" if odd else "nothing unusual"
    return "\n".join([*lines, verdict]) + "\n"
