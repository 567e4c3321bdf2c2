"""Files that are written whole or not at all, their checksums, and folders that one process at a time writes into."""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from classifier.errors import UserError

try:
    import fcntl

    FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)  # a Mac's
except ImportError:  # Windows
    FULL_SYNC = None


@contextmanager
def written_whole(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Open a file that takes path's place at the end of the block, when it is on the disk.

    After an error, or a kill at any moment, path has its old content. A kill may leave .NAME.tmp beside it, which the
    next writer replaces and hold removes. A link is followed. In mode "w" the text is UTF-8, its line ends as written.

    Raises:
        UserError: path cannot be written, the disk is full, or something other than a file is there.
    """
    target = Path(os.path.realpath(path))
    refuse_irregular(target)
    temporary = target.with_name(f".{target.name}.tmp")
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
    try:
        with open(temporary, mode, encoding=encoding, newline=newline) as f:
            yield f
            f.flush()
            synced(f.fileno())
        replace(temporary, target)
        to_disk(target.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # torch's writer hides the OSError of a full disk behind a RuntimeError of its own
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise UserError(f"cannot write {path}: {cause.strerror or cause}") from None
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON, whole or not at all."""
    with written_whole(path, "w") as f:
        json.dump(content, f, indent=2, ensure_ascii=False)
        f.write("\n")


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Make an empty folder that takes folder's place, with all that it contains, at the end of the block.

    After an error all is as it was. A kill at the last moment, when the old folder has been moved aside, leaves
    neither: the same command again writes it. A link is followed.

    Raises:
        UserError: it cannot be written, or the disk is full.
    """
    target = Path(os.path.realpath(folder))
    new, old = (target.with_name(f".{target.name}.{end}") for end in ("tmp", "old"))
    for leftover in (new, old):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        new.mkdir()
        yield new
        for path in (new, *new.rglob("*")):
            to_disk(path)
        if target.exists():
            target.rename(old)
        replace(new, target)
        to_disk(target.parent)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
        raise
    shutil.rmtree(old, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Make a file's content, or the names in a folder where its file system can, survive a power cut."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            synced(handle)
        except OSError as error:  # CIFS, vboxsf and gocryptfs cannot sync folders, nor can WSL on a Windows share
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EIO) or not path.is_dir():
                raise
        finally:
            os.close(handle)


def synced(handle: int) -> None:
    """Wait until an open file is on the disk; on a Mac fsync alone only hands it to the drive."""
    if FULL_SYNC is not None:
        with suppress(OSError):  # network drives do not have it
            fcntl.fcntl(handle, FULL_SYNC)
            return
    os.fsync(handle)


def replace(new: Path, target: Path) -> None:
    """Move a file to target's place; on Windows wait up to a second while a virus scanner has it open."""
    for wait in (0.1, 0.2, 0.3, 0.4, 0):
        try:
            return os.replace(new, target)
        except PermissionError:
            if not wait:
                raise
            time.sleep(wait)


@contextmanager
def hold(folder: Path) -> Iterator[os.stat_result]:
    """Keep other processes from writing into a folder, made if need be, for the length of a block.

    Leftovers of killed processes, such as .best.pt.tmp, are removed. Gives what is_held compares with.

    Raises:
        UserError: another process holds the folder, or it cannot be written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock").acquire(blocking=False)
    except Timeout:
        raise UserError(f"{folder} is in use by another process: wait for it, or use another folder") from None
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}") from None
    with lock:
        for path in folder.glob(".*.*.tmp"):
            if path.is_file():
                path.unlink()
            elif path.name.startswith(".prepared."):  # only prepare.py makes such folders
                shutil.rmtree(path)
        yield os.stat(folder / ".lock")


def is_held(folder: Path, held: os.stat_result | None) -> bool:
    """Return whether a folder is still the one that is being held: it was neither removed nor replaced."""
    try:
        return held is not None and os.path.samestat(held, os.stat(folder / ".lock"))
    except OSError:
        return False


def check_held(folder: Path, held: os.stat_result | None) -> None:
    """Raise a UserError if a folder is no longer the one that is being held: another run may have its place."""
    if not is_held(folder, held):
        raise UserError(
            f"{folder} was removed or replaced, so the run has stopped and writes nothing there; if it was renamed, "
            "resume with --out_dir=NEW"
        )


def make_way(path: Path, is_replaced: bool) -> None:
    """Make the folder of a file to be written; raise a UserError if the file exists and must not be replaced."""
    if path.exists() and not is_replaced:
        raise UserError(f"{path} exists already: move it, or add --overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def refuse_irregular(path: Path) -> None:
    """Raise a UserError where a folder, device or pipe stands in a file's place."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} cannot be written: something other than a file is there")


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
