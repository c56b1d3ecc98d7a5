"""fastai: ImageDataLoaders.from_folder and a Learner. The augmentation is done per image, as its own is not needed."""

from functools import partial

import torch
from fastai.vision.all import (
    Callback,
    CropPad,
    FlipItem,
    ImageDataLoaders,
    Learner,
    Normalize,
    OptimWrapper,
    PadMode,
    RandomCrop,
    accuracy,
)

from .common import BATCH, MEAN, SGD, STD, VALID_BATCH, Stamps, arguments, make_net


class StampEpochs(Callback):
    order = 70  # after the recorder and the progress bar

    def __init__(self, stamps: Stamps):
        self.stamps = stamps

    def after_epoch(self):
        train_loss, _, val_accuracy = self.learn.recorder.values[-1]
        self.stamps.epoch(train_loss=train_loss, val_accuracy=val_accuracy)


def main() -> None:
    args = arguments(__doc__)
    stamps = Stamps(args.stamps)
    # On validation images the random crop is a centre crop, which takes the padding off again.
    crop = [CropPad(40, pad_mode=PadMode.Zeros), RandomCrop(32), FlipItem()]
    dls = ImageDataLoaders.from_folder(
        args.data_dir,
        item_tfms=crop,
        batch_tfms=[Normalize.from_stats(MEAN, STD)],
        bs=BATCH,
        val_bs=VALID_BATCH,
    )
    net = make_net(args.net, dls.c)
    stamps.net(net)
    sgd = partial(OptimWrapper, opt=torch.optim.SGD, momentum=SGD["momentum"], nesterov=SGD["nesterov"])
    learn = Learner(dls, net, opt_func=sgd, metrics=accuracy, cbs=StampEpochs(stamps))
    learn.fit(args.num_epochs, lr=SGD["lr"], wd=SGD["weight_decay"])


if __name__ == "__main__":
    main()
