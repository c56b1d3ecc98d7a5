"""build_dataset.py and tables: what it reads, the splits it makes, the labels.csv and groups.csv it writes."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import call, experiment, make_dataset, make_images, tree
from loaders import loaders
from PIL import Image

from model.images.build.items import BuildOptions, Item
from model.images.build.splitting import TEST_FRACTION, make_splits
from utils import UserError


def build(source, target, *argv):
    return call("build_dataset", "--source", source, "--data_dir", target, *argv)


def write_table(path: Path, rows, header=("file", "kind", "who"), **how) -> Path:
    with open(path, "w", newline="", encoding=how.pop("encoding", "utf-8")) as file:
        csv.writer(file, **how).writerows([header, *rows])
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def photos(tmp_path):
    """60 pictures of each of two classes in one folder; a table with three pictures of each person in each class."""
    make_images(tmp_path / "made", classes=2, per_class=60, side=8)
    (tmp_path / "photos").mkdir()
    rows = []
    for path in sorted((tmp_path / "made").rglob("*.png")):
        name = f"{path.parent.name[-1]} {path.name}"
        path.rename(tmp_path / "photos" / name)
        rows.append((name, f"kind {path.parent.name[-1]}", f"person {int(path.stem) // 3}", int(path.stem) % 7))
    write_table(tmp_path / "birds.csv", rows, ("file", "kind", "who", "age"))
    return tmp_path / "photos"


@settings(max_examples=1000, deadline=None)
@given(st.data(), st.floats(0.02, 0.6), st.floats(0.02, 0.6))
def test_no_group_is_in_two_built_splits(data, valid_fraction, test_fraction):
    num = data.draw(st.integers(2, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    groups = rng.integers(0, data.draw(st.integers(2, num)), num)
    labels, contents = rng.integers(0, 3, num), rng.integers(0, 256, (num, 1, 3)).astype(np.uint8)
    items = [
        Item("", str(label), "x.png", Image.fromarray(pixels[None]), f"g{group}" if group else "")
        for label, pixels, group in zip(labels, contents, groups, strict=True)
    ]
    options = BuildOptions(valid_fraction=valid_fraction, test_fraction=test_fraction)
    try:
        make_splits(items, options, [])
    except UserError as error:
        assert "each group has the only images of a class" in str(error)  # noqa: PT017 (it is not always raised)
        return
    where: dict[str, set[str]] = {}
    for item in items:
        where.setdefault(item.group, set()).add(item.split)
    where.pop("", None)
    is_grouped = len(where) < sum(bool(item.group) for item in items)
    assert not is_grouped or all(len(splits) == 1 for splits in where.values())
    assert {item.label for item in items if item.split == "train"} == {item.label for item in items}


FLAGS = ("--image_col", "file", "--label_col", "kind")


def test_groups_of_a_table_are_kept_by_whoever_splits_later(photos, tmp_path):
    data = tmp_path / "data"
    code, printed = build(photos, data, "--labels", tmp_path / "birds.csv", *FLAGS, "--group_col", "who")
    assert code == 0, printed
    assert "the source has no splits: 15% of each class are set aside as test" in printed
    assert "groups stay whole: test has 15.0% of the images" in printed
    who = {row["path"]: row["group"] for row in read_rows(data / "groups.csv")}
    rows = read_rows(data / "labels.csv")
    assert list(rows[0]) == ["path", "label", "split", "age"]
    assert len(rows) == len(who) == 120
    assert all((data / path).is_file() for path in who)
    number = {row["path"]: (int(row["path"][-7:-4]), row["age"]) for row in rows}
    assert all(who[path] == f"person {n // 3}" for path, (n, _) in number.items())
    assert all(age == str(n % 7) for n, age in number.values()), "further columns are kept for each image"
    made = loaders(data, "train", "valid", "test")
    sides = [{who[path] for path in part.paths} for part in made.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 20
    assert made["test"].class_counts == [9, 9]
    code, printed = call("build_dataset", "--data_dir", data, "--check")
    assert code == 0, printed
    assert "groups 20 of 6 to 6 images\n" in printed
    folder = experiment(tmp_path / "e", num_epochs=1)
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    assert call("evaluate", "--model_dir", folder)[0] == 0


def test_both_parts_are_of_whole_groups_and_near_their_fractions(photos, tmp_path):
    data = tmp_path / "data"
    flags = ["--labels", tmp_path / "birds.csv", *FLAGS, "--group_col", "who"]
    code, printed = build(photos, data, *flags, "--valid_fraction", 0.25, "--test_fraction", 0.2)
    assert code == 0, printed
    assert "the source has no splits" not in printed
    made = loaders(data, "train", "valid", "test")
    assert made["test"].class_counts == [12, 12]
    assert made["valid"].class_counts == [12, 12]
    who = {row["path"]: row["group"] for row in read_rows(data / "groups.csv")}
    sides = [{who[path] for path in part.paths} for part in made.values()]
    assert sum(map(len, sides)) == 20


def test_without_groups_parts_are_by_content_and_stratified(photos, tmp_path):
    code, printed = build(photos, tmp_path / "one", "--labels", tmp_path / "birds.csv", *FLAGS)
    assert code == 0, printed
    assert not (tmp_path / "one/groups.csv").exists()
    rows = read_rows(tmp_path / "birds.csv")
    write_table(tmp_path / "turned.csv", [list(row.values()) for row in reversed(rows)], list(rows[0]))
    code, printed = build(photos, tmp_path / "two", "--labels", tmp_path / "turned.csv", *FLAGS)
    assert code == 0, printed
    contents = []
    for data in (tmp_path / "one", tmp_path / "two"):
        made = loaders(data, "train", "valid", "test")
        assert made["test"].class_counts == [round(60 * TEST_FRACTION)] * 2
        contents.append({(data / path).read_bytes() for path in made["test"].paths})
    assert contents[0] == contents[1], "the order of rows does not matter"


# --- folders with tables --------------------------------------------------------------------------------


def test_a_folder_that_is_a_dataset_by_its_tables_is_a_source(tmp_path):
    make_images(tmp_path / "made", per_class=20, side=8)
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    rows = []
    for path in sorted((tmp_path / "made").rglob("*.png")):
        name = f"deep/{path.parent.name[-1]}{path.name}"
        path.rename(source / name)
        rows.append((name, f"a/{path.parent.name[-1]}", f"g{int(path.stem) // 4}", 1 + int(path.stem) % 2, "=left"))
    write_table(source / "labels.csv", rows[1:], ("path", "label", "group", "weight", "camera"))
    code, printed = build(source, tmp_path / "data", "--test_fraction", 0.2)
    assert code == 0, printed
    assert "1 images without a row in labels.csv ignored" in printed
    assert sorted(path.name for path in (tmp_path / "data/train").iterdir()) == ["a_0", "a_1", "a_2"]
    made = loaders(tmp_path / "data", "train", "valid", "test")
    assert made["train"].classes == ["a/0", "a/1", "a/2"], "the table keeps names that no folder may have"
    written = read_rows(tmp_path / "data/labels.csv")
    assert list(written[0]) == ["path", "label", "split", "weight", "camera"]
    assert {row["camera"] for row in written} == {"'=left"}, "no spreadsheet runs it"
    assert made["test"].class_counts == [4, 4, 4]
    assert "weighted as labels.csv says" in made["train"].description
    again = tmp_path / "again"
    assert build(tmp_path / "data", again)[0] == 0, "what was built is a source"
    one, other = (loaders(data, "train", "test") for data in (tmp_path / "data", again))
    assert [part.fingerprint for part in one.values()] == [part.fingerprint for part in other.values()]
    assert sorted(row["path"] for row in read_rows(again / "labels.csv")) == sorted(row["path"] for row in written)
    assert sorted(tree(again)) == sorted(tree(tmp_path / "data"))


def test_groups_beside_class_folders_are_kept(tmp_path):
    source = tmp_path / "source"
    make_images(source, per_class=20, side=8)
    paths = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.png"))
    rows = [(path, f"g{int(path[-7:-4]) // 5} of {path[:7] if 'class_2' in path else 'both'}") for path in paths]
    write_table(source / "groups.csv", rows, ("path", "group"))
    code, printed = build(source, tmp_path / "data")
    assert code == 0, printed
    group = {row["path"]: row["group"] for row in read_rows(tmp_path / "data/groups.csv")}
    assert len(group) == 60
    made = loaders(tmp_path / "data", "train", "valid", "test")
    sides = [{group[path] for path in part.paths} for part in made.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 8
    (source / "groups.csv").write_text(f"path,group\n{paths[0]},a\nclass_0/gone.png,a\n")
    code, printed = build(source, tmp_path / "other")
    assert code == 2
    assert "1 of 2 rows name no image" in printed
    assert not (tmp_path / "other").exists()


# --- fractions ------------------------------------------------------------------------------------------


def test_splits_that_a_source_has_are_kept(tmp_path):
    source = make_dataset(tmp_path / "source", ("train",), per_class=20, side=8)
    code, printed = build(source, tmp_path / "train")
    assert code == 0, printed
    assert "no test split: evaluate.py can look at --split valid" in printed
    assert [path.name for path in (tmp_path / "train").iterdir() if path.is_dir()] == ["train"]
    assert build(source, tmp_path / "both", "--test_fraction", 0.3)[0] == 0
    assert loaders(tmp_path / "both", "test")["test"].class_counts == [6, 6, 6]
    shutil.move(source / "train", source / "x")
    code, printed = build(source / "x", tmp_path / "none", "--test_fraction", 0)
    assert code == 0, printed
    assert "no test split" in printed
    make_images(source / "test", per_class=3, side=8)
    shutil.move(source / "x", source / "train")
    code, printed = build(source, tmp_path / "given", "--test_fraction", 0.2)
    assert (code, printed) == (2, "error: --test_fraction: the source has a test split already; leave it out\n")


def test_a_column_of_splits_is_kept(photos, tmp_path):
    rows = [
        (*row.values(), ("train", "Validation", "test")[int(row["file"][2:5]) % 3])
        for row in read_rows(tmp_path / "birds.csv")
    ]
    write_table(tmp_path / "birds.csv", rows, ("file", "kind", "who", "age", "split"))
    code, printed = build(photos, tmp_path / "data", "--labels", tmp_path / "birds.csv", *FLAGS)
    assert code == 0, printed
    assert [part.class_counts for part in loaders(tmp_path / "data", "train", "valid", "test").values()] == [
        [20, 20]
    ] * 3
    code, printed = build(photos, tmp_path / "other", "--labels", tmp_path / "birds.csv", *FLAGS, "--group_col", "who")
    assert code == 2, "each person is in all of them"
    assert "20 of 20 groups of the source are in two splits" in printed


# --- tables as people have them -------------------------------------------------------------------------


def test_a_table_from_another_spreadsheet_and_system(photos, tmp_path):
    rows = [(f".\\{row['file']}", row["kind"], f" {row['who']} ") for row in read_rows(tmp_path / "birds.csv")]
    write_table(tmp_path / "b.csv", rows, delimiter=";", encoding="utf-8-sig")
    code, printed = build(photos, tmp_path / "data", "--labels", tmp_path / "b.csv", *FLAGS, "--group_col", "who")
    assert code == 0, printed
    assert len({row["group"] for row in read_rows(tmp_path / "data/groups.csv")}) == 20


def test_names_that_mean_something_in_labels_csv_are_changed(photos, tmp_path):
    rows = [(*row.values(), "70 kg", "x") for row in read_rows(tmp_path / "birds.csv")]
    write_table(tmp_path / "b.csv", rows, ("file", "kind", "who", "age", "Weight", "label"))
    code, printed = build(photos, tmp_path / "data", "--labels", tmp_path / "b.csv", *FLAGS)
    assert code == 0, printed
    assert "column Weight is called source_Weight in labels.csv, where weight has a meaning" in printed
    columns = ["path", "label", "split", "who", "age", "source_Weight", "source_label"]
    assert list(read_rows(tmp_path / "data/labels.csv")[0]) == columns
    assert "weighted" not in loaders(tmp_path / "data", "train")["train"].description


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("0 000.png", "a", "x"), ("0 000", "b", "x")], "lines 2 and 3 are both of '0 000.png'; one label per image"),
        ([("0 000.png", "a|b", "x"), ("1 000.png", "b", "y")], "the label 'a|b': a | divides several labels"),
        ([("0 000.png", " ", "x"), ("1 000.png", "b", "y")], "line 2 has no kind"),
        (
            [("0 000.png", "a", "x"), ("0 001.png", "a", "x"), ("1 000.png", "b", "y")],
            "each group has the only images of a class",
        ),
        ([("0 000.png", "a")], "line 2 has 2 cells, the header has 3"),
    ],
)
def test_tables_that_are_refused(photos, tmp_path, rows, words):
    write_table(tmp_path / "b.csv", rows)
    code, printed = build(photos, tmp_path / "data", "--labels", tmp_path / "b.csv", *FLAGS, "--group_col", "who")
    assert code == 2, printed
    assert words in printed
    assert len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "data").exists()
    if "each group" in words:
        flags = ["--labels", tmp_path / "b.csv", *FLAGS, "--group_col", "who", "--test_fraction", 0]
        assert build(photos, tmp_path / "data", *flags)[0] == 0, "the way out that it names"


@pytest.mark.parametrize(
    ("source", "flags", "words"),
    [
        ("photos", ["--group_col", "who"], "columns of the table that --labels names"),
        ("digits", ["--labels", "birds.csv"], "digits has labels of its own"),
        ("photos", ["--test_fraction", "1"], "--test_fraction 1.0: possible are fractions from 0 on, below 1"),
        ("photos", ["--test_fraction", "-0.1"], "possible are fractions from 0 on"),
    ],
)
def test_flags_that_would_have_no_effect_are_refused(photos, tmp_path, source, flags, words):
    code, printed = build(source if source == "digits" else photos, tmp_path / "data", *flags)
    assert code == 2, printed
    assert words in printed
    assert not (tmp_path / "data").exists()


def test_images_without_a_row_and_a_missing_table_are_said(photos, tmp_path):
    code, printed = build(photos, tmp_path / "none")
    assert code == 2
    assert f"--source {photos} --labels FILE.csv --image_col A --label_col B --data_dir DATA" in printed
    rows = [tuple(row.values()) for row in read_rows(tmp_path / "birds.csv")]
    table = write_table(tmp_path / "some.csv", rows[2:], ("file", "kind", "who", "age"))
    words = ("--labels", table, "--image_col", "file", "--label_col", "kind")
    code, printed = build(photos, tmp_path / "d", *words)
    assert code == 0, printed
    assert f"2 images have no row in {table} and are left out: {rows[0][0]}, {rows[1][0]}" in printed
    words = ("--labels", tmp_path / "birds.csv", "--image_col", "file", "--label_col", "kind")
    assert "have no row" not in build(photos, tmp_path / "all", *words)[1]
