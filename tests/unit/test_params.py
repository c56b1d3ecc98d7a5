"""params.json in all its forms: what is accepted, what is refused and in which words, what is generated."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import params as params_module
from params import (
    ALIASES,
    SECTIONS,
    Params,
    deep_merge,
    from_resolved,
    from_written,
    load,
    load_written,
    parse_overrides,
)
from params.generate import docs, schema
from params.jsonc import MAX_BYTES, without_comments
from params.keys import Keys
from params.names import SYNONYMS
from utils import UserError

ROOT = Path(params_module.__file__).resolve().parents[1]


def write(folder: Path, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "params.json").write_text(text, encoding="utf-8")
    return folder


def complaint(function: Any, *args: Any) -> str:
    """The one line that the user sees."""
    with pytest.raises(UserError) as caught:
        function(*args)
    text = str(caught.value)
    assert len(text.splitlines()) == 1, text
    assert len(text) < 900, text
    assert caught.value.code == 2
    return text


# --- what is accepted -------------------------------------------------------------------------------


def test_empty_file_gives_every_default(tmp_path: Path) -> None:
    params = load(write(tmp_path, "{}"))
    assert (params.arch, params.batch_size, params.learning_rate, params.scheduler) == (
        "simple_cnn",
        128,
        0.05,
        "one_cycle",
    )
    assert params.given == frozenset()
    assert params.folder == tmp_path
    assert list(params.resolved()) == list(Keys.model_fields)
    assert params.no_effect() == []


def test_comments_and_trailing_commas(tmp_path: Path) -> None:
    text = """// the net
    {   "$schema": "../../params.schema.json",
        "arch": "net.py:A//b", // not a comment: "net.py:A//b"
        "arch_args": {"url": "http://x//y,}", "list": [1, 2, ], },
        ////////////////////////////////////////////////////////////////////////
        "lr_schedule": [[3, 0.1], [100, 0.01],], // , ] }
        // "wd": 1
    }"""
    params = load(write(tmp_path, text))
    assert params.arch == "net.py:A//b"
    assert params.arch_args == {"url": "http://x//y,}", "list": [1, 2]}
    assert params.lr_schedule == [[3.0, 0.1], [100.0, 0.01]]
    assert params.given == {"arch", "arch_args", "lr_schedule"}


@pytest.mark.parametrize(
    "text", ["[1,,]", "{,}", "[,]", '{"a":,}', ",", "// only a comment", '{"a" "b"}', '{"a": 1} 2']
)
def test_only_single_trailing_commas_are_forgiven(tmp_path: Path, text: str) -> None:
    assert "line 1, column" in complaint(load, write(tmp_path, text))


@pytest.mark.parametrize(
    "hard", ["/" * 200_000, '"' + '\\"' * 100_000, ", " * 100_000, "[" * 100_000, '{"a":' * 50_000]
)
def test_reading_takes_linear_time(tmp_path: Path, hard: str) -> None:
    start = time.perf_counter()
    complaint(load, write(tmp_path, '{"a": 1, ' + hard))
    assert time.perf_counter() - start < 3


def test_blanking_keeps_line_and_column() -> None:
    text = '{"a": [1,], // "x"\n "b": 2,}'
    assert len(without_comments(text)) == len(text)
    assert json.loads(without_comments(text)) == {"a": [1], "b": 2}


ACCEPTED: list[tuple[dict[str, Any], str, Any]] = [
    ({"cuda": False}, "cuda", 0),
    ({"compile": True}, "compile", 1),
    ({"pretrain": True}, "pretrain", 1),
    ({"pretrained": "w.pth"}, "pretrain", "w.pth"),
    ({"num_epochs": 3}, "num_epochs", 3.0),
    ({"num_epochs": 0.5}, "num_epochs", 0.5),
    ({"learning_rate": [0.001, 0.01, 0.1]}, "learning_rate", [0.001, 0.01, 0.1]),
    ({"learning_rate": 1}, "learning_rate", 1.0),
    ({"weight_decay": 0}, "wd", 0.0),
    ({"image_size": 64}, "im_sz", 64),
    ({"eval_batch_size": 7}, "bs_test", 7),
    ({"num_classes": 10}, "n_clas", 10),
    ({"head_dropout": 0.5}, "ps", 0.5),
    ({"limit_train": 1}, "limit_train", 1),
    ({"limit_train": 5000}, "limit_train", 5000),
    ({"limit_train": 0.25}, "limit_train", 0.25),
    ({"normalize": [[0, 0, 0], [1, 1, 1]]}, "normalize", [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
    ({"class_weights": "balanced"}, "class_weights", "balanced"),
    ({"class_weights": [1, 2]}, "class_weights", [1.0, 2.0]),
    (
        {"augment": ["HorizontalFlip", {"name": "ColorJitter", "p": 0.5}]},
        "augment",
        ["HorizontalFlip", {"name": "ColorJitter", "p": 0.5}],
    ),
    ({"augment": []}, "augment", []),
    ({"num_workers": 0}, "num_workers", 0),
    ({"keep_last": 0}, "keep_last", 0),
    ({"observers": []}, "observers", []),
    ({"seed": 2**62}, "seed", 2**62),
    ({"early_stopping": None}, "early_stopping", None),
    (
        {"hyper_search": {"ps": [0.5, 0.75], "arch": ["resnet18", "lenet"]}},
        "hyper_search",
        {"ps": [0.5, 0.75], "arch": ["resnet18", "lenet"]},
    ),
    ({"hyper_search": {"weight_decay": [0, 1]}}, "hyper_search", {"wd": [0, 1]}),
    (
        {"hyper_search": {"learning_rate": {"min": 1e-5, "max": 0.1, "log": True}}},
        "hyper_search",
        {"learning_rate": {"min": 1e-5, "max": 0.1, "log": True}},
    ),
    (
        {"hyper_search": {"batch_size": {"min": 16, "max": 64, "int": 1}}},
        "hyper_search",
        {"batch_size": {"min": 16, "max": 64, "int": 1}},
    ),
    (
        {"hyper_search": {"optimizer": {"choice": ["sgd", "adam"]}}},
        "hyper_search",
        {"optimizer": {"choice": ["sgd", "adam"]}},
    ),
    (
        {"hyper_search": {"learning_rate": [[0.1, 0.2], [1, 2]]}},
        "hyper_search",
        {"learning_rate": [[0.1, 0.2], [1, 2]]},
    ),
    (
        {"hyper_search": {"early_stopping.patience": [1, 2], "arch_args.n_filters": [8, 16]}},
        "hyper_search",
        {"early_stopping.patience": [1, 2], "arch_args.n_filters": [8, 16]},
    ),
    ({"hyper_search": {"accumulate": [1, 256]}}, "hyper_search", {"accumulate": [1, 256]}),
]


@pytest.mark.parametrize(
    ("content", "key", "value"), ACCEPTED, ids=[json.dumps(content)[:50] for content, _, _ in ACCEPTED]
)
def test_accepted(tmp_path: Path, content: dict[str, Any], key: str, value: Any) -> None:
    params = load(write(tmp_path, content))
    got = getattr(params, key)
    assert got == value
    assert type(got) is type(value)
    assert params.given == {key}


def test_sections_are_objects(tmp_path: Path) -> None:
    params = load(
        write(
            tmp_path,
            {
                "freeze": {"groups": 2, "epochs": 1},
                "early_stopping": {"patience": 3},
                "search": {"sampler": "tpe", "num_trials": 30, "seeds": [0, 3]},
            },
        )
    )
    assert params.freeze
    assert params.freeze.groups == 2
    assert params.freeze.epochs == 1.0
    stop = params.early_stopping
    assert stop
    assert (stop.patience, stop.monitor_metric, stop.min_delta, stop.minimize) == (3, "loss", 0.0, None)
    assert (params.search.sampler, params.search.num_trials, params.search.seeds) == ("tpe", 30, [0, 3])


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Params().batch_size = 3  # type: ignore


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_bytes(b'\xef\xbb\xbf{"seed": 4}')
    assert load(tmp_path / "params.json").seed == 4


# --- what is refused --------------------------------------------------------------------------------

REFUSED: list[tuple[str, list[str]]] = [
    # unknown keys: the nearest one
    ('{"lr": 0.1}', ['unknown key "lr"', "did you mean 'learning_rate'?"]),
    ('{"bs": 1}', ["did you mean 'batch_size'?"]),
    ('{"epochs": 1}', ["did you mean 'num_epochs'?"]),
    ('{"n_epochs": 1}', ["did you mean 'num_epochs'?"]),
    ('{"model": "lenet"}', ["did you mean 'arch'?"]),
    ('{"net": "lenet"}', ["did you mean 'arch'?"]),
    ('{"backbone": "lenet"}', ["did you mean 'arch'?"]),
    ('{"workers": 1}', ["did you mean 'num_workers'?"]),
    ('{"dropout": 0.1}', ["did you mean 'ps'?"]),
    ('{"learning_rte": 0.1}', ["did you mean 'learning_rate'?"]),
    ('{"Learning-Rate": 0.1}', ["did you mean 'learning_rate'?"]),
    ('{"wieght_decay": 0.1}', ["did you mean 'weight_decay'?"]),
    ('{"patience": 3}', ["patience belongs in early_stopping: early_stopping.patience"]),
    ('{"monitor": "loss"}', ["did you mean 'early_stopping.monitor_metric'?"]),
    ('{"monitor_metric": "loss"}', ["belongs in early_stopping"]),
    ('{"num_trials": 3}', ["num_trials belongs in search: search.num_trials"]),
    ('{"n_filters": 3}', ["did you mean 'arch_args.n_filters'?"]),
    ('{"model.n_filters": 3}', ["did you mean 'arch_args.n_filters'?"]),
    ('{"early_stopping.patience": 3}', ['write "early_stopping": {"patience": 3}']),
    ('{"early_stopping": {"patence": 3}}', ['unknown key "early_stopping.patence"', "did you mean 'patience'?"]),
    ('{"early_stopping": {"monitor": "loss"}}', ["did you mean 'monitor_metric'?"]),
    ('{"early_stopping": {"lr": 0.1}}', ["learning_rate is a key of its own, outside early_stopping"]),
    ('{"search": {"patience": 3}}', ["patience belongs in early_stopping"]),
    ('{"qqqqqqqq": 3}', ['unknown key "qqqqqqqq"', "possible: "]),
    ('{"": 3}', ['unknown key ""']),
    ('{"wd": 0, "weight_decay": 0}', ["wd and weight_decay are the same key"]),
    # types and ranges
    ('{"batch_size": true}', ["batch_size: true given", "integer at least 1"]),
    ('{"batch_size": 10.0}', ["batch_size: 10.0 given"]),
    ('{"batch_size": "10"}', ['batch_size: "10" given']),
    ('{"batch_size": 0}', ["batch_size: 0 given", "at least 1"]),
    ('{"batch_size": null}', ["batch_size: null given"]),
    (
        '{"learning_rate": "0.1"}',
        ['learning_rate: "0.1" given', "number greater than 0, or list of (number greater than 0)"],
    ),
    ('{"learning_rate": 0}', ["learning_rate: 0 given"]),
    ('{"learning_rate": []}', ["learning_rate: [] given"]),
    ('{"learning_rate": [0.1, -1]}', ["learning_rate[1]: -1 given"]),
    ('{"learning_rate": true}', ["learning_rate: true given"]),
    ('{"momentum": false}', ["momentum: false given"]),
    ('{"ps": 1}', ["ps: 1 given", "less than 1"]),
    ('{"ema": 1.5}', ["ema: 1.5 given"]),
    ('{"cuda": 2}', ["cuda: 2 given", "0 | 1 | true | false"]),
    ('{"cuda": "yes"}', ["cuda:"]),
    ('{"compile": null}', ["compile: null given"]),
    ('{"pretrain": 2}', ["pretrain: 2 given"]),
    ('{"pretrain": ""}', ['pretrain: "" given']),
    ('{"seed": -1}', ["seed: -1 given"]),
    ('{"arch": 3}', ["arch: 3 given", "string"]),
    ('{"arch_args": [1]}', ["arch_args: [1] given", "object"]),
    ('{"freeze": {"groups": 2}}', ["freeze.epochs: missing"]),
    ('{"freeze": {"groups": 0, "epochs": 1}}', ["freeze.groups: 0 given"]),
    ('{"freeze": 2}', ["freeze: 2 given", "object with groups, epochs, or list of", "or null"]),
    ('{"sampler": "balancd"}', ['sampler: "balancd" given', "did you mean 'balanced'?"]),
    ('{"resize": "stretch"}', ["resize:", "'squash'"]),
    ('{"scheduler": "cosin"}', ["did you mean 'cosine'?"]),
    ('{"device": "tpu"}', ["device:", "'cuda'"]),
    ('{"im_sz": 4}', ["im_sz: 4 given"]),
    ('{"valid_fraction": 1}', ["valid_fraction: 1 given"]),
    ('{"limit_train": 0}', ["limit_train: 0 given"]),
    ('{"limit_train": 1.5}', ["limit_train: 1.5 given"]),
    ('{"mixup": -0.1}', ["mixup: -0.1 given"]),
    ('{"num_epochs": 0}', ["num_epochs: 0 given"]),
    ('{"grad_clip": 0}', ["grad_clip: 0 given", "null"]),
    ('{"class_weights": [1, 0]}', ["class_weights[1]: 0 given"]),
    ('{"class_weights": []}', ["class_weights: [] given"]),
    ('{"metrics": []}', ["metrics: [] given"]),
    ('{"metrics": "accuracy"}', ['metrics: "accuracy" given', "list of (string)"]),
    ('{"metrics": ["f1", "f1"]}', ["metrics:", "at most once"]),
    ('{"early_stopping": {"patience": 0}}', ["early_stopping.patience: 0 given"]),
    ('{"early_stopping": {"minimize": 3}}', ["early_stopping.minimize: 3 given"]),
    ('{"early_stopping": {"monitor_metric": "f1"}}', ["early_stopping.monitor_metric:", "accuracy, loss"]),
    ('{"normalize": [[0, 0, 0], [1, 1, 0]]}', ["normalize:", "> 0"]),
    ('{"normalize": [[0, 0, 0]]}', ["normalize"]),
    ('{"normalize": "imagnet"}', ["did you mean 'imagenet'?"]),
    ('{"lr_schedule": [[3, 0.1], [3, 0.01]]}', ["lr_schedule:", "rise"]),
    ('{"lr_schedule": [[3, 0.1, 1]]}', ["lr_schedule[0]"]),
    ('{"lr_schedule": []}', ["lr_schedule: [] given"]),
    ('{"lr_schedule": [[3, 0]]}', ["lr_schedule[0][1]: 0 given"]),
    ('{"augment": [{"p": 1}]}', ["augment:", '"name"']),
    ('{"accumulate": 200}', ["accumulate: 200 given", "batch_size, 128"]),
    # search
    ('{"hyper_search": {"lr": [1]}}', ["hyper_search", "did you mean 'learning_rate'?"]),
    ('{"hyper_search": {"ps": []}}', ["hyper_search.ps: [] given"]),
    ('{"hyper_search": {"ps": 0.5}}', ["hyper_search.ps: 0.5 given"]),
    ('{"hyper_search": {"ps": [0.5, 7]}}', ["hyper_search: ps: 7 given"]),
    ('{"hyper_search": {"ps": {"min": 0.5}}}', ["hyper_search.ps:", '"max"']),
    ('{"hyper_search": {"ps": {"min": 0.5, "max": 0.1}}}', ["min below max"]),
    ('{"hyper_search": {"wd": {"min": 0, "max": 0.1, "log": true}}}', ["> 0 with log"]),
    ('{"hyper_search": {"ps": {"min": true, "max": 2}}}', ["numbers for min and max"]),
    ('{"hyper_search": {"ps": {"low": 0, "high": 0.5}}}', ["hyper_search.ps"]),
    ('{"hyper_search": {"ps": {"choice": []}}}', ["hyper_search.ps"]),
    ('{"hyper_search": {"early_stopping.patience": [0]}}', ["early_stopping.patience: 0 given"]),
    ('{"hyper_search": {"early_stopping.patence": [1]}}', ["did you mean 'patience'?"]),
    ('{"hyper_search": {"wd": [1], "weight_decay": [1]}}', ["same key"]),
    ('{"hyper_search": {"search": [1]}}', ["cannot be searched"]),
    ('{"hyper_search": [1]}', ["hyper_search: [1] given"]),
    ('{"search": {"sampler": "tpee"}}', ["search.sampler:", "did you mean 'tpe'?"]),
    ('{"search": {"seeds": 0}}', ["search.seeds: 0 given"]),
    ('{"search": {"seeds": [1, -1]}}', ["search.seeds[1]: -1 given"]),
    ('{"search": {"folds": 1}}', ["search.folds: 1 given"]),
    ('{"search": null}', ["search: null given"]),
    # JSON itself
    ('{"wd": 1, "wd": 2}', ['key "wd" is given twice']),
    ('{"arch_args": {"a": 1, "a": 2}}', ['key "a" is given twice']),
    ('{"wd": NaN}', ["NaN"]),
    ('{"wd": -Infinity}', ["Infinity"]),
    ('{"wd": 1e400}', ["1e400", "beyond"]),
    ('{"wd": 1' + "0" * 400 + "}", ["wd: 1000"]),
    ('{"batch_size": 1' + "0" * 5000 + "}", ["digits"]),
    ('{"wd": 1', ["line 1, column"]),
    ('{\n "wd": 1\n "ps": 0}', ["line 3, column 2"]),
    ("", ["line 1"]),
    ("[1]", ["[1] given", "an object"]),
    ("null", ["null given", "an object"]),
    ('{"arch_args": {"a": "\\ud800"}}', ["surrogate"]),
    ('{"arch_args": ' + '{"a":' * 40 + "1" + "}" * 41, ["nested too deeply"]),
    ("[" * 200_000, ["nested too deeply"]),
    ('{"arch": "' + "x" * MAX_BYTES + '"}', ["1 MiB"]),
    ('{"base": null}', ["base: null given"]),
    ('{"base": ""}', ['base: "" given']),
    ('{"base": "nowhere"}', ['base: "nowhere"', "no experiment folder"]),
    ('{"base": "' + "x" * 5000 + '"}', ["no experiment folder"]),
    ('{"base": "a\\u0000\\rb"}', ["no experiment folder"]),
    ('{"base": "."}', ["loop"]),
    ('{"a\\rb\\u2028c": 1}', ["unknown key"]),
]


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=[text[:50] for text, _ in REFUSED])
def test_refused_in_one_line(tmp_path: Path, text: str, words: list[str]) -> None:
    line = complaint(load, write(tmp_path, text))
    assert line.startswith(str(tmp_path / "params.json"))
    for word in words:
        assert word in line
    assert os.listdir(tmp_path) == ["params.json"]


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "no such file" in complaint(load, tmp_path)
    assert "no such file" in complaint(load, tmp_path / "missing.json")
    assert "no such file" in complaint(load, tmp_path, {"wd": 1})
    assert "name too long" in complaint(load, tmp_path / ("x" * 300))
    (tmp_path / "params.json").write_bytes('{"arch": "é"}'.encode("latin-1"))
    assert "not UTF-8" in complaint(load, tmp_path)
    (tmp_path / "params.json").write_bytes('{"arch": "e"}'.encode("utf-16"))
    assert "not UTF-8" in complaint(load, tmp_path)
    (tmp_path / "params.json").unlink()
    (tmp_path / "params.json").mkdir()
    complaint(load, tmp_path)
    os.mkfifo(tmp_path / "pipe.json")
    complaint(load, tmp_path / "pipe.json")


def test_every_synonym_leads_to_a_key() -> None:
    for word, wanted in SYNONYMS.items():
        assert word not in Params.model_fields
        assert word not in ALIASES
        if wanted != "base":
            params_module.key_path(wanted, "test")


# --- base -------------------------------------------------------------------------------------------


def test_base_chain(tmp_path: Path) -> None:
    write(
        tmp_path / "a",
        {
            "wd": 0.1,
            "ps": 0.1,
            "early_stopping": {"patience": 3, "min_delta": 0.1},
            "metrics": ["f1", "accuracy"],
        },
    )
    write(tmp_path / "b", {"base": "../a", "ps": 0.2, "early_stopping": {"patience": 5}})
    (tmp_path / "c.json").write_text('{"base": "b/params.json", "metrics": ["accuracy"], "cuda": 0}')
    params = load(tmp_path / "c.json", {"ps": 0.3})
    assert (params.wd, params.ps, params.cuda, params.metrics) == (0.1, 0.3, 0, ["accuracy"])
    assert params.early_stopping
    assert (params.early_stopping.patience, params.early_stopping.min_delta) == (
        5,
        0.1,
    )
    assert params.given == {"wd", "ps", "early_stopping", "metrics", "cuda"}
    stop = {"patience": 5, "min_delta": 0.1}
    everything = {"wd": 0.1, "ps": 0.3, "early_stopping": stop, "metrics": ["accuracy"], "cuda": 0}
    assert load_written(tmp_path / "c.json", {"ps": 0.3}) == everything


def test_null_takes_a_section_of_the_base_away(tmp_path: Path) -> None:
    write(tmp_path / "a", {"early_stopping": {"patience": 3}})
    assert load(write(tmp_path / "b", {"base": "../a", "early_stopping": None})).early_stopping is None


def test_loops_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", {"base": "../b"})
    write(tmp_path / "b", {"base": "../c"})
    write(tmp_path / "c", {"base": "../a"})
    assert "loop" in complaint(load, tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    write(tmp_path / "d", {"base": "../link"})
    assert "loop" in complaint(load, tmp_path / "d")


def test_a_long_chain(tmp_path: Path) -> None:
    write(tmp_path / "0", {"seed": 7})
    for number in range(1, 300):
        write(tmp_path / str(number), {"base": f"../{number - 1}"})
    assert load(tmp_path / "299").seed == 7


def test_paths_of_a_base_keep_their_meaning(tmp_path: Path) -> None:
    base = write(
        tmp_path / "base",
        {
            "arch": "net.py:Net",
            "loss": "/abs/loss.py:Loss",
            "metrics": ["accuracy", "m.py:M"],
            "pretrain": "w.pth",
            "data_dir": "../data",
            "arch_args": {"path": "x.py:y"},
            "search": {"restore_file": "weights/best.safetensors"},
            "hyper_search": {"arch": ["net.py:Net", "lenet"], "pretrain": [0, "w.pth"]},
        },
    )
    own = load(base)
    assert (own.arch, own.pretrain, own.data_dir) == ("net.py:Net", "w.pth", "../data")
    (base / "net.py").write_text("")
    child = load(write(tmp_path / "deep" / "child", {"base": "../../base"}))
    assert child.arch == "../../base/net.py:Net"
    assert (child.folder / "../../base/net.py").is_file()
    assert (child.loss, child.metrics) == ("/abs/loss.py:Loss", ["accuracy", "../../base/m.py:M"])
    assert (child.pretrain, child.data_dir) == ("../../base/w.pth", "../../base/../data")
    assert child.search.restore_file == "../../base/weights/best.safetensors"
    assert child.arch_args == {"path": "x.py:y"}
    assert child.hyper_search == {
        "arch": ["../../base/net.py:Net", "lenet"],
        "pretrain": [0, "../../base/w.pth"],
    }
    grandchild = load(write(tmp_path / "g", {"base": "../deep/child/params.json"}))
    assert (grandchild.folder / str(grandchild.data_dir)).resolve() == tmp_path / "data"
    assert (grandchild.folder / grandchild.arch.split(":")[0]).is_file()


def test_absolute_base_and_symlinked_child(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {"pretrain": "w.pth"})
    assert load(write(tmp_path / "a", {"base": str(base)})).pretrain == str(base / "w.pth")
    write(tmp_path / "elsewhere" / "base", {"pretrain": "other.pth"})
    write(tmp_path / "elsewhere" / "child", {"base": "../base"})
    (tmp_path / "child").symlink_to(tmp_path / "elsewhere" / "child")
    assert load(tmp_path / "child").pretrain == "../base/other.pth"


def test_from_written_for_a_folder_to_come(tmp_path: Path) -> None:
    write(tmp_path / "base", {"ps": 0.5, "pretrain": "w.pth"})
    written = {"base": "../base", "wd": 0.1}
    new = from_written(written, tmp_path / "new")
    assert (new.ps, new.wd, new.pretrain, new.folder) == (0.5, 0.1, "../base/w.pth", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert load(write(tmp_path / "new", written)).resolved() == new.resolved()


def test_another_arch_does_not_inherit_arch_args(tmp_path: Path) -> None:
    write(
        tmp_path / "a",
        {"arch": "simple_cnn", "arch_args": {"n_filters": [8]}, "optimizer_args": {"nesterov": False}},
    )
    child = write(tmp_path / "b", {"base": "../a", "wd": 0})
    assert load(child).arch_args == {"n_filters": [8]}
    assert load(child, {"arch": "simple_cnn"}).arch_args == {"n_filters": [8]}
    assert load(child, {"arch": "lenet"}).arch_args == {}
    assert load(child, {"arch": "lenet", "arch_args": {"x": 1}}).arch_args == {"x": 1}
    assert load(child, {"arch_args": {"x": 1}}).arch_args == {"n_filters": [8], "x": 1}
    assert load(child, {"optimizer": "adam"}).optimizer_args == {}  # the file's belonged to the default, sgd
    assert load(child, {"optimizer": "sgd"}).optimizer_args == {"nesterov": False}
    assert deep_merge({"arch": "a", "arch_args": {"x": 1}}, {"arch": "b"}) == {"arch": "b"}
    assert deep_merge({"arch": "a", "arch_args": {"x": 1}}, {"arch_args": {"y": 2}}) == {
        "arch": "a",
        "arch_args": {"x": 1, "y": 2},
    }


def test_the_line_names_where_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "a", {"ps": 3})
    child = write(tmp_path / "b", {"base": "../a", "wd": 0})
    assert complaint(load, child).startswith(f"{child / '../a/params.json'}: ps: 3 given")
    assert complaint(load, child, {"ps": 4}).startswith("command line: ps: 4 given")
    assert complaint(load, child, {"pz": 4}).startswith("command line: unknown key")
    assert load(child, {"ps": 0.5}).ps == 0.5


# --- the command line -------------------------------------------------------------------------------

FLAGS: list[tuple[list[str], dict[str, Any]]] = [
    (["--learning_rate=0.1"], {"learning_rate": 0.1}),
    (["--learning-rate", "1e-4"], {"learning_rate": 1e-4}),
    (["--learning_rate=.5"], {"learning_rate": 0.5}),
    (["--learning_rate=[0.1, 0.2]"], {"learning_rate": [0.1, 0.2]}),
    (["--weight-decay=0"], {"wd": 0}),
    (
        ["--early_stopping.patience=3", "--early-stopping.min-delta", "-0.5"],
        {"early_stopping": {"patience": 3, "min_delta": -0.5}},
    ),
    (["--lr_schedule", "[[3, 0.1], [100, 0.01]]"], {"lr_schedule": [[3, 0.1], [100, 0.01]]}),
    (["--arch=lenet", "--arch_args.n_filters=10"], {"arch": "lenet", "arch_args": {"n_filters": 10}}),
    (["--model=lenet", "--model.n_filters=10"], {"arch": "lenet", "arch_args": {"n_filters": 10}}),
    (["--arch_args.block.size=3"], {"arch_args": {"block": {"size": 3}}}),
    (['--arch_args={"a": 1}', "--arch_args.b=2"], {"arch_args": {"a": 1, "b": 2}}),
    (["--arch=timm/resnet18=x"], {"arch": "timm/resnet18=x"}),
    (["--seed=1", "--seed=2"], {"seed": 2}),
    (["--cuda=true", "--compile=False"], {"cuda": True, "compile": False}),
    (["--early_stopping=null"], {"early_stopping": None}),
    (["--freeze=None"], {"freeze": None}),
    (["--augment=none"], {"augment": "none"}),
    (["--pretrain=my weights.pth"], {"pretrain": "my weights.pth"}),
    (['--arch="3"'], {"arch": "3"}),
    (["--wd", "-1"], {"wd": -1}),
    (["--arch="], {"arch": ""}),
    (["--hyper_search.learning_rate=[0.1, 0.2]"], {"hyper_search": {"learning_rate": [0.1, 0.2]}}),
    (["--hyper_search.early_stopping.patience=[1]"], {"hyper_search": {"early_stopping.patience": [1]}}),
    (
        ["--hyper_search.weight_decay.min=0.1", "--hyper_search.wd.max=1"],
        {"hyper_search": {"wd": {"min": 0.1, "max": 1}}},
    ),
    (["--search.num_trials=3"], {"search": {"num_trials": 3}}),
    ([], {}),
]


@pytest.mark.parametrize(("argv", "values"), FLAGS, ids=[" ".join(argv) for argv, _ in FLAGS])
def test_flags(argv: list[str], values: dict[str, Any]) -> None:
    assert parse_overrides(argv) == values
    assert json.dumps(parse_overrides(argv)) == json.dumps(values)  # types too


BAD_FLAGS: list[tuple[list[str], list[str]]] = [
    (["--lr=0.1"], ["unknown key --lr;", "did you mean 'learning_rate'?"]),
    (["--learning_rte", "0.1"], ["did you mean 'learning_rate'?"]),
    (["--patience=3"], ["patience belongs in early_stopping: early_stopping.patience"]),
    (["--early_stopping.patence=3"], ["did you mean 'patience'?"]),
    (["--early_stopping.patience.x=3"], ["unknown key"]),
    (["--learning_rate.x=3"], ["learning_rate is not a section and has no keys of its own"]),
    (["--arch_args.=3"], ["unknown key"]),
    (["--hyper_search.lr=[1]"], ["did you mean 'learning_rate'?"]),
    (["--learning_rate"], ["--learning_rate needs a value"]),
    (["--cuda"], ["--cuda needs a value"]),
    (["--cuda", "--seed=1"], ["--cuda needs a value"]),
    (["--bla"], ["unknown key"]),
    (["lenet"], ["--key=value"]),
    (["-wd", "1"], ["--key=value"]),
    (["--"], ["--key=value"]),
    (["--=3"], ["--key=value"]),
    (["--wd=1", "--weight_decay=1"], ["--wd and --weight_decay are the same key"]),
    (["--model=a", "--arch=b"], ["same key"]),
    (["--lr_schedule=[[3, 0.1"], ["--lr_schedule", "line 1, column"]),
    (['--arch_args={"a": 1, "a": 2}'], ["given twice"]),
    (["--wd=NaN"], ["NaN"]),
    (["--wd=1e400"], ["beyond"]),
    (["--seed=" + "9" * 5000], ["digits"]),
    (["--arch=\udc80"], ["not UTF-8"]),
    (["--arch_args=" + "[" * 100_000], ["nested too deeply"]),
    (["--early_stopping=null", "--early_stopping.patience=3"], ["value of its own"]),
    (["--base=x"], ["unknown key"]),
    (["--arch_args.a\rb"], ["needs a value"]),
    (["--arch_args.a\rb=[1"], ["line 1"]),
]


@pytest.mark.parametrize(
    ("argv", "words"),
    BAD_FLAGS,
    ids=[" ".join(argv)[:40].encode("ascii", "replace").decode() for argv, _ in BAD_FLAGS],
)
def test_bad_flags(argv: list[str], words: list[str]) -> None:
    line = complaint(parse_overrides, argv)
    assert line.startswith("command line")
    for word in words:
        assert word in line


def test_overrides_win_and_merge(tmp_path: Path) -> None:
    folder = write(tmp_path, {"wd": 0.1, "early_stopping": {"patience": 3, "min_delta": 0.5}})
    params = load(folder, parse_overrides(["--weight_decay=0.2", "--early_stopping.patience=9", "--cuda=false"]))
    assert (params.wd, params.cuda) == (0.2, 0)
    assert params.early_stopping
    assert (params.early_stopping.patience, params.early_stopping.min_delta) == (
        9,
        0.5,
    )
    assert params.given == {"wd", "early_stopping", "cuda"}
    assert complaint(load, folder, parse_overrides(["--wd=abc"])).startswith('command line: wd: "abc" given')


# --- resolved, replace, no effect -------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [content for content, _, _ in ACCEPTED], ids=lambda content: json.dumps(content)[:50]
)
def test_resolved_comes_back(tmp_path: Path, content: dict[str, Any]) -> None:
    params = load(write(tmp_path, content))
    text = json.dumps(params.resolved())
    back = from_resolved(json.loads(text), tmp_path)
    assert json.dumps(back.resolved()) == text
    assert back.folder == tmp_path
    default = Params().resolved()
    assert back.given == {name for name, value in params.resolved().items() if value != default[name]}


def test_from_resolved_is_strict(tmp_path: Path) -> None:
    assert "unknown key" in complaint(from_resolved, {"pinned": {}}, tmp_path)
    assert "batch_size: 0 given" in complaint(from_resolved, {"batch_size": 0}, tmp_path)


def test_replace(tmp_path: Path) -> None:
    params = load(write(tmp_path, {"ps": 0.5}))
    other = params.replace(num_epochs=3, n_clas=10)
    assert (other.num_epochs, other.n_clas, other.ps) == (3.0, 10, 0.5)
    assert other.given == {"ps"}
    assert other.folder == tmp_path
    assert params.n_clas is None
    assert "batch_size: 0 given" in complaint(lambda: params.replace(batch_size=0))
    assert "unknown key" in complaint(lambda: params.replace(lr=0))


IDLE: list[tuple[dict[str, Any], list[str]]] = [
    ({"pct_start": 0.2, "scheduler": "cosine"}, ["pct_start: only scheduler one_cycle"]),
    ({"div_factor": 10, "lr_schedule": [[1, 0.1]]}, ["div_factor: lr_schedule"]),
    ({"scheduler": "step", "lr_schedule": [[1, 0.1]]}, ["scheduler: lr_schedule"]),
    ({"warmup": 1}, ["warmup: one_cycle"]),
    ({"warmup": 1, "scheduler": "cosine"}, []),
    ({"warmup": 1, "lr_schedule": [[1, 0.1]]}, ["warmup: lr_schedule"]),
    ({"learning_rate": 0.1, "lr_schedule": [[1, 0.1]]}, ["learning_rate: lr_schedule"]),
    ({"learning_rate": [0.1, 1], "lr_schedule": [[1, 0.1]]}, []),
    ({"momentum": 0.5, "optimizer": "adamw"}, ["momentum: only sgd"]),
    ({"momentum": 0.5, "optimizer": "rmsprop"}, []),
    ({"momentum": 0.5, "optimizer_args": {"momentum": 0.1}}, ["momentum: optimizer_args"]),
    ({"label_smoothing": 0.1, "loss": "focal", "class_weights": "balanced"}, ["label_smoothing: only"]),
    ({"cuda": 0, "device": "cuda"}, ["cuda: device"]),
    ({"cuda": 0}, []),
    ({"early_stopping": {"patience": 10}}, ["early_stopping: its patience"]),
    ({"early_stopping": {"patience": 9}}, []),
    ({"hyper_search": {"ps": [0.1]}, "search": {"parallel": 2}}, []),
]


@pytest.mark.parametrize(("content", "lines"), IDLE, ids=[json.dumps(content) for content, _ in IDLE])
def test_no_effect(tmp_path: Path, content: dict[str, Any], lines: list[str]) -> None:
    found = load(write(tmp_path, content)).no_effect()
    assert len(found) == len(lines)
    for line, start in zip(found, lines, strict=True):
        assert line.startswith(start)


# --- anything at all --------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = st.sampled_from([*Params.model_fields, *ALIASES, *SYNONYMS, "base", "$schema", "min", "max", "choice", "name"])
NAMES |= st.sampled_from([name for cls in SECTIONS.values() for name in cls.model_fields]) | st.text(max_size=5)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=3), max_leaves=8)


def assert_one_line(error: UserError, begins: str = "") -> None:
    assert len(str(error).splitlines()) == 1
    assert str(error).startswith(begins)


def whole(params: Params) -> None:
    """`params` are plain JSON and come back."""
    text = json.dumps(params.resolved(), allow_nan=False)
    assert json.dumps(from_resolved(json.loads(text), params.folder).resolved()) == text
    params.no_effect()


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_any_json_gives_params_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    try:
        whole(load(write(folder, content)))
    except UserError as error:
        assert_one_line(error, str(folder))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.text('{}[],:"/ \n\\1a', max_size=40))
def test_any_text_gives_params_or_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "text"
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        whole(load(folder))
    except UserError as error:
        assert_one_line(error)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(NAMES, VALUES.map(json.dumps) | st.text(max_size=8)), max_size=3))
def test_any_flags_give_values_or_one_line(flags: list[tuple[str, str]]) -> None:
    try:
        values = parse_overrides([f"--{name}={text}" for name, text in flags])
        whole(from_written(values, Path("nowhere")))
    except UserError as error:
        assert_one_line(error)


# --- what is generated ------------------------------------------------------------------------------


def test_schema_agrees_with_validation(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(validator.schema)
    for content, _, _ in ACCEPTED:
        assert list(validator.iter_errors(content)) == [], content
    assert list(validator.iter_errors({"$schema": "x", "base": "../a"})) == []
    for content in (
        {"lr": 1},
        {"wd": 0, "weight_decay": 0},
        {"batch_size": 0},
        {"sampler": "x"},
        {"search": {"x": 1}},
    ):
        assert list(validator.iter_errors(content)), content


def test_every_key_is_documented() -> None:
    editors, text = schema(), docs()
    properties = editors["properties"]
    for name, field in Params.model_fields.items():
        assert field.description
        assert f"| `{name}` | " in text
        assert properties[name]["description"] == field.description
    for alias in ALIASES:
        assert f"| `{alias}` |" in text
        assert alias in properties
    for section, cls in SECTIONS.items():
        assert all(f"| `{section}.{name}` |" in text for name in cls.model_fields)
    assert not editors["additionalProperties"]
    assert properties["wd"]["default"] == 5e-4


def test_import_is_light() -> None:
    code = "import sys, params; assert not {'torch', 'numpy', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("text", "place", "mistake"),
    [
        ('{"arch": "lenet" "wd": 2}', "line 1, column 18", 'a comma is missing before "wd"'),
        ("{'arch': 'lenet'}", "line 1, column 2", "single quotes; JSON takes double quotes"),
        ("{\"arch\": 'lenet'}", "line 1, column 10", "single quotes; JSON takes double quotes"),
        ('{"arch": "lenet",,}', "line 1, column 18", "one comma too many"),
        ('{\n  "arch": lenet\n}', "line 2, column 11", 'a text takes double quotes: "lenet"; a comment begins with //'),
        ('{"arch": "lenet"', "line 1, column 17", "the text ends too early: a closing } or ] is missing"),
        ("arch: lenet", "line 1, column 1", 'this is not JSON, which begins with {, as in {"arch": "resnet9"}'),
        ('{"pretrain": True}', "line 1, column 14", "True is Python; JSON writes true"),
        ('{"lr": .1}', "line 1, column 8", ".1 is not a JSON number; write 0.1"),
        ('{"arch" = "lenet"}', "line 1, column 9", 'a colon is needed between a key and its value, not "="'),
        ('{"arch": }', "line 1, column 10", "a value is missing before }"),
        ("{arch: 3}", "line 1, column 2", "a key takes double quotes"),
        ('{"arch": "lenet}', "line 1, column 10", 'the closing " of a text is missing on this line'),
        ('{"data_dir": "C:\\data"}', "line 1, column 17", "a backslash in a text is written twice"),
        ('{"wd": 1}}', "line 1, column 10", "something follows the closing }"),
        ("", "line 1, column 1", "the file is empty; {} is enough"),
    ],
)
def test_a_mistake_in_json_is_said_as_a_person_made_it(tmp_path, text, place, mistake):
    (tmp_path / "params.json").write_text(text)
    with pytest.raises(UserError) as raised:
        params_module.load(tmp_path)
    assert f"params.json: {place}: {mistake}" in str(raised.value)


def test_a_section_given_as_a_number_is_answered_with_an_example(tmp_path):
    for key, example in (("early_stopping", '{"patience": 3}'), ("freeze", '{"groups": 2, "epochs": 1}')):
        (tmp_path / "params.json").write_text(f'{{"{key}": 3}}')
        with pytest.raises(UserError) as raised:
            params_module.load(tmp_path)
        assert f'for example "{key}": {example}' in str(raised.value)
