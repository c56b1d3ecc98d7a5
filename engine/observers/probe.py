"""Looks into the net while it trains, and leaves weights, statistics and random numbers as they are.

Gradients and updates are read by hooks of the optimizer. Activations come from a forward pass of their own over the
images of the step: hooks inside the net that trains would not run where it is compiled.
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from engine.loop import Run
from engine.measure import Autocast
from engine.observers.base import Inside, LayerOutput
from engine.schedule import is_time
from engine.state import State

SHARE = 0.02  # of the time, for looking
# Values this close to an end of the range of a bounded activation count as saturated.
NEAR = 0.01
BOUNDS: dict[type[nn.Module], tuple[float, float]] = {
    nn.Sigmoid: (0.0, 1.0),
    nn.Hardsigmoid: (0.0, 1.0),
    nn.Tanh: (-1.0, 1.0),
    nn.ReLU6: (-math.inf, 6.0),
}


class Probe:
    """Takes the looks that observers want, at the steps at which a Step event is due."""

    def __init__(self, run: Run, state: State, wants: Set[str]):
        self.run = run
        self.state = state
        self.wants = wants
        self._handles: list[RemovableHandle] = []  # of the optimizer
        self._images_handle: RemovableHandle | None = None
        self._step = -1  # that was last decided on
        self._is_wanted = False
        self._is_looking = False  # a forward pass of the probe's own is under way
        self._cost = 0.0  # seconds that looking took since `_since`
        self._since = -math.inf  # the end of the last look; the first look is taken whatever it costs
        self._clear()
        if wants & {"activations", "net"}:
            self._watch_images()
        if wants & {"gradients", "updates", "weights"}:
            self._handles.append(run.optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(run.optimizer.register_step_post_hook(self._after_step))

    def look(self) -> Inside | None:
        """The look at the step that has just been taken; None when none was due or it would cost too much."""
        if self._step != self.state.step - 1 or not self._is_wanted:
            return None
        self._is_looking = True
        with self._timed():
            activations = {}
            net = None
            if self._images is not None and "activations" in self.wants:
                activations = measure_layers(self.run.net, self._images, self.run.autocast)
            if "net" in self.wants:
                net = self._copy_net()
            look = Inside(
                self.state.epoch + 1,
                self.state.step,
                activations,
                self._gradients if "gradients" in self.wants else {},
                self._weights,
                self._updates,
                net,
                self._images,
            )
        self._is_looking = False
        self._clear()
        self._since = time.monotonic()
        return look

    def add_cost(self, seconds: float) -> None:
        """Count what the observers did with the look as time spent on it."""
        self._cost += seconds
        self._since = time.monotonic()

    def close(self) -> None:
        for handle in [*self._handles, *filter(None, [self._images_handle])]:
            handle.remove()
        self._handles.clear()
        self._images_handle = None
        self._clear()

    def _copy_net(self) -> nn.Module:
        """A copy of the net in evaluation mode, without the hook, which would be copied with all that it reaches."""
        if self._images_handle:
            self._images_handle.remove()
        net = copy.deepcopy(self.run.net).eval()
        self._watch_images()
        return net

    # --- hooks ---

    def _watch_images(self) -> None:
        self._images_handle = self.run.forward.register_forward_pre_hook(self._keep_images)

    def _wanted(self) -> bool:
        """Whether to look at the step that is being taken. Decided once for all hooks of a step."""
        if self._step != self.state.step:
            self._step = self.state.step
            self._clear()
            last = min(self.state.epoch_step + self.run.train_loader.num_batches, self.run.total_steps)
            is_due = is_time(self._step + 1, self.run.params.save_summary_steps, last)
            self._is_wanted = is_due and self._cost <= SHARE * (time.monotonic() - self._since)
            if self._is_wanted:
                self._cost = 0.0
        return self._is_wanted

    def _keep_images(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        is_training = self.run.net.training and not self._is_looking
        if is_training and self._wanted() and self._images is None:  # of the first micro-batch
            with self._timed():
                self._images = inputs[0].detach().clone()

    def _before_step(self, *_: object) -> None:
        if self._wanted():
            with self._timed(), torch.no_grad():
                moving = [(name, p) for name, p in self.run.net.named_parameters() if p.grad is not None]
                self._gradients = {name: p.grad.clone() for name, p in moving if p.grad is not None}
                self._before = {name: p.detach().clone() for name, p in moving}

    def _after_step(self, *_: object) -> None:
        if self._wanted():
            with self._timed(), torch.no_grad():
                after = dict(self.run.net.named_parameters())
                self._weights = {name: after[name].detach().clone() for name in self._before}
                self._updates = {name: self._weights[name] - before for name, before in self._before.items()}
                self._before = {}

    def _clear(self) -> None:
        self._images: Tensor | None = None
        self._gradients: Mapping[str, Tensor] = {}
        self._before: Mapping[str, Tensor] = {}
        self._weights: Mapping[str, Tensor] = {}
        self._updates: Mapping[str, Tensor] = {}

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self._cost += time.monotonic() - begun


# --- activations ----------------------------------------------------------------------------------------


@torch.no_grad()
def measure_layers(net: nn.Module, images: Tensor, autocast: Autocast) -> dict[str, LayerOutput]:
    """The outputs of every layer of `net` for `images` (B, 3, H, W), in the mode that the net is in.

    Layers are the modules without children that have parameters or are activation functions of torch.nn. One that runs
    several times is "name", "name:2", ... Buffers are copies, and the random generator is put back: the net stays as it
    is.
    """
    measured: dict[str, LayerOutput] = {}
    calls: Counter[str] = Counter()

    def measure(name: str, layer: nn.Module, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.ndim > 1:
            calls[name] += 1
            measured[f"{name}:{calls[name]}" if calls[name] > 1 else name] = measure_output(layer, output)

    layers = {name: module for name, module in net.named_modules() if is_layer(module)}
    handles = [
        layer.register_forward_hook(lambda module, _, output, name=name: measure(name, module, output))
        for name, layer in layers.items()
    ]
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    try:
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices), autocast():
            functional_call(net, buffers, (images,))
    finally:
        for handle in handles:
            handle.remove()
    return measured


def is_layer(module: nn.Module) -> bool:
    """True for a module without children that has parameters or is an activation function of torch.nn."""
    if next(module.children(), None) is not None:
        return False
    return next(module.parameters(), None) is not None or is_activation(module)


def is_activation(module: nn.Module) -> bool:
    """True for an activation function of torch.nn."""
    return type(module).__module__ == "torch.nn.modules.activation"


def measure_output(layer: nn.Module, output: Tensor) -> LayerOutput:
    """Mean, spread, dead units and saturation of (B, C, H, W), (B, T, C) or (B, C) outputs."""
    values = output.detach().float()
    unit = 1 if values.ndim == 4 else values.ndim - 1
    others = [dim for dim in range(values.ndim) if dim != unit]
    is_dead = values.amax(others) == values.amin(others)  # (C,)
    saturated = None
    if bounds := bounds_of(layer):
        low, high = bounds
        near = NEAR * (high - low) if math.isfinite(low) else NEAR * high
        saturated = ((values <= low + near) | (values >= high - near)).float().mean().item()
    return LayerOutput(values.mean().item(), values.std().item(), is_dead.float().mean().item(), saturated)


def bounds_of(layer: nn.Module) -> tuple[float, float] | None:
    """The range of a bounded activation function; None for other layers."""
    if type(layer) is nn.Hardtanh:
        return layer.min_val, layer.max_val
    return BOUNDS.get(type(layer))
