"""Files that are written whole or not at all, and their checksums."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from errors import UserError


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
        if os.name == "posix":  # the rename, too, must survive a power cut
            folder = os.open(target.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except (OSError, RuntimeError) as error:
        # torch's writer hides the OSError of a full disk behind a RuntimeError of its own
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(f"cannot write {path}: {cause.strerror or cause}; what was there before is untouched") from None


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
