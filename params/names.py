"""The names of keys: sections, aliases, synonyms, and suggestions for names that are not keys."""

import difflib
from typing import NoReturn

from params.jsonc import shorten
from params.keys import Keys
from params.sections import EarlyStoppingKeys, FreezeKeys, ProgressiveKeys, SearchKeys, Strict
from utils import JsonObject, UserError, nearest

SECTIONS: dict[str, type[Strict]] = {
    "freeze": FreezeKeys,
    "early_stopping": EarlyStoppingKeys,
    "progressive": ProgressiveKeys,
    "search": SearchKeys,
}
FREE = ("arch_args", "optimizer_args", "search.slurm", "search.ray")  # their contents are checked where they are used
PATHS = ("pretrain", "data_dir", "restore_file")  # relative to the file that holds them
OWNED = {"arch": "arch_args", "optimizer": "optimizer_args"}  # name -> the arguments that belong to it alone
ALIASES: dict[str, str] = {
    str(field.json_schema_extra["alias"]): name
    for name, field in Keys.model_fields.items()
    if isinstance(field.json_schema_extra, dict) and "alias" in field.json_schema_extra
}

# key -> synonyms: its names in other tools, and habits
_OTHER_WORDS = {
    "learning_rate": "lr learnrate base_lr init_lr",
    "batch_size": "bs batchsize train_batch_size batch",
    "num_epochs": "epochs epoch n_epochs max_epochs nb_epochs n_epoch",
    "arch": "model net backbone network architecture model_name",
    "num_workers": "workers n_workers nworkers num_loader_workers",
    "ps": "dropout dropout_rate drop_rate drop p_dropout",
    "wd": "decay l2",
    "momentum": "mom beta",
    "optimizer": "opt optim",
    "optimizer_args": "optim_args betas nesterov opt_args",
    "scheduler": "sched lr_scheduler schedule",
    "warmup": "warmup_epochs",
    "lr_schedule": "lr_steps milestones",
    "augment": "aug augm augmentation augmentations transforms",
    "im_sz": "img_size imgsz image_sz input_size size resolution",
    "n_clas": "classes nb_classes n_classes",
    "bs_test": "test_batch_size val_batch_size bs_val batch_size_test",
    "pretrain": "weights checkpoint",
    "accumulate": "grad_accum gradient_accumulation accumulation_steps",
    "grad_clip": "clip clip_grad max_grad_norm gradient_clip",
    "seed": "random_seed manual_seed",
    "cuda": "gpu use_cuda use_gpu",
    "precision": "amp fp16 bf16 half dtype",
    "loss": "criterion loss_fn",
    "label_smoothing": "smoothing",
    "metrics": "metric",
    "data_dir": "data dataset_dir root",
    "observers": "callbacks loggers logger",
    "ema": "ema_decay model_ema",
    "save_summary_steps": "log_interval print_freq log_every",
    "limit_train": "limit_train_batches subset",
    "fold": "kfold k_fold",
    "search.folds": "n_folds num_folds kfolds k_folds cv",
    "valid_fraction": "val_split valid_split val_fraction",
    "best_metric": "eval_metric",
    "base": "parent inherit extends",
    "keep_last": "save_top_k keep",
    "compile": "torch_compile",
    "tta": "test_time_augmentation",
    "threads": "num_threads",
    "div_factor": "div",
    "arch_args": "model_args",
    "arch_args.n_filters": "n_filters num_filters filters num_channels",
    "hyper_search": "hyperparams search_space grid",
    "early_stopping.patience": "patience",
    "early_stopping.monitor_metric": "monitor monitor_metric",
    "early_stopping.min_delta": "min_delta",
    "early_stopping.minimize": "minimize mode",
    "early_stopping": "early_stop",
    "freeze": "frozen freeze_epochs",
    "freeze.groups": "groups freeze_groups",
}
SYNONYMS = {word: name for name, words in _OTHER_WORDS.items() for word in words.split()}
# words of other tools for which there is no key -> what to do instead
HABITS: dict[str, str] = {
    "reload": "a run continues when its command is repeated; --resume insists on it",
    "num_channels": 'an argument of the net: "arch_args": {"num_channels": N} with "arch": "sign_net", the net of the '
    "CS230 template (see experiments/base_model); simple_cnn calls it n_filters",
    "n_layers": "no net of this kit takes a number of layers; choose a deeper one, as --arch=resnet9 or resnet18 "
    "(a net of your own: --arch_args.n_layers=N)",
}
HABITS["num_layers"] = HABITS["n_layers"]


def suggest(name: str, section: str = "") -> str:
    """Suggest what `name`, written in `section`, was probably meant to be."""
    word = name.lower().replace("-", "_")[:60]
    if word.rpartition(".")[2] in HABITS:
        return HABITS[word.rpartition(".")[2]]
    if word.startswith("model."):
        return f"did you mean 'arch_args.{word[6:]}'?"
    meant = SYNONYMS.get(word, word)
    if section and (meant in Keys.model_fields or meant in ALIASES):
        return f"{meant} is a key of its own, outside {section}"
    # a key of another section
    homes = [home for home, cls in SECTIONS.items() if word in cls.model_fields and word == meant]
    home, _, inner = meant.partition(".") if "." in meant else (homes[0] if homes else "", "", word)
    if home and section != home and home in SECTIONS and inner == word:
        return f"{word} belongs in {home}: {home}.{word}"
    # a synonym of a key
    if meant != word:
        return f"did you mean {meant.removeprefix(section + '.')!r}?"
    # a misspelled key
    names = list(SECTIONS[section].model_fields) if section else [*Keys.model_fields, *ALIASES, "base"]
    near = [] if section else difflib.get_close_matches(word, names, 1) or difflib.get_close_matches(word, SYNONYMS, 1)
    return f"did you mean {SYNONYMS.get(near[0], near[0])!r}?" if near else nearest(word, names)


def refuse_unknown(source: str, name: str) -> NoReturn:
    """UserError for a key that does not exist, with the nearest one."""
    shown = f"--{shorten(name)[1:-1]}" if source == "command line" else shorten(name)
    raise UserError(f"{source}: unknown key {shown}; {suggest(name)}")


def refuse_unknown_keys(source: str, names: list[str]) -> None:
    """UserError when several of `names` are no keys: all of them in one line, each with what it was meant to be."""
    unknown = [name for name in names if ALIASES.get(name, name) not in Keys.model_fields and "." not in name]
    if len(unknown) > 1:
        each = "; ".join(f"{shorten(name)}: {suggest(name)}" for name in unknown)
        raise UserError(f"{source}: {len(unknown)} unknown keys: {each}")


def alias_of(name: str) -> str:
    """The alias of a key; the key itself when it has none."""
    return next((alias for alias, real in ALIASES.items() if real == name), name)


def key_path(name: str, source: str) -> list[str]:
    """The parts of a dotted name, canonical. UserError with the nearest key when there is no such key."""
    top, *rest = name.split(".")
    top = ALIASES.get(top, top)
    if top not in Keys.model_fields or "" in rest:
        refuse_unknown(source, name)
    if not rest:
        return [top]
    if top not in (*SECTIONS, *FREE):
        raise UserError(f"{source}: unknown key {shorten(name)}; {top} is not a section and has no keys of its own")
    if top in SECTIONS:
        is_too_deep = len(rest) > 1 and f"{top}.{rest[0]}" not in FREE
        if rest[0] not in SECTIONS[top].model_fields or is_too_deep:
            raise UserError(f"{source}: unknown key {shorten(name)}; {suggest(rest[0], top)}")
    return [top, *rest]


def use_canonical_names(values: JsonObject, source: str) -> JsonObject:
    """`values` by canonical names, in hyper_search too. UserError for an unknown key, or one given twice."""
    result: JsonObject = {}
    refuse_unknown_keys(source, list(values))
    for name, value in values.items():
        if "." in name and name.split(".")[0] in SECTIONS:
            top, rest = name.split(".", 1)
            raise UserError(f"{source}: unknown key {shorten(name)}; write {shorten({top: {rest: value}})[1:-1]}")
        if "." in name:
            refuse_unknown(source, name)
        (real,) = key_path(name, source)
        if real in result:
            raise UserError(f"{source}: {real} and {alias_of(real)} are the same key; give one of them")
        if real == "hyper_search" and isinstance(value, dict):
            value = _use_canonical_names_in_space(value, source)
        result[real] = value
    return result


def _use_canonical_names_in_space(space: JsonObject, source: str) -> JsonObject:
    result: JsonObject = {}
    for name, values in space.items():
        path = key_path(name, f"{source}: hyper_search")
        if path[0] in ("hyper_search", "search", "data_dir"):
            raise UserError(f"{source}: hyper_search: {shorten(name)} cannot be searched")
        real = ".".join(path)
        if real in result:
            raise UserError(f"{source}: hyper_search: {real} and {alias_of(real)} are the same key; give one of them")
        result[real] = values
    return result
