"""report.html: what stands in it, that nothing in it is executed that was only text, and, in Chromium, what it does."""

import json
import os
import random
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from kit import call, experiment, make_dataset
from runs import make_run, write

from folder.folder import Folder
from folder.provenance import changed_files, snapshot, source_files
from include import RESOLVED, ROOT
from report.html import runs_page as page_runs
from report.html.document import HERE, PLOTLY, REPORT, environment, provide_plotly, replace_non_finite
from report.html.experiment_page import write_experiment_page, write_experiment_pages
from report.html.runs_page import write_runs_page
from report.plots.ranking import rank_runs
from report.rows import read_rows
from report.tree import find_folders


def write_page(path: Path, verdict: str = "") -> Path:
    """The pages of one experiment, or of all below a folder, without the pictures."""
    if (path / RESOLVED).exists():
        return write_experiment_page(path)
    folders = find_folders(path)
    rows, problems = read_rows(folders, path)
    page = write_runs_page(path, rank_runs(rows), problems, verdict)
    write_experiment_pages(folders)
    return page


NASTY = "<img src=x onerror='window.hacked=1'> & \"quoted\" %41 #1?"
ESCAPE = "</script><script>window.hacked=1</script>"


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.targets, self.tags, self.text, self._raw = [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._raw = tag if tag in ("script", "style") else ""
        self.targets += [value for name, value in attributes if name in ("href", "src")]

    def handle_endtag(self, tag):
        self._raw = ""

    def handle_data(self, data):
        if not self._raw:
            self.text.append(data)


def check_links(path: Path) -> list[str]:
    """Every address in a page is relative and leads to a file that is there."""
    targets = Page(path).targets
    for target in targets:
        assert not re.match(r"\w+:|//", target), target
        assert (path.parent / unquote(target)).exists(), target
    return targets


def make_parent(parent: Path, number: int = 12, epochs: int = 5) -> Path:
    """A random search in all states, with two seeds, a pruned, a failed, an unfinished and a malformed run."""
    draw = random.Random(3)
    parent.mkdir(parents=True, exist_ok=True)
    space = {"learning_rate": {"min": 1e-4, "max": 1, "log": True}, "arch": ["lenet", "resnet9"]}
    (parent / "params.json").write_text(json.dumps({"hyper_search": space, "search": {"seeds": 2}}))
    for i in range(number):
        rate, state = 10 ** draw.uniform(-4, 0), "pruned" if i == 4 else "done"
        for seed in (0, 1):
            make_run(
                parent / f"run_{i}__seed_{seed}",
                0.5 + i / (2.5 * number) + seed / 100,
                state,
                2 if i == 4 else epochs,
                "asha: not among the best" if i == 4 else "",
                learning_rate=rate,
                arch=["lenet", "resnet9"][i % 2],
                seed=seed,
            )
    (parent / "new").mkdir()
    (parent / "new/params.json").write_text("{}")
    (make_run(parent / "bad", 0.9) / "history.json").write_text("{")
    return parent


def test_a_trained_and_evaluated_experiment(tmp_path):
    data = make_dataset(tmp_path / "data")
    folder = experiment(tmp_path / "search/first", learning_rate=0.03)
    (tmp_path / "search/params.json").write_text('{"hyper_search": {"learning_rate": [0.03]}}')
    assert call("train", "--data_dir", data, "--model_dir", folder)[0] == 0
    assert call("evaluate", "--model_dir", folder)[0] == 0
    assert call("plot_results", "--parent_dir", tmp_path / "search")[0] == 0
    targets = check_links(folder / REPORT)
    assert {
        f"../{PLOTLY}",
        f"../{REPORT}",
        "batch_train.png",
        "train_history.png",
        "evaluation/confusion_matrix.png",
        "evaluation/top_losses.png",
        "history.csv",
    } <= set(targets)
    said = " ".join(Page(folder / REPORT).text)
    for word in (
        "The test set was evaluated 1 time.",
        "learning_rate",
        "0.03",
        "0.05",
        "best epoch",
        "validation, best weights",
    ):
        assert word in said, word
    assert not (folder / PLOTLY).exists()
    assert (tmp_path / "search" / PLOTLY).stat().st_size > 1e6
    assert "first/report.html" in check_links(tmp_path / "search" / REPORT)


def test_a_folder_of_its_own_has_its_own_script(tmp_path):
    folder = make_run(tmp_path / "alone", 0.9)
    assert write_page(folder) == folder / REPORT
    assert PLOTLY in check_links(folder / REPORT)
    assert "rel" not in Page(folder / REPORT).tags


HOSTILE = [
    "javascript:alert(1)",
    "data:text<html,x",
    "a\u202egnp.exe",
    "b\x1b[2J\x01\x9d",
    "c' onclick='x",
    "</script>",
    "</title><b>",
    "{{ 7*7 }}",
]


class Structure(HTMLParser):
    """Tags, attributes and what is shown of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.shown = path.read_bytes().decode("utf-8")
        self.feed(self.shown)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def test_no_name_or_value_becomes_code_a_link_or_hidden_text_on_any_page(tmp_path):
    """Names of folders and classes, parameters, notes, messages, metrics, the log, git and command lines."""
    benign, hostile = tmp_path / "benign", tmp_path / "hostile"
    for parent, names in ((benign, [f"run{k}" for k in range(len(HOSTILE))]), (hostile, HOSTILE)):
        for name, value in zip(names, names, strict=True):
            run = make_run(parent / name.replace("/", ""), 0.8, note=value, arch=value, message=value)
            resolved = json.loads((run / "record/resolved.json").read_text())
            write(run / "record/resolved.json", resolved | {"pinned": {"classes": [value, value + "2"]}})
            meta = {"data_dir": f"/data/{value}", "minimize": ["loss"], "command": ["train.py", value], "host": value}
            write(
                run / "record/meta.json", meta | {"git": {"commit": value, "branch": value}, "versions": {value: value}}
            )
            write(run / "train.log", f"{value}\n")
            rows = json.loads((run / "history.json").read_text())
            write(run / "history.json", [row | {f"val_{value}": 0.5} for row in rows])
            write(run / "metrics_test_best.json", {"epoch": 5, "loss": 0.5, "accuracy": 0.5, value: 0.5})
        make_run(parent / f"{names[0]} failed", 0.5, state="failed", message=names[2])
        write(parent / "params.json", {"hyper_search": {"note": names}})
        write_page(parent, verdict=" ".join(names))
    pages = sorted(hostile.rglob("report.html"))
    assert len(pages) == len(HOSTILE) + 2
    plain = [Structure(path) for path in benign.rglob("report.html")]
    known = ({tag for page in plain for tag in page.tags}, {name for page in plain for name, _ in page.attributes})
    hidden = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
    for path in pages:
        page = Structure(path)
        assert set(page.tags) <= known[0], path
        assert {name for name, _ in page.attributes} <= known[1], path
        assert page.tags.count("script") == 3, path
        check_links(path)
        assert not hidden.search(page.shown), path
    shown = Structure(hostile / "report.html").shown
    assert "\\u202e" in shown
    assert "{{ 7*7 }}" in shown


def test_names_and_values_are_text(tmp_path):
    parent = tmp_path / "p"
    make_run(parent / NASTY, 0.9, note=ESCAPE, learning_rate=0.2)
    (parent / NASTY / "train.log").write_text(f"{ESCAPE}\n{NASTY}\n")
    make_run(parent / "b", 0.8, note="plain", message=ESCAPE, state="failed")
    (parent / "params.json").write_text(json.dumps({"hyper_search": {"note": [ESCAPE, NASTY]}}))
    write_page(parent)
    for path in (parent / REPORT, parent / NASTY / REPORT):
        page = Page(path)
        assert page.tags.count("script") == 3
        assert page.tags.count("img") == 0
        assert ESCAPE in " ".join(page.text)
        assert NASTY in " ".join(page.text)
        check_links(path)


def test_json_for_a_script():
    value = {"a": "</script>\u2028", "b": [float("nan"), float("inf"), 1.5]}
    script = environment().from_string("{{ data | tojson }}").render(data=replace_non_finite(value))
    assert "<" not in script
    assert json.loads(script) == {
        "a": "</script>\u2028",
        "b": [None, None, 1.5],
    }


def test_a_name_that_is_no_text(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    try:
        make_run(tmp_path / name, 0.9)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    make_run(tmp_path / "b", 0.8)
    assert f"caf%E9/{REPORT}" in Page(write_page(tmp_path)).targets


def test_what_is_damaged_is_said(tmp_path):
    folder = make_run(tmp_path / "a", 0.9)
    (folder / "history.json").write_text("{")
    (folder / "metrics_val_last_weights.json").write_text("[1]")
    page = " ".join(Page(write_page(folder)).text)
    assert "history.json" in page
    assert "metrics_val_last_weights.json is damaged" in page
    assert "malformed" in page


def test_states_are_counted_and_the_rest_is_named(tmp_path):
    text = " ".join(Page(write_page(make_parent(tmp_path / "p"), verdict="No winner: within noise.")).text)
    for words in (
        "22 done",
        "2 pruned",
        "1 created",
        "1 malformed",
        "No winner: within noise.",
        "not trained yet",
        "0.0001 to 1 (logarithmic)",
        "Best mean: arch resnet9",
        "(2 seeds)",
        "Best run:",
        "run_11__seed_1",
    ):
        assert words in text, words


def test_a_page_is_written_again_when_it_must(tmp_path):
    parent = make_parent(tmp_path / "p", 3)
    write_page(parent)
    folders = [parent / f"run_{i}__seed_0" for i in range(3)]
    assert write_experiment_pages(folders) == []
    history = folders[1] / "history.json"
    os.utime(history, ns=(time.time_ns() + 10**9, time.time_ns() + 10**9))
    assert write_experiment_pages(folders) == [folders[1] / REPORT]
    shutil.rmtree(parent / "record")
    (parent / REPORT).unlink()
    assert len(write_experiment_pages(folders)) == 3, "the way up is gone"
    assert PLOTLY in check_links(folders[0] / REPORT)


def test_a_page_that_would_say_the_same_stays_and_so_does_a_published_one(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "parent" / "one", 0.8)
    page = write_experiment_page(folder)
    content = page.read_bytes()
    monkeypatch.setattr("report.html.document.now", lambda: "2031-01-01T00:00:00+00:00")
    os.utime(page, (1, 1))
    assert write_experiment_pages([folder]) == [page]
    assert page.read_bytes() == content
    assert page.stat().st_mtime > 1  # and it counts as up to date
    # published: its records name no place
    meta = json.loads((folder / "record/meta.json").read_text())
    (folder / "record/meta.json").write_text(json.dumps(meta | {"path": None, "start": "2030", "host": ""}))
    os.utime(page, (1, 1))
    assert write_experiment_pages([folder]) == []
    write_experiment_page(folder)  # when it is asked for, it is written
    assert page.read_bytes() != content
    assert "2030 on" not in page.read_text()


def test_the_script_is_written_once(tmp_path):
    first = provide_plotly(tmp_path).stat().st_mtime_ns
    assert provide_plotly(tmp_path).stat().st_mtime_ns == first
    (tmp_path / PLOTLY).write_bytes(b"half")
    assert provide_plotly(tmp_path).stat().st_size > 1e6


def test_a_frozen_copy_can_write_pages_and_their_looks_are_no_result(tmp_path):
    assert {path.relative_to(ROOT) for path in HERE.iterdir() if path.is_file()} <= set(source_files(ROOT))
    folder = Folder(tmp_path)
    snapshot(folder, {})
    (tmp_path / "record/code/report/html/page.js").write_text("older")
    assert changed_files(folder, {}) == []
    (tmp_path / "record/code/engine/loop.py").write_text("older = 1")
    assert changed_files(folder, {}) == ["engine/loop.py"]


def test_many_long_curves_are_thinned_out(tmp_path, monkeypatch):
    monkeypatch.setattr(page_runs, "MAX_NUMBERS", 5_000)  # 16 runs, 4 curves, 400 epochs: 25,600
    page = write_page(make_parent(tmp_path / "p", 8, epochs=400))
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])
    first = data["runs"][0]
    assert len(data["runs"]) == 16
    assert (first["epochs"][0], first["epochs"][-1]) == (1, 400)
    assert len(first["epochs"]) * 4 * 16 < 5_500
    assert all(len(line) == len(first["epochs"]) for line in first["series"].values())


def test_what_was_searched_before_is_said(tmp_path):
    """A grid that was changed after a search: its first line must not contradict the best run."""
    for value in ("crop", "flip_crop", "none"):
        make_run(tmp_path / f"augment_{value}", 0.5 if value == "none" else 0.9, augment=value, learning_rate=0.1)
    write = (tmp_path / "params.json").write_text
    before = "Searched before params.json was changed, and still below:"
    write('{"hyper_search": {"augment": ["none", "crop", "flip_crop"]}}')
    assert before not in write_page(tmp_path).read_text()
    write('{"hyper_search": {"augment": ["none"]}}')
    page = re.sub(r"\s+", " ", write_page(tmp_path).read_text())
    assert f"{before} <code>augment</code> crop, flip_crop" in page
    # Another key takes its place; a range and an alias cover what they hold.
    write('{"hyper_search": {"learning_rate": {"min": 0.01, "max": 1}}}')
    assert "<code>augment</code> crop, flip_crop, none" in re.sub(r"\s+", " ", write_page(tmp_path).read_text())
    for value, rate in ((0.1, 0.1), (0.2, 0.2)):
        make_run(tmp_path / "other" / f"ps_{value}", rate, ps=value)
    (tmp_path / "other" / "params.json").write_text('{"hyper_search": {"head_dropout": [0.1, 0.2]}}')
    assert before not in write_page(tmp_path / "other").read_text()


# --- in a browser ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: ./setup.sh --dev")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1280,1000",
        "--no-first-run",
        "--enable-unsafe-swiftshader",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


class Tab:
    """A page in the browser, by what a user does with it."""

    def __init__(self, browser, path: Path):
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser, self.wait = browser, WebDriverWait(browser, 30, 0.05)
        browser.get(path.absolute().as_uri())
        self.until("return document.documentElement.dataset.ready === '1'")

    def run(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def until(self, script: str):
        return self.wait.until(lambda _: self.run(script))

    def find(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def column(self, name: str) -> list[str]:
        """The visible cells of a column, from top to bottom."""
        return self.run(
            """
            const names = [...document.querySelectorAll("#runs thead th")].map((cell) => cell.textContent);
            const rows = [...document.querySelectorAll("#runs tbody tr")].filter((row) => row.offsetParent);
            return rows.map((row) => row.cells[names.indexOf(arguments[0])].textContent);""",
            name,
        )

    def type(self, text: str):
        box = self.find("#filter")
        box.clear()
        box.send_keys(text or " \b")
        time.sleep(0.3)

    def click_header(self, name: str):
        self.run(
            """[...document.querySelectorAll("#runs th button")].find((b) => b.textContent === arguments[0]).id = "it";
                 """,
            name,
        )
        self.find("#it").click()
        self.run("document.getElementById('it').removeAttribute('id')")

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    parent = make_parent(tmp_path_factory.mktemp("page") / "p")
    write_page(parent)
    return parent


@pytest.fixture
def tab(browser, parent):
    return Tab(browser, parent / REPORT)


def test_sorting(tab):
    tab.click_header("learning_rate")
    up = list(map(float, tab.column("learning_rate")))
    tab.click_header("learning_rate")
    down = list(map(float, tab.column("learning_rate")))
    assert len(up) == 24
    assert up == sorted(up)
    assert down == up[::-1]
    assert up[0] < up[-1]
    tab.click_header("val_accuracy")  # a metric: the best first
    values = list(map(float, tab.column("val_accuracy")))
    assert values == sorted(values, reverse=True)
    tab.click_header("folder")
    assert tab.column("folder")[:3] == ["run_0__seed_0", "run_0__seed_1", "run_1__seed_0"]
    assert tab.column("folder")[-1] == "run_11__seed_1"
    assert not tab.errors()


def test_names_and_columns_are_not_cut(browser, tmp_path):
    """Long names differ at their end, in the seed: it must be seen; and the whole table, on a common screen."""
    for seed in (0, 1):
        name = f"learning_rate_0.1__augment_flip_crop__arch_args.n_filters_16__label_smoothing_0.1__seed_{seed}"
        make_run(tmp_path / name, 0.5 + seed / 10, seed=seed, learning_rate=0.1 + seed, augment="ab"[seed])
    write_page(tmp_path)
    tab = Tab(browser, tmp_path / REPORT)
    hidden = tab.run(
        """return [...document.querySelectorAll("#runs td.run")].map((c) => c.scrollWidth - c.clientWidth)"""
    )
    assert hidden == [0, 0]
    assert [name[-6:] for name in tab.column("folder")] == ["seed_1", "seed_0"]
    assert (
        tab.run(
            """const box = document.getElementById("runs").parentElement; return box.scrollWidth - box.clientWidth"""
        )
        == 0
    )


def test_filtering(tab):
    tab.type("accuracy>0.8")
    assert tab.column("val_accuracy")
    assert all(float(value) > 0.8 for value in tab.column("val_accuracy"))
    shown = len(tab.column("folder"))
    assert tab.find("#count").text == f"{shown} of 24 runs"
    assert 0 < shown < 24
    lines = tab.run("return document.getElementById('curves').data.map((trace) => trace.meta).flat()")
    assert len(lines) == shown, "the curves follow the table"
    tab.type("arch = lenet learning_rate<0.1 seed_1")
    assert set(tab.column("arch")) == {"lenet"}
    assert all(name.endswith("seed_1") for name in tab.column("folder"))
    tab.type("status!=done")
    assert tab.column("folder") == ["run_4__seed_1", "run_4__seed_0"]
    tab.type("acuracy>1")
    assert "no column acuracy" in tab.find("#count").text
    assert "val_accuracy" in tab.find("#count").text
    tab.type("")
    assert len(tab.column("folder")) == 24
    assert not tab.errors()


def test_hovering_over_a_curve_names_the_run(tab, browser):
    from selenium.webdriver import ActionChains

    tab.find("#mean").click()  # each run a line
    place = tab.run("""
        const box = document.getElementById("curves"), trace = box.data.find((t) => t.name === "run_11__seed_1");
        const axes = box._fullLayout, k = 3, frame = box.getBoundingClientRect();
        box.scrollIntoView({ block: "center" });
        return [axes.xaxis.l2p(trace.x[k]) + axes.xaxis._offset, axes.yaxis.l2p(trace.y[k]) + axes.yaxis._offset, frame.width, box.clientHeight];
    """)
    target = tab.find("#curves")
    ActionChains(browser).move_to_element_with_offset(
        target, int(place[0] - place[2] / 2) - 3, int(place[1] - place[3] / 2)
    ).move_by_offset(3, 0).perform()
    label = tab.until("return document.querySelector('#curves .hoverlayer .hovertext')?.textContent")
    assert "run_11__seed_1" in label
    assert "epoch 4" in label
    assert tab.run("return [...document.querySelectorAll('tr.hovered .run')].map((c) => c.textContent)") == [
        "run_11__seed_1"
    ]


def test_a_click_on_a_row_highlights_its_curve(tab):
    tab.find("#mean").click()
    tab.find('tr[data-i="3"] td:last-child').click()
    widths = tab.run("return document.getElementById('curves').data.map((t) => [t.meta[0], t.line.width, t.opacity])")
    assert {tuple(w[1:]) for w in widths if w[0] == 3} == {(4, 1)}
    assert max(w[1] for w in widths if w[0] != 3) < 4
    assert max(w[2] for w in widths if w[0] != 3) < 0.5
    tab.find("#none").click()
    assert tab.run("return Math.max(...document.getElementById('curves').data.map((t) => t.line.width))") < 4


def test_seeds_are_drawn_as_their_mean(tab):
    script = "return document.getElementById('curves').data.map((t) => ({name: t.name, of: t.meta, y: t.y}))"
    means = tab.run(script)
    assert len(means) == 12
    assert all(line["name"].endswith(": mean of 2") and len(line["of"]) == 2 for line in means)
    tab.find("#mean").click()
    single = {line["of"][0]: line["y"] for line in tab.run(script)}
    assert len(single) == 24
    for line in means:
        first, second = (single[i] for i in line["of"])
        assert line["y"] == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)])
    tab.find("#train").click()
    assert len(tab.run(script)) == 48


def test_what_differs_between_two_runs(tab):
    for i in (0, 3, 5):  # the third replaces the first
        tab.find(f'tr[data-i="{i}"] input').click()
    said = tab.find("#difference").text
    names = tab.run("return [3, 5].map((i) => document.querySelector(`tr[data-i='${i}'] .run`).textContent)")
    assert all(name in said for name in names)
    assert "learning_rate" in said
    assert "val_accuracy" in said
    assert not tab.find('tr[data-i="0"] input').is_selected()
    assert re.search(r"\d parameters? differs?\.", said)


def test_brushing_an_axis_filters_curves_and_table(tab, browser):
    if not tab.run("return !!document.createElement('canvas').getContext('webgl')"):
        pytest.skip("this Chromium has no WebGL")
    from selenium.webdriver import ActionChains

    tab.run("document.getElementById('axes').scrollIntoView({block: 'center'})")
    axis = browser.find_elements("css selector", "#axes .axis-brush .background")[-1]  # val_accuracy
    height = axis.size["height"]
    ActionChains(browser).move_to_element_with_offset(axis, 0, int(-0.2 * height)).click_and_hold().move_by_offset(
        0, int(-0.25 * height)
    ).release().perform()
    tab.until("return document.getElementById('count').textContent.includes(' of ')")
    values = list(map(float, tab.column("val_accuracy")))
    assert 0 < len(values) < 24
    assert min(values) > 0.7


def test_nothing_is_fetched_and_nothing_is_executed(browser, tmp_path):
    parent = tmp_path / "p"
    make_run(parent / NASTY, 0.9, note=ESCAPE)
    (parent / NASTY / "train.log").write_text(ESCAPE)
    make_run(parent / "b", 0.8, note="plain")
    write_page(parent)
    for path in (parent / REPORT, parent / NASTY / REPORT):
        tab = Tab(browser, path)
        addresses = tab.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert all(address.startswith("file://") for address in addresses), addresses
        assert not tab.run("return window.hacked")
        assert not tab.errors()
        assert tab.run("return typeof Plotly") == "object"
    assert tab.find("h1").text == NASTY
    assert tab.run("return document.querySelectorAll('.few .main-svg').length") >= 3


def test_dark_and_on_a_phone(browser, parent):
    tab = Tab(browser, parent / REPORT)
    light = tab.run("return getComputedStyle(document.body).backgroundColor")
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    try:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        dark = tab.run("return getComputedStyle(document.body).backgroundColor")
        assert light == "rgb(255, 255, 255)"
        assert sum(map(int, re.findall(r"\d+", dark))) < 120
        ink = tab.until("return document.querySelector('#curves .xtick text')?.style.fill")
        assert sum(map(int, re.findall(r"\d+", ink))) > 500, "the figures follow"
        assert tab.run("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_three_hundred_runs_in_a_browser(browser, tmp_path):
    parent = make_parent(tmp_path / "p", 150)
    rows, problems = read_rows(find_folders(parent), parent)
    page = write_runs_page(parent, rank_runs(rows), problems)
    assert page.stat().st_size < 2e6
    tab = Tab(browser, page)
    assert tab.run("return document.getElementById('curves').data.length") == 150  # settings
    tab.type("accuracy>0.88")
    assert 0 < len(tab.column("folder")) < 300
    assert not tab.errors()
