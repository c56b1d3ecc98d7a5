"""Train the net that an experiment folder describes.

    python train.py --data_dir data/cifar10 --model_dir experiments/resnet18
    python train.py --data_dir data/cifar10 --model_dir experiments/resnet18 --learning_rate=0.1
    python train.py experiments/resnet18            # go on with what was interrupted

Reads params.json of the folder; writes weights, history, logs and plots back into it. Any parameter can
be changed by its name. The same command again continues where it stopped, to the same bits.
"""

from __future__ import annotations

import inspect
import pkgutil
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.distributed import find_world
from engine.plan import Plan, closing_block, decide, describe_prepared, is_whole, mend, result
from engine.submit import submit
from engine.use.verify import verify
from folder.arguments import train_parser
from folder.folder import Folder
from utils import UserError, check_kwargs, lookup, run_script, to_json

if TYPE_CHECKING:  # torch is imported by the functions that use it: --help and a busy folder answer at once
    import argparse

    import torch

    from params import Params


# --- what is minimised ------------------------------------------------------------------------------


def cross_entropy(logits, labels, weight=None, label_smoothing=0.0):
    """(B, K) logits, (B,) or soft (B, K) labels -> (B,)."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits, labels, weight=weight, label_smoothing=label_smoothing, reduction="none")


def focal(logits, labels, weight=None, gamma=2.0):
    """Cross-entropy times (1 - p)^gamma: easy images count less (Lin et al., arXiv:1708.02002). -> (B,)"""
    log_p = logits.log_softmax(dim=1)  # (B, K)
    terms = (1 - log_p.exp()) ** gamma * -log_p
    terms = terms * weight if weight is not None else terms
    return (terms * labels).sum(dim=1) if labels.ndim == 2 else terms.gather(1, labels[:, None])[:, 0]


LOSSES = {"cross_entropy": cross_entropy, "focal": focal}


def make_loss(params: Params, class_counts: list[int], device: str) -> Any:
    """(logits (B, K), labels (B,) or (B, K)) -> (B,). "balanced" weights are n / (K * n_class): 1 on average."""
    import torch

    loss = lookup(LOSSES, params.loss, "loss", params.folder)
    weights = params.class_weights
    if weights == "balanced":
        mean = sum(class_counts) / len(class_counts)
        weights = [mean / count for count in class_counts]
    elif weights is not None and len(weights) != len(class_counts):
        raise UserError(f"class_weights: {len(weights)} weights for {len(class_counts)} classes")
    given: dict[str, Any] = {"label_smoothing": params.label_smoothing}
    given["weight"] = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device)
    accepted = inspect.signature(loss).parameters
    return partial(loss, **{key: value for key, value in given.items() if key in accepted})


# --- and how ----------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Any] = {name.lower(): f"torch.optim:{name}" for name in ("SGD", "Adam", "AdamW", "RMSprop")}
OPTIMIZERS |= {"muon": "model.muon:Muon"}  # module:name; a class can stand here too


def make_optimizer(net: torch.nn.Module, params: Params, fused: bool) -> torch.optim.Optimizer:
    """One learning rate per layer group; matrices and filters decay, biases and norm gains (ndim < 2) do not."""
    from model.nets.groups import layer_groups

    layers = layer_groups(net)
    rates = params.learning_rate if isinstance(params.learning_rate, list) else [params.learning_rate] * len(layers)
    if len(rates) != len(layers):
        raise UserError(f"learning_rate: {len(rates)} rates for {len(layers)} layer groups; give one, or {len(layers)}")
    groups = []
    for number, (layer, rate) in enumerate(zip(layers, rates, strict=True)):
        # With lr_schedule the rates are absolute, and a list of rates says the proportions.
        initial = rate / max(rates) if params.lr_schedule else rate
        group = {"lr": initial, "initial_lr": initial, "layer_group": number}
        groups.append(group | {"params": [p for p in layer if p.ndim >= 2], "weight_decay": params.wd})
        groups.append(group | {"params": [p for p in layer if p.ndim < 2], "weight_decay": 0.0})
    found = lookup(OPTIMIZERS, params.optimizer, "optimizer", params.folder)
    cls = pkgutil.resolve_name(found) if isinstance(found, str) else found
    ours: dict[str, Any] = {"fused": True} if fused and "fused" in inspect.signature(cls).parameters else {}
    if params.optimizer in ("sgd", "rmsprop"):
        ours["momentum"] = params.momentum
    if params.optimizer == "sgd":
        ours["nesterov"] = params.momentum > 0
    check_kwargs(cls, params.optimizer_args, "optimizer_args", skip=("params", "lr", "weight_decay"))
    try:
        return cls([group for group in groups if group["params"]], **(ours | params.optimizer_args))
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer_args: {cls.__name__} refuses them: {error}") from None


# --- the whole run ----------------------------------------------------------------------------------


def train(plan: Plan, args: argparse.Namespace) -> None:
    """params.json -> loaders, net, metrics, loss, optimizer -> fit -> weights, history, logs, plots."""
    from engine import precision
    from engine.control import Control
    from engine.ema import Ema
    from engine.loop import Epoch, Run, State, fit
    from engine.schedule import make_schedule, should_stop
    from engine.session import Session, committed, plan_steps, restore
    from engine.use.find_lr import find_lr
    from model.data_loader import fetch_dataloader
    from model.metric import make_metrics
    from model.net import make_net
    from model.nets.groups import Freezer
    from model.tta import average_views

    params, world = plan.params, find_world()
    device = precision.pick_device(params, world.local_rank)
    world.connect(device)
    loaders = fetch_dataloader(["train", "valid"], plan.data_dir, params, device=device, rank=world.rank,
                               world=world.size, cache_dir=args.cache_dir, pinned=plan.pinned or None)  # fmt: skip
    loader = loaders["train"]
    choice = precision.choose(params, device, params.num_epochs * loader.num_batches, world.local_size)
    precision.apply(choice, params)
    params = plan.pin(params, loaders, choice.to_dict(), precision.machine_kind(device))
    saved = committed(plan)
    net, weights_report = make_net(params, len(loader.classes), weights=saved and saved["net"])
    net = precision.place(net, choice, device)
    metrics = make_metrics([*params.metrics, params.best_metric], params.folder)
    loss_fn = make_loss(params, loader.class_counts, device)
    optimizer = make_optimizer(net, params, choice.fused)
    state = State(net, optimizer, Ema(net, params.ema) if params.ema else None, precision.make_scaler(choice))
    restore(plan, state, saved, world)
    first, total = plan_steps(plan, params, state, loader.num_batches)
    if args.prepare:
        world.leave()
        return print(describe_prepared(loaders, args.json)) if world.is_main else None
    run = Run(
        net=net,
        optimizer=optimizer,
        loss_fn=loss_fn,
        metrics=metrics,
        train_loader=loader,
        valid_loader=loaders["valid"],
        schedule=make_schedule(params, first, loader.num_batches, state.extensions),
        total_steps=total,
        params=params,
        autocast=choice.autocast,
        forward=world.wrap(precision.compile_net(net, choice, loader.micro_batch_size), device),
        average_views=partial(average_views, tta=params.tta),
        world=world,
        before_epoch=Freezer(net, params),
        weights_report=weights_report,
    )
    if args.find_lr:
        return print(find_lr(plan, args, run, state), end="")
    control = Control(params.checkpoint_minutes, world)
    with Session(plan, params, run, state, control, args, choice.describe()) as session:
        for event in fit(run, state):
            session.record(event)
            if isinstance(event, Epoch) and should_stop(state.recent_history, params.early_stopping, run.minimized):
                break


def main(argv: list[str]) -> int | None:
    args, overrides = train_parser(__doc__).parse(argv)
    if not (args.model_dir or args.folder):
        raise UserError("which experiment? Give --model_dir EXPERIMENT, a folder with a params.json")
    folder = Folder(args.model_dir or args.folder, is_main=find_world().is_main)
    if args.engine == "slurm":
        return print(submit(folder, argv, lambda: decide(folder, args, overrides, argv)))
    with folder.locked():  # before torch is imported: a second start on a busy folder is told so at once
        if args.verify:
            return print(verify(folder, args.data_dir, args.scratch_dir))
        plan = decide(folder, args, overrides, argv)
        if plan.verb == "done":
            remarks = [] if is_whole(folder) else mend(folder)
            print(*remarks, f"{folder.path} is done.", closing_block(folder, plan.data_dir, plan.has_test), sep="\n")
        else:
            folder.check_writable()
            train(plan, args)
        if args.json and not (args.prepare or args.find_lr):
            print(to_json(result(folder)), end="")
    return 0


if __name__ == "__main__":
    run_script(main)
