"""Write tables: CSV, TSV, JSON, parquet and workbooks."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from classifier.data.rows import ENDINGS
from classifier.data.table import Table, python_values
from classifier.errors import UserError
from classifier.files import written_whole

WRITE_PACKED: dict[str, Callable] = {
    ".bz2": bz2.open,
    ".xz": lzma.open,
    # without the time and the temporary file's name, so that the same table is the same bytes
    ".gz": lambda file, mode: gzip.GzipFile("", mode, fileobj=file, mtime=0),
}


def ending_of(path: Path) -> str:
    """Return the ending that names a path's format, in lower case: ".csv" of new.csv.gz."""
    return (path.with_suffix("") if path.suffix.lower() in WRITE_PACKED else path).suffix.lower()


def ending_to_write(path: Path, table: Table, added: Iterable[str]) -> str:
    """Return write_table's format for a path, as an ending; raise an error if it cannot write the table in it."""
    ending = ending_of(path)
    if ending not in ENDINGS:
        raise UserError(f"{path}: the name must end in {', '.join(ENDINGS)} (text also packed: .gz, .bz2, .xz)")
    if taken := [name for name in added if name in table.columns]:
        raise UserError(f"{table.path} has a column {taken[0]!r} already: rename it")
    if ending.startswith((".json", ".parquet")) and len(set(table.columns)) < len(table.columns):
        raise UserError(f"{table.path} has two columns of one name, which {ending} cannot hold: write .csv, or rename")
    if package := {".parquet": "pyarrow", ".xlsx": "openpyxl"}.get(ending):
        import_module(package)
    for cells in table.cells:
        if ending == ".parquet":
            _arrow_column(path, cells)
        if ending == ".xlsx" and (len(cells) >= 2**20 or any(len(str(cell)) > 32767 for cell in cells)):
            limits = "1,048,575 rows under a header, and 32,767 characters in a cell"
            raise UserError(f"{path}: more than a workbook can hold, {limits}: write .csv")
    return ending


def write_table(path: Path, ending: str, table: Table, more: dict[str, Sequence[Any]]) -> None:
    """Write a table and more columns, whole or not at all; None and NaN become empty. ending: ending_to_write's."""
    packed = WRITE_PACKED.get(path.suffix.lower())
    names, cells = [*table.columns, *more], [*table.cells, *more.values()]
    columns = [python_values(path, column) for column in cells]
    rows = ([None if cell is None or cell != cell else cell for cell in row] for row in zip(*columns, strict=True))
    with written_whole(path) as file:
        if ending == ".parquet":
            import pyarrow.parquet

            arrays = [_arrow_column(path, column) for column in cells]
            pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, names), file)
        elif ending == ".xlsx":
            _write_workbook(file, chain([names], map(_lists_as_json, rows)))
        else:
            with packed(file, "wb") if packed else nullcontext(file) as content:
                # a lone surrogate, which UTF-8 cannot encode, becomes JSON's escape
                text = io.TextIOWrapper(content, "utf-8", errors="backslashreplace", newline="")
                _write_text(text, ending, names, rows)


def _lists_as_json(row: list) -> list:
    """Return a row's cells with lists and objects as JSON text."""
    return [json.dumps(cell, ensure_ascii=False) if isinstance(cell, list | dict) else cell for cell in row]


def _arrow_column(path: Path, cells: Sequence[Any]) -> Any:
    """Return a column for parquet."""
    import pyarrow

    if isinstance(cells, pyarrow.ChunkedArray):
        return cells
    if not all(isinstance(cell, str) for cell in cells):  # numbers of a workbook, with blank cells between them
        cells = [None if isinstance(cell, str) and not cell else cell for cell in cells]
    try:
        return pyarrow.array(cells, from_pandas=True)
    except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError) as error:  # mixed types; lone surrogates
        raise UserError(f"{path}: {error}: parquet cannot hold that, .jsonl can") from None


def _write_workbook(file: IO, rows: Iterable[list]) -> None:
    """Write rows; a text that begins with = stays text, and characters that XML cannot hold are replaced."""
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = Workbook(write_only=True)
    sheet = book.create_sheet()

    def cell(value: Any) -> Any:
        if value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**15):
            return value  # Excel keeps 15 digits: longer numbers are written as text
        text = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("\ufffd", str(value)))
        text.data_type = "s"
        return text

    for row in rows:
        sheet.append(list(map(cell, row)))
    book.save(file)


def _write_text(file: io.TextIOWrapper, ending: str, names: list[str], rows: Iterable[list]) -> None:
    if ending in (".csv", ".tsv", ".txt"):
        # told that rows end with both, csv puts a cell with either into quotes
        end_of_row = SimpleNamespace(write=lambda row: file.write(row.removesuffix("\r\n") + "\n"))
        writer = csv.writer(end_of_row, delimiter="," if ending == ".csv" else "\t", lineterminator="\r\n")
        writer.writerow(names)
        writer.writerows(map(_lists_as_json, rows))
    else:
        objects = (dict(zip(names, row, strict=True)) for row in rows)
        lines = (json.dumps(each, ensure_ascii=False, default=str) for each in objects)
        if ending == ".jsonl":
            file.writelines(line + "\n" for line in lines)
        else:
            file.write("[\n" + ",\n".join(lines) + "\n]\n")
    file.flush()
    file.detach()  # the caller closes the file below it
