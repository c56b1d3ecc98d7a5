"""One training in one folder: what it starts from, and what is written when it begins, at each event and at its end."""

import contextlib
import logging
import math
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from engine.changes import restart_words
from engine.checkpoint import Checkpoints, Snapshot, Writer, weights_file, weights_metadata
from engine.control import Bar, Control, Interrupted, Paused
from engine.distributed import World
from engine.events import Epoch, Event, Step, describe
from engine.failures import explain
from engine.loop import Run, check_finite
from engine.observers.watchers import Watchers
from engine.plan import Plan
from engine.precision import Choice
from engine.schedule import is_as_stated, new_extension, num_steps
from engine.state import Row, SavedState, Shard, State
from engine.use.repair import write_derived
from engine.use.trials.doctor import look_at_plan
from engine.use.trials.find_lr import hint_at_rate
from folder.aside import move_aside
from folder.closing import closing_block
from folder.console import open_log
from folder.folder import Folder, now
from folder.history import best_row
from folder.identity import ADOPTS
from folder.provenance import snapshot, update_meta, write_meta
from folder.records import digest_results
from folder.scratch import copy_targets
from include import BATCH_PNG, EXIT_BUG, EXIT_DAMAGED, FOLD, RESOLVED, TRAIN_HISTORY_PNG
from report.figures import save_history_figure
from report.image_sheets import save_batch_sheet
from utils import JsonObject, UserError, printable

log = logging.getLogger("train")


# --- what it starts from ------------------------------------------------------------------------------


def load_committed_state(plan: Plan) -> tuple[SavedState | None, list[str]]:
    """The state that the plan continues from, None for a new start; and remarks. Writes nothing."""
    if plan.verb != "continue":
        return None, []
    checkpoints = Checkpoints(plan.folder.path)
    if not checkpoints.manifest():  # it was there when this start was planned
        plan.folder.check_held()
        raise UserError(f"{checkpoints.path}: the state was removed while this start was getting ready", EXIT_DAMAGED)
    saved, remark = checkpoints.restore()
    return saved, [remark] if remark else []


def restore(plan: Plan, state: State, saved: SavedState | None, world: World) -> State:
    """`state` as `saved` says, if the plan continues from a saved one. UserError (exit 3) when that does not fit."""
    if saved is None:
        return state
    try:
        state.load_state_dict(saved, world.rank, world.size)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{plan.folder.path}: the committed state does not fit this run: {reason}", EXIT_DAMAGED
        ) from None
    return state


def plan_steps(plan: Plan, state: State, steps_per_epoch: int) -> tuple[int, int]:
    """(steps of the run as first asked for, steps with all extensions). Notes a new extension in `state`."""
    first = num_steps(plan.params.num_epochs, steps_per_epoch)
    if plan.extends:
        added = num_steps(plan.num_epochs, steps_per_epoch) - num_steps(state.num_epochs, steps_per_epoch)
        state.extensions = [*state.extensions, new_extension(plan.params, state.step, state.step + added)]
    state.num_epochs = plan.num_epochs
    return first, state.extensions[-1][1] if state.extensions else first


# --- what is written ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Commit:
    """A state to commit, and the files derived from it."""

    state: Snapshot
    history: list[Row]
    best: Row | None
    weights: bytes | None  # to export, where an epoch has just ended
    is_best: bool
    keep_last: int

    def write(self, folder: Folder) -> None:
        """In the writer's thread: first the commit, then what is derived from it."""
        folder.check_held()
        epoch_done = self.weights is not None
        checkpoints = Checkpoints(folder.path, folder.identity, folder.check_held)
        checkpoints.commit(self.state, epoch_done=epoch_done, is_best=self.is_best, keep_last=self.keep_last)
        if self.weights:
            folder.write_weights("last", self.weights)
        if self.weights and self.is_best:
            folder.write_weights("best", self.weights)
        folder.derive(self.history, self.best)  # after the weights: engine/use/inference.py relies on it


class Session:
    """Writes what `plan`, `run` and `state` give into the experiment folder. On ranks other than 0, writes nothing.

    A context manager: entering makes the first writes, once everything has been built and checked; leaving
    records in status.json how the run ended, also when an exception ended it.
    """

    def __init__(self, plan: Plan, run: Run, state: State, control: Control):
        self.plan = plan
        self.run = run
        self.state = state
        self.control = control
        self.folder = plan.folder
        self.identity = plan.identity
        self.checkpoints = Checkpoints(plan.folder.path, plan.identity, plan.folder.check_held)
        self.writer = Writer()
        self.bar = Bar(control, run.train_loader.num_batches)
        resolved = plan.params.resolved()
        self.resolved = resolved | {"pinned": plan.pinned}
        self.metadata = weights_metadata(self.resolved)
        is_main = run.world.is_main
        self.watchers = Watchers.make(run, state, plan.folder.path) if is_main else Watchers([], run, state)

    def __enter__(self) -> "Session":
        self.control.open()
        try:
            if self.run.world.is_main:
                self._begin()
        except BaseException:
            self.control.close()
            raise
        return self

    def _begin(self) -> None:
        """Make the folder, record what is going to run, and greet."""
        plan, loader, state = self.plan, self.run.train_loader, self.state
        # The folder: an earlier attempt is moved aside, the log is opened.
        self.folder.check_held()
        if plan.is_copy:
            copy_targets(self.folder.path, self.identity)
        moved = move_aside(self.folder.path) if plan.moves_aside else None
        self.folder.create(plan.written, plan.request.scratch_dir, self.identity)
        open_log(self.folder.path, to_stderr=plan.request.json)
        self.checkpoints.clean()
        # What runs: code, versions, parameters, data, augmentation.
        snapshot(self.folder, self.resolved, state.step)
        write_meta(
            self.folder,
            overrides=plan.overrides,
            data_dir=str(plan.data_dir.resolve()),
            data=plan.pinned["data"],
            splits=list(loader.splits),
            seed=plan.params.seed,
            device=plan.pinned["machine"],
            restore_file=plan.restore_name,
            pretrained=self.run.weights_report.record() if self.run.weights_report else self._began_with(),
            minimize=self.run.minimized,
            num_parameters=count_parameters(self.run),
            from_step=state.step,
            accepted=sorted(plan.accepted) or None,
            **({ADOPTS: plan.adopts} if plan.adopts else {}),
        )
        self.folder.write_record(RESOLVED, self.resolved)
        self.folder.write_augmentation(loader.augmentation)
        if loader.fold:
            self.folder.write_record(FOLD, dict(loader.fold))
        # The state gets the ids of the folder when it was copied, or was written without ids.
        if plan.adopts:
            self.checkpoints.adopt()
            update_meta(self.folder, **{ADOPTS: None})
        self.folder.write_status("running", epoch=state.epoch, step=state.step)
        if state.step == 0:
            save_batch_sheet(self.folder.path / BATCH_PNG, loader)
        # A kill may have come between a commit and the files that are derived from it.
        rewritten = write_derived(self.folder, state.history, state.epoch) if plan.verb == "continue" else []
        if moved:
            plan = plan.add_remarks([f"the earlier attempt is in {moved}"])
        for line in greeting(plan, self.run, state, rewritten):
            log.info("%s", printable(line))

    def _began_with(self) -> JsonObject | None:
        """The weights that the run began with, as an earlier start recorded them."""
        return self.folder.meta().get("pretrained") if self.plan.verb == "continue" else None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._leave(error)
        finally:
            self.control.close()  # a signal that comes while the end is being written does not interrupt it

    def _leave(self, raised: BaseException | None) -> None:
        """Record how the run ended. Raises the error for the user where it is not `raised` itself."""
        self.run.world.leave()
        error = self._close(raised)
        if error is not None and error is not raised:
            raise error from None

    def _close(self, error: BaseException | None) -> BaseException | None:
        """Write the end of the run. Returns the error that ended it, explained, or None when the run is done."""
        if not self.run.world.is_main:
            return explain(error, self.run) if error else None
        try:
            self.writer.wait()
            if error is None:
                self._finish()
                return None
        except Exception as failure:  # what could not be written
            error = failure
        try:
            self.folder.check_held()
        except UserError as moved:  # what failed, failed because of it; the log is still that of the moved folder
            logging.getLogger("train.file").error("%s", moved)
            return moved
        error = explain(error, self.run)
        is_interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
        is_expected = isinstance(error, UserError) or is_interrupted
        code = error.code if isinstance(error, UserError) else EXIT_BUG
        logging.getLogger("train.file").error("%s", error, exc_info=None if is_expected else error)
        with contextlib.suppress(OSError):  # a full disk: `error` says so already
            self._stop("interrupted" if is_interrupted else "failed", str(error) or type(error).__name__, code)
        return error

    def record(self, event: Event) -> None:
        """Commit when an epoch is over, a signal came or a checkpoint is due; log, plot, show. Raises Interrupted."""
        is_epoch = isinstance(event, Epoch)
        if is_epoch:
            self.control.wants()  # a signal that comes later waits for the next event
        # Commit and show.
        save = is_epoch or self.control.save_due
        shards = self.run.world.gather(self.state.shard()) if save and not is_epoch else None
        if save:
            self.control.note_save()
        if self.run.world.is_main:
            self._write(event, save, shards)
        # Stop where a signal or --until asks for it.
        if self.control.signal:
            raise Interrupted(self.control.signal, self.state.step)
        until = self.plan.request.until or math.inf
        if is_epoch and event.epoch >= until and self.state.step < self.run.total_steps:
            raise Paused(event.epoch, self.state.step)

    def _write(self, event: Event, save: bool, shards: list[Shard] | None) -> None:
        """Commit `event` if it is to be saved, show it to the observers, and renew status.json."""
        self.bar.show(event, self.state.epoch_step)
        if save or not isinstance(event, Step) or event.due:
            self.folder.check_held()  # before the observers write
        if self.writer.failed:
            self.writer.wait()  # raises
        if isinstance(event, Epoch):
            self._commit(event)
            log.info("%s", describe(event, self.state.num_epochs))
            if hint := hint_at_rate(self.run, event, restart_words(self.plan.request.argv)):
                log.info("%s", printable(hint))
            self.watchers.epoch(event, self.state.history)
        else:
            if isinstance(event, Step) and event.due:  # before the commit: killed between them, a step is shown again
                self.watchers.step(event)
            if save:
                self._commit(shards=shards)
        self.folder.write_status("running", epoch=self.state.epoch, step=self.state.step)

    def _commit(self, epoch: Epoch | None = None, shards: list[Shard] | None = None) -> None:
        """Have the state of this instant written, in the writer's thread. `epoch`: it has just been evaluated."""
        check_finite(self.state)
        commit = Commit(
            state=Snapshot.of(self.state.state_dict(shards)),
            history=self.state.history,
            best=self._best_row(),
            weights=weights_file(self.state.eval_net.state_dict(), self.metadata) if epoch else None,
            is_best=epoch is not None and epoch.is_best,
            keep_last=self.plan.params.keep_last,
        )
        self.writer.submit(partial(commit.write, self.folder))

    def _best_row(self) -> Row | None:
        return best_row(self.state.history, self.run.best_metric, self.run.minimized)

    def _finish(self) -> None:
        """The run is done: slim its checkpoints, and print what comes next."""
        self.folder.check_held()
        # Recorded before the manifest says so: a folder that is done stays done when its checkpoints are deleted.
        reached = {"num_epochs": self.state.num_epochs, "epoch": self.state.epoch}
        update_meta(self.folder, done={**reached, "files": digest_results(self.folder.path)})
        self.checkpoints.finish()
        rule = self.plan.params.early_stopping
        reason = ""
        if rule and self.state.step < self.run.total_steps:
            reason = f"stopped early: {rule.monitor_metric} no longer improved"
        self._stop("done", reason)
        if reason:
            log.info("%s", reason)
        log.info("%s", printable(closing_block(self.folder, self.plan.data_dir)))

    def _stop(self, status: str, message: str, code: int = 0) -> None:
        """Close the observers, record in status.json how it ended, and draw the last figure."""
        self.bar.close()
        self.watchers.close()
        update_meta(self.folder, end=now())
        self.folder.write_status(status, message, code, epoch=self.state.epoch, step=self.state.step)
        if best := self._best_row():
            figure = self.folder.path / TRAIN_HISTORY_PNG
            save_history_figure(figure, self.state.history, self.run.best_metric, best["epoch"])


# --- the log ------------------------------------------------------------------------------------------


def count_parameters(run: Run) -> int:
    return sum(parameter.numel() for parameter in run.net.parameters())


def greeting(plan: Plan, run: Run, state: State, rewritten: list[str]) -> list[str]:
    """The first lines of the log. `rewritten`: remarks about the files that are derived from the state."""
    # The remarks so far, and what runs.
    lines = [run.train_loader.description]
    lines += [f"net: {plan.params.arch}, {count_parameters(run):,} parameters"]
    lines += plan.remarks
    lines += [f"machine: {Choice(**plan.pinned['choice']).describe()}"]
    lines += [str(run.weights_report)] if run.weights_report else []
    lines += [f"no effect: {line}" for line in plan.params.no_effect()]
    lines += [f"look: {finding.about}: {finding.text}" for finding in look_at_plan(run) if finding.is_odd]
    # Where it goes on.
    if plan.verb == "continue":
        lines += rewritten
        lines += [f"continuing at epoch {state.epoch + 1}, step {state.step} of {run.total_steps}"]
    if plan.extends:
        start, end = state.extensions[-1][:2]
        rate = max(group["initial_lr"] for group in run.optimizer.param_groups) * run.schedule.multiplier(start)
        as_stated = f"as lr_schedule states, {rate:g} at first"
        shape = as_stated if is_as_stated(state.extensions[-1]) else f"on a cosine from {rate:g} to 0"
        lines += [f"extension: steps {start} to {end}, learning rate {shape}"]
    return lines
