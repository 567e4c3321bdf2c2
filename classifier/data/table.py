"""A file's columns with the places of its rows, and how places and numbers are named in messages."""

from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from classifier.errors import UserError

USUAL_NAMES = {  # in lower case; the second tuple counts where no column has a name of the first
    "text": (
        ("text", "sentence", "review", "content", "comment"),
        ("body", "message", "tweet", "headline", "v2", "description", "phrase"),
    ),
    "label": (
        ("label", "sentiment", "category", "class", "target"),
        ("stars", "rating", "airline_sentiment", "v1", "topic", "intent", "queue"),
    ),
}


class Table(NamedTuple):
    """A file's columns. Cells are text, or the values in JSON, parquet and workbooks."""

    path: Path
    columns: list[str]
    cells: Sequence[Any]  # for each column a list of (rows,), or of parquet an array
    lines: Sequence[int | str]  # (rows,) where each row begins, counted from 1; in a folder its file
    unit: str = "line"  # of `lines`: line; row of parquet or a workbook; file
    header: bool = False  # whether the columns' names were read from a first line
    notes: tuple[str, ...] = ()  # what the user should be told about how it was read
    records: Sequence[int] = ()  # (rows,) of CSV: each row's number in a spreadsheet

    def place(self, row: int) -> str:
        """Return where a row is, for a message: "my.csv, line 9 (row 7 in a spreadsheet)"."""
        place = f"{self.path}, {self.unit} {self.lines[row]}"
        if not self.records or self.records[row] == self.lines[row]:
            return place  # without where's lists: this is called for each row
        return f"{place} (row {self.records[row]} in a spreadsheet)"

    def where(self, rows: Sequence[int]) -> str:
        """Return where the first five of some rows are: "lines 3, 9 (rows 3, 7 in a spreadsheet)"."""
        rows = rows[:6]  # the sixth becomes "..."
        return where(self.unit, [self.lines[row] for row in rows], [self.records[row] for row in rows if self.records])

    def column(self, name: str) -> list[str]:
        """Return a column's cells as text, "" for null and NaN; raise a UserError for lists and objects."""
        if self.columns.count(name) > 1:
            raise UserError(f"{self.path}: more than one column is called {name!r}: rename one")
        values = python_values(self.path, self.cells[self.columns.index(name)])
        return [self._text(row, name, value) for row, value in enumerate(values)]

    def _text(self, row: int, name: str, value: Any) -> str:
        if isinstance(value, str):
            # a lone surrogate, as JavaScript leaves when it cuts an emoji in two, is replaced
            return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if isinstance(value, list | dict):
            kind = "a list" if isinstance(value, list) else "an object"
            hint = "a row has one text and one label, so write one value into each"
            raise UserError(f"{self.place(row)}, column {name!r}: {kind}, neither text nor a number: {hint}")
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise UserError(f"{self.place(row)}, column {name!r}: bytes that are not UTF-8") from None
        if value is None or value != value:
            return ""
        return str(value).lower() if isinstance(value, bool) else str(value)


def python_values(path: Path, cells: Any) -> Sequence[Any]:
    """Return a column's cells as Python values; parquet's are unpacked only here."""
    if not hasattr(cells, "to_pylist"):
        return cells
    try:
        with suppress(Exception):  # times outside Python's range raise several kinds
            return cells.to_pylist()
        return cells.cast("string").to_pylist()
    except Exception as error:
        raise UserError(f"{path}: {error}") from None


def under_header(
    path: Path, rows: Iterable[tuple[int, int, list]], no_header: bool, unit: str = "line", hint: str = ""
) -> Table:
    """Make a table of rows. Blank cells after the last column and blank rows at the end are dropped.

    An empty line is a row only if there is one column.

    Args:
        rows: each with its line and its row in a spreadsheet.
        hint: for an error, what to do about a row with too many cells.
    """
    names: list[str] = []
    cells: list[list] = []
    lines, records, again = array("q"), array("q"), []
    blank = 0  # rows at the end so far
    for line, record, row in rows:
        is_cell = unit == "line" and len(names) == len(row) == 1  # as "" is; csv reads an empty line as no cell
        if is_cell or any(map(str.strip, map(str, row))):
            blank = 0
        elif not names or (not row and len(names) > 1):
            continue
        else:
            row, blank = [""] * len(names), blank + 1
        if not names:
            names = [str(number) if no_header else str(cell) for number, cell in enumerate(row, start=1)]
            cells = [[] for _ in names]
            if not no_header:
                continue
        if len(row) != len(names):
            if any(map(str.strip, map(str, row[len(names) :] or names[len(row) :]))):
                first = f"{'first row' if no_header else 'header'} has {len(names)}"
                problem = f"{counted(len(row), 'column')}, but the {first}{hint if len(row) > len(names) else ''}"
                raise UserError(f"{path}, {where(unit, [line], [record])}: {problem}")
            row = (row + [""] * len(names))[: len(names)]
        if row == names and len(row) > 1 and not no_header:
            again.append((line, record))
            continue
        lines.append(line)
        records.append(record)
        for column, cell in zip(cells, row, strict=True):
            column.append(cell)
    if not names:
        raise UserError(f"{path} is empty")
    for each in (lines, records, *cells):
        del each[len(each) - blank :]
    notes = (f"{path}: skipped {where(unit, *zip(*again, strict=True))}, a repeated header",) if again else ()
    return Table(path, names, cells, lines, unit, not no_header, notes, records)


def has_usual_name(row: Iterable[str]) -> bool:
    """Return whether a row has a usual name of a column with texts or labels."""
    usual = set(chain(*chain(*USUAL_NAMES.values())))
    return any(cell.strip("# \t\r\n").lower() in usual for cell in row)


def listed(unit: str, places: Sequence[int | str]) -> str:
    """Return the first five places for a message: "lines 3, 7"."""
    units = unit if len(places) == 1 else f"{unit}s"
    more = ", ..." if len(places) > 5 else ""
    return f"{units} {', '.join(map(str, places[:5]))}{more}"


def where(unit: str, places: Sequence[int | str], records: Sequence[int]) -> str:
    """Return the first five places, with their rows in a spreadsheet where these are others."""
    others = f" ({listed('row', records)} in a spreadsheet)" if records and list(records) != list(places) else ""
    return listed(unit, places) + others


def counted(number: int, unit: str) -> str:
    """Return a number with its unit: "1 row", "1,200 rows"."""
    return f"1 {unit}" if number == 1 else f"{number:,} {unit}s"
