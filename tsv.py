"""The rows of a task's TSV file, read one by one and each checked: a bad one is refused with its line number."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from errors import UserError

MAX_LINE = 1 << 20  # bytes; a longer line is no TSV, and reading it whole would cost its size in memory


class Row(NamedTuple):
    """One example of a TSV file."""

    line: int
    id: str
    sentence: str
    label: int | None


def read_tsv(path: Path, num_classes: int, labelled: bool) -> Iterator[Row]:
    """Yield the rows of a TSV file, reading it line by line.

    The file is UTF-8 with a header; columns `id`, `sentence` and `sentiment` are found by name and others passed over.
    Quoting is ordinary CSV quoting. Blank lines are passed over.

    Args:
        num_classes: labels must be whole numbers from 0 to num_classes - 1.
        labelled: whether the sentiment column must be there; without it, labels are None.

    Raises:
        UserError: with file and line number, at the first row that breaks the format.
    """
    start = 1  # the line on which the present record starts: a quoted sentence may span several
    rows = csv.reader(_lines(path), delimiter="\t", strict=True)
    try:
        header = next(rows, [])
        for name in ("id", "sentence", "sentiment"):
            if header.count(name) > 1 or (name not in header and (name != "sentiment" or labelled)):
                problem = "more than one column" if name in header else "no column"
                raise UserError(
                    f"{path}, line 1: {problem} {name!r}; the tab-separated header has {_short(', '.join(header))}"
                )
        id_column, sentence_column = header.index("id"), header.index("sentence")
        label_column = header.index("sentiment") if "sentiment" in header else None
        start = rows.line_num + 1
        for row in rows:
            if row:
                where = f"{path}, line {start}"
                if len(row) != len(header):
                    raise UserError(f"{where}: {len(row)} columns, but the header has {len(header)}")
                label = None if label_column is None else _label(row[label_column], num_classes, where)
                if not row[sentence_column].strip():
                    raise UserError(f"{where}: the sentence is empty, and there is nothing to classify: remove the row")
                if not row[id_column].isprintable():
                    raise UserError(f"{where}: the id {_short(row[id_column])} holds control characters")
                yield Row(start, row[id_column], row[sentence_column], label)
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


def _label(text: str, num_classes: int, where: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdecimal()):
        raise UserError(f"{where}: the label {_short(text)} is no whole number from 0 to {num_classes - 1}")
    if len(digits) > 9 or int(digits) >= num_classes:
        raise UserError(f"{where}: the label {_short(text)} is out of range: the classes are 0 to {num_classes - 1}")
    return int(digits)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
