"""Unpack untrusted archives: nothing is written outside the target, and decompression bombs are refused."""

import tarfile
import zipfile
from pathlib import Path

from utils import UserError

MAX_MEMBERS = 5_000_000
MAX_BYTES = 1 << 40
MAX_RATIO = 1000  # of a file's size to its compressed size


def extract(archive: Path, target: Path) -> Path:
    """Unpack a .tar, .tar.gz or .zip into `target`. UserError for what leaves `target`, is too large or damaged."""
    target.mkdir(parents=True)
    try:
        if tarfile.is_tarfile(archive):
            _extract_tar(archive, target)
            return target
        if zipfile.is_zipfile(archive):
            _extract_zip(archive, target)
            return target
    except UserError:
        raise
    except Exception as error:  # of damaged, encrypted and strangely compressed archives, many kinds
        raise UserError(f"{archive}: cannot be unpacked: {' '.join(str(error).split())[:200]}") from None
    raise UserError(f"{archive}: neither a folder nor a .tar, .tar.gz or .zip archive")


def _extract_tar(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        members = []
        for member in tar:
            members.append(member)
            _check_limits(len(members), member.size, archive)
        tar.extractall(target, members=members, filter="data")


def _extract_zip(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        num_bytes = 0
        for number, info in enumerate(zipped.infolist()):
            num_bytes += info.file_size
            _check_limits(number, num_bytes, archive)
            is_outside = info.filename.startswith(("/", "\\")) or ".." in Path(info.filename).parts
            is_bomb = info.file_size > MAX_RATIO * max(1, info.compress_size)
            if is_outside or is_bomb:
                raise UserError(f"{archive}: {info.filename!r} is refused (outside the target, or a bomb)")
        zipped.extractall(target)


def _check_limits(num_members: int, num_bytes: int, archive: Path) -> None:
    if num_members > MAX_MEMBERS or num_bytes > MAX_BYTES:
        raise UserError(f"{archive}: more than {MAX_MEMBERS:,} files or {MAX_BYTES >> 30} GiB are refused")
