"""The kinds of files that rows come in, each read row by row and checked: what is broken is refused with its line."""

import codecs
import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import compress, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from classifier.errors import UserError, printable

MAX_LINE = 1 << 20  # bytes; a longer line is no table's, and reading it whole would cost its size in memory
BATCH_ROWS = 1024  # of a parquet file, in memory at once
KINDS = {"\t": "tab", ",": "comma", ";": "semicolon"}

Record = tuple[int, Sequence[str | None]]  # a line's (parquet: a row's) number, and its cells; None: there is none


class Format(NamedTuple):
    """How one kind of file is read. What is wrong with a file is a UserError that names the file and the place."""

    unit: str  # what its places are counted in, from 1 on
    header: str  # what names its columns, in words
    columns: Callable[[Path], list[str]]  # all columns' names
    records: Callable[[Path, list[str]], Iterator[Record]]  # the rows, with the cells of the columns that are named


def format_of(path: Path) -> Format:
    """Return the format that a file's name tells.

    Raises:
        UserError: it tells none.
    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        return PARQUET
    for suffix, format in FORMATS.items():
        if name.removesuffix(".gz").endswith(suffix):
            return format
    raise UserError(f"{path}: its name must end in {', '.join(FORMATS)} (or one of these and .gz), or .parquet")


# -----------------------------------------------------------------------------
# lines of text


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file with their ends, each decoded on its own so that an error has a line number.

    It is UTF-8, or UTF-16 where a byte order mark says so; and compressed if its name ends in .gz.
    """
    is_gzip = path.name.lower().endswith(".gz")
    size = None if is_gzip else os.path.getsize(path)
    number = 1
    with (
        gzip.open(path) if is_gzip else open(path, "rb") as f,
        tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=None, leave=False) as bar,
    ):
        encoding = "UTF-8"
        try:
            is_utf16 = f.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            f.seek(0)
            encoding = "UTF-16" if is_utf16 else "UTF-8"
            for line in _utf8_of_utf16(f) if is_utf16 else iter(lambda: f.readline(MAX_LINE + 1), b""):
                bar.update(len(line))
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)  # the byte order mark of some editors
                if len(line) > MAX_LINE:
                    raise UserError(f"{path}, line {number}: longer than {MAX_LINE:,} bytes: is this a text file?")
                if b"\0" in line:
                    raise UserError(f"{path}, line {number}: a NUL byte: no text, or UTF-16 without its mark")
                yield line.decode("utf-8")
                number += 1
        except UnicodeDecodeError as error:
            where = f" (byte {error.start + 1} of the line)" if encoding == "UTF-8" else ""
            raise UserError(f"{path}, line {number}: not valid {encoding}{where}") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}, line {number}: not a whole gzip file: {error}") from None


def _utf8_of_utf16(f: BinaryIO) -> Iterator[bytes]:
    """Yield lines of UTF-16 as UTF-8; what is no character stays none, so that its line is refused."""
    text = io.TextIOWrapper(f, "utf-16", errors="surrogatepass", newline="\n")
    return iter(lambda: text.readline(MAX_LINE + 1).encode("utf-8", "surrogatepass"), b"")


# -----------------------------------------------------------------------------
# TSV and CSV


def _delimited_rows(path: Path, delimiters: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the header and the rows, each with the line on which it starts: a quoted cell may span several.

    Args:
        delimiters: of these, the one that cuts the header into most columns.
    """
    start = 1
    delimiter = max(delimiters, key=lambda delimiter: _width(path, delimiter)) if delimiters[1:] else delimiters
    rows = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if row or start == 1:  # blank lines are passed over
                yield start, row
            start = rows.line_num + 1
    except csv.Error as error:
        problem = str(error)
        if "field limit" in problem:
            problem = f"a field of over {csv.field_size_limit():,} characters (an unclosed quote?)"
        elif "unexpected end" in problem:
            problem = "a quoted field that is never closed"
        elif "universal-newline" in problem:
            problem = "a carriage return that neither ends a line nor stands in quotes (line ends of old Macs?)"
        kind = KINDS[delimiter]
        raise UserError(f"{path}, line {start}: not {kind}-separated values: {problem}") from None


def _width(path: Path, delimiter: str) -> int:
    """Return into how many columns a delimiter cuts the header; 0 where it cannot be the delimiter."""
    try:
        return len(next(csv.reader(_lines(path), delimiter=delimiter, strict=True), []))
    except csv.Error:
        return 0


def _delimited_columns(path: Path, delimiters: str) -> list[str]:
    _, header = next(_delimited_rows(path, delimiters), (1, []))
    if not header:
        raise UserError(f"{path}, line 1: no header: the first line must name the columns, and it is empty")
    return header


def _delimited_records(path: Path, names: list[str], delimiters: str) -> Iterator[Record]:
    rows = _delimited_rows(path, delimiters)
    _, header = next(rows, (1, []))
    # a column that is not there is one after the last, where every row gets a None
    cells_of = itemgetter(*(header.index(name) if name in header else len(header) for name in names))
    for line, row in rows:
        if len(row) != len(header):
            hint = "" if delimiters == "\t" or len(row) < len(header) else ": is there a text that needs quotes?"
            raise UserError(f"{path}, line {line}: {len(row)} columns, but the header has {len(header)}{hint}")
        yield line, cells_of([*row, None])


# -----------------------------------------------------------------------------
# JSON lines


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield a file's objects, each with its line."""
    expected = 'each line must be an object of its own, as {"text": "Thank you!", "label": "praise"}'
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            value = decoder.decode(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not JSON: {error.msg}, at character {error.colno}: {expected}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {number}: {_kind(value)}: {expected}")
        yield number, value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.60} stands there twice")
    return found


def _json_columns(path: Path) -> list[str]:
    for _, first in _objects(path):
        return list(first)
    raise UserError(f"{path}: no examples")


def _json_records(path: Path, names: list[str]) -> Iterator[Record]:
    lines = f"{path}, line"
    for line, found in _objects(path):
        yield line, _cells(names, map(found.get, names), lines, line)


def _cells(names: list[str], values: Iterable[Any], unit: str, number: int) -> list[str | None]:
    """Return a row's values of JSON or parquet as the cells that a TSV file would have."""
    cells = []
    for name, value in zip(names, values, strict=True):
        try:
            cells.append(_cell(value))
        except ValueError as error:
            raise UserError(f"{unit} {number}, column {name!r}: {error}") from None
    return cells


def _cell(value: Any) -> str | None:
    """Return a value as the text of a TSV file's cell; None for null and NaN.

    Raises:
        ValueError: it is neither text nor a number nor true or false, or longer than a cell of a TSV file may be.
    """
    if value is None or value != value:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{_kind(value)}, neither text nor a number")
    if len(value) > csv.field_size_limit():
        raise ValueError(f"over {csv.field_size_limit():,} characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a character, the lone surrogate {value[error.start]!r}") from None
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", type(None): "null", str: "a text", bool: "a truth value"}
    return names.get(type(value), f"a value of type {type(value).__name__}")


# -----------------------------------------------------------------------------
# parquet


def _parquet_columns(path: Path) -> list[str]:
    with _open_parquet(path) as file:
        if not file.metadata.num_rows:
            raise UserError(f"{path}: no examples")
        return file.schema_arrow.names


def _parquet_records(path: Path, names: list[str]) -> Iterator[Record]:
    row, rows = 0, f"{path}, row"
    with (
        _open_parquet(path) as file,
        tqdm(total=file.metadata.num_rows, desc=path.name, unit=" rows", disable=None, leave=False) as bar,
    ):
        there = [name for name in names if name in file.schema_arrow.names]
        try:
            for batch in file.iter_batches(BATCH_ROWS, columns=there):
                cells = [batch.column(name).to_pylist() if name in there else repeat(None) for name in names]
                for row, values in enumerate(zip(*cells, strict=False), start=row + 1):  # noqa: B020
                    yield row, _cells(names, values, rows, row)
                bar.update(len(batch))
        except UserError:
            raise
        except Exception as error:  # whatever pyarrow says of damage
            raise UserError(f"{path}, after row {row}: cannot be read: {_in_a_line(error)}") from None


def _open_parquet(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: parquet files need one more package: pip install pyarrow") from None
    try:
        return ParquetFile(path, buffer_size=1 << 20)  # bytes; without it, whole columns would be read at once
    except Exception as error:  # whatever pyarrow says of damage
        raise UserError(f"{path}: no parquet file, or a broken one: {_in_a_line(error)}") from None


def _in_a_line(error: Exception) -> str:
    return printable(" ".join(str(error).split())[:200])


def _delimited(header: str, delimiters: str) -> Format:
    columns = partial(_delimited_columns, delimiters=delimiters)
    return Format("line", header, columns, partial(_delimited_records, delimiters=delimiters))


TSV = _delimited("tab-separated header", "\t")
CSV = _delimited("header", ",;\t")
PARQUET = Format("row", "schema", _parquet_columns, _parquet_records)
FORMATS = {".tsv": TSV, ".csv": CSV, ".jsonl": Format("line", "first object", _json_columns, _json_records)}


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
