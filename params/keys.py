"""Every key of params.json: its type, default, meaning and limits, and which keys go together.

To add a key, add it to Keys, then run `python docs/generate.py`. Synonyms, for suggestions in error messages,
are in names.py.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from params.jsonc import shorten
from params.sections import (
    Count,
    EarlyStoppingKeys,
    Fold,
    FreezeKeys,
    FreezeSteps,
    MeanAndStd,
    Numbers,
    Pair,
    Positive,
    ProgressiveKeys,
    SearchKeys,
    Share,
    Strict,
    Switch,
    Text,
    Transforms,
)
from utils import reference_name

# --- keys -------------------------------------------------------------------------------------------


def key(group: str, default: Any, description: str, *, alias: str = "", names: str = "", **limits: Any) -> Any:
    """One key: its group in the documentation, default, meaning, readable alias, known names, limits."""
    extra: dict[str, Any] = {"group": group} | ({"alias": alias} if alias else {})
    return Field(default, description=description, examples=names.split() or None, json_schema_extra=extra, **limits)


NET = "net"
DATA = "data"
OPT = "optimisation"
SCHEDULE = "schedule"
DEVICE = "device"
WATCH = "watching"
SEARCH = "search"


class Keys(Strict):
    """Everything a run depends on."""

    arch: Text = key(
        NET,
        "simple_cnn",
        "The net: simple_cnn, lenet, resnet9, sign_net, a torchvision net, timm/NAME, FILE.py:NAME.",
        names="simple_cnn lenet resnet9 sign_net resnet18 resnet34 resnet50 efficientnet_b0 mobilenet_v3_small "
        "vit_b_16",
    )
    arch_args: dict[str, Any] = key(NET, {}, "Keyword arguments of the net's constructor.")
    pretrain: Switch | Text = key(
        NET,
        0,
        "Pretrained weights. 0: none. 1: the published ones. Or their tag (IMAGENET1K_V2, a1_in1k), a .safetensors or "
        ".pth file, or an experiment folder. They must fit the net; the head alone may be for other classes.",
        alias="pretrained",
    )
    pretrain_partial: Switch = key(
        NET, 0, "1: take what fits of weights that are not of this net, and leave the rest of the net random."
    )
    n_clas: int | None = key(NET, None, "Number of classes; null: inferred from the data.", alias="num_classes", ge=1)
    ps: float = key(NET, 0.0, "Dropout before the last linear layer.", alias="head_dropout", ge=0, lt=1)
    tta: Literal["none", "flip", "flip_translate"] = key(
        NET, "none", "Test-time augmentation: views of an image whose logits are averaged at evaluation."
    )
    freeze: FreezeKeys | FreezeSteps | None = key(
        NET,
        None,
        "Layer groups that are frozen at first; null: none. Steps: [[2, 1], [1, 3]] is two groups until epoch 1, "
        "then one until 3.",
    )
    ema: float = key(
        NET, 0.0, "Decay per step of the exponential moving average of the weights; 0: no average.", ge=0, lt=1
    )

    data_dir: Text | None = key(DATA, None, "Dataset folder; null: given by --data_dir.")
    dataset: Text = key(DATA, "image_folder", "Kind of dataset: image_folder, FILE.py:NAME.", names="image_folder")
    im_sz: int | None = key(
        DATA,
        None,
        "Side of the net's input in pixels; null: the size of the training images up to 64, else 224.",
        alias="image_size",
        ge=8,
        le=4096,
    )
    resize: Literal["crop", "squash", "letterbox"] = key(
        DATA, "crop", "How an image becomes square. crop: cut. squash: stretch. letterbox: pad."
    )
    normalize: Literal["auto", "imagenet", "dataset"] | MeanAndStd = key(
        DATA,
        "auto",
        "Mean and standard deviation per channel. auto: those of published weights, ImageNet's with weights from a "
        "file, else the training set's.",
    )
    batch_size: int = key(DATA, 128, "Number of images per optimizer step, over all processes.", ge=1)
    bs_test: int = key(DATA, 256, "Number of images per evaluation batch.", alias="eval_batch_size", ge=1)
    num_workers: int | None = key(
        DATA, None, "Number of processes that read images; null: chosen for the machine and the data.", ge=0, le=256
    )
    augment: Text | Transforms = key(
        DATA,
        "flip_crop",
        "none, crop, flip_crop, strong, or a list of albumentations transforms: names, or objects with name and "
        "arguments.",
        names="none crop flip_crop strong",
    )
    alternate_flip: Switch = key(
        DATA,
        0,
        "1: each image is flipped in every second epoch; chance decides which one is first (arXiv:2404.00498).",
    )
    progressive: ProgressiveKeys | None = key(
        DATA, None, "Smaller training images at first; null: full size from the start."
    )
    mixup: float = key(DATA, 0.0, "Alpha of mixup's Beta distribution; 0: no mixup.", ge=0)
    cutmix: float = key(DATA, 0.0, "Alpha of CutMix's Beta distribution; 0: no CutMix.", ge=0)
    sampler: Literal["shuffle", "balanced"] = key(
        DATA, "shuffle", "Order of the training images. balanced: every class is drawn equally often."
    )
    valid_fraction: float = key(
        DATA, 0.1, "Fraction of train used for validation when the dataset has no valid folder.", gt=0, lt=1
    )
    fold: Fold | None = key(
        DATA,
        None,
        "[i, k]: train and valid together are split into k parts, and part i validates; null: the dataset's own split.",
    )
    cache: Literal["auto", "off", "disk", "ram", "device", "jpeg"] = key(
        DATA,
        "auto",
        "Where decoded images are kept. jpeg: training images on disk as JPEGs, which are small but lossy.",
    )
    limit_train: Count | Share | None = key(
        DATA, None, "How many training images to use: a number (100) or a fraction (0.1, 1.0); null: all."
    )
    on_bad_image: Literal["error", "skip"] = key(DATA, "error", "What to do about an image that cannot be read.")

    test: Literal["counted", "sealed"] = key(
        DATA, "counted", "Looks at the test split. counted: each is recorded. sealed: one, for one set of weights."
    )

    loss: Text = key(OPT, "cross_entropy", "cross_entropy, focal, FILE.py:NAME.", names="cross_entropy focal")
    label_smoothing: float = key(
        OPT, 0.0, "Fraction of the target probability that is spread evenly over all classes.", ge=0, lt=1
    )
    class_weights: Literal["balanced"] | Numbers | None = key(
        OPT, None, "Weight of each class in the loss. balanced: inverse to its frequency. null: all the same."
    )
    optimizer: Text = key(
        OPT,
        "sgd",
        "sgd (Nesterov), adam, adamw, rmsprop, muon, FILE.py:NAME.",
        names="sgd adam adamw rmsprop muon",
    )
    optimizer_args: dict[str, Any] = key(OPT, {}, "Further keyword arguments of the optimizer.")
    learning_rate: Positive | Numbers = key(
        OPT, 0.05, "Peak learning rate; a list: one rate per layer group, earliest layers first."
    )
    layer_decay: float = key(
        OPT,
        1.0,
        "Factor of the learning rate from each depth of the net to the one before it, in place of a list of rates; "
        "1: one rate.",
        gt=0,
        le=1,
    )
    wd: float = key(OPT, 5e-4, "Weight decay, of tensors with two or more dimensions.", alias="weight_decay", ge=0)
    momentum: float = key(OPT, 0.9, "Momentum of sgd and rmsprop.", ge=0, lt=1)
    grad_clip: Positive | None = key(OPT, None, "Maximum norm of the gradient; null: no clipping.")
    accumulate: int = key(OPT, 1, "Number of micro-batches that each batch is split into.", ge=1)
    num_epochs: Positive = key(OPT, 10.0, "Number of passes over the training images; may be fractional.", le=1e6)

    scheduler: Literal["one_cycle", "cosine", "linear", "step", "constant", "plateau"] = key(
        SCHEDULE, "one_cycle", "Shape of the learning rate over the run."
    )
    div_factor: float = key(SCHEDULE, 25.0, "one_cycle starts at the peak rate divided by this.", ge=1)
    pct_start: float = key(SCHEDULE, 0.3, "Fraction of the steps in which the rate of one_cycle rises.", gt=0, lt=1)
    warmup: float = key(SCHEDULE, 0.0, "Number of epochs of linear warm-up, for the other schedulers.", ge=0)
    lr_schedule: Annotated[list[Pair], Field(min_length=1)] | None = key(
        SCHEDULE,
        None,
        "Learning rates by epoch, in place of scheduler: [[3, 0.1], [100, 0.01]] is 0.1 until epoch 3, then 0.01; "
        "null: none.",
    )

    device: Literal["auto", "cpu", "cuda", "mps"] = key(DEVICE, "auto", "Where to compute.")
    cuda: Switch = key(DEVICE, 1, "0: on the CPU. 1: on an accelerator if there is one.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = key(
        DEVICE, "auto", "Precision of the forward pass. auto: chosen for the machine."
    )
    threads: int | None = key(DEVICE, None, "Number of CPU threads; null: one per core.", ge=1, le=4096)
    compile: Literal["auto"] | Switch = key(
        DEVICE, "auto", "1: torch.compile. auto: on a GPU, for a run of 10,000 steps or more."
    )
    deterministic: Switch = key(DEVICE, 0, "1: the same bits on a GPU each time, at some cost in speed.")
    seed: int = key(DEVICE, 0, "Seed of the weights, order, augmentation and dropout.", ge=0, lt=2**63)

    metrics: Annotated[list[Text], Field(min_length=1)] = key(
        WATCH, ["accuracy"], "Metrics to report, by name or FILE.py:NAME; loss is always reported."
    )
    best_metric: Text = key(
        WATCH, "accuracy", "Validation metric that chooses the best epoch; ties go to the earliest."
    )
    observers: list[Text] = key(
        WATCH,
        ["tensorboard", "live_plot"],
        "Observers of the training, by name or FILE.py:NAME; see docs/observers.md.",
    )
    save_summary_steps: int = key(WATCH, 100, "Number of optimizer steps between two reports.", ge=1)
    early_stopping: EarlyStoppingKeys | None = key(WATCH, None, "Stop when a metric no longer improves; null: never.")
    keep_last: int = key(WATCH, 1, "Number of epoch checkpoints to keep.", ge=0)
    checkpoint_minutes: Positive = key(WATCH, 10.0, "Minutes between two checkpoints within an epoch.")

    hyper_search: dict[str, Any] = key(
        SEARCH,
        {},
        "What search_hyperparams.py varies: KEY: [values], or KEY: {min, max, log, int}, or KEY: {choice}.",
    )
    search: SearchKeys = key(SEARCH, SearchKeys.model_validate({}), "How search_hyperparams.py searches.")

    @model_validator(mode="after")
    def _check_together(self) -> "Keys":
        """ValueError, "key: what was given; what is possible", for keys that do not go together."""
        for check in (_check_data, _check_freeze, _check_schedule, _check_names, _check_monitored_metric):
            check(self)
        return self


# --- keys that must go together -----------------------------------------------------------------------


def _check_data(keys: Keys) -> None:
    if isinstance(keys.normalize, list) and min(keys.normalize[1]) <= 0:
        raise ValueError(f"normalize: {shorten(keys.normalize)} given; the standard deviations must be > 0")
    for item in keys.augment if isinstance(keys.augment, list) else []:
        if isinstance(item, dict) and not isinstance(item.get("name"), str):
            raise ValueError(f'augment: {shorten(item)} given; a transform needs its "name"')
    if keys.fold and not (1 <= keys.fold[0] <= keys.fold[1] and keys.fold[1] >= 2):
        raise ValueError(f"fold: {shorten(keys.fold)} given; [i, k] is part i of k: i at most k, k at least 2")
    if keys.accumulate > keys.batch_size:
        raise ValueError(f"accumulate: {keys.accumulate} given; at most batch_size, {keys.batch_size}")


def _check_freeze(keys: Keys) -> None:
    steps = keys.freeze if isinstance(keys.freeze, list) else []
    is_in_order = all(a[0] > b[0] and a[1] < b[1] for a, b in zip(steps, steps[1:], strict=False))
    if not is_in_order or any(groups % 1 for groups, _ in steps):
        possible = "[[2, 1], [1, 3]]: whole numbers of groups that fall, epochs that rise"
        raise ValueError(f"freeze: {shorten(keys.freeze)} given; possible: {possible}")
    if keys.layer_decay != 1 and isinstance(keys.learning_rate, list):
        raise ValueError(f"layer_decay: {keys.layer_decay:g} given beside a list of learning rates; give one of them")


def _check_schedule(keys: Keys) -> None:
    epochs = [until for until, _ in keys.lr_schedule or []]
    if any(later <= earlier for earlier, later in zip(epochs, epochs[1:], strict=False)):
        raise ValueError(f"lr_schedule: {shorten(keys.lr_schedule)} given; the epochs must rise")
    grow = keys.progressive
    if grow and grow.delay_fraction + grow.finetune_fraction > 1:
        given = f"delay_fraction {grow.delay_fraction:g} and finetune_fraction {grow.finetune_fraction:g}"
        raise ValueError(f"progressive: {given} given; together at most 1")


def _check_names(keys: Keys) -> None:
    for name in ("metrics", "observers"):
        names = getattr(keys, name)
        if len(set(names)) < len(names):
            raise ValueError(f"{name}: {shorten(names)} given; each name at most once")


def _check_monitored_metric(keys: Keys) -> None:
    if not keys.early_stopping:
        return
    metric = re.sub("^(val|train)_", "", reference_name(keys.early_stopping.monitor_metric))
    known = {"loss", *map(reference_name, (*keys.metrics, keys.best_metric))}
    if metric not in known:
        possible = f"{', '.join(sorted(known))}; more by naming them in metrics"
        raise ValueError(f"early_stopping.monitor_metric: {shorten(metric)} given; possible: {possible}")
