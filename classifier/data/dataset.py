"""The .bin format: what a prepared folder contains, read and checked.

For each split (train, dev, test), with little-endian numbers:

    <split>.bin           uint16   the tokens of all examples, one after the other, without padding
    <split>.offsets.bin   int64    where each example starts in it, and where the last one ends
    <split>.labels.bin    int16    class numbers (missing if the source has no labels)
    <split>.ids.txt       UTF-8    the examples' ids, one per line

and one meta.json: format version, task, label names, the sources' own labels and text columns, tokenizer, counts, and
the sha256 of the sources, of each file above and of meta.json's other content.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classifier.data import tokenizer
from classifier.data.table import counted
from classifier.errors import UserError, did_you_mean
from classifier.files import file_sha256

FORMAT_VERSION = 2
TOKENIZER = {"name": "gpt2", "vocab_size": tokenizer.VOCAB_SIZE}
FIELDS = {".bin": "<u2", ".offsets.bin": "<i8", ".labels.bin": "<i2", ".ids.txt": "u1"}


@dataclass(frozen=True)
class Split:
    """One split of a prepared folder; a prompt ends every sequence. The arrays cannot be written into."""

    name: str
    tokens: np.ndarray  # (tokens,) uint16
    offsets: np.ndarray  # (examples + 1,) int64
    labels: np.ndarray | None  # (examples,) int16
    id_lines: np.ndarray  # (bytes,) uint8
    prompt: tuple[int, ...] = ()  # tokens
    keep: str = "last"  # which tokens of an example are read if there are too many: the last, or the first

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, indices: np.ndarray, block_size: int) -> np.ndarray:
        """Return some examples' numbers of tokens, (n,) int64, with the prompt and truncated to block_size."""
        return np.minimum(self.offsets[indices + 1] - self.offsets[indices] + len(self.prompt), block_size)

    def sequence(self, index: int, block_size: int) -> np.ndarray:
        """Return an example's tokens, truncated, and the whole prompt after them: (T,) uint16, T at most block_size."""
        start, end, room = self.offsets[index], self.offsets[index + 1], block_size - len(self.prompt)
        tokens = self.tokens[start : min(end, start + room)]
        if self.keep == "last":
            tokens = self.tokens[max(start, end - room) : end]
        return np.append(tokens, np.array(self.prompt, dtype=tokens.dtype)) if self.prompt else tokens

    def ids(self) -> list[str]:
        return self.id_lines.tobytes().decode("utf-8", "replace").split("\n")[:-1]


def labels_of(split: Split) -> np.ndarray:
    """Return a split's labels; raise a UserError if it has none."""
    if split.labels is None:
        raise UserError(f"the {split.name} split has no labels: --compare, --errors and --plots need them")
    return split.labels


def count_longer(split: Split, block_size: int) -> int:
    """Return how many examples are truncated to block_size."""
    room, chunk = block_size - len(split.prompt), 2**20  # examples at a time: the offsets may exceed the memory
    chunks = (split.offsets[start : start + chunk + 1] for start in range(0, len(split), chunk))
    return sum(int((np.diff(offsets) > room).sum()) for offsets in chunks)


def long_note(longer: int, count: int, texts: str, tokens: int, keep: str) -> str | None:
    """Return the note on so many of the texts, of which only the last or first tokens are read; None if there are none.

    texts: such as "train texts".
    """
    if not longer:
        return None
    longer_ones = (
        f"{longer:,} of {count:,} {texts} {'is' if longer == 1 else 'are'} longer than {counted(tokens, 'token')}"
    )
    return f"note: {longer_ones}: their {keep} {tokens} are read"


def load_meta(folder: str | Path) -> dict[str, Any]:
    """Read a prepared folder's meta.json; raise a UserError if it is missing, broken or of another format version."""
    path = Path(folder) / "meta.json"
    again = f"run `python {prepare_script(folder)}`"
    if not path.is_file():
        meant = "" if Path(folder).is_dir() else did_you_mean(folder)
        raise UserError(f"{folder} was not prepared (no meta.json there): {again} first{meant}")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        version, is_whole = meta["format_version"], meta["sha256"] == meta_sha256(meta)
    except (ValueError, KeyError, TypeError, RecursionError):
        version, is_whole = None, False
    if version not in (None, FORMAT_VERSION):
        raise UserError(f"{path} has format version {version!r:.20}, not {FORMAT_VERSION}: {again} again")
    if not is_whole:
        raise UserError(f"{path} is broken: {again} again")
    return meta


def training_files(meta: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the checksums that identify training data: split -> file name -> sha256, of train and dev."""
    return {split: meta["splits"][split]["files"] for split in ("train", "dev")}


def prepare_script(folder: str | Path) -> str:
    """Return the command that prepares a folder: "prepare_sst.py --phrases" for data/sst-phrases, for example."""
    name = Path(folder).name
    task = name.removesuffix("-phrases")
    script = Path(__file__).resolve().parents[2] / f"prepare_{task}.py"
    if not script.is_file():
        return f"prepare_own.py --name {name} ..."
    return script.name if task == name else f"{script.name} --phrases"


def load_split(folder: str | Path, split: str, meta: dict[str, Any] | None = None) -> Split:
    """Read one split of a prepared folder; raise a UserError if its files are not those of meta (or of meta.json)."""
    folder, meta = Path(folder), meta or load_meta(folder)
    if split not in meta["splits"]:
        how = f": run `python {prepare_script(folder)}` again, with --test FILE" if split == "test" else ""
        raise UserError(f"{folder} has no {split!r} split, only {', '.join(meta['splits'])}{how}")
    part = meta["splits"][split]
    again = f"run `python {prepare_script(folder)}` again"

    def read(field: str) -> np.ndarray:
        path = folder / f"{split}{field}"
        if not path.is_file():
            raise UserError(f"{path} is missing: {again}")
        if file_sha256(path) != part["files"][path.name]:
            raise UserError(f"{path} does not fit meta.json: {again}")
        return _mapped(path, FIELDS[field])

    labels = read(".labels.bin") if f"{split}.labels.bin" in part["files"] else None
    return Split(split, read(".bin"), read(".offsets.bin"), labels, read(".ids.txt"))


def _mapped(path: Path, dtype: str) -> np.ndarray:
    """Map a file of numbers, which may be larger than the memory, and is shared by processes; or else read it."""
    try:
        return np.memmap(path, dtype, mode="r").view(np.ndarray)
    except (OSError, ValueError):  # a file system that cannot map files; an empty file
        return np.fromfile(path, dtype)


def meta_sha256(meta: dict[str, Any]) -> str:
    """Return the checksum of meta.json's content without the checksum itself."""
    content = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
