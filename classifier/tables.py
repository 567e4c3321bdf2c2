"""The rows of a task's file, read one by one and each checked: a bad one is refused with its line number."""

from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from classifier.errors import UserError
from classifier.formats import TSV, Format


class Source(NamedTuple):
    """Where a split's examples come from: the rows of a file, or some of them. The columns are found by name."""

    path: Path
    sentence: str = "sentence"
    label: str = "sentiment"
    id: str | None = "id"  # None: the column `id` where there is one, else the row's number, from 1
    numbers: dict[str, int] | None = None  # label -> class number; None: the labels are the numbers
    chosen: np.ndarray | None = None  # (rows of the file,) bool; None: all of them
    format: Format = TSV

    def place(self, line: int) -> str:
        """Return in words where a row stands."""
        return f"{self.path}, {self.format.unit} {line}"


class Row(NamedTuple):
    """One example of a file."""

    line: int
    id: str
    sentence: str
    label: int | str | None  # the class's number, or from read_texts the label itself


def as_source(file: Path | Source) -> Source:
    """Return a source that stands for a whole TSV file with the usual columns, or the given one.

    Raises:
        UserError: there is no such file.
    """
    source = file if isinstance(file, Source) else Source(file)
    if not source.path.is_file():
        raise UserError(f"{source.path} {'is no regular file' if source.path.exists() else 'does not exist'}")
    return source


def read_rows(file: Path | Source, num_classes: int, labelled: bool) -> Iterator[Row]:
    """Yield a split's rows, their labels as class numbers.

    Args:
        file: a TSV file with the usual columns, or a Source that says more.
        num_classes: labels must be whole numbers from 0 to num_classes - 1, unless the source has other ones.
        labelled: whether every row must have a label; otherwise all of them or none, and then labels are None.

    Raises:
        UserError: with file and line number, at the first row that breaks the format.
    """
    source = as_source(file)
    rows = read_texts(source, labelled)
    has_labels = True if labelled else None  # None: the first row will tell
    for row in rows if source.chosen is None else compress(rows, source.chosen):
        has_label = bool((row.label or "").strip())
        has_labels = has_label if has_labels is None else has_labels
        if not labelled and has_label != has_labels:
            raise UserError(
                f"{source.place(row.line)}: {'a' if has_label else 'no'} label, other than in the rows before: "
                f"label all rows or none (column {source.label!r})"
            )
        yield Row(row.line, row.id, row.sentence, _number(row, num_classes, source) if has_labels else None)


def read_texts(source: Source, labelled: bool) -> Iterator[Row]:
    """Yield all rows of a source's file, with the labels as they stand there, None where there is none.

    Raises:
        UserError: with file and line number, at the first row that breaks the format.
    """
    names = [source.id or "id", source.sentence, source.label]
    check_header(source, names, [source.id, source.sentence] + [source.label] * labelled)
    records = source.format.records(source.path, names)
    for number, (line, (id, sentence, label)) in enumerate(records, start=1):
        id = str(number) if id is None else id
        if sentence is None or not sentence.strip():
            raise UserError(
                f"{source.place(line)}: the sentence is {'missing' if sentence is None else 'empty'}, and there is "
                f"nothing to classify: remove the row (column {source.sentence!r})"
            )
        if not id.isprintable():
            raise UserError(f"{source.place(line)}: the id {_short(id)} holds control characters")
        yield Row(line, id, sentence, label)


def check_header(source: Source, names: list[str], needed: list[str | None]) -> None:
    """Raise a UserError where a file has two columns of one of the names, or none of a needed one."""
    header = source.format.columns(source.path)
    for name in names:
        if header.count(name) > 1 or (name in needed and name not in header):
            problem = "more than one column" if name in header else "no column"
            raise UserError(f"{source.place(1)}: {problem} {name!r}; {describe_header(source.format, header)}")


def describe_header(format: Format, header: list[str]) -> str:
    """Return in words which columns a file has."""
    hint = ": are these commas, not tabs?" if format is TSV and len(header) == 1 and "," in header[0] else ""
    return f"the {format.header} has {_short(', '.join(header), 200)}{hint}"


def _number(row: Row, num_classes: int, source: Source) -> int:
    """Return the class number of a row from read_texts."""
    label = (row.label or "").strip()
    if source.numbers is not None and label in source.numbers:
        return source.numbers[label]
    is_number = source.numbers is None and label.isascii() and label.isdecimal()
    if is_number and len(label) <= 9 and int(label) < num_classes:
        return int(label)
    if source.numbers is not None:
        problem = f"is none of {_short(', '.join(source.numbers))}"
    elif is_number:
        problem = f"is out of range: the classes are 0 to {num_classes - 1}"
    else:
        problem = f"is no whole number from 0 to {num_classes - 1}"
    raise UserError(
        f"{source.place(row.line)}: the label {_short(row.label or '')} {problem} (column {source.label!r})"
    )


def _short(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[: most - 3] + "...")
