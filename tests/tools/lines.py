"""Which lines of the kit run: a tracer that writes each new one into a file, in this process and in its children.

It imports nothing but the standard library's smallest modules, because every traced process imports it first.
"""

import os
import sys
import threading
from types import FrameType

MANY = 200  # calls of a function after which all its lines count as run: tracing them further only takes time
FOLDER, OUTPUT = "TRACED_FOLDER", "TRACED_OUTPUT"  # environment variables that reach the children


class LineTracer:
    """Appends "path line" to the file `output` for each new line below `folder`; a whole function is "path -line"."""

    def __init__(self, folder: str, output: str):
        self.folder = folder.rstrip("/") + "/"
        self.descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.names: dict[str, str] = {}  # file name of a code object -> path below `folder`, "" for others
        self.forget()

    def forget(self) -> None:
        """Every line is new again."""
        self.seen: set[tuple[str, int]] = set()
        self.calls: dict[tuple[str, int], int] = {}

    def start(self) -> None:
        threading.settrace(self.enter)
        sys.settrace(self.enter)

    def stop(self) -> None:
        sys.settrace(None)

    def name(self, filename: str) -> str:
        """Path of a traced file below the folder, "" for a file that is not of the kit."""
        name = filename[len(self.folder) :] if filename.startswith(self.folder) else ""
        name = "" if name.startswith("tests/") or "site-packages" in name else name
        self.names[filename] = name
        return name

    def note(self, name: str, line: int) -> None:
        self.seen.add((name, line))
        os.write(self.descriptor, f"{name} {line}\n".encode())

    def enter(self, frame: FrameType, event: str, arg: object):
        code = frame.f_code
        name = self.names.get(code.co_filename)
        if name is None:
            name = self.name(code.co_filename)
        if not name:
            return None
        first = (name, code.co_firstlineno)
        calls = self.calls[first] = self.calls.get(first, 0) + 1
        if calls > MANY:
            if calls == MANY + 1:
                self.note(name, -code.co_firstlineno)
            return None
        return self.step

    def step(self, frame: FrameType, event: str, arg: object):
        if event == "line":
            name, line = self.names[frame.f_code.co_filename], frame.f_lineno
            if (name, line) not in self.seen:
                self.note(name, line)
        return self.step


def environment_for_children(tools: str) -> str:
    """Text of a sitecustomize.py that starts the tracer in every Python process that finds it in PYTHONPATH."""
    return (
        f"import os, sys\nsys.path.append({tools!r})\nfrom lines import FOLDER, OUTPUT, LineTracer\nsys.path.pop()\n"
        "if FOLDER in os.environ:\n    LineTracer(os.environ[FOLDER], os.environ[OUTPUT]).start()\n"
    )
