"""Mutants: change one operator, constant or call of the kit, and see whether a test notices.

    python tests/tools/mutate.py --num 300 --seed 20261125        # drawn from everything that a result depends on
    python tests/tools/mutate.py --only engine/ema.py             # every mutant of one file
    python tests/tools/mutate.py --num 300 --seed 20261125 --pick 17 42    # two of those 300 again
    python tests/tools/mutate.py --only report/ --num 30 --list   # what would be tried, and by how many tests

A survivor is printed with its file, line and difference: either a test is missing, or the change makes no
difference to anybody (then it is an equivalent mutant: say why where mutants are reported).

How it works. A process imports what is slow to import (torch, scikit-learn, ...) and nothing of the kit. In forks of
it each test module runs once, which tells the lines that each test reaches (reach.py; the table is kept as long as
the kit does not change). Then every mutant is a fork that changes one place in a copy of the repository and runs, the
fastest first, the tests that reach this place, until one fails. What runs at import is tried with the tests of the
modules that import the file. mutmut and cosmic-ray start a new interpreter for each mutant, which costs seconds of
importing torch.
"""

import argparse
import difflib
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from kit import ROOT
from mutants import Mutant, draw, mutated_files, place_of
from reach import Copy, Table, cache_folder, fast_folder, measure, test_modules, warm_up

CAP = 60.0  # seconds of tests that a mutant has to survive, the fastest first
SPARE = 20.0  # seconds above the measured ones after which a mutant counts as noticed: it hangs
BATCHES = (3.0, 15.0)  # seconds of the first tests that run together, and of the next


def tests_of(mutant: Mutant, table: Table, cap: float) -> tuple[list[str], int]:
    """(tests to run in order, number of tests that reach the place)."""
    start, end, at_import = place_of(mutant)
    tests = table.tests_for(mutant.file, start, end, at_import)
    chosen, seconds = [], 0.0
    for test in tests:
        seconds += table.seconds[test]
        if chosen and seconds > cap:
            break
        chosen.append(test)
    return chosen, len(tests)


def batches(tests: list[str], table: Table) -> Iterator[list[str]]:
    """Few tests first: most mutants die at once, and collecting many tests takes longer than running few."""
    rest = list(tests)
    for limit in BATCHES:
        batch, seconds = [], 0.0
        while rest and (not batch or seconds + table.seconds[rest[0]] <= limit):
            seconds += table.seconds[rest[0]]
            batch.append(rest.pop(0))
        if batch:
            yield batch
    if rest:
        yield rest


def survives(mutant: Mutant, choice: int, tests: list[str], copy: Copy, table: Table) -> bool:
    """Whether all these tests pass with the mutant; one that hangs does not survive."""
    path = copy.root / mutant.file
    source, stat = path.read_bytes(), path.stat()
    path.write_bytes(mutant.apply(source, choice))
    os.utime(path, (stat.st_atime, stat.st_mtime + 1000))  # the bytecode of the original does not fit
    try:
        for batch in batches(tests, table):
            seconds = SPARE + 5 * sum(table.seconds[test] for test in batch)
            if copy.in_a_fork(["-x", *batch], seconds) != 0:
                return False
    finally:
        path.write_bytes(source)
        os.utime(path, (stat.st_atime, stat.st_mtime))
    return True


def difference(mutant: Mutant, choice: int) -> str:
    source = (ROOT / mutant.file).read_bytes()
    before, after = (text.decode().splitlines() for text in (source, mutant.apply(source, choice)))
    lines = difflib.unified_diff(before, after, lineterm="", n=0)
    return "\n".join(f"    {line}" for line in lines if not line.startswith(("---", "+++", "@@")))


def try_all(mutants: list[tuple[int, Mutant, int]], copy: Copy, table: Table, cap: float) -> None:
    """Try each mutant, print what happens to it, and the sums at the end."""
    by_file: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    begun = time.monotonic()
    for number, mutant, choice in mutants:
        tests, reaching = tests_of(mutant, table, cap)
        alive = survives(mutant, choice, tests, copy, table) if tests else True
        by_file[mutant.file][0] += 1
        by_file[mutant.file][1] += alive
        word = f"ALIVE after {len(tests)} of {reaching} tests that reach it" if alive else "killed"
        text = f"\n{difference(mutant, choice)}" if alive else ""
        print(f"{number} {mutant.file}:{mutant.line} {word}, {time.monotonic() - begun:.0f} s{text}", flush=True)
    for file, (number, alive) in sorted(by_file.items()):
        print(f"{file}: {number - alive} of {number} killed")
    killed = len(mutants) - sum(alive for _, alive in by_file.values())
    print(
        f"{killed} of {len(mutants)} killed ({killed / max(1, len(mutants)):.1%}) in {time.monotonic() - begun:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=0, help="number of mutants to draw; 0: one for every place")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="files or folders, such as engine/ema.py report/")
    parser.add_argument("--pick", nargs="*", type=int, default=[], help="numbers of the drawn mutants to try")
    parser.add_argument("--cap", type=float, default=CAP, help="seconds of tests that a mutant has to survive")
    parser.add_argument("--tests", nargs="*", help="test modules to use; all without it")
    parser.add_argument("--list", action="store_true", help="print the mutants and the number of their tests and stop")
    args = parser.parse_args()
    drawn = [(number, *one) for number, one in enumerate(draw(mutated_files(args.only), args.num, args.seed))]
    mutants = [one for one in drawn if not args.pick or one[0] in args.pick]
    warm_up()
    with tempfile.TemporaryDirectory(prefix="mutants-", dir=fast_folder()) as name:
        copy = Copy(Path(name) / "0")
        table = Table(dict(measure(copy, cache_folder(), args.tests or test_modules())))
        if args.list:
            for number, mutant, choice in mutants:
                tests, reaching = tests_of(mutant, table, args.cap)
                print(f"{number} {mutant.file}:{mutant.line} {len(tests)} of {reaching} tests")
                print(difference(mutant, choice))
            return
        copy.write_bytecode()
        try_all(mutants, copy, table, args.cap)


if __name__ == "__main__":
    main()
