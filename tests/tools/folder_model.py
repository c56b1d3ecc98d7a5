"""A model of the folder, tested at random: sequences of operations on real folders, and what must hold after each.

    python tests/tools/folder_model.py --sequences 100 --seed 0
    python tests/tools/folder_model.py --replay '[["train", 0, 0, 0, 0, 0]]'

Prints the number of sequences and operations, and each violation with the shortest sequence that still shows it.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forks
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from invariants import Violation
from sequences import KEPT
from undisturbed import Shared
from world import EDITS, TARGETS, TRAIN, TROUBLES, VARIANTS, Op, World

STEPS = 14  # operations of a sequence
FOLDER = st.integers(0, 5)
TROUBLE = st.integers(0, len(TROUBLES) - 1)
SIZE = st.integers(0, 4000)
FOLLOW = st.integers(-1, 3)


class FolderMachine(RuleBasedStateMachine):
    """The operations; World does them. A sequence ends with its first violation, which is noted, not raised."""

    shared: Shared
    found: list[tuple[list[Op], str, list[str]]]
    counts: dict[str, int]
    ignored: frozenset[str]

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.shared)
        self.ops: list[Op] = []
        self.broken = ""

    def do(self, *op: Any) -> None:
        if self.broken:
            return
        self.ops.append(list(op))
        self.counts["operations"] += 1
        try:
            self.world.apply(list(op))
        except Violation as violation:
            if kind(str(violation)) not in self.ignored:
                self.broken = str(violation)

    @rule(variant=st.integers(0, len(VARIANTS) - 1))
    def new(self, variant: int) -> None:
        self.do("new", variant)

    @rule(folder=FOLDER)
    def move(self, folder: int) -> None:
        self.do("move", folder)

    @rule(folder=FOLDER, how=st.integers(0, 2))
    def copy(self, folder: int, how: int) -> None:
        self.do("copy", folder, how)

    @rule(folder=FOLDER, file=st.integers(0, len(TARGETS) - 1), how=st.integers(0, 4), other=FOLDER)
    def damage(self, folder: int, file: int, how: int, other: int) -> None:
        self.do("damage", folder, file, how, other)

    @rule(folder=FOLDER, all_of_it=st.booleans())
    def scratch(self, folder: int, all_of_it: bool) -> None:
        self.do("scratch_gone" if all_of_it else "scratch_purged", folder)

    @rule(folder=FOLDER, edit=st.integers(0, len(EDITS) - 1))
    def edit(self, folder: int, edit: int) -> None:
        self.do("edit", folder, edit)

    @rule(of_code=st.booleans(), stealthy=st.integers(0, 1))
    def change(self, of_code: bool, stealthy: int) -> None:
        self.do(*(("code",) if of_code else ("data", stealthy)))

    @rule(number=st.integers(0, 30), how=st.integers(0, 3), bit=SIZE)
    def cache(self, number: int, how: int, bit: int) -> None:
        self.do("cache", number, how, bit)

    @rule(folder=FOLDER, flags=st.integers(0, len(TRAIN) - 1), trouble=TROUBLE, size=SIZE, follow=FOLLOW)
    def train(self, folder: int, flags: int, trouble: int, size: int, follow: int) -> None:
        self.do("train", folder, flags, trouble, size, follow)

    @rule(folder=FOLDER, flags=st.integers(0, 6), trouble=TROUBLE, size=SIZE)
    def train_plainly(self, folder: int, flags: int, trouble: int, size: int) -> None:
        self.do("train", folder, flags, trouble, size, -1)

    @rule(folder=FOLDER, flags=st.sampled_from([5, 7, 8, 9]), trouble=TROUBLE, size=SIZE, follow=FOLLOW)
    def train_otherwise(self, folder: int, flags: int, trouble: int, size: int, follow: int) -> None:
        """On scratch disk, once more from the start, or further."""
        self.do("train", folder, flags, trouble, size, follow)

    @rule(folder=FOLDER, follow=FOLLOW)
    def train_undisturbed(self, folder: int, follow: int) -> None:
        self.do("train", folder, 0, 0, 0, follow)

    @rule(folder=FOLDER, trouble=TROUBLE, size=SIZE, follow=FOLLOW)
    def evaluate(self, folder: int, trouble: int, size: int, follow: int) -> None:
        self.do("evaluate", folder, trouble if trouble < 3 else 0, size, follow)

    @rule(folder=FOLDER, follow=FOLLOW)
    def predict(self, folder: int, follow: int) -> None:
        self.do("predict", folder, follow)

    @rule(folder=FOLDER, ms=SIZE, kind=st.integers(0, 5), variant=st.integers(0, len(VARIANTS) - 1))
    def two_processes(self, folder: int, ms: int, kind: int, variant: int) -> None:
        if kind == 0:
            self.do("table")
        elif kind == 1:
            self.do("search", ms, ms)
        elif kind < 4:
            self.do("rename_while_training", folder, ms, variant)
        else:
            self.do("twice", folder, ms)

    def teardown(self) -> None:
        if self.ops:
            self.counts["sequences"] += 1
        try:
            if not self.broken and self.ops:
                self.world.finish()
        except Violation as violation:
            if kind(str(violation)) not in self.ignored:
                self.broken = str(violation)
        finally:
            self.world.close()
        if self.broken:
            self.found.append((self.ops, self.broken, self.world.seen[-3:]))
            print(f"[{self.counts['sequences']}] {self.broken[:700]}\n    {json.dumps(self.ops)}", flush=True)


def explore(
    shared: Shared, sequences: int, number: int, seconds: float, ignored: frozenset[str], first: bool
) -> dict[str, Any]:
    """Random sequences until there are enough, or time is up. Gives counts and violations, not yet shortened."""
    counts = {"sequences": 0, "operations": 0}
    found: list[tuple[list[Op], str, list[str]]] = []
    machine = type(
        "Machine", (FolderMachine,), {"shared": shared, "found": found, "counts": counts, "ignored": ignored}
    )
    begun = time.monotonic()
    while counts["sequences"] < sequences and not (first and found) and time.monotonic() - begun < seconds:
        options = settings(
            max_examples=min(10, sequences - counts["sequences"] + 1),
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        )
        chosen = seed(number)(machine)
        run_state_machine_as_test(chosen, settings=options)
        number += 1
    return {"counts": counts, "found": found, "seconds": round(time.monotonic() - begun)}


def kill_often(shared: Shared, kills: int, number: int) -> dict[str, Any]:
    """Trainings that are killed at random instants, with scratch disks, copies, moves and restarts in between."""
    rng = random.Random(number)
    result: dict[str, Any] = {"kills": 0, "folders": 0, "violations": []}
    while result["kills"] < kills and not result["violations"]:
        world = World(shared)
        ops: list[Op] = []
        try:
            while world.num_kills < 12 and len(ops) < 40:
                ops.append(next_of_kills(rng))
                world.apply(ops[-1])
            world.finish()
        except Violation as violation:
            result["violations"].append([str(violation), ops])
        finally:
            result["kills"] += world.num_kills
            result["folders"] += len(world.names)
            world.close()
    return result


def next_of_kills(rng: random.Random) -> Op:
    """Mostly a training that is killed; else a copy, a move or a new folder."""
    folder, size = rng.randrange(6), rng.randrange(4000)
    if rng.random() < 0.75:
        flags = rng.choice([0, 0, 5, 5, 7, 8, 9])
        return ["train", folder, flags, rng.choice([2, 3, 3, 4]), size, rng.randrange(4)]
    return rng.choice([["copy", folder, size % 3], ["move", folder], ["new", size % 4], ["train", folder, 0, 0, 0, 0]])


def replay(shared: Shared, ops: list[Op]) -> str:
    """Do these operations in a new world; the violation, "" when there is none."""
    world = World(shared)
    try:
        for op in ops:
            world.apply(op)
        world.finish()
    except Violation as violation:
        return str(violation)
    finally:
        world.close()
    return ""


def kind(violation: str) -> str:
    return violation.partition(":")[0]


def shorten(shared: Shared, ops: list[Op], violation: str, seconds: float) -> list[Op]:
    """Leave out operations as long as the same kind of violation comes."""
    end = time.monotonic() + seconds
    place = len(ops) - 2
    while place >= 0 and time.monotonic() < end:
        fewer = ops[:place] + ops[place + 1 :]
        if kind(replay(shared, fewer)) == kind(violation):
            ops = fewer
        place = min(place, len(ops)) - 1
    return ops


@contextmanager
def make_shared() -> Iterator[Shared]:
    """The warm process and what all sequences share, in memory where there is a folder for that."""
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    forks.warm_up()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="folder-model-", dir=place) as name:
        tempfile.tempdir = name
        try:
            yield Shared(Path(name))
        finally:
            tempfile.tempdir = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after these seconds")
    parser.add_argument("--shorten", type=float, default=60, metavar="SECONDS", help="for each violation")
    parser.add_argument("--ignore", default="", metavar="KINDS", help="e.g. 3-unnamed,4-copies: go on after these")
    parser.add_argument("--kills", type=int, metavar="N", help="N kills, with scratch, copies, moves and restarts")
    parser.add_argument("--first", action="store_true", help="stop at the first violation")
    parser.add_argument("--kept", action="store_true", help="the sequences of sequences.py")
    parser.add_argument("--replay", metavar="JSON", help="one sequence")
    args = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":  # threads do not survive a fork, and numpy has been imported
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_NUM_THREADS": "1"})
    random.seed(args.seed)
    with make_shared() as shared:
        if args.replay:
            violation = replay(shared, json.loads(args.replay))
            print(violation or "nothing is violated")
            sys.exit(1 if violation else 0)
        if args.kept:
            violations = {}
            for name, ops in KEPT:
                if violation := replay(shared, ops):
                    violations[name] = violation
                    if args.first:
                        break
            print(json.dumps({"sequences": len(KEPT), "violations": violations}, indent=1))
            sys.exit(1 if violations else 0)
        if args.kills:
            result = kill_often(shared, args.kills, args.seed)
            print(json.dumps(result))
            sys.exit(1 if result["violations"] else 0)
        result = explore(shared, args.sequences, args.seed, args.seconds, frozenset(args.ignore.split(",")), args.first)
        for ops, violation, seen in result["found"]:
            short = shorten(shared, ops, violation, args.shorten) if args.shorten else ops
            print(f"\n{violation}\n  {json.dumps(short)}\n  " + "\n  ".join(seen))
        print(json.dumps(result["counts"] | {"violations": len(result["found"]), "seconds": result["seconds"]}))
    sys.exit(1 if result["found"] else 0)


if __name__ == "__main__":
    main()
