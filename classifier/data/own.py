"""Turn tables into labelled examples: choose the columns, number the classes, set rows aside as the dev split."""

import math
import re
import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import chain, compress
from os.path import commonprefix
from pathlib import Path
from typing import NamedTuple

import numpy as np

from classifier.data.labels import class_numbers, label_order, label_value, look, number_in, spellings
from classifier.data.rows import read_table
from classifier.data.table import USUAL_NAMES, Table, counted
from classifier.errors import UserError, printable, tell

OTHER_NAMES = ("id", "", "unnamed: 0", "index", "__index_level_0__")  # row numbers, as pandas writes them
MAX_CLASSES = 2**15  # class numbers are int16

Columns = dict[str, list[str]]  # "text", "label", "id", "group" -> the names of its columns


class Rows(NamedTuple):
    """Rows with a text, as read; every list has one element per row."""

    places: list[str]  # "my.csv, line 2"
    ids: list[str]
    texts: list[str]
    labels: list[str]  # "" for none
    groups: list[str]  # empty without a group column

    def select(self, rows: Sequence[bool] | np.ndarray) -> "Rows":
        """Return the rows whose bool is true."""
        return Rows(*(list(compress(column, rows)) for column in self))


class Examples(NamedTuple):
    """Rows whose labels are class numbers."""

    places: list[str]
    ids: list[str]
    texts: list[str]
    labels: np.ndarray  # (rows,) int16; empty if no row has a label
    groups: list[str]


# -----------------------------------------------------------------------------
# columns


def choose_columns(
    table: Table,
    named: Columns,
    needed: Sequence[str] = ("text", "label"),
    welcome: Sequence[str] = (),
    trained_on: Sequence[str] = (),
) -> tuple[Columns, str]:
    """Choose the columns of the needed and welcome roles; return them, and a line that says why and what is not used.

    Columns named on the command line come first, for the texts then those the model was trained on, then usual names.
    A needed column without a usual name must be the only other one; of two, the one with more different values has the
    texts.
    """
    found = {role: [_find_column(table, name) for name in names] for role, names in named.items() if names}
    reasons = {role: f"--{role}_column" for role in found}
    if "text" not in found and trained_on and {*map(_lower, trained_on)} <= {*map(_lower, table.columns)}:
        found["text"], reasons["text"] = [_find_column(table, name) for name in trained_on], "as in training"
    is_header = bool(found)
    for role in (*needed, *welcome):
        if role in found:
            continue
        free = dict.fromkeys(name for name in table.columns if name not in chain(*found.values()))
        first, second = ([name for name in free if _lower(name) in names] for names in USUAL_NAMES[role])
        usual = first or second
        if len(usual) == 1:
            found[role], reasons[role] = usual, "by its name"
        elif usual and role in needed:
            raise _unclear(table, f"{' and '.join(map(repr, usual))} could both be the {role}s", role)
    missing = [role for role in needed if role not in found]
    if missing and table.header and not is_header:
        _refuse_example(table)
    taken = {*OTHER_NAMES, *chain(*chain(*USUAL_NAMES.values())), *map(_lower, chain(*found.values()))}
    left = [name for name in table.columns if _lower(name) not in taken]
    if missing and len(left) != len(missing):
        raise _unclear(table, f"no column has a usual name for {missing[0]}s", missing[0])
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
    line = ", ".join(f"{role}s in {' + '.join(map(repr, found[role]))} ({reasons[role]})" for role in found)
    unused = ", ".join(repr(name) for name in table.columns if name not in names and _lower(name) not in OTHER_NAMES)
    return found, f"{line}; not used: {unused:.200}" if unused else line


def other_labels_note(table: Table, columns: Columns) -> str | None:
    """Return a note if the label is 0 or 1 (or true or false) in each row, and so are two or more unused columns."""

    def is_yes_or_no(name: str) -> bool:
        with suppress(UserError):  # for lists, and for two columns of one name
            return all(label_value(cell.strip()) in (0, 1, "true", "false") for cell in set(table.column(name)))
        return False

    label = _find_column(table, columns["label"][0])
    taken = {_find_column(table, name) for names in columns.values() for name in names}
    unused = [name for name in table.columns if name not in taken and _lower(name) not in OTHER_NAMES]
    others = [name for name in unused if is_yes_or_no(name)] if len(unused) > 1 and is_yes_or_no(label) else []
    if len(others) < 2:
        return None
    return (
        f"note: {', '.join(map(repr, others)):.200} are 0 or 1 in each row, as {label!r} is. If they are labels, too: "
        f"only {label!r} is learnt. Prepare each of the others with its own --name, or, if each text has just one of "
        f"them, put its name into one column"
    )


def _find_column(table: Table, name: str) -> str:
    """Return the column of that name, or the only one whose name differs in case or spaces alone."""
    if name in table.columns:
        return name
    alike = [column for column in table.columns if _lower(column) == _lower(name)]
    if len(alike) != 1:
        raise UserError(f"{table.path}: no column {name!r} among {_columns_with_values(table)}")
    return alike[0]


def _lower(column: str) -> str:
    return column.strip().lower()


def _columns_with_values(table: Table) -> str:
    """Return the columns' names for a message, each with its first value."""
    pairs = zip(table.columns, table.cells, strict=True)
    values = {name: next((str(cell) for cell in cells if cell), "") for name, cells in pairs}
    return ", ".join(f"{name[:30]!r} (as {value[:30]!r})" for name, value in values.items() if name or value)[:500]


def _unclear(table: Table, problem: str, role: str) -> UserError:
    is_one = table.records and len(table.columns) == 1
    hint = "; if a character stands between several columns, name it with --delimiter" if is_one else ""
    return UserError(f"{table.path}: {problem}: choose with --{role}_column among {_columns_with_values(table)}{hint}")


def _refuse_example(table: Table) -> None:
    """Raise a UserError if a name in the header is also a value below it, is a number, or has three words or more."""
    for name, cells in zip(table.columns, table.cells, strict=True):
        if name.strip() and (name in cells or name.strip().count(" ") > 1 or re.fullmatch(r"[-+.\d]+", name)):
            raise UserError(
                f"{table.path}: the first line looks like an example, not like columns' names ({name[:40]!r}): add "
                f"--no_header, which names the columns 1, 2, 3, or pass --text_column and --label_column"
            )


def labels_of_names(paths: list[Path], classes: Collection[str] = ()) -> list[str]:
    """Return the label in each file's name: the part that the others do not share, or one of some classes.

    rt-polarity.neg.txt and rt-polarity.pos.txt have neg and pos. Names are compared part by part, as not_spam.txt and
    spam.txt show.
    """
    if classes:
        return [_class_in_name(path, classes) for path in paths]
    names = [re.sub(r"(?<=.)(\.(txt|gz|zip|bz2|xz))+$", "", path.name) for path in paths]
    parts = [re.split(r"([._\s-]+)", name) for name in names]
    for _ in range(2):  # what they share at the beginning is left out, then at the end
        shared = min(len(commonprefix(parts)), *(len(each) - 1 for each in parts))
        parts = [each[shared:][::-1] for each in parts]
    labels = ["".join(each).strip("._- ") for each in parts]
    if len(set(labels)) == 1:
        raise UserError(f"{paths[0].name}: no other class: pass a file for each, as --train neg.txt pos.txt")
    return labels


def _class_in_name(path: Path, classes: Collection[str]) -> str:
    """Return the one of the classes that is a part of a file's name, and of no other class in it."""
    found = [name for name in classes if re.search(rf"(?<![^._\s-]){re.escape(name)}(?![^._\s-])", path.name)]
    found = sorted(name for name in found if not any(name in other for other in found if other != name))
    if len(found) != 1:
        problem = f"its name has {' and '.join(found) or 'none'}"
        raise UserError(f"{path}: {problem} of the classes {', '.join(sorted(classes))[:200]!r}: rename it")
    return found[0]


# -----------------------------------------------------------------------------
# examples


def row_text(cells: Sequence[str]) -> str:
    """Return the text of a row: its text columns that are not blank, joined by line ends."""
    return "\n".join(cell for cell in cells if cell.strip())


def cells_of(table: Table, names: list[str], is_optional: bool = False) -> list[str]:
    """Return a column's cells, or the row_text of several columns; "" in each row if an optional column is missing."""
    if not names:
        return []
    if is_optional and _lower(names[0]) not in map(_lower, table.columns):
        return [""] * len(table.lines)
    columns = [table.column(_find_column(table, name)) for name in names]
    return columns[0] if len(columns) == 1 else [row_text(row) for row in zip(*columns, strict=True)]


def read_examples(tables: list[Table], columns: Columns, is_test: bool = False) -> tuple[Rows, list[str]]:
    """Return the rows of all tables that have a text and a label, and notes about the others.

    Ids are those of the column `id` unless another is named; rows without one are numbered. A test file may lack the
    label column; if all its labels are missing or -1, they are not needed.
    """
    parts, notes, count = [], [], 0
    labels_of = [[label.strip() for label in cells_of(each, columns["label"], is_optional=is_test)] for each in tables]
    has_labels = not is_test or not {label_value(label) for labels in labels_of for label in {*labels}} <= {"", -1}
    for table, labels in zip(tables, labels_of, strict=True):
        texts = cells_of(table, columns["text"])
        groups = cells_of(table, columns.get("group", []), is_optional=is_test)
        ids = cells_of(table, columns.get("id", ["id"]), is_optional="id" not in columns)
        ids = [" ".join(id.split()) or str(number) for number, id in enumerate(ids, start=count + 1)]
        count += len(ids)
        without = ["" if text.strip() else "text" for text in texts]
        if has_labels:
            without = [what or ("" if label else "label") for what, label in zip(without, labels, strict=True)]
        for what in ("text", "label"):
            if missing := [row for row, each in enumerate(without) if each == what]:
                rows = counted(len(missing), "row")
                notes.append(f"{table.path}: left out {rows} without a {what}: {table.where(missing)}")
        part = Rows([table.place(row) for row in range(len(ids))], ids, texts, labels, groups)
        parts.append(part.select([not what for what in without]))
    if not any(part.texts for part in parts):
        what = "a text and a label" if has_labels else "a text"
        raise UserError(f"{tables[0].path}: no row has {what}: choose with --text_column and --label_column")
    return Rows(*(list(chain(*column)) for column in zip(*parts, strict=True))), notes


def read_course_file(path: Path, columns: Columns, labels: list[str], is_test: bool = False) -> Examples:
    """Return the examples of a file with these columns, all of them with a text, numbered in the order of labels."""
    table = read_table(path)
    for note in table.notes:
        tell(note)
    rows, notes = read_examples([table], columns, is_test)
    if notes:
        raise UserError(notes[0])
    return number_labels(rows, labels, is_test)


# -----------------------------------------------------------------------------
# classes


def drop_labels(split: str, rows: Rows, unwanted: list[str]) -> Rows:
    """Return the rows without those of the unwanted labels, and tell which are left out.

    If no row of the test split would be left, it is unlabelled instead.
    """
    values = set(map(label_value, unwanted))
    dropped = {label for label in set(rows.labels) if label_value(label) in values}
    is_dropped = [label in dropped for label in rows.labels]
    if not dropped:
        return rows
    if all(is_dropped):
        if split == "test":
            return rows._replace(labels=[""] * len(is_dropped))
        raise UserError(f"no row of {split} is left: --drop_label names all its labels")
    places = list(compress(rows.places, is_dropped))
    file, names = places[0].rpartition(", ")[0], ", ".join(map(repr, sorted(dropped, key=label_order)))
    first = "; ".join([places[0], *(place.removeprefix(f"{file}, ") for place in places[1:5])])
    more = "; ..." if len(places) > 5 else ""
    tell(f"{split}: left out {counted(len(places), 'row')} labelled {names:.200}: {first}{more}")
    return rows.select([not each for each in is_dropped])


def name_classes(rows: Rows, wanted: list[str]) -> tuple[list[str], list[str]]:
    """Return the labels of the training file in the order of their class numbers, and the classes' names.

    wanted: --labels, which are the labels in another order, or names for labels that are numbers; or empty.
    """
    for label in sorted(set(rows.labels)):
        if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", label):
            raise UserError(f"{_place(rows, label)}: the label {label[:40]!r} has control characters: rename it")
    spelled = spellings(rows.labels)
    labels = sorted(spelled.values(), key=label_order)
    path, number = rows.places[0].rpartition(", ")[0], len(labels)
    if not 2 <= number <= MAX_CLASSES:
        problem = f"every label is {labels[0]!r}" if number == 1 else f"{number:,} different labels"
        limits = f"there must be 2 to {MAX_CLASSES:,} classes"
        raise UserError(f"{path}: {problem}, but {limits}: choose another column with --label_column")
    if not wanted or spelled.keys() == {label_value(name) for name in wanted}:
        return wanted or labels, wanted or labels
    if number == len(wanted) and all(number_in(label) is not None for label in labels):
        return labels, wanted
    raise UserError(f"--labels must list all {number} labels of {path}, in any order: {', '.join(labels)[:200]!r}")


def number_labels(rows: Rows, classes: list[str], is_test: bool = False) -> Examples:
    """Return the rows with class numbers as labels; without any if a test file has no labels or only -1."""
    numbers = class_numbers(rows.labels, classes)
    unknown = list(compress(rows.labels, numbers < 0))
    if is_test and len(unknown) == len(numbers) and set(map(label_value, set(unknown))) <= {"", -1}:
        numbers = numbers[:0]
    elif unknown:
        label = unknown[0]
        problem = f"the label {label[:60]!r} is not among {', '.join(classes)[:200]!r}"
        option = f"--drop_label {shlex.quote(printable(label[:60]))}"
        advice = f"correct it, or leave such rows out with prepare_own.py's {option}"
        if alike := [name for name in classes if look(name) == look(label)]:
            advice = f"it looks like {alike[0][:60]!r}: give them one spelling in the files"
        raise UserError(f"{_place(rows, label)}: {problem}: {advice}")
    return Examples(rows.places, rows.ids, rows.texts, numbers, rows.groups)


def _place(rows: Rows, label: str) -> str:
    return rows.places[rows.labels.index(label)]


# -----------------------------------------------------------------------------
# dev out of train


def hash_sentences(texts: list[str]) -> np.ndarray:
    """Return a hash of each text without the spaces around it: (rows,) uint64."""
    digests = (blake2b(text.strip().encode("utf-8", "replace"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), "<u8")


def choose_dev(train: Examples, names: list[str], share: float, seed: int) -> np.ndarray:
    """Choose dev's rows, the same share of each class; rows of a sentence or a group stay together: (rows,) bool."""
    labels, hint = train.labels, "add texts, change --dev_share, or pass a file with --dev"
    _, first, sentence_of_row = np.unique(hash_sentences(train.texts), return_index=True, return_inverse=True)
    if train.groups:
        in_dev = _choose_groups(labels, _connected(sentence_of_row, train.groups), share, seed)
        if not in_dev.any():
            problem = "each is too large or has all rows of a class"
            raise UserError(f"no group can be dev for a share of {share}: {problem}: {hint}")
        return in_dev
    from sklearn.model_selection import train_test_split  # takes a second to import

    counts = np.bincount(labels[first], minlength=len(names))  # of sentences, by their first label
    if counts.min() < 2:
        rare = counts.argmin()
        place, name = train.places[int(np.flatnonzero(labels == rare)[0])], names[rare]
        hint = f"add texts, leave it out with --drop_label {shlex.quote(name)}, or pass a file with --dev"
        raise UserError(f"the class {name!r} has fewer than two different texts ({place}): {hint}")
    try:
        size = math.ceil(share * len(first))
        _, dev = train_test_split(np.arange(len(first)), test_size=size, stratify=labels[first], random_state=seed)
    except ValueError:
        few = f"only {len(first):,} different texts, too few for a dev split of each of the {len(names)} classes"
        raise UserError(f"{few} with a share of {share}: {hint}") from None
    in_dev = np.isin(sentence_of_row, dev)
    left = np.bincount(labels[~in_dev], minlength=len(names))
    if left.min() == 0:
        raise UserError(f"no text of the class {names[left.argmin()]!r} is left to train on: {hint}")
    return in_dev


def _connected(sentences: np.ndarray, groups: list[str]) -> np.ndarray:
    """Return (rows,) numbers, equal for rows that share a sentence or a group, directly or through other rows."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers = np.unique(groups, return_inverse=True)[1] + len(sentences)
    edges = coo_array((np.ones(len(numbers)), (sentences, numbers)), shape=(numbers.max() + 1,) * 2)
    return connected_components(edges, directed=False)[1][sentences]


def _choose_groups(labels: np.ndarray, group_of_row: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return dev's rows, the first groups of the best of 300 random orders, as many as meet the share: (rows,) bool.

    The best is nearest to the share in all rows and in those of each class, and leaves a row of each class in train. No
    row is chosen if no order does.
    """
    random, sizes, rows = np.random.default_rng(seed), np.bincount(group_of_row), np.bincount(labels)
    best, least = np.zeros(len(labels), dtype=bool), math.inf
    for _ in range(300):
        order = random.permutation(len(sizes))
        last = np.abs(sizes[order].cumsum() - share * len(labels)).argmin()
        is_chosen = np.zeros(len(sizes), dtype=bool)
        is_chosen[order[: last + 1]] = True
        in_dev = is_chosen[group_of_row]
        found = np.bincount(labels[in_dev], minlength=len(rows))  # of each class
        difference = ((found - share * rows) ** 2).sum() + (in_dev.sum() - share * len(labels)) ** 2
        if difference < least and (found < rows)[rows > 0].all():
            best, least = in_dev, difference
    return best


def count_repeats(sentences: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """Return how many sentences, (rows,) hashes, are in several rows, and how many of them with different labels."""
    rows = Counter(sentences.tolist())
    labelled = set(zip(sentences.tolist(), labels.tolist(), strict=False))  # empty without labels
    different = Counter(sentence for sentence, _ in labelled)
    return sum(count > 1 for count in rows.values()), sum(count > 1 for count in different.values())
