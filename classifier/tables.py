"""The rows of a task's TSV file, read one by one and each checked: a bad one is refused with its line number."""

import csv
import os
from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from classifier.errors import UserError

MAX_LINE = 1 << 20  # bytes; a longer line is no TSV, and reading it whole would cost its size in memory


class Source(NamedTuple):
    """Where a split's examples come from: the rows of a TSV file, or some of them. The columns are found by name."""

    path: Path
    sentence: str = "sentence"
    label: str = "sentiment"
    id: str | None = "id"  # None: the column `id` where there is one, else the row's number, from 1
    numbers: dict[str, int] | None = None  # label -> class number; None: the labels are the numbers
    chosen: np.ndarray | None = None  # (rows of the file,) bool; None: all of them


class Row(NamedTuple):
    """One example of a TSV file."""

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


def read_tsv(file: Path | Source, num_classes: int, labelled: bool) -> Iterator[Row]:
    """Yield a split's rows, their labels as class numbers.

    Args:
        num_classes: labels must be whole numbers from 0 to num_classes - 1, unless the source has other ones.
        labelled: whether the label's column must be there; without it, labels are None.

    Raises:
        UserError: with file and line number, at the first row that breaks the format.
    """
    source = as_source(file)
    rows = read_texts(source, labelled)
    for row in rows if source.chosen is None else compress(rows, source.chosen):
        label = None if row.label is None else _number(row, num_classes, source)
        yield Row(row.line, row.id, row.sentence, label)


def read_texts(source: Source, labelled: bool) -> Iterator[Row]:
    """Yield all rows of a source's file, with the labels as they stand there, reading it line by line.

    The file is UTF-8 with a header. Quoting is ordinary CSV quoting. Blank lines and other columns are passed over.

    Raises:
        UserError: with file and line number, at the first row that breaks the format.
    """
    path, number = source.path, 0
    start = 1  # the line on which the present record starts: a quoted sentence may span several
    rows = csv.reader(_lines(path), delimiter="\t", strict=True)
    try:
        header = next(rows, [])
        needed = [source.id, source.sentence] + [source.label] * labelled
        for name in (source.id or "id", source.sentence, source.label):
            if header.count(name) > 1 or (name in needed and name not in header):
                problem = "more than one column" if name in header else "no column"
                hint = ": are these commas, not tabs?" if len(header) == 1 and "," in header[0] else ""
                found = _short(", ".join(header)) + hint
                raise UserError(f"{path}, line 1: {problem} {name!r}; the tab-separated header has {found}")
        columns = {name: column for column, name in enumerate(header)}
        id_column, sentence_column, label_column = map(columns.get, (source.id or "id", source.sentence, source.label))
        start = rows.line_num + 1
        for row in rows:
            if row:
                if len(row) != len(header):
                    raise UserError(f"{path}, line {start}: {len(row)} columns, but the header has {len(header)}")
                number += 1
                id = str(number) if id_column is None else row[id_column]
                sentence = row[sentence_column]
                label = None if label_column is None else row[label_column]
                if not sentence.strip():
                    raise UserError(
                        f"{path}, line {start}: the sentence is empty, and there is nothing to classify: remove the row"
                    )
                if not id.isprintable():
                    raise UserError(f"{path}, line {start}: the id {_short(id)} holds control characters")
                yield Row(start, id, sentence, label)
            start = rows.line_num + 1
    except csv.Error as error:
        problem = str(error)
        if "field limit" in problem:
            problem = f"a field of over {csv.field_size_limit():,} characters (an unclosed quote?)"
        elif "unexpected end" in problem:
            problem = "a quoted field that is never closed"
        elif "universal-newline" in problem:
            problem = "a carriage return inside a field without quotes"
        raise UserError(f"{path}, line {start}: not tab-separated values: {problem}") from None


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their ends, each decoded on its own so that an error has a line number."""
    bar = tqdm(total=os.path.getsize(path), desc=path.name, unit="B", unit_scale=True, disable=None, leave=False)
    with open(path, "rb") as f, bar:
        number = 0
        while line := f.readline(MAX_LINE + 1):
            number += 1
            bar.update(len(line))
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark of some editors
            if len(line) > MAX_LINE:
                raise UserError(f"{path}, line {number}: longer than {MAX_LINE:,} bytes: is this a text file?")
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: not valid UTF-8 (byte {error.start + 1} of the line)"
                ) from None


def _number(row: Row, num_classes: int, source: Source) -> int:
    """Return the class number of a row from read_texts."""
    label = row.label.strip()
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
    raise UserError(f"{source.path}, line {row.line}: the label {_short(row.label)} {problem}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
