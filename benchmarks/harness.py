"""What every benchmark needs: programs in turn, medians, the machine in a line, a table, all raw numbers as JSON.

The compared programs alternate within one run, so that a slow minute of the machine affects all of them; ratios
are ratios of medians.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from tabulate import tabulate

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
FEATURES = ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_fp16", "sve", "bf16")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # the programs inherit them, and some obey
Result = TypeVar("Result")


def arguments(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"n, times that each program runs ({rounds})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    return parser


# --- running ----------------------------------------------------------------------------------------


def alternate(
    programs: Mapping[str, Callable[[int], Result]],
    rounds: int,
    after: Callable[[dict[str, list[Result]]], None] = lambda results: None,
) -> dict[str, list[Result]]:
    """{name: what its calls gave}. Round 0 calls A B C, round 1 C A B, and so on; each is told its round.

    `after` is given what there is after each round: a later failure need not lose it.
    """
    names = list(programs)
    results: dict[str, list[Result]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[-turn:] + names[:-turn]:
            begun = time.perf_counter()
            results[name].append(programs[name](number))
            print(f"round {number + 1}: {name}, {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)
        after(results)
    return results


def run(command: Sequence[object], code: int = 0, **kwargs: Any) -> tuple[float, str]:
    """(seconds, standard output) of a whole process. Ends the benchmark when its exit code is not `code`."""
    begun = time.perf_counter()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **kwargs)
    seconds = time.perf_counter() - begun
    if done.returncode != code:
        ending = f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        sys.exit(f"{shlex.join(map(str, command))[:400]}\nexit code {done.returncode} instead of {code}\n{ending}")
    return seconds, done.stdout


def python(*command: object, **kwargs: Any) -> float:
    """Seconds of a whole process of this Python."""
    return run([sys.executable, *command], **kwargs)[0]


def link_images(source: Path, target: Path, splits: Mapping[str, int], copies: int = 1) -> None:
    """Hard links (copies, between file systems) of the first images of each class, so many per split.

    All splits are cut out of the class folders below `source`, one behind the other; the classes are alike in size.
    `copies`: each file is linked so often, under other names.
    """
    classes = sorted(path for path in source.iterdir() if path.is_dir())
    if not classes:
        sys.exit(f"{source} has no class folders")
    for folder in classes:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        for split, wanted in splits.items():
            place = target / split / folder.name
            place.mkdir(parents=True)
            num_files = -(-wanted // (len(classes) * copies))
            chosen, files = files[:num_files], files[num_files:]
            if not chosen:
                sys.exit(f"{folder} has too few images for {dict(splits)}")
            for number in range(copies):
                for path in chosen:
                    _link(path, place / f"{number}_{path.name}")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


# --- telling ----------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """CPU, cores, precision features, versions, date and load."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": [name for name in FEATURES if capabilities.get(name)],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "environment": {name: os.environ[name] for name in THREADS if name in os.environ},
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def spread(values: Iterable[float], digits: int = 2) -> str:
    """median (min to max)"""
    values = list(values)
    if not values:
        return "-"
    middle, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def ratio(above: Iterable[float], below: Iterable[float]) -> float:
    """Of the medians."""
    return statistics.median(above) / statistics.median(below)


def against(value: float, bar: float | None, at_most: bool = False) -> str:
    """A ratio beside its bar: "3.41x (>= 3.2x: met)"."""
    if bar is None:
        return f"{value:.2f}x"
    is_met = value <= bar if at_most else value >= bar
    return f"{value:.2f}x ({'<=' if at_most else '>='} {bar:g}x: {'met' if is_met else 'missed'})"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


class Report:
    """The machine as it was at the start; at the end the table is printed and everything is written."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.machine = args, machine()

    def show(self, title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """One table, with what it was measured on."""
        it = self.machine
        environment = "".join(f"{name}={value}; " for name, value in it["environment"].items())
        print(f"\n{title}\n\n{table(headers, rows)}\n")
        print(
            f"n = {self.args.rounds}, alternating; {it['cpu']}, {it['cores']} cores, {' '.join(it['features'])}; "
            f"Python {it['python']}, torch {it['torch']}; {environment}{it['date']}; "
            f"load {it['load'][0]} at the start, {os.getloadavg()[0]:.2f} at the end"
        )

    def write(self, **raw: Any) -> None:
        """Every raw number, when --json was given."""
        if not self.args.json:
            return
        load = [round(value, 2) for value in os.getloadavg()]
        known = {"command": shlex.join(["python", *sys.argv]), "machine": self.machine, "load_at_the_end": load}
        self.args.json.write_text(json.dumps(known | raw, indent=2, default=str) + "\n")
