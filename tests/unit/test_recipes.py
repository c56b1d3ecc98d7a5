"""What a fast recipe is made of: Muon, test-time augmentation, a compiled net, --prepare."""

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from kit import call, experiment, tree, weights
from torch import nn

import train
from engine import precision
from model.muon import Muon
from model.tta import TTA, average_views
from params import Params
from utils import UserError

# --- Muon -----------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A convolution, a matrix inside, a head: three layer groups."""

    def __init__(self):
        super().__init__()
        self.conv, self.inner, self.head = nn.Conv2d(4, 6, 3), nn.Linear(6, 5), nn.Linear(5, 3)

    def layer_groups(self):
        return [list(part.parameters()) for part in (self.conv, self.inner, self.head)]

    def forward(self, images):
        return self.head(self.inner(self.conv(images).mean(dim=(2, 3))))


def trained(make, layout, steps=4):
    torch.manual_seed(0)
    net = Net().to(memory_format=layout)
    optimizers = make(net)
    for step in range(steps):
        images = torch.randn(8, 4, 7, 7, generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(net(images), torch.arange(8) % 3).backward()
        for optimizer in optimizers:
            optimizer.step()
        net.zero_grad()
    return net.state_dict()


def ours(net):
    values = {"sgd_factor": 2.0, "momentum": 0.8, "sgd_momentum": 0.7}
    return [
        train.make_optimizer(net, Params(optimizer="muon", learning_rate=0.02, wd=0.1, optimizer_args=values), True)
    ]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_is_torchs_muon_for_filters_and_sgd_for_the_rest(layout):
    def torchs(net):
        # A filter as the matrix that torch wants, in the same memory; its gradient is handed over before each step.
        columns = (0, 2, 3, 1) if layout is torch.channels_last else (0, 1, 2, 3)
        flat = nn.Parameter(net.conv.weight.detach().permute(columns).flatten(1))
        assert flat.data_ptr() == net.conv.weight.data_ptr()
        muon = torch.optim.Muon([flat, net.inner.weight], lr=0.02, weight_decay=0.1, momentum=0.8)
        flatten = lambda *_: setattr(flat, "grad", net.conv.weight.grad.permute(columns).flatten(1))  # noqa: E731
        muon.register_step_pre_hook(flatten)
        head = {"params": [net.head.weight], "weight_decay": 0.1}
        biases = {"params": [net.conv.bias, net.inner.bias, net.head.bias]}
        return [muon, torch.optim.SGD([head, biases], lr=0.04, momentum=0.7, nesterov=True)]

    expected = trained(torchs, layout)
    for name, tensor in trained(ours, layout).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


def muon_by_hand(weight, gradients, lr, wd, momentum, steps):
    """Muon as its post writes it, in float64: momentum, Nesterov, five Newton-Schulz steps, decoupled decay."""
    a, b, c = 3.4445, -4.7750, 2.0315
    buffer = torch.zeros_like(weight)
    for gradient in gradients:
        buffer = momentum * buffer + (1 - momentum) * gradient
        update = momentum * buffer + (1 - momentum) * gradient
        x = update.T if update.shape[0] > update.shape[1] else update
        x = x / x.norm()
        for _ in range(steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        x = x.T if update.shape[0] > update.shape[1] else x
        weight = weight * (1 - lr * wd) - lr * max(1, weight.shape[0] / weight.shape[1]) ** 0.5 * x
    return weight


def sgd_by_hand(weight, gradients, lr, wd, momentum):
    """SGD with Nesterov momentum (Sutskever et al., 2013) as torch writes it, decay in the gradient."""
    buffer = None
    for gradient in gradients:
        gradient = gradient + wd * weight
        buffer = gradient if buffer is None else momentum * buffer + gradient
        weight = weight - lr * (gradient + momentum * buffer)
    return weight


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 2, 3, 3)])
def test_a_step_of_muon_by_hand(shape):
    generator = torch.Generator().manual_seed(0)
    inner, head, gain = (nn.Parameter(torch.randn(size, generator=generator)) for size in (shape, (3, 5), (7,)))
    groups = [
        {"params": [inner], "layer_group": 0, "weight_decay": 0.3, "lr": 0.1, "initial_lr": 0.1},
        {"params": [gain], "layer_group": 0, "weight_decay": 0.0, "lr": 0.1, "initial_lr": 0.1},
        {"params": [head], "layer_group": 1, "weight_decay": 0.3, "lr": 0.1, "initial_lr": 0.1},
    ]
    optimizer = Muon(groups, momentum=0.8, sgd_momentum=0.6, sgd_factor=0.5, ns_steps=4)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.1, 0.05, 0.05]
    start = [parameter.detach().double() for parameter in (inner, head, gain)]
    gradients = [[torch.randn(p.shape, generator=generator) for p in (inner, head, gain)] for _ in range(3)]
    for step in gradients:
        for parameter, gradient in zip((inner, head, gain), step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    of = [[step[number].double() for step in gradients] for number in range(3)]
    matrix = muon_by_hand(start[0].flatten(1), [g.flatten(1) for g in of[0]], 0.1, 0.3, 0.8, 4)
    torch.testing.assert_close(
        inner.detach().double().flatten(1), matrix, rtol=0, atol=4e-3
    )  # its iteration is in bf16
    torch.testing.assert_close(
        head.detach().double(), sgd_by_hand(start[1], of[1], 0.05, 0.3, 0.6), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        gain.detach().double(), sgd_by_hand(start[2], of[2], 0.05, 0.0, 0.6), rtol=1e-5, atol=1e-6
    )


def test_muon_leaves_what_has_no_gradient_and_takes_a_closure():
    inner, head = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    groups = [{"params": [p], "layer_group": n, "lr": 0.1, "initial_lr": 0.1} for n, p in enumerate((inner, head))]
    optimizer = Muon(groups)
    assert optimizer.step() is None
    assert inner.eq(1).all()
    assert head.eq(1).all()
    assert not optimizer.state

    def closure():
        loss = (2 * inner).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 8.0
    assert inner.ne(1).all()
    assert head.eq(1).all()


@pytest.mark.parametrize(
    "wrong",
    [{"sgd_factor": 0}, {"momentum": 1}, {"momentum": -0.1}, {"sgd_momentum": 1}, {"sgd_momentum": -0.1}]
    + [{"ns_steps": 0}, {"ns_steps": 100}],
)
def test_muon_refuses_what_makes_no_sense(wrong):
    def groups():
        return [{"params": [nn.Parameter(torch.ones(2, 2))], "layer_group": 0, "lr": 0.1, "initial_lr": 0.1}]

    with pytest.raises(ValueError, match=f"{next(iter(wrong))} {next(iter(wrong.values()))}"):
        Muon(groups(), **wrong)
    Muon(groups(), sgd_factor=0.01, momentum=0, sgd_momentum=0, ns_steps=99)


def test_muon_does_not_depend_on_the_layout():
    first, second = (trained(ours, layout) for layout in (torch.contiguous_format, torch.channels_last))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=2e-2, atol=2e-3)  # its iteration is in bf16


def test_muon_goes_on_to_the_same_bytes(data, tmp_path):
    values = {"optimizer": "muon", "learning_rate": 0.02, "num_epochs": 4}
    whole, halves = experiment(tmp_path / "whole", **values), experiment(tmp_path / "halves", **values)
    assert call("train", "--data_dir", data, "--model_dir", whole)[0] == 0
    (halves / "stop.py").write_text(
        "import os, signal\n\n\nclass Stop:\n"
        "    def __init__(self, folder, params, step): self.first = step == 0\n"
        "    def step(self, event): pass\n    def close(self): pass\n"
        "    def epoch(self, event, history):\n"
        "        if event.epoch == 2 and self.first: os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    flags = ["--data_dir", data, "--model_dir", halves, '--observers=["stop.py:Stop"]']
    assert call("train", *flags)[0] == 143
    assert call("train", *flags)[0] == 0
    assert weights(whole) == weights(halves)


@pytest.mark.parametrize("wrong", ['{"ns_steps": 0}', '{"sgd_factor": -1}', '{"sgd_facto": 1}', '{"momentum": 1}'])
def test_wrong_arguments_of_muon_are_one_line(data, tmp_path, wrong):
    folder = experiment(tmp_path / "e", optimizer="muon")
    code, printed = call("train", "--data_dir", data, "--model_dir", folder, f"--optimizer_args={wrong}")
    assert code == 2, printed
    assert "optimizer_args" in printed, printed
    assert len(printed.splitlines()) == 1, printed


# --- test-time augmentation -----------------------------------------------------------------------------------


def test_views_are_mirrored_and_moved():
    images = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float()
    for name, views in TTA.items():
        assert sum(weight for weight, _ in views(images)) == 1, name
        assert all(view.shape == images.shape for _, view in views(images))
    mirrored = TTA["flip"](images)[1][1]
    assert torch.equal(mirrored[..., 0], images[..., -1])
    moved = {tuple(view[0, 0, 1:3, 1:4].flatten().tolist()): weight for weight, view in TTA["flip_translate"](images)}
    middle = images[0, 0]
    assert moved[tuple(middle[0:2, 0:3].flatten().tolist())] == 0.125
    assert moved[tuple(middle[2:4, 2:5].flatten().tolist())] == 0.125
    assert moved[tuple(middle[1:3, 1:4].flatten().tolist())] == 0.25
    assert len(moved) == 6


def test_views_by_hand():
    """One channel of 3x3 pixels. Moved by one pixel; what comes in is the row or column next to the border's."""
    image = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    down_right = torch.tensor([[5.0, 4, 5], [2, 1, 2], [5, 4, 5]])
    up_left = torch.tensor([[5.0, 6, 5], [8, 9, 8], [5, 6, 5]])
    expected = [(0.25, image), (0.25, image.flip(1)), (0.125, down_right), (0.125, down_right.flip(1))]
    expected += [(0.125, up_left), (0.125, up_left.flip(1))]
    for (weight, view), (wanted_weight, wanted) in zip(TTA["flip_translate"](image[None, None]), expected, strict=True):
        assert weight == wanted_weight
        assert torch.equal(view[0, 0], wanted)
    assert [weight for weight, _ in TTA["flip"](image[None, None])] == [0.5, 0.5]
    # The pixel in the corner as the logit: 1, 3, 5, 5, 5, 5 by these weights.
    logits = average_views(lambda images: images[:, :, 0, 0], image[None, None], "flip_translate")
    assert logits.tolist() == [[0.25 * 1 + 0.25 * 3 + 0.5 * 5]]
    with pytest.raises(UserError, match="tta: unknown name 'flop'; did you mean 'flip'"):
        average_views(lambda images: images, image[None, None], "flop")


def test_logits_are_averaged():
    images = torch.rand(2, 3, 4, 4)
    forward = lambda x: x[:, :, 0, 0].to(torch.bfloat16)  # noqa: E731
    expected = (forward(images).float() + forward(images.flip(3)).float()) / 2
    assert torch.equal(average_views(forward, images, "flip"), expected)
    assert average_views(forward, images, "none").dtype == torch.bfloat16


def test_training_evaluation_and_prediction_use_the_same_views(data, tmp_path):
    folder = experiment(tmp_path / "e", tta="flip_translate", precision="fp32", metrics=["accuracy"])
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    code, printed = call("evaluate", "--data_dir", data, "--model_dir", folder, "--split", "valid")
    assert code == 0
    assert "tta flip_translate" in printed
    seen = json.loads((folder / "metrics_val_best_weights.json").read_text())
    again = json.loads((folder / "metrics_valid_best.json").read_text())
    assert again["loss"] == pytest.approx(seen["loss"], rel=1e-5)
    assert again["accuracy"] == seen["accuracy"]
    assert call("evaluate", "--data_dir", data, "--model_dir", folder, "--split", "valid", "--tta=none")[0] == 0
    alone = json.loads((folder / "metrics_valid_best.json").read_text())
    assert abs(alone["loss"] - seen["loss"]) > 3e-5 * seen["loss"]

    assert call("evaluate", "--data_dir", data, "--model_dir", folder, "--split", "test")[0] == 0
    rows = list(csv.DictReader((folder / "evaluation/predictions.csv").read_text().splitlines()))
    code, printed = call("predict", "--model_dir", folder, data / "test", "--csv", tmp_path / "p.csv")
    ours = {row["path"]: float(row["prob_1"]) for row in csv.DictReader((tmp_path / "p.csv").read_text().splitlines())}
    for row in rows:
        value = next(p for path, p in ours.items() if path.endswith(row["path"]))
        assert value == pytest.approx(max(float(v) for k, v in row.items() if k.startswith("prob")), rel=1e-4)


# --- compile --------------------------------------------------------------------------------------------------


def test_compile_is_chosen_on_gpus_for_long_runs():
    params, long = Params(), precision.STEPS_WORTH_COMPILING
    assert not precision.choose(params, "cpu", 100 * long).compile
    assert precision.choose(Params(compile=1), "cpu", 1).compile
    assert not precision._is_compiled(params, "cuda:0", long - 1)
    assert precision._is_compiled(params, "cuda:0", long) == (precision.find_spec("triton") is not None)
    assert not precision._is_compiled(Params(compile=0), "cuda:0", long)


@pytest.mark.slow
def test_a_compiled_net_takes_a_short_batch_as_it_is(monkeypatch, tmp_path):
    """And it learns what the net learns: the same weights up to rounding. One program for each image size."""
    torch._dynamo.reset()
    results = []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        forward = precision.compile_net(net, SimpleNamespace(compile=is_compiled), 8)  # type: ignore[arg-type]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for rows, side in ((8, 10), (3, 10), (8, 12), (5, 12), (8, 10)):
            images = torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(rows + side))
            forward(images).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(net.state_dict())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-4, atol=1e-5)


# --- prepare --------------------------------------------------------------------------------------------------


def test_prepare_builds_the_cache_and_leaves_the_folder_alone(data, tmp_path):
    folder, cache = experiment(tmp_path / "e"), tmp_path / "cache"
    before = tree(folder)
    flags = ["--data_dir", data, "--model_dir", folder, "--cache_dir", cache]
    code, printed = call("train", *flags, "--prepare")
    assert code == 0, printed
    assert "train: 36 images" in printed, printed
    assert "prepared" in printed, printed
    assert tree(folder) == before
    assert len(list(cache.glob("*.npy"))) == 2
    code, printed = call("train", *flags, "--prepare", "--json")
    assert code == 0
    assert set(json.loads(printed)) == {"train", "valid"}
    assert tree(folder) == before
    built = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert call("train", *flags)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == built

    code, printed = call("train", *flags[:3], tmp_path / "new", "--base", folder, "--prepare", "--arch=lenett")
    assert code == 2
    assert "did you mean 'lenet'" in printed
    assert not (tmp_path / "new").exists()
