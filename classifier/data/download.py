"""Find a task's files: in the folder named by --source, already in place, or by a download with a checksum."""

import hashlib
import io
import os
import zipfile
from pathlib import Path

from tqdm import tqdm

from classifier.errors import UserError
from classifier.files import file_sha256, written_whole

TIMEOUT = 30  # seconds without an answer from the server


def find_files(files: dict[str, tuple[str, str]], source: str | None, folder: Path, url: str) -> dict[str, Path]:
    """Return name -> path of each file, downloaded into folder if it is not there.

    Args:
        files: name -> (file name, sha256).
        source: a folder that must contain all files, or None to download what is missing.
        url: the address in front of each file name, or of a .zip file that contains them.
    """
    home = folder if source is None else Path(source)
    missing = [file_name for file_name, _ in files.values() if not (home / file_name).is_file()]
    names = ", ".join(missing)
    if missing and source is not None:
        raise UserError(f"--source {source}: no {names} there")
    how = f"get {names} by other means and put them into {folder}{os.sep}, or pass their folder with --source DIR"
    for file_name, sha256 in files.values():
        if file_name in missing:
            _download(url, file_name, folder, sha256, how)
        elif file_sha256(home / file_name) != sha256:
            print(f"note: {home / file_name} is not the published {file_name} (its sha256 differs); used as it is")
    return {name: home / file_name for name, (file_name, _) in files.items()}


def _download(url: str, file_name: str, folder: Path, sha256: str, by_other_means: str) -> None:
    """Download a file into a folder; it is written only if it has the right sha256."""
    import requests  # which brings its certificates: Python from python.org has none on a Mac

    path, is_archive, content = folder / file_name, url.endswith(".zip"), io.BytesIO()
    url = url if is_archive else url + file_name
    try:
        with requests.get(url, timeout=TIMEOUT, stream=True) as response:
            response.raise_for_status()
            size = int(response.headers.get("Content-Length", 0)) or None
            with tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
                for block in response.iter_content(1 << 16):
                    content.write(block)
                    bar.update(len(block))
    except (OSError, ValueError) as error:  # requests' are OSErrors, and of a wrong address ValueErrors
        raise UserError(f"cannot download {url} ({error!s:.200}): {by_other_means}") from None
    try:
        found = zipfile.ZipFile(content).read(file_name) if is_archive else content.getvalue()
    except (zipfile.BadZipFile, KeyError):  # truncated, or another archive
        found = b""
    if hashlib.sha256(found).hexdigest() != sha256:
        raise UserError(f"{url}: the download has a wrong sha256 and was thrown away: try again")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as f:
        f.write(found)
