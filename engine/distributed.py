"""Several processes of one run, as torchrun starts them: their ranks, and what they exchange.

One process is a World of one: every method works and none of them needs torch.distributed.
"""

from __future__ import annotations

import inspect
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from threading import Timer
from typing import TYPE_CHECKING, Any, TypeVar

from include import EXIT_SYSTEM
from utils import UserError, say

if TYPE_CHECKING:  # torch is imported by the methods that use it: a busy folder answers at once
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup, Work
    from torch.distributed.distributed_c10d import Store

Value = TypeVar("Value")

CONNECT_SECONDS = 30.0  # for ranks that have met to connect to each other
NOTICE_SECONDS = 5.0  # waiting for other processes for longer than this is said

_CONTROL: list[ProcessGroup] = []  # the process group, on CPUs, for everything but the tensors of the training
_UNDER_WAY: list[tuple[Tensor, Work]] = []  # the number that the ranks are agreeing on


@dataclass(frozen=True)
class World:
    """The number of this process (its rank) among those that torchrun started."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1  # number of processes on this machine

    @property
    def is_main(self) -> bool:
        """True of the one process that writes and prints."""
        return self.rank == 0

    def connect(self, device: str) -> None:
        """Meet the other processes: through nccl between GPUs, gloo between CPUs."""
        if self.size > 1:
            import torch.distributed as dist
            from torch.distributed.constants import default_pg_timeout

            on_gpu = device.startswith("cuda")
            place: dict[str, Any] = {"store": meet(self.rank, self.size), "rank": self.rank, "world_size": self.size}
            # All have come, so connecting takes moments: one that dies now has no connection to close.
            connecting = timedelta(seconds=CONNECT_SECONDS + 0.1 * self.size)
            with self.explained():
                if on_gpu:
                    dist.init_process_group("nccl", **place)
                    group = dist.new_group(backend="gloo", timeout=connecting)
                else:
                    dist.init_process_group("gloo", **place, timeout=connecting)
                    group = dist.group.WORLD
            assert isinstance(group, dist.ProcessGroup)
            # From now on a rank may wait for the work of another: torch's own limit.
            set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # before 2.15
            set_timeout(default_pg_timeout, group)
            _CONTROL[:] = [group]

    def leave(self) -> None:
        """Leave the process group; do nothing if it was left before."""
        if self.size > 1:
            import torch.distributed as dist

            while _UNDER_WAY:  # a tensor that gloo's thread frees while Python exits would abort the process
                value, work = _UNDER_WAY.pop()
                with suppress(RuntimeError):  # another rank is gone
                    work.wait(timedelta(seconds=5))
            if dist.is_initialized():
                dist.destroy_process_group()

    def is_lost(self, error: BaseException) -> bool:
        """Whether `error`, of gloo or nccl, means that another process of the run is gone."""
        words = (
            "gloo",
            "connection closed",
            "connection reset",
            "connection was likely closed",
            "nccl",
            "process group",
            "wait timeout after",  # of the store in which the ranks find each other
        )
        return self.size > 1 and isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise what gloo and nccl raise when another process of the run is gone as a UserError."""
        try:
            yield
        except RuntimeError as error:
            if not self.is_lost(error):
                raise
            raise describe_loss(error) from None

    def all_sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all ranks."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def agree(self, number: int) -> int:
        """The maximum over all ranks of what they passed in the previous call; 0 in the first call.

        So a signal takes effect one step later: the numbers of this call travel while the ranks compute, and neither a
        process nor a GPU waits for them here. With one process, this call's number is returned at once.
        """
        if self.size == 1:
            return number
        import torch
        import torch.distributed as dist

        answer = 0
        if _UNDER_WAY:
            value, work = _UNDER_WAY.pop()
            work.wait()
            answer = int(value)
        value = torch.tensor(number)
        travelling = dist.all_reduce(value, dist.ReduceOp.MAX, group=_CONTROL[0], async_op=True)
        assert travelling is not None
        _UNDER_WAY.append((value, travelling))
        return answer

    def gather(self, value: Value) -> list[Value]:
        """`value` of every rank, given to each of them; tensors go through the CPU."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with self.explained():
            dist.all_gather_object(values, value, group=_CONTROL[0])
        return values

    def cat(self, parts: list[Tensor]) -> Tensor:
        """The tensors of all ranks as one, along the first axis, on the CPU when there are several ranks."""
        import torch

        own = torch.cat(parts)
        return own if self.size == 1 else torch.cat(self.gather(own.cpu()))

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Copy rank 0's values of these tensors to every rank: each has statistics of its own images only."""
        if self.size > 1:
            import torch.distributed as dist

            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wrap(self, net: nn.Module, device: str, freezes: bool = False) -> nn.Module:
        """The net whose backward pass averages gradients over ranks. `freezes`: some layers get none for a while."""
        if self.size == 1:
            return net
        from torch.nn.modules.batchnorm import _BatchNorm
        from torch.nn.parallel import DistributedDataParallel

        # Batch norm's statistics are shared once an epoch (see `share`), other buffers in each forward pass.
        norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
        statistics = {id(buffer) for norm in norms for buffer in norm.buffers()}
        has_others = any(id(buffer) not in statistics for buffer in net.buffers())
        # The option has a new name in newer versions of torch.
        options = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
        sync_buffers: dict[str, Any] = {name: has_others}
        devices = [self.local_rank] if device.startswith("cuda") else None
        with self.explained():
            return DistributedDataParallel(net, devices, find_unused_parameters=freezes, **sync_buffers)

    def synced(self, forward: nn.Module, is_last: bool) -> AbstractContextManager[object]:
        """Gradients travel between ranks in the backward pass of a step's last micro-batch alone.

        `forward`: what `wrap` gave.
        """
        return nullcontext() if is_last or self.size == 1 else _without_sync(forward)


def _without_sync(forward: nn.Module) -> AbstractContextManager[object]:
    from torch.nn.parallel import DistributedDataParallel

    assert isinstance(forward, DistributedDataParallel)
    return forward.no_sync()


def describe_loss(error: BaseException) -> UserError:
    """The UserError for what gloo or nccl raises when another process of the run is gone."""
    reason = " ".join(str(error).split())[-160:]
    return UserError(f"another process of this run ended ({reason}); the same command continues", EXIT_SYSTEM)


# --- how they meet --------------------------------------------------------------------------------------


def meet(rank: int, size: int) -> Store:
    """The store in which the ranks of this start find each other's addresses. UserError when one of them is missing.

    Who waits for longer than NOTICE_SECONDS says for whom; see rendezvous_seconds for the limit.
    """
    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]  (documented names)
    from torch.distributed.rendezvous import rendezvous

    limit = rendezvous_seconds()
    timeout = timedelta(seconds=limit)
    address = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    if "?" in address or not address.rpartition(":")[2].isdecimal():
        raise UserError(f"WORLD_SIZE is {size}, but MASTER_ADDR:MASTER_PORT is {address}: start it with torchrun")
    host, _, port = address.rpartition(":")
    # What rank 0 waits for, it says itself: it knows who has come.
    notice = Timer(NOTICE_SECONDS, say, [f"rank {rank} is waiting for rank 0 at {address}, at most {limit:g} s"])
    notice.daemon = True
    try:
        if rank:
            notice.start()
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store, _, _ = next(iter(rendezvous("env://", timeout=timeout)))
        else:
            store = TCPStore(host, int(port), size, rank == 0, timeout, wait_for_workers=False, multi_tenant=True)
        # All starts of a torchrun share one store: each start uses its own prefix in it.
        return PrefixStore(name_attempt(store, rank, size, limit), store)
    except RuntimeError as error:  # of the store
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"rank {rank} did not meet rank 0 at {address} within {limit:g} s ({reason}); "
            "start all processes again with the same command",
            EXIT_SYSTEM,
        ) from None
    finally:
        notice.cancel()


def rendezvous_seconds() -> float:
    """How long the processes of a run wait for each other: RENDEZVOUS_SECONDS of the environment, 300 by default."""
    given = os.environ.get("RENDEZVOUS_SECONDS", "300")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0
    if not 1 <= seconds <= 86400:
        raise UserError(f"RENDEZVOUS_SECONDS={given}: a number of seconds from 1 to 86400 is expected")
    return seconds


def name_attempt(store: Store, rank: int, size: int, limit: float = 300) -> str:
    """A name that all ranks of this start know and no earlier start had. UserError after `limit` seconds.

    torchrun keeps one store for all restarts, where the addresses of dead processes can still be read (pytorch
    #135712), and its restart count differs between nodes. So each rank writes a random word of its own, and rank 0
    of the same start answers it with the name. The word of an earlier start is answered too, but never
    acknowledged: rank 0 repeats this until every rank has acknowledged.
    """
    if rank:
        word = uuid.uuid4().hex
        store.set(f"kit/here/{rank}", word)
        name = store.get(f"kit/name/{word}").decode()
        store.set(f"kit/heard/{name}/{rank}", "")
        return name
    name = uuid.uuid4().hex
    silent = set(range(1, size))
    begun = time.monotonic()
    is_said = False
    while silent:
        # answer every word, and see who has heard the answer
        for other in [other for other in silent if store.check([f"kit/here/{other}"])]:
            store.set(f"kit/name/{store.get(f'kit/here/{other}').decode()}", name)
        silent = {other for other in silent if not store.check([f"kit/heard/{name}/{other}"])}
        # say who is missing, and give up in the end
        waited = time.monotonic() - begun
        missing = f"rank{'s' if len(silent) > 1 else ''} {', '.join(map(str, sorted(silent)))} of {size}"
        if silent and waited > limit:
            raise UserError(
                f"{missing} did not come within {limit:g} s: see what those processes printed, "
                "and start all of them again with the same command",
                EXIT_SYSTEM,
            )
        if silent and waited > NOTICE_SECONDS and not is_said:
            say(f"waiting for {missing}, at most {limit:g} s")
            is_said = True
        time.sleep(0.005 if silent else 0)
    return name


def find_world() -> World:
    """The World that torchrun describes in the environment; a single process without torchrun."""

    def read(name: str, default: int) -> int:
        return int(os.environ.get(name, default))

    return World(
        rank=read("RANK", 0),
        size=read("WORLD_SIZE", 1),
        local_rank=read("LOCAL_RANK", 0),
        local_size=read("LOCAL_WORLD_SIZE", 1),
    )
