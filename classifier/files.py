"""Files that are written whole or not at all, their checksums, and folders that one process at a time writes into."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from classifier.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: there two processes are not kept apart
    fcntl = None


@contextmanager
def written_whole(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Give a file to write; at the end of the block it is on the disk and takes path's place.

    After an error, or a kill at any moment, path holds what it held before. What a kill leaves beside it, as .NAME.tmp,
    the next writer writes over, and hold removes.

    Args:
        path: where the content goes, a regular file or nothing as yet; a link is followed.
        mode: "wb", or "w" for UTF-8 text with line ends as they are written.

    Raises:
        UserError: something else than a file is there.
        OSError: path cannot be written, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    refuse_irregular(target)
    temporary = target.with_name(f".{target.name}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(temporary, mode, **text) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, target)
        to_disk(target.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # torch's writer hides the OSError of a full disk behind a RuntimeError of its own
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            raise OSError(f"cannot write {path}: {cause.strerror or cause}") from None
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON for people to read, too."""
    with written_whole(path, "w") as f:
        json.dump(content, f, indent=2, ensure_ascii=False)
        f.write("\n")


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill; at the end of the block it takes folder's place, after an error all is as it was.

    A kill in the last moment, when the old one has stepped aside, leaves neither: the same command again writes it.

    Args:
        folder: nothing as yet, or a folder, which is removed with all that it holds; a link is followed.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    target = Path(os.path.realpath(folder))
    new, old = (target.with_name(f".{target.name}.{end}") for end in ("tmp", "old"))
    for left in (new, old):  # by a killed process
        shutil.rmtree(left, ignore_errors=True)
    try:
        new.mkdir()
        yield new
        for path in (new, *new.rglob("*")):
            to_disk(path)
        if target.exists():
            target.rename(old)
        new.rename(target)
        to_disk(target.parent)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        if isinstance(error, OSError):
            raise OSError(f"cannot write {folder}: {error.strerror or error}") from None
        raise
    shutil.rmtree(old, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def hold(folder: Path) -> IO:
    """Keep other processes from writing into a folder until the returned file is closed or this process ends.

    What a killed process has left, as .best.pt.tmp, is removed. The lock is the system's: it dies with its holder.

    Raises:
        UserError: a living process holds the folder.
    """
    lock = open(folder / ".lock", "a+", encoding="ascii", errors="replace")
    lock.seek(0)
    holder = lock.read().strip()
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        why = f"{folder} is in use by another process ({holder}): wait for it, or use another folder"
        raise UserError(why) from None
    except OSError:  # a file system without locks
        pass
    lock.truncate(0)
    print(os.getpid(), file=lock, flush=True)
    for path in folder.glob(".*.*.tmp"):  # as .best.pt.tmp
        if path.is_file():
            path.unlink()
        elif path.name.startswith(".prepared."):  # prepare's, and nobody else's
            shutil.rmtree(path)
    return lock


def is_held(folder: Path, lock: IO) -> bool:
    """Return whether a folder is still the one that hold has locked: it was neither removed nor replaced."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / ".lock"))
    except OSError:
        return False


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
