"""Faults that the kit had, put back one at a time: does the model of the folder find each of them?

python tests/tools/old_faults.py                           # by the kept sequences
python tests/tools/old_faults.py --sequences 300 scratch   # by random ones; only faults whose name has the word
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kit import copy_repository


@dataclass(frozen=True)
class OldFault:
    """Each (file, text, replacement) of `edits` puts a part of the fault back; the text is in its file once."""

    name: str
    edits: tuple[tuple[str, str, str], ...]


IDS = ("folder/identity.py", "    if ids != own and ids not in meta.get(ADOPTS, []):\n", "    if False:\n")
OWNER = ("folder/scratch.py", "        if not (is_own or is_fresh):\n", "        if False:\n")
OLD_FAULTS = (
    OldFault("a copy shares its scratch disk", (
        ("folder/scratch.py", '    return "id" in meta and (is_copy(folder, meta) or is_shared(folder, meta))\n', "    return False\n"), OWNER)),
    OldFault("scratch targets are named after the folder and adopted", (
        ("folder/scratch.py", 'f"{folder.resolve().name}-{secrets.token_hex(4)}"\n    target.mkdir(parents=True)', "folder.resolve().name\n    target.mkdir(parents=True, exist_ok=True)"),
        ("folder/scratch.py", "            (target / name).mkdir()\n", "            (target / name).mkdir(exist_ok=True)\n"), OWNER, IDS)),
    OldFault("results without state are overwritten", (
        ("folder/records.py", "        check_state(folder.path, restart_words, start_over)\n", "        pass\n"),)),
    OldFault("a renamed folder is written under its old name", (
        ("folder/folder.py", "        return self._held is None or self._held == inode_of(self.path)\n", "        return True\n"), IDS)),
    OldFault("records of another folder are believed", (IDS,)),
    OldFault("arithmetic is not recorded", (
        ("engine/precision.py", '        kind["arithmetic"] = ', '        kind["unknown"] = '),
        ("engine/precision.py", '        kind["unknown"] = ', '        _ = '))),
    OldFault("trained nets are evaluated by changed code", (
        ("evaluate.py", 'code = "tree" if args.logits else pick_code(folder, args.code, say)', 'code = "tree"'),)),
    OldFault("pixels of the cache are believed", (
        ("model/images/cached/intact.py", "        is_bad = (computed != self.expected[blocks]).any(axis=1)\n", "        is_bad = (computed != computed).any(axis=1)\n"),
        ("model/images/cache.py", "    if not loaded.are_intact(np.arange(len(copy))):\n", "    if False:\n"))),
    OldFault("contents that change behind their times are not seen", (
        ("model/images/cache.py", "    if not is_changed.any():\n", "    if True:\n"),)),
    OldFault("a copy by hard links writes the original's log", (
        ("folder/console.py", "    if path.is_file() and path.stat().st_nlink > 1:\n", "    if False:\n"),)),
    OldFault("a copy by hard links writes the original's ledger", (
        ("engine/use/looks.py", "path.stat().st_nlink > 1:", "False:"),)),
    OldFault("a restart that is killed scatters the attempt", (
        ("folder/aside.py", 'return next((path for path in names if path.name.removeprefix(UNFINISHED).isdigit()), None)', "return next((path for path in names if not path.name), None)"),
        ("folder/aside.py", '    whole = target.with_name(target.name.removeprefix(UNFINISHED))\n', "    whole = target.with_name(target.name.removeprefix(UNFINISHED))\n    whole.mkdir(exist_ok=True)\n"))),
    OldFault("a full disk is said with the kit's own file", (
        ("utils.py", "        written = error.filename2 or error.filename", "        written = error.filename"),)),
    OldFault("changed code goes on", (
        ("engine/plan.py", '    if "code" not in plan.accepted:\n', "    if False:\n"),)),
    OldFault("a state that is not the last is overwritten", (
        ("engine/checkpoint.py", "while (self.path / name).exists():", "while False:"),)),
)  # fmt: skip


def try_with(fault: OldFault, flags: list[str]) -> tuple[bool, str]:
    """(whether the model finds it, the violation or what is wrong), in a copy of the repository with the fault."""
    with tempfile.TemporaryDirectory() as name:
        copy = copy_repository(Path(name) / "kit")
        for file, text, other in fault.edits:
            content = (copy / file).read_text()
            if content.count(text) != 1:
                return False, f"its text is {content.count(text)} times in {file}, not once: {text!r}"
            (copy / file).write_text(content.replace(text, other))
        command = [sys.executable, str(copy / "tests/tools/folder_model.py"), "--first", *flags]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return done.returncode == 1 and '"sequences"' in done.stdout, done.stdout[-700:] + done.stderr[-400:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="")
    parser.add_argument("--sequences", type=int, default=0, help="random ones; 0: the kept ones")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    flags = ["--sequences", str(args.sequences), "--seed", str(args.seed)] if args.sequences else ["--kept"]
    chosen = [fault for fault in OLD_FAULTS if args.word in fault.name]
    num_found = 0
    for fault in chosen:
        is_found, text = try_with(fault, [*flags, "--shorten", "0"] if args.sequences else flags)
        num_found += is_found
        print(
            f"{'found ' if is_found else 'MISSED'} {fault.name}: {json.dumps(' '.join(text.split())[-400:])}",
            flush=True,
        )
    print(f"{num_found} of {len(chosen)} old faults are found")
    sys.exit(0 if num_found == len(chosen) else 1)


if __name__ == "__main__":
    main()
