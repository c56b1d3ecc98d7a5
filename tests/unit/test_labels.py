"""labels.csv: a folder of images with a table is a dataset; what the table says decides, and what it cannot is one line."""

import csv
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import call, experiment, history, make_dataset, make_images, tree, weights
from loaders import are_equal, batches, loaders

from utils import UserError

HEADER = ("path", "label", "split", "group", "camera")


def write_table(data: Path, rows: Iterable[Sequence[object]], header: Sequence[str] = HEADER) -> Path:
    with open(data / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return data


def rows_of(data: Path) -> list[dict[str, str]]:
    with open(data / "labels.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def flat(tmp_path):
    """Images in one folder. Of each class 24 in train, 6 in test; 4 or 5 pictures of each patient."""
    make_images(tmp_path / "made", per_class=30, side=8)
    data = tmp_path / "flat"
    (data / "images").mkdir(parents=True)
    rows = []
    for path in sorted((tmp_path / "made").rglob("*.png")):
        label, number = path.parent.name, int(path.stem)
        name = f"images/{number}_{label[-1]}.png"
        path.rename(data / name)
        split = "test" if number >= 24 else ""
        rows.append((name, label, split, f"{split} {number // 5}", "left" if number % 2 else "right"))
    return write_table(data, reversed(rows))


def files_of(data: Path, split: str) -> list[str]:
    return sorted(row["path"] for row in rows_of(data) if row["split"] == split)


def test_a_flat_folder_with_a_table_is_a_dataset(flat, tmp_path):
    made = loaders(flat, "train", "valid", "test")
    assert sorted([*made["train"].paths, *made["valid"].paths]) == files_of(flat, "")
    assert sorted(made["test"].paths) == files_of(flat, "test")
    label = {row["path"]: row["label"] for row in rows_of(flat)}
    for part in made.values():
        assert part.classes == ["class_0", "class_1", "class_2"]
        assert [part.classes[number] for number in part.labels] == [label[path] for path in part.paths]
    group = {row["path"]: row["group"] for row in rows_of(flat)}
    assert not {group[path] for path in made["train"].paths} & {group[path] for path in made["valid"].paths}

    folder = experiment(tmp_path / "e")
    code, printed = call("train", "--data_dir", flat, "--model_dir", folder)
    assert code == 0, printed
    assert "groups stay whole" in printed
    assert "--split valid" not in printed, "that there is a test split comes from the table, not from a folder's name"
    code, printed = call("train", "--model_dir", folder)
    assert "--split valid" not in printed
    code, printed = call("evaluate", "--model_dir", folder, "--json")
    assert code == 0, printed
    listed = (folder / "evaluation/predictions.csv").read_text().splitlines()[1:]
    assert sorted(line.split(",")[0] for line in listed) == files_of(flat, "test")
    code, printed = call("build_dataset", "--data_dir", flat, "--check")
    assert code == 0, printed
    assert "test        18 images, 3 classes: class_0 6" in printed


def test_a_table_that_says_what_folders_say_changes_nothing(tmp_path):
    plain = make_dataset(tmp_path / "plain", ("train", "test"), per_class=9, side=8)
    (plain / "train/class_1/deeper").mkdir()
    (plain / "train/class_1/003.png").rename(plain / "train/class_1/deeper/003.png")
    (plain / "train/class_1/004.png").rename(plain / "train/class_1/é.png")
    table = Path(shutil.copytree(plain, tmp_path / "table"))
    paths = sorted(path.relative_to(table).as_posix() for path in table.rglob("*.png"))
    write_table(table, ((path, path.split("/")[1]) for path in reversed(paths)), ("path", "label"))
    ways: list[dict[str, Any]] = [{}, {"fold": [2, 3]}, {"limit_train": 0.6}]
    for values in ways:
        one, other = (loaders(data, "train", "valid", "test", **values) for data in (plain, table))
        for split, part in one.items():
            assert part.fingerprint == other[split].fingerprint
            assert part.description == other[split].description
            assert part.fold == other[split].fold
            assert are_equal(batches(part), batches(other[split]))


def test_the_table_decides_and_differences_are_counted(tmp_path):
    data = make_dataset(tmp_path / "data", ("train", "valid"), per_class=6, side=8)
    rows = [(f"train/class_{n % 3}/00{n % 6}.png", f"class_{n % 3}", "") for n in range(6)]
    rows += [("train/class_0/001.png", "class_1", "train"), ("train/class_2/000.png", "other", "train")]
    rows += [(f"valid/class_{n}/000.png", f"class_{n}", "train" if n else "val") for n in range(3)]
    (data / "train/class_0/x.heic").write_bytes(b"\0")
    write_table(data, rows, ("path", "label", "split"))
    made = loaders(data, "train", "valid")
    assert made["train"].classes == ["class_0", "class_1", "class_2", "other"]
    assert made["train"].class_counts == [2, 4, 3, 1]
    assert list(made["valid"].paths) == ["valid/class_0/000.png"]
    said = made["train"].description
    assert "25 images without a row in labels.csv ignored" in said
    assert "4 folder names that contradict labels.csv ignored" in said, "two classes, two splits"
    assert "1 .heic files ignored" in said
    assert "no valid image of class_1, class_2, other" in made["valid"].description


def test_a_class_that_a_split_lacks(flat, tmp_path):
    rows = [row for row in rows_of(flat) if row["split"] != "test" or row["label"] != "class_1"]
    write_table(flat, ([row[key] for key in HEADER] for row in rows))
    folder = experiment(tmp_path / "e", metrics=["f1", "auc", "balanced_accuracy"])
    assert call("train", "--data_dir", flat, "--model_dir", folder)[0] == 0
    code, printed = call("evaluate", "--model_dir", folder)
    assert code == 0, printed
    assert "no test image of class_1" in printed
    assert "nan" not in printed.lower()
    bad = [row["path"] for row in rows if row["split"] == "test" and row["label"] == "class_0"]
    for path in bad[:-1]:
        (flat / path).write_bytes(b"no image")
    code, printed = call("evaluate", "--model_dir", folder, "--on_bad_image=skip")
    assert code == 0, printed
    (flat / bad[-1]).write_bytes(b"no image")
    code, printed = call("evaluate", "--model_dir", folder, "--on_bad_image=skip")
    assert code == 2
    assert "test: no image of class 'class_0' can be used" in printed


def test_an_edited_table_is_other_data(flat, tmp_path):
    folder = experiment(tmp_path / "e")
    assert call("train", "--data_dir", flat, "--model_dir", folder)[0] == 0
    original = (flat / "labels.csv").read_text()
    for change in ("label", "group", "split"):
        rows = rows_of(flat)
        for row in rows[:10] if change == "label" else rows:
            if change == "label":
                row["label"] = "class_0"
            elif change == "group":
                row["group"] = f"{row['split']} {row['label']} {row['path'][7:8]}"
            elif row["path"] in files_of(flat, "")[:3]:
                row["split"] = "test"
                row["group"] = "test alone"
        write_table(flat, ([row[key] for key in HEADER] for row in rows))
        code, printed = call("train", "--model_dir", folder, "--num_epochs=3")
        assert code == 2, printed
        assert "the data changed since this run began: the train images, labels or groups" in printed
        (flat / "labels.csv").write_text(original)
    rows = [{**row, "camera": "new", "group": f"renamed {row['group']}"} for row in reversed(rows_of(flat))]
    write_table(flat, ([row[key] for key in HEADER] for row in rows))
    code, printed = call("train", "--model_dir", folder, "--num_epochs=3")
    assert code == 0, "the order of rows, names of groups and further columns are not what is trained on"
    assert len(history(folder)) == 3


# --- groups -----------------------------------------------------------------------------------------------


def test_the_column_and_groups_csv_must_agree(flat):
    wanted = list(loaders(flat, "valid")["valid"].paths)
    rows = rows_of(flat)
    some = [(row["path"], row["group"]) for row in rows[::2]]
    (flat / "groups.csv").write_text("\n".join(["path,group", *(f"{path},{group}" for path, group in some)]))
    assert list(loaders(flat, "valid")["valid"].paths) == wanted
    (flat / "groups.csv").write_text(f"path,group\n{rows[3]['path']},another\n")
    with pytest.raises(UserError, match=r"is of the group 'another', and of '.*' in labels.csv; correct one of them"):
        loaders(flat, "valid")


def test_groups_csv_may_name_images_that_labels_csv_leaves_out(flat):
    rows = rows_of(flat)
    write_table(flat, ([row["path"], row["label"]] for row in rows[5:]), ("path", "label"))
    text = "".join(f"{row['path']},{row['group']}\n" for row in rows)
    (flat / "groups.csv").write_text("path,group\n" + text)
    both = loaders(flat, "train", "valid")
    assert "5 images without a row in labels.csv ignored" in both["train"].description
    (flat / "groups.csv").write_text("path,group\n" + text + "images/gone.png,x\n")
    with pytest.raises(UserError, match="1 of 91 rows name no image"):
        loaders(flat, "train")


# --- weights ----------------------------------------------------------------------------------------------


def with_weights(flat: Path, of) -> Path:
    rows = [[*(row[key] for key in HEADER), of(row)] for row in rows_of(flat)]
    return write_table(flat, rows, (*HEADER, "Weight"))


def test_weights_are_of_training_images_and_1_on_average(flat):
    with_weights(flat, lambda row: {"class_0": "", "class_1": "2", "class_2": "0.5"}[row["label"]])
    made = loaders(flat, "train", "valid", "test", normalize="imagenet")
    counts = np.array(made["train"].class_counts)
    mean = (counts * [1, 2, 0.5]).sum() / counts.sum()
    wanted = torch.tensor([1 / mean, 2 / mean, 0.5 / mean], dtype=torch.float32)
    for _, labels, positions, given in batches(made["train"]):
        is_real = given > 0
        assert torch.allclose(given[is_real], wanted[labels[is_real]])
        assert len(set(positions[is_real].tolist())) == int(is_real.sum())
    for split in ("valid", "test"):
        assert all(set(batch[3].tolist()) <= {0.0, 1.0} for batch in batches(made[split]))
    assert "weighted as labels.csv says" in made["train"].description


def test_equal_weights_change_nothing_and_others_are_other_data(flat, tmp_path):
    plain, equal, other = (experiment(tmp_path / name) for name in ("plain", "equal", "other"))
    assert call("train", "--data_dir", flat, "--model_dir", plain)[0] == 0
    with_weights(flat, lambda row: "3.0")
    assert call("train", "--data_dir", flat, "--model_dir", equal)[0] == 0
    assert weights(equal) == weights(plain)
    with_weights(flat, lambda row: 1 + (row["label"] == "class_1"))
    code, printed = call("train", "--model_dir", equal, "--num_epochs=3")
    assert code == 2
    assert "the data changed" in printed
    assert call("train", "--data_dir", flat, "--model_dir", other)[0] == 0
    assert weights(other) != weights(plain)


# --- damaged tables ---------------------------------------------------------------------------------------

FIRST = "images/0_0.png,a\n"
DAMAGED = {
    "no label column": ("path,kind\n" + FIRST, "no column label; it has path, kind"),
    "no rows": ("path,label\n", "no rows"),
    "no label": ("path,label\n" + FIRST + "images/1_0.png, \n", "line 3 has no label"),
    "several labels": ("path,label\nimages/0_0.png,a|b\n", "line 2 has the label 'a|b': several labels"),
    "one class": ("path,label\n" + FIRST, "one class (a); at least two are needed"),
    "unknown image": ("path,label\n" + FIRST + "images/x.png,b\n", "1 of 2 rows name no image"),
    "twice": ("path,label\n" + FIRST + "images/0_0.png,b\n", "lines 2 and 3 are both of 'images/0_0.png'"),
    "unknown split": ("path,label,split\nimages/0_0.png,a,trian\n", "the split 'trian'; did you mean 'train'?"),
    "no train": ("path,label,split\nimages/0_0.png,a,test\n", "no row is of the split train (it has test)"),
    "test alone": (
        "path,label,split\nimages/0_0.png,a,\nimages/1_0.png,b,train\nimages/2_0.png,c,test\n",
        "classes with images in test and none in train: c",
    ),
    "weight": (
        "path,label,weight\nimages/0_0.png,a,heavy\n",
        "line 2 has the weight 'heavy'; possible are numbers above 0",
    ),
    "weight 0": ("path,label,weight\nimages/0_0.png,a,0\n", "possible are numbers above 0"),
    "not UTF-8": ("path,label\nimages/0_0.png,é\nimages/1_0.png,b\n", "save it as UTF-8"),
    "groups in two splits": (
        "path,label,split,group\nimages/0_0.png,a,,x\nimages/1_0.png,b,,y\nimages/2_0.png,a,test,x\n",
        "1 of 2 groups are in two splits, for example 'x' in train and test",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_table_is_one_line_and_nothing_is_written(flat, kind, tmp_path):
    text, words = DAMAGED[kind]
    (flat / "labels.csv").write_bytes(text.encode("latin-1"))
    folder, before = experiment(tmp_path / "e"), tree(flat)
    for script, flags in (("train", ["--model_dir", folder]), ("build_dataset", ["--check"])):
        code, printed = call(script, "--data_dir", flat, *flags)
        assert code == 2, printed
        assert len(printed.strip().splitlines()) == 1, printed
        assert words in printed
        assert "labels.csv" in printed or str(flat) in printed
    assert list(tree(folder)) == ["params.json"]
    assert tree(flat) == before


def test_links_are_followed_and_dangling_ones_are_broken_images(flat):
    rows = rows_of(flat)
    (flat / "links").mkdir()
    os.symlink(flat / rows[-1]["path"], flat / "links/a.png")
    os.symlink("nowhere.png", flat / "links/b.png")
    os.symlink(flat, flat / "links/back")
    rows += [{**rows[-1], "path": "links/a.png"}, {**rows[-1], "path": "links/b.png"}]
    write_table(flat, ([row[key] for key in HEADER] for row in rows))
    with pytest.raises(UserError, match="1 of 74 train images cannot be used: .*b.png"):
        loaders(flat, "train")
    both = loaders(flat, "train", "valid", on_bad_image="skip")
    assert sum(part.num_images for part in both.values()) == 73
