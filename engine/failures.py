"""Explain the exception that ended a training to the user: one line that says what to do, and an exit code."""

import logging

from engine.distributed import describe_loss
from engine.events import NonFiniteLoss
from engine.loop import Run
from include import EXIT_NONFINITE, EXIT_SYSTEM, TRAIN_LOG
from utils import UserError, describe_oserror, is_out_of_memory

NUM_SHOWN = 3  # files of a batch that a message names; the log has all of them


def explain(error: BaseException, run: Run) -> BaseException:
    """The UserError that says what to do about `error`; `error` itself when it is one already, or a bug in the kit."""
    if isinstance(error, NonFiniteLoss):
        return UserError(f"{error}{describe_batch(error, run)}", EXIT_NONFINITE)
    if isinstance(error, OSError):
        return UserError(describe_oserror(error), EXIT_SYSTEM)
    if run.world.is_lost(error):
        return describe_loss(error)
    if is_out_of_memory(error):
        size, accumulate = run.params.batch_size, run.params.accumulate
        more = min(2 * accumulate, size)
        ways = f"try --accumulate={more} --accept params (the same step in smaller parts), or a smaller batch_size"
        return UserError(f"out of memory with batch_size {size}, accumulate {accumulate}: {ways}", EXIT_SYSTEM)
    return error


def describe_batch(error: NonFiniteLoss, run: Run) -> str:
    """Some files of the batch where the loss became non-finite, if it is known; train.log gets all of them."""
    if error.epoch is None or error.step is None or not run.world.is_main:
        return ""
    files = run.train_loader.files(error.epoch, error.step)
    logging.getLogger("train.file").error("the batch of that step: %s", " ".join(files))
    more = f" and {len(files) - NUM_SHOWN} more, listed in {TRAIN_LOG}" if len(files) > NUM_SHOWN else ""
    return f". Its batch: {', '.join(files[:NUM_SHOWN])}{more}"
