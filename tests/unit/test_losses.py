"""The training losses, against torch's cross-entropy, scikit-learn's class weights and values by hand."""

import numpy as np
import pytest
import torch
from loaders import make_params
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy, one_hot

import train

WEIGHT = torch.tensor([0.5, 1.0, 2.0, 4.0])


def draw(num: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logits (B, 4), labels (B,), soft labels (B, 4))."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 2, (num, 4))).float()
    return logits, torch.from_numpy(rng.integers(0, 4, num)), torch.from_numpy(rng.dirichlet(np.ones(4), num)).float()


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_focal_with_gamma_0_is_cross_entropy(weight):
    logits, labels, soft = draw()
    for given in (labels, soft):
        expected = cross_entropy(logits, given, weight=weight, reduction="none")
        torch.testing.assert_close(train.focal(logits, given, weight, gamma=0.0), expected)


def test_focal_by_hand():
    """Of p = 0.8 and 0.2: (1 - p)^2 * -log(p); a mixed label takes its share of each class's term."""
    logits = torch.tensor([[0.8, 0.2]]).log()
    sure, unsure = 0.2**2 * -np.log(0.8), 0.8**2 * -np.log(0.2)
    assert float(train.focal(logits, torch.tensor([0]))) == pytest.approx(sure)
    assert float(train.focal(logits, torch.tensor([1]))) == pytest.approx(unsure)
    assert float(train.focal(logits, torch.tensor([[0.3, 0.7]]))) == pytest.approx(0.3 * sure + 0.7 * unsure)
    weight = torch.tensor([3.0, 5.0])
    assert float(train.focal(logits, torch.tensor([1]), weight)) == pytest.approx(5 * unsure)


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_a_label_of_one_class_alone_is_that_class(name):
    logits, labels, _ = draw()
    loss = train.make_loss(make_params(loss=name), [1, 1, 1, 1], "cpu")
    torch.testing.assert_close(loss(logits, one_hot(labels, 4).float()), loss(logits, labels))


def test_losses_take_class_weights_and_smoothing():
    logits, labels, _ = draw()
    counts = [40, 10, 25, 5]
    balanced = compute_class_weight("balanced", classes=np.arange(4), y=np.repeat(np.arange(4), counts))
    weight = torch.from_numpy(balanced).float()
    smoothed = train.make_loss(make_params(class_weights="balanced", label_smoothing=0.2), counts, "cpu")
    expected = cross_entropy(logits, labels, weight=weight, label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(smoothed(logits, labels), expected)
    focal = train.make_loss(make_params(loss="focal", class_weights=[0.5, 1, 2, 4]), counts, "cpu")
    torch.testing.assert_close(focal(logits, labels), train.focal(logits, labels, WEIGHT))
