"""Where a task's files come from: a folder named by --source, what is already in place, or a checked download."""

import hashlib
import http.client
import io
import os
import urllib.request
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from classifier.errors import UserError
from classifier.files import file_sha256, written_whole

TIMEOUT = 30  # seconds without an answer from the server


def find_files(files: dict[str, tuple[str, str]], source: str | None, folder: Path, url: str) -> dict[str, Path]:
    """Return name -> path of each file.

    Args:
        files: name -> (file name, sha256).
        source: a folder that must hold all the files, or None: use those in `folder` and download what is missing.
        folder: where downloads are kept.
        url: the https address in front of each file name, or that of a .zip file which holds them.

    Raises:
        UserError: a file is missing in source, or cannot be downloaded.
    """
    home = folder if source is None else Path(source)
    found = {name: home / file_name for name, (file_name, _) in files.items()}
    missing = [file_name for file_name, _ in files.values() if not (home / file_name).is_file()]
    if missing and source is not None:
        raise UserError(f"--source {source}: no {', '.join(missing)} there")
    for file_name, sha256 in files.values():
        if file_name in missing:
            names = ", ".join(missing)
            how = (
                f"get {names} by other means and put them into {folder}{os.sep}, or name their folder with --source DIR"
            )
            _download(url, file_name, folder, sha256, how)
        elif file_sha256(home / file_name) != sha256:
            print(f"note: {home / file_name} is not the published {file_name} (its sha256 differs); using it as it is")
    return found


def _download(url: str, file_name: str, folder: Path, sha256: str, by_other_means: str) -> None:
    """Download a file into a folder: in place only when whole and of the right sha256."""
    path, is_archive = folder / file_name, url.endswith(".zip")
    url = url if is_archive else url + file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        content = _fetched(url, path.name)
        if is_archive:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                content = archive.read(file_name)
    except (OSError, http.client.HTTPException) as error:  # urllib's errors and time-outs are OSErrors
        raise UserError(f"cannot download {url} ({getattr(error, 'reason', error)}): {by_other_means}") from None
    except (zipfile.BadZipFile, zlib.error, RuntimeError, KeyError):  # a truncated archive, or another one
        content = b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{url}: the download's sha256 is wrong, so it was thrown away: try again")
    with written_whole(path) as f:
        f.write(content)


def _fetched(url: str, name: str) -> bytes:
    """Return what a server has at an address; name: what the progress bar says."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        total = int(response.headers.get("Content-Length") or 0) or None
        content = bytearray()
        with tqdm(total=total, desc=name, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := response.read(1 << 16):
                content += chunk
                bar.update(len(chunk))
    return bytes(content)
