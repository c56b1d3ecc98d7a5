"""Sequences that found a fault, or show one that was known: (what is tried, the operations of tests/tools/world.py)."""

from world import Op

# ["train", folder, flags, trouble, size, way out], ["damage", folder, file, how, other folder]: the numbers are places
# in TRAIN, TROUBLES and TARGETS of world.py.
TRAIN, EVALUATE = ["train", 0, 0, 0, 0, 2], ["evaluate", 0, 0, 0, 2]
SCRATCH, RESTART, EXTEND = ["train", 0, 5, 0, 0, 2], ["train", 0, 7, 0, 0, 2], ["train", 0, 9, 0, 0, 2]
KILLED = ["train", 0, 0, 3, 200, -1]

KEPT: list[tuple[str, list[Op]]] = [
    ("renamed while it trains", [["new", 2], ["rename_while_training", 4, 29, 2]]),
    ("renamed while it trains, later", [["rename_while_training", 0, 400, 1]]),
    ("a copy shares its scratch disk", [SCRATCH, ["copy", 0, 0], ["train", 1, 9, 0, 0, 2], EXTEND]),
    ("a new folder under a moved one's name", [SCRATCH, ["move", 0], ["new", 2], SCRATCH, ["train", 1, 9, 0, 0, 2]]),
    ("restarted on scratch disk", [SCRATCH, ["train", 0, 8, 3, 150, -1], ["edit", 0, 0], TRAIN]),
    ("the state is gone", [TRAIN, EVALUATE, ["damage", 0, 0, 0, 0], ["edit", 0, 0], TRAIN]),
    ("the manifest is gone", [TRAIN, ["damage", 0, 1, 0, 0], TRAIN, EXTEND]),
    ("scratch disk is cleared", [["train", 0, 5, 3, 200, -1], ["scratch_purged", 0], TRAIN]),
    ("scratch disk is gone", [SCRATCH, ["scratch_gone", 0], TRAIN, EXTEND]),
    ("a copy by hard links", [TRAIN, EVALUATE, ["copy", 0, 2], ["train", 1, 9, 0, 0, 2], ["evaluate", 1, 0, 0, 2]]),
    ("other code", [TRAIN, ["code"], EVALUATE, ["predict", 0, 2], EXTEND]),
    ("records exchanged", [TRAIN, ["new", 2], ["train", 1, 0, 0, 0, 2], ["damage", 0, 4, 4, 1], TRAIN, EXTEND]),
    ("parameters exchanged", [TRAIN, ["new", 2], ["train", 1, 0, 0, 0, 2], ["damage", 0, 5, 4, 1], TRAIN, EXTEND]),
    ("a record cut off", [KILLED, ["damage", 0, 5, 1, 0], TRAIN]),
    ("other arithmetic", [KILLED, ["train", 0, 18, 0, 0, 2]]),
    ("pixels exchanged, times restored", [KILLED, ["data", 1], TRAIN, EVALUATE, ["data", 1], EVALUATE]),
    ("damaged caches", [TRAIN, *(["cache", n, n % 4, n] for n in range(12)), ["new", 0], ["train", 1, 0, 0, 0, 2]]),
    ("a full disk", [*(["train", 0, 0, 6, n, -1] for n in range(4)), TRAIN, ["train", 0, 9, 6, 2, -1]]),
    ("a restart that is killed", [TRAIN, EVALUATE, *(["train", 0, 7, 2, n, -1] for n in (2, 5, 9, 14)), RESTART]),
    ("the ledger is gone", [TRAIN, EVALUATE, ["damage", 0, 12, 0, 0], EVALUATE]),
    ("damaged weights", [TRAIN, ["damage", 0, 8, 2, 0], EVALUATE, EVALUATE, EXTEND]),
    (
        "weights of another run",
        [TRAIN, ["new", 2], ["train", 1, 0, 0, 0, 2], ["damage", 0, 8, 3, 1], EVALUATE, EVALUATE],
    ),
    ("a record is gone", [KILLED, ["damage", 0, 5, 0, 0], EVALUATE]),
    ("a record cut off, evaluated", [KILLED, ["damage", 0, 4, 1, 0], EVALUATE]),
    ("renamed while it begins to go on", [KILLED, ["rename_while_training", 0, 140, 1]]),
    ("two trainings of one folder", [["twice", 0, 300], ["search", 0, 0]]),
]
