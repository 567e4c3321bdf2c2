"""Both ends of the .bin format: TSV -> tokens -> data/<task>/, and data/<task>/ -> length-sorted micro-batches.

A prepared folder holds, for each split (train, dev, test):

    <split>.bin           uint16   every example's tokens, one after the other, whole and unpadded
    <split>.offsets.bin   int64    where each example starts in it, and at the end where the last one ends
    <split>.labels.bin    int16    class numbers (absent where the TSV has none)
    <split>.ids.txt       UTF-8    the examples' ids, one a line

and one meta.json: format version, label names, counts, tokenizer, whether the text was detokenized, and the sha256 of
the sources, of each file above and of meta.json itself without that line.
Numbers are little-endian.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import tokenizer
from detokenize import detokenize
from errors import UserError
from files import file_sha256, hold, refuse_irregular
from tsv import Row, Source, as_source, read_tsv

FORMAT_VERSION = 2
PERCENTILES = (50, 95, 99, 100)  # of the examples' lengths in tokens; 100 is the longest
CHUNK_EXAMPLES, CHUNK_CHARACTERS = 4096, 1 << 22  # tokenized and written at once
MICRO_BATCH_COST = 192  # tokens that a GPU computes while one more micro-batch is launched: a guess
FIELDS = {"": "<u2", ".offsets": "<i8", ".labels": "<i2"}


# -----------------------------------------------------------------------------
# TSV -> data/<task>/


def prepare(
    task: str,
    files: dict[str, Path | Source],
    label_names: list[str],
    block_size: int,
    folder: Path,
    detokenized: bool = False,
) -> None:
    """Tokenize a task's TSV files into `folder` and print a table of what is in them.

    Everything is written beside the folder's present content and moved into place only when all of it is whole.

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
        "tokenizer": {"name": "gpt2", "vocab_size": tokenizer.VOCAB_SIZE},
        "detokenized": detokenized,
        "splits": {},
    }
    encoding = tokenizer.load_tokenizer()
    lock = hold(folder)
    if _is_detokenized(folder) not in (None, detokenized):
        form = "as it is" if detokenized else "detokenized"
        print(f"note: {folder} held the text {form}: what was trained on that needs it prepared so again")
    staging = Path(tempfile.mkdtemp(prefix=".prepare-", dir=folder))
    try:
        print(f"{'split':<6}{'examples':>9}{'tokens':>11}", end="")
        print("".join(f"{'max' if p == 100 else f'p{p}':>5}" for p in PERCENTILES) + f"{f'>{block_size}':>7}  labels")
        for split, source in sources.items():
            rows = read_tsv(source, len(label_names), labelled=split in ("train", "dev"))
            if detokenized:
                rows = (row._replace(sentence=detokenize(row.sentence)) for row in rows)
            meta["splits"][split], share = _write_split(
                rows, source.path, split, len(label_names), encoding, staging, block_size
            )
            _print_row(split, meta["splits"][split], share)
        meta["sha256"] = _meta_sha256(meta)
        (staging / "meta.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for path in staging.iterdir():
            refuse_irregular(folder / path.name)
        # meta.json goes last: until then, the checksums of the old one refuse the new files
        for path in sorted(staging.iterdir(), key=lambda path: path.name == "meta.json"):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        lock.close()
    print(f"wrote {folder}{os.sep}")


def _is_detokenized(folder: Path) -> bool | None:
    """Return whether the text that a folder holds is detokenized; None where it holds none, or that cannot be told."""
    try:
        return load_meta(folder)["detokenized"]
    except UserError:
        return None


def _meta_sha256(meta: dict[str, Any]) -> str:
    """Return the checksum of meta.json's content, that of the checksum itself left out."""
    content = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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


# -----------------------------------------------------------------------------
# data/<task>/ -> micro-batches


@dataclass(frozen=True)
class Split:
    """One split of a prepared folder; the arrays are memory-mapped. A prompt, if there is one, ends every sequence."""

    name: str
    folder: Path
    tokens: np.ndarray  # (tokens,) uint16
    offsets: np.ndarray  # (examples + 1,) int64
    labels: np.ndarray | None  # (examples,) int16
    prompt: tuple[int, ...] = ()  # tokens

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, block_size: int) -> np.ndarray:
        """Return each example's number of tokens, prompt included, at most block_size: (examples,) int64."""
        return np.minimum(self.whole_lengths(), block_size)

    def whole_lengths(self) -> np.ndarray:
        """Return the same before anything is cut."""
        return np.diff(self.offsets) + len(self.prompt)

    def ids(self) -> list[str]:
        """Return the examples' ids."""
        path = self.folder / f"{self.name}.ids.txt"
        ids = path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]
        if len(ids) != len(self):
            raise UserError(f"{path} does not fit meta.json: prepare the folder again")
        return ids


def load_meta(folder: str | Path) -> dict[str, Any]:
    """Return a prepared folder's meta.json, its shape checked.

    Raises:
        UserError: the folder was not prepared, or its meta.json is broken or of another format version.
    """
    folder = Path(folder)
    path = folder / "meta.json"
    again = f"run `python {_prepare_script(folder)}`"
    if not path.is_file():
        raise UserError(f"{folder} was not prepared (no meta.json there): {again} first")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if meta["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {meta['format_version']!r}, not {FORMAT_VERSION}: {again} again"
            )
        whole = (
            meta["sha256"] == _meta_sha256(meta)
            and isinstance(meta["task"], str)
            and isinstance(meta["label_names"], list)
            and len(meta["label_names"]) >= 2
            and all(isinstance(name, str) and name.isprintable() for name in meta["label_names"])
            and meta["tokenizer"] == {"name": "gpt2", "vocab_size": tokenizer.VOCAB_SIZE}
            and type(meta.get("detokenized", False)) is bool
            and all(_is_split_meta(split, name) for name, split in meta["splits"].items())
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{path} is broken: {again} again")
    meta.setdefault("detokenized", False)  # not there in folders from before there was a choice
    return meta


def training_files(meta: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return what tells one set of training data from another: split -> file name -> sha256, of train and dev."""
    return {split: meta["splits"][split]["files"] for split in ("train", "dev") if split in meta["splits"]}


def _prepare_script(folder: Path) -> str:
    """Return the script that a folder comes from: data/sst from prepare_sst.py, other names from prepare_tsv.py."""
    own = Path(__file__).with_name(f"prepare_{folder.name}.py")
    return own.name if own.is_file() else f"prepare_tsv.py --name {folder.name} ..."


def _is_split_meta(split: dict[str, Any], name: str) -> bool:
    if split["label_counts"] is None and name in ("train", "dev") or type(split["leading_space"]) is not bool:
        return False
    labels = [] if split["label_counts"] is None else [f"{name}.labels.bin"]
    names = [f"{name}.bin", f"{name}.offsets.bin", *labels, f"{name}.ids.txt"]
    counts = [split["examples"], split["tokens"]]
    return list(split["files"]) == names and all(type(count) is int and count > 0 for count in counts)


def load_split(folder: str | Path, split: str) -> Split:
    """Memory-map one split of a prepared folder after checking each of its files against meta.json.

    Raises:
        UserError: the folder has no such split, or a file is missing or not the one that meta.json describes.
    """
    folder = Path(folder)
    meta = load_meta(folder)
    if split not in meta["splits"]:
        raise UserError(f"{folder} has no {split!r} split, only {', '.join(meta['splits']) or 'an empty meta.json'}")
    part = meta["splits"][split]
    for name, sha256 in part["files"].items():
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
            state = "does not fit meta.json" if (folder / name).is_file() else "is missing"
            raise UserError(f"{folder / name} {state}: run `python {_prepare_script(folder)}` again")
    sizes = {"": part["tokens"], ".offsets": part["examples"] + 1, ".labels": part["examples"]}
    arrays = {}
    for field, dtype in FIELDS.items():
        path = folder / f"{split}{field}.bin"
        if path.name in part["files"]:
            if path.stat().st_size != sizes[field] * np.dtype(dtype).itemsize:
                raise UserError(f"{path} does not fit meta.json: run `python {_prepare_script(folder)}` again")
            arrays[field] = np.memmap(path, dtype=dtype, mode="r")
    tokens, offsets, labels = arrays[""], arrays[".offsets"], arrays.get(".labels")
    fits = (
        offsets[0] == 0
        and offsets[-1] == len(tokens)
        and np.diff(offsets).min() > 0
        and tokens.max() < tokenizer.VOCAB_SIZE
        and (labels is None or (labels.min() >= 0 and labels.max() < len(meta["label_names"])))
    )
    if not fits:
        raise UserError(f"{folder}: the {split} split does not fit its meta.json: prepare it again")
    return Split(split, folder, tokens, offsets, labels)


def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which an epoch visits the examples, a permutation that depends on seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def cut_into_micro_batches(
    indices: np.ndarray, lengths: np.ndarray, token_budget: int, skips_padding: bool
) -> list[np.ndarray]:
    """Sort examples by length and cut them into micro-batches of at most token_budget tokens.

    Sorting is free: a step's gradient is a mean over all of its examples, and so does not depend on their order.
    Longest first, so that what is too large for the memory fails at once.

    Args:
        indices: (n,) the examples of one step.
        lengths: (examples,) number of tokens of every example of the split, indexed by `indices`.
        token_budget: at least the longest length.
        skips_padding: only real tokens count, and each micro-batch is filled (GPT.pack may add some padding). Otherwise
            padding counts, too, and where to cut is solved exactly, by dynamic programming: the least of it, with
            MICRO_BATCH_COST for each micro-batch.
    """
    order = indices[np.argsort(-lengths[indices], kind="stable")]
    find_ends = _filled_ends if skips_padding else _cheapest_ends
    ends = find_ends(lengths[order], token_budget)
    micro_batches, start = [], 0
    while start < len(order):
        micro_batches.append(order[start : ends[start]])
        start = ends[start]
    return micro_batches


def _filled_ends(lengths: np.ndarray, token_budget: int) -> list[int]:
    """Return where the micro-batch that starts at each example ends, if it takes as many as the budget allows."""
    totals = np.concatenate([[0], np.cumsum(lengths)])
    return (np.searchsorted(totals, totals[:-1] + token_budget, side="right") - 1).tolist()


def _cheapest_ends(lengths: np.ndarray, token_budget: int) -> list[int]:
    """Return the same for the cut that costs least, each micro-batch padded to its first and longest example."""
    longest, count = lengths.tolist(), len(lengths)
    rows = np.arange(1, count + 1)
    cost = np.zeros(count + 1)  # of the examples from here to the end, in tokens
    ends = [0] * count
    for start in reversed(range(count)):
        most = min(token_budget // longest[start], count - start)  # examples that this micro-batch could take
        # for each number of examples, its padded size and what then remains
        costs = rows[:most] * longest[start] + cost[start + 1 : start + 1 + most]
        ends[start] = start + 1 + int(costs.argmin())
        cost[start] = costs[ends[start] - start - 1] + MICRO_BATCH_COST
    return ends


def collate(split: Split, indices: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens, lengths) of some examples: int64 (B, T), right-padded to the longest of them, and int64 (B,).

    A sequence longer than block_size keeps its last block_size tokens, so that of the prompt nothing is lost.
    """
    ends, prompt = split.offsets[indices + 1], split.prompt
    lengths = np.minimum(ends - split.offsets[indices] + len(prompt), block_size)
    tokens = np.full((len(indices), lengths.max()), tokenizer.END_OF_TEXT, dtype=np.int64)
    for row, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
        cut = length - len(prompt)
        tokens[row, :cut] = split.tokens[end - cut : end]
        tokens[row, cut:length] = prompt
    return tokens, lengths
