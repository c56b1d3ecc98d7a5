"""One training in one folder: what is written when it begins, at each event, and when it ends."""

import contextlib
import logging
import math
from typing import Any

from engine.checkpoint import Checkpoints, Snapshot, Writer, read_weights, weights_file
from engine.control import Bar, Control, Interrupted, Paused
from engine.distributed import World
from engine.loop import Epoch, Event, NonFiniteLoss, Run, State, Step, check_finite
from engine.observers import make_observers
from engine.plan import Plan, closing_block
from engine.schedule import num_steps
from folder.folder import Folder, now
from folder.history import best_row, recorded_minimized
from folder.provenance import snapshot, update_meta, write_meta
from include import (
    BATCH_PNG,
    EXIT_BUG,
    EXIT_DAMAGED,
    EXIT_NONFINITE,
    EXIT_SYSTEM,
    FOLD,
    RESOLVED,
    TRAIN_HISTORY_PNG,
    TRAIN_LOG,
)
from params import Params
from report.figures import save_history_figure
from report.image_sheets import save_batch_sheet
from utils import UserError, describe_oserror, is_out_of_memory, read_tensors, reference_name, write_json

log = logging.getLogger("train")


def committed(plan: Plan) -> dict[str, Any] | None:
    """The state that the plan goes on from; None when it starts anew. Writes nothing."""
    if plan.verb != "continue":
        return None
    saved, remark = Checkpoints(plan.folder.path).restore()
    plan.remarks += [remark] if remark else []
    plan.saved = saved
    return saved


def restore(plan: Plan, state: State, saved: dict[str, Any] | None, world: World) -> None:
    """Load what the plan starts from into `state`: the committed state, given weights, or nothing."""
    if saved:
        try:
            state.load_state_dict(saved, world.rank, world.size)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{plan.folder.path}: the committed state does not fit this run: {reason}", EXIT_DAMAGED
            ) from None
    elif plan.restore_file:
        missing, unexpected = state.net.load_state_dict(read_tensors(plan.restore_file), strict=False)
        if state.ema:
            state.ema.module.load_state_dict(state.net.state_dict())
        plan.remarks.append(
            f"weights from {plan.restore_file}: {len(missing)} missing, {len(unexpected)} unexpected names"
        )


def plan_steps(plan: Plan, params: Params, state: State, steps_per_epoch: int) -> tuple[int, int]:
    """(steps of the run as first asked for, steps with all extensions). A new extension is noted in `state`."""
    first = num_steps(params.num_epochs, steps_per_epoch)
    if plan.extends:
        added = num_steps(plan.num_epochs, steps_per_epoch) - num_steps(state.num_epochs, steps_per_epoch)
        state.extensions = [*state.extensions, [state.step, state.step + added]]
    state.num_epochs = plan.num_epochs
    return first, state.extensions[-1][1] if state.extensions else first


def kit_of(resolved: dict[str, Any]) -> dict[str, Any]:
    """What a weights file says of its net and of the images it wants."""
    kit = {key: resolved[key] for key in ("arch", "arch_args", "ps", "im_sz", "resize", "n_clas")}
    pinned = resolved["pinned"]
    kit |= {"tta": resolved["tta"]} if resolved["tta"] != "none" else {}
    return kit | {"classes": pinned["classes"], "normalisation": {key: pinned[key] for key in ("mean", "std")}}


def derive_again(folder: Folder, saved: dict[str, Any] | None = None) -> list[str]:
    """Write history, metrics and exported weights again from the committed states; what is damaged is said.

    `saved`: the state to go on from, when it is not the last one. UserError (exit 3) when the best weights are lost.
    """
    checkpoints, resolved, minimized = Checkpoints(folder.path), folder.resolved(), recorded_minimized(folder.meta())
    manifest, metric = checkpoints.manifest(), reference_name(resolved["best_metric"])
    saved = saved or checkpoints.read(manifest["last"])
    best = best_row(saved["history"], metric, minimized)
    folder.derive(saved["history"], best)
    closed = manifest["epochs"] or [entry for entry in [manifest["last"]] if entry["file"].startswith("epoch_")]
    remarks = []
    for which, entry in (("best", manifest["best"]), ("last", closed[-1] if closed else None)):
        if not entry:
            continue
        try:
            held = checkpoints.read(entry)
        except UserError as damaged:
            if entry["epoch"] <= saved["epoch"]:  # not trained again: the exported file is what is left of it
                read_weights(folder.weights(which))
                remarks.append(f"{damaged}; {folder.weights(which)} is whole and stays")
            continue
        folder.write_weights(which, weights_file(held["ema"] or held["net"], kit_of(resolved)))
    return remarks


class Session:
    """Writes what `plan`, `run` and `state` give into the experiment folder. On ranks other than 0, writes nothing.

    A context manager: entering makes the first writes, once everything has been built and checked; leaving
    says in status.json how it ended, whichever way that is.
    """

    def __init__(self, plan: Plan, params: Params, run: Run, state: State, control: Control, args: Any, choice: str):
        self.plan, self.params, self.run, self.state, self.control = plan, params, run, state, control
        run.wants_control = control.wants
        self.args, self.choice = args, choice
        self.folder: Folder = plan.folder
        self.checkpoints, self.writer = Checkpoints(self.folder.path), Writer()
        self.bar = Bar(control, run.train_loader.num_batches)
        path = self.folder.path
        self.observers = make_observers(params.observers, path, params, state.step) if run.world.is_main else []
        self.kit: dict[str, Any] = {}  # see kit_of

    def __enter__(self) -> "Session":
        if not self.run.world.is_main:
            return self
        plan, loader, state, pinned = self.plan, self.run.train_loader, self.state, self.plan.pinned
        if plan.restart and (moved := self.folder.move_aside()):
            plan.remarks.append(f"the earlier attempt is in {moved}")
        self.folder.create(plan.written, self.args.scratch_dir)
        self.folder.open_log(to_stderr=self.args.json)
        self.checkpoints.clean()
        resolved = self.params.resolved() | {"pinned": pinned}
        self.kit = kit_of(resolved)
        snapshot(self.folder, resolved, state.step)
        write_json(self.folder.path / RESOLVED, resolved)
        write_meta(self.folder, overrides=plan.overrides, data_dir=str(plan.data_dir.resolve()), data=pinned["data"],
                   seed=self.params.seed, device=pinned["machine"], restore_file=plan.restore_name,
                   minimize=self.run.minimized, num_parameters=self._num_parameters(),
                   from_step=state.step, accepted=sorted(plan.accepted) or None)  # fmt: skip
        self.folder.write_augmentation(loader.augmentation)
        if loader.fold:
            write_json(self.folder.path / FOLD, loader.fold)
        self.folder.write_status("running", epoch=state.epoch, step=state.step)
        if state.step == 0:
            save_batch_sheet(self.folder.path / BATCH_PNG, loader)
        self._say_hello()
        return self

    def _num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.run.net.parameters())

    def _say_hello(self) -> None:
        lines = [*self.plan.remarks, self.run.train_loader.description]
        lines += [f"net: {self.params.arch}, {self._num_parameters():,} parameters", f"machine: {self.choice}"]
        lines += [self.run.weights_report] if self.run.weights_report and self.plan.verb == "start" else []
        lines += [f"no effect: {line}" for line in self.plan.params.no_effect()]
        if self.plan.verb == "continue":
            # A kill may have come between a commit and what is derived from it.
            lines += derive_again(self.folder, self.plan.saved)
            lines.append(
                f"continuing at epoch {self.state.epoch + 1}, step {self.state.step} of {self.run.total_steps}"
            )
        if self.plan.extends:
            start, end = self.state.extensions[-1]
            rates = [
                group["initial_lr"] * self.run.schedule.multiplier(start) for group in self.run.optimizer.param_groups
            ]
            lines.append(f"extension: steps {start} to {end}, learning rate on a cosine from {max(rates):g} to 0")
        for line in lines:
            log.info("%s", line)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        try:
            self._leave(error)
        finally:
            self.control.close()  # a signal that comes while the end is written does not break it off

    def _leave(self, error: BaseException | None) -> None:
        self.run.world.leave()
        raised = error
        if not self.run.world.is_main:
            if raised and (error := self._explained(raised)) is not raised:
                raise error from None
            return
        try:
            self.writer.wait()
            if error is None:
                self._finish()
                return
        except Exception as failure:  # what could not be written
            error = failure
        error = self._explained(error)
        is_interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
        code = error.code if isinstance(error, UserError) else EXIT_BUG
        known = isinstance(error, UserError) or is_interrupted
        logging.getLogger("train.file").error("%s", error, exc_info=None if known else error)
        with contextlib.suppress(OSError):  # a full disk: the reason is said by the error itself
            self._stop("interrupted" if is_interrupted else "failed", str(error) or type(error).__name__, code)
        if error is not raised:
            raise error from None

    def _explained(self, error: BaseException) -> BaseException:
        """The UserError that says what to do about it, for what is nobody's bug."""
        if isinstance(error, NonFiniteLoss):
            return UserError(f"{error}{self._batch_of(error)}", EXIT_NONFINITE)
        if isinstance(error, OSError):
            return UserError(describe_oserror(error), EXIT_SYSTEM)
        if self.run.world.is_lost(error):
            reason = " ".join(str(error).split())[-160:]
            return UserError(f"another process of this run ended ({reason}); the same command continues", EXIT_SYSTEM)
        if is_out_of_memory(error):
            size, accumulate = self.params.batch_size, self.params.accumulate
            ways = f"try --accumulate={2 * accumulate} (the same step in smaller parts), or a smaller batch_size"
            return UserError(f"out of memory with batch_size {size}, accumulate {accumulate}: {ways}", EXIT_SYSTEM)
        return error

    def _batch_of(self, error: NonFiniteLoss) -> str:
        """The files of the batch where it happened: some in the message, all in train.log."""
        if error.epoch is None or error.step is None or not self.run.world.is_main:
            return ""
        files = self.run.train_loader.files(error.epoch, error.step)
        logging.getLogger("train.file").error("the batch of that step: %s", " ".join(files))
        more = f" and {len(files) - 3} more, listed in {TRAIN_LOG}" if len(files) > 3 else ""
        return f". Its batch: {', '.join(files[:3])}{more}"

    def record(self, event: Event) -> None:
        """Commit when an epoch is over, a signal came or a checkpoint is due; log, plot, show. Raises Interrupted."""
        is_epoch = isinstance(event, Epoch)
        if is_epoch:
            self.control.wants()  # a signal that comes later waits for the next event
        save = is_epoch or self.control.save_due
        shards = self.run.world.gather(self.state.shard()) if save and not is_epoch else None
        if save:
            self.control.saved_now()
        if self.run.world.is_main:
            self._write(event, save, shards)
        if self.control.signal:
            raise Interrupted(self.control.signal, self.state.step)
        if is_epoch and event.epoch >= (self.args.until or math.inf) and self.state.step < self.run.total_steps:
            raise Paused(event.epoch, self.state.step)

    def _write(self, event: Event, save: bool, shards: list[dict[str, Any]] | None) -> None:
        self.bar.show(event, self.state.epoch_step)
        if self.writer.failed:
            self.writer.wait()  # raises
        if isinstance(event, Epoch):
            self._commit(event)
            log.info("%s", describe(event, self.state.num_epochs))
            for observer in self.observers:
                observer.epoch(event, self.state.history)
        else:
            if save:
                self._commit(shards=shards)
            if isinstance(event, Step) and event.due:
                for observer in self.observers:
                    observer.step(event)
        self.folder.write_status("running", epoch=self.state.epoch, step=self.state.step)

    def _commit(self, epoch: Epoch | None = None, shards: list[dict[str, Any]] | None = None) -> None:
        """Have the state of this instant written. `epoch`: it stands right after an evaluation."""
        check_finite(self.state)
        weights = weights_file(self.state.eval_net.state_dict(), self.kit) if epoch else None
        is_best = epoch is not None and epoch.is_best
        state = Snapshot.of(self.state.state_dict(shards))
        self.writer.submit(self._save, state, weights, self.state.history, self._best_row(), is_best)

    def _save(
        self,
        state: Snapshot,
        weights: bytes | None,
        history: list[dict[str, Any]],
        best: dict[str, Any] | None,
        is_best: bool,
    ) -> None:
        """In the writer's thread: first the commit, then what is derived from it."""
        keep_last = self.params.keep_last
        self.checkpoints.commit(state, epoch_done=weights is not None, is_best=is_best, keep_last=keep_last)
        self.folder.derive(history, best)
        if weights:
            self.folder.write_weights("last", weights)
        if weights and is_best:
            self.folder.write_weights("best", weights)

    def _best_row(self) -> dict[str, Any] | None:
        return best_row(self.state.history, self.run.best_metric, self.run.minimized)

    def _finish(self) -> None:
        """The run is done: slim checkpoints, and what to type next."""
        self.checkpoints.finish()
        stopped = self.state.step < self.run.total_steps
        reason = f"stopped early: {self.params.early_stopping.monitor_metric} no longer improved" if stopped else ""
        self._stop("done", reason)
        if reason:
            log.info("%s", reason)
        log.info("%s", closing_block(self.folder, self.plan.data_dir, self.plan.has_test))

    def _stop(self, status: str, message: str, code: int = 0) -> None:
        """Close the observers, say in status.json how it ended, and draw the last figure."""
        self.bar.close()
        for observer in self.observers:
            observer.close()
        update_meta(self.folder, end=now())
        self.folder.write_status(status, message, code, epoch=self.state.epoch, step=self.state.step)
        if best := self._best_row():
            figure = self.folder.path / TRAIN_HISTORY_PNG
            save_history_figure(figure, self.state.history, self.run.best_metric, best["epoch"])


def describe(event: Epoch, num_epochs: float) -> str:
    """One line for an epoch."""
    row = event.row
    parts = [f"epoch {event.epoch}/{num_epochs:g}"]
    for split in ("train", "val"):
        values = {key.removeprefix(f"{split}_"): value for key, value in row.items() if key.startswith(f"{split}_")}
        parts.append(
            f"{split} " + " ".join(f"{name} {value:.4f}" for name, value in values.items() if value is not None)
        )
    parts.append(f"{row['seconds']:.1f} s, {row['images_per_second']:.0f} images/s")
    return "  ".join(parts) + ("  *best*" if event.is_best else "")
