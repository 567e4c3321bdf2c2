"""Preparing data: the rows of a task's files -> tokens -> data/<task>/, the folder that dataset.py describes."""

import argparse
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from classifier import errors
from classifier.data import tokenizer
from classifier.data.dataset import FORMAT_VERSION, TOKENIZER, load_meta, meta_sha256
from classifier.data.detokenize import detokenize
from classifier.data.rows import Row, Source, as_source, read_rows
from classifier.errors import UserError
from classifier.files import file_sha256, hold, refuse_irregular, to_disk

PERCENTILES = (50, 95, 99, 100)  # of the examples' lengths in tokens; 100 is the longest
CHUNK_EXAMPLES, CHUNK_CHARACTERS = 4096, 1 << 22  # tokenized and written at once


def prepare(
    task: str,
    files: dict[str, Path | Source],
    label_names: list[str],
    block_size: int,
    folder: Path,
    detokenized: bool = False,
) -> None:
    """Tokenize a task's TSV files into `folder` and print a table of what is in them.

    Everything is written beside the folder's present content and moved into place only when all of it is whole. Killed
    while it moves, it leaves what no reader takes, and the same command again mends.

    Args:
        task: name recorded in meta.json.
        files: split -> TSV file, or a Source that says more; with "train" and "dev" among the splits, and only these
            two must have labels.
        label_names: the classes' names, in the order of their numbers.
        block_size: the task's usual sequence length, for the table's share of longer examples.
        folder: data/<task>, made if need be.
        detokenized: undo Penn-Treebank tokenization first.

    Raises:
        UserError: a file is missing or not in the format; names the file and the line.
    """
    sources = {split: as_source(file) for split, file in files.items()}
    folder.mkdir(parents=True, exist_ok=True)
    meta = {
        "format_version": FORMAT_VERSION,
        "task": task,
        "label_names": label_names,
        "tokenizer": TOKENIZER,
        "detokenized": detokenized,
        "splits": {},
    }
    encoding = tokenizer.load_tokenizer()
    with hold(folder):
        if _is_detokenized(folder) not in (None, detokenized):
            form = "as it is" if detokenized else "detokenized"
            print(f"note: {folder} held the text {form}: what was trained on that needs it prepared so again")
        with TemporaryDirectory(prefix=".prepared.", suffix=".tmp", dir=folder) as temporary:
            staging = Path(temporary)
            print(f"{'split':<6}{'examples':>9}{'tokens':>11}", end="")
            heads = "".join(f"{'max' if p == 100 else f'p{p}':>5}" for p in PERCENTILES)
            print(heads + f"{f'>{block_size}':>7}  labels")
            for split, source in sources.items():
                rows = read_rows(source, len(label_names), labelled=split in ("train", "dev"))
                if detokenized:
                    rows = (row._replace(sentence=detokenize(row.sentence)) for row in rows)
                meta["splits"][split], share = _write_split(
                    rows, source.path, split, len(label_names), encoding, staging, block_size
                )
                _print_row(split, meta["splits"][split], share)
            meta["sha256"] = meta_sha256(meta)
            text = json.dumps(meta, indent=2, ensure_ascii=False) + "\n"
            (staging / "meta.json").write_text(text, encoding="utf-8")
            for path in staging.iterdir():
                refuse_irregular(folder / path.name)
            # meta.json goes last: until then, the checksums of the old one refuse the new files
            for path in sorted(staging.iterdir(), key=lambda path: path.name == "meta.json"):
                to_disk(path)
                os.replace(path, folder / path.name)
            to_disk(folder)
    print(f"wrote {folder}{os.sep}")


def course_parser(description: str) -> argparse.ArgumentParser:
    """Return what the command lines of the course's prepare scripts have in common; description: their docstring."""
    parser = errors.argument_parser(description)
    parser.add_argument("--source", metavar="DIR", help="take the files from this folder")
    parser.add_argument("--detokenize", action="store_true", help="undo the Treebank's tokenization: It's, not It 's")
    return parser


def _is_detokenized(folder: Path) -> bool | None:
    """Return whether the text that a folder holds is detokenized; None where it holds none, or that cannot be told."""
    try:
        return load_meta(folder)["detokenized"]
    except UserError:
        return None


def _write_split(
    rows: Iterator[Row], path: Path, split: str, num_classes: int, encoding: Any, folder: Path, block_size: int
) -> tuple[dict[str, Any], float]:
    """Write one split's rows into folder; return its part of meta.json and its share of examples over block_size."""
    length_counts = np.zeros(0, dtype=np.int64)  # how many examples have 0, 1, 2, ... tokens
    label_counts = np.zeros(num_classes, dtype=np.int64)
    examples = tokens = 0
    leading_space = True
    names = [f"{split}.bin", f"{split}.offsets.bin", f"{split}.labels.bin", f"{split}.ids.txt"]
    token_file, offset_file, label_file, id_file = files = [open(folder / name, "wb") for name in names]
    try:
        offset_file.write(np.zeros(1, dtype="<i8").tobytes())
        while chunk := _take_chunk(rows):
            # one by one: encode_ordinary_batch spends more on handing over a short text than on encoding it
            encoded = [encoding.encode_ordinary(row.sentence) for row in chunk]
            lengths = np.array([len(sequence) for sequence in encoded], dtype="<i8")
            token_file.write(np.array([token for sequence in encoded for token in sequence], dtype="<u2").tobytes())
            offset_file.write((tokens + np.cumsum(lengths)).tobytes())
            id_file.write("".join(row.id + "\n" for row in chunk).encode())
            if chunk[0].label is not None:
                labels = np.array([row.label for row in chunk], dtype="<i2")
                label_file.write(labels.tobytes())
                label_counts += np.bincount(labels, minlength=num_classes)
            leading_space = leading_space and all(row.sentence[0] == " " for row in chunk)
            counts = np.bincount(lengths, minlength=len(length_counts))
            counts[: len(length_counts)] += length_counts
            length_counts = counts
            examples += len(chunk)
            tokens += int(lengths.sum())
    finally:
        for file in files:
            file.close()
    if not examples:
        raise UserError(f"{path}: no examples after the header line")
    has_labels = bool(label_counts.sum())
    if not has_labels:
        os.remove(folder / names.pop(2))
    cumulated = np.cumsum(length_counts)
    meta = {
        "examples": examples,
        "tokens": tokens,
        "label_counts": label_counts.tolist() if has_labels else None,
        # the smallest length that at least p percent of the examples do not exceed
        "length_percentiles": {str(p): int(np.searchsorted(cumulated, p / 100 * examples)) for p in PERCENTILES},
        "leading_space": leading_space,
        "source": {"name": path.name, "sha256": file_sha256(path)},
        "files": {name: file_sha256(folder / name) for name in names},
    }
    return meta, float(length_counts[block_size + 1 :].sum() / examples)


def _take_chunk(rows: Iterator[Row]) -> list[Row]:
    chunk, characters = [], 0
    for row in islice(rows, CHUNK_EXAMPLES):
        chunk.append(row)
        characters += len(row.sentence)
        if characters > CHUNK_CHARACTERS:
            break
    return chunk


def _print_row(split: str, meta: dict[str, Any], share_longer: float) -> None:
    lengths = "".join(f"{length:>5}" for length in meta["length_percentiles"].values())
    counts = meta["label_counts"]
    labels = " ".join(map(str, counts)) if counts else "none"
    if len(labels) > 25:  # more than a line of 80 columns has room for
        labels = f"{len(counts)} classes, {min(counts)}-{max(counts)}"
    print(f"{split:<6}{meta['examples']:>9,}{meta['tokens']:>11,}{lengths}{share_longer:>7.2%}  {labels}")
