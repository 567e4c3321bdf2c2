"""Files that are written whole or not at all, their checksums, and folders that one process at a time writes into."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from classifier.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: there two processes are not kept apart
    fcntl = None

LEFTOVER = re.compile(r"\..+\.[0-9]+\.tmp|\.prepare-.+")  # of written_whole and of dataset.prepare


@contextmanager
def written_whole(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Give a file to write; at the end of the block it takes path's place, after an error nothing has changed.

    Args:
        path: where the content goes, a regular file or nothing as yet; a link is followed.
        mode: "wb", or "w" for UTF-8 text with line ends as they are written.

    Raises:
        UserError: path cannot be written, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    refuse_irregular(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
        try:
            text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
            with open(handle, mode, **text) as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _to_disk(target.parent)
    except (OSError, RuntimeError) as error:
        # torch's writer hides the OSError of a full disk behind a RuntimeError of its own
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(f"cannot write {path}: {cause.strerror or cause}; what was there before is untouched") from None


@contextmanager
def folder_written_whole(folder: Path, replace: bool) -> Iterator[Path]:
    """Give an empty folder to fill; at the end of the block it takes folder's place, after an error all is as it was.

    Args:
        folder: nothing as yet, or a folder; a link is followed.
        replace: remove what the folder holds, once the new content is whole and in its place. Else it must be empty.

    Raises:
        UserError: it cannot be written, or the disk is full.
    """
    target = Path(os.path.realpath(folder))
    temporary, old = (target.with_name(f".{target.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        temporary.mkdir()
        try:
            yield temporary
            for path in (*temporary.iterdir(), temporary):
                _to_disk(path)
            if target.exists() and not replace:
                target.rmdir()  # fails where something has come into it in the meantime
            elif target.exists():
                target.rename(old)
            temporary.rename(target)
        finally:
            if old.exists() and not target.exists():
                old.rename(target)  # what was to take its place did not get there
            shutil.rmtree(temporary, ignore_errors=True)
        _to_disk(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; what was there before is untouched"
        ) from None


def _to_disk(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def hold(folder: Path) -> IO:
    """Keep other processes from writing into a folder until the returned file is closed or this process ends.

    What a killed process has left there is removed. The lock is the system's: it dies with its holder.

    Raises:
        UserError: a living process holds the folder.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)  # what a link points to must not be written into
    lock = open(os.open(folder / ".lock", flags, 0o666), "r+", encoding="utf-8")
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = lock.read(20).strip()
        lock.close()
        raise UserError(
            f"{folder} is in use by another process ({holder}): wait for it, or use another folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return lock


def refuse_irregular(path: Path) -> None:
    """Raise a UserError where a folder, device or pipe stands in a file's place."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} cannot be written: it is there already and no regular file")


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
