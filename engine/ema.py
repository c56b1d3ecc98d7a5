"""Exponential moving average of the weights, warmed up."""

import copy

import torch
from torch import nn


class Ema:
    """A copy of the net whose weights follow it: w_ema <- d * w_ema + (1 - d) * w.

    d = min(decay, (1 + k) / (10 + k)) after k updates, so that the first updates count (the warm-up of
    TensorFlow's ExponentialMovingAverage). Floating buffers are averaged too; counters are copied.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.module = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, num_updates: int) -> None:
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        ours, theirs = self.module.state_dict(), net.state_dict()
        floating = [name for name, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[name] for name in floating], [theirs[name] for name in floating], 1 - decay)
        for name in ours.keys() - set(floating):
            ours[name].copy_(theirs[name])
