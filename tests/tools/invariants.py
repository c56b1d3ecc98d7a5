"""What must hold after each operation on experiment folders: nothing lost, nothing misattributed, plain refusals.

The first word of a Violation says which: 1 results are lost, 2 results belong to other parameters, code or data than
their folder says, 3 a command ends or refuses in a way that is not documented, 4 a command changes another folder.
"""

import itertools
from pathlib import Path
from typing import Any

from forks import Outcome, Trouble
from holding import LEDGER, RESULTS, TEST, Holding, attempts, differences, last_state, read, stamp
from undisturbed import CHANGED_CODE, Shared

CODE_FILE = f"record/code/{CHANGED_CODE[0]}"
SEAL = ("id", "attempt", "digest", "format")  # of a record
CODES = {0, 2, 3, 4, 5, 6, 129, 130, 138, 143}
NAMES = ("a", "b", "c", "d", "e", "f")


class Violation(Exception):
    """An invariant that does not hold; its first word says which."""


class Invariants:
    """The folders below `root`, and what is known of each by name."""

    def __init__(self, shared: Shared, root: Path):
        self.shared = shared
        self.root = root
        self.data = root / "data"
        self.scratch = root / "scratch"
        self.variant = 0  # of the data
        self.code = 0  # which of the trees
        self.tampered: dict[str, set[str]] = {}  # files that were damaged by hand
        self.borrowed: dict[str, set[str]] = {}  # by a copy: state on scratch disk that its original goes on with
        self.promised: dict[str, list[Holding]] = {}  # results that were in a folder when --restart was asked for
        self.seen: list[str] = []  # the commands and how they ended, for the report
        self.num_kills = 0

    @property
    def names(self) -> list[str]:
        return [name for name in NAMES if (self.root / name).is_dir()]

    def _stamps(self, *without: str) -> dict[str, dict[str, tuple[int, int]]]:
        """The files of all folders but these."""
        return {name: stamp(self.root / name, self.borrowed[name]) for name in self.names if name not in without}

    def _check_exit(self, outcome: Outcome, argv: list[str], trouble: Trouble | None) -> None:
        """A documented exit code; no traceback; a refusal is one line."""
        killed = trouble and trouble.kind != "limit" and outcome.code == -trouble.signal
        if outcome.code not in CODES and not killed:
            raise Violation(f"3-exit: exit {outcome.code}: {outcome.output[-1500:]}")
        if "Traceback (most" in outcome.output:
            raise Violation(f"3-traceback: {outcome.output[-1500:]}")
        lines = [line for line in outcome.output.splitlines() if line.startswith("error: ")]
        if 2 <= outcome.code <= 6 and len(lines) != 1:
            raise Violation(f"3-line: exit {outcome.code} with {len(lines)} error lines: {outcome.output[-800:]}")

        if outcome.code == 5 and trouble and trouble.kind == "limit" and str(self.root) not in lines[0]:
            raise Violation(f"3-unnamed: the message does not name the file: {lines[0]}")

    def _check_others(self, before: dict[str, dict[str, tuple[int, int]]], script: str) -> None:
        now = self._stamps()
        for name, was in before.items():
            if changed := differences(was, now[name], (".tmp-",)):
                raise Violation(f"4-copies: {script}.py on another folder changed {name}: {changed[:6]}")

    def _check_nothing_lost(self, folder: Path, before: Holding, outcome: Outcome, script: str) -> None:
        free = self.tampered.get(folder.name, set())
        after = Holding.of(folder)
        places = [after, *(Holding.of(path) for path in attempts(folder))]
        rolled_back = "state before it" in outcome.output and after.rows == before.rows[: len(after.rows)]
        for name, digest in before.files.items():
            kept = any(place.files.get(name) == digest for place in places)
            if not (kept or rolled_back or name in free or before.goes_on_in(after)):
                raise Violation(
                    f"1-lost: {script}.py replaced or removed {name} of {folder.name}: {outcome.output[-800:]}"
                )
        rows_kept = any(before.goes_on_in(place) for place in places)
        if before.rows and not (rows_kept or rolled_back or "history.json" in free):
            raise Violation(f"1-lost: {script}.py replaced the history of {folder.name}: {outcome.output[-800:]}")
        if LEDGER not in free and not any(place.looks[: len(before.looks)] == before.looks for place in places):
            raise Violation(f"1-ledger: {script}.py lost test looks of {folder.name}")
        if script != "evaluate" and before.test and TEST not in free and before.test not in [p.test for p in places]:
            raise Violation(f"1-lost: {script}.py replaced the test metrics of {folder.name}")

    # --- whose results are they ---

    def attribution(
        self, folder: Path, is_said: bool = True
    ) -> tuple[dict[str, Any], list[list[float]], int, int] | None:
        """What a folder says made its results: changed parameters, lengths, code, data. None where no undisturbed run
        can be like it: after --accept, from given weights, or when the copy of the code was damaged by hand.
        """
        resolved, meta = read(folder / "record/resolved.json"), read(folder / "record/meta.json")
        if not isinstance(resolved, dict) or not isinstance(meta, dict):
            if not is_said:
                return None
            raise Violation(f"2-unsaid: {folder.name} is done, and its records cannot be read")
        if any(session.get("accepted") for session in meta.get("sessions", [])):
            return None
        if meta.get("restore_file") or CODE_FILE in self.tampered[folder.name]:
            return None
        ignored = {"pinned", "num_epochs", "keep_last", "hyper_search", "search", "data_dir", *SEAL}
        base = self.shared.base
        changes = {k: v for k, v in resolved.items() if k not in ignored and base.get(k) != v}
        code = self._code_of(folder)
        if meta.get("data") not in self.shared.fingerprints:
            raise Violation(f"2-data: {folder.name} is done, with data that there never was: {meta.get('data')}")
        data = self.shared.fingerprints.index(meta["data"])
        return changes, self._chains(folder, resolved["num_epochs"]), code, data

    def _code_of(self, folder: Path) -> int:
        own = folder / CODE_FILE
        for number, tree in enumerate(self.shared.trees):
            if own.is_file() and own.read_bytes() == (tree / CHANGED_CODE[0]).read_bytes():
                return number
        raise Violation(f"2-code: {folder.name} is done, and {own} is neither tree's")

    def _chains(self, folder: Path, first: float) -> list[list[float]]:
        """The lengths that a run had one after the other; several possibilities where its state is gone."""
        said = []
        if state := last_state(folder):
            per_epoch = state["extensions"][0][0] / first if state["extensions"] else 1
            said = [[first, *(round(end / per_epoch, 6) for _, end in state["extensions"])]]
        total = len(read(folder / "history.json") or [])
        between = list(range(round(first) + 1, total))
        if total <= first:
            return [*said, [first]]
        chosen = itertools.chain.from_iterable(itertools.combinations(between, r) for r in range(len(between) + 1))
        return [*said, *([first, *some, total] for some in chosen)]

    def _check_done(self, folder: Path, outcome: Outcome) -> None:
        """A folder that is done holds what an undisturbed run gives with what it says made it."""
        if (made := self.attribution(folder)) is None:
            return
        changes, chains, code, data = made
        holding = Holding.of(folder)
        wrong: list[str] = []
        for chain in chains:
            for isa in ("", "AVX2"):
                expected = self.shared.result(changes, chain, code, data, isa)
                wrong = [name for name in RESULTS if holding.files.get(name) != expected.files[name]]
                wrong += ["history.json"] if holding.rows != expected.rows else []
                # a file that was damaged by hand is noticed when it is used, at the latest
                wrong = [name for name in wrong if name not in self.tampered[folder.name]]
                if not wrong:
                    return
        raise Violation(
            f"2-done: {folder.name} is done; {', '.join(wrong)} are not those of {changes} {chains} code {code} data "
            f"{data} (damaged before: {sorted(self.tampered[folder.name])[:8]}): {outcome.output[-300:]}"
        )

    def _check_claim(self, folder: Path) -> None:
        """As _check_done, where a folder's status says done."""
        state = (read(folder / "record/status.json") or {}).get("state")
        if state == "done" and self.attribution(folder, is_said=False):
            self._check_done(folder, Outcome(0, "its status says done"))

    def _check_test(self, folder: Path, before: Holding, outcome: Outcome) -> None:
        """Test metrics are those of an undisturbed run, on the images as they are now; the look is recorded."""
        after = Holding.of(folder)
        if len(after.looks) != len(before.looks) + 1 and LEDGER not in self.tampered[folder.name]:
            raise Violation(f"1-ledger: {len(before.looks)} looks became {len(after.looks)}")
        status = read(folder / "record/status.json") or {}
        if status.get("state") != "done" or (made := self.attribution(folder)) is None:
            return
        changes, chains, code, data = made
        possible = [self.shared.test(changes, chain, code, data, self.variant)[0] for chain in chains]
        if after.test not in possible and "not bitwise" not in outcome.output:
            raise Violation(
                f"2-test: the test metrics of {folder.name} are not those of {changes} {chains} code {code} data {data} "
                f"tested on data {self.variant} with code {self.code}: {outcome.output[-700:]}"
            )
