"""Operations on experiment folders, their data and their code.

An operation is a list of a name and small numbers, so that a sequence can be kept, replayed and shortened. Numbers
that choose among things (folders, files) are taken modulo how many there are.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
from forks import Outcome, Trouble
from holding import LEDGER, TEST, Holding, attempts, exchange, flip, linked_folders, read, replace
from invariants import NAMES, Invariants, Violation
from undisturbed import PARAMS, Shared, swapped_pairs
from ways_out import error_line, ways_out

Op = list[Any]
VARIANTS: list[dict[str, Any]] = [{}, {"seed": 1}, {"learning_rate": 0.03}, {"seed": 2, "num_epochs": 3}]
EDITS: list[dict[str, Any]] = [
    {"learning_rate": 0.02},
    {"num_epochs": 3},
    {"num_epochs": 4},
    {"seed": 7},
    {"bs_test": 7},  # without an effect on training
    {"keep_last": 3},
    {"ps": 0.4},
]
TARGETS = (
    "checkpoints", "checkpoints/manifest.json", "checkpoints/last.pt", "checkpoints/best.pt", "record/meta.json",
    "record/resolved.json", "record/status.json", "record/code/model/net.py", "weights/best.safetensors",
    "weights/last.safetensors", "history.json", "metrics_val_best_weights.json", LEDGER, TEST, "weights", "record",
    "train.log", "history.csv",
)  # fmt: skip
TRAIN: list[list[str]] = [
    [], [], [], [], [], ["--scratch_dir={scratch}"], ["--scratch_dir={scratch}"], ["--restart"],
    ["--restart", "--scratch_dir={scratch}"], ["--extend=1"], ["--extend=2"], ["--resume"], ["--accept=params"],
    ["--accept=data"], ["--accept=code"], ["--code=folder"], ["--seed=5"], ["--learning_rate=0.05"], ["@avx2"],
    ["--until=1"], ["--num_epochs=3"], ["--bs_test=7"], ["--restart", "--seed=3"],
]  # fmt: skip
TROUBLES: list[Callable[[int], Trouble | None]] = [
    lambda size: None,
    lambda size: None,
    lambda size: Trouble("signal", 1 + size % 680),
    lambda size: Trouble("signal", 280 + size % 400),
    lambda size: Trouble("late", size % 1500),
    lambda size: Trouble("signal", 280 + size % 400, signal.SIGTERM),
    lambda size: Trouble("limit", 1 << 12 + size % 8),
]


class World(Invariants):
    """One sequence: it begins with a folder that was never trained."""

    def __init__(self, shared: Shared):
        super().__init__(shared, Path(tempfile.mkdtemp(prefix="world-", dir=shared.root)))
        shutil.copytree(shared.data[0], self.data)
        self.scratch.mkdir()
        os.chdir(self.root)  # a pasted command may name a relative path
        self.op_new(0)

    def close(self) -> None:
        os.chdir(self.shared.root)
        shutil.rmtree(self.root, ignore_errors=True)

    def folder(self, number: int) -> Path:
        return self.root / self.names[number % len(self.names)]

    def free_name(self) -> str | None:
        return next((name for name in NAMES if not (self.root / name).exists()), None)

    def apply(self, op: Op) -> None:
        """Do one operation. Violation when something does not hold after it."""
        getattr(self, f"op_{op[0]}")(*op[1:])

    # --- operations on files ---

    def op_new(self, variant: int) -> None:
        """A new folder; it takes the first free name, which another one may have had."""
        if name := self.free_name():
            (self.root / name).mkdir()
            self._inherit_nothing(name)
            self._write_params(self.root / name, VARIANTS[variant % len(VARIANTS)])

    def _write_params(self, folder: Path, changes: dict[str, Any]) -> None:
        old = read(folder / "params.json") or PARAMS
        temporary = folder / ".params"
        temporary.write_text(json.dumps(old | changes))
        temporary.rename(folder / "params.json")  # as editors do: a hard link elsewhere keeps its content

    def op_move(self, number: int) -> None:
        if name := self.free_name():
            source = self.folder(number)
            subprocess.run(["mv", str(source), str(self.root / name)], check=True)
            self._inherit(source.name, name)

    def op_copy(self, number: int, how: int) -> None:
        """cp -r, cp -a or cp -al."""
        if name := self.free_name():
            source = self.folder(number)
            flag = ("-r", "-a", "-al")[how % 3]
            subprocess.run(["cp", flag, str(source), str(self.root / name)], check=True)
            self._inherit(source.name, name)
            self.borrowed[name] = linked_folders(source)

    def _inherit(self, old: str, new: str) -> None:
        self.tampered[new] = set(self.tampered[old])
        self.promised[new] = list(self.promised[old])
        self.borrowed[new] = set(self.borrowed[old])

    def op_damage(self, number: int, target: int, how: int, other: int) -> None:
        """Remove, cut, change or exchange one file (or folder) of an experiment."""
        folder, name = self.folder(number), TARGETS[target % len(TARGETS)]
        path = folder / name
        if not os.path.lexists(path):
            return
        names = [name, *(str(p.relative_to(folder)) for p in path.rglob("*"))] if path.is_dir() else [name]
        how %= 5
        if how == 0 or (path.is_dir() and how < 3):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        elif how in (1, 2):
            content = path.read_bytes()
            wrong = content[: len(content) // 2] if how == 1 else flip(content, other)
            replace(path, wrong)
        else:  # the other folder's file comes here: 3 a copy of it, 4 an exchange
            there = self.folder(other) / name
            if there == path or not there.exists() or path.is_dir() != there.is_dir():
                return
            exchange(path, there, both=how == 4)
            if how == 4:
                self.tampered[self.folder(other).name].update(names)
        self.tampered[folder.name].update(names)

    def op_scratch_gone(self, number: int) -> None:
        """The cluster's cleaner removes the files of a folder on scratch disk, or all of it."""
        for name in ("checkpoints", "tensorboard"):
            link = self.folder(number) / name
            if link.is_symlink() and link.exists():
                shutil.rmtree(link.resolve())

    def op_scratch_purged(self, number: int) -> None:
        link = self.folder(number) / "checkpoints"
        if link.is_symlink() and link.exists():
            for path in link.resolve().iterdir():
                path.unlink()

    def op_edit(self, number: int, edit: int) -> None:
        self._write_params(self.folder(number), EDITS[edit % len(EDITS)])

    def op_code(self) -> None:
        """One constant of the kit changes, or changes back."""
        self.code = 1 - self.code

    def op_data(self, stealthy: int) -> None:
        """Two images exchange their contents, or get them back; their times are restored if `stealthy`."""
        self.variant = 1 - self.variant
        for pair in swapped_pairs(self.data):
            times = [path.stat() for path in pair]
            contents = [path.read_bytes() for path in pair]
            for path, content, status in zip(pair, reversed(contents), times, strict=True):
                path.write_bytes(content)
                if stealthy % 2:
                    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def op_cache(self, number: int, how: int, bit: int) -> None:
        """Damage a file of the cache of decoded images."""
        files = sorted(path for path in (self.root / ".cache").rglob("*") if path.is_file())
        if files:
            path = files[number % len(files)]
            content = path.read_bytes()
            wrong = [b"", content[: len(content) // 2], flip(content, bit), flip(content, bit + 4001)][how % 4]
            path.write_bytes(wrong)

    # --- operations that run commands ---

    def op_train(self, number: int, flags: int, trouble: int, size: int, follow: int) -> None:
        """train.py on a folder. `flags`, `trouble`: see TRAIN and TROUBLES; `follow`: which way out is tried."""
        folder = self.folder(number)
        words = [str(word).format(scratch=self.scratch) for word in TRAIN[flags % len(TRAIN)]]
        environ = {"ONEDNN_MAX_CPU_ISA": "AVX2"} if "@avx2" in words else {}
        words = [word for word in words if not word.startswith("@")]
        argv = ["--data_dir", str(self.data), "--model_dir", str(folder), *words]
        self.command("train", folder, argv, TROUBLES[trouble % len(TROUBLES)](size), follow, environ)

    def op_evaluate(self, number: int, trouble: int, size: int, follow: int) -> None:
        folder = self.folder(number)
        argv = ["--data_dir", str(self.data), "--model_dir", str(folder)]
        self.command("evaluate", folder, argv, TROUBLES[trouble % len(TROUBLES)](size), follow)

    def op_predict(self, number: int, follow: int) -> None:
        folder = self.folder(number)
        self.command("predict", folder, ["--model_dir", str(folder), str(self.data / "test/0")], None, follow)

    def op_table(self) -> None:
        """synthesize_results.py writes its own files and changes no experiment."""
        before = self._stamps()
        self._check_exit(forks.run(self.tree / "synthesize_results.py", ["--parent_dir", self.root]), [], None)
        self._check_others(before, "synthesize_results")

    def op_search(self, trouble: int, size: int) -> None:
        """A search of two values in a folder of its own, then the same command undisturbed."""
        parent = self.root / "search"
        parent.mkdir(exist_ok=True)
        values = {"num_epochs": 1, "hyper_search": {"learning_rate": [0.1, 0.03]}}
        self._write_params(parent, values)
        argv = ["--data_dir", self.data, "--parent_dir", parent]
        others = self._stamps()
        begun = self.code, self.variant
        for disturbed in (TROUBLES[trouble % len(TROUBLES)](size), None):
            outcome = forks.run(self.tree / "search_hyperparams.py", argv, trouble=disturbed)
            if not (disturbed and disturbed.kind == "limit" and outcome.code == 1):  # its children had no room
                self._check_exit(outcome, [], disturbed)
            self._check_others(others, "search_hyperparams")
            for child in sorted(path for path in parent.iterdir() if (path / "record/status.json").exists()):
                self.tampered.setdefault(child.name, set())
                self._check_claim(child)
        assert begun == (self.code, self.variant)
        shutil.rmtree(parent)

    def op_rename_while_training(self, number: int, ms: int, variant: int) -> None:
        """A folder gets another name while it trains, and a new run begins under the old name."""
        folder, name = self.folder(number), self.free_name()
        if not name:
            return
        argv = ["--data_dir", self.data, "--model_dir", folder]
        running = forks.start(self.tree / "train.py", argv)
        time.sleep(ms % 1200 / 1000)
        subprocess.run(["mv", str(folder), str(self.root / name)], check=True)
        self._inherit(folder.name, name)
        folder.mkdir()
        self._inherit_nothing(folder.name)
        self._write_params(folder, VARIANTS[variant % len(VARIANTS)])
        others = self._stamps(folder.name, name)
        second = forks.run(self.tree / "train.py", argv)
        first = running.wait()
        for outcome in (first, second):
            self._check_exit(outcome, [], None)
        self._check_others(others, "two trainings")
        if second.code == 0:
            self._check_done(folder, second)
        self._check_claim(self.root / name)

    def _inherit_nothing(self, name: str) -> None:
        self.tampered[name] = set()
        self.promised[name] = []
        self.borrowed[name] = set()

    def op_twice(self, number: int, ms: int) -> None:
        """Two trainings of one folder at the same time."""
        folder = self.folder(number)
        argv = ["--data_dir", self.data, "--model_dir", folder]
        running = forks.start(self.tree / "train.py", argv)
        time.sleep(ms % 900 / 1000)
        outcomes = [forks.run(self.tree / "train.py", argv), running.wait()]
        for outcome in outcomes:
            self._check_exit(outcome, [], None)
        if any(outcome.code == 0 for outcome in outcomes):
            self._check_done(folder, outcomes[0])

    # --- one command and what must hold after it ---

    @property
    def tree(self) -> Path:
        return self.shared.trees[self.code]

    def command(
        self,
        script: str,
        folder: Path,
        argv: list[str],
        trouble: Trouble | None,
        follow: int,
        environ: dict[str, str] | None = None,
    ) -> Outcome:
        outcome = self._run(script, folder, argv, trouble, environ)
        if trouble is None and outcome.code in (2, 3) and follow >= 0:
            self.follow(script, folder, argv, outcome, follow)
        return outcome

    def follow(self, script: str, folder: Path, argv: list[str], outcome: Outcome, choice: int) -> None:
        """Paste the way out that a refusal names, until a command succeeds."""
        said = set()
        places = {"NEW_FOLDER": str(self.root / "new"), "DATA": str(self.data), "M": str(folder)}
        for _ in range(5):
            message = error_line(outcome.output)
            options = ways_out(message, script, argv, places)
            if not options:
                raise Violation(f"3-no-way-out: exit {outcome.code} names no way out: {message}")
            if (message, tuple(argv)) in said:
                raise Violation(f"3-circle: the way out leads to the same refusal: {message}")
            said.add((message, tuple(argv)))
            script, argv = options[choice % len(options)]
            target = Path(argv[argv.index("--model_dir") + 1]) if "--model_dir" in argv else folder
            if target.name == "new":
                self._inherit_nothing("new")
            outcome = self._run(script, target, argv, None, None)
            shutil.rmtree(self.root / "new", ignore_errors=True)
            if outcome.code not in (2, 3):
                return
            choice += 1
        raise Violation(f"3-endless: five ways out, one after the other, led to refusals: {outcome.output[-600:]}")

    def _run(
        self, script: str, folder: Path, argv: list[str], trouble: Trouble | None, environ: dict[str, str] | None
    ) -> Outcome:
        before = Holding.of(folder)
        others = self._stamps(folder.name)
        if "--restart" in argv and (before.files or before.rows):
            self.promised.setdefault(folder.name, []).append(before)
        outcome = forks.run(self.tree / f"{script}.py", argv, trouble=trouble, environ=environ)
        self.num_kills += outcome.code == -signal.SIGKILL
        shown = " ".join(argv).replace(f"{self.root}/", "")
        last = outcome.output.strip().splitlines()[-1:] or [""]
        self.seen.append(f"{script} {shown} {trouble or ''} -> {outcome.code} {last[0][:300]}")
        self._check_exit(outcome, argv, trouble)
        self._check_others(others, script)
        self._check_nothing_lost(folder, before, outcome, script)
        if outcome.code == 0 and script == "train" and "--until=1" not in argv:
            self._check_done(folder, outcome)
            if "--restart" in argv and Holding.of(folder).looks:
                raise Violation("1-ledger: a new run has the test looks of the one before it")
        if outcome.code == 0 and script == "evaluate":
            self._check_test(folder, before, outcome)
        return outcome

    # --- the end of a sequence ---

    def finish(self) -> None:
        """Each folder can be brought to its end by what its messages say, and nothing that was promised is lost."""
        for name in self.names:
            folder = self.root / name
            argv = ["--data_dir", str(self.data), "--model_dir", str(folder)]
            outcome = self._run("train", folder, argv, None, None)
            if outcome.code in (2, 3):
                self.follow("train", folder, argv, outcome, -1)
            elif outcome.code:
                raise Violation(f"3-end: exit {outcome.code} at the end: {outcome.output[-500:]}")
            free = self.tampered[name] | {LEDGER}
            for holding in self.promised[name]:
                places = [folder, *attempts(folder)]
                if not any(holding.is_kept_by(Holding.of(place), free) for place in places):
                    raise Violation(f"1-scattered: {name}: no attempt holds all of what --restart promised to keep")
