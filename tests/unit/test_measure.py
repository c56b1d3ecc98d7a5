"""Sums, means and metrics over a split, against numpy and scikit-learn."""

import contextlib

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, log_loss, precision_recall_fscore_support
from torch.nn.functional import cross_entropy

from engine.measure import (
    add_sums,
    compute_outputs,
    has_split_metric,
    measure_images,
    measure_split,
    read_means,
    sum_per_image,
)
from engine.use.evaluation import LargestLosses, mean_scores, measure, score_classes
from model.metric import PerImage, Set, make_metrics


def own_sum(values):
    return values


def test_means_over_batches_with_padding_are_numpys():
    rng = np.random.default_rng(0)
    losses = rng.normal(3, 1, 23).astype(np.float32)
    right = rng.integers(0, 2, 23).astype(np.float32)
    weights = rng.integers(0, 2, 23).astype(np.float32)
    sums: dict[str, torch.Tensor] = {}
    for part in np.array_split(np.arange(23), 4):
        values = {"loss": torch.from_numpy(losses[part]), "accuracy": torch.from_numpy(right[part])}
        add_sums(sums, sum_per_image(values, torch.from_numpy(weights[part])))
    assert sums["count"].item() == weights.sum()
    assert all(total.dtype == torch.float64 for total in sums.values())
    assert sums["loss"].item() == pytest.approx((losses.astype(float) * weights).sum(), rel=1e-12)
    means = read_means(sums, own_sum)
    assert list(means) == ["loss", "accuracy"]
    assert means["loss"] == pytest.approx(np.average(losses.astype(float), weights=weights), rel=1e-12)
    assert means["accuracy"] == right[weights > 0].mean()


def test_means_are_over_the_images_of_all_ranks():
    sums = {"loss": torch.tensor(6.0), "count": torch.tensor(4.0)}
    others = torch.tensor([9.0, 2.0])  # the other ranks' loss and count
    assert read_means(sums, lambda own: own + others) == {"loss": 15 / 6}


def test_adding_sums_leaves_what_was_added_as_it_was():
    total: dict[str, torch.Tensor] = {}
    first = {"loss": torch.tensor(1.0)}
    add_sums(total, first)
    add_sums(total, {"loss": torch.tensor(2.0), "count": torch.tensor(5.0)})
    assert (total["loss"], total["count"], first["loss"]) == (3.0, 5.0, 1.0)


LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [1.0, 0.0, 0.5], [0.0, 0.1, 0.0], [0.0, 0.0, 4.0]])
LABELS = torch.tensor([0, 1, 2, 0, 2])


def test_metrics_of_a_split_are_scikit_learns(tmp_path):
    metrics = make_metrics(["f1", "accuracy", "error"], tmp_path)
    assert has_split_metric(metrics)
    assert not has_split_metric(make_metrics(["accuracy"], tmp_path))
    values = measure(metrics, LOGITS.double(), LABELS)
    assert list(values) == ["loss", "f1", "accuracy", "error"]
    assert values["loss"] == pytest.approx(log_loss(LABELS, LOGITS.double().softmax(dim=1)), rel=1e-6)
    assert values["f1"] == pytest.approx(f1_score(LABELS, LOGITS.argmax(dim=1), average="macro"))
    assert (values["accuracy"], values["error"]) == (0.6, pytest.approx(0.4))
    of_images = measure_images(metrics, LOGITS, LABELS)
    assert list(of_images) == ["loss", "accuracy", "error"]
    assert of_images["accuracy"].tolist() == [1, 1, 0, 0, 1]
    assert list(measure_split(metrics, LOGITS, LABELS)) == ["f1"]


def test_a_metric_that_is_not_defined_is_none():
    metrics = {
        "nan": Set(lambda logits, labels: float("nan")),
        "infinite": PerImage(lambda logits, labels: torch.full((len(labels),), float("inf"))),
        "one": Set(lambda logits, labels: 1),
    }
    assert measure(metrics, LOGITS, LABELS) == {"nan": None, "infinite": None, "one": 1.0}


class TwoBatches:
    """The batches that follow `start_step`, of one image each."""

    def batches(self, epoch, start_step=0):
        for step in range(start_step, 2):
            yield torch.full((1, 3, 2, 2), float(step)), torch.tensor([step]), torch.tensor([step]), torch.ones(1)


def test_outputs_begin_at_the_batch_asked_for_and_keep_no_graph():
    weight = torch.ones(1, requires_grad=True)
    entered = []

    @contextlib.contextmanager
    def autocast():
        entered.append(torch.is_grad_enabled())
        yield

    outputs = list(compute_outputs(lambda images: images.mean((2, 3)) * weight, TwoBatches(), 1, autocast))
    assert len(outputs) == 1
    assert outputs[0].logits.tolist() == [[1, 1, 1]]
    assert outputs[0].labels.tolist() == [1]
    assert not outputs[0].logits.requires_grad
    assert entered == [False]
    assert torch.is_grad_enabled()
    assert len(list(compute_outputs(lambda images: images, TwoBatches()))) == 2


def test_the_largest_losses_are_kept_with_the_earlier_of_equal_ones_first():
    class Pinned:
        pinned = {"mean": [0.0] * 3, "std": [1.0] * 3}

    largest = LargestLosses(3, Pinned())
    images = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 3, 2, 2)
    for part, losses in (([4, 1, 0], [0.5, 2.0, 0.1]), ([3, 5, 2], [0.5, 9.0, 0.5])):
        largest.add(torch.tensor(losses), torch.tensor(part), images[part])
    assert [(loss, position) for loss, position, _ in largest.entries] == [(9.0, 5), (2.0, 1), (0.5, 2)]
    assert [int(pixels[0, 0, 0]) for _, _, pixels in largest.entries] == [255, 51, 102]


def test_labels_may_be_soft():
    soft = torch.nn.functional.one_hot(LABELS, 3).float()
    values = measure_images({"loss": PerImage(lambda lo, la: cross_entropy(lo, la, reduction="none"))}, LOGITS, soft)
    assert torch.allclose(values["loss"], cross_entropy(LOGITS, LABELS, reduction="none"))


@pytest.mark.parametrize("present", [[0, 1, 2, 3], [1, 3], [2]])
def test_means_over_the_classes_that_have_images_are_scikit_learns(present):
    rng = np.random.default_rng(1)
    labels, predicted = rng.choice(present, 60), rng.integers(0, 4, 60)
    mean = mean_scores(score_classes(torch.from_numpy(labels), torch.from_numpy(predicted), list("abcd"))[1])
    expected = precision_recall_fscore_support(labels, predicted, labels=present, average="macro", zero_division=0)
    assert (mean.precision, mean.recall, mean.f1) == pytest.approx(expected[:3])
    assert mean.images == 60
