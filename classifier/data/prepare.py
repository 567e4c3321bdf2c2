"""Write data/<task>/, the folder that dataset.py describes, from a task's examples."""

import argparse
import hashlib
import json
import os
import textwrap
from array import array
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unicodedata import category

import numpy as np
from tqdm import tqdm

from classifier import errors
from classifier.data import tokenizer
from classifier.data.dataset import FIELDS, FORMAT_VERSION, TOKENIZER, meta_sha256
from classifier.data.own import Columns, Examples, read_course_file
from classifier.data.rows import texts_in
from classifier.data.trees import with_phrases
from classifier.errors import UserError
from classifier.files import file_sha256, hold, refuse_irregular, replace, to_disk

PERCENTILES = (50, 95, 99, 100)  # of the examples' lengths in tokens; 100 is the longest


def prepare(
    task: str,
    splits: dict[str, Examples],
    files: dict[str, list[Path]],
    label_names: list[str],
    as_read: dict[str, list[str]],
    folder: Path,
) -> None:
    """Tokenize a task's examples into folder and print a table of them.

    All files are first written into a temporary folder inside it, then moved. If a kill interrupts the moves, checksums
    no longer match: readers refuse the folder, and the same command repairs it.

    Args:
        splits: split -> examples with class numbers; "train" and "dev" are required.
        files: split -> its sources.
        label_names: in the order of the class numbers.
        as_read: "labels" and "text_columns" of the sources, to read more files of the same kind.
    """
    parts: dict[str, dict[str, Any]] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with hold(folder), TemporaryDirectory(prefix=".prepared.", suffix=".tmp", dir=folder) as temporary:
            staging = Path(temporary)
            _print_row("split", "examples", "tokens", ["max" if p == 100 else f"p{p}" for p in PERCENTILES])
            for split, examples in splits.items():
                lengths = _write_split(staging, split, examples)
                part = _describe_split(staging, split, examples, lengths, files[split], len(label_names))
                lengths = part["length_percentiles"].values()
                _print_row(split, f"{part['examples']:,}", f"{part['tokens']:,}", lengths)
                parts[split] = part
            _print_classes({split: part["label_counts"] for split, part in parts.items()}, label_names)
            meta = {"format_version": FORMAT_VERSION, "task": task, "label_names": label_names, "tokenizer": TOKENIZER}
            meta |= {**as_read, "splits": parts}
            meta["sha256"] = meta_sha256(meta)
            text = json.dumps(meta, indent=2, ensure_ascii=False) + "\n"
            (staging / "meta.json").write_text(text, encoding="utf-8")
            for path in staging.iterdir():
                refuse_irregular(folder / path.name)
            # meta.json goes last: until then, the checksums of the old one refuse the new files
            for path in sorted(staging.iterdir(), key=lambda path: path.name == "meta.json"):
                to_disk(path)
                replace(path, folder / path.name)
            to_disk(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
    print(f"wrote {folder}{os.sep}")


def prepare_course(
    task: str,
    files: dict[str, Path],
    columns: Columns,
    labels: dict[str, str],
    folder: Path,
    tree_file: Path | None = None,
) -> None:
    """Prepare a task from one TSV file per split; that of the test split may have no labels.

    Args:
        columns: "id", "text" and "label" -> the names of their columns.
        labels: label in the files -> the class's name.
        tree_file: SST's trees, to train on the phrases of its sentences, too.
    """
    splits = {split: read_course_file(path, columns, list(labels), split == "test") for split, path in files.items()}
    sources = {split: [path] for split, path in files.items()}
    if tree_file:
        splits["train"] = with_phrases(splits, tree_file)
        sources["train"].append(tree_file)
    as_read = {"labels": list(labels), "text_columns": columns["text"]}
    prepare(task, splits, sources, list(labels.values()), as_read, folder)


def course_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that prepare_sst.py and prepare_cfimdb.py share."""
    parser = errors.argument_parser(description)
    parser.add_argument("--source", metavar="DIR", help="read the files from this folder instead of downloading them")
    return parser


def source_name(files: list[Path]) -> str:
    """Return the name in meta.json of a split's sources."""
    return " + ".join(os.fsencode(path.name).decode("utf-8", "backslashreplace") for path in files)


def _write_split(folder: Path, split: str, examples: Examples) -> np.ndarray:
    """Write one split's files; return the examples' lengths in tokens: (examples,) int64."""
    encode, tokens, offsets = tokenizer.load_tokenizer().encode_ordinary, array("H"), array("q", [0])
    for text in tqdm(examples.texts, split, leave=False, disable=None):
        tokens.extend(encode(text))
        offsets.append(len(tokens))
    id_lines = np.frombuffer("".join(id + "\n" for id in examples.ids).encode("utf-8", "backslashreplace"), np.uint8)
    contents = np.array(tokens), np.array(offsets), examples.labels, id_lines
    for (field, dtype), content in zip(FIELDS.items(), contents, strict=True):
        if len(content):  # labels may be missing
            content.astype(dtype, copy=False).tofile(folder / f"{split}{field}")
    return np.diff(offsets)


def _describe_split(
    folder: Path, split: str, examples: Examples, lengths: np.ndarray, files: list[Path], num_classes: int
) -> dict[str, Any]:
    """Return a split's part of meta.json."""
    source, sha256s = hashlib.sha256(), []
    for file in files:
        for path in texts_in(file) if file.is_dir() else [file]:
            content = path.read_bytes()
            source.update(content)
            if path == file:
                sha256s.append(hashlib.sha256(content).hexdigest())
    counts = np.bincount(examples.labels, minlength=num_classes).tolist() if len(examples.labels) else None
    written = [folder / f"{split}{field}" for field in FIELDS]
    return {
        "examples": len(lengths),
        "tokens": int(lengths.sum()),
        "label_counts": counts,
        # the smallest length that at least p percent of the examples do not exceed
        "length_percentiles": {str(p): int(np.percentile(lengths, p, method="inverted_cdf")) for p in PERCENTILES},
        "leading_space": all(text[0] == " " for text in examples.texts),
        "source": {"name": source_name(files), "sha256": source.hexdigest(), "sha256s": sha256s},
        "files": {path.name: file_sha256(path) for path in written if path.exists()},
    }


def _print_row(split: str, examples: str, tokens: str, lengths: Iterable[int | str]) -> None:
    print(f"{split:<5} {examples:>9} {tokens:>10}" + "".join(f" {length:>4}" for length in lengths))


def _print_classes(counts: dict[str, list[int] | None], names: list[str]) -> None:
    """Print each class's examples in each split that has labels; of more than 20 classes the range."""
    labelled = {split: each for split, each in counts.items() if each}
    if len(labelled) < len(counts):
        print(f"{' and '.join(counts.keys() - labelled.keys())}: no labels")
    if len(names) > 20:
        ranges = ", ".join(f"{min(each):,} to {max(each):,} in {split}" for split, each in labelled.items())
        line = f"{len(names):,} classes ({', '.join(names[:5]):.200}, ...), examples of each: {ranges}"
        print(textwrap.fill(line, 80, subsequent_indent="  "))  # tell would escape joiners
        return
    rows = [list(labelled), *([f"{number:,}" for number in row] for row in zip(*labelled.values(), strict=True))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, name in zip(rows, ["label", *names], strict=True):
        cells = " ".join(f"{cell:>{max(width, 7)}}" for cell, width in zip(row, widths, strict=True))
        # invisible characters are shown, but for the two joiners, which are part of words and emoji
        name = "".join(ascii(c)[1:-1] if category(c) == "Cf" and c not in "\u200c\u200d" else c for c in name)
        print(f"{cells}  {name:.{max(78 - len(cells), 20)}}")
