"""Where a task's TSV files come from: a folder named by --source, what is already in place, or a checked download."""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from tqdm import tqdm

from classifier.errors import UserError
from classifier.files import file_sha256, written_whole

TIMEOUT = 30  # seconds without an answer from the server


def find_files(files: dict[str, tuple[str, str]], source: str | None, folder: Path, url: str) -> dict[str, Path]:
    """Return split -> path of its TSV file.

    Args:
        files: split -> (file name, sha256).
        source: a folder that must hold all the files, or None: use those in `folder` and download what is missing.
        folder: where downloads are kept.
        url: the https address in front of each file name.

    Raises:
        UserError: a file is missing in source, or cannot be downloaded.
    """
    if source is not None:
        found = {split: Path(source) / name for split, (name, _) in files.items()}
        missing = [path.name for path in found.values() if not path.is_file()]
        if missing:
            raise UserError(f"--source {source}: no {', '.join(missing)} there")
    else:
        found = {split: folder / name for split, (name, _) in files.items()}
        missing = [name for name, _ in files.values() if not (folder / name).is_file()]
        for name, sha256 in files.values():
            if name in missing:
                _download(url + name, folder / name, sha256, missing)
    for split, (name, sha256) in files.items():
        if file_sha256(found[split]) != sha256:
            print(f"note: {found[split]} is not the published {name} (its sha256 differs); using it as it is")
    return found


def _download(url: str, path: Path, sha256: str, wanted: list[str]) -> None:
    """Download url to path, in place only when whole and of the right sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with written_whole(path) as f:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                total = int(response.headers.get("Content-Length") or 0) or None
                with tqdm(total=total, desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
                    while chunk := response.read(1 << 16):
                        f.write(chunk)
                        digest.update(chunk)
                        bar.update(len(chunk))
        except (OSError, http.client.HTTPException) as error:  # urllib's errors and time-outs are OSErrors
            raise UserError(
                f"cannot download {url} ({getattr(error, 'reason', error)}): get {', '.join(wanted)} by other "
                f"means and put them into {path.parent}{os.sep}, or name their folder with --source DIR"
            ) from None
        if digest.hexdigest() != sha256:
            raise UserError(f"{url}: the download's sha256 is wrong, so it was thrown away: try again")
