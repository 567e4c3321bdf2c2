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
from classifier.errors import UserError

FORMAT_VERSION = 2
TOKENIZER = {"name": "gpt2", "vocab_size": tokenizer.VOCAB_SIZE}
FIELDS = {".bin": "<u2", ".offsets.bin": "<i8", ".labels.bin": "<i2", ".ids.txt": "u1"}


@dataclass(frozen=True)
class Split:
    """One split of a prepared folder; a prompt ends every sequence."""

    name: str
    tokens: np.ndarray  # (tokens,) uint16
    offsets: np.ndarray  # (examples + 1,) int64
    labels: np.ndarray | None  # (examples,) int16
    id_lines: np.ndarray  # (bytes,) uint8
    prompt: tuple[int, ...] = ()  # tokens

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, block_size: int) -> np.ndarray:
        """Return each example's number of tokens with the prompt, truncated to block_size: (examples,) int64."""
        return np.minimum(self.whole_lengths(), block_size)

    def whole_lengths(self) -> np.ndarray:
        """Return each example's number of tokens with the prompt, not truncated: (examples,) int64."""
        return np.diff(self.offsets) + len(self.prompt)

    def sequence(self, index: int, block_size: int) -> np.ndarray:
        """Return the last tokens of an example, and the whole prompt after them: (T,) uint16, T at most block_size."""
        end, room = self.offsets[index + 1], block_size - len(self.prompt)
        tokens = self.tokens[max(self.offsets[index], end - room) : end]
        return np.append(tokens, np.array(self.prompt, dtype=tokens.dtype)) if self.prompt else tokens

    def ids(self) -> list[str]:
        return self.id_lines.tobytes().decode("utf-8", "replace").split("\n")[:-1]


def load_meta(folder: str | Path) -> dict[str, Any]:
    """Read a prepared folder's meta.json; raise a UserError if it is missing, broken or of another format version."""
    path = Path(folder) / "meta.json"
    again = f"run `python {prepare_script(folder)}`"
    if not path.is_file():
        raise UserError(f"{folder} was not prepared (no meta.json there): {again} first")
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
    arrays = []
    for field, dtype in FIELDS.items():
        path = folder / f"{split}{field}"
        if path.name not in part["files"]:
            arrays.append(None)
            continue
        if not path.is_file():
            raise UserError(f"{path} is missing: {again}")
        content = np.fromfile(path, dtype=np.uint8)
        if hashlib.sha256(content).hexdigest() != part["files"][path.name]:
            raise UserError(f"{path} does not fit meta.json: {again}")
        arrays.append(content.view(dtype))
    return Split(split, *arrays)


def long_note(split: Split, block_size: int) -> str | None:
    """Return a note on the texts of a split that are truncated to block_size, None if there are none."""
    longer = int((split.whole_lengths() > block_size).sum())
    return note_of_longer(longer, len(split), block_size, getattr(split, "keep", "last"))


def note_of_longer(longer: int, texts: int, block_size: int, keep: str) -> str | None:
    """Return the note on so many truncated texts of all, None if there are none."""
    if not longer:
        return None
    longer_ones = f"{longer:,} of {texts:,} texts are longer than {block_size} tokens"
    return f"note: {longer_ones}: their {keep} {block_size} are read"


def meta_sha256(meta: dict[str, Any]) -> str:
    """Return the checksum of meta.json's content without the checksum itself."""
    content = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
