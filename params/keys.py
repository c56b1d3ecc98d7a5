"""The keys of params.json, one per line: type, default, meaning, limits; what goes together; synonyms.

To add a key, add its line to Keys, then run `python docs/generate.py`.
"""
# ruff: noqa: E501 - one key per line

import difflib
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from params.jsonc import describe, node_of, shorten, words_of
from utils import nearest, reference_name

Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]
Switch = Annotated[
    Literal[0, 1],
    BeforeValidator(lambda value: int(value) if isinstance(value, bool) else value),
    WithJsonSchema({"enum": [0, 1, True, False]}),
]
Pair = Annotated[list[Positive], Field(min_length=2, max_length=2)]
Fold = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]


class Strict(BaseModel):
    """No unknown keys, no conversions (but a whole number may stand for a float), no changes, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Freeze(Strict):
    groups: int = Field(ge=1, description="So many layer groups, earliest first, stay as they are.")
    epochs: Positive = Field(description="For so many epochs.")


class EarlyStopping(Strict):
    patience: int = Field(10, ge=1, description="Epochs without improvement before the run stops.")
    monitor_metric: Text = Field("loss", description="Validation metric to watch.")
    min_delta: float = Field(0.0, ge=0, description="A smaller change is no improvement.")
    minimize: Switch | None = Field(None, description="1: lower is better. 0: higher is better. null: as METRICS says.")


class Progressive(Strict):
    initial_scale: float = Field(0.5, gt=0, le=1, description="Share of im_sz that the first images have.")
    delay_fraction: float = Field(0.4, ge=0, le=1, description="Share of the epochs at this size.")
    finetune_fraction: float = Field(0.2, ge=0, le=1, description="Share of the epochs, the last ones, at full size.")
    size_increment: int = Field(4, ge=1, description="Sizes are multiples of so many pixels.")


Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1)]


class Search(Strict):
    sampler: Literal["grid", "random", "tpe"] = Field("grid", description="How values are chosen.")
    num_trials: int | None = Field(None, ge=1, description="Trials in all, for random and tpe.")
    pruner: Literal["none", "median", "asha", "hyperband"] = Field("none", description="Who stops hopeless trials.")
    eta: int = Field(3, ge=2, description="asha and hyperband: the best 1/eta of a rung go on.")
    min_epochs: int = Field(1, ge=1, description="asha and hyperband: epochs of the first rung.")
    seeds: Annotated[int, Field(ge=1)] | Seeds = Field(1, description="How many seeds per value, or which ones.")
    metric: Text = Field("val_accuracy", description="What is compared.")
    parallel: int = Field(
        1, ge=1, description="How many children train at a time; unstated: one per GPU, 64 on a cluster, else 1."
    )
    engine: Literal["local", "ray", "slurm"] = Field("local", description="Who runs the children.")
    slurm: dict[str, Any] = Field(
        {}, description="Options of engine slurm, and of train.py --engine slurm; see docs/cluster.md."
    )
    ray: dict[str, Any] = Field({}, description="Options of engine ray; see docs/cluster.md.")
    restore_file: Text | None = Field(None, description="Weights that every child starts from.")
    folds: int | None = Field(None, ge=2, description="k of a k-fold cross-validation; null: none.")
    epochs: Positive | None = Field(None, description="Budget of the whole search in epochs; null: none.")
    minutes: Positive | None = Field(None, description="Budget of the whole search in minutes; null: none.")


def key(group: str, default: Any, description: str, *, alias: str = "", names: str = "", **limits: Any) -> Any:
    """One parameter: its group in the documentation, default, meaning, readable alias, known names, limits."""
    extra: dict[str, Any] = {"group": group} | ({"alias": alias} if alias else {})
    return Field(default, description=description, examples=names.split() or None, json_schema_extra=extra, **limits)


NET, DATA, OPT, SCHEDULE = "net", "data", "optimisation", "schedule"
DEVICE, WATCH, SEARCH = "device", "watching", "search"


class Keys(Strict):
    """Everything a run depends on."""

    # fmt: off
    arch: Text = key(NET, "simple_cnn", "Net: simple_cnn, lenet, resnet9, sign_net, a torchvision net, timm/NAME, FILE.py:NAME.", names="simple_cnn lenet resnet9 sign_net resnet18 resnet34 resnet50 efficientnet_b0 mobilenet_v3_small vit_b_16")
    arch_args: dict[str, Any] = key(NET, {}, "Keyword arguments of the net's constructor.")
    pretrain: Switch | Text = key(NET, 0, "1: published weights. Or a local .safetensors or .pth file.", alias="pretrained")
    n_clas: int | None = key(NET, None, "Number of classes; null: as the data has.", alias="num_classes", ge=1)
    ps: float = key(NET, 0.0, "Dropout before the last linear layer.", alias="head_dropout", ge=0, lt=1)
    tta: Literal["none", "flip", "flip_translate"] = key(NET, "none", "Views of an image whose logits are averaged when it is evaluated.")
    freeze: Freeze | None = key(NET, None, "Layer groups that do not learn at first; null: none.")
    ema: float = key(NET, 0.0, "Decay of the weight average that is evaluated and kept, per step; 0: off.", ge=0, lt=1)

    data_dir: Text | None = key(DATA, None, "Dataset folder; null: given by --data_dir.")
    dataset: Text = key(DATA, "image_folder", "Kind of dataset: image_folder, FILE.py:NAME.", names="image_folder")
    im_sz: int | None = key(DATA, None, "Side of the net's input in pixels; null: the training images' own up to 64, else 224.", alias="image_size", ge=8, le=4096)
    resize: Literal["crop", "squash", "letterbox"] = key(DATA, "crop", "How an image becomes square.")
    normalize: Literal["auto", "imagenet", "dataset"] | Annotated[list[Channels], Field(min_length=2, max_length=2)] = key(DATA, "auto", "Mean and standard deviation per channel. auto: ImageNet's with pretrained weights, else the training set's.")
    batch_size: int = key(DATA, 128, "Images per optimizer step, over all processes.", ge=1)
    bs_test: int = key(DATA, 256, "Images per evaluation batch.", alias="eval_batch_size", ge=1)
    num_workers: int | None = key(DATA, None, "Processes that read images; null: as many as pay.", ge=0, le=256)
    augment: Text | list[Text | dict[str, Any]] = key(DATA, "flip_crop", "none, crop, flip_crop, strong, or a list of albumentations transforms: names, or objects with name and arguments.", names="none crop flip_crop strong")
    alternate_flip: Switch = key(DATA, 0, "1: which images are flipped is drawn once, and alternates by epoch (arXiv:2404.00498).")
    progressive: Progressive | None = key(DATA, None, "Smaller training images at first; null: full size always.")
    mixup: float = key(DATA, 0.0, "Alpha of mixup's Beta distribution; 0: off.", ge=0)
    cutmix: float = key(DATA, 0.0, "Alpha of CutMix's Beta distribution; 0: off.", ge=0)
    sampler: Literal["shuffle", "balanced"] = key(DATA, "shuffle", "balanced: every class is drawn as often.")
    valid_fraction: float = key(DATA, 0.1, "Share of train that validates when the data has no valid.", gt=0, lt=1)
    fold: Fold | None = key(DATA, None, "[i, k]: train and valid together are dealt into k parts, of which the i-th validates; null: as the folders say.")
    cache: Literal["auto", "off", "disk", "ram", "device", "jpeg"] = key(DATA, "auto", "Where decoded images are kept. jpeg: training images on disk as JPEGs of their base size; lossy.")
    limit_train: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] | None = key(DATA, None, "Number (1) or share (1.0) of the training images; null: all.")
    on_bad_image: Literal["error", "skip"] = key(DATA, "error", "What an unreadable image does.")

    loss: Text = key(OPT, "cross_entropy", "cross_entropy, focal, FILE.py:NAME.", names="cross_entropy focal")
    label_smoothing: float = key(OPT, 0.0, "Share of the target that is spread over all classes.", ge=0, lt=1)
    class_weights: Literal["balanced"] | Annotated[list[Positive], Field(min_length=1)] | None = key(OPT, None, "One weight per class in the loss; balanced: the rarer the heavier; null: none.")
    optimizer: Text = key(OPT, "sgd", "sgd (Nesterov), adam, adamw, rmsprop, muon, FILE.py:NAME.", names="sgd adam adamw rmsprop muon")
    optimizer_args: dict[str, Any] = key(OPT, {}, "More keyword arguments of the optimizer.")
    learning_rate: Positive | Annotated[list[Positive], Field(min_length=1)] = key(OPT, 0.05, "Peak rate; a list: one per layer group, earliest layers first.")
    wd: float = key(OPT, 5e-4, "Weight decay, of tensors with two or more dimensions.", alias="weight_decay", ge=0)
    momentum: float = key(OPT, 0.9, "Momentum of sgd and rmsprop.", ge=0, lt=1)
    grad_clip: Positive | None = key(OPT, None, "Largest norm of the gradient; null: not clipped.")
    accumulate: int = key(OPT, 1, "Micro-batches that a batch is cut into.", ge=1)
    num_epochs: Positive = key(OPT, 10.0, "Passes over the training images; may be fractional.", le=1e6)

    scheduler: Literal["one_cycle", "cosine", "linear", "step", "constant", "plateau"] = key(SCHEDULE, "one_cycle", "Shape of the learning rate over the run.")
    div_factor: float = key(SCHEDULE, 25.0, "one_cycle starts at the peak rate divided by this.", ge=1)
    pct_start: float = key(SCHEDULE, 0.3, "Share of the steps in which one_cycle rises.", gt=0, lt=1)
    warmup: float = key(SCHEDULE, 0.0, "Epochs of linear warm-up before the other schedulers.", ge=0)
    lr_schedule: Annotated[list[Pair], Field(min_length=1)] | None = key(SCHEDULE, None, "[[until_epoch, rate], ...], instead of scheduler: [[3, 0.1], [100, 0.01]] is 0.1 until epoch 3, then 0.01; null: none.")

    device: Literal["auto", "cpu", "cuda", "mps"] = key(DEVICE, "auto", "Where to compute.")
    cuda: Switch = key(DEVICE, 1, "0: on the CPU. 1: on an accelerator if there is one.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = key(DEVICE, "auto", "Of the forward pass. auto: what the machine is fast at.")
    threads: int | None = key(DEVICE, None, "CPU threads; null: one per core.", ge=1, le=4096)
    compile: Literal["auto"] | Switch = key(DEVICE, "auto", "1: torch.compile. auto: on a GPU, for a run of 10,000 steps or more.")
    deterministic: Switch = key(DEVICE, 0, "1: the same bits on a GPU each time, at some cost.")
    seed: int = key(DEVICE, 0, "Of weights, order, augmentation, dropout.", ge=0, lt=2**63)

    metrics: Annotated[list[Text], Field(min_length=1)] = key(WATCH, ["accuracy"], "Names, or FILE.py:NAME; loss is always there.")
    best_metric: Text = key(WATCH, "accuracy", "Validation metric that chooses the best epoch; ties keep the earlier.")
    observers: list[Text] = key(WATCH, ["tensorboard", "live_plot"], "Names, or FILE.py:NAME.")
    save_summary_steps: int = key(WATCH, 100, "Optimizer steps between two reports.", ge=1)
    early_stopping: EarlyStopping | None = key(WATCH, None, "Stop when a metric no longer improves; null: never.")
    keep_last: int = key(WATCH, 1, "How many epoch checkpoints stay.", ge=0)
    checkpoint_minutes: Positive = key(WATCH, 10.0, "Minutes between checkpoints within an epoch.")

    hyper_search: dict[str, Any] = key(SEARCH, {}, "What search_hyperparams.py varies: KEY: [values], or KEY: {min, max, log, int}, or KEY: {choice}.")
    search: Search = key(SEARCH, Search(), "How it is varied.")
    # fmt: on

    @model_validator(mode="after")
    def _check_together(self) -> "Keys":
        if isinstance(self.normalize, list) and min(self.normalize[1]) <= 0:
            raise ValueError(f"normalize: {shorten(self.normalize)} given; the standard deviations must be > 0")
        epochs = [until for until, _ in self.lr_schedule or []]
        if any(later <= earlier for earlier, later in zip(epochs, epochs[1:], strict=False)):
            raise ValueError(f"lr_schedule: {shorten(self.lr_schedule)} given; the epochs must rise")
        for name in ("metrics", "observers"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}: {shorten(getattr(self, name))} given; each name at most once")
        for item in self.augment if isinstance(self.augment, list) else []:
            if isinstance(item, dict) and not isinstance(item.get("name"), str):
                raise ValueError(f'augment: {shorten(item)} given; a transform needs its "name"')
        if (grow := self.progressive) and grow.delay_fraction + grow.finetune_fraction > 1:
            raise ValueError(f"progressive: delay_fraction {grow.delay_fraction:g} and finetune_fraction "
                             f"{grow.finetune_fraction:g} given; together at most 1")  # fmt: skip
        if self.fold and not (1 <= self.fold[0] <= self.fold[1] and self.fold[1] >= 2):
            raise ValueError(
                f"fold: {shorten(self.fold)} given; [i, k] is the i-th of k parts: i at most k, k at least 2"
            )
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate: {self.accumulate} given; at most batch_size, {self.batch_size}")
        if self.early_stopping:
            watched = re.sub("^(val|train)_", "", reference_name(self.early_stopping.monitor_metric))
            if watched not in (known := {"loss", *map(reference_name, (*self.metrics, self.best_metric))}):
                raise ValueError(f"early_stopping.monitor_metric: {shorten(watched)} given; possible: "
                                 f"{', '.join(sorted(known))}; more by naming them in metrics")  # fmt: skip
        return self


def _flips(augment: Any) -> bool:
    """Whether a preset or a list of transforms flips; presets that are not known here may."""
    if isinstance(augment, str):
        return augment not in ("none", "crop")
    return any((item if isinstance(item, str) else item["name"]) == "HorizontalFlip" for item in augment)


NO_EFFECT: list[tuple[str, Callable[[Keys], Any], str]] = [
    ("scheduler", lambda p: p.lr_schedule, "lr_schedule takes its place"),
    ("div_factor pct_start", lambda p: p.lr_schedule, "lr_schedule takes the place of one_cycle"),
    ("div_factor pct_start", lambda p: not p.lr_schedule and p.scheduler != "one_cycle", "only scheduler one_cycle has it"),
    ("warmup", lambda p: p.warmup and p.lr_schedule, "lr_schedule says every rate itself"),
    ("warmup", lambda p: p.warmup and not p.lr_schedule and p.scheduler == "one_cycle", "one_cycle has its own rise, pct_start"),
    ("learning_rate", lambda p: p.lr_schedule and not isinstance(p.learning_rate, list), "lr_schedule says every rate itself"),
    ("momentum", lambda p: p.optimizer not in ("sgd", "rmsprop"), "only sgd and rmsprop have it; others by optimizer_args"),
    ("momentum", lambda p: "momentum" in p.optimizer_args, "optimizer_args says another one"),
    ("label_smoothing", lambda p: p.label_smoothing and p.loss == "focal", "only loss cross_entropy has it"),
    ("alternate_flip", lambda p: p.alternate_flip and not _flips(p.augment), "augment has no HorizontalFlip"),
    ("valid_fraction", lambda p: p.fold, "fold says which images validate"),
    ("progressive", lambda p: p.progressive and p.progressive.initial_scale == 1, "initial_scale 1 is full size"),
    ("cuda", lambda p: p.device != "auto", "device says where to compute"),
    ("early_stopping", lambda p: p.early_stopping and p.early_stopping.patience >= p.num_epochs, "its patience is as long as the run"),
]  # fmt: skip

SECTIONS: dict[str, type[Strict]] = {
    "freeze": Freeze,
    "early_stopping": EarlyStopping,
    "progressive": Progressive,
    "search": Search,
}
FREE = ("arch_args", "optimizer_args", "search.slurm", "search.ray")  # their keys are known elsewhere
PATHS = ("pretrain", "data_dir", "restore_file")  # relative to the file they stand in
OWNED = {"arch": "arch_args", "optimizer": "optimizer_args"}
ALIASES: dict[str, str] = {
    str(field.json_schema_extra["alias"]): name
    for name, field in Keys.model_fields.items()
    if isinstance(field.json_schema_extra, dict) and "alias" in field.json_schema_extra
}
_WANTED = {
    "learning_rate": "lr learnrate base_lr init_lr", "batch_size": "bs batchsize train_batch_size batch",
    "num_epochs": "epochs epoch n_epochs max_epochs nb_epochs n_epoch", "arch": "model net backbone network architecture model_name",
    "num_workers": "workers n_workers nworkers num_loader_workers", "ps": "dropout dropout_rate drop_rate drop p_dropout",
    "wd": "decay l2", "momentum": "mom beta", "optimizer": "opt optim", "optimizer_args": "optim_args betas nesterov opt_args",
    "scheduler": "sched lr_scheduler schedule", "warmup": "warmup_epochs", "lr_schedule": "lr_steps milestones",
    "augment": "aug augm augmentation augmentations transforms", "im_sz": "img_size imgsz image_sz input_size size resolution",
    "n_clas": "classes nb_classes n_classes", "bs_test": "test_batch_size val_batch_size bs_val batch_size_test",
    "pretrain": "weights checkpoint", "accumulate": "grad_accum gradient_accumulation accumulation_steps",
    "grad_clip": "clip clip_grad max_grad_norm gradient_clip", "seed": "random_seed manual_seed", "cuda": "gpu use_cuda use_gpu",
    "precision": "amp fp16 bf16 half dtype", "loss": "criterion loss_fn", "label_smoothing": "smoothing", "metrics": "metric",
    "data_dir": "data dataset_dir root", "observers": "callbacks loggers logger", "ema": "ema_decay model_ema",
    "save_summary_steps": "log_interval print_freq log_every", "limit_train": "limit_train_batches subset",
    "fold": "kfold k_fold", "search.folds": "n_folds num_folds kfolds k_folds cv",
    "valid_fraction": "val_split valid_split val_fraction", "best_metric": "eval_metric", "base": "parent inherit extends",
    "keep_last": "save_top_k keep", "compile": "torch_compile", "tta": "test_time_augmentation", "threads": "num_threads", "div_factor": "div",
    "arch_args": "model_args", "arch_args.n_filters": "n_filters num_filters filters", "hyper_search": "hyperparams search_space grid",
    "early_stopping.patience": "patience", "early_stopping.monitor_metric": "monitor monitor_metric",
    "early_stopping.min_delta": "min_delta", "early_stopping.minimize": "minimize mode", "early_stopping": "early_stop",
    "freeze": "frozen freeze_epochs", "freeze.groups": "groups freeze_groups",
}  # fmt: skip
SYNONYMS = {word: name for name, words in _WANTED.items() for word in words.split()}


# --- telling what is wrong ---------------------------------------------------------------------------


def suggest(name: str, section: str = "") -> str:
    """What somebody who wrote `name`, in `section`, may have meant."""
    word = name.lower().replace("-", "_")[:60]
    if word.startswith("model."):
        return f"did you mean 'arch_args.{word[6:]}'?"
    wanted = SYNONYMS.get(word, word)
    if section and (wanted in Keys.model_fields or wanted in ALIASES):
        return f"{wanted} is a key of its own, outside {section}"
    homes = [home for home, cls in SECTIONS.items() if word in cls.model_fields and word == wanted]
    home, _, inner = wanted.partition(".") if "." in wanted else (homes[0] if homes else "", "", word)
    if home and section != home and home in SECTIONS and inner == word:
        return f"{word} belongs in {home}: {home}.{word}"
    if wanted != word:
        return f"did you mean {wanted.removeprefix(section + '.')!r}?"
    names = list(SECTIONS[section].model_fields) if section else [*Keys.model_fields, *ALIASES, "base"]
    near = [] if section else difflib.get_close_matches(word, names, 1) or difflib.get_close_matches(word, SYNONYMS, 1)
    return f"did you mean {SYNONYMS.get(near[0], near[0])!r}?" if near else nearest(word, names)


def explain(error: ValidationError) -> tuple[list[str], str]:
    """(path of the key, one line) for the first mistake: what was given, what is possible."""
    mistakes = error.errors(include_url=False, include_context=False)
    if not mistakes[0]["loc"]:
        text = mistakes[0]["msg"].removeprefix("Value error, ")
        return text.partition(":")[0].split("."), text
    top = str(mistakes[0]["loc"][0])
    mistake = max((m for m in mistakes if m["loc"][0] == top), key=lambda m: len(m["loc"]))  # the nearest of a union
    path = [str(part) for part in mistake["loc"][: 2 if top in SECTIONS else 1]]
    name = ".".join(path)
    if mistake["type"] == "extra_forbidden":
        return path, f"unknown key {shorten(name)}; {suggest(path[-1], top)}"
    schema = Keys.model_json_schema()
    node = node_of(schema, path)
    possible = f"possible: {describe(schema, node)}"
    if mistake["type"] == "missing":
        return path[:1], f"{name}: missing; {possible}"
    place = name + "".join(f"[{part}]" for part in mistake["loc"] if isinstance(part, int))
    wrong = mistake["input"]
    near = nearest(wrong[:60], words_of(schema, node)) if isinstance(wrong, str) else ""
    return path, f"{place}: {shorten(wrong)} given; {possible}{f'; {near}' if near.startswith('did') else ''}"


def check_space(params: Keys, name: str, wanted: Any) -> None:
    """ValueError unless hyper_search[name] is a list of possible values, or a range or choice of them."""
    place, given = shorten(f"hyper_search.{name}")[1:-1], f"{shorten(wanted)} given"
    values = wanted.get("choice") if isinstance(wanted, dict) and set(wanted) == {"choice"} else wanted
    if isinstance(wanted, dict) and {"min", "max"} <= set(wanted) <= {"min", "max", "log", "int"}:
        values = [low, high] = [wanted["min"], wanted["max"]]
        flags = [wanted.get("log", False), wanted.get("int", False)]
        if not all(type(value) in (int, float) for value in values) or not all(flag in (0, 1) for flag in flags):
            raise ValueError(f"{place}: {given}; possible: numbers for min and max, true or false for log and int")
        if low >= high or (flags[0] and low <= 0):
            raise ValueError(f"{place}: {given}; a range needs min below max{', and > 0 with log' if flags[0] else ''}")
    if not isinstance(values, list) or not values:
        raise ValueError(f'{place}: {given}; possible: [values], {{"min": A, "max": B, "log": true, "int": true}}, '
                         '{"choice": [values]}')  # fmt: skip
    top, *rest = name.split(".")
    resolved = params.model_dump()
    for change in values:
        if rest and top in SECTIONS:
            change = (resolved[top] or {}) | {rest[0]: change}
        if rest and top in FREE:
            return
        try:
            type(params).model_validate(resolved | {top: change})
        except ValidationError as error:
            if error.errors()[0]["loc"]:  # what clashes with another key may be searched together with that one
                raise ValueError(f"hyper_search: {explain(error)[1]}") from None


INTRO = """# params.json

Written by `python docs/generate.py`; do not edit. Every key has a default: `{}` is a valid file. `//` comments and
trailing commas are allowed. `null` is possible where the type says so. 0/1 keys also take `true` and `false`.

- `base`: another experiment folder or JSON file, relative to this file; it lies under this one. Sections and
  dictionaries merge, lists and values replace. Another `arch` (`optimizer`) does not inherit `arch_args`
  (`optimizer_args`). Its relative paths keep their meaning.
- Paths, also those in `FILE.py:NAME`, are relative to the folder of the file, on the command line to the
  experiment folder.
- Every key can be given on the command line: `--learning_rate=0.1 --early_stopping.patience 3`. `--model=lenet
  --model.n_filters=10` means `arch` and `arch_args`.
- An alias means the same as its key; give one of the two.
"""
