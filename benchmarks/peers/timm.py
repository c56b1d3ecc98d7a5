"""timm: create_model, create_loader and the loop of its train.py, which its wheel does not contain.

Left as train.py has them: fast collate with normalisation behind it, persistent workers, `loss.item()` in every step,
averages, a line of log every 50 steps, a checkpoint and a line of summary.csv per epoch. Its random resized crop
is replaced by the crop that all peers here make.
"""

import logging
import time
from collections import OrderedDict

import torch
from timm import utils
from timm.data import create_dataset, create_loader
from timm.data.transforms import ToNumpy
from timm.models import create_model, register_model
from timm.optim import create_optimizer_v2
from torch import nn
from torchvision import transforms

from .common import BATCH, MEAN, SGD, STD, VALID_BATCH, Stamps, arguments, make_net, num_workers

LOG_INTERVAL = 50
log = logging.getLogger("train")


@register_model
def peer_simple_cnn(pretrained=False, num_classes=10, **kwargs):
    return make_net("simple_cnn", num_classes)


@register_model
def peer_resnet18(pretrained=False, num_classes=10, **kwargs):
    return make_net("resnet18", num_classes)


def make_loader(data_dir, split, device):
    is_training = split == "train"
    dataset = create_dataset("", root=data_dir, split=split, is_training=is_training)
    loader = create_loader(
        dataset,
        input_size=(3, 32, 32),
        batch_size=BATCH if is_training else VALID_BATCH,
        is_training=is_training,
        mean=MEAN,
        std=STD,
        crop_pct=1.0,
        num_workers=num_workers(),
        device=device,
    )
    if is_training:
        augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), ToNumpy()]
        dataset.transform = transforms.Compose(augment)
    return loader


def train_one_epoch(epoch, net, loader, optimizer, loss_fn):
    update_time, data_time, losses = utils.AverageMeter(), utils.AverageMeter(), utils.AverageMeter()
    net.train()
    end = time.time()
    optimizer.zero_grad()
    for index, (images, labels) in enumerate(loader):
        data_time.update(time.time() - end)
        loss = loss_fn(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.update(loss.item(), images.size(0))
        optimizer.zero_grad()
        update_time.update(time.time() - end)
        if index % LOG_INTERVAL == 0 or index == len(loader) - 1:
            log.info(
                f"Train: {epoch} [{index:>4d}/{len(loader)}]  Loss: {losses.val:#.3g} ({losses.avg:#.3g})  "
                f"Time: {update_time.val:.3f}s ({update_time.avg:.3f}s)  Data: {data_time.val:.3f}"
            )
        end = time.time()
    return OrderedDict([("loss", losses.avg)])


def validate(net, loader, loss_fn):
    losses, top1, top5 = utils.AverageMeter(), utils.AverageMeter(), utils.AverageMeter()
    net.eval()
    with torch.inference_mode():
        for images, labels in loader:
            output = net(images)
            loss = loss_fn(output, labels)
            acc1, acc5 = utils.accuracy(output, labels, topk=(1, 5))
            losses.update(loss.item(), images.size(0))
            top1.update(acc1.item(), output.size(0))
            top5.update(acc5.item(), output.size(0))
    log.info(f"Test: Loss: {losses.avg:.3f}  Acc@1: {top1.avg:.3f}  Acc@5: {top5.avg:.3f}")
    return OrderedDict([("loss", losses.avg), ("top1", top1.avg), ("top5", top5.avg)])


def main() -> None:
    args = arguments(__doc__)
    stamps = Stamps(args.stamps)
    utils.setup_default_logging()
    device = torch.device("cpu")
    loader_train = make_loader(args.data_dir, "train", device)
    loader_eval = make_loader(args.data_dir, "valid", device)
    num_classes = len(loader_train.dataset.reader.class_to_idx)
    net = create_model(f"peer_{args.net}", num_classes=num_classes).to(device)
    stamps.net(net)
    given = {"lr": SGD["lr"], "weight_decay": SGD["weight_decay"], "momentum": SGD["momentum"]}
    optimizer = create_optimizer_v2(net, opt="sgd", **given)  # timm's sgd is Nesterov's
    loss_fn = nn.CrossEntropyLoss()
    saver = utils.CheckpointSaver(net, optimizer, checkpoint_dir=".", recovery_dir=".", max_history=10)
    for epoch in range(args.num_epochs):
        train_metrics = train_one_epoch(epoch, net, loader_train, optimizer, loss_fn)
        eval_metrics = validate(net, loader_eval, loss_fn)
        utils.update_summary(epoch, train_metrics, eval_metrics, filename="summary.csv", write_header=epoch == 0)
        saver.save_checkpoint(epoch, metric=eval_metrics["top1"])
        stamps.epoch(train_loss=train_metrics["loss"], val_accuracy=eval_metrics["top1"] / 100)


if __name__ == "__main__":
    main()
