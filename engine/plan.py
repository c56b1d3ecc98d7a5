"""What a start means for the folder it finds: start, continue, extend, nothing to do, or refuse. No torch."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import params as params_module
from folder.folder import Folder
from folder.history import history_csv
from folder.locate import find_data, find_weights
from folder.manifest import read_manifest
from folder.provenance import changed_files, run_frozen, same
from include import (
    CHECKPOINTS,
    EXIT_DAMAGED,
    EXIT_NONFINITE,
    HISTORY_CSV,
    META,
    METRICS_BEST,
    METRICS_LAST,
    PARAMS,
    TRAIN_HISTORY_PNG,
)
from params import Params
from utils import UserError, command, to_json

EXECUTION_KEYS = {"num_workers", "observers", "save_summary_steps", "keep_last", "checkpoint_minutes", "cache"}
NOT_COMPARED = {"data_dir", "hyper_search", "search", "num_epochs"}
AUTOMATIC = {"im_sz", "n_clas", "device", "precision", "threads", "compile"}


@dataclass
class Plan:
    """What this start is going to do. Nothing has been written yet."""

    folder: Folder
    verb: str  # "start", "continue" or "done"
    params: Params
    data_dir: Path
    overrides: dict[str, Any]
    num_epochs: float  # how far to go, extensions included
    command: list[str]  # the command line, to suggest variations of
    written: dict[str, Any] | None = None  # the params.json to write into a new folder
    pinned: dict[str, Any] = field(default_factory=dict)  # the choices of the first start
    automatic: dict[str, Any] = field(default_factory=dict)  # parameters left to the kit, as they were asked for
    extends: bool = False  # done before, and more epochs are wanted now
    restart: bool = False
    restore_file: Path | None = None
    restore_name: str | None = None  # as given, so that the same command is known again
    accepted: set[str] = field(default_factory=set)
    remarks: list[str] = field(default_factory=list)
    saved: dict[str, Any] | None = None  # the committed state that it goes on from
    holds_run: bool = False  # of --find_lr: it looks at a folder that has state, as if it had none

    def refuse(self, what: str, changes: list[str]) -> None:
        """UserError that lists `changes` and the command to paste, unless --accept `what` was given."""
        if not changes:
            return
        shown = "; ".join(changes[:8]) + (f"; and {len(changes) - 8} more" if len(changes) > 8 else "")
        if what in self.accepted:
            self.remarks.append(f"going on with changed {what}, as accepted: {shown}")
            return
        way = "--code folder runs the frozen copy; " if what == "code" else ""
        raise UserError(
            f"{self.folder.path}: the {what} changed since this run began: {shown}. {way}to go on with the change: "
            f"{command(*self.command, '--accept', what)}   or start over (the old attempt is kept): "
            f"{command(*self.command, '--restart')}"
        )

    def pin(self, params: Params, loaders: dict[str, Any], choice: dict[str, Any], machine: dict[str, str]) -> Params:
        """Refuse other data or another kind of machine than the run began with; fill in what was automatic."""
        data = {split: loader.fingerprint for split, loader in loaders.items()}
        began = self.pinned.get("data", data)
        self.refuse("data", [f"the {split} images or labels" for split in data if began.get(split) != data[split]])
        new = machine | choice
        old = self.pinned.get("machine", {}) | self.pinned.get("choice", {}) if self.pinned else dict(new)
        if "params" in self.accepted:  # a changed precision is a change of the parameters, not of the machine
            old |= {key: new[key] for key in choice}
        changes = [
            f"{key} {old.get(key)} -> {new.get(key)}" for key in sorted(old | new) if old.get(key) != new.get(key)
        ]
        self.refuse("machine", changes)
        if changes:
            self.remarks.append("not bitwise: on this machine the result may differ in the last bits")
        loader = loaders["train"]
        filled = {"im_sz": loader.pinned["im_sz"], "n_clas": len(loader.classes)}
        filled |= {key: choice[key] for key in ("device", "precision", "threads", "compile")}
        self.pinned = {
            **loader.pinned,
            "data": data,
            "machine": machine,
            "choice": choice,
            "automatic": self.automatic,
        }
        return params.replace(**filled)

    @property
    def has_test(self) -> bool:
        return (self.data_dir / "test").is_dir()


def is_whole(folder: Folder) -> bool:
    """Whether what is derived from the state is all there. Needs no torch; a digest is checked by who reads weights."""
    try:
        history = folder.history()
        tables = (folder.path / HISTORY_CSV).read_text() == history_csv(history)
        metrics = all("epoch" in folder.read(name) for name in (METRICS_BEST, METRICS_LAST)) if history else True
        return tables and metrics and all(is_complete(folder.weights(which)) for which in ("best", "last"))
    except (UserError, OSError, TypeError, ValueError, KeyError):
        return False


def mend(folder: Folder) -> list[str]:
    """Write again, from the state, what has been damaged or removed since the run was done; what to say of it."""
    from engine.session import derive_again

    said = f"{folder.path}: history, metrics or weights were damaged or missing; they are written again from the state"
    return [*derive_again(folder), said]


def is_complete(path: Path) -> bool:
    """Whether a safetensors file has the length that its header promises."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return path.stat().st_size == 8 + length + max(ends)


def describe_prepared(loaders: dict[str, Any], as_json: bool) -> str:
    """What --prepare prints."""
    said = {split: loader.description for split, loader in loaders.items()}
    return to_json(said).strip() if as_json else "\n".join([*said.values(), "prepared; the folder is as it was"])


def result(folder: Folder) -> dict[str, Any]:
    """What --json prints: status, metrics of the best epoch, paths."""
    return {"status": folder.status(), "best": folder.read(METRICS_BEST), "weights": str(folder.weights("best"))}


def closing_block(folder: Folder, data_dir: Path, has_test: bool) -> str:
    """Where things are, and what to type next."""
    best, history, path = folder.read(METRICS_BEST, {}), folder.history(), folder.path
    values = ", ".join(f"{name} {value:.4f}" for name, value in best.items() if name != "epoch" and value is not None)
    split = [] if has_test else ["--split", "valid"]
    return "\n".join(
        [
            f"best epoch {best.get('epoch')} of {history[-1]['epoch'] if history else 0}: {values}",
            f"weights   {folder.weights('best')}",
            f"curves    {path / TRAIN_HISTORY_PNG}   table {path / HISTORY_CSV}",
            f"evaluate  {command('python', 'evaluate.py', '--data_dir', data_dir, '--model_dir', path, *split)}",
            f"predict   {command('python', 'predict.py', '--model_dir', path)} IMAGE_OR_FOLDER",
            f"continue  {command('python', 'train.py', '--data_dir', data_dir, '--model_dir', path, '--extend', 5)}",
            f"compare   {command('python', 'synthesize_results.py', '--parent_dir', path.parent)}",
        ]
    )


def decide(folder: Folder, args: Any, overrides: dict[str, Any], argv: list[str]) -> Plan:
    """The plan for `train.py argv` on `folder`. UserError for whatever the user must decide first."""
    accepted = set(args.accept or [])
    meta = folder.meta()
    manifest = read_manifest(folder.path / CHECKPOINTS) if not args.restart else {}
    if not args.restart:
        folder.check_links()
    if manifest and not meta:
        raise UserError(f"{folder.path / META} is missing: bring it back, or start over with --restart", EXIT_DAMAGED)
    began = bool(manifest)
    recorded = params_module.deep_merge(meta.get("overrides", {}), overrides) if began else overrides
    params, written = load_params(folder, args, recorded)
    plan = Plan(
        folder=folder,
        verb="continue" if began else "start",
        params=params,
        data_dir=find_data(args.data_dir, params, meta.get("data_dir")),
        overrides=recorded,
        num_epochs=params.num_epochs,
        command=["python", "train.py", *drop_flags(argv)],
        written=written,
        automatic={
            key: value for key, value in params.resolved().items() if key in AUTOMATIC and value in (None, "auto")
        },
        restart=args.restart,
        accepted=accepted,
    )
    if args.find_lr:
        return decide_range_test(plan, args, meta, began)
    if not began:
        if args.resume:
            raise UserError(f"--resume: {folder.path} holds nothing to resume; leave --resume out to start it")
        if args.extend:
            raise UserError(f"--extend: {folder.path} has not been trained yet; set num_epochs instead")
        plan.restore_file = find_weights(folder, args.restore_file) if args.restore_file else None
        plan.restore_name = args.restore_file
        return plan
    if args.code == "folder":
        run_frozen(folder, argv)
    return decide_continuation(plan, args, meta, manifest)


def decide_range_test(plan: Plan, args: Any, meta: dict[str, Any], began: bool) -> Plan:
    """A learning rate is a parameter of the whole run: it is looked for as the run began, whatever it has come to."""
    wrong = [f"--{name}" for name in ("restart", "resume", "extend", "accept") if getattr(args, name)]
    if wrong or args.code == "folder":
        raise UserError(f"--find_lr looks for a learning rate and stops; leave {', '.join(wrong) or '--code'} out")
    plan.verb, plan.holds_run = "start", began
    plan.restore_name = args.restore_file or meta.get("restore_file")
    plan.restore_file = find_weights(plan.folder, plan.restore_name) if plan.restore_name else None
    return plan


def decide_continuation(plan: Plan, args: Any, meta: dict[str, Any], manifest: dict[str, Any]) -> Plan:
    """The folder holds state: compare what is asked with what ran."""
    folder, status = plan.folder, plan.folder.status()
    resolved = folder.resolved()
    plan.pinned = resolved.get("pinned", {})
    if args.restore_file and args.restore_file != meta.get("restore_file"):
        raise UserError(
            f"--restore_file starts a new run, but {folder.path} holds one at epoch {manifest['last']['epoch']}: "
            f"leave it out to continue, or add --restart"
        )
    plan.restore_name = meta.get("restore_file")
    if args.until and not manifest["done"] and args.until <= (reached := manifest["last"]["epoch"]):
        raise UserError(f"--until {args.until}: {folder.path} is at epoch {reached} already; leave it out to go on")
    changes = changed_params(plan.params, resolved, plan.pinned)
    done, asked = manifest["done"], plan.params.num_epochs
    first, reached = resolved["num_epochs"], manifest["num_epochs"]
    plan.num_epochs = reached
    if args.extend:
        plan.num_epochs = first + args.extend
        if not done and not same(plan.num_epochs, reached):
            raise UserError(f"--extend: {folder.path} is not done yet; finish it first: {command(*plan.command)}")
        if done and plan.num_epochs < reached:
            raise UserError(
                f"--extend {args.extend:g}: {folder.path} has {reached:g} epochs ({first:g} + {reached - first:g})"
            )
    elif not (same(asked, first) or same(asked, reached)):
        if done and asked > reached:
            plan.num_epochs = asked
        else:
            changes = {"num_epochs": f"num_epochs {reached:g} -> {asked:g}"} | changes
            plan.num_epochs = asked if "params" in plan.accepted else reached
    if done and same(plan.num_epochs, reached):
        if changes:
            raise UserError(
                f"{folder.path} is done, with other parameters: {'; '.join(changes.values())}. Train the new ones in a "
                f"new folder: {command('python', 'train.py', '--base', folder.path, '--model_dir', 'NEW_FOLDER')}   "
                "or start over here "
                f"(the old attempt is kept): {command(*plan.command, '--restart')}"
            )
        plan.verb = "done"
        return plan
    plan.extends = done
    plan.refuse("params", list(changes.values()))
    if "code" not in plan.accepted:
        plan.refuse("code", changed_files(folder, resolved))
    if status.get("code") == EXIT_NONFINITE and not changes:
        raise UserError(
            f"{folder.path} stopped at a non-finite loss ({status['message']}). "
            "The same parameters give the same again: "
            f"change one and add --accept params, or --restart",
            EXIT_NONFINITE,
        )
    plan.params = fill_pinned(plan.params, resolved, plan.pinned)
    if done or same(plan.num_epochs, reached):  # what came on top stands in the state, as extensions
        plan.params = plan.params.replace(num_epochs=first)
    return plan


def load_params(folder: Folder, args: Any, overrides: dict[str, Any]) -> tuple[Params, dict[str, Any] | None]:
    """The parameters, and the params.json to write when --base starts a new folder."""
    path = folder.path / PARAMS
    if not args.base:
        if not path.exists():
            raise UserError(
                f"{path}: no such file. An experiment is a folder with a params.json ({{}} will do); "
                f"or start from another one: --base OTHER_FOLDER"
            )
        return params_module.load(folder.path, overrides), None
    if not Path(args.base).exists():
        raise UserError(f"--base {args.base}: no such experiment folder or JSON file")
    written = {"base": params_module.relative_path(Path(args.base), folder.path), **overrides}
    if path.exists():
        if params_module.read(path) != written:
            raise UserError(
                f"--base: {path} is there already and says something else; leave --base out, or take a new --model_dir"
            )
        return params_module.load(folder.path, overrides), None
    return params_module.from_written(written, folder.path), written


def changed_params(new: Params, resolved: dict[str, Any], pinned: dict[str, Any]) -> dict[str, str]:
    """key -> "key old -> new" for every parameter that decides the result and is not what ran."""
    automatic = pinned.get("automatic", {})
    changes = {}
    for key, value in new.resolved().items():
        old = resolved.get(key)
        if key in EXECUTION_KEYS | NOT_COMPARED or same(old, value):
            continue
        if key in automatic and same(automatic[key], value):
            continue
        changes[key] = f"{key} {old!r} -> {value!r}"
    return changes


def fill_pinned(params: Params, resolved: dict[str, Any], pinned: dict[str, Any]) -> Params:
    """`params` with every automatic choice of the first start in its place."""
    automatic = pinned.get("automatic", {})
    now = params.resolved()
    return params.replace(**{key: resolved[key] for key, auto in automatic.items() if same(now[key], auto)})


def drop_flags(argv: list[str]) -> list[str]:
    """The command line without what a suggestion adds itself."""
    kept, skip = [], False
    for word in argv:
        if skip or word in ("--restart", "--resume"):
            skip = False
        elif word == "--accept":
            skip = True
        elif not word.startswith("--accept="):
            kept.append(word)
    return kept
