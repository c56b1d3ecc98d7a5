"""Poutyne: a Model around the net, and fit_generator, as its documentation begins."""

import torch
from poutyne import Callback, Model

from .common import SGD, Stamps, arguments, make_net
from .folders import make_loaders


class StampEpochs(Callback):
    def __init__(self, stamps: Stamps):
        super().__init__()
        self.stamps = stamps

    def on_epoch_end(self, epoch_number, logs):
        self.stamps.epoch(train_loss=logs["loss"], val_accuracy=logs["val_acc"] / 100)


def main() -> None:
    args = arguments(__doc__)
    stamps = Stamps(args.stamps)
    train_loader, valid_loader, num_classes = make_loaders(args.data_dir)
    net = make_net(args.net, num_classes)
    stamps.net(net)
    model = Model(net, torch.optim.SGD(net.parameters(), **SGD), "cross_entropy", batch_metrics=["accuracy"])
    model.fit_generator(train_loader, valid_loader, epochs=args.num_epochs, callbacks=[StampEpochs(stamps)])


if __name__ == "__main__":
    main()
