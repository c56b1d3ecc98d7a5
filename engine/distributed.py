"""torchrun in; rank, world, device out. One process is a world of one and needs nothing of this."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """Who this process is among those that torchrun started."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def connect(self, device: str) -> None:
        """Meet the other processes: nccl between GPUs, gloo between CPUs."""
        if self.size > 1:
            import torch.distributed as dist

            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")

    def leave(self) -> None:
        if self.size > 1:
            import torch.distributed as dist

            if dist.is_initialized():
                dist.destroy_process_group()

    def barrier(self) -> None:
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def all_sum(self, tensor: "Tensor") -> "Tensor":
        """The sum of `tensor` over all ranks."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """True on every rank when `flag` is on one."""
        if self.size == 1:
            return flag
        import torch

        return bool(self.all_sum(torch.tensor(int(flag))).item())

    def wrap(self, net: "nn.Module", device: str) -> Any:
        """The net whose backward averages gradients over ranks."""
        if self.size == 1:
            return net
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(net, device_ids=[self.local_rank] if device.startswith("cuda") else None)


def find_world() -> World:
    """What torchrun put into the environment."""
    get = os.environ.get
    return World(int(get("RANK", 0)), int(get("WORLD_SIZE", 1)), int(get("LOCAL_RANK", 0)))
