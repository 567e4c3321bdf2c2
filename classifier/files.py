"""Files that are written whole or not at all, their checksums, and folders that one process at a time writes into."""

import ctypes
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from classifier.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: there two processes are not kept apart, and a killed one's leftovers stay
    fcntl = None

NEW, OLD = ".tmp", ".old"  # ends of names beside a target: what is to take its place; what steps aside for it
BESIDE = re.compile(r"\.(.+)\.[0-9a-f]{8}(\.tmp|\.old)")  # of the target in the first group
RENAME_EXCHANGE, AT_FDCWD = 2, -100  # of Linux: linux/fs.h and fcntl.h


@contextmanager
def written_whole(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Give a file to write; at the end of the block it takes path's place, after an error nothing has changed.

    What is in place is on the disk, too: it outlives a power cut.

    Args:
        path: where the content goes, a regular file or nothing as yet; a link is followed.
        mode: "wb", or "w" for UTF-8 text with line ends as they are written.

    Raises:
        UserError: path cannot be written, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    refuse_irregular(target)
    state = "what was there before is untouched"
    try:
        with _temporary(target, is_folder=False) as temporary:
            text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
            with open(temporary, mode, **text) as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, target)
            state = "it is new, but may not outlive a power cut"
            to_disk(target.parent)
    except (OSError, RuntimeError) as error:
        # torch's writer hides the OSError of a full disk behind a RuntimeError of its own
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(f"cannot write {path}: {cause.strerror or cause}; {state}") from None


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
    state = "what was there before is untouched"
    try:
        _put_back(target)  # what a killed process has left
        with _temporary(target, is_folder=True) as temporary:
            yield temporary
            for path in (*temporary.iterdir(), temporary):
                to_disk(path)
            if target.exists() and not replace:
                target.rmdir()  # fails where something has come into it in the meantime
            if not target.exists():
                temporary.rename(target)
            elif not _exchanged(temporary, target):
                target.rename(temporary.with_suffix(OLD))
                try:
                    temporary.rename(target)
                finally:
                    _put_back(target)
            state = "it is new, but may not outlive a power cut"
            to_disk(target.parent)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; {state}") from None


def _exchanged(one: Path, other: Path) -> bool:
    """Let two paths change places at one blow; return whether this system and file system can."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def _put_back(target: Path) -> None:
    """Give a folder that stepped aside for a new one its place back; remove it if the new one is there."""
    for old in _of_a_writer(target.parent, OLD, target.name):
        if not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _temporary(target: Path, is_folder: bool) -> Iterator[Path]:
    """Give a new file or folder beside a target; what is still there at the end is removed.

    It is locked while it is in use, so that what is not locked is a killed writer's: that goes first.
    """
    _sweep(target.parent, target.name)
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(4)}{NEW}")
        path.mkdir() if is_folder else path.touch(exist_ok=False)
        lock = _locked(path, wait=True)  # for who sweeps it away at this moment
        if path.exists():
            break
    try:
        yield path
    finally:
        _remove(path)
        if lock is not None:
            os.close(lock)


def _locked(path: Path, wait: bool) -> int | None:
    """Open and lock a file or folder; return None where that cannot be, or another process has it."""
    if fcntl is None:
        return None
    handle = None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle


def _of_a_writer(folder: Path, end: str, name: str | None = None) -> list[Path]:
    """Return what writers of the file or folder of this name, or of any, have in a folder."""
    found = ((path, BESIDE.fullmatch(path.name)) for path in folder.iterdir())
    return [path for path, match in found if match and match[2] == end and name in (None, match[1])]


def _sweep(folder: Path, name: str | None = None) -> None:
    """Remove from a folder what killed writers have left: those of the file or folder of this name, or all."""
    with suppress(OSError):  # no reason to stop
        for path in _of_a_writer(folder, NEW, name):
            if (lock := _locked(path, wait=False)) is not None:
                _remove(path)
                os.close(lock)


def _remove(path: Path) -> None:
    """Remove a file or folder if it is there and that can be."""
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


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

    What a killed process has left there is removed. The lock is the system's: it dies with its holder.

    Raises:
        UserError: a living process holds the folder.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)  # what a link points to must not be written into
    lock = open(os.open(folder / ".lock", flags, 0o666), "r+b", buffering=0)
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = lock.read(20).decode("utf-8", "replace").strip()
        lock.close()
        raise UserError(
            f"{folder} is in use by another process ({holder}): wait for it, or use another folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    with suppress(OSError):  # its number is for people to read: a full disk is no reason to stop here
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n".encode())
    _sweep(folder)
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
    with open(path, "rb") as f:
        return sha256(f)


def sha256(file: IO[bytes]) -> str:
    """Return the sha256 of what an open file holds from where it stands, in hexadecimal; it then stands at its end."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
