"""People's tables as examples: which columns hold what, which classes there are, which rows to set aside as dev."""

import math
import re
import warnings
from collections.abc import Sequence
from hashlib import blake2b
from itertools import chain, compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from classifier.data.rows import Table, listed, read_table
from classifier.errors import UserError

USUAL_NAMES = {  # in lower case; the second ones count where none of the first is there
    "text": (
        ("text", "sentence", "review", "content", "comment"),
        ("body", "message", "tweet", "headline", "v2", "description", "phrase"),
    ),
    "label": (
        ("label", "sentiment", "category", "class", "target"),
        ("stars", "rating", "airline_sentiment", "v1", "topic", "intent", "queue"),
    ),
}
OTHER_NAMES = ("id", "", "unnamed: 0", "index", "__index_level_0__")  # row numbers, as pandas writes them
MAX_CLASSES = 2**15  # the model's; their numbers are int16

Columns = dict[str, list[str]]  # "text", "label", "id", "group" -> the names of the columns that hold it


class Examples(NamedTuple):
    """Rows that have a text; each list has an element for each."""

    places: list[str]  # as "my.csv, line 2"
    ids: list[str]
    texts: list[str]
    labels: Sequence | None  # as they stand in the file, "" for none; then int16 numbers, None for none at all
    groups: list[str]  # empty without a column of groups

    def chosen(self, rows: Sequence[bool]) -> "Examples":
        """Return those of the rows that a bool for each says."""
        return Examples(*(list(compress(column, rows)) for column in self))


# -----------------------------------------------------------------------------
# columns


def choose_columns(
    table: Table,
    named: Columns,
    needed: Sequence[str] = ("text", "label"),
    welcome: Sequence[str] = (),
    trained_on: Sequence[str] = (),
) -> tuple[Columns, str]:
    """Return the columns that are named, needed or welcome, and in words why these, and which are not used.

    Else than named by the person, a column is chosen by its usual name, or if it is needed and no other is left; of two
    that are left the one with more different values has the texts. A model's texts stand in the columns trained_on.

    Raises:
        UserError: no column is the one, several could be, or the header looks like an example.
    """
    found = {role: [_match(table, name) for name in names] for role, names in named.items() if names}
    reasons = {role: f"--{role}_column" for role in found}
    if "text" not in found and trained_on and {*map(_plain, trained_on)} <= {*map(_plain, table.columns)}:
        found["text"], reasons["text"] = [_match(table, name) for name in trained_on], "as in training"
    is_header = bool(found)
    for role in (*needed, *welcome):
        free = [name for name in table.columns if name not in chain(*found.values())]
        first, second = ([name for name in free if _plain(name) in names] for names in USUAL_NAMES[role])
        usual = list(dict.fromkeys(first or second))
        if role not in found and role in needed and len(usual) > 1:
            raise _unclear(table, f"{' and '.join(map(repr, usual))} could both be the {role}s", role)
        if role not in found and len(usual) == 1:
            found[role], reasons[role] = usual, "by its name"
    missing = [role for role in needed if role not in found]
    if missing and table.header and not is_header:
        _refuse_example(table)
    taken = {*OTHER_NAMES, *chain(*chain(*USUAL_NAMES.values())), *map(_plain, chain(*found.values()))}
    left = [name for name in table.columns if _plain(name) not in taken]
    if missing and len(left) != len(missing):
        raise _unclear(table, f"no column's name tells that it holds the {missing[0]}s", missing[0])
    if len(missing) == 2:
        left.sort(key=lambda name: len(set(table.column(name))), reverse=True)
    for role, name in zip(missing, left, strict=False):
        found[role], reasons[role] = [name], "the only other column" if len(missing) == 1 else "of two columns"
    names = list(chain(*found.values()))
    if len(set(names)) < len(names):
        raise UserError(f"text, label, id and group must be different columns, not {', '.join(names)}")
    if trained_on and reasons["text"] not in ("as in training", "--text_column"):
        reasons["text"] += f", not {' + '.join(map(repr, trained_on))} as in training"
    if table.unit == "file":
        reasons |= {"text": "the files", "label": "their folders"}
    chosen = ", ".join(f"{role}s in {' + '.join(map(repr, found[role]))} ({reasons[role]})" for role in found)
    unused = ", ".join(repr(name) for name in table.columns if name not in names and _plain(name) not in OTHER_NAMES)
    return found, chosen + f"; not used: {unused:.200}" * bool(unused)


def _match(table: Table, name: str) -> str:
    """Return the column of that name: as it is written, or else the only one that differs in case or spaces alone."""
    alike = [name] if name in table.columns else [column for column in table.columns if _plain(column) == _plain(name)]
    if len(alike) != 1:
        raise UserError(f"{table.path}: no column {name!r} among {_shown(table)}")
    return alike[0]


def _plain(column: str) -> str:
    return column.strip().lower()


def _shown(table: Table) -> str:
    """Return the columns in words, each with the first value that stands in it."""
    pairs = zip(table.columns, table.cells, strict=True)
    values = {name: next((str(cell) for cell in cells if cell), "") for name, cells in pairs}
    return ", ".join(f"{name[:30]!r} (as {value[:30]!r})" for name, value in values.items() if name or value)[:500]


def _unclear(table: Table, problem: str, role: str) -> UserError:
    return UserError(f"{table.path}: {problem}: choose with --{role}_column among {_shown(table)}")


def _refuse_example(table: Table) -> None:
    """Raise a UserError where a name in the header stands below as well, is a number, or has three words or more."""
    for name, cells in zip(table.columns, table.cells, strict=True):
        if name.strip() and (name in cells or name.strip().count(" ") > 1 or re.fullmatch(r"[-+.\d]+", name)):
            raise UserError(
                f"{table.path}: the first line looks like an example, not like columns' names ({name[:40]!r}): add "
                f"--no_header, which names them 1, 2, 3; or if they are names, say --text_column and --label_column"
            )


# -----------------------------------------------------------------------------
# examples


def read_examples(tables: list[Table], columns: Columns, is_test: bool = False) -> tuple[Examples, list[str]]:
    """Return the rows that have a text, of one table after another; and what to tell about the others.

    Args:
        columns: those of the text are joined by line ends. Without an id's it is `id`, or else rows are counted.
        is_test: whether a column of labels may be missing.

    Raises:
        UserError: a column is missing.
    """
    parts, notes, count = [], [], 0
    for table in tables:
        texts = cells_of(table, columns["text"])
        labels = [label.strip() for label in cells_of(table, columns["label"], is_optional=is_test)]
        groups = cells_of(table, columns.get("group", []), is_optional=is_test)
        ids = cells_of(table, columns.get("id", ["id"]), is_optional="id" not in columns)
        ids = [" ".join(id.split()) or str(number) for number, id in enumerate(ids, start=count + 1)]
        count += len(ids)
        part = Examples([table.place(row) for row in range(len(ids))], ids, texts, labels, groups)
        empty = [line for line, text in zip(table.lines, texts, strict=True) if not text.strip()]
        if empty:
            rows = "1 row" if len(empty) == 1 else f"{len(empty):,} rows"
            notes.append(f"{table.path}: {rows} without a text left out: {listed(table.unit, empty)}")
            part = part.chosen([bool(text.strip()) for text in texts])
        parts.append(part)
    if not any(part.texts for part in parts):
        raise UserError(f"{tables[0].path}: no row has a text")
    return Examples(*(list(chain(*column)) for column in zip(*parts, strict=True))), notes


def cells_of(table: Table, names: list[str], is_optional: bool = False) -> list[str]:
    """Return a column's cells, or those of several joined; "" for those of an optional column that is not there."""
    if not names:
        return []
    if is_optional and _plain(names[0]) not in map(_plain, table.columns):
        return [""] * len(table.lines)
    first, *more = (table.column(_match(table, name)) for name in names)
    return [row_text(row) for row in zip(first, *more, strict=True)] if more else first


def row_text(cells: Sequence[str]) -> str:
    """Return the text of a row: the cells that are not blank, joined by line ends."""
    return "\n".join(cell for cell in cells if cell.strip())


def read_course_file(path: Path, labels: list[str], is_test: bool = False) -> Examples:
    """Return the examples of one of the course's TSV files: columns id, sentence and sentiment, one of the labels.

    Raises:
        UserError: with the line, where the file is not in that format.
    """
    columns = {"id": ["id"], "text": ["sentence"], "label": ["sentiment"]}
    examples, notes = read_examples([read_table(path, quoting="csv")], columns, is_test)
    if notes:
        raise UserError(notes[0])
    return number_labels(examples, labels, is_test)


# -----------------------------------------------------------------------------
# classes


def name_classes(examples: Examples, wanted: list[str]) -> tuple[list[str], list[str]]:
    """Return the classes in the order of their numbers: the labels of the file, and their names.

    Args:
        examples: those to train on.
        wanted: --labels, the labels in another order or names for numbers; or nothing.

    Raises:
        UserError: a label is missing, there are not two classes or too many, or --labels does not fit.
    """
    spelled: dict[float | str, str] = {}
    for label in sorted(set(examples.labels), key=lambda label: (len(label), label)):
        if not label or re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", label):
            problem = f"the label {label[:40]!r} is no name" if label else "no label"
            raise UserError(f"{_place(examples, label)}: {problem}: label the row or remove it")
        spelled.setdefault(_value(label), label)  # the shortest spelling
    labels = sorted(spelled.values(), key=_order)
    path, number = examples.places[0].rpartition(", ")[0], len(labels)
    if not 2 <= number <= MAX_CLASSES:
        problem = f"every label is {labels[0]!r}" if number == 1 else f"{number:,} different labels"
        raise UserError(f"{path}: {problem}: there must be 2 to {MAX_CLASSES:,} classes: is that --label_column?")
    if not wanted or spelled.keys() == {_value(name) for name in wanted}:
        return wanted or labels, wanted or labels
    if number == len(wanted) and all(isinstance(value, float) for value in spelled):
        return labels, wanted
    raise UserError(
        f"--labels must name all {number} labels of {path}, in the order wanted: {', '.join(labels)[:200]!r}"
    )


def number_labels(examples: Examples, classes: list[str], is_test: bool = False) -> Examples:
    """Return the examples with their classes' numbers as labels, int16; with None where a test file has no labels.

    Raises:
        UserError: with the line, where a label is none of the classes'.
    """
    numbers = class_numbers(examples.labels, classes)
    unknown = list(compress(examples.labels, numbers < 0))
    if is_test and len(unknown) == len(numbers) and {_value(label) for label in unknown} <= {"", -1.0}:
        return examples._replace(labels=None)
    if unknown:
        label = unknown[0]
        problem = f"the label {label[:60]!r} is none of {', '.join(classes)[:200]!r}" if label else "no label"
        hint = "" if label or not is_test else ", though others have one: label all rows or none"
        raise UserError(f"{_place(examples, label)}: {problem}{hint}")
    return examples._replace(labels=numbers)


def class_numbers(labels: list[str], *classes: list[str]) -> np.ndarray:
    """Return the numbers of labels in that list of classes which knows the most of them, else -1: int16 (rows,)."""
    known = []
    for names in classes:
        numbers = {_value(name): number for number, name in enumerate(names)}
        found = {label: numbers.get(_value(label.strip()), -1) for label in set(labels)}  # of each once: they are few
        known.append(np.array([found[label] for label in labels], np.int16))
    return max(known, key=lambda numbers: (numbers >= 0).sum())


def _place(examples: Examples, label: str) -> str:
    return examples.places[examples.labels.index(label)]


def _value(label: str) -> float | str:
    """Return what all spellings of a label have in common: 1 and 1.0 are one, true and True are one."""
    if re.fullmatch(r"[-+]?[0-9]{1,15}(\.[0-9]*)?", label):
        return float(label)
    return label.lower() if label.lower() in ("true", "false") else label


def _order(label: str) -> tuple:
    """Return what sorts numbers before words and by their value, also those in words: 2 stars, 10 stars."""
    value = _value(label)
    parts = [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]{1,9})", label))]
    return (0, value, parts) if isinstance(value, float) else (1, 0, parts)


# -----------------------------------------------------------------------------
# dev out of train


def hash_sentences(texts: list[str]) -> np.ndarray:
    """Return (rows,) uint64 that stand for texts, the spaces around them left out."""
    digests = (blake2b(text.strip().encode("utf-8", "replace"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), "<u8")


def choose_dev(train: Examples, names: list[str], share: float, seed: int) -> np.ndarray:
    """Choose the dev split's rows: in each class the same share of the sentences, a repeated one with all its rows.

    A repeated sentence counts for its first label. Where there are groups, each stays together with all its rows, and
    the shares are met as far as may be.

    Returns:
        (rows,) bool.

    Raises:
        UserError: a class has too few sentences to stand in both splits.
    """
    from sklearn.model_selection import StratifiedGroupKFold, train_test_split  # takes a second to import

    labels = train.labels
    _, first, sentence_of_row = np.unique(hash_sentences(train.texts), return_index=True, return_inverse=True)
    in_dev = np.zeros(len(labels), dtype=bool)
    hint = "add texts, change --dev_share, or give a file with --dev"
    counts = np.bincount(labels[first], minlength=len(names))
    if counts.min() < 2 and not train.groups:
        raise UserError(f"the class {names[counts.argmin()]!r} has fewer than two different texts: {hint}")
    try:
        if train.groups:
            folds = StratifiedGroupKFold(round(1 / share), shuffle=True, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of classes with fewer rows than folds
                parts = [dev for _, dev in folds.split(labels, labels, _tied(sentence_of_row, train.groups))]
            in_dev[min(parts, key=lambda rows: abs(len(rows) - share * len(labels)))] = True
        else:
            size = math.ceil(share * len(first))
            _, dev = train_test_split(np.arange(len(first)), test_size=size, stratify=labels[first], random_state=seed)
            in_dev[:] = np.isin(sentence_of_row, dev)
    except ValueError as error:
        raise UserError(f"a share of {share} cannot be set aside as dev ({error}): {hint}") from None
    left = np.bincount(labels[~in_dev], minlength=len(names))
    if left.min() == 0 or not in_dev.any():
        raise UserError(f"no text of the class {names[left.argmin()]!r} is left to train on: {hint}")
    return in_dev


def _tied(sentences: np.ndarray, groups: list[str]) -> np.ndarray:
    """Return (rows,) numbers, the same for rows that a sentence or a group ties together, by way of others, too."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    groups = np.unique(groups, return_inverse=True)[1] + len(sentences)
    ties = coo_array((np.ones(len(groups)), (sentences, groups)), shape=(groups.max() + 1,) * 2)
    return connected_components(ties, directed=False)[1][sentences]


def count_repeats(sentences: np.ndarray, labels: Sequence[int] | None) -> tuple[int, int]:
    """Return how many sentences, (rows,) hashes, stand in more than one row, and how many have more than one label."""
    _, numbers, rows = np.unique(sentences, return_inverse=True, return_counts=True)
    if labels is None:
        return int((rows > 1).sum()), 0
    pairs = np.unique(numbers * MAX_CLASSES + labels)  # of sentence and label
    return int((rows > 1).sum()), int((np.bincount(pairs // MAX_CLASSES) > 1).sum())
