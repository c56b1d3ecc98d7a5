"""What a start of train.py means for the folder: start, continue, extend, nothing to do, or refuse. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import params as params_module
from engine.changes import (
    changed_params,
    describe_forgotten,
    describe_hidden,
    describe_unread_data,
    drop_flags,
    fill_pinned,
    list_fixed,
    load_params,
    overfit_params,
    override_words,
    restart_words,
)
from folder.arguments import Request
from folder.aside import is_half_moved
from folder.folder import Folder
from folder.identity import ADOPTS, Identity, choose_identity, identity_in
from folder.locate import find_data, find_pretrained, find_weights
from folder.provenance import changed_files, check_own_files, check_own_names, run_frozen, same
from folder.records import list_results, read_run
from folder.scratch import is_copied
from include import EXIT_DAMAGED, EXIT_NONFINITE
from params import DEFAULTS, Params
from utils import JsonObject, UserError, command

if TYPE_CHECKING:  # it imports torch
    from engine.protocols import Loader

# Parameters whose null or "auto" the kit fills in at the first start.
AUTOMATIC = {"im_sz", "n_clas", "device", "precision", "threads", "compile"}


@dataclass(frozen=True)
class Plan:
    """What this start is going to do. Nothing has been written yet."""

    folder: Folder
    request: Request
    verb: Literal["start", "continue", "done"]
    params: Params
    data_dir: Path
    overrides: JsonObject  # of this command line and, when a run goes on, of those before it
    num_epochs: float  # how far to go, extensions included
    written: JsonObject | None = None  # the params.json to write into a new folder
    automatic: JsonObject = field(default_factory=dict)  # parameters left to the kit, as they were asked for
    pinned: JsonObject = field(default_factory=dict)  # the choices of the first start
    extends: bool = False  # done before, and more epochs are wanted now
    start_weights: Path | None = None  # to start from: of --restore_file, else of pretrain
    restore_name: str | None = None  # --restore_file as given, to recognise a repeated command
    holds_run: bool = False  # of a trial such as --find_lr: the folder holds a run already, which is left unchanged
    identity: Identity = field(default_factory=Identity.make)  # of what is going to be written
    adopts: Sequence[Sequence[str | None]] = ()  # ids that records and state may still have: they get `identity`
    is_copy: bool = False  # of a folder that still exists elsewhere
    replaces_results: bool = False  # results without a state are moved aside, like an attempt at a restart
    remarks: tuple[str, ...] = ()  # to be logged when the training begins

    @property
    def restart(self) -> bool:
        return self.request.restart

    @property
    def moves_aside(self) -> bool:
        return self.restart or self.replaces_results

    @property
    def accepted(self) -> frozenset[str]:
        """The kinds of change (params, data, code, machine) that --accept allows."""
        return frozenset(self.request.accept or ())

    @property
    def command(self) -> list[str]:
        """The command line, to suggest variations of."""
        return ["python", "train.py", *drop_flags(self.request.argv)]

    def add_remarks(self, remarks: Sequence[str]) -> Plan:
        return replace(self, remarks=(*self.remarks, *remarks))

    def pin(self, loaders: Mapping[str, Loader], choice: Mapping[str, object], machine: Mapping[str, object]) -> Plan:
        """The plan with every automatic choice filled in, in `params` and in `pinned`.

        UserError when the data or the kind of machine differs from the start of the run, unless accepted.
        """
        # The data: by the content of each split.
        data = {split: loader.fingerprint for split, loader in loaders.items()}
        began = self.pinned.get("data", data)
        remarks = refuse(
            self, "data", [f"the {split} images, labels or groups" for split in data if began.get(split) != data[split]]
        )
        # The machine and what was chosen for it.
        changes = changed_machine(self, choice, machine)
        remarks += refuse(self, "machine", changes)
        if changes:
            remarks += ["not bitwise: on this machine the result may differ in the last bits"]
        # What was automatic.
        loader = loaders["train"]
        filled = {"im_sz": loader.pinned["im_sz"], "n_clas": len(loader.classes)}
        filled |= {key: choice[key] for key in ("device", "precision", "threads", "compile")}
        pinned = {**loader.pinned, "data": data, "machine": machine, "choice": choice, "automatic": self.automatic}
        return replace(self, params=self.params.replace(**filled), pinned=pinned).add_remarks(remarks)


def refuse(plan: Plan, what: str, changes: Sequence[str]) -> list[str]:
    """[] without `changes`; a remark when --accept `what` was given; else UserError with the accepting command."""
    if not changes:
        return []
    shown = "; ".join(changes[:8]) + (f"; and {len(changes) - 8} more" if len(changes) > 8 else "")
    if what in plan.accepted:
        return [f"continuing with changed {what}, as accepted: {shown}"]
    frozen = "--code folder runs the frozen copy. " if what == "code" else ""
    raise UserError(
        f"{plan.folder.path}: the {what} changed since this run began: {shown}. {frozen}To continue with the change: "
        f"{command(*plan.command, '--accept', what)}   or start over (the old attempt is kept): "
        f"{command(*restart_words(plan.request.argv), '--restart')}"
    )


# --- the decision -------------------------------------------------------------------------------------


def decide(folder: Folder, request: Request, check_names: Callable[[Params], None] | None = None) -> Plan:
    """What `request` means for `folder`. UserError for whatever the user must decide first.

    `check_names` raises for a name that does not exist, before the user is asked about changed parameters.
    """
    # What does the folder hold?
    meta, manifest = read_run(folder, request, restart_words(request.argv))
    has_run = bool(manifest)
    # What is asked for? A run that goes on keeps the overrides of its earlier starts.
    overrides = request.overrides
    if has_run:
        overrides = params_module.deep_merge(meta.get("overrides", {}), overrides)
    params, written, remarks = load_params(folder, request.base, overrides, has_run)
    if has_run and not remarks:
        remarks = describe_hidden(folder.path, params, overrides, request.overrides)
    elif not has_run:
        remarks = describe_forgotten(params, meta.get("overrides", {}), request.argv)
    plan = Plan(
        folder=folder,
        request=request,
        verb="continue" if has_run else "start",
        params=params,
        data_dir=find_data(request.data_dir, params, meta.get("data_dir")),
        overrides=overrides,
        num_epochs=params.num_epochs,
        written=written,
        automatic={k: v for k, v in params.resolved().items() if k in AUTOMATIC and v in (None, "auto")},
        remarks=tuple(remarks),
    )
    plan = identify(plan, meta, has_run)
    # What is to be done?
    if request.trial:
        return decide_trial(plan, meta, has_run)
    if not has_run:
        return decide_start(plan)
    if request.code == "folder":
        run_frozen(folder, request)
    return decide_continuation(plan, meta, manifest, check_names)


def identify(plan: Plan, meta: JsonObject, goes_on: bool) -> Plan:
    """The plan with the identity of what it is going to write, and with the ids that are replaced by it."""
    path = plan.folder.path
    known = identity_in(meta)
    is_copy = is_copied(path, meta)
    identity = choose_identity(known, is_copy, goes_on)
    adopts = []
    if goes_on:
        adopts = list(meta.get(ADOPTS, []))  # of a start that was killed
        adopts += [list(known.ids) if known else [None, None]] if identity != known else []
    # What no state belongs to is moved aside, and what an interrupted --restart left.
    replaces_results = not goes_on and (bool(plan.request.restore_file and list_results(path)) or is_half_moved(path))
    return replace(plan, identity=identity, adopts=adopts, is_copy=is_copy, replaces_results=replaces_results)


def decide_trial(plan: Plan, meta: JsonObject, has_run: bool) -> Plan:
    """--find_lr, --doctor and --overfit look at the net as it was when the run began, however far the run has come."""
    given = plan.request
    flags = {"restart": given.restart, "resume": given.resume, "extend": given.extend, "accept": given.accept}
    wrong = [f"--{name}" for name, value in flags.items() if value]
    if wrong or given.code == "folder":
        raise UserError(f"{given.trial} looks at a run and stops; leave {', '.join(wrong) or '--code'} out")
    if given.overfit is not None:
        plan = replace(plan, params=overfit_params(plan.params, given.overfit))
    if has_run:
        check_own_files(plan.folder, plan.params.resolved(), given)
    return with_weights(replace(plan, verb="start", holds_run=has_run), given.restore_file or meta.get("restore_file"))


def decide_start(plan: Plan) -> Plan:
    """The plan when the folder holds no run, or starts over."""
    path = plan.folder.path
    check_own_names(plan.params.resolved())
    if plan.request.resume:
        raise UserError(f"--resume: {path} holds nothing to resume; leave --resume out to start it")
    if plan.request.extend:
        raise UserError(f"--extend: {path} has not been trained yet; set num_epochs instead")
    return with_weights(plan, plan.request.restore_file)


def with_weights(plan: Plan, restore_name: str | None) -> Plan:
    """The plan that starts from the weights `restore_name`, or those of pretrain. UserError when they are not there."""
    path = find_weights(plan.folder, restore_name) if restore_name else find_pretrained(plan.params)
    return replace(plan, start_weights=path, restore_name=restore_name)


def decide_continuation(
    plan: Plan, meta: JsonObject, manifest: JsonObject, check_names: Callable[[Params], None] | None
) -> Plan:
    """The plan when the folder holds a run: compare the request with what ran."""
    resolved = plan.folder.resolved()
    if plan.params.test != (pinned := resolved.get("test", DEFAULTS.test)):
        raise UserError(f"test: {pinned!r} since the first start of {plan.folder.path}; put it back, or add --restart")
    check_flags(plan, meta, manifest)
    # How far does it go, and what changed?
    plan = replace(plan, pinned=resolved.get("pinned", {}), restore_name=meta.get("restore_file"))
    plan, length_change = decide_length(plan, resolved["num_epochs"], manifest)
    changes = [*length_change, *changed_params(plan.params, resolved, plan.pinned)]
    if changes and check_names:
        check_names(plan.params)
    done = manifest["done"]
    goes_no_further = same(plan.num_epochs, manifest["num_epochs"])
    # Nothing is left to do.
    if done and goes_no_further:
        if changes:
            raise UserError(describe_other_params(plan, changes, "is done, with other parameters"))
        unread = describe_unread_data(plan.folder.path, plan.request.data_dir, meta.get("data_dir"))
        data_dir = Path(meta["data_dir"]) if unread else plan.data_dir
        return replace(plan, verb="done", data_dir=data_dir).add_remarks(unread)
    # It continues: every change must be reported.
    if manifest.get("state_is_gone"):
        raise UserError(describe_lost_state(plan), EXIT_DAMAGED)
    if fixed := list_fixed(changes):
        raise UserError(describe_other_params(plan, fixed, "holds a run, within which this cannot change"))
    check_own_files(plan.folder, plan.params.resolved(), plan.request)
    remarks = refuse(plan, "params", changes)
    if "code" not in plan.accepted:
        remarks += refuse(plan, "code", changed_files(plan.folder, resolved))
    check_finite_end(plan.folder, changes)
    # Its automatic choices stay. Extensions are in the saved state, so num_epochs stays the length first asked for.
    params = fill_pinned(plan.params, resolved, plan.pinned)
    if done or goes_no_further:
        params = params.replace(num_epochs=resolved["num_epochs"])
    return replace(plan, params=params, extends=done).add_remarks(remarks)


def check_flags(plan: Plan, meta: JsonObject, manifest: JsonObject) -> None:
    """UserError for a flag that makes no sense at this epoch of the run."""
    given, path = plan.request, plan.folder.path
    epoch = manifest["last"]["epoch"]
    if given.restore_file and given.restore_file != meta.get("restore_file"):
        raise UserError(
            f"--restore_file starts a new run, but {path} holds one at epoch {epoch}: "
            f"leave it out to continue, or add --restart"
        )
    if given.until and not manifest["done"] and given.until <= epoch:
        raise UserError(f"--until {given.until}: {path} is at epoch {epoch} already; leave it out to go on")


def decide_length(plan: Plan, first: float, manifest: JsonObject) -> tuple[Plan, list[str]]:
    """The plan with its num_epochs, and the change of num_epochs when it is neither the same nor an extension.

    `first`: the number of epochs that the run began with, before any extension.
    """
    asked, reached, done = plan.params.num_epochs, manifest["num_epochs"], manifest["done"]
    if plan.request.extend:
        return replace(plan, num_epochs=extended_length(plan, first, manifest)), []
    if same(asked, first) or same(asked, reached):
        return replace(plan, num_epochs=reached), []
    if done and asked > reached:
        return replace(plan, num_epochs=asked), []
    # A run that is done cannot become shorter, whatever is accepted.
    num_epochs = asked if "params" in plan.accepted and not done else reached
    return replace(plan, num_epochs=num_epochs), [f"num_epochs {reached:g} -> {asked:g}"]


def extended_length(plan: Plan, first: float, manifest: JsonObject) -> float:
    """The number of epochs that --extend asks for. UserError when the run is not done, or already longer."""
    extend, reached, done = plan.request.extend or 0, manifest["num_epochs"], manifest["done"]
    path = plan.folder.path
    if not done and not same(first + extend, reached):
        raise UserError(f"--extend: {path} is not done yet; finish it first: {command(*plan.command)}")
    if done and first + extend < reached:
        raise UserError(f"--extend {extend:g}: {path} has {reached:g} epochs ({first:g} + {reached - first:g})")
    return first + extend


def new_folder_words(plan: Plan) -> list[str]:
    """The command that trains the same request in a new folder. It repeats the overrides that the run recorded."""
    overrides = override_words(plan.overrides)
    place = ["--base", str(plan.folder.path), "--data_dir", str(plan.data_dir), "--model_dir", "NEW_FOLDER"]
    return ["python", "train.py", *place, *overrides]


def describe_lost_state(plan: Plan) -> str:
    path = plan.folder.path
    new = command(*new_folder_words(plan), "--restore_file", path)
    restart = command(*restart_words(plan.request.argv), "--restart")
    return (
        f"{path} is done and its checkpoints are gone, so it cannot go on. Start a new folder from its weights: "
        f"{new}   or start over here (the old attempt is kept): {restart}"
    )


def describe_other_params(plan: Plan, changes: Sequence[str], reason: str) -> str:
    return (
        f"{plan.folder.path} {reason}: {'; '.join(changes)}. Train the new ones in a "
        f"new folder: {command(*new_folder_words(plan))}   "
        f"or start over here (the old attempt is kept): {command(*restart_words(plan.request.argv), '--restart')}"
    )


def check_finite_end(folder: Folder, changes: Sequence[str]) -> None:
    """UserError when the run stopped at a non-finite loss and nothing changed, so that it would stop again."""
    status = folder.status()
    if status.get("code") == EXIT_NONFINITE and not changes:
        raise UserError(
            f"{folder.path} stopped at a non-finite loss ({status['message']}). "
            "The same parameters give the same again: "
            "change one and add --accept params, or --restart",
            EXIT_NONFINITE,
        )


def changed_machine(plan: Plan, choice: Mapping[str, object], machine: Mapping[str, object]) -> list[str]:
    """ "key old -> new" for what differs from the kind of machine, and the choices for it, that the run began with.

    The arithmetic is compared where both know it (records of format 1 do not) and it was tried in the same way.
    """
    if not plan.pinned:
        return []
    new = {**machine, **choice}
    old = plan.pinned.get("machine", {}) | plan.pinned.get("choice", {})
    if "params" in plan.accepted:  # a changed precision is a change of the parameters, not of the machine
        old |= choice
    is_comparable = {"arithmetic"} <= old.keys() & new.keys() and plan.pinned.get("choice") == choice
    compared = sorted((old | new).keys() - (set() if is_comparable else {"arithmetic"}))
    return [f"{key} {old.get(key)} -> {new.get(key)}" for key in compared if old.get(key) != new.get(key)]
