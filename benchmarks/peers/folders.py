"""ImageFolder, transforms and DataLoader, as torchvision's and PyTorch's tutorials have them."""

from pathlib import Path

from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from .common import BATCH, MEAN, STD, VALID_BATCH, num_workers


def make_loaders(data_dir: Path) -> tuple[DataLoader, DataLoader, int]:
    """(training batches, validation batches, number of classes)."""
    to_tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    train = datasets.ImageFolder(str(data_dir / "train"), transforms.Compose([*augment, *to_tensor]))
    valid = datasets.ImageFolder(str(data_dir / "valid"), transforms.Compose(to_tensor))
    workers = num_workers()
    train_loader = DataLoader(train, BATCH, shuffle=True, num_workers=workers)
    return train_loader, DataLoader(valid, VALID_BATCH, num_workers=workers), len(train.classes)
