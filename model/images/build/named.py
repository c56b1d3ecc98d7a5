"""Datasets with a name as sources: scikit-learn's digits, and what torchvision downloads."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from model.images.build.items import Item, pick_split
from utils import UserError

TORCHVISION = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "svhn": "SVHN",
    "stl10": "STL10",
    "flowers102": "Flowers102",
    "oxford_pets": "OxfordIIITPet",
    "food101": "Food101",
    "eurosat": "EuroSAT",
    "gtsrb": "GTSRB",
    "dtd": "DTD",
    "fgvc_aircraft": "FGVCAircraft",
}


def make_digits(size: int) -> Iterator[Item]:
    """The 1,797 digits of scikit-learn (8 x 8 px, enlarged): 70 % train, 15 % valid, 15 % test of each class."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.utils import Bunch

    data = load_digits()
    assert isinstance(data, Bunch)
    num_seen: Counter[int] = Counter()
    totals = Counter(data.target.tolist())
    for number in np.random.Generator(np.random.Philox(key=0)).permutation(len(data.target)):
        label = int(data.target[number])
        split = pick_split(num_seen[label] / totals[label])
        num_seen[label] += 1
        pixels = (data.images[number] * 255 / 16).round().astype(np.uint8)
        image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
        yield Item(split, str(label), f"{number:04d}.png", image)


def read_torchvision(name: str, work: Path) -> Iterator[Item]:
    """A dataset that torchvision downloads and verifies. UserError when it cannot be downloaded."""
    from torchvision import datasets

    cls = getattr(datasets, TORCHVISION[name])
    for split, arguments in _torchvision_splits(name).items():
        try:
            data = cls(str(work / "download"), download=True, **arguments)
        except Exception as error:
            reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise UserError(f"--source {name}: cannot be downloaded ({reason}); give an archive or a folder") from None
        class_names = getattr(data, "classes", None)
        for number, (image, label) in enumerate(data):
            title = re.sub(r"[/\\]", "-", str(class_names[label])) if class_names else str(label)
            yield Item(split, title, f"{number:06d}.png", image)


def _torchvision_splits(name: str) -> dict[str, dict[str, bool | str]]:
    """split -> the arguments by which the dataset's class calls it."""
    if name == "eurosat":
        return {"train": {}}
    if name in ("cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist"):
        return {"train": {"train": True}, "test": {"train": False}}
    return {"train": {"split": "trainval" if name == "oxford_pets" else "train"}, "test": {"split": "test"}}
