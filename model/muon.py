"""Muon for the filters and matrices inside a net, SGD for the rest of it."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

Group = dict[str, Any]  # of parameters, with their learning rate and other options


class Muon(torch.optim.Optimizer):
    """Updates with singular values of about 1 (Keller Jordan, kellerjordan.github.io/posts/muon), by torch.optim.Muon.

    That takes matrices alone. Here the filters of a convolution (O, I, h, w) are the matrix (O, I * h * w). The last
    layer group, and parameters of fewer than two dimensions, go to SGD with Nesterov momentum at `sgd_factor` times
    the rate. Weight decay is decoupled in Muon's part: weights shrink by rate * wd per step.
    """

    # optimizer_args of params.json are compared with this signature.
    def __init__(  # noqa: PLR0913
        self,
        params: Iterable[Group],
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        sgd_momentum: float = 0.9,
        sgd_factor: float = 1.0,
        ns_steps: int = 5,
        fused: bool = False,
    ):
        if sgd_factor <= 0 or not 0 <= momentum < 1 or not 0 <= sgd_momentum < 1 or not 1 <= ns_steps < 100:
            raise ValueError(
                f"sgd_factor {sgd_factor}, momentum {momentum}, sgd_momentum {sgd_momentum}, ns_steps {ns_steps}; "
                "possible: above 0, from 0 to below 1, the same, from 1 to 99"
            )
        groups = list(params)
        last = max(group["layer_group"] for group in groups)
        for group in groups:
            group["muon"] = group["layer_group"] < last and all(p.ndim >= 2 for p in group["params"])
            if not group["muon"]:
                group["lr"] *= sgd_factor
                group["initial_lr"] *= sgd_factor
            group["momentum"] = momentum if group["muon"] else sgd_momentum
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "ns_steps": ns_steps, "fused": fused})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            for p in weights:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in weights]
            if weights:
                step_group = step_muon if group["muon"] else step_sgd
                step_group(weights, buffers, group)
        return loss


def step_muon(weights: list[Tensor], buffers: list[Tensor], group: Group) -> None:
    """torch.optim.Muon's step, of matrices that share the memory of weights and momentum buffers."""
    matrices = [nn.Parameter(view_as_matrix(p, p), requires_grad=False) for p in weights]
    muon = torch.optim.Muon(
        matrices,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        ns_steps=group["ns_steps"],
    )
    for matrix, p, buffer in zip(matrices, weights, buffers, strict=True):
        assert p.grad is not None
        matrix.grad = view_as_matrix(p.grad, p)
        muon.state[matrix]["momentum_buffer"] = view_as_matrix(buffer, p)
    muon.step()


def step_sgd(weights: list[Tensor], buffers: list[Tensor], group: Group) -> None:
    """torch's SGD with Nesterov momentum."""
    sgd(
        weights,
        [p.grad for p in weights if p.grad is not None],
        [*buffers],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        dampening=0,
        nesterov=group["momentum"] > 0,
        maximize=False,
        fused=group["fused"],
    )


def view_as_matrix(tensor: Tensor, like: Tensor) -> Tensor:
    """(O, ...) -> (O, M), columns in the order in which `like` is stored: a view where `tensor` is stored alike."""
    if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.flatten(1)
