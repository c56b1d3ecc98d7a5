"""Metrics against scikit-learn, with hard and soft labels."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from model.metric import METRICS, PerImage, Set, make_metrics
from utils import UserError


@pytest.fixture(params=[(200, 10, 10), (150, 7, 4), (80, 2, 2)], ids=["10 classes", "absent classes", "binary"])
def case(request):
    """(N, K) logits, some of them equal, and (N,) labels in the first `present` classes only."""
    number, num_classes, present = request.param
    generator = torch.Generator().manual_seed(number)
    labels = torch.randint(present, (number,), generator=generator)
    logits = (2 * torch.randn(number, num_classes, generator=generator)).round()
    logits[torch.arange(number), labels] += 1.0
    logits[:9] = 0.0
    return logits, labels


def value(name: str, logits: torch.Tensor, labels: torch.Tensor) -> float:
    result = METRICS[name](logits, labels)
    return float(result.mean()) if METRICS[name].per_image else float(result)


def test_equal_to_scikit_learn(case):
    logits, labels = case
    called, true = logits.argmax(dim=1).numpy(), labels.numpy()
    probabilities = logits.double().softmax(dim=1).numpy()
    present, every = np.unique(true), np.arange(logits.shape[1])
    macro = {"labels": present, "average": "macro", "zero_division": 0}
    expected = {
        "loss": reference.log_loss(true, probabilities, labels=every),
        "accuracy": reference.accuracy_score(true, called),
        "error": 1 - reference.accuracy_score(true, called),
        "f1": reference.f1_score(true, called, **macro),
        "precision": reference.precision_score(true, called, **macro),
        "recall": reference.recall_score(true, called, **macro),
        "auc": np.mean([reference.roc_auc_score(true == k, logits.double().log_softmax(1)[:, k]) for k in present]),
    }
    expected["balanced_accuracy"] = expected["recall"]
    for name, wanted in expected.items():
        assert value(name, logits, labels) == pytest.approx(wanted, abs=1e-6), name


def test_top5_against_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(300, 12, generator=generator), torch.randint(12, (300,), generator=generator)
    wanted = reference.top_k_accuracy_score(labels.numpy(), logits.numpy(), k=5, labels=range(12))
    assert value("top5_accuracy", logits, labels) == pytest.approx(wanted)
    assert value("top5_accuracy", logits[:, :3], labels % 3) == 1.0


def test_ece_against_the_definition(case):
    logits, labels = case
    confidence, called = logits.double().softmax(dim=1).max(dim=1)
    wanted = 0.0
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if inside.any():
            gap = (called == labels)[inside].double().mean() - confidence[inside].mean()
            wanted += float(inside.double().mean() * gap.abs())
    assert value("ece", logits, labels) == pytest.approx(wanted, abs=1e-9)
    sure = torch.eye(4) * 100
    assert value("ece", sure, torch.arange(4)) == pytest.approx(0, abs=1e-9)
    assert value("ece", sure, (torch.arange(4) + 1) % 4) == pytest.approx(1)


@pytest.mark.parametrize("name", METRICS)
def test_one_hot_labels_are_labels(case, name):
    logits, labels = case
    soft = torch.nn.functional.one_hot(labels, logits.shape[1]).float()
    assert value(name, logits, soft) == pytest.approx(value(name, logits, labels), abs=1e-6)


def test_soft_labels():
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    soft = torch.tensor([[0.25, 0.75, 0.0]])
    assert METRICS["accuracy"](logits, soft).tolist() == [0.0]
    wanted = -(soft * logits.log_softmax(dim=1)).sum(dim=1)
    assert METRICS["loss"](logits, soft).allclose(wanted)


@pytest.mark.parametrize("name", METRICS)
def test_half_precision_logits_are_read_as_float32(case, name):
    logits, labels = case
    assert value(name, logits.bfloat16(), labels) == value(name, logits.bfloat16().float(), labels)


def test_auc_of_ties_and_of_one_class():
    assert value("auc", torch.zeros(6, 2), torch.tensor([0, 1, 0, 1, 1, 1])) == 0.5
    assert math.isnan(value("auc", torch.randn(3, 2), torch.zeros(3, dtype=torch.long)))
    saturated = torch.tensor([[0.0, 30.0], [0.0, 25.0], [0.0, 20.0]])  # equal as float32 probabilities
    assert value("auc", saturated, torch.tensor([1, 1, 0])) == 1.0


def test_values_of_each_image_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0], [1.0, 0.0, 5.0]])
    labels = torch.tensor([0, 2, 2])
    expected = [
        math.log(sum(map(math.exp, row))) - row[label]
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert METRICS["loss"](logits, labels).tolist() == pytest.approx(expected, rel=1e-5)
    assert METRICS["accuracy"](logits, labels).tolist() == [1.0, 0.0, 1.0]
    assert METRICS["error"](logits, labels).tolist() == [0.0, 1.0, 0.0]
    ranked = torch.arange(7.0, 0.0, -1.0).expand(7, 7)  # class 0 has the largest logit, then class 1, ...
    assert METRICS["top5_accuracy"](ranked, torch.arange(7)).tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_values_of_a_split_by_hand():
    """Three of class 0, one of class 1, one of class 2; predicted: 0 0 1, 1, 0. Class 3 does not occur."""
    labels, predicted = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 0, 1, 1, 0])
    logits = torch.nn.functional.one_hot(predicted, 4).float()
    assert value("recall", logits, labels) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert value("balanced_accuracy", logits, labels) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert value("precision", logits, labels) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert value("f1", logits, labels) == pytest.approx((2 * 2 / 6 + 2 * 1 / 3 + 0) / 3)
    # Scores of class 1 against the rest: the positive before one negative of two, equal to the other.
    scores = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 2.0]])
    assert value("auc", scores, torch.tensor([0, 1, 0])) == pytest.approx(0.75)


def test_ece_by_hand():
    """Confidences 0.55 (right, wrong), 0.9 (right): bins (8/15, 9/15] and (13/15, 14/15]."""

    def logit(p: float) -> list[float]:
        return [math.log(p / (1 - p)), 0.0]

    logits = torch.tensor([logit(0.55), logit(0.55), logit(0.9)])
    assert value("ece", logits, torch.tensor([0, 1, 0])) == pytest.approx(
        (2 * abs(0.5 - 0.55) + abs(1 - 0.9)) / 3, abs=1e-6
    )
    even = torch.zeros(4, 2)  # 0.5 exactly: below 8/15, in (7/15, 8/15]
    assert value("ece", even, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.25)
    thirds = torch.zeros(3, 3)  # 1/3 = 5/15 is the upper bound of a bin, and belongs to it
    assert value("ece", thirds, torch.tensor([0, 0, 1])) == pytest.approx(2 / 3 - 1 / 3)


def test_ece_keeps_the_lowest_bins_apart():
    """Of 30 classes: confidence 1/30, in the first bin, right; and 0.1, in the second, wrong."""
    logits = torch.zeros(2, 30)
    logits[1, 3] = math.log(29 * 0.1 / 0.9)
    assert value("ece", logits, torch.tensor([0, 0])) == pytest.approx((29 / 30 + 0.1) / 2, abs=1e-6)


def test_the_class_of_each_metric():
    """A mean over images, or one number for the whole split."""
    per_image = {"loss", "accuracy", "error", "top5_accuracy"}
    assert {name for name, metric in METRICS.items() if isinstance(metric, PerImage)} == per_image
    assert all(metric.per_image is (name in per_image) for name, metric in METRICS.items())
    with pytest.raises(UserError, match=r"pair gave shape \(2,\); Set\(function\) gives one number"):
        Set(pair)(torch.zeros(3, 2), torch.zeros(3))
    assert Set(pair, minimize=True).minimize
    assert not Set(pair).minimize
    assert not PerImage(pair).minimize
    assert Set(lambda logits, labels: torch.ones(1, 1))(torch.zeros(3, 2), torch.zeros(3)) == 1
    with pytest.raises(UserError, match="pair gave shape .2,. for 3 images; one value per image"):
        PerImage(pair)(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(UserError, match="gave float for 3 images"):
        PerImage(lambda logits, labels: 1.0)(torch.zeros(3, 2), torch.zeros(3))
    assert PerImage(lambda logits, labels: labels > 0)(torch.zeros(2, 2), torch.tensor([0, 1])).dtype == torch.float32


def pair(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.zeros(2)


def test_directions_and_order():
    assert [name for name, metric in METRICS.items() if metric.minimize] == ["loss", "error", "ece"]
    assert list(make_metrics(["f1", "accuracy", "loss", "f1"])) == ["loss", "f1", "accuracy"]


def test_metrics_of_a_file(tmp_path):
    (tmp_path / "metric.py").write_text(
        "from model.metric import PerImage, Set\n"
        "def margin(logits, labels):\n    return logits.amax(dim=1) - logits.amin(dim=1)\n"
        "gap = PerImage(margin, minimize=True)\n"
        "def mean(logits, labels):\n    return logits.mean()\n"
        "whole = Set(mean)\n"
        "text = 'text'\n"
    )
    names = ["metric.py:margin", "metric.py:gap", "metric.py:whole", "metric.py:mean"]
    made = make_metrics(names, tmp_path)
    assert list(made) == ["loss", "margin", "gap", "whole", "mean"]
    assert isinstance(made["margin"], PerImage)
    assert made["gap"].minimize
    assert isinstance(made["whole"], Set)
    logits, labels = torch.tensor([[3.0, 1.0], [0.0, 0.0]]), torch.tensor([0, 1])
    assert made["margin"](logits, labels).tolist() == [2.0, 0.0]
    assert float(made["whole"](logits, labels)) == 1.0
    with pytest.raises(UserError, match="mean gave shape .* one value per image"):
        made["mean"](logits, labels)
    (tmp_path / "net.py").write_text("def accuracy(logits, labels):\n    return logits[:, 0]\n")
    with pytest.raises(UserError, match="two metrics are called 'accuracy'"):
        make_metrics(["accuracy", "net.py:accuracy"], tmp_path)
    with pytest.raises(UserError, match="no function"):
        make_metrics(["metric.py:text"], tmp_path)
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        make_metrics(["acuracy"])
