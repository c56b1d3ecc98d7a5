"""torchrun in; rank, world, device out. One process is a world of one and needs nothing of this."""

import inspect
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


_CONTROL: list[Any] = []  # the process group, on CPUs, for what is no tensor of the training
_UNDER_WAY: list[Any] = []  # what the ranks are agreeing on


@dataclass(frozen=True)
class World:
    """Who this process is among those that torchrun started."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1  # processes on this machine

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def connect(self, device: str) -> None:
        """Meet the other processes: nccl between GPUs, gloo between CPUs."""
        if self.size > 1:
            import torch.distributed as dist

            on_gpu = device.startswith("cuda")
            store, rank, size = next(dist.rendezvous("env://"))
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
                store = dist.PrefixStore(name_attempt(store, rank, size), store)
            dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size)
            _CONTROL[:] = [dist.new_group(backend="gloo")] if on_gpu else [dist.group.WORLD]

    def leave(self) -> None:
        if self.size > 1:
            import torch.distributed as dist

            while _UNDER_WAY:  # a tensor that gloo's thread lets go of while Python ends would abort the process
                value, work = _UNDER_WAY.pop()
                with suppress(RuntimeError):  # another rank is gone
                    work.wait(timedelta(seconds=5))
            if dist.is_initialized():
                dist.destroy_process_group()

    def is_lost(self, error: BaseException) -> bool:
        """Whether `error` says that another process of the run is gone: gloo's, or nccl's."""
        words = ("gloo", "connection closed", "connection reset", "nccl", "process group")
        return self.size > 1 and isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)

    def all_sum(self, tensor: "Tensor") -> "Tensor":
        """The sum of `tensor` over all ranks."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def agree(self, number: int) -> int:
        """The largest number that any rank gave at the call before this one; 0 at first. Each rank gets the same.

        The numbers of this call travel while the ranks compute: nobody waits for them here, and no GPU does.
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
        _UNDER_WAY.append((value, dist.all_reduce(value, dist.ReduceOp.MAX, group=_CONTROL[0], async_op=True)))
        return answer

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, known to each; tensors go through the CPU."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=_CONTROL[0])
        return values

    def cat(self, parts: "list[Tensor]") -> "Tensor":
        """The tensors of all ranks as one, along the first axis, on the CPU when there are several."""
        import torch

        own = torch.cat(parts)
        return own if self.size == 1 else torch.cat(self.gather(own.cpu()))

    def share(self, tensors: "Sequence[Tensor]") -> None:
        """Rank 0's values in these tensors of every rank: batch norm's statistics are of its part of the images."""
        if self.size > 1:
            import torch.distributed as dist

            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wrap(self, net: "nn.Module", device: str) -> Any:
        """The net whose backward averages gradients over ranks."""
        if self.size == 1:
            return net
        from torch.nn.modules.batchnorm import _BatchNorm
        from torch.nn.parallel import DistributedDataParallel

        norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
        statistics = {id(buffer) for norm in norms for buffer in norm.buffers()}  # shared once an epoch, see `share`
        has_others = any(id(buffer) not in statistics for buffer in net.buffers())
        where = [self.local_rank] if device.startswith("cuda") else None
        known = inspect.signature(DistributedDataParallel).parameters  # the older word is going out of use
        word = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return DistributedDataParallel(net, where, **{word: has_others})

    def synced(self, forward: Any, is_last: bool) -> AbstractContextManager[Any]:
        """Gradients travel in the backward pass of a step's last micro-batch alone."""
        return nullcontext() if is_last or self.size == 1 else forward.no_sync()


def name_attempt(store: Any, rank: int, size: int) -> str:
    """A name that all ranks of this start know and no earlier start had.

    torchrun keeps one store for all restarts, where the addresses of the dead are still found (pytorch #135712),
    and its restart count differs between nodes. So each rank shows a word of its own, to which rank 0 of
    the same start answers; who wrote an old word does not acknowledge the answer.
    """
    if rank:
        word = uuid.uuid4().hex
        store.set(f"kit/here/{rank}", word)
        name = store.get(f"kit/name/{word}").decode()
        store.set(f"kit/heard/{name}/{rank}", "")
        return name
    name = uuid.uuid4().hex
    silent = set(range(1, size))
    while silent:
        for other in [other for other in silent if store.check([f"kit/here/{other}"])]:
            store.set(f"kit/name/{store.get(f'kit/here/{other}').decode()}", name)
        silent = {other for other in silent if not store.check([f"kit/heard/{name}/{other}"])}
        time.sleep(0.005 if silent else 0)
    return name


def find_world() -> World:
    """What torchrun put into the environment."""
    get = os.environ.get
    names = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_size": "LOCAL_WORLD_SIZE"}
    return World(**{field: int(get(name, name.endswith("SIZE"))) for field, name in names.items()})
