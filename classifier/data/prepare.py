"""Preparing data: a task's examples -> tokens -> data/<task>/, the folder that dataset.py describes."""

import argparse
import errno
import hashlib
import json
import os
from array import array
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

from classifier import errors
from classifier.data import tokenizer
from classifier.data.dataset import FIELDS, FORMAT_VERSION, TOKENIZER, meta_sha256
from classifier.data.detokenize import detokenize
from classifier.data.own import Examples, read_course_file
from classifier.data.rows import texts_in
from classifier.data.trees import with_phrases
from classifier.files import file_sha256, hold, refuse_irregular, to_disk

PERCENTILES = (50, 95, 99, 100)  # of the examples' lengths in tokens; 100 is the longest


def prepare(
    task: str,
    splits: dict[str, Examples],
    files: dict[str, list[Path]],
    label_names: list[str],
    as_read: dict[str, list[str]],
    block_size: int,
    folder: Path,
    detokenized: bool = False,
) -> None:
    """Tokenize a task's examples into `folder` and print a table of what is in them.

    Everything is written beside the folder's present content and moved into place only when all of it is whole. Killed
    while it moves, it leaves what no reader takes, and the same command again mends.

    Args:
        task: name recorded in meta.json.
        splits: split -> examples with class numbers; "train" and "dev" must be there.
        files: split -> where they come from, for meta.json.
        label_names: the classes' names, in the order of their numbers.
        as_read: the files' own "labels" for the classes, and "text_columns", for whoever reads another such file.
        block_size: the task's usual sequence length, for the table's share of longer examples.
        folder: data/<task>, made if need be.
        detokenized: undo Penn-Treebank tokenization first.

    Raises:
        OSError: a source cannot be read, or the folder not be written.
    """
    meta = {"format_version": FORMAT_VERSION, "task": task, "label_names": label_names, "tokenizer": TOKENIZER}
    meta |= {"detokenized": detokenized, **as_read, "splits": {}}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with hold(folder), TemporaryDirectory(prefix=".prepared.", suffix=".tmp", dir=folder) as temporary:
            staging = Path(temporary)
            heads = "".join(f"{'max' if p == 100 else f'p{p}':>5}" for p in PERCENTILES)
            print(f"{'split':<6}{'examples':>9}{'tokens':>11}{heads}{f'>{block_size}':>7}  labels")
            for split, examples in splits.items():
                texts = map(detokenize, examples.texts) if detokenized else examples.texts
                lengths = _write_split(staging, split, examples, texts)
                part = _describe(staging, split, examples, lengths, files[split], len(label_names))
                _print_row(split, part, (lengths > block_size).mean())
                meta["splits"][split] = part
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
    except OSError as error:
        if error.errno == errno.ENOSPC:  # a full disk does not say which
            raise OSError(f"cannot write {folder}: {error.strerror}") from None
        raise
    print(f"wrote {folder}{os.sep}")


def prepare_course(
    task: str,
    files: dict[str, Path],
    label_names: list[str],
    block_size: int,
    folder: Path,
    detokenized: bool = False,
    tree_file: Path | None = None,
) -> None:
    """Prepare a task of the course from its TSV files, of which that of the test split has no labels.

    Args:
        tree_file: of SST, to train on the phrases of the sentences' trees, too.
    """
    as_read = {"labels": [str(number) for number in range(len(label_names))], "text_columns": ["sentence"]}
    splits = {split: read_course_file(path, as_read["labels"], split == "test") for split, path in files.items()}
    sources = {split: [path] for split, path in files.items()}
    if tree_file:
        splits["train"] = with_phrases(splits, tree_file)
        sources["train"].append(tree_file)
    prepare(task, splits, sources, label_names, as_read, block_size, folder, detokenized)


def course_parser(description: str) -> argparse.ArgumentParser:
    """Return what the command lines of the course's prepare scripts have in common; description: their docstring."""
    parser = errors.argument_parser(description)
    parser.add_argument("--source", metavar="DIR", help="take the files from this folder")
    parser.add_argument("--detokenize", action="store_true", help="undo the Treebank's tokenization: It's, not It 's")
    return parser


def named(files: list[Path]) -> str:
    """Return what meta.json calls a split's source."""
    return " + ".join(os.fsencode(path.name).decode("utf-8", "backslashreplace") for path in files)


def _write_split(folder: Path, split: str, examples: Examples, texts: Iterable[str]) -> np.ndarray:
    """Write one split's files; return the examples' lengths in tokens: (examples,) int64."""
    encode, tokens, offsets = tokenizer.load_tokenizer().encode_ordinary, array("H"), array("q", [0])
    for text in tqdm(texts, split, len(examples.texts), leave=False, disable=None):
        tokens.extend(encode(text))
        offsets.append(len(tokens))
    id_lines = np.frombuffer("".join(id + "\n" for id in examples.ids).encode("utf-8", "backslashreplace"), np.uint8)
    for (field, dtype), content in zip(FIELDS.items(), (tokens, offsets, examples.labels, id_lines), strict=True):
        if content is not None:
            (folder / f"{split}{field}").write_bytes(np.array(content, dtype))
    return np.diff(offsets)


def _describe(
    folder: Path, split: str, examples: Examples, lengths: np.ndarray, files: list[Path], num_classes: int
) -> dict[str, Any]:
    """Return a split's part of meta.json."""
    source = hashlib.sha256()
    for file in files:
        for path in texts_in(file) if file.is_dir() else [file]:
            source.update(path.read_bytes())
    counts = None if examples.labels is None else np.bincount(examples.labels, minlength=num_classes).tolist()
    written = [folder / f"{split}{field}" for field in FIELDS]
    return {
        "examples": len(lengths),
        "tokens": int(lengths.sum()),
        "label_counts": counts,
        # the smallest length that at least p percent of the examples do not exceed
        "length_percentiles": {str(p): int(np.percentile(lengths, p, method="inverted_cdf")) for p in PERCENTILES},
        "leading_space": all(text[0] == " " for text in examples.texts),
        "source": {"name": named(files), "sha256": source.hexdigest()},
        "files": {path.name: file_sha256(path) for path in written if path.exists()},
    }


def _print_row(split: str, part: dict[str, Any], share_longer: float) -> None:
    lengths = "".join(f" {length:>4}" for length in part["length_percentiles"].values())
    counts = part["label_counts"]
    labels = " ".join(map(str, counts)) if counts else "none"
    if len(labels) > 25:  # more than a line of 80 columns has room for
        labels = f"{len(counts)} classes, {min(counts)}-{max(counts)}"
    print(f"{split:<6}{part['examples']:>9,}{part['tokens']:>11,}{lengths}{share_longer:>7.2%}  {labels}")
