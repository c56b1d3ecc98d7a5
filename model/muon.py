"""Muon for the filters and matrices inside a net, SGD for the rest of it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, EPS, muon
from torch.optim.sgd import sgd


class Muon(torch.optim.Optimizer):
    """Updates whose singular values are all about 1 (Keller Jordan, kellerjordan.github.io/posts/muon), as torch's own.

    torch.optim.Muon takes matrices alone. Here a convolution's filters (O, I, h, w) are the matrix (O, I * h * w);
    the last layer group, and what has fewer than two dimensions, goes to SGD with Nesterov momentum at `sgd_factor`
    times the rate. Weight decay is decoupled in Muon's part: weights shrink by rate * wd per step.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        sgd_momentum: float = 0.9,
        sgd_factor: float = 1.0,
        ns_steps: int = 5,
        fused: bool = False,
    ):
        if sgd_factor <= 0 or not 0 <= momentum < 1 or not 0 <= sgd_momentum < 1 or not 1 <= ns_steps < 100:
            raise ValueError(f"sgd_factor {sgd_factor}, momentum {momentum}, {sgd_momentum}, ns_steps {ns_steps}")
        groups = list(params)
        last = max(group["layer_group"] for group in groups)
        for group in groups:
            group["muon"] = group["layer_group"] < last and all(p.ndim >= 2 for p in group["params"])
            if not group["muon"]:
                group |= {"lr": group["lr"] * sgd_factor, "initial_lr": group["initial_lr"] * sgd_factor}
            group["momentum"] = momentum if group["muon"] else sgd_momentum
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "ns_steps": ns_steps, "fused": fused})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in weights]
            buffers: list[Any] = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in weights]
            rest = {key: group[key] for key in ("lr", "weight_decay", "momentum")}
            if group["muon"]:
                columns = ([flat(t, p) for t, p in zip(ts, weights, strict=True)] for ts in (weights, grads, buffers))
                muon(*columns, **rest, nesterov=True, ns_coefficients=(DEFAULT_A, DEFAULT_B, DEFAULT_C),
                     eps=EPS, ns_steps=group["ns_steps"], adjust_lr_fn=None, has_complex=False)  # fmt: skip
            elif weights:
                sgd(weights, grads, buffers, **rest, dampening=0, nesterov=rest["momentum"] > 0, maximize=False,
                    fused=group["fused"])  # fmt: skip


def flat(tensor: Tensor, like: Tensor) -> Tensor:
    """(O, ...) -> (O, M), the columns in the order in which `like` lies in memory: a view of tensors that lie alike."""
    if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.flatten(1)
