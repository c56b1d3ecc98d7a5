"""The files of published weights: copies beside the data's cache, the libraries' own caches, and the network."""

from __future__ import annotations

import queue
import re
import shutil
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from folder.manifest import digest_file
from utils import UserError, sync_folder

SECONDS = 6.0  # to wait for a sign of life of a server


class Origin(Protocol):
    """Where published weights are, as model/ says it."""

    @property
    def name(self) -> str: ...

    @property
    def url(self) -> str: ...

    @property
    def repository(self) -> str: ...


@dataclass(frozen=True)
class Shelf:
    """Published weights, with copies in a folder that need no network."""

    folder: Path
    adds: bool = False  # what is fetched is copied into the folder

    def fetch(self, origin: Origin) -> Path:
        """The file: the copy, else from the library's own cache or the network. UserError when it is nowhere."""
        if kept := self.find(origin.name):
            return kept
        try:
            file = _download_from_hub(origin.repository) if origin.repository else _download(origin.url)
        except Exception as error:
            by_hand = f"put {origin.url} at {_place_in_cache(origin.url)}" if origin.url else ""
            way = by_hand or f"fetch {origin.repository} with train.py --prepare where there is one, for {self.folder}"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise UserError(
                f"pretrain: the published weights {origin.name} could not be read ({reason}); with no network, "
                f'{way}, or give a local file: "pretrain": "path/to/weights.safetensors"'
            ) from None
        return self.add(origin.name, file) if self.adds else file

    def find(self, name: str) -> Path | None:
        """The copy of `name`; None when there is none. UserError when its content is not what was copied."""
        for path in sorted(self.folder.glob(f"{name}-*")):
            if path.stem.rpartition("-")[2] != digest_file(path)[:8]:
                raise UserError(f"{path} is damaged; delete it, and fetch it again with train.py --prepare")
            return path
        return None

    def add(self, name: str, file: Path) -> Path:
        """A copy of `file` under `name`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{name}-{digest_file(file)[:8]}{file.suffix}"
        unfinished = target.with_name(f".{target.name}")
        shutil.copyfile(file, unfinished)
        unfinished.replace(target)
        sync_folder(self.folder)
        return target


def _place_in_cache(url: str) -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def _download(url: str) -> Path:
    """A file by its address, in torch's own cache."""
    file = _place_in_cache(url)
    if file.exists():
        return file
    _check_answer(url)
    file.parent.mkdir(parents=True, exist_ok=True)
    import torch

    stated = re.search(r"-([a-f0-9]{8,})\.", file.name)  # how its SHA-256 begins
    with _impatient_sockets():
        torch.hub.download_url_to_file(url, str(file), stated and stated.group(1), progress=sys.stderr.isatty())
    return file


def _download_from_hub(repository: str) -> Path:
    """The weights of a repository of Hugging Face's hub, in its own cache."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = repository.partition("@")
    names = ("model.safetensors", "pytorch_model.bin")
    for name in names:
        kept = try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(kept, str):
            return Path(kept)
    _check_answer(constants.ENDPOINT)
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, revision=revision or None))
        except EntryNotFoundError:
            continue
    raise FileNotFoundError(f"{repository} holds neither {' nor '.join(names)}")


def _check_answer(url: str) -> None:
    """ConnectionError when its server gives no answer within SECONDS. (Looking up its name has no time limit.)"""
    answers: queue.Queue[str] = queue.Queue()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=SECONDS).close()
        except urllib.error.HTTPError:  # an answer
            answers.put("")
        except Exception as error:
            answers.put(str(error) or type(error).__name__)
        else:
            answers.put("")

    threading.Thread(target=ask, daemon=True).start()
    try:
        trouble = answers.get(timeout=SECONDS)
    except queue.Empty:
        trouble = f"no answer in {SECONDS:g} s"
    if trouble:
        raise ConnectionError(trouble)


@contextmanager
def _impatient_sockets() -> Iterator[None]:
    """A download whose server falls silent for half a minute ends."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
