"""Unpack untrusted archives: nothing is written outside the target, and decompression bombs are refused."""

import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from model.images.build.items import Remarks
from utils import UserError, command

MAX_MEMBERS = 5_000_000
MAX_RATIO = 1000  # of a file's size to its compressed size
MAX_LINKS_IN_A_ROW = 40  # links to links
MAX_WHOLE_RATIO = 100  # of all files to the archive; images are compressed already
MAX_UNSUSPECTED = 100 << 20  # bytes; an archive that unpacks to less may have any ratio


def extract(archive: Path, target: Path, remarks: Remarks) -> Path:
    """Unpack a .tar, .tar.gz or .zip into `target`. UserError for what leaves `target`, is too large or damaged."""
    target.mkdir(parents=True)
    try:
        if tarfile.is_tarfile(archive):
            _extract_tar(archive, target, remarks)
            return target
        if zipfile.is_zipfile(archive):
            _extract_zip(archive, target, remarks)
            return target
    except UserError:
        raise
    except Exception as error:  # of damaged, encrypted and strangely compressed archives, many kinds
        raise UserError(f"{archive}: cannot be unpacked: {' '.join(str(error).split())[:200]}") from None
    raise UserError(f"{archive}: neither a folder nor a .tar, .tar.gz or .zip archive")


class Limits:
    """Counts what an archive unpacks to, before it is unpacked."""

    def __init__(self, archive: Path, target: Path):
        self.archive = archive
        self.compressed = archive.stat().st_size
        self.free = shutil.disk_usage(target).free
        self.num_members = 0
        self.num_bytes = 0

    def add(self, size: int) -> None:
        """UserError when there are too many members, or too many bytes for the archive or the disk."""
        self.num_members += 1
        self.num_bytes += max(0, size)
        if self.num_members > MAX_MEMBERS:
            raise UserError(f"{self.archive}: more than {MAX_MEMBERS:,} files are refused; {self._way_out()}")
        if self.num_bytes > max(MAX_UNSUSPECTED, MAX_WHOLE_RATIO * self.compressed):
            raise UserError(
                f"{self.archive}: {self.compressed:,} bytes that unpack to {self.num_bytes:,} or more: like a bomb, so "
                f"it is refused (possible: {MAX_WHOLE_RATIO} times as many); {self._way_out()}"
            )
        if self.num_bytes > self.free:
            raise UserError(
                f"{self.archive}: it unpacks to {self.num_bytes:,} bytes or more, and {self.free:,} are free on the "
                "disk of --data_dir; free some, or give a --data_dir on another disk"
            )

    def _way_out(self) -> str:
        folder = self.archive.with_name(self.archive.name.partition(".")[0] + "_unpacked")
        if zipfile.is_zipfile(self.archive):
            unpack = command("unzip", self.archive, "-d", folder)
        else:
            unpack = f"{command('mkdir', folder)} && {command('tar', '-xf', self.archive, '-C', folder)}"
        return f"if you trust it, unpack it yourself and give the folder as --source: {unpack}"


# --- tar ----------------------------------------------------------------------------------------------


def _extract_tar(archive: Path, target: Path, remarks: Remarks) -> None:
    """Files first, then links to them. tarfile's own `data` filter could be got round until Python 3.11.13."""
    limits = Limits(archive, target)
    with tarfile.open(archive) as tar:
        # List what is in it; nothing is written before all of it was seen.
        files: list[tuple[str, tarfile.TarInfo]] = []
        links: dict[str, str] = {}  # name -> what it leads to, below `target`
        for member in tar:
            limits.add(member.size)
            name = _inside(member.name.lstrip("/"), member.name, archive)
            if member.isreg():
                files.append((name, member))
            elif member.issym():
                links[name] = _inside(posixpath.join(posixpath.dirname(name), member.linkname), member.name, archive)
            elif member.islnk():
                links[name] = _inside(member.linkname, member.name, archive)
            elif not member.isdir():
                raise UserError(f"{archive}: {member.name!r} is refused (a device or a pipe)")
        _count_repeated([name for name, _ in files], archive, remarks)
        # Write the files.
        last = {name: number for number, (name, _) in enumerate(files)}
        for number, (name, member) in enumerate(files):
            if last[name] == number:
                _write_member(tar, member, target / name)
    # Make the links.
    if num_dangling := _make_links(links, target):
        remarks.append(f"{num_dangling} links in {archive.name} left out: they lead nowhere")


def _inside(name: str, shown: str, archive: Path) -> str:
    """`name` without `.` and `..`. UserError when it leads out of the archive."""
    path = posixpath.normpath(name)
    if path.startswith("/") or path.split("/")[0] == "..":
        raise UserError(f"{archive}: {shown!r} is refused (it leads out of the archive)")
    return path


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    content = tar.extractfile(member)
    assert content is not None  # it is a regular file
    path.parent.mkdir(parents=True, exist_ok=True)
    with content, open(path, "xb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
    os.utime(path, (member.mtime, member.mtime))


def _make_links(links: dict[str, str], target: Path) -> int:
    """Make links below `target`: hard ones to files, relative ones to folders. Returns the number of dangling ones.

    What they lead to was written by us, or is such a link, so that none leads out.
    """
    for _ in range(MAX_LINKS_IN_A_ROW):
        waiting: dict[str, str] = {}
        for name, leads_to in links.items():
            path, real = target / name, os.path.realpath(target / leads_to)
            if not os.path.exists(real) or os.path.lexists(path):
                waiting[name] = leads_to
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if os.path.isdir(real):
                path.symlink_to(os.path.relpath(real, os.path.realpath(path.parent)))
            else:
                os.link(real, path)
        if len(waiting) == len(links):
            break
        links = waiting
    return len(links)


# --- zip ----------------------------------------------------------------------------------------------


def _extract_zip(archive: Path, target: Path, remarks: Remarks) -> None:
    limits = Limits(archive, target)
    with zipfile.ZipFile(archive) as zipped:
        files: list[zipfile.ZipInfo] = []
        num_special = 0
        for info in zipped.infolist():
            limits.add(info.file_size)
            is_outside = info.filename.startswith(("/", "\\")) or ".." in Path(info.filename).parts
            is_bomb = info.file_size > MAX_RATIO * max(1, info.compress_size)
            if is_outside or is_bomb:
                raise UserError(f"{archive}: {info.filename!r} is refused (outside the target, or a bomb)")
            if _is_special(info):
                num_special += 1
            else:
                files.append(info)
        if num_special:
            remarks.append(f"{num_special} links and devices in {archive.name} left out: in a .zip they are no images")
        _count_repeated((info.filename for info in files if not info.is_dir()), archive, remarks)
        zipped.extractall(target, members=files)


def _is_special(info: zipfile.ZipInfo) -> bool:
    """Whether a member says that it is a link, a pipe or a device: its content is no image."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    return kind not in (0, stat.S_IFREG, stat.S_IFDIR)


def _count_repeated(names: Iterable[str], archive: Path, remarks: Remarks) -> None:
    """Remark on files that disappear because a later one has the same name."""
    counts = Counter(map(posixpath.normpath, names))
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        num_lost = sum(counts[name] - 1 for name in repeated)
        remarks.append(
            f"{num_lost} files in {archive.name} left out: a later one has the same name (for example {repeated[0]})"
        )
