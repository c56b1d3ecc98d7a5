"""A plain loop, as PyTorch's "Training a classifier" tutorial has it: ImageFolder, worker processes, fp32."""

import torch
from torch import nn, optim

from .common import SGD, Stamps, arguments, make_net
from .folders import make_loaders


def main() -> None:
    args = arguments(__doc__)
    stamps = Stamps(args.stamps)
    train_loader, valid_loader, num_classes = make_loaders(args.data_dir)
    net = make_net(args.net, num_classes)
    stamps.net(net)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), **SGD)
    for epoch in range(args.num_epochs):
        net.train()
        running_loss = 0.0
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        correct = total = 0
        net.eval()
        with torch.no_grad():
            for images, labels in valid_loader:
                predicted = net(images).argmax(dim=1)
                total += labels.size(0)
                correct += (predicted == labels).sum().item()
        train_loss = running_loss / len(train_loader)
        print(f"epoch {epoch + 1}: loss {train_loss:.3f}, accuracy {correct / total:.3f}")
        stamps.epoch(train_loss=train_loss, val_accuracy=correct / total)
    torch.save(net.state_dict(), "net.pth")


if __name__ == "__main__":
    main()
