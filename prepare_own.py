"""Prepare your own texts and labels: data/NAME/*.bin and config/finetune_NAME.py.

python prepare_own.py --train my.csv --dev my_dev.csv --name mytask
python prepare_own.py --train my.csv --name mytask   # a tenth becomes dev

A file is .csv, .tsv, .txt, .jsonl, .json, .parquet or .xlsx, text also packed
(.gz, .zip, .bz2, .xz); or a folder of folders of .txt files, one per class;
or, with --label_from_name, one file of lines per class (neg.txt pos.txt).
When a file has changed, run the command again: it replaces data/NAME and
keeps config/finetune_NAME.py.
"""

import math
import re
from argparse import Namespace
from contextlib import suppress
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np

from classifier import errors
from classifier.data import own
from classifier.data.dataset import load_meta, load_split
from classifier.data.labels import label_notes, label_value
from classifier.data.prepare import prepare, source_name
from classifier.data.rows import ENDINGS, delimiter_named, read_lines, read_table
from classifier.data.table import Table, counted
from classifier.errors import UserError, tell
from classifier.files import refuse_irregular, written_whole

UNBALANCED = """
# the largest class is more than five times the smallest: each class gets the same weight
class_weights = "balanced"
best_by = "macro_f1"
"""
Tables = dict[str, list[Table]]  # split -> its files


def main() -> None:
    options = read_options()
    folder, config = Path("data") / options.name, Path("config") / f"finetune_{options.name}.py"
    files = {"train": options.train, "dev": options.dev, "test": options.test}
    files = {split: paths for split, paths in files.items() if paths}
    refuse_irregular(config)
    rows, text_columns = read_splits(files, options)
    if not options.overwrite:
        sources = source_name(files["train"]), source_name(files.get("dev", files["train"]))
        refuse_to_replace(folder, options.name, sources, text_columns)
    labels, names = own.name_classes(rows["train"], options.labels)
    for note in label_notes(rows["train"].labels, chain(*(rows[split].labels for split in files if split != "train"))):
        tell(note)
    number = len(rows["train"].texts)
    if 2 * len(labels) > number:
        tell(f"note: {len(labels):,} classes in {number:,} rows: if this is not the label column, pass --label_column")
    if "dev" not in rows:
        train = rows.pop("train")
        in_dev = own.choose_dev(own.number_labels(train, labels), names, options.dev_share, options.seed)
        rows = {"train": train.select(~in_dev), "dev": train.select(in_dev)} | rows
        tell(f"dev: {in_dev.sum():,} of {counted(number, 'row')}, drawn at random (--dev takes a file instead)")
        files["dev"] = files["train"]
    splits = {split: own.number_labels(each, labels, split == "test") for split, each in rows.items()}
    counts = np.bincount(splits["dev"].labels, minlength=len(names))
    few = [name for name, count in zip(names, counts, strict=True) if count < 5]
    if few:
        names_of_few = ", ".join(few[:10])[:200] + (f" and {len(few) - 10:,} more" if len(few) > 10 else "")
        tell(f"note: dev has fewer than 5 texts of {names_of_few}: too few to measure")
    as_read = {"labels": labels, "text_columns": text_columns}
    prepare(options.name, splits, files, names, as_read, folder)
    print_report(splits)
    lengths = np.diff(load_split(folder, "train").offsets)
    if config.exists() and not options.overwrite:
        tell(f"kept {config}, which may have your changes (--overwrite replaces it)")
    else:
        config.parent.mkdir(exist_ok=True)
        block_size = suggest_block_size(lengths)
        with written_whole(config, "w") as f:
            f.write(config_text(options.name, np.bincount(splits["train"].labels), lengths))
        print(f"wrote {config}: block_size {block_size} truncates {(lengths > block_size).mean():.2%} of the texts")
    print(f"next: python finetune.py {config}")


def read_splits(files: dict[str, list[Path]], options: Namespace) -> tuple[dict[str, own.Rows], list[str]]:
    """Return split -> rows, and the names of their text columns; print how the files were read."""
    if options.label_from_name:
        tables, columns, reasons = read_classes(files, options)
    else:
        tables, columns, reasons = read_tables(files, options)
    tell(f"columns: {reasons}")
    if note := own.other_labels_note(tables["train"][0], columns):
        tell(note)
    splits = {}
    for split, of_split in tables.items():
        splits[split], notes = own.read_examples(of_split, columns, split == "test")
        for note in [*chain(*(table.notes for table in of_split)), *notes]:
            if options.strict:
                raise UserError(f"--strict refuses a file with a note: {note}")
            tell(note)
    known = {label_value(label) for rows in splits.values() for label in {"", *rows.labels}}
    for label in options.drop_label:
        if label_value(label) not in known:
            tell(f"note: no row is labelled {label!r} (--drop_label)")
    return {split: own.drop_labels(split, rows, options.drop_label) for split, rows in splits.items()}, columns["text"]


def read_tables(files: dict[str, list[Path]], options: Namespace) -> tuple[Tables, own.Columns, str]:
    """Return the tables, their columns, and a line about the choice of columns."""
    how = options.no_header, options.quoting, options.encoding, options.delimiter
    try:
        tables = {split: [read_table(path, *how) for path in paths] for split, paths in files.items()}
        named = {role: getattr(options, f"{role}_column") for role in ("text", "label", "id", "group")}
        return tables, *own.choose_columns(tables["train"][0], named)
    except UserError as error:
        are_lines = all(path.is_file() and path.suffix not in {*ENDINGS} - {".txt"} for path in files["train"])
        if "--encoding" in str(error) or not are_lines:
            raise
        hint = "if each file has the texts of one class, a line each, pass them with --label_from_name"
        raise UserError(f"{error}; or, {hint}") from None


def read_classes(files: dict[str, list[Path]], options: Namespace) -> tuple[Tables, own.Columns, str]:
    """Return tables of files with the texts of one class each, their columns, and a line about the labels."""
    classes = own.labels_of_names(files["train"])
    tables = {}
    for split, paths in files.items():
        labels = classes if split == "train" else own.labels_of_names(paths, set(classes))
        tables[split] = [read_lines(path, label, options.encoding) for path, label in zip(paths, labels, strict=True)]
    reasons = f"each line is a text, labels in the files' names: {', '.join(dict.fromkeys(classes)):.200}"
    return tables, {"text": ["text"], "label": ["label"]}, reasons


def read_options() -> Namespace:
    """Parse the command line."""
    parser = errors.argument_parser(__doc__)
    add = parser.add_argument
    several: dict[str, Any] = {"metavar": "FILE", "type": Path, "nargs": "+", "action": "extend"}
    add("--train", **several, required=True, help="the file to train on; several are read as one")
    add("--dev", **several, help="the file to evaluate on (default: a share of --train)")
    add("--test", **several, help="a file to predict; it needs no labels")
    add("--name", required=True, help="the task's name, of a-z, 0-9, _ and -")
    column: dict[str, Any] = {"metavar": "COLUMN", "default": []}
    joined = "texts (default: found by name, as text); several columns are joined by line ends, in the order given: if "
    joined += "a text is too long, the first is cut first (the setting keep=first keeps the beginning)"
    add("--text_column", **column, nargs="+", action="extend", help=joined)
    add("--label_column", **column, nargs="+", help="labels, one column (default: found by name, as label or class)")
    add("--id_column", **column, nargs=1, help="ids (default: id if there is one, otherwise the row's number)")
    add("--group_column", **column, nargs=1, help="rows with the same value here are not split between train and dev")
    add("--no_header", action="store_true", help="the first line is a row; the columns' names are 1, 2, 3 ...")
    by_name = "each line is a text, and the label is in the file's name, as in neg.txt and pos.txt"
    add("--label_from_name", action="store_true", help=by_name)
    between = "comma, tab, semicolon, pipe or a character (default: detected)"
    add("--delimiter", metavar="CHARACTER", type=delimiter_named, help=between)
    add("--quoting", choices=("csv", "none"), help="quotes are CSV's, or part of the texts (default: detected)")
    add("--encoding", metavar="NAME", help="of files that are not UTF-8 (or UTF-16 with a byte order mark), as cp1252")
    add("--strict", action="store_true", help="refuse files that need a note, as for rows without a text or label")
    several_labels: dict[str, Any] = {"metavar": "LABEL", "type": str.strip, "nargs": "+", "default": []}
    drop = "leave out rows with these labels, as in --drop_label -1 n/a (rows without a label always are)"
    add("--drop_label", **several_labels, action="extend", help=drop)
    add("--labels", **several_labels, help="the classes' names, in order (default: the labels)")
    add("--dev_share", metavar="SHARE", type=float, default=0.1, help="dev's share without --dev (default: 0.1)")
    add("--seed", metavar="N", type=int, default=1337, help="draw other rows for dev (default: 1337)")
    add("--overwrite", action="store_true", help="replace config/finetune_NAME.py, and a data/NAME of other files")
    options = parser.parse_args()
    check_options(options)
    return options


def check_options(options: Namespace) -> None:
    """Raise a UserError for what can be refused without reading a file."""
    if not re.fullmatch("[a-z0-9_][a-z0-9_-]{,63}", options.name):
        raise UserError(f"--name {options.name}: use at most 64 of a-z, 0-9, _ and -, as in my-task")
    if Path(__file__).with_name(f"prepare_{options.name}.py").exists():
        raise UserError(f"--name {options.name}: taken by prepare_{options.name}.py; choose another name")
    if not 0 < options.dev_share <= 0.5:
        raise UserError(f"--dev_share must be above 0 and at most 0.5, not {options.dev_share}")
    if options.group_column and options.dev:
        raise UserError("--group_column only affects how dev is split off: remove it, or --dev")
    of_columns = ("text_column", "label_column", "id_column", "group_column", "no_header", "delimiter", "quoting")
    ignored = [name for name in of_columns if getattr(options, name)]
    if options.label_from_name and ignored:
        raise UserError(f"--label_from_name reads each line as a text, whole: remove --{ignored[0]}")
    if len(options.label_column) > 1:
        raise UserError(
            f"--label_column {' '.join(options.label_column)}: a text has one class here, so pass one column: prepare "
            f"each with its own --name, or, if each text has just one of them, put its name into one column"
        )
    if options.labels and len(set(options.labels)) < max(len(options.labels), 2):
        raise UserError(f"--labels must name at least two classes, each once, not {' '.join(options.labels)}")


def refuse_to_replace(folder: Path, name: str, sources: tuple[str, str], text_columns: list[str]) -> None:
    """Raise a UserError if the folder contains anything but data prepared from these columns of (train, dev) files."""
    if not (folder / "meta.json").exists() and not any(list(folder.glob(end)) for end in ("*.bin", "*.ids.txt")):
        return

    def described(columns: list[str], train: str, dev: str) -> str:
        return f"{' + '.join(columns)} of {train}" + (f", with {dev} as dev" if dev != train else "")

    before = "unknown files"
    with suppress(UserError):
        meta = load_meta(folder)
        names = [meta["splits"][split]["source"]["name"] for split in ("train", "dev")]
        before = described(meta.get("text_columns", text_columns), *names)
        if meta["task"] == name and before == described(text_columns, *sources):
            return
    wanted = described(text_columns, *sources)
    raise UserError(
        f"{folder} was prepared from {before}, not from {wanted}: choose another --name, or add --overwrite"
    )


# -----------------------------------------------------------------------------
# the report, and suggested settings


def print_report(splits: dict[str, own.Examples]) -> None:
    """Print how many sentences are repeated in a split, with different labels, or in two splits."""
    hashes = {split: own.hash_sentences(examples.texts) for split, examples in splits.items()}
    for split, examples in splits.items():
        repeated, conflicting = own.count_repeats(hashes[split], examples.labels)
        print(f"sentences more than once in {split}: {repeated:,}, with different labels: {conflicting:,}")
    for one, other in combinations(splits, 2):
        both = len(np.intersect1d(hashes[one], hashes[other]))
        print(f"sentences in both {one} and {other}: {both:,}")
        if one == "train" and 10 * both > len(hashes[other]):
            tell(f"note: results on {other} will be too good, since many of its texts are in train, too")


def suggest_block_size(lengths: np.ndarray) -> int:
    """Return the smallest multiple of 32 that at least 99% of the lengths do not exceed, at most GPT-2's 1,024."""
    p99 = np.percentile(lengths, 99, method="inverted_cdf")
    return min(32 * math.ceil(p99 / 32), 1024)


def config_text(name: str, counts: np.ndarray, lengths: np.ndarray) -> str:
    """Return a config file for fine-tuning GPT-2 small; counts: (K,) texts per class, lengths: (examples,) tokens."""
    unbalanced = UNBALANCED if counts.max() > 5 * counts.min() else ""
    examples, block_size = len(lengths), suggest_block_size(lengths)
    step_size = 32 if examples <= 50_000 else 64 if examples <= 500_000 else 128
    batch_size = min(step_size, 2 ** int(math.log2(4096 / block_size)))  # about 4,096 tokens at once
    epochs = 10 if examples < 2_000 else 4 if examples <= 50_000 else 2
    steps_per_epoch = math.ceil(examples / step_size)
    scratch = "--init_from=scratch --learning_rate=1e-3 --n_layer=1 --n_head=1 --n_embd=64"
    if step_size > batch_size:
        scratch += " --gradient_accumulation_steps=1"
    if epochs * steps_per_epoch < 100:
        scratch += " --batch_size=8"  # so few steps of 32 examples teach it little
    return f"""\
# GPT-2 small on {name}, {len(counts)} classes: {examples:,} examples, {counted(steps_per_epoch, "step")} per epoch
# block_size truncates {(lengths > block_size).mean():.2%} of the texts to their last tokens
data_dir = "data/{name}"
out_dir = "out-{name}"
init_from = "gpt2"
# a small model that needs no weights:
# python finetune.py config/finetune_{name}.py {scratch}

block_size = {block_size}
batch_size = {batch_size}
gradient_accumulation_steps = {step_size // batch_size}

learning_rate = 3e-5
lr_schedule = "cosine"
warmup_steps = {round(0.06 * epochs * steps_per_epoch)}
epochs = {epochs}
{unbalanced}"""


if __name__ == "__main__":
    errors.run(main)
