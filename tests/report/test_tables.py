"""Tables over many folders: seeds and folds, choosing, differences, what runs, and what is not done."""

import csv
import datetime
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from kit import ROOT, call, experiment, make_dataset
from runs import make_folder, make_history, make_run, write

from report.formats import to_latex, to_markdown
from report.rows import read_rows
from report.settings import differing_keys
from report.summary import format_summary, read_summary, summarise, write_summary
from report.tables import make_table
from report.tree import find_folders
from report.watch import format_duration, watch
from utils import UserError

NOISE = [0.002, -0.001, 0.0, 0.001, -0.002]


@pytest.fixture
def search(tmp_path):
    """Three learning rates with five seeds each; 0.1 is clearly best. And a twin of 0.1: 0.2."""
    write(tmp_path / "params.json", {"hyper_search": {"learning_rate": [0.1, 0.01, 0.001]}, "search": {"seeds": 5}})
    for rate, accuracy in ((0.1, 0.9), (0.01, 0.8), (0.001, 0.7)):
        for seed, noise in enumerate(NOISE):
            name = f"learning_rate_{rate}__seed_{seed}"
            make_folder(tmp_path / name, accuracy + noise, learning_rate=rate, seed=seed)
    return tmp_path


def write_all(folder):
    """The tables of all runs below a folder -> the files written."""
    return write_summary(folder, read_summary(find_folders(folder), folder))


def synthesize(*argv):
    return call("synthesize_results", *argv)


def as_json(*argv):
    code, printed = synthesize(*argv, "--json")
    assert code == 0, printed
    return json.loads(printed)


# --- seeds and folds ------------------------------------------------------------------------------------


def test_seeds_make_one_line_with_interval_and_verdict(search):
    said = as_json("--parent_dir", search)
    assert [line["learning_rate"] for line in said["groups"]] == [0.1, 0.01, 0.001]
    assert len(said["rows"]) == 15
    best = said["groups"][0]
    assert best["n"] == 5
    assert best["val_accuracy"] == pytest.approx(0.9)
    assert best["p"] is None
    assert best["interval"] == pytest.approx(2.7764451 * 0.00158113883 / 5**0.5)
    assert best["folder"] == "learning_rate_0.1…"
    assert said["groups"][1]["p"] < 1e-6
    assert said["verdict"].startswith(
        "Best: learning_rate 0.1, mean accuracy 0.9000 ± 0.0020, n = 5; better than every"
    )
    text = (search / "results.md").read_text()
    assert text.index("± 0.0020") < text.index("Best: ") < text.index("Each run:") < text.index("seed_4")


def test_within_noise_there_is_no_winner(search):
    for seed, noise in enumerate(reversed(NOISE)):
        name = f"learning_rate_0.2__seed_{seed}"
        make_folder(search / name, 0.9003 + noise, learning_rate=0.2, seed=seed)
    said = as_json("--parent_dir", search)
    assert "Best mean: learning_rate 0.2, mean accuracy 0.9003 ±" in said["verdict"]
    assert said["verdict"].startswith("No winner: within noise (p = ")
    assert said["verdict"].endswith("Could equally be best: learning_rate 0.1.")


def test_less_is_better_for_a_loss(search):
    said = as_json("--parent_dir", search, "--sort", "loss")
    assert said["verdict"].startswith("Best: learning_rate 0.1, mean loss 0.1000")
    assert "better than" in said["verdict"]
    assert [line["learning_rate"] for line in said["groups"]] == [0.1, 0.01, 0.001]


def test_folds_are_replicates_and_runs_alone_no_claim(tmp_path):
    for rate in (0.1, 0.2):
        for fold in (1, 2, 3):
            name = f"lr_{rate}__fold_{fold}"
            make_folder(tmp_path / name, 0.5 + rate + fold / 10, learning_rate=rate, fold=[fold, 3])
    said = as_json("--parent_dir", tmp_path)
    assert [line["n"] for line in said["groups"]] == [3, 3]
    assert "paired by seed or fold" in said["verdict"]
    assert said["verdict"].startswith("Best: learning_rate 0.2")  # each fold says so, though folds differ by more
    for rate, values in ((0.1, (0.5, 0.6, 0.4)), (0.2, (0.62, 0.5, 0.55))):  # folds that seem to share nothing
        for fold, value in enumerate(values, 1):
            make_folder(tmp_path / f"lr_{rate}__fold_{fold}", value, learning_rate=rate, fold=[fold, 3])
    assert "paired by seed or fold" in as_json("--parent_dir", tmp_path)["verdict"]
    single = as_json(tmp_path / "lr_0.1__fold_1", tmp_path / "lr_0.2__fold_1")
    assert "one run each, so no claim" in single["verdict"]
    assert "groups" not in single


def test_repeated_folds_and_runs_are_told(tmp_path):
    """Two runs of fold 1 (with other seeds), a copy of a run, and folds of another number of parts."""
    for name, fold, seed in (("a", [1, 2], 0), ("b", [1, 2], 1), ("c", [2, 2], 0)):
        make_run(tmp_path / name, 0.8, ps=0.5, fold=fold, seed=seed)
    make_run(tmp_path / "d", 0.7, ps=0.1, fold=[1, 2])
    make_run(tmp_path / "e", 0.7, ps=0.1, fold=[2, 2])
    code, out = call("synthesize_results", "--parent_dir", tmp_path)
    assert code == 0
    assert "ps 0.5: n = 3 runs of 2 folds, of fold [1, 2]: a, b" in out
    assert "ps 0.5: n = 3 runs of 2 folds" in (tmp_path / "results.md").read_text()
    assert call("plot_results", "--parent_dir", tmp_path)[0] == 0
    assert "ps 0.5: n = 3 runs of 2 folds" in (tmp_path / "report.html").read_text()
    assert out.count("ps 0.1:") == 0
    # a copy of a run counts once, and says so
    make_run(tmp_path / "f", 0.7, ps=0.1, fold=[2, 2])
    code, out = call("synthesize_results", "--parent_dir", tmp_path, "--json")
    result = json.loads(out[out.index("{") :])
    assert "ps 0.1: e, f have the same seed and fold; the last one counts" in result["notes"]
    (group,) = [group for group in result["groups"] if group["ps"] == 0.1]
    assert group["n"] == 2
    # folds of other numbers of parts are no replicates of these
    make_run(tmp_path / "g", 0.7, ps=0.1, fold=[1, 3])
    code, out = call("synthesize_results", "--parent_dir", tmp_path)
    assert "ps 0.1: folds of 2 and of 3 parts are averaged" in out


def test_runs_that_validated_on_other_images_are_told(tmp_path):
    """Two trainings on a folder, one of whose validation images was replaced in between."""
    data = make_dataset(tmp_path / "data")
    small = {"arch": "lenet", "im_sz": 16, "batch_size": 16, "num_epochs": 1}
    for name in ("a", "b", "c"):
        if name == "c":
            first, second, *_ = sorted(path for path in (data / "valid").rglob("*") if path.is_file())
            shutil.copy(second, first)
        folder = experiment(tmp_path / "runs" / name, **small, learning_rate=0.1 if name == "a" else 0.01)
        code, out = call("train", "--data_dir", data, "--model_dir", folder)
        assert code == 0, out
        code, out = call("synthesize_results", "--parent_dir", tmp_path / "runs")
        assert ("not the same validation images" in out) == (name == "c"), out
    assert "data: not the same validation images, so not comparable: a, b | c" in out


def test_there_is_no_verdict_over_different_datasets(tmp_path):
    for name, accuracy in (("a", 0.9), ("b", 0.5)):
        meta = make_run(tmp_path / name, accuracy) / "record/meta.json"
        write(meta, json.loads(meta.read_text()) | {"data_dir": f"data/{name}"})
    code, out = call("synthesize_results", "--parent_dir", tmp_path)
    assert code == 0
    assert "No verdict over different datasets (a, b): --where data=NAME chooses one" in out
    assert "Best" not in out
    assert "No winner" not in out


def test_only_runs_that_are_done_count(search):
    write(search / "learning_rate_0.1__seed_4/record/status.json", {"state": "pruned", "message": "pruned by median"})
    make_folder(search / "again", 0.1, learning_rate=0.1, seed=0)  # a duplicate counts once
    said = as_json("--parent_dir", search)
    best = said["groups"][0]
    assert best["n"] == 4
    assert best["status"] == "4 of 6 done"
    assert "pruned by median" in said["not_done"]["learning_rate_0.1__seed_4"]


# --- choosing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "num"),
    [
        (["learning_rate=0.1"], 5),
        (["learning_rate != 0.1"], 10),
        (["learning_rate<0.1", "seed>=3"], 4),
        (["accuracy>0.85"], 5),
        (["val_accuracy<=0.75"], 5),
        (["arch==lenet", "status=done", "folder=learning_rate_0.1__seed_0"], 1),
        (["seed=0.0"], 3),
        (["data=digits"], 15),
        (["arch=resnet18"], 0),
    ],
)
def test_where(search, conditions, num):
    argv = [word for condition in conditions for word in ("--where", condition)]
    said = as_json("--parent_dir", search, *argv)
    assert len(said["rows"]) == num
    assert said["files"] == []
    assert not (search / "results.md").exists()
    assert num or "No run meets" in said["remark"]


def test_columns_top_and_csv(search):
    _, printed = synthesize("--parent_dir", search, "--columns", "seed,accuracy", "--top", 2, "--format", "csv")
    assert printed.splitlines() == ["seed,val_accuracy", "0,0.902", "3,0.901"]
    _, printed = synthesize("--parent_dir", search, "--columns", "learning_rate,accuracy,p", "--top", 1)
    assert printed.split("\n")[0].split() == ["|", "learning_rate", "|", "val_accuracy", "|", "p", "|"]
    assert "... 2 more lines" in printed
    assert "Each run" not in printed
    _, printed = synthesize("--parent_dir", search, "--columns", "folder,seed", "--top", "0")
    assert len([line for line in printed.splitlines() if "seed_" in line]) == 15


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--where", "learning_rat=1"], "did you mean 'learning_rate'"),
        (["--where", "learning_rate"], "NAME=VALUE"),
        (["--where", "arch<lenet"], "compares numbers"),
        (["--where", "__import__('os')>1"], "no column"),
        (["--columns", "folder,acuracy"], "accuracy"),
        (["--columns", ","], "names are expected"),
        (["--columns", "seed,acuracy", "--format", "csv"], "accuracy"),
        (["--sort", "acuracy"], "accuracy"),
        (["--top", "-1"], "number of lines"),
        (["--top", "x"], "invalid int"),
        (["--diff"], "two or more"),
    ],
)
def test_mistakes_are_one_line(search, argv, said):
    folders = [search / "learning_rate_0.1__seed_0"] if argv == ["--diff"] else ["--parent_dir", search]
    code, printed = synthesize(*folders, *argv)
    assert code == 2
    assert said in printed
    assert len(printed.strip().splitlines()) == 1


def test_equal_epochs(tmp_path):
    for name, num, best in (("short", 3, 0.6), ("long", 10, 0.9), ("mid", 6, 0.7)):
        write(make_folder(tmp_path / name, best, learning_rate=num) / "history.json", make_history(num, best))
    said = as_json("--parent_dir", tmp_path, "--equal_epochs")
    assert {line["epochs"] for line in said["rows"]} == {3}
    assert "3 epochs" in said["remark"]
    third = {line["folder"]: line["val_accuracy"] for line in said["rows"]}
    assert third["long"] == make_history(10, 0.9)[2]["val_accuracy"]
    assert third["short"] == make_history(3, 0.6)[2]["val_accuracy"]


def test_escapes_and_sizes(tmp_path):
    make_folder(tmp_path / "a|b_c*<x>", 0.5, arch="my_net|50%", **{f"key_{n}": n for n in range(300)})
    for number in range(299):
        more = {f"key_{n}": n + number for n in range(300)}
        make_folder(tmp_path / f"run_{number}", number / 300, arch="lenet", **more)
    table = make_table(read_rows(find_folders(tmp_path), tmp_path)[0])
    lines = to_markdown(table).splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "a\\|b_c\\*\\<x>" in "".join(lines)
    assert "my\\_net|50\\%" in to_latex(table)
    assert "\\toprule" in to_latex(table)
    text = format_summary(summarise(*read_rows(find_folders(tmp_path), tmp_path)))
    assert "... 200 more lines and 285 more columns" in text
    assert max(map(len, text.splitlines())) < 600
    assert len(text.splitlines()) < 110
    assert len(next(csv.reader(io.StringIO(write_all(tmp_path)[1].read_text())))) > 300


def test_names_that_are_no_text(tmp_path):
    os.makedirs(os.fsencode(tmp_path) + b"/bad_\xff")
    make_folder(tmp_path / os.fsdecode(b"bad_\xff"), 0.5, arch="\ud800")
    make_folder(tmp_path / "line\nbreak", 0.4)
    for form in ("md", "csv", "latex"):
        assert synthesize("--parent_dir", tmp_path, "--format", form)[0] == 0
    assert "bad_\\udcff" in (tmp_path / "results.csv").read_text()


# --- what is found --------------------------------------------------------------------------------------


def test_links_count_once_and_loops_do_no_harm(tmp_path):
    parent, elsewhere = tmp_path / "p", make_folder(tmp_path / "elsewhere/run", 0.5)
    inside = make_folder(parent / "a", 0.6, learning_rate=0.3)
    for name, target in (("b", elsewhere), ("c", elsewhere), ("again", inside), ("up", parent), ("top", tmp_path)):
        (parent / name).symlink_to(target, target_is_directory=True)
    (parent / "self").symlink_to(parent / "self")
    (parent / "gone").symlink_to(tmp_path / "nowhere")
    (inside / "loop").symlink_to(parent)
    rows, problems = read_rows(find_folders(parent), parent)
    assert [row.name for row in rows] == ["a", "b"]
    assert sorted(problems) == ["gone", "self"]
    assert "which is gone" in problems["gone"]


def test_every_kind_of_damage_is_named(tmp_path):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import tables as benchmark

    damaged = benchmark.make_folders(tmp_path, 240)
    assert len(damaged) == 12
    for name, make in {
        "pipe": lambda path: os.mkfifo(path / "history.json"),
        "inf": lambda path: write(path / "metrics_val_best_weights.json", '{"accuracy": 1e999}'),
        "huge": lambda path: write(path / "metrics_val_best_weights.json", '{"accuracy": 1%s}' % ("0" * 400)),
        "given": lambda path: write(path / "params.json", "{"),
        "status": lambda path: write(path / "record/status.json", '{"state": 3}'),
        "dangling": lambda path: (path / "history.json").symlink_to(path / "nothing"),
    }.items():
        folder = make_folder(tmp_path / name, 0.5)
        if name in ("pipe", "dangling"):
            (folder / "history.json").unlink()
        make(folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "record_is_a_file").mkdir()
    write(tmp_path / "record_is_a_file/params.json", "{}")
    write(tmp_path / "record_is_a_file/record", "")
    _, problems = read_rows(find_folders(tmp_path), tmp_path)
    named = {"pipe", "inf", "huge", "given", "status", "dangling", "empty", "record_is_a_file"}
    assert set(problems) == set(damaged) | named
    assert all(remark.startswith("malformed") for remark in problems.values())


def test_many_folders_are_read_by_several_processes_alike(tmp_path, monkeypatch):
    for number in range(60):
        make_folder(tmp_path / f"run_{number}", number / 60, learning_rate=number)
    (tmp_path / "run_7/history.json").write_text("{")
    folders = find_folders(tmp_path)
    alone = read_rows(folders, tmp_path, keep_history=False)
    code = (
        "import sys; from pathlib import Path; import report.rows as r; r.MANY_FOLDERS, r.CHUNK_SIZE = 10, 7\n"
        "from report.tree import find_folders\n"
        "rows, problems = r.read_rows(find_folders(Path(sys.argv[1])), Path(sys.argv[1]), keep_history=False)\n"
        "print('multiprocessing' in sys.modules, repr((rows, problems)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    is_forked, _, said = done.stdout.strip().partition(" ")
    assert said == repr(alone), done.stderr
    assert is_forked == str(len(os.sched_getaffinity(0)) > 1)


def test_differing_whatever_the_order_of_the_keys(tmp_path):
    make_folder(tmp_path / "a", 0.5, one=1, two=[1])
    make_folder(tmp_path / "b", 0.5, two=[2], one=1)
    assert differing_keys(read_rows(find_folders(tmp_path))[0]) == ["two"]


def test_csv_is_the_same_whatever_the_clock(search):
    write_all(search)
    first = (search / "results.csv").read_bytes()
    for folder in search.glob("*seed*"):
        rows = json.loads((folder / "history.json").read_text())
        write(folder / "history.json", [row | {"seconds": 9.9, "images_per_second": 1} for row in rows])
    write_all(search)
    assert (search / "results.csv").read_bytes() == first


# --- differences ----------------------------------------------------------------------------------------


def test_diff_says_parameters_code_metrics_and_noise(search):
    one, two = search / "learning_rate_0.1__seed_0", search / "learning_rate_0.01__seed_3"
    for folder, code in ((one, "x = 1  # why\n"), (two, "x = 1\n")):
        write(folder / "record/code/model/net.py", code)
        write(folder / "record/code/train.py", f"y = {folder == one}\n")
    found = as_json(one, two, "--diff")
    assert found["params"] == {"learning_rate": [0.1, 0.01], "seed": [0, 3]}
    assert found["code"] == {str(two): ["train.py"]}
    assert found["metrics"]["val_accuracy"] == [0.902, 0.801]
    assert found["noise"].startswith("Beyond noise:")
    assert "5 and 5 seeds" in found["noise"]
    _, printed = synthesize(one, two, "--diff")
    assert "train.py" in printed
    assert "| learning\\_rate" not in printed
    assert "0.9020" in printed
    same = as_json(one, search / "learning_rate_0.1__seed_1", "--diff")
    assert "is noise" in same["noise"]
    alone = make_folder(search / "x/alone", 0.5, learning_rate=7)
    assert "so no claim" in as_json(one, alone, "--diff")["noise"]
    code, printed = synthesize(one, search / "x", "--diff")
    assert code == 2
    assert "has no results" in printed


# --- what runs ------------------------------------------------------------------------------------------


def running(folder, seconds_ago=0, pid=None, step=15):
    when = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds_ago)
    status = {"state": "running", "epoch": 1, "step": step, "pid": pid or os.getpid(), "host": socket.gethostname()}
    write(folder / "record/status.json", status | {"updated": when.isoformat(timespec="seconds"), "message": ""})
    write(folder / "history.json", make_history(1))


def test_watch_shows_progress_rate_and_silence(tmp_path):
    for name, ago, pid in (("quick", 0, None), ("silent", 95, None), ("gone", 0, 2**22 + 1)):
        running(make_folder(tmp_path / name, 0.9, num_epochs=4), ago, pid)
    make_folder(tmp_path / "finished", 0.9)
    write(tmp_path / "bad/record/status.json", "{")
    text, num = watch(find_folders(tmp_path), tmp_path)
    assert num == 2
    assert "2 running" in text
    assert "1 done" in text
    assert "1 malformed" in text
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "1.5/4" in lines["quick"]
    assert "15/40" in lines["quick"]
    assert "4 s" in lines["quick"]
    assert "no sign" not in lines["quick"]
    assert "no sign for 9" in lines["silent"]
    assert "killed: its process is gone" in lines["gone"]
    assert [format_duration(s) for s in (95, 600, 11_100, 190_000)] == ["95 s", "10 min", "3 h 05 min", "2 d 4 h"]


def test_watch_prints_once_without_a_terminal_and_ends_at_ctrl_c_in_one(tmp_path):
    running(make_folder(tmp_path / "run", 0.9, num_epochs=4))
    begun = time.monotonic()
    code, printed = synthesize("--parent_dir", tmp_path, "--watch")
    assert code == 0
    assert "1 running" in printed
    assert "\x1b" not in printed
    assert time.monotonic() - begun < 2
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(
            sys.executable, [sys.executable, f"{ROOT}/synthesize_results.py", "--parent_dir", str(tmp_path), "--watch"]
        )
    shown = b""
    while b"\x1b[H\x1b[J" not in shown:  # it has drawn over itself once
        shown += os.read(terminal, 4096)
    os.kill(pid, signal.SIGINT)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    assert shown.count(b"1 running") == 2
    assert b"Traceback" not in shown


def test_a_real_run_has_its_number_of_parameters(tmp_path):
    data = make_dataset(tmp_path / "data")
    for seed in (0, 1):
        folder = experiment(tmp_path / "p" / f"seed_{seed}", seed=seed, num_epochs=1)
        assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    said = as_json("--parent_dir", tmp_path / "p")
    assert said["groups"][0]["n"] == 2
    assert said["rows"][0]["num_parameters"] > 1000
    diff = as_json(*sorted((tmp_path / "p").glob("seed_*")), "--diff")
    assert diff["params"] == {"seed": [0, 1]}
    assert list(diff["code"].values()) == [[]]


def test_nothing_is_lost_by_a_mistake(search):
    write_all(search)
    before = (search / "results.md").read_bytes()
    import synthesize_results

    with pytest.raises(UserError):
        synthesize_results.main(["--parent_dir", str(search), "--sort", "x"])
    assert (search / "results.md").read_bytes() == before
