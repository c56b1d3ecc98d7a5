"""Train the net that an experiment folder describes.

    python train.py --data_dir data/cifar10 --model_dir experiments/resnet18
    python train.py --data_dir data/cifar10 --model_dir experiments/resnet18 --learning_rate=0.1
    python train.py experiments/resnet18            # continue an interrupted run

Reads params.json of the folder; writes weights, history, logs and plots back into it. Any parameter can
be changed by its name. Repeating the command continues where it stopped, with bit-identical results.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.distributed import World, find_world
from engine.plan import Plan, decide
from engine.use.repair import is_whole, repair
from engine.use.submit import submit
from engine.use.verify import verify
from folder.arguments import Request, experiment_path, train_parser
from folder.closing import closing_block, describe_prepared, run_result
from folder.folder import Folder
from model.registries import check_names
from utils import UserError, check_kwargs, lookup, run_script, to_json

if TYPE_CHECKING:  # torch is imported by the functions that use it: --help and a busy folder answer at once
    from torch import Tensor, nn, optim

    from engine.loop import Run, State
    from params import Params


# --- the loss and the optimizer ---------------------------------------------------------------------


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """(B, K) logits, (B,) or soft (B, K) labels -> (B,)."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits, labels, weight=weight, label_smoothing=label_smoothing, reduction="none")


def focal(logits: Tensor, labels: Tensor, weight: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """Cross-entropy times (1 - p)^gamma: easy images count less (Lin et al., arXiv:1708.02002). -> (B,)"""
    log_p = logits.log_softmax(dim=1)  # (B, K)
    terms = (1 - log_p.exp()) ** gamma * -log_p
    terms = terms * weight if weight is not None else terms
    return (terms * labels).sum(dim=1) if labels.ndim == 2 else terms.gather(1, labels[:, None])[:, 0]


LOSSES = {"cross_entropy": cross_entropy, "focal": focal}


def make_loss(params: Params, class_counts: Sequence[int], device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """(logits (B, K), labels (B,) or (B, K)) -> (B,). "balanced" weights are n / (K * n_class): 1 on average."""
    import torch

    loss = lookup(LOSSES, params.loss, "loss", params.folder)
    weights = params.class_weights
    if weights == "balanced":
        mean = sum(class_counts) / len(class_counts)
        weights = [mean / count for count in class_counts]
    elif weights is not None and len(weights) != len(class_counts):
        raise UserError(f"class_weights: {len(weights)} weights for {len(class_counts)} classes")
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device)
    given = {"label_smoothing": params.label_smoothing, "weight": weight}
    accepted = inspect.signature(loss).parameters
    return partial(loss, **{key: value for key, value in given.items() if key in accepted})


OPTIMIZERS: dict[str, Any] = {name.lower(): f"torch.optim:{name}" for name in ("SGD", "Adam", "AdamW", "RMSprop")}
OPTIMIZERS |= {"muon": "model.muon:Muon"}  # module:name; a class can stand here too


def make_optimizer(net: nn.Module, params: Params, fused: bool) -> optim.Optimizer:
    """The optimizer of params.json over the layer groups of `net`. UserError for arguments that it does not take."""
    from model.nets.groups import optimizer_groups

    groups = optimizer_groups(net, params)
    cls = lookup(OPTIMIZERS, params.optimizer, "optimizer", params.folder)
    cls = pkgutil.resolve_name(cls) if isinstance(cls, str) else cls
    momentum = params.momentum
    ours = {"sgd": {"momentum": momentum, "nesterov": momentum > 0}, "rmsprop": {"momentum": momentum}}
    given = ours.get(params.optimizer, {})
    if fused and "fused" in inspect.signature(cls).parameters:
        given["fused"] = True
    check_kwargs(cls, params.optimizer_args, "optimizer_args", skip=("params", "lr", "weight_decay"))
    try:
        return cls(groups, **(given | params.optimizer_args))
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer_args: {cls.__name__} refuses them: {error}") from None


# --- the whole run ----------------------------------------------------------------------------------


def build(plan: Plan, world: World, wants_control: Callable[[], bool]) -> tuple[Plan, Run, State]:
    """params.json -> loaders, net, metrics, loss, optimizer -> the run and its state. Writes nothing."""
    from engine import ema, loop, precision, schedule, session
    from engine.use.published import Shelf
    from model import data_loader, metric, tta
    from model.net import make_net
    from model.nets.freezing import Freezer, describe_groups

    # The images, ready for the device that trains.
    device = precision.pick_device(plan.params, world.local_rank)
    world.connect(device)
    place = {"device": device, "rank": world.rank, "world": world.size, "cache_dir": plan.request.cache_dir}
    splits = ["train", "valid"]
    loaders = data_loader.fetch_dataloader(splits, plan.data_dir, plan.params, pinned=plan.pinned or None, **place)
    loader = loaders["train"]
    # What "auto" means here: precision, layout, threads. From now on the plan names every choice.
    choice = precision.choose(plan.params, device, plan.params.num_epochs * loader.num_batches, world.local_size)
    precision.apply(choice, plan.params)
    plan = plan.pin(loaders, choice.to_dict(), precision.machine_kind(choice, plan.params, device, world))
    params = plan.params
    # The net and its optimizer: fresh, with given weights, or as saved. What was loaded is freed on return.
    saved, remarks = session.load_committed_state(plan)
    shelf = Shelf(data_loader.pick_cache_dir(plan.data_dir, plan.request.cache_dir) / "weights", plan.request.prepare)
    net, weights_report = make_net(params, len(loader.classes), saved and saved["net"], plan.start_weights, shelf)
    net = precision.place(net, choice, device)
    optimizer = make_optimizer(net, params, choice.fused)
    average = ema.Ema(net, params.ema) if params.ema else None
    state = session.restore(plan, loop.State(net, optimizer, average, precision.make_scaler(choice)), saved, world)
    remarks += describe_groups(net, params, plan.num_epochs, bool(params.pretrain or plan.restore_name))
    # What the loop does with them.
    num_steps, total_steps = session.plan_steps(plan, state, loader.num_batches)
    run = loop.Run(
        params=params,
        net=net,
        optimizer=optimizer,
        loss_fn=make_loss(params, loader.class_counts, device),
        metrics=metric.make_metrics([*params.metrics, params.best_metric], params.folder),
        train_loader=loader,
        valid_loader=loaders["valid"],
        schedule=schedule.make_schedule(params, num_steps, loader.num_batches, state.extensions),
        total_steps=total_steps,
        autocast=choice.autocast,
        forward=world.wrap(precision.compile_net(net, choice, loader.micro_batch_size), device, bool(params.freeze)),
        average_views=partial(tta.average_views, tta=params.tta),
        world=world,
        before_epoch=Freezer(net, params),
        wants_control=wants_control,
        weights_report=weights_report,
    )
    return plan.add_remarks(remarks), run, state


def train(plan: Plan) -> None:
    """Build what the plan says -> fit -> weights, history, logs, plots. Or --prepare, or a trial: --find_lr, ..."""
    from engine import loop, schedule, session
    from engine.control import Control
    from engine.use.trials.trial import find_trial

    world = find_world()
    control = Control(plan.params.checkpoint_minutes, world)
    plan, run, state = build(plan, world, control.wants)
    if plan.request.prepare:
        world.leave()
        print(describe_prepared(run, plan.request.json) if world.is_main else "", end="")
    elif trial := find_trial(plan.request):
        print(trial(plan, run, state), end="")
    else:
        with session.Session(plan, run, state, control) as writer:
            for event in loop.fit(run, state):
                writer.record(event)
                is_epoch = isinstance(event, loop.Epoch)
                if is_epoch and schedule.should_stop(state.recent_history, run.params.early_stopping, run.minimized):
                    break


def main(argv: list[str]) -> int | None:
    args, overrides = train_parser(__doc__).parse(argv)
    folder = Folder(experiment_path(args), is_main=find_world().is_main)
    request = Request.of(args, overrides, argv)
    make_plan = partial(decide, check_names=partial(check_names, registries={"loss": LOSSES, "optimizer": OPTIMIZERS}))
    if args.engine == "slurm":
        return print(submit(folder, argv, lambda: make_plan(folder, request)))
    with folder.locked():  # before torch is imported: a second start on a busy folder is told so at once
        if args.verify:
            return print(verify(folder, request))
        plan = make_plan(folder, request)
        if plan.verb == "done":
            remarks = [] if is_whole(folder) else repair(folder)
            print(*plan.remarks, *remarks, f"{folder.path} is done.", closing_block(folder, plan.data_dir), sep="\n")
        else:
            folder.check_ready(plan.data_dir)
            train(plan)
        if args.json and not (args.prepare or request.trial):
            print(to_json(run_result(folder)), end="")
    return 0


if __name__ == "__main__":
    run_script(main)
