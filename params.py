"""params.json -> Params: every key with its type, range, default and meaning; base, overrides, did-you-mean.

One definition serves validation, `params.schema.json` and docs/params.md (both written by docs/generate.py).
No torch: names that live in registries are checked where those are.
"""

import difflib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from include import PARAMS
from utils import UserError, nearest, read_jsonc, relative_path, shorten

MAX_BYTES = 1 << 20


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("true and false are for switches; a number is wanted")
    return value


def _switch(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


Count = Annotated[int, BeforeValidator(_refuse_bool)]
Number = Annotated[float, BeforeValidator(_refuse_bool)]
Switch = Annotated[Literal[0, 1], BeforeValidator(_switch)]
Positive = Annotated[Number, Field(gt=0)]


def key(group: str, default: Any, description: str, alias: str = "", **limits: Any) -> Any:
    """A parameter: its group in the documentation, default, meaning, readable alias and limits."""
    extra = {"group": group} | ({"alias": alias} if alias else {})
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Freeze(Section):
    groups: Count = Field(ge=1, description="so many layer groups, earliest first, stay as they are")
    epochs: Positive = Field(description="for so many epochs")


class EarlyStopping(Section):
    patience: Count = Field(10, ge=1, description="epochs without improvement before the run stops")
    monitor_metric: str = Field("loss", description="validation metric to watch")
    min_delta: Number = Field(0.0, ge=0, description="a smaller change is no improvement")
    minimize: Switch = Field(1, description="1: lower is better")


class Search(Section):
    sampler: Literal["grid", "random", "tpe"] = Field("grid", description="how values are chosen")
    num_trials: Count | None = Field(None, ge=1, description="trials in all (random, tpe)")
    pruner: Literal["none", "median", "asha", "hyperband"] = Field("none", description="which trials stop early")
    seeds: Annotated[Count, Field(ge=1)] | list[Count] = Field(1, description="how many seeds per value, or which")
    folds: Count | None = Field(None, ge=2, description="k-fold cross-validation over train + valid")
    metric: str = Field("val_accuracy", description="what is compared")
    parallel: Count = Field(1, ge=1, description="children at a time")
    engine: Literal["local", "ray", "slurm"] = Field("local", description="who runs them")
    restore_file: str | None = Field(None, description="weights that every child starts from")
    epochs: Positive | None = Field(None, description="budget of the whole search, in epochs")
    minutes: Positive | None = Field(None, description="budget of the whole search, in minutes")


NET, DATA, OPT, PLAN, DEVICE, WATCH, SEARCH = "net", "data", "optimisation", "schedule", "device", "watching", "search"
Rate = Annotated[Number, Field(gt=0)]
Statistics = list[list[Number]]


class Params(BaseModel):
    """Everything one run depends on; attributes have the canonical names. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # fmt: off
    arch: str = key(NET, "simple_cnn", "simple_cnn, lenet, resnet9, sign_net, a torchvision name, timm/NAME, file.py:Name")
    arch_args: dict[str, Any] = key(NET, {}, "keyword arguments of the net's constructor")
    pretrain: Switch | str = key(
        NET, 0, "1: the published weights; or a local .safetensors or .pth file", "pretrained")
    n_clas: Count | None = key(NET, None, "number of classes; null: from the data", "num_classes", ge=2)
    ps: Number = key(NET, 0.0, "dropout before the head's linear layer", "head_dropout", ge=0, lt=1)
    freeze: Freeze | None = key(
        NET, None, '{"groups": 2, "epochs": 1}: so many layer groups for so many epochs; null: none' )
    ema: Number = key(NET, 0.0, "decay of the weight average that is evaluated and exported; 0: off", ge=0, lt=1)

    data_dir: str | None = key(DATA, None, "dataset folder, relative to this file; null: from --data_dir")
    dataset: str = key(DATA, "image_folder", "image_folder, or file.py:Name")
    im_sz: Count | None = key(
        DATA, None, "side of the net's input, pixels; null: the images' own size up to 64, else 224",
        "image_size", ge=8, le=4096)
    resize: Literal["crop", "squash", "letterbox"] = key(DATA, "crop", "how an image becomes a square")
    normalize: Literal["auto", "imagenet", "dataset"] | Statistics = key(
        DATA, "auto", "auto: ImageNet's numbers with pretrained weights, else the training set's; or [[mean], [std]]")
    batch_size: Count = key(DATA, 128, "images per optimizer step, over all processes", ge=1)
    bs_test: Count = key(DATA, 256, "images per evaluation batch", "eval_batch_size", ge=1)
    num_workers: Count | None = key(DATA, None, "loader processes; null: as many as pay", ge=0, le=256)
    augment: str | list[str | dict[str, Any]] = key(
        DATA, "flip_crop", "none, crop, flip_crop, strong, or a list of albumentations transforms")
    mixup: Number = key(DATA, 0.0, "alpha of the Beta distribution of mixup; 0: off", ge=0)
    cutmix: Number = key(DATA, 0.0, "alpha of the Beta distribution of CutMix; 0: off", ge=0)
    sampler: Literal["shuffle", "balanced"] = key(DATA, "shuffle", "balanced: every class is drawn as often")
    valid_fraction: Number = key(
        DATA, 0.1, "share of train that becomes valid when the data has no valid", gt=0, lt=1)
    cache: Literal["auto", "off", "disk", "ram", "device"] = key(DATA, "auto", "where decoded images are kept")
    limit_train: Count | Number | None = key(
        DATA, None, "use so many training images, or such a share below 1; null: all", gt=0 )
    on_bad_image: Literal["error", "skip"] = key(DATA, "error", "what an unreadable image does")

    loss: str = key(OPT, "cross_entropy", "cross_entropy, focal, or file.py:Name")
    label_smoothing: Number = key(OPT, 0.0, "share of the target spread over all classes", ge=0, lt=1)
    class_weights: Literal["balanced"] | list[Rate] | None = key(
        OPT, None, '"balanced", one weight per class, or null: none' )
    optimizer: str = key(OPT, "sgd", "sgd (Nesterov), adam, adamw, rmsprop, or file.py:Name")
    optimizer_args: dict[str, Any] = key(OPT, {}, "keyword arguments of the optimizer's constructor")
    learning_rate: Rate | Annotated[list[Rate], Field(min_length=1)] = key(
        OPT, 0.05, "peak learning rate; a list: one per layer group, earliest layers first")
    wd: Number = key(OPT, 5e-4, "weight decay of tensors with two or more dimensions", "weight_decay", ge=0)
    momentum: Number = key(OPT, 0.9, "of sgd and rmsprop", ge=0, lt=1)
    grad_clip: Positive | None = key(OPT, None, "largest norm of the gradient; null: not clipped")
    accumulate: Count = key(OPT, 1, "micro-batches per optimizer step", ge=1)
    num_epochs: Positive = key(OPT, 10.0, "passes over the training set; may be fractional", le=1e6)

    scheduler: Literal["one_cycle", "cosine", "linear", "step", "constant", "plateau"] = key(
        PLAN, "one_cycle", "shape of the learning rate")
    div_factor: Number = key(PLAN, 25.0, "one_cycle begins at the peak rate divided by this", ge=1)
    pct_start: Number = key(PLAN, 0.3, "one_cycle rises for this share of the steps", gt=0, lt=1)
    warmup: Number = key(PLAN, 0.0, "epochs of linear warm-up before the other schedulers", ge=0)
    lr_schedule: list[list[Number]] | None = key(
        PLAN, None, "[[3, 0.1], [100, 0.01]]: 0.1 until epoch 3, then 0.01; overrides scheduler; null: none")

    device: Literal["auto", "cpu", "cuda", "mps"] = key(DEVICE, "auto", "where it runs")
    cuda: Switch = key(DEVICE, 1, "0: on the CPU; 1: on an accelerator when there is one")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = key(
        DEVICE, "auto", "auto: bf16 or fp16 where the machine is fast at it")
    threads: Count | None = key(DEVICE, None, "CPU threads; null: one per core", ge=1, le=4096)
    compile: Switch = key(DEVICE, 0, "1: torch.compile")
    deterministic: Switch = key(DEVICE, 0, "1: bit-identical on a GPU too, slower")
    seed: Count = key(DEVICE, 0, "of initialisation, order, augmentation, dropout", ge=0, lt=2**63)

    metrics: Annotated[list[str], Field(min_length=1)] = key(
        WATCH, ["accuracy"], "validation metrics, or file.py:Name; loss is always there")
    best_metric: str = key(
        WATCH, "accuracy", "validation metric that names the best epoch; ties keep the earlier one")
    observers: list[str] = key(WATCH, ["tensorboard", "live_plot"], "who watches the run")
    save_summary_steps: Count = key(WATCH, 100, "optimizer steps between two reports", ge=1)
    early_stopping: EarlyStopping | None = key(WATCH, None, "stop when a metric no longer improves; null: never")
    keep_last: Count = key(WATCH, 1, "how many epoch checkpoints stay", ge=0)
    checkpoint_minutes: Positive = key(WATCH, 10.0, "minutes between checkpoints inside an epoch")

    hyper_search: dict[str, Any] = key(
        SEARCH, {}, "what search_hyperparams.py varies: key -> list, or range {min, max, log}")
    search: Search = key(SEARCH, Search(), "how it is varied")
    # fmt: on

    _given: frozenset[str] = PrivateAttr(default=frozenset())
    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _cross_field(self) -> "Params":
        if isinstance(self.limit_train, float) and self.limit_train > 1:
            raise ValueError(f"limit_train: {self.limit_train:g} is neither a number of images nor a share up to 1.0")
        if isinstance(self.normalize, list):
            shape = [len(row) for row in self.normalize]
            if shape != [3, 3] or min(self.normalize[1]) <= 0:
                raise ValueError("normalize: [[3 means], [3 standard deviations above 0]] is wanted")
        if self.lr_schedule is not None:
            epochs = [piece[0] for piece in self.lr_schedule if len(piece) == 2 and min(piece) > 0]
            if len(epochs) != len(self.lr_schedule) or not epochs or sorted(set(epochs)) != epochs:
                raise ValueError("lr_schedule: [[until_epoch, rate], ...] with rising epochs, rates above 0 is wanted")
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError(f"metrics: {self.metrics} names one twice")
        _check_space(self.hyper_search)
        return self

    @property
    def given(self) -> frozenset[str]:
        """The keys that somebody wrote: in the file, its base or on the command line."""
        return self._given

    @property
    def folder(self) -> Path:
        """What relative paths in the parameters are relative to."""
        return self._folder

    def resolved(self) -> dict[str, Any]:
        """Every key in the order of the table, as plain JSON values."""
        return self.model_dump(mode="json")

    def replace(self, **changes: Any) -> "Params":
        """A validated copy with `changes`."""
        return _build(self.resolved() | changes, self._folder, "changed parameters", self._given)


# fmt: off
EXTRAS: dict[str, Any] = {name: field.json_schema_extra or {} for name, field in Params.model_fields.items()}
ALIASES: dict[str, str] = {extra["alias"]: name for name, extra in EXTRAS.items() if "alias" in extra}
SYNONYMS = {
    "lr": "learning_rate", "bs": "batch_size", "epochs": "num_epochs", "n_epochs": "num_epochs",
    "max_epochs": "num_epochs", "model": "arch", "net": "arch", "backbone": "arch", "architecture": "arch",
    "network": "arch", "model_name": "arch", "workers": "num_workers", "n_workers": "num_workers", "dropout": "ps",
    "dropout_rate": "ps", "amp": "precision", "patience": "early_stopping.patience",
    "monitor": "early_stopping.monitor_metric", "monitor_metric": "early_stopping.monitor_metric",
    "min_delta": "early_stopping.min_delta", "minimize": "early_stopping.minimize", "opt": "optimizer",
    "criterion": "loss", "sched": "scheduler", "lr_scheduler": "scheduler", "augmentation": "augment",
    "augm": "augment", "transforms": "augment", "clip": "grad_clip", "clip_grad": "grad_clip", "gpu": "cuda",
    "img_size": "im_sz", "input_size": "im_sz", "size": "im_sz", "smoothing": "label_smoothing",
    "n_filters": "arch_args.n_filters", "num_channels": "arch_args.num_channels", "classes": "n_clas",
    "test_batch_size": "bs_test", "val_batch_size": "bs_test", "gradient_accumulation": "accumulate",
    "random_seed": "seed", "callbacks": "observers", "weights": "pretrain", "betas": "optimizer_args.betas",
    "nesterov": "optimizer_args.nesterov", "save_steps": "save_summary_steps", "data": "data_dir",
    "num_trials": "search.num_trials",
}
# fmt: on
SECTIONS: dict[str, type[Section]] = {"freeze": Freeze, "early_stopping": EarlyStopping, "search": Search}
OWNED = {"arch": "arch_args", "optimizer": "optimizer_args"}


# --- reading ------------------------------------------------------------------------------------------


def load(path: Path | str, overrides: dict[str, Any] | None = None) -> Params:
    """The parameters of an experiment folder or JSON file, its bases and `overrides` merged. UserError: one line."""
    file = _file(Path(path))
    values = merged(file, overrides)
    return _build(values, file.parent, str(file), frozenset(values))


def merged(path: Path | str, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """What was written: base + file + overrides, canonical keys, no defaults."""
    file = _file(Path(path))
    written = _with_base(read(file), file.parent, str(file), [file.resolve()])
    return deep_merge(written, canonical(overrides or {}, "command line"))


def from_written(values: dict[str, Any], folder: Path, source: str = "") -> Params:
    """Parameters from what would be written into folder/params.json."""
    source = source or str(folder / PARAMS)
    values = _with_base(values, folder, source, [])
    return _build(values, folder, source, frozenset(values))


def from_resolved(values: dict[str, Any], folder: Path) -> Params:
    """Parameters from record/resolved.json (without "pinned")."""
    return _build(canonical(values, "resolved.json"), folder, str(folder / "record/resolved.json"), frozenset(values))


def read(path: Path) -> dict[str, Any]:
    """One params file as a dictionary: // comments and trailing commas forgiven, duplicates and NaN refused."""
    values = read_jsonc(path, MAX_BYTES)
    if not isinstance(values, dict):
        raise UserError(f"{path}: an object {{...}} is wanted, not {shorten(values)}")
    return {name: value for name, value in values.items() if name != "$schema"}


def _file(path: Path) -> Path:
    path = path / PARAMS if path.is_dir() else path
    if not path.exists():
        raise UserError(f"{path}: no such file. An experiment is a folder with a {PARAMS} ({{}} will do)")
    return path


def _with_base(values: dict[str, Any], folder: Path, source: str, seen: list[Path]) -> dict[str, Any]:
    """`values` over their base's, which may have a base of its own."""
    values = dict(values)
    base = values.pop("base", None)
    values = canonical(values, source)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{source}: base: {shorten(base)} is no path")
    file = _file((folder / base).resolve())
    if file.resolve() in seen:
        raise UserError(f"{source}: base: {base} leads back to itself")
    under = _with_base(read(file), file.parent, str(file), [*seen, file.resolve()])
    return deep_merge(_rebase(under, relative_path(file.parent, folder)), values)


def _rebase(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Paths in a base file are relative to it: make them relative to the folder that inherits them."""

    def move(value: Any, is_path: bool = False) -> Any:
        if isinstance(value, list):
            return [move(item) for item in value]
        is_path = is_path or (isinstance(value, str) and ".py:" in value)
        return os.path.join(prefix, value) if is_path and isinstance(value, str) else value

    moved = {name: move(value, name in ("pretrain", "data_dir")) for name, value in values.items()}
    search = moved.get("search")
    if isinstance(search, dict) and isinstance(search.get("restore_file"), str):
        moved["search"] = search | {"restore_file": os.path.join(prefix, search["restore_file"])}
    return moved


def deep_merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins; sections merge. Another arch or optimizer does not inherit the arguments of the one before."""
    result = dict(under)
    for name, args in OWNED.items():
        if name in over and name in under and over[name] != under[name]:
            result.pop(args, None)
    for name, value in over.items():
        old = result.get(name)
        result[name] = (
            deep_merge(old, value)
            if isinstance(old, dict) and isinstance(value, dict) and name != "hyper_search"
            else value
        )
    return result


def canonical(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Aliases replaced, every key known. UserError with the nearest key."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        real = ALIASES.get(name, name)
        if real not in Params.model_fields:
            raise UserError(f"{source}: unknown key {name!r}; {suggest(name)}")
        if real in result:
            alias = next(alias for alias, target in ALIASES.items() if target == real)
            raise UserError(f"{source}: {real!r} and {alias!r} are the same key; give one of them")
        result[real] = value
    return result


def suggest(name: str) -> str:
    """What somebody who wrote `name` may have meant."""
    if name.lower() in SYNONYMS:
        return f"did you mean {SYNONYMS[name.lower()]!r}?"
    dotted = {f"{section}.{sub}" for section, cls in SECTIONS.items() for sub in cls.model_fields}
    for full in dotted:
        if full.partition(".")[2] == name:
            return f"did you mean {full!r}?"
    names = [*Params.model_fields, *ALIASES, "base", *SYNONYMS]
    if near := difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6):
        return f"did you mean {SYNONYMS.get(near[0], near[0])!r}?"
    return nearest(name, [*Params.model_fields, "base"])


def _build(values: dict[str, Any], folder: Path, source: str, given: frozenset[str]) -> Params:
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply") from None
    params._given, params._folder = given, folder
    return params


def _explain(error: ValidationError) -> str:
    """The first mistake in one line: key, what was given, what is possible."""
    mistakes = error.errors(include_url=False)
    first = mistakes[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, ")
    top = str(first["loc"][0])
    section = SECTIONS.get(top)
    path = [
        str(part)
        for part in first["loc"]
        if isinstance(part, int) or part == top or (section and part in section.model_fields)
    ]
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        wrong = str(first["loc"][-1])
        return f"unknown key {top}.{wrong}; {nearest(wrong, section.model_fields if section else Params.model_fields)}"
    if first["type"] == "missing":
        return f"{top}: {first['loc'][-1]!r} is missing"
    same_key = [m for m in mistakes if m["loc"][:1] == first["loc"][:1] and m["type"] != "model_type"]
    options = list(
        dict.fromkeys(m["msg"].removeprefix("Value error, ").removeprefix("Input should be ") for m in same_key)
    )
    return f"{name}: {shorten(first['input'])} given; possible: {' or '.join(options)}"


def _check_space(space: dict[str, Any]) -> None:
    """hyper_search: key -> non-empty list, or {"min", "max", "log", "int"} or {"choice"}."""
    for name, values in space.items():
        top, _, sub = name.partition(".")
        real = ALIASES.get(top, top)
        if real not in Params.model_fields or (real in SECTIONS and sub and sub not in SECTIONS[real].model_fields):
            raise ValueError(f"hyper_search: unknown key {name!r}; {suggest(name)}")
        if isinstance(values, dict):
            if set(values) - {"min", "max", "log", "int", "choice"}:
                raise ValueError(f"hyper_search.{name}: {shorten(values)} given; possible: min, max, log, int, choice")
            choice, low, high = values.get("choice"), values.get("min"), values.get("max")
            ranged = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high))
            if choice is not None and isinstance(choice, list) and choice:
                continue
            if not ranged or low >= high or (values.get("log") and low <= 0):
                raise ValueError(f"hyper_search.{name}: a range needs min below max (above 0 with log)")
        elif not isinstance(values, list) or not values:
            raise ValueError(f"hyper_search.{name}: {shorten(values)} given; possible: a list of values, or a range")
