"""Read CSV, TSV, JSON, parquet, workbooks and folders of texts as tables with line numbers, and write tables."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from classifier.errors import UserError
from classifier.files import written_whole

ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet", ".xlsx")
PACKED = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ\0": lzma.decompress}  # by their first bytes
OLD_EXCEL = bytes.fromhex("d0cf11e0a1b11ae1")
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
WRITE_PACKED = {".bz2": bz2.open, ".xz": lzma.open}
# without the time and the temporary file's name, so that the same table is the same bytes
WRITE_PACKED[".gz"] = lambda file, mode: gzip.GzipFile("", mode, fileobj=file, mtime=0)
LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
BETWEEN_OBJECTS = re.compile(r"[\s,\[\]]*")  # in an array or in JSON lines
EXPECTED = 'expected objects, one per line or in an array, like {"text": "Thank you!", "label": "praise"}'
csv.field_size_limit(2**31 - 1)  # Python's default is 128 KiB a cell


class Table(NamedTuple):
    """A file's columns. Cells are text, or the values in JSON, parquet and workbooks."""

    path: Path
    columns: list[str]
    cells: list[Sequence[Any]]  # (rows,) for each column
    lines: Sequence[int | str]  # (rows,) where each row begins, counted from 1; in a folder its file
    unit: str = "line"  # of `lines`: line; row of parquet or a workbook; file
    header: bool = False  # whether the columns' names were read from a first line
    notes: tuple[str, ...] = ()  # what the user should be told about how it was read

    def place(self, row: int) -> str:
        """Return where a row is, for a message: "my.csv, line 3"."""
        return f"{self.path}, {self.unit} {self.lines[row]}"

    def column(self, name: str) -> list[str]:
        """Return a column's cells as text, "" for null and NaN; raise a UserError for lists and objects."""
        if self.columns.count(name) > 1:
            raise UserError(f"{self.path}: more than one column is called {name!r}: rename one")
        values = _values(self.path, self.cells[self.columns.index(name)])
        return [self._text(row, name, value) for row, value in enumerate(values)]

    def _text(self, row: int, name: str, value: Any) -> str:
        if isinstance(value, str):
            # a lone surrogate, as JavaScript leaves when it cuts an emoji in two, is replaced
            return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if isinstance(value, list | dict):
            kind = "a list" if isinstance(value, list) else "an object"
            raise UserError(f"{self.place(row)}, column {name!r}: {kind}, neither text nor a number")
        if value is None or value != value:
            return ""
        return str(value).lower() if isinstance(value, bool) else str(value)


def read_table(path: Path, no_header: bool = False, quoting: str | None = None, encoding: str | None = None) -> Table:
    """Read a file, or a folder of folders of .txt files (one folder per class).

    Archives, workbooks and parquet are recognized by their content, other formats by the file's name.

    Args:
        no_header: the first line is a row; the columns are named 1, 2, 3 ...
        quoting: of CSV and TSV: "csv", "none" (quotes are text), or None to detect it.
        encoding: of text without a byte order mark; None is UTF-8.
    """
    if path.is_dir():
        return _read_folder(path, encoding)
    ending, content = _unpacked(path)
    if ending == ".parquet":
        return _read_parquet(path, content)
    if ending == ".xlsx":
        return _read_workbook(path, content, no_header)
    if ending not in ENDINGS:
        raise UserError(f"{path}: the name must end in {', '.join(ENDINGS)}, or these and .gz, .zip, .bz2, .xz")
    text = _decoded(path, content, encoding)
    del content  # as large as the text
    return _read_json(path, text) if ending.startswith(".json") else _read_csv(path, text, no_header, quoting)


def listed(unit: str, places: Sequence[int | str]) -> str:
    """Return the first five places for a message: "lines 3, 7"."""
    units = unit if len(places) == 1 else f"{unit}s"
    more = ", ..." if len(places) > 5 else ""
    return f"{units} {', '.join(map(str, places[:5]))}{more}"


def counted(number: int, unit: str) -> str:
    """Return a number with its unit: "1 row", "1,200 rows"."""
    return f"1 {unit}" if number == 1 else f"{number:,} {unit}s"


# -----------------------------------------------------------------------------
# bytes to text


def _content_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _unpacked(path: Path) -> tuple[str, bytes]:
    """Return a file's format, as the ending of a name, and its unpacked content."""
    name, content = re.sub(r"\.(gz|zip|bz2|xz)$", "", path.name.lower()), _content_of(path)
    try:
        for beginning, unpack in PACKED.items():
            content = unpack(content) if content.startswith(beginning) else content
        if content.startswith(b"PK\3\4"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                files = [file for file in archive.namelist() if file[-1] != "/" and not file.startswith("__MACOSX")]
                if "xl/workbook.xml" in files:
                    return ".xlsx", content
                if len(files) == 1:
                    name, content = files[0].lower(), archive.read(files[0])
    except Exception as error:  # each of the four libraries raises its own
        raise _broken(path, "archive", error) from None
    if content.startswith(b"PK\3\4"):
        raise UserError(f"{path} is a zip archive of {counted(len(files), 'file')}: unpack it and pass one of them")
    if content.startswith(OLD_EXCEL):
        raise UserError(f"{path} is an old Excel workbook (.xls): save it as .xlsx or .csv")
    return ".parquet" if content.startswith(b"PAR1") else Path(name).suffix, content


def _broken(path: Path, kind: str, error: Exception) -> UserError:
    return UserError(f"{path}: a broken {kind} (truncated?): {str(error) or type(error).__name__!r:.200}")


def _decoded(path: Path, content: bytes, encoding: str | None) -> str:
    for mark, name in MARKS.items():
        encoding = name if content.startswith(mark) else encoding
    if encoding is None and b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise UserError(
            f"{path}, line {line}: a NUL byte: not text, or UTF-16 without a byte order mark (add --encoding utf-16-le)"
        )
    try:
        return content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        line, start = content.count(b"\n", 0, error.start) + 1, max(error.start - 15, 0)
        if encoding is not None:
            raise UserError(f"{path}, line {line}: not valid {encoding}") from None
        around = content[start : error.start + 15].decode("cp1252", "replace")
        raise UserError(
            f"{path}, line {line}: not UTF-8. In cp1252, which older Windows programs write, it reads {around!r}: if "
            f"that is right, add --encoding cp1252, otherwise --encoding with the right name"
        ) from None
    except (LookupError, UnicodeError):
        raise UserError(f"--encoding {encoding}: no such encoding (cp1252 is one)") from None


# -----------------------------------------------------------------------------
# rows under a header: CSV, TSV, workbooks


def _under_header(path: Path, rows: Iterable[tuple[int, list]], no_header: bool, unit: str = "line") -> Table:
    """Make a table of numbered rows. Blank cells after the last column and blank rows at the end are dropped.

    An empty line is a row only if there is one column.
    """
    names, cells, lines, again, blank = [], [], array("q"), [], []
    for line, row in rows:
        is_cell = unit == "line" and len(names) == len(row) == 1  # as "" is; csv reads an empty line as no cell
        if not is_cell and not any(map(str.strip, map(str, row))):
            if len(names) == 1 or (names and row):
                blank.append(line)
            continue
        if not names:
            names = [str(number) if no_header else str(cell) for number, cell in enumerate(row, start=1)]
            cells = [[] for _ in names]
            if not no_header:
                continue
        if len(row) != len(names):
            if any(map(str.strip, map(str, row[len(names) :] or names[len(row) :]))):
                hint = ": put a text that contains the delimiter in quotes" if len(row) > len(names) else ""
                first = f"{'first row' if no_header else 'header'} has {len(names)}"
                raise UserError(f"{path}, {unit} {line}: {counted(len(row), 'column')}, but the {first}{hint}")
            row = (row + [""] * len(names))[: len(names)]
        if row[-1] == names[-1] and len(row) > 1 and not no_header:
            if [str(row[0]).lstrip("\ufeff"), *row[1:]] == names:
                again.append(line)
                continue
        lines.extend([*blank, line])
        for column, cell in zip(cells, row, strict=True):
            column += [""] * len(blank) + [cell]
        blank.clear()
    if not names:
        raise UserError(f"{path} is empty")
    notes = (f"{path}: skipped {listed(unit, again)}, a repeated header",) if again else ()
    return Table(path, names, cells, lines, unit, not no_header, notes)


def _read_workbook(path: Path, content: bytes, no_header: bool) -> Table:
    from openpyxl import load_workbook

    try:
        book = load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        rows = [["" if cell is None else cell for cell in row] for row in book.worksheets[0].values]
        width = max(map(len, rows), default=0)  # openpyxl's rows end at their last written cell
        rows = [row + [""] * (width - len(row)) for row in rows]
    except Exception as error:  # openpyxl, zipfile and the XML parser raise many kinds
        raise _broken(path, "workbook", error) from None
    table = _under_header(path, enumerate(rows, start=1), no_header, "row")
    if len(book.sheetnames) == 1:
        return table
    note = f"{path}: read only the first of {len(book.sheetnames)} sheets, {book.sheetnames[0]!r}"
    return table._replace(notes=(*table.notes, note))


def _read_csv(path: Path, text: str, no_header: bool, quoting: str | None) -> Table:
    """Read CSV as asked, or else as fits: with CSV's quotes, also with \\" inside them, or with quotes as text."""
    separator = re.match(r"sep=([,;|\t])\r?\n", text)  # Excel's
    start, delimiter = (separator.end(), separator[1]) if separator else (0, _delimiter(text))
    read = partial(_read_dialect, path, delimiter=delimiter, start=start, no_header=no_header)
    table, problem = read(text, is_quoted=quoting != "none")
    if quoting is None and '"' in text:
        if problem:
            table, _ = read(re.sub(r'(?<!\\)\\"', '""', text))
        swallowing = _swallowing(table, delimiter) if table else []
        # a writer of CSV quotes whole columns, or the few cells that need it
        quotes = text.count('\n"') + text.count(delimiter + '"')
        plain, _ = read(text, is_quoted=False) if 2 * quotes < text.count("\n") else (None, None)
        if plain and _are_quotes_text(plain, table is None or bool(swallowing), delimiter):
            note = f"{path}: read line by line, with quotes as part of the texts (if they are CSV's: --quoting csv)"
            return plain._replace(notes=(*plain.notes, note))
        if swallowing:
            note = f"{path}: a quoted text contains what look like rows: see {listed('line', swallowing)}"
            table = table._replace(notes=(*table.notes, note))
    if table is None:
        raise problem
    return table


def _delimiter(text: str) -> str:
    """Return the delimiter that cuts most rows into as many columns as the first row; of equals, into most columns."""

    def evenness(delimiter: str) -> tuple[int, int]:
        rows = csv.reader((match[0] for match in LINE.finditer(text)), delimiter=delimiter)
        widths = [len(row) for row in islice(rows, 50) if row] or [1]
        return widths.count(widths[0]) if widths[0] > 1 else 0, widths[0]

    return max("\t,;", key=evenness)


def _read_dialect(
    path: Path, text: str, delimiter: str, start: int, no_header: bool, is_quoted: bool = True
) -> tuple[Table | None, UserError | None]:
    """Return a table or an error."""
    lines = (match[0] for match in LINE.finditer(text, start))
    quoting = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    reader, first = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True), 1 + (start > 0)
    line = first

    def rows() -> Iterator[tuple[int, list[str]]]:
        nonlocal line
        for row in reader:
            yield line, row
            line = first + reader.line_num

    try:
        return _under_header(path, rows(), no_header), None
    except csv.Error as error:
        problem = "a quote that is never closed" if "unexpected end" in str(error) else "text after a closing quote"
        how = "double the quotes inside quotes, or add --quoting none to read quotes as text"
        return None, UserError(f"{path}, line {line}: {problem}: {how}")
    except UserError as error:
        return None, error


def _swallowing(table: Table, delimiter: str) -> list[int]:
    """Return the lines of rows with a cell in which some line looks like a row of its own.

    Such a line has as many cells as the header and, since texts contain commas, a cell that its column has elsewhere.
    """
    found, known = [], [set(column) - {""} for column in table.cells]
    for column in table.cells:
        for number, cell in zip(table.lines, column, strict=True):
            rows = [line.split(delimiter) for line in cell.splitlines()] if "\n" in cell else []
            rows = [row for row in rows if len(row) == len(known) > 1]
            if any(delimiter == "\t" or any(map(set.__contains__, known, row)) for row in rows):
                found.append(number)
    return found


def _are_quotes_text(plain: Table, is_broken: bool, delimiter: str) -> bool:
    """Return whether the quotes of a file that can be read line by line belong to the texts, not to CSV."""
    cells = [cell for column in plain.cells for cell in column if cell.startswith('"')]
    if any(cell.endswith('"') and '""' in cell[1:-1] for cell in cells):
        return False  # only a writer of CSV doubles quotes
    is_tsv = delimiter == "\t" and len(plain.columns) > 1
    return is_broken or (is_tsv and not all("," in cell for cell in cells))  # Excel also quotes cells with commas


# -----------------------------------------------------------------------------
# JSON, parquet, folders


def _read_json(path: Path, text: str) -> Table:
    """Read objects, one per line or in an array; each key is a column."""
    decode, columns = json.JSONDecoder().raw_decode, {}
    lines, line, end = array("q"), 1, 0
    while (begin := BETWEEN_OBJECTS.match(text, end).end()) < len(text):
        line += text.count("\n", end, begin)
        try:
            value, end = decode(text, begin)
        except (ValueError, RecursionError) as error:
            line, problem = getattr(error, "lineno", line), getattr(error, "msg", error)
            raise UserError(f"{path}, line {line}: not JSON: {problem}: {EXPECTED}") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {line}: {json.dumps(value):.40}: {EXPECTED}")
        for name in value:
            if name not in columns:
                columns[name] = [None] * len(lines)
        for name, column in columns.items():
            column.append(value.get(name))
        lines.append(line)
        line += text.count("\n", begin, end)
    if not lines:
        raise UserError(f"{path} is empty: {EXPECTED}")
    return Table(path, list(columns), list(columns.values()), lines)


def _read_parquet(path: Path, content: bytes) -> Table:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        found = ParquetFile(pyarrow.BufferReader(content)).read(use_threads=False)  # threads may abort Python's exit
        found.validate(full=True)
    except Exception as error:  # pyarrow raises many kinds
        raise _broken(path, "parquet file", error) from None
    return Table(path, found.column_names, found.columns, range(1, len(found) + 1), "row")


def _values(path: Path, cells: Sequence[Any]) -> Sequence[Any]:
    """Return a column's cells as Python values; parquet's are unpacked only here."""
    if not hasattr(cells, "to_pylist"):
        return cells
    try:
        with suppress(Exception):  # times outside Python's range raise several kinds
            return cells.to_pylist()
        return cells.cast("string").to_pylist()
    except Exception as error:
        raise UserError(f"{path}: {error}") from None


def _read_folder(path: Path, encoding: str | None) -> Table:
    files = texts_in(path)
    if not files:
        raise UserError(f"{path} is a folder without folders of .txt files, one folder per class")
    names = [f"{file.parent.name}/{file.name}" for file in files]
    texts = [_decoded(file, _content_of(file), encoding) for file in files]
    others = sum(len(visible_files(path, depth)) for depth in ("*", "*/*", "*/*/*")) - len(files)
    notes = (f"{path}: skipped {counted(others, 'file')}, not .txt files in a class's folder",) if others else ()
    cells = [names, texts, [file.parent.name for file in files]]
    return Table(path, ["id", "text", "label"], cells, names, "file", notes=notes)


def texts_in(folder: Path) -> list[Path]:
    """Return the .txt files of a folder's folders."""
    return sorted(path for path in visible_files(folder, "*/*") if path.suffix.lower() == ".txt")


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Return the matching files that are not hidden, as a Mac's ._ files are."""
    return [path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith(".")]


# -----------------------------------------------------------------------------
# writing


def ending_to_write(path: Path, table: Table, added: Iterable[str]) -> str:
    """Return write_table's format for a path, as an ending; raise an error if it cannot write the table in it."""
    ending = (path.with_suffix("") if path.suffix.lower() in WRITE_PACKED else path).suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"{path}: the name must end in {', '.join(ENDINGS)}, or text formats and .gz, .bz2, .xz")
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
    columns = [_values(path, column) for column in cells]
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
        writer = csv.writer(file, delimiter="," if ending == ".csv" else "\t", lineterminator="\n")
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
