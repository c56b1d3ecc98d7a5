"""The tools of the tests: what mutate.py changes, and that its tables fit the repository."""

import mutate
from kit import ROOT

SOURCE = b'''"""A docstring of 3 lines."""
LIMIT: int = 3

def share(count: int, total: int = 1, exact=True) -> float:
    """Not 1."""
    if not count and total >= LIMIT:
        raise ValueError(f"{count + 1} of {total}")
    log.info("seen", 2)
    seen.append(count)
    return min(count - 1, total * 2) / scale(count, total)
'''


def changes() -> set[str]:
    """The lines that mutants of SOURCE have and SOURCE has not."""
    before = SOURCE.decode().splitlines()
    after = set()
    for mutant in mutate.Places("x.py", SOURCE).mutants:
        for choice in range(len(mutant.instead)):
            lines = mutant.apply(SOURCE, choice).decode().splitlines()
            assert lines[mutant.line - 1] != before[mutant.line - 1]
            after |= set(lines) - set(before)
    return {line.strip() for line in after}


def test_each_kind_of_mutant_is_made_and_messages_are_left_alone():
    returned = "return min(count - 1, total * 2) / scale(count, total)"
    assert changes() == {
        "LIMIT: int = (3 + 1)",
        "def share(count: int, total: int = 0, exact=True) -> float:",
        "def share(count: int, total: int = 2, exact=True) -> float:",
        "def share(count: int, total: int = 1, exact=False) -> float:",
        "if count and total >= LIMIT:",
        "if not count or total >= LIMIT:",
        "if not count and total > LIMIT:",
        "if not count and total < LIMIT:",
        "pass",
        returned.replace("min", "max"),
        returned.replace("-", "+"),
        returned.replace("- 1", "- 0"),
        returned.replace("- 1", "- 2"),
        returned.replace("*", "/"),
        returned.replace("total * 2", "total * (2 + 1)"),
        returned.replace(") / ", ") * "),
        returned.replace("count, total", "total, count"),
    }


def test_the_tables_of_mutate_name_what_there_is():
    for pattern in [*mutate.MUTATED, *mutate.LEFT_OUT]:
        assert list(ROOT.glob(pattern)), pattern
    for name, tests in mutate.NEAREST.items():
        assert (ROOT / name).exists(), name
        assert tests
    for test in {test for tests in mutate.NEAREST.values() for test in tests} | mutate.SLOW:
        assert (ROOT / test).exists(), test
    assert "tests/unit/test_schedule.py" in mutate.nearest_tests("engine/schedule.py")


def test_mutants_are_drawn_by_seed():
    files = mutate.mutated_files(["engine/"])
    assert mutate.draw(files, 5, seed=1) == mutate.draw(files, 5, seed=1)
    assert mutate.draw(files, 5, seed=1) != mutate.draw(files, 5, seed=2)
