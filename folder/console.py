"""What a run prints also goes into its folder."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any


class Tee(io.TextIOBase):
    """A stream whose text also goes to a file. Losing the console never stops a run."""

    def __init__(self, stream: Any, path: Path):
        self.stream = stream
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (it lives as long as the process)

    def write(self, text: str) -> int:
        self.file.write(text)
        self.file.flush()
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            self.stream.write(text.encode("ascii", "replace").decode())
        except (BrokenPipeError, ValueError, OSError):
            self.stream = open(os.devnull, "w")  # noqa: SIM115 (it lives as long as the process)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError, OSError):
            self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def close_copy(self) -> Any:
        self.flush()
        self.file.close()
        return self.stream
