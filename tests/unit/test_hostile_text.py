"""Names that a terminal or a spreadsheet would act upon."""

import csv
import errno
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kit import call, experiment
from safetensors.torch import load_file

from engine.checkpoint import read_metadata, weights_file
from engine.use.evaluation import ClassScores, class_table, write_csv
from engine.use.prediction import format_table
from folder.csv_text import csv_text
from report.formats import list_problems, to_csv, to_markdown
from report.tables import Table
from utils import UserError, csv_value, describe_oserror, printable

FORMULAS = ['=HYPERLINK("http://x")', "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''-x"]
ESCAPE = "a\x1b]0;title\x07\x1b[2Jb\x9b31m"
SHOWN = r"a\x1b]0;title\x07\x1b[2Jb\x9b31m"


def test_a_terminal_is_shown_escapes_as_text():
    assert printable(ESCAPE) == SHOWN
    assert printable("Größe, 猫\tx\n") == "Größe, 猫\tx\n"
    assert str(UserError(f"no such class {ESCAPE}")) == f"no such class {SHOWN}"
    table = Table(["folder", ESCAPE], [{"folder": ESCAPE, ESCAPE: "x"}])
    rows = [{"path": ESCAPE, "label_1": ESCAPE, "prob_1": 0.5, "error": ""}]
    scores = ClassScores(ESCAPE, 1, 1.0, 1.0, 1.0, ESCAPE)
    texts = [to_markdown(table), list_problems({ESCAPE: f"failed {ESCAPE}"}), format_table(rows), class_table([scores])]
    for text in texts:
        assert r"\x1b" in text
        assert not [char for char in text if char in "\x1b\x07\x9b"], text


@pytest.mark.parametrize("text", FORMULAS)
def test_a_spreadsheet_is_given_no_formula(text, tmp_path):
    assert csv_text(text) == f"'{text}"
    write_csv(tmp_path / "x.csv", ["path", text], [[text, -0.5]])
    for content in (
        (tmp_path / "x.csv").read_bytes().decode(),
        to_csv(Table(["path", text], [{"path": text, text: -0.5}])),
    ):
        heads, line = list(csv.reader(io.StringIO(content, newline="")))
        assert heads == ["path", f"'{text}"]
        assert line == [f"'{text}", "-0.5"], "numbers stay numbers"


@given(st.text())
def test_a_name_in_a_table_is_read_back(text):
    assert csv_value(str(csv_text(text))) == text
    if text[:1].isalnum():
        assert csv_text(text) == text, "ordinary names are written as they are"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_says_what_to_do(number):
    assert "ulimit -n" in describe_oserror(OSError(number, "Too many open files", "x.png"))


def test_weights_that_are_not_finite_are_refused(data, tmp_path):
    folder = experiment(tmp_path / "e", num_epochs=1)
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    path = folder / "weights/best.safetensors"
    tensors = load_file(path)
    first = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[first].view(-1)[0] = torch.nan
    path = tmp_path / "nan.safetensors"
    metadata = read_metadata(folder / "weights/best.safetensors")
    path.write_bytes(weights_file(tensors, {k: v for k, v in metadata.items() if k != "digest"}))
    image = next((data / "valid").rglob("*.png"))
    for command in (("predict", "--model_dir", folder, image), ("evaluate", "--model_dir", folder, "--split", "valid")):
        code, printed = call(*command, "--restore_file", path)
        assert code == 3, printed
        assert f"1 of {len(tensors)} tensors hold NaN or infinity, first {first}" in printed
