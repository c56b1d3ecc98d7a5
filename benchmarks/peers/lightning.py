"""Lightning: a LightningModule and a Trainer with nothing but the number of epochs said."""

import lightning as L
import torch
from torch.nn import functional as F

from .common import SGD, Stamps, arguments, make_net
from .folders import make_loaders


class Classifier(L.LightningModule):
    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        logits = self(images)
        self.log("val_loss", F.cross_entropy(logits, labels), prog_bar=True)
        self.log("val_acc", (logits.argmax(dim=1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), **SGD)


class StampEpochs(L.Callback):
    def __init__(self, stamps: Stamps):
        self.stamps = stamps

    def on_train_epoch_end(self, trainer, module):  # comes after the validation
        metrics = trainer.callback_metrics
        self.stamps.epoch(train_loss=metrics["train_loss"], val_accuracy=metrics["val_acc"])


def main() -> None:
    args = arguments(__doc__)
    stamps = Stamps(args.stamps)
    train_loader, valid_loader, num_classes = make_loaders(args.data_dir)
    net = make_net(args.net, num_classes)
    stamps.net(net)
    trainer = L.Trainer(max_epochs=args.num_epochs, callbacks=[StampEpochs(stamps)])
    trainer.fit(Classifier(net), train_loader, valid_loader)


if __name__ == "__main__":
    main()
