"""Read files of texts as tables: CSV, TSV, JSON, fastText's lines, parquet, workbooks and folders."""

import io
import json
import re
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from classifier.data.content import MARK, about_marks, broken, bytes_of, content_of, decoded, lines_of
from classifier.data.csv_rows import DELIMITERS, read_csv
from classifier.data.table import Table, counted, has_usual_name, listed, under_header
from classifier.errors import UserError

ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet", ".xlsx")
NEXT_OBJECT = re.compile(rf"[^\s,\[\]{MARK}]")  # in an array or in JSON lines
FASTTEXT = re.compile(r"\s*__label__[^\s,;|]+\s")
FASTTEXT_LABELS = re.compile(r"(?:__label__\S+(?:[^\S\r\n]+|$))+")
EXPECTED = 'expected objects, one per line or in an array, like {"text": "Thank you!", "label": "praise"}'


def read_table(
    path: Path,
    no_header: bool = False,
    quoting: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> Table:
    """Read a file, or a folder of folders of .txt files (one folder per class).

    Archives, workbooks, parquet and fastText's lines are recognized by their content, other formats by the file's name.

    Args:
        no_header: the first line is a row; the columns are named 1, 2, 3 ...
        quoting: of CSV and TSV: "csv", "none" (quotes are text), or None to detect it.
        encoding: of text without a byte order mark; None is UTF-8.
        delimiter: the character between the columns of CSV and TSV, or None to detect it.
    """
    if path.is_dir():
        return _read_folder(path, encoding)
    ending, content = content_of(path)
    if ending == ".parquet":
        return _read_parquet(path, content)
    if ending == ".xlsx":
        return _read_workbook(path, content, no_header)
    is_fasttext = delimiter is None and b"__label__" in content[:100]
    if ending not in ENDINGS and not is_fasttext:
        raise UserError(f"{path}: the name must end in {', '.join(ENDINGS)} (text also packed: .gz, .zip, .bz2, .xz)")
    text, notes = decoded(path, content, encoding)
    del content  # as large as the text
    if is_fasttext and FASTTEXT.match(text) and 2 * text.count("__label__") > text.count("\n"):
        table = _read_fasttext(path, text)
    elif ending.startswith(".json") or (not (no_header or quoting or delimiter) and _is_json(text)):
        table = _read_json(path, text)
    else:
        table = read_csv(path, text, no_header, quoting, delimiter)
    return table._replace(notes=(*notes, *table.notes))


def read_lines(path: Path, label: str, encoding: str | None = None) -> Table:
    """Read a file of which each line is a text of one class; quotes and delimiters are part of the texts."""
    _, content = content_of(path)
    text, notes = decoded(path, content, encoding)
    lines, marks = lines_of(path, text)
    return Table(path, ["text", "label"], [lines, [label] * len(lines)], range(1, len(lines) + 1), notes=notes + marks)


def delimiter_named(name: str) -> str:
    """Return the delimiter of the option --delimiter: a character, or the word for it."""
    found = DELIMITERS.get(name.lower(), name)
    if len(found) != 1 or found in '\r\n"\0':
        raise UserError(f"--delimiter {name!r}: use comma, tab, semicolon or pipe, or another single character")
    return found


# -----------------------------------------------------------------------------
# one format each


def _read_fasttext(path: Path, text: str) -> Table:
    """Read lines as `__label__praise Thank you!`; several labels of a line are joined by commas."""
    lines, notes = lines_of(path, text)
    numbers, texts, labels = array("q"), [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = FASTTEXT_LABELS.match(line.lstrip())
        if not found:
            raise UserError(f"{path}, line {number}: no __label__ at its beginning, as the first line has")
        numbers.append(number)
        labels.append(",".join(word.removeprefix("__label__") for word in found[0].split()))
        texts.append(line.lstrip()[found.end() :])
    return Table(path, ["text", "label"], [texts, labels], numbers, notes=notes)


def _is_json(text: str) -> bool:
    """Return whether a text begins with an object of JSON, and another one or its end follows."""
    if re.match(r'[\s\[]*\{\s*"', text):
        with suppress(ValueError, RecursionError):
            _, end = json.JSONDecoder().raw_decode(text, text.index("{"))
            following = NEXT_OBJECT.search(text, end)
            return not following or following[0] == "{"
    return False


def _read_json(path: Path, text: str) -> Table:
    """Read objects, one per line or in an array, or in a list in the only object, or its columns."""
    lines, marked = array("q"), list[int]()
    columns = _columns(_objects(path, text, lines, marked))
    if not lines:
        raise UserError(f"{path} is empty: {EXPECTED}")
    only = {name: cells[0] for name, cells in columns.items()} if len(lines) == 1 else {}
    wide = [list(value.values()) if isinstance(value, dict) else value for value in only.values()]
    if has_usual_name(only) and all(isinstance(cells, list) and len(cells) == len(wide[0]) for cells in wide):
        return Table(path, list(only), wide, range(1, len(wide[0]) + 1), "row")  # a column each, as pandas writes them
    if only and (inside := _objects_inside(path, only)):
        objects, notes = inside
        columns = _columns(objects)
        return Table(path, list(columns), list(columns.values()), range(1, len(objects) + 1), "row", notes=notes)
    return Table(path, list(columns), list(columns.values()), lines, notes=about_marks(path, marked))


def _objects(path: Path, text: str, lines: array, marked: list[int]) -> Iterator[dict[str, Any]]:
    """Yield a text's objects; add the line of each to lines, and to marked if a byte order mark is before it."""
    decode, line, end = json.JSONDecoder().raw_decode, 1, 0
    while found := NEXT_OBJECT.search(text, end):
        begin = found.start()
        line += text.count("\n", end, begin)
        if MARK in text[end:begin]:
            marked.append(line)
        try:
            value, end = decode(text, begin)
        except (ValueError, RecursionError) as error:
            line, problem = getattr(error, "lineno", line), getattr(error, "msg", error)
            raise UserError(f"{path}, line {line}: not JSON: {problem}: {EXPECTED}") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {line}: {json.dumps(value):.40}: {EXPECTED}")
        lines.append(line)
        yield value
        line += text.count("\n", begin, end)


def _columns(objects: Iterable[dict[str, Any]]) -> dict[str, list]:
    """Return the values of each key, None where an object does not have it."""
    columns: dict[str, list] = {}
    for number, each in enumerate(objects):
        for name in each:
            if name not in columns:
                columns[name] = [None] * number
        for name, column in columns.items():
            column.append(each.get(name))
    return columns


def _objects_inside(path: Path, whole: dict[str, Any]) -> tuple[list[dict], tuple[str, ...]] | None:
    """Return the rows in an answer of the Hugging Face hub's viewer, or the only list of objects; and notes."""
    lists = {name: value for name, value in whole.items() if isinstance(value, list) and value}
    lists = {name: value for name, value in lists.items() if all(isinstance(each, dict) for each in value)}
    rows = lists.get("rows", [{}])
    if all(isinstance(row.get("row"), dict) for row in rows):
        notes, total = [], whole.get("num_rows_total")
        if (isinstance(total, int) and total > len(rows)) or whole.get("truncated") or whole.get("partial"):
            of = f"{len(rows):,} of {total:,} rows" if isinstance(total, int) else f"the first {len(rows):,} rows"
            notes.append(f"{path}: only {of} are in it: download the whole data set, for example as parquet")
        if cut := [number for number, row in enumerate(rows, start=1) if row.get("truncated_cells")]:
            notes.append(f"{path}: the viewer has cut texts short in {listed('row', cut)}")
        return [row["row"] for row in rows], tuple(notes)
    others = [name for name in whole if name not in lists]
    if len(lists) != 1 or has_usual_name(others):
        return None
    ((name, objects),) = lists.items()
    unread = ", ".join(map(repr, others))
    return objects, (f"{path}: read the list {name!r}, not {unread:.200}",) if others else ()


def _read_parquet(path: Path, content: bytes) -> Table:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        found = ParquetFile(pyarrow.BufferReader(content)).read(use_threads=False)  # threads may abort Python's exit
        found.validate(full=True)
    except Exception as error:  # pyarrow raises many kinds
        raise broken(path, "parquet file", error) from None
    return Table(path, found.column_names, found.columns, range(1, len(found) + 1), "row")


def _read_workbook(path: Path, content: bytes, no_header: bool) -> Table:
    from openpyxl import load_workbook

    try:
        book = load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        rows = [["" if cell is None else cell for cell in row] for row in book.worksheets[0].values]
        width = max(map(len, rows), default=0)  # openpyxl's rows end at their last written cell
        numbered = ((number, number, row + [""] * (width - len(row))) for number, row in enumerate(rows, start=1))
    except Exception as error:  # openpyxl, zipfile and the XML parser raise many kinds
        raise broken(path, "workbook", error) from None
    table = under_header(path, numbered, no_header, "row")
    if len(book.sheetnames) == 1:
        return table
    note = f"{path}: read only the first of {len(book.sheetnames)} sheets, {book.sheetnames[0]!r}"
    return table._replace(notes=(*table.notes, note))


def _read_folder(path: Path, encoding: str | None) -> Table:
    files = texts_in(path)
    if not files:
        raise UserError(f"{path} is a folder without folders of .txt files, one folder per class")
    names = [f"{file.parent.name}/{file.name}" for file in files]
    contents = [decoded(file, bytes_of(file), encoding) for file in files]
    others = sum(len(visible_files(path, depth)) for depth in ("*", "*/*", "*/*/*")) - len(files)
    notes = [f"{path}: skipped {counted(others, 'file')}, not .txt files in a class's folder"] if others else []
    cells = [names, [text for text, _ in contents], [file.parent.name for file in files]]
    notes += chain(*(more for _, more in contents))
    return Table(path, ["id", "text", "label"], cells, names, "file", notes=tuple(notes))


def texts_in(folder: Path) -> list[Path]:
    """Return the .txt files of a folder's folders."""
    return sorted(path for path in visible_files(folder, "*/*") if path.suffix.lower() == ".txt")


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Return the matching files that are not hidden, as a Mac's ._ files are."""
    return [path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith(".")]
