"""The moving average of the weights against torch's own, and against the published warm-up."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from engine.ema import Ema

DECAY = 0.6


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def step(net: nn.Module, number: int) -> None:
    """Weights move, and batch normalisation sees a batch."""
    generator = torch.Generator().manual_seed(number)
    net(torch.randn(8, 3, generator=generator))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def decay_at(num_updates: int) -> float:
    """min(decay, (1 + k) / (10 + k)), as TensorFlow's ExponentialMovingAverage documents its `num_updates`."""
    return min(DECAY, [0.1, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15][num_updates] if num_updates < 6 else 0.6)


def test_it_is_torchs_average_with_a_warm_up():
    net = make_net()
    ours = Ema(net, DECAY)

    def average(old: torch.Tensor, new: torch.Tensor, num_averaged: int) -> torch.Tensor:
        decay = decay_at(int(num_averaged) - 1)  # torch copies at its first update, and counts it
        return decay * old + (1 - decay) * new

    torchs = AveragedModel(net, avg_fn=average, use_buffers=True)
    torchs.update_parameters(net)
    for number in range(6):
        step(net, number)
        ours.update(net, number)
        torchs.update_parameters(net)
        expected, values = torchs.module.state_dict(), ours.module.state_dict()
        for name, value in values.items():
            if value.is_floating_point():
                assert torch.allclose(value, expected[name], atol=1e-6), name


def test_by_hand():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    ema = Ema(net, 0.15)
    for number, expected in enumerate([0.1 * 1 + 0.9 * 2, 0.15 * 1.9 + 0.85 * 3]):  # the second: decay, not 2 / 11
        nn.init.constant_(net.weight, 2.0 + number)
        ema.update(net, number)
        assert ema.module.weight.item() == pytest.approx(expected)
        assert net.weight.item() == 2.0 + number


def test_the_decay_is_never_more_than_asked_for():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    ema = Ema(net, 0.9)
    nn.init.constant_(net.weight, 1.0)
    ema.update(net, 100_000)
    assert ema.module.weight.item() == pytest.approx(0.1)


def test_counters_are_copied_and_the_average_is_for_evaluation():
    net = make_net()
    ema = Ema(net, 0.9)
    for number in range(3):
        step(net, number)
        ema.update(net, number)
    assert ema.module[1].num_batches_tracked == net[1].num_batches_tracked == 3
    assert not ema.module.training
    assert net.training
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize(("k", "share"), [(0, 0.1), (1, 2 / 11), (79, 80 / 89), (80, 0.9), (81, 0.9)])
def test_the_share_of_the_old_average_by_hand(k, share):
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    ema = Ema(net, 0.9)
    nn.init.constant_(net.weight, 0.0)
    ema.update(net, k)
    assert ema.module.weight.item() == pytest.approx(share, rel=1e-6)
