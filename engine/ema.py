"""Exponential moving average of the weights, warmed up."""

import copy

import torch
from torch import nn


class Ema:
    """A copy of the net whose weights follow it: average <- d * average + (1 - d) * weights.

    d = min(decay, (1 + k) / (10 + k)) at the update after k others, so that the first updates count: the warm-up of
    TensorFlow's ExponentialMovingAverage. Floating buffers are averaged too, counters are copied.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.module = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, num_updates: int) -> None:
        """Move the average towards the weights of `net`. `num_updates`: number of updates before this one."""
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        averages = self.module.state_dict()
        weights = net.state_dict()
        floating = [name for name, value in averages.items() if value.is_floating_point()]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]  (the stubs export no foreach function)
            [averages[name] for name in floating], [weights[name] for name in floating], 1 - decay
        )
        for name in averages.keys() - set(floating):
            averages[name].copy_(weights[name])
