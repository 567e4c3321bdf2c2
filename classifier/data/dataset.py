"""The .bin format: what a prepared folder holds, read and checked.

A prepared folder holds, for each split (train, dev, test):

    <split>.bin           uint16   every example's tokens, one after the other, whole and unpadded
    <split>.offsets.bin   int64    where each example starts in it, and at the end where the last one ends
    <split>.labels.bin    int16    class numbers (absent where the source has none)
    <split>.ids.txt       UTF-8    the examples' ids, one a line

and one meta.json: format version, label names and what the sources call them, their columns of text, counts, tokenizer,
whether the text was detokenized, and the sha256 of the sources, of each file above and of meta.json itself without that
line.
Numbers are little-endian.
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
    """One split of a prepared folder. A prompt, if there is one, ends every sequence."""

    name: str
    tokens: np.ndarray  # (tokens,) uint16
    offsets: np.ndarray  # (examples + 1,) int64
    labels: np.ndarray | None  # (examples,) int16
    id_lines: np.ndarray  # (bytes,) uint8
    prompt: tuple[int, ...] = ()  # tokens

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, block_size: int) -> np.ndarray:
        """Return each example's number of tokens, prompt included, at most block_size: (examples,) int64."""
        return np.minimum(self.whole_lengths(), block_size)

    def whole_lengths(self) -> np.ndarray:
        """Return each example's number of tokens, prompt included, before anything is cut: (examples,) int64."""
        return np.diff(self.offsets) + len(self.prompt)

    def sequence(self, index: int, block_size: int) -> np.ndarray:
        """Return an example's tokens and the prompt's after them: (T,) uint16, T at most block_size.

        A longer sequence keeps its last tokens, so that of the prompt nothing is lost.
        """
        end, room = self.offsets[index + 1], block_size - len(self.prompt)
        tokens = self.tokens[max(self.offsets[index], end - room) : end]
        return np.append(tokens, np.array(self.prompt, dtype=tokens.dtype)) if self.prompt else tokens

    def ids(self) -> list[str]:
        """Return the examples' ids."""
        return self.id_lines.tobytes().decode("utf-8", "replace").split("\n")[:-1]


def load_meta(folder: str | Path) -> dict[str, Any]:
    """Return a prepared folder's meta.json, its shape checked.

    Raises:
        UserError: the folder was not prepared, or its meta.json is broken or of another format version.
    """
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
    """Return what tells one set of training data from another: split -> file name -> sha256, of train and dev."""
    return {split: meta["splits"][split]["files"] for split in ("train", "dev")}


def prepare_script(folder: str | Path) -> str:
    """Return what prepares a folder: prepare_sst.py for data/sst and data/sst-phrases, prepare_own.py for others."""
    name = Path(folder).name
    task = name.removesuffix("-phrases")
    own = Path(__file__).resolve().parents[2] / f"prepare_{task}.py"
    return f"{own.name}{' --phrases' * (task != name)}" if own.is_file() else f"prepare_own.py --name {name} ..."


def load_split(folder: str | Path, split: str, meta: dict[str, Any] | None = None) -> Split:
    """Read one split of a prepared folder, and check each of its files against meta.json.

    Args:
        meta: what load_meta has returned, where several splits must be of the same preparation; else it is read.

    Raises:
        UserError: the folder has no such split, or a file is missing or not the one that meta.json describes.
    """
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


def meta_sha256(meta: dict[str, Any]) -> str:
    """Return the checksum of meta.json's content, that of the checksum itself left out."""
    content = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
