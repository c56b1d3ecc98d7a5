"""groups.csv: a group is on one side of every split, whoever splits; and damaged tables are one line."""

import csv
import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kit import call, experiment, history, make_dataset, make_images, shell, tree, weights
from loaders import loaders
from sklearn.model_selection import StratifiedGroupKFold

from model.images import dealing
from model.images.folds import assign_parts
from model.images.index import Index
from model.images.paths import Paths
from model.images.source import Source
from model.images.subsets import limit, split_by_content
from utils import UserError

NUM_EXAMPLES = 1000  # random datasets for each way to split
MARGIN = 0.06  # of a class's images: how much further off than scikit-learn's parts ours may be, on one dataset


def write_groups(data: Path, group_of, name="groups.csv") -> Path:
    """groups.csv of a dataset folder; `group_of`: path below it -> group."""
    paths = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    with open(data / name, "w", newline="") as file:
        csv.writer(file).writerows([("path", "group"), *((path, group_of(path)) for path in paths)])
    return data


def patient(path: str, num_images: int = 3) -> str:
    """So many pictures of each patient in each class."""
    split, _, file = path.split("/")
    return f"{split} patient {int(file[:3]) // num_images}"


@pytest.fixture
def data(tmp_path):
    return write_groups(make_dataset(tmp_path / "data", ("train", "test"), per_class=15, side=8), patient)


# --- random datasets ------------------------------------------------------------------------------------


@st.composite
def sources(draw):
    """A train split as the loader has it before it is divided, without files: labels, groups and digests at random."""
    num_images = draw(st.integers(2, 120))
    num_classes = draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_groups = draw(st.integers(1, num_images))
    groups = rng.choice(
        num_groups, num_images, p=rng.dirichlet(np.full(num_groups, draw(st.sampled_from([0.3, 1, 9]))))
    )
    labels = rng.integers(0, num_classes, num_images)
    if draw(st.booleans()):  # one class for each group: some have one group alone
        labels = rng.integers(0, num_classes, num_groups)[groups]
    _, labels = np.unique(labels, return_inverse=True)
    if draw(st.booleans()):  # images without a group
        is_alone = rng.random(num_images) < 0.5
        groups[is_alone] = num_groups + np.arange(is_alone.sum())
    digests = rng.integers(0, 256, (num_images, 16)).astype(np.uint8)
    if draw(st.booleans()):  # copies
        digests[rng.integers(0, num_images, 3)] = digests[0]
    return make_source(labels.reshape(-1), groups, digests)


def make_source(labels, groups, digests) -> Source:
    num, classes = len(labels), [f"class {number}" for number in range(int(labels.max()) + 1)]
    zeros = np.zeros(num, np.int64)
    paths = Paths.of([f"train/{number}.png" for number in range(num)])
    index = Index(
        Path(), "train", classes, paths, labels.astype(np.int32), zeros, zeros, zeros, groups=groups.astype(np.int64)
    )
    return Source(index, digests, None, np.arange(num), 8, "crop", "off")


def sides(source: Source, parts: np.ndarray) -> dict[int, set[int]]:
    """group -> the parts that it is in."""
    assert source.index.groups is not None
    found: dict[int, set[int]] = {}
    for group, part in zip(source.index.groups.tolist(), parts.tolist(), strict=True):
        found.setdefault(group, set()).add(part)
    return found


def units_of(source: Source) -> np.ndarray:
    """What cannot be divided, found slowly: images that share a group or their content, again and again."""
    assert source.index.groups is not None
    digests = [digest.tobytes() for digest in source.digests]
    unit = list(range(len(digests)))
    while True:
        before = list(unit)
        for keys in (digests, source.index.groups.tolist()):
            least: dict[object, int] = {}
            for key, number in zip(keys, unit, strict=True):
                least[key] = min(number, least.get(key, number))
            unit = [least[key] for key in keys]
        if unit == before:
            return np.unique(unit, return_inverse=True)[1].reshape(-1)


def units_per_class(source: Source) -> list[int]:
    units = units_of(source)
    return [len(set(units[source.index.labels == label].tolist())) for label in range(len(source.index.classes))]


@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(sources(), st.integers(2, 8))
def test_no_group_is_in_two_folds(source, k):
    num_units = len(set(units_of(source).tolist()))
    refusal = ""
    if num_units < k:
        refusal = f"{k} parts given; {num_units} (groups|different images) make at most {num_units}"
    elif min(units_per_class(source)) < 2:  # every class that is in two groups can be in two parts
        refusal = "would be in one part alone; it needs two (groups|different images) at least"
    if refusal:
        with pytest.raises(UserError, match=refusal):
            assign_parts(source, k)
        return
    parts = assign_parts(source, k)
    assert all(len(where) == 1 for where in sides(source, parts).values())
    assert set(parts.tolist()) == set(range(1, k + 1)), "no part is empty"
    for label in range(len(source.index.classes)):
        assert len(set(parts[source.index.labels == label].tolist())) >= 2
    copies = {digest.tobytes(): part for digest, part in zip(source.digests, parts.tolist(), strict=True)}
    assert [copies[digest.tobytes()] for digest in source.digests] == parts.tolist(), "copies stay together"


@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(sources(), st.floats(0.02, 0.98))
def test_no_group_is_in_train_and_valid(source, fraction):
    per_class = units_per_class(source)
    is_grouped, labels = source.index.is_grouped, source.index.labels
    if not is_grouped and np.bincount(labels).min() < 2:
        with pytest.raises(UserError, match="has one image; two are needed"):
            split_by_content(source, fraction)
        return
    try:
        is_valid = split_by_content(source, fraction)
    except UserError as error:
        assert is_grouped
        assert min(per_class) < 2, str(error)  # noqa: PT017 (it is not always raised)
        return
    assert all(len(where) == 1 for where in sides(source, is_valid).values()) or not is_grouped
    for label, num_units in enumerate(per_class):
        on_sides = set(is_valid[labels == label].tolist())
        assert False in on_sides, "every class is trained on"
        if num_units > 2 and is_grouped and min(per_class) > 1:
            assert True in on_sides, "every class is validated"


@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(sources(), st.integers(1, 120), st.integers(0, 99))
def test_limits_take_whole_groups_and_larger_ones_keep_what_smaller_ones_have(source, number, seed):
    num_classes = len(source.index.classes)
    if number < num_classes:
        with pytest.raises(UserError, match="at least one of each is needed"):
            limit(source, number, seed)
        return
    small, large = (set(limit(source, count, seed).index.paths) for count in (number, number + 7))
    assert small <= large
    if source.index.is_grouped:
        chosen = np.array([path in small for path in source.index.paths])
        assert all(len(where) == 1 for where in sides(source, chosen).values())
        assert set(source.index.labels[chosen].tolist()) == set(range(num_classes))


@pytest.mark.filterwarnings("ignore:The least populated class")
@settings(max_examples=300, deadline=None, derandomize=True)
@given(sources(), st.integers(2, 6))
def test_classes_are_as_even_as_those_of_scikit_learn(source, k):
    """The mean over classes of the standard deviation of a class's shares: what StratifiedGroupKFold minimises."""
    labels, groups = source.index.labels, source.index.groups
    if len(set(groups.tolist())) < k or max(Counter(labels.tolist()).values()) < k:
        return
    units = np.unique(groups, return_inverse=True)[1].reshape(-1)
    ours = dealing.deal_folds(units, labels, len(source.index.classes), k) - 1
    theirs = parts_of_scikit_learn(labels, groups, k)
    assert unevenness(labels, ours, k) <= unevenness(labels, theirs, k) + MARGIN


def test_classes_are_more_even_than_those_of_scikit_learn_on_average():
    rng, ours, theirs = np.random.default_rng(1), [], []
    for _ in range(60):
        groups, labels = rng.integers(0, 40, 300), rng.choice(4, 300, p=[0.6, 0.2, 0.15, 0.05])
        units = np.unique(groups, return_inverse=True)[1].reshape(-1)
        ours.append(unevenness(labels, dealing.deal_folds(units, labels, 4, 5) - 1, 5))
        theirs.append(unevenness(labels, parts_of_scikit_learn(labels, groups, 5), 5))
    assert np.mean(ours) < np.mean(theirs)


def unevenness(labels: np.ndarray, parts: np.ndarray, k: int) -> float:
    counts = np.zeros((labels.max() + 1, k))
    np.add.at(counts, (labels, parts), 1)
    return float((counts / counts.sum(axis=1, keepdims=True)).std(axis=1).mean())


def parts_of_scikit_learn(labels: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    parts = np.empty(len(labels), int)
    for number, (_, rows) in enumerate(StratifiedGroupKFold(k).split(labels, labels, groups)):
        parts[rows] = number
    return parts


@settings(max_examples=200, deadline=None)
@given(sources())
def test_units_are_what_hangs_together(source):
    units = dealing.find_units(source.index.groups, source.content_keys())
    slow = units_of(source)
    assert len(set(zip(units.tolist(), slow.tolist(), strict=True))) == len(set(units.tolist())) == slow.max() + 1
    first = [source.digests[units == unit].tobytes() for unit in range(units.max() + 1)]
    least = [min(row.tobytes() for row in source.digests[units == unit]) for unit in range(len(first))]
    assert least == sorted(least), "numbered by content: names and order do not matter"


@given(st.lists(st.integers(0, 9), min_size=2, max_size=6), st.integers(1, 40))
@example([9, 0, 0], 3)
def test_single_images_fill_up_what_is_lowest(level, number):
    level = np.array(level)
    given = dealing.fill_up(level, level, np.full(len(level), 1 / len(level)), number)
    assert given.sum() == number
    filled = level + given
    assert filled[given > 0].max(initial=0) - filled.min() <= 1


# --- a dataset folder -----------------------------------------------------------------------------------


def groups_in(data: Path, paths) -> set[str]:
    with open(data / "groups.csv", newline="") as file:
        group = {row["path"]: row["group"] for row in csv.DictReader(file)}
    return {group[path] for path in paths}


def test_every_way_to_split_keeps_a_group_on_one_side(data):
    ways: list[dict[str, Any]] = [
        {},
        {"valid_fraction": 0.4},
        {"limit_train": 0.5},
        *({"fold": [number, 3]} for number in (1, 2, 3)),
    ]
    validated = []
    for values in ways:
        both = loaders(data, "train", "valid", **values)
        train, valid = (groups_in(data, both[split].paths) for split in ("train", "valid"))
        assert train
        assert valid
        assert not train & valid, values
        assert min(both["train"].class_counts) > 0 < min(both["valid"].class_counts)
        validated += [*valid] if "fold" in values else []
        if "fold" in values:
            assert "9 to 18 images in each of 3 parts" in both["train"].description
        words = "whole groups: 18 images of 2 groups" if "limit_train" in values else "groups stay whole"
        assert words in both["train"].description
    assert len(validated) == len(set(validated)) == 5, "each group validates once"


def test_groups_without_effect_change_nothing(tmp_path):
    """One image in each group is what a dataset without groups has."""
    plain = make_dataset(tmp_path / "plain", ("train",), per_class=12, side=8)
    grouped = write_groups(Path(shutil.copytree(plain, tmp_path / "grouped")), lambda path: f"group of {path}")
    ways: list[dict[str, Any]] = [{}, {"limit_train": 9}, {"fold": [1, 3]}]
    for values in ways:
        one, other = (loaders(data, "train", "valid", **values) for data in (plain, grouped))
        for split in ("train", "valid"):
            assert one[split].paths == other[split].paths
            assert one[split].fingerprint == other[split].fingerprint
            assert one[split].fold == other[split].fold


def test_neither_names_of_groups_nor_the_order_of_rows_matter(data, tmp_path):
    first = loaders(data, "train", "valid", fold=[2, 3])
    other = Path(shutil.copytree(data, tmp_path / "other"))
    write_groups(other, lambda path: f"x{hash(patient(path))}")
    lines = (other / "groups.csv").read_text().splitlines()
    (other / "groups.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    second = loaders(other, "train", "valid", fold=[2, 3])
    for split, part in first.items():
        assert part.paths == second[split].paths
        assert part.fingerprint == second[split].fingerprint


@pytest.mark.parametrize("values", [{}, {"fold": [1, 3]}], ids=["valid_fraction", "fold"])
def test_an_edited_table_is_other_data(data, values, tmp_path):
    folder = experiment(tmp_path / "e", **values)
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    before = tree(folder)
    original = (data / "groups.csv").read_bytes()
    for num_images in (6, 2, None):  # of a patient: groups are merged, divided, gone
        if num_images:
            write_groups(data, partial(patient, num_images=num_images))
        else:
            (data / "groups.csv").unlink()
        code, printed = call("train", "--model_dir", folder, "--num_epochs=3")
        assert code == 2, printed
        assert "the data changed since this run began: the train images, labels or groups" in printed
        assert tree(folder) == before
    (data / "groups.csv").write_bytes(original)
    code, printed = call("train", "--model_dir", folder, "--num_epochs=3")
    assert code == 0, printed
    assert len(history(folder)) == 3


def test_equal_runs_with_groups_are_equal_bytes(data, tmp_path):
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    one, other = experiment(tmp_path / "a", fold=[1, 3]), experiment(tmp_path / "b", fold=[1, 3])
    assert call("train", "--data_dir", data, "--model_dir", one)[0] == 0
    assert call("train", "--data_dir", copy, "--model_dir", other)[0] == 0
    assert weights(one) == weights(other)
    assert history(one) == history(other)
    code, printed = call("evaluate", "--model_dir", one, "--split", "valid")
    assert code == 0, printed
    assert "groups stay whole" in printed


def test_folds_of_a_search_are_of_whole_groups(data, tmp_path):
    parent = experiment(tmp_path / "p", num_epochs=1, hyper_search={"learning_rate": [0.1]}, search={"folds": 9})
    flags = ("--data_dir", data, "--parent_dir", parent)
    done = shell("search_hyperparams", *flags)
    assert done.returncode == 2
    assert "fold: 9 parts given; 5 groups make at most 5 (groups that share" in done.stderr
    done = shell("search_hyperparams", *flags, "--search.folds=3")
    assert done.returncode == 0, done.stderr
    parts = json.loads((parent / "record/folds.json").read_text())["parts"]
    part_of: dict[str, set[int]] = {}
    for path, part in parts.items():
        part_of.setdefault(patient(path), set()).add(part)
    assert len(part_of) == 5
    assert all(len(where) == 1 for where in part_of.values())


def test_a_search_does_not_mix_folds_of_changed_groups(data, tmp_path):
    parent = experiment(tmp_path / "p", num_epochs=1, hyper_search={"learning_rate": [0.1]}, search={"folds": 3})
    flags = ("--data_dir", data, "--parent_dir", parent)
    assert shell("search_hyperparams", *flags).returncode == 0
    original, before = (data / "groups.csv").read_bytes(), tree(parent)
    write_groups(data, partial(patient, num_images=2))
    more = json.loads((parent / "params.json").read_text()) | {"hyper_search": {"learning_rate": [0.1, 0.2]}}
    (parent / "params.json").write_text(json.dumps(more))
    done = shell("search_hyperparams", *flags)
    assert done.returncode == 2, done.stdout
    assert "changed since this search began, and with them its folds: 3 children were trained" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert tree(parent).keys() == before.keys(), "nothing is written"
    (data / "groups.csv").write_bytes(original)
    done = shell("search_hyperparams", *flags)
    assert done.returncode == 0, done.stderr
    assert len(list(parent.glob("*/record/fold.json"))) == 6


def test_a_group_in_two_splits_is_refused_and_the_way_out_works(data):
    write_groups(data, lambda path: path.partition("/")[2].partition("/")[2][:2])  # the same in train and test
    ways: list[dict[str, Any]] = [{}, {"fold": [1, 3]}]
    for values in ways:
        with pytest.raises(
            UserError, match=r"2 of 2 groups are in two splits, for example '00' in train and test"
        ) as error:
            loaders(data, "train", **values)
        assert "\n" not in str(error.value)
    write_groups(data, lambda path: path.partition("/")[0] + path.split("/")[2][:2])
    assert loaders(data, "train")


def test_folds_may_mix_train_and_valid_that_share_groups(tmp_path):
    data = make_dataset(tmp_path / "data", ("train", "valid", "test"), per_class=12, side=8)
    write_groups(data, lambda path: f"{path.startswith('test')} {int(path[-7:-4]) // 3}")
    with pytest.raises(UserError, match="4 of 8 groups are in two splits"):
        loaders(data, "train", "valid")
    for number in (1, 2, 3):
        both = loaders(data, "train", "valid", fold=[number, 3])
        assert not groups_in(data, both["train"].paths) & groups_in(data, both["valid"].paths)


def test_a_class_in_one_group_alone(data):
    write_groups(data, lambda path: f"{path[:4]} {0 if 'class_1' in path else int(path[-7:-4]) // 3 + 1}")
    both = loaders(data, "train", "valid")
    assert both["valid"].class_counts[1] == 0
    assert "no images of class_1: no group can be spared" in both["train"].description
    with pytest.raises(UserError, match="class 'class_1' would be in one part alone; it needs two groups at least"):
        loaders(data, "train", "valid", fold=[1, 3])
    write_groups(data, lambda path: "/".join(path.split("/")[:2]))
    with pytest.raises(UserError, match="leave nothing to validate with"):
        loaders(data, "train", "valid")


# --- damaged tables -------------------------------------------------------------------------------------

HEADER = "path,group\n"
HARMLESS = {
    "byte-order mark": "\ufeffpath,group\n{rows}",
    "semicolons": "path;group\n{semicolons}",
    "tabs": "path\tgroup\n{tabs}",
    "CRLF": "path,group\r\n{crlf}",
    "no end of line": "path,group\n{rows}x",
    "upper case": "Path,GROUP\n{rows}",
    "quotes and spaces": ' path , "group"\n{quoted}',
    "backslashes": "path,group\n{backslashes}",
    "more columns": "n,path,camera,group,\n{more}",
    "empty rows": "path,group\n\n{rows}\n,\n",
}


def rows_of(data: Path) -> list[tuple[str, str]]:
    with open(data / "groups.csv", newline="") as file:
        return [(path, group) for path, group in list(csv.reader(file))[1:]]


@pytest.mark.parametrize("kind", HARMLESS)
def test_tables_as_spreadsheets_and_other_systems_write_them(data, kind):
    wanted = {split: list(part.paths) for split, part in loaders(data, "train", "valid").items()}
    rows = rows_of(data)
    text = HARMLESS[kind].format(
        rows="".join(f"{path},{group}\n" for path, group in rows),
        semicolons="".join(f"{path};{group}\n" for path, group in rows),
        tabs="".join(f"{path}\t{group}\n" for path, group in rows),
        crlf="".join(f"{path},{group}\r\n" for path, group in rows),
        quoted="".join(f' "{path}",  {group} \n' for path, group in rows),
        backslashes="".join(f".\\{path},{group}\n".replace("/", "\\") for path, group in rows),
        more="".join(f"{n},{path},left,{group},\n" for n, (path, group) in enumerate(rows)),
    )
    if kind == "no end of line":
        text = text.rstrip("x").rstrip("\n")
    (data / "groups.csv").write_bytes(text.encode())
    both = loaders(data, "train", "valid")
    assert {split: list(part.paths) for split, part in both.items()} == wanted


GOOD = "train/class_0/000.png,a\n"
DAMAGED = {
    "empty": ("", "no column path"),
    "header alone": (HEADER, "no rows; it needs the columns path, group"),
    "no group column": ("path,patient\n" + GOOD, "no column group; it has path, patient"),
    "misspelt column": ("path,groups\n" + GOOD, "did you mean 'groups'"),
    "twice the same column": ("path,group,group\ntrain/class_0/000.png,a,b\n", "two columns are called 'group'"),
    "unknown image": (HEADER + GOOD + "train/class_0/gone.png,b\n", "1 of 2 rows name no image of {data}: line 3 "),
    "absolute": (HEADER + "{data}/train/class_0/000.png,a\n", "absolute; paths are relative to the dataset folder"),
    "drive": (HEADER + "C:\\photos\\000.png,a\n", "absolute; paths are relative"),
    "up": (HEADER + "train/../train/class_0/000.png,a\n", ".. leads out of the dataset folder"),
    "case": (HEADER + "train/Class_0/000.PNG,a\n", "did you mean 'train/class_0/000.png'?"),
    "no image": (HEADER + "notes.txt,a\n", "not an image; possible: .jpg"),
    "no path": (HEADER + ",a\n", "line 2 '' (it is empty)"),
    "many unknown": (HEADER + "".join(f"{n}.png,a\n" for n in range(9)), "9 of 9 rows name no image"),
    "twice": (HEADER + GOOD + "train/class_0/001.png,a\n" + GOOD, "lines 2 and 4 are both of 'train/class_0/000.png'"),
    "twice, written differently": (HEADER + GOOD + "./train\\class_0/000.png,b\n", "lines 2 and 3 are both of"),
    "comma in a name": (
        HEADER + "train/class_0/0,1.png,a\n",
        "line 2 has 3 cells, the header has 2; a cell that holds",
    ),
    "too few cells": (HEADER + "train/class_0/000.png\n", "line 2 has 1 cells, the header has 2"),
    "unclosed quote": (HEADER + '"train/class_0/000.png,a\n', "is a quote missing?"),
    "another encoding": (HEADER + "train/class_0/é.png,a\n", "1 of 1 rows name no image"),
    "another kind of file": ("\0\1\2\3", "no column path"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_table_is_one_line_and_nothing_is_written(data, kind, tmp_path):
    text, words = DAMAGED[kind]
    text, words = text.replace("{data}", str(data)), words.replace("{data}", str(data))
    (data / "groups.csv").write_bytes(text.encode("latin-1"))
    folder = experiment(tmp_path / "e")
    for script, flags in (("train", ["--model_dir", folder]), ("build_dataset", ["--check"])):
        code, printed = call(script, "--data_dir", data, *flags)
        assert code == 2, printed
        assert len(printed.strip().splitlines()) == 1, printed
        assert words in printed
        assert str(data / "groups.csv") in printed
        assert printed.isprintable() or printed.rstrip().isprintable()
    assert list(tree(folder)) == ["params.json"]


def test_a_table_that_is_a_folder_or_may_not_be_read(data):
    (data / "groups.csv").unlink()
    (data / "groups.csv").mkdir()
    with pytest.raises(UserError, match=r"groups.csv: Is a directory"):
        loaders(data, "train")


def test_names_with_commas_quotes_spaces_and_signs(tmp_path):
    make_images(tmp_path / "data/train", per_class=6, side=8)
    odd = ["a, b.png", 'c "d".png', " e.png", "=f.png", "'-g.png", "h;i.png"]
    for label in range(3):
        for number, name in enumerate(odd):
            (tmp_path / f"data/train/class_{label}/{number:03d}.png").rename(
                tmp_path / f"data/train/class_{label}/{name}"
            )
    data = write_groups(tmp_path / "data", lambda path: str(odd.index(path.split("/")[2])))
    both = loaders(data, "train", "valid")
    assert not groups_in(data, both["train"].paths) & groups_in(data, both["valid"].paths)
    assert both["valid"].class_counts == [1, 1, 1]
