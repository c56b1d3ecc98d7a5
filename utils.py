"""Small tools that every room may use: the errors that users see, names in registries, files, seeds, processes.

No torch at import, so that `--help` and tables start quickly.
"""

import contextlib
import ctypes
import difflib
import errno
import hashlib
import importlib.machinery
import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from include import EXIT_BUG, EXIT_SYSTEM, EXIT_USER, PACKAGES

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

# JSON in signatures. Json: what may be written. JsonObject: what was read; its reader checks the values.
Json: TypeAlias = "None | bool | int | float | str | Sequence[Json] | Mapping[str, Json]"
JsonObject: TypeAlias = dict[str, Any]

# --- the errors that users see ------------------------------------------------------------------------


class UserError(Exception):
    """Something the user can put right. Printed as one line on stderr; the process exits with `code`."""

    prefix = "error: "

    def __init__(self, message: str, code: int = EXIT_USER):
        super().__init__(printable(" ".join(message.split("\n"))))
        self.code = code


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def printable(text: str) -> str:
    """`text` as a terminal may show it: names of files and classes can hold escape sequences; \\x1b stands for one."""
    return text.translate(_CONTROLS)


def nearest(word: str, choices: Iterable[str]) -> str:
    """ "did you mean 'x'?" with the closest of `choices`; when none is close, "possible: " and the first of them."""
    choices = sorted(map(str, choices))
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    if near:
        return f"did you mean {by_lower[near[0]]!r}?"
    shown = ", ".join(choices[:12]) + (f", ... ({len(choices)} in all)" if len(choices) > 12 else "")
    return f"possible: {shown}"


# --- names in registries ------------------------------------------------------------------------------


def lookup(registry: Mapping[str, T], name: str, key: str, folder: Path | None = None) -> T:
    """registry[name], or the object that "file.py:Name" in `folder` names. UserError with the nearest name."""
    if ".py:" in name:
        return load_reference(name, folder or Path())
    if name not in registry:
        raise UserError(f"{key}: unknown name {name!r}; {nearest(name, registry)}")
    return registry[name]


def reference_name(reference: str) -> str:
    """The short name under which a registry's entry is reported: Name for "file.py:Name", else the name itself."""
    return reference.rpartition(":")[2]


def reference_file(reference: str) -> str:
    """The file of "file.py:Name"; "" for any other name of a registry."""
    return reference.rpartition(":")[0]


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles the source each time; reads and writes no __pycache__."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def load_reference(reference: str, folder: Path) -> Any:
    """The object that "file.py:Name" means, the file being relative to `folder`. Runs that file as Python, once."""
    name = reference_name(reference)
    # find the file
    path = folder / reference_file(reference)
    if not folder.is_dir():  # not made yet: ".." cannot be followed
        path = Path(os.path.normpath(path))
    if not path.is_file():
        raise UserError(f"{reference!r}: there is no file {path}")
    # import it under a name made from its path; what Python compiled earlier is not used: it may be of another source
    module_name = f"_experiment_{hashlib.blake2b(str(path.resolve()).encode(), digest_size=6).hexdigest()}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path, loader=_SourceLoader(module_name, str(path)))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    # take the object
    module = sys.modules[module_name]
    if not hasattr(module, name):
        names = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        raise UserError(f"{path} has no {name!r}; {nearest(name, names)}")
    return getattr(module, name)


def check_kwargs(function: Callable[..., object], kwargs: Iterable[str], key: str, skip: Iterable[str] = ()) -> None:
    """UserError when `kwargs` holds a name that `function` does not take; `skip`: names that the kit gives itself."""
    signature = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.values()):
        return
    allowed = [name for name in signature if name not in {"self", *skip}]
    for name in kwargs:
        if name not in allowed:
            shown = getattr(function, "__name__", function)
            raise UserError(f"{key}: {shown} takes no {name!r}; {nearest(name, allowed)}")


# --- files ------------------------------------------------------------------------------------------


def write_atomic(path: Path | str, data: bytes | str, check: Callable[[], None] | None = None) -> None:
    """Replace `path` by `data`: a reader, or a crash at any instant, finds the old file or the new, never half.

    `check` is called at the last moment; what it raises leaves the old file.
    Raises OSError naming `path`; on a full disk also the bytes needed and free. Leaves nothing behind.
    """
    path = Path(path)
    content = memoryview(data.encode() if isinstance(data, str) else data)
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".tmp-", suffix="-" + path.name[-60:], dir=path.parent)
        # write everything to a temporary file in the same folder
        try:
            rest = content
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        # put it in the place of the old file
        os.chmod(temporary, 0o666 & ~_UMASK)
        if check:
            check()
        os.replace(temporary, path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                reason += f" ({len(content):,} bytes needed, {shutil.disk_usage(path.parent).free:,} free)"
        raise OSError(error.errno, reason, str(path)) from None
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


FORMULA = re.compile("'*[=+\\-@\t\r]")  # how a cell begins that a spreadsheet runs


def csv_value(text: str) -> str:
    """The text that folder.csv_text.csv_text made a cell of."""
    return text[1:] if text.startswith("'") and FORMULA.match(text[1:]) else text


def sync_folder(folder: Path) -> None:
    """Make the directory entries of `folder` durable (fsync)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_UMASK = os.umask(0o022)  # it can be read by setting it alone
os.umask(_UMASK)


def to_json(value: object) -> str:
    """Indented JSON with a newline at its end; NaN and infinity are refused."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path | str, value: object) -> None:
    write_atomic(path, to_json(value))


def read_json(path: Path | str) -> Any:
    """A JSON file that the kit wrote. UserError naming the file when it is missing or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None


def read_tensors(path: Path | str) -> dict[str, "Tensor"]:
    """Tensors by name from a `.safetensors` file or a PyTorch file (weights only: nothing in it is executed).

    A PyTorch file may hold the tensors themselves, or under "state_dict", "model" or "net". UserError otherwise.
    """
    import torch
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        if "weights_only" in str(error):  # torch's words for a file that could run code when it is read
            reason = "it holds pickled objects, such as a whole net; save model.state_dict() where it was made"
        raise UserError(f"{path}: not a readable weights file ({reason})") from None
    for key in ("state_dict", "model", "net"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path}: holds no table of tensors (a state_dict is expected)")
    return content


# --- randomness -------------------------------------------------------------------------------------


def key64(*parts: int | str) -> int:
    """A 63-bit seed that is a function of `parts` alone, e.g. key64(seed, "order", epoch)."""
    return int.from_bytes(hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest(), "little") >> 1


# --- processes --------------------------------------------------------------------------------------


def command(*parts: object) -> str:
    """A command line ready to paste into a shell."""
    return shlex.join(map(str, parts))


def say(line: str) -> None:
    """Print a line on stderr at once: something that a person should know while, or before, it takes long."""
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)


def run_script(main: Callable[[list[str]], int | None]) -> None:
    """Call main(argv) and exit with its code; see `run_command`."""
    _open_streams()
    sys.exit(run_command(main, sys.argv[1:]))


def run_command(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    """The exit code of main(argv). A UserError: one line, and its code; trouble with disk or memory: 5; a bug: 70."""
    try:
        code = main(argv) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"{error.prefix}{error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:  # the reader of our output is gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        is_missing = isinstance(error, ModuleNotFoundError) and error.name in PACKAGES
        if is_missing or isinstance(error, OSError) or is_out_of_memory(error):
            print(f"error: {printable(describe_oserror(error))}", file=sys.stderr)
            return EXIT_SYSTEM
        traceback.print_exc()
        return EXIT_BUG


def _open_streams() -> None:
    """Open /dev/null as stdin, stdout or stderr where it is closed; otherwise the next opened file takes its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (it lives as long as the process)


def num_cores() -> int:
    """Number of cores that this process may use: taskset, containers and Slurm give fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send signal `number` to this process when its parent ends. Linux only; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG of linux/prctl.h
        if os.getppid() != parent:  # it ended before
            os._exit(1)


def cache_home() -> Path:
    """The kit's part of the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "experiment-folders"


def is_out_of_memory(error: BaseException) -> bool:
    """True for Python's own error and for torch's: a type of its own on CUDA, a RuntimeError on the CPU."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def describe_oserror(error: BaseException) -> str:
    """One line for a full disk, a missing permission, exhausted memory or a package that is not installed."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed in {sys.prefix}. ./setup.sh installs it; then: source .venv/bin/activate"
    if is_out_of_memory(error):
        return "out of memory: try a smaller batch_size, or cache: off"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files: allow more with: ulimit -n 4096   or use fewer num_workers"
    if isinstance(error, OSError) and error.filename and error.strerror:
        written = error.filename2 or error.filename  # of a copy, the file that could not be written, not its source
        return f"{written}: {error.strerror}"
    return f"{type(error).__name__}: {error}"
