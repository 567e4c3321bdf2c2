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

from classifier.errors import UserError, did_you_mean
from classifier.files import written_whole

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
ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet", ".xlsx")
PACKED = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ\0": lzma.decompress}  # by their first bytes
OLD_EXCEL = bytes.fromhex("d0cf11e0a1b11ae1")
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
WRITE_PACKED = {".bz2": bz2.open, ".xz": lzma.open}
# without the time and the temporary file's name, so that the same table is the same bytes
WRITE_PACKED[".gz"] = lambda file, mode: gzip.GzipFile("", mode, fileobj=file, mtime=0)
LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
MARK = "\ufeff"  # a byte order mark, decoded; files that were put together have some in the middle
BETWEEN_OBJECTS = re.compile(rf"[\s,\[\]{MARK}]*")  # in an array or in JSON lines
DELIMITERS = {"comma": ",", "semicolon": ";", "pipe": "|", "\\t": "\t", "tab": "\t"}
MARKDOWN = re.compile(r"[^\r\n]+[\r\n]+[|: ]*-[-|: ]*[\r\n]")  # a header, and a line of dashes
FASTTEXT = re.compile(r"\s*__label__[^\s,;|]+\s")
FASTTEXT_LABELS = re.compile(r"(?:__label__\S+(?:[^\S\r\n]+|$))+")
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
        records = [self.records[row] for row in rows] if self.records else []
        return _where(self.unit, [self.lines[row] for row in rows], records)

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
            hint = "a row has one text and one label, so write one value into each"
            raise UserError(f"{self.place(row)}, column {name!r}: {kind}, neither text nor a number: {hint}")
        if value is None or value != value:
            return ""
        return str(value).lower() if isinstance(value, bool) else str(value)


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
    ending, content = _unpacked(path)
    _refuse_other_things(path, content)
    if ending == ".parquet":
        return _read_parquet(path, content)
    if ending == ".xlsx":
        return _read_workbook(path, content, no_header)
    is_fasttext = delimiter is None and b"__label__" in content[:100]
    if ending not in ENDINGS and not is_fasttext:
        raise UserError(f"{path}: the name must end in {', '.join(ENDINGS)}, or these and .gz, .zip, .bz2, .xz")
    text, notes = _decoded(path, content, encoding)
    del content  # as large as the text
    if is_fasttext and FASTTEXT.match(text) and 2 * text.count("__label__") > text.count("\n"):
        table = _read_fasttext(path, text)
    elif ending.startswith(".json") or (not (no_header or quoting or delimiter) and _is_json(text)):
        table = _read_json(path, text)
    else:
        table = _read_csv(path, text, no_header, quoting, delimiter)
    return table._replace(notes=(*notes, *table.notes))


def read_lines(path: Path, label: str, encoding: str | None = None) -> Table:
    """Read a file of which each line is a text of one class; quotes and delimiters are part of the texts."""
    _, content = _unpacked(path)
    _refuse_other_things(path, content)
    text, notes = _decoded(path, content, encoding)
    lines, marks = _lines(path, text)
    return Table(path, ["text", "label"], [lines, [label] * len(lines)], range(1, len(lines) + 1), notes=notes + marks)


def delimiter_named(name: str) -> str:
    """Return the delimiter of the option --delimiter: a character, or the word for it."""
    found = DELIMITERS.get(name.lower(), name)
    if len(found) != 1 or found in '\r\n"\0':
        raise UserError(f"--delimiter {name!r}: use comma, tab, semicolon or pipe, or another single character")
    return found


def listed(unit: str, places: Sequence[int | str]) -> str:
    """Return the first five places for a message: "lines 3, 7"."""
    units = unit if len(places) == 1 else f"{unit}s"
    more = ", ..." if len(places) > 5 else ""
    return f"{units} {', '.join(map(str, places[:5]))}{more}"


def _where(unit: str, places: Sequence[int | str], records: Sequence[int]) -> str:
    """Return the first five places, with their rows in a spreadsheet where these are others."""
    others = f" ({listed('row', records)} in a spreadsheet)" if records and list(records) != list(places) else ""
    return listed(unit, places) + others


def counted(number: int, unit: str) -> str:
    """Return a number with its unit: "1 row", "1,200 rows"."""
    return f"1 {unit}" if number == 1 else f"{number:,} {unit}s"


# -----------------------------------------------------------------------------
# bytes to text


def _content_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        meant = did_you_mean(path) if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"{path}: {error.strerror}{meant}") from None


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


def _refuse_other_things(path: Path, content: bytes) -> None:
    """Raise a UserError for what people get in place of a file: nothing, a web page, a server's error, a pointer."""
    start = content[:2000].removeprefix(codecs.BOM_UTF8).lstrip()
    if not start and not content.strip(codecs.BOM_UTF8 + b" \t\r\n"):
        raise UserError(f"{path} is empty: if it was downloaded, download it again")
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UserError(f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull` in its repository")
    if found := re.match(rb"(<!--.*?-->\s*)*<(!doctype html|html|head|\?xml|error)\b", start, re.I | re.S):
        is_page = found[2].lower() not in (b"?xml", b"error") or re.search(rb"<(!doctype )?html", start, re.I)
        raise UserError(f"{path}: this is {'HTML (a web page)' if is_page else 'XML'}, not data: download the raw file")
    if len(content) < 2000 and _is_server_error(start.decode("utf-8", "replace").strip()):
        said = start.decode("utf-8", "replace").strip()
        raise UserError(f"{path}: this is a server's error, not data ({said:.80}): download the file again")


def _is_server_error(text: str) -> bool:
    """Return whether a short text is what servers send in place of a file."""
    with suppress(ValueError):
        whole = json.loads(text)
        keys = set(whole if isinstance(whole, dict) else ())
        return bool(keys & {"error", "errors", "detail", "documentation_url"}) and not _has_usual_name(
            keys - {"message"}
        )
    return bool(re.fullmatch(r"([45]\d\d:? )?((entry|repository|file) )?not found\.?|[45]\d\d:? [a-z ]+", text, re.I))


def _decoded(path: Path, content: bytes, encoding: str | None) -> tuple[str, tuple[str, ...]]:
    """Return a file's text without NULs, and a note if there were some."""
    mark = next((mark for mark in MARKS if content.startswith(mark)), b"")
    if mark == codecs.BOM_UTF8:
        content = content.removeprefix(mark)
        with suppress(UnicodeDecodeError):
            return _without_nuls(path, content.decode("utf-8"))
    elif mark:
        encoding = MARKS[mark]
    elif encoding is None and b"\0" in content:
        raise UserError(f"{path}, line {_line_at(content, content.index(0))}: {_about_nul(content)}")
    try:
        return _without_nuls(path, content.decode(encoding or "utf-8"))
    except UnicodeDecodeError as error:
        line, start = _line_at(content, error.start), max(error.start - 15, 0)
        if encoding is not None and codecs.lookup(encoding).name != "utf-8":
            raise UserError(f"{path}, line {line}: not valid {encoding}") from None
        around = content[start : error.start + 15].decode("cp1252", "replace")
        raise UserError(
            f"{path}, line {line}: not UTF-8. In cp1252, which older Windows programs write, it reads {around!r}: if "
            f"that is right, add --encoding cp1252, otherwise --encoding with the right name"
        ) from None
    except (LookupError, UnicodeError):
        raise UserError(f"--encoding {encoding}: no such encoding (cp1252 is one)") from None


def _line_at(content: bytes, place: int) -> int:
    """Return the number of the line, counted from 1, of the byte at a place; also in UTF-16."""
    return len(re.findall(rb"\r\n?|\n", content[:place].replace(b"\0", b""))) + 1


def _about_nul(content: bytes) -> str:
    """Return what to do about NULs: in UTF-16 they are one of the two bytes of many characters."""
    even, odd = content[::2].count(0), content[1::2].count(0)
    if min(even, odd) == 0 and max(even, odd) > len(content) // 20:
        name = "utf-16-le" if odd else "utf-16-be"
        return f"a NUL byte: UTF-16 without a byte order mark: add --encoding {name}"
    return (
        "a NUL byte: if the file is text, add --encoding utf-8, which leaves NULs out, or --encoding utf-16-le for "
        "UTF-16 without a byte order mark"
    )


def _without_nuls(path: Path, text: str) -> tuple[str, tuple[str, ...]]:
    number = text.count("\0")
    return text.replace("\0", ""), (f"{path}: left out {counted(number, 'NUL character')}",) if number else ()


def _lines(path: Path, text: str) -> tuple[list[str], tuple[str, ...]]:
    """Return a text's lines without their ends, and a note if some began with a byte order mark."""
    lines = [match[0].rstrip("\r\n") for match in LINE.finditer(text)]
    marked = [number for number, line in enumerate(lines, start=1) if line.startswith(MARK)]
    return [line.lstrip(MARK) for line in lines] if marked else lines, _about_marks(path, marked)


def _about_marks(path: Path, lines: list[int]) -> tuple[str, ...]:
    """Return a note about the marks at the beginning of lines, or of objects, as files that were put together have."""
    return (f"{path}: left out a byte order mark (U+FEFF) in {listed('line', lines)}",) if lines else ()


# -----------------------------------------------------------------------------
# rows under a header: CSV, TSV, workbooks


def _under_header(
    path: Path, rows: Iterable[tuple[int, list]], no_header: bool, unit: str = "line", before: int = 0, hint: str = ""
) -> Table:
    """Make a table of numbered rows. Blank cells after the last column and blank rows at the end are dropped.

    An empty line is a row only if there is one column.

    Args:
        before: how many rows a spreadsheet shows before the first one.
        hint: for an error, what to do about a row with too many cells.
    """
    names, cells, lines, records, again, blank = [], [], array("q"), array("q"), [], []
    for record, (line, row) in enumerate(rows, start=before + 1):
        is_cell = unit == "line" and len(names) == len(row) == 1  # as "" is; csv reads an empty line as no cell
        if not is_cell and not any(map(str.strip, map(str, row))):
            if len(names) == 1 or (names and row):
                blank.append((line, record))
            continue
        if not names:
            names = [str(number) if no_header else str(cell) for number, cell in enumerate(row, start=1)]
            cells = [[] for _ in names]
            if not no_header:
                continue
        if len(row) != len(names):
            if any(map(str.strip, map(str, row[len(names) :] or names[len(row) :]))):
                first = f"{'first row' if no_header else 'header'} has {len(names)}"
                problem = f"{counted(len(row), 'column')}, but the {first}{hint if len(row) > len(names) else ''}"
                raise UserError(f"{path}, {_where(unit, [line], [record])}: {problem}")
            row = (row + [""] * len(names))[: len(names)]
        if row[-1] == names[-1] and len(row) > 1 and not no_header:
            if row == names:
                again.append((line, record))
                continue
        for numbers in (*blank, (line, record)):
            lines.append(numbers[0])
            records.append(numbers[1])
        for column, cell in zip(cells, row, strict=True):
            column += [""] * len(blank) + [cell]
        blank.clear()
    if not names:
        raise UserError(f"{path} is empty")
    notes = (f"{path}: skipped {_where(unit, *zip(*again, strict=True))}, a repeated header",) if again else ()
    return Table(path, names, cells, lines, unit, not no_header, notes, records)


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


def _read_csv(path: Path, text: str, no_header: bool, quoting: str | None, delimiter: str | None) -> Table:
    """Read CSV as asked, or else as fits: with CSV's quotes, also with \\" inside them, or with quotes as text."""
    separator = re.match(r"sep=([,;|\t])\r?\n", text)  # Excel's; it shows no row for it
    hidden = separator.end() if separator else 0
    delimiter = delimiter or (separator[1] if separator else None)
    start, notes = _after_comments(path, text, hidden, no_header, delimiter)
    if delimiter is None:
        delimiter, more = _delimiter(path, text, start, no_header)
        notes += more
    if delimiter == "|" and MARKDOWN.match(text, start):
        raise UserError(f"{path}: a table of Markdown: remove the line of dashes below the header")
    before = sum(1 for _ in LINE.finditer(text, hidden, start))
    places = {"start": start, "before": before, "first": before + 1 + (hidden > 0)}
    read = partial(_read_dialect, path, delimiter=delimiter, no_header=no_header, **places)
    table, problem = read(text, is_quoted=quoting != "none")
    if quoting is None and '"' in text:
        if problem:
            table, _ = read(re.sub(r'(?<!\\)\\"', '""', text))
        swallowing = _swallowing(table, delimiter) if table else []
        # a writer of CSV quotes whole columns, or the few cells that need it
        quotes = text.count('\n"') + text.count(delimiter + '"')
        plain, _ = read(text, is_quoted=False) if 2 * quotes < text.count("\n") else (None, None)
        if plain and _are_quotes_text(plain, table is None or bool(swallowing), delimiter):
            table = plain
            notes += (
                f"{path}: read line by line, with quotes as part of the texts (if they are CSV's: --quoting csv)",
            )
        elif swallowing:
            notes += (f"{path}: a quoted text contains what look like rows: see {table.where(swallowing)}",)
    if table is None:
        raise problem
    return table._replace(notes=(*table.notes, *notes))


def _rows(text: str, start: int, delimiter: str) -> list[list[str]]:
    """Return the first 50 rows but for empty ones."""
    rows = csv.reader((match[0] for match in LINE.finditer(text, start)), delimiter=delimiter)
    return [row for row in islice(rows, 50) if row]


def _delimiter(path: Path, text: str, start: int, no_header: bool) -> tuple[str, tuple[str, ...]]:
    """Return the delimiter, and a note if another one may be meant.

    It is the one that cuts most rows into as many columns as the first row; of equals, into most columns. One that cuts
    all rows, into texts and labels, comes first. Texts contain |, too: it comes last, and needs a header, or labels.
    """

    def fit(delimiter: str) -> tuple:
        rows = _rows(text, start, delimiter)
        widths = list(map(len, rows)) or [1]
        even = widths.count(widths[0]) if widths[0] > 1 else 0
        fits = 0 < even == len(widths)
        are_examples = fits and _are_examples(rows, delimiter)
        if delimiter == "|" and (not are_examples if no_header else 2 * even <= len(widths)):
            even, fits = 0, False
        return are_examples, fits, even > 0, delimiter != "|", even, widths[0]

    fits = {delimiter: fit(delimiter) for delimiter in "\t,;|"}
    usual, found = max("\t,;", key=lambda delimiter: fits[delimiter][4:]), max(fits, key=fits.get)
    if found == usual or (fits[usual][4] == 0 and not no_header):
        return found, ()
    words = {character: word for word, character in DELIMITERS.items()}
    how = f"if that is wrong, add --delimiter {words[usual]}"
    return found, (f"{path}: read with the delimiter {words[found]}: {how}",)


def _are_examples(rows: list[list[str]], delimiter: str) -> bool:
    """Return whether rows of one width have a column of labels (some repeated), and one of longer, more various texts.

    Commas in sentences are followed by blanks.
    """
    columns = list(zip(*rows, strict=True))
    if delimiter in ",;" and any(all(cell[:1] == " " for cell in cells) for cells in columns):
        return False
    found = [(len(set(cells)), sum(map(len, cells))) for cells in columns]
    labels = [(kinds, size) for kinds, size in found if 1 < kinds <= len(rows) // 2]
    return any(kinds < others and size < longer for kinds, size in labels for others, longer in found)


def _after_comments(
    path: Path, text: str, start: int, no_header: bool, delimiter: str | None
) -> tuple[int, tuple[str, ...]]:
    """Return where the lines that begin with # and are not split like the others end, and a note about them."""
    block = re.compile(r"(?:#[^\r\n]*(?:\r\n?|\n)|[ \t]*(?:\r\n?|\n))+").match(text, start)
    if not block or "#" not in block[0] or not text[block.end() :].strip():
        return start, ()
    lines, number = [match for match in LINE.finditer(text, start, block.end()) if match[0][0] == "#"], 0
    if len(lines) > 100:
        return start, ()  # texts
    usual = delimiter or _delimiter(path, text, block.end(), no_header)[0]
    widths = list(map(len, _rows(text, block.end(), usual)))
    width = widths[0] if not no_header or 1 < widths.count(widths[0]) == len(widths) else 1
    for count, line in enumerate(lines, start=1):
        row, *others = _rows(text, line.start(), delimiter or _delimiter(path, text, line.start(), no_header)[0])
        other = next((each for each in others if each[0][:1] != "#"), row)
        is_alike = len(row) == len(other) and (len(row) > 1 or width == 1)
        if no_header:
            is_alike = is_alike or line[0][1:2].isalnum()  # a hashtag
        elif is_alike:
            if _has_usual_name(row):
                break  # the header
            is_prose = row[0][:2] == "# " and any(cell[:1] == " " for cell in row[1:])
            is_alike = not _has_usual_name(other) and not (is_prose and not any(cell[:1] == " " for cell in other))
        number = number if is_alike else count
    if not number:
        return start, ()
    return lines[number - 1].end(), (f"{path}: skipped {counted(number, 'line')} of comments (#) before the first row",)


def _has_usual_name(row: Iterable[str]) -> bool:
    """Return whether a row has a usual name of a column with texts or labels."""
    usual = set(chain(*chain(*USUAL_NAMES.values())))
    return any(cell.strip("# \t\r\n").lower() in usual for cell in row)


def _read_dialect(
    path: Path,
    text: str,
    delimiter: str,
    start: int,
    before: int,
    first: int,
    no_header: bool,
    is_quoted: bool = True,
) -> tuple[Table | None, UserError | None]:
    """Return a table or an error.

    Args:
        before: how many rows a spreadsheet shows before start.
        first: the number of the line at start.
    """
    is_begun, marked = False, []  # whether the reader is inside a row; the lines of marks before rows

    def lines() -> Iterator[str]:
        nonlocal is_begun
        for match in LINE.finditer(text, start):
            line = match[0]
            if not is_begun and line[0] == MARK:
                marked.append(first + reader.line_num)
                line = line.lstrip(MARK)
            is_begun = True
            yield line

    def rows() -> Iterator[tuple[int, list[str]]]:
        nonlocal is_begun, line, record
        for row in reader:
            yield line, row
            line, record, is_begun = first + reader.line_num, record + 1, False

    quoting = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    source = lines() if MARK in text else (match[0] for match in LINE.finditer(text, start))
    reader = csv.reader(source, delimiter=delimiter, quoting=quoting, strict=True)
    line, record = first, before + 1
    hint = ": put a text that contains the delimiter in quotes, or set another --delimiter"
    try:
        table = _under_header(path, rows(), no_header, before=before, hint=hint)
        return table._replace(notes=(*_about_marks(path, marked), *table.notes)), None
    except csv.Error as error:
        problem = "a quote that is never closed" if "unexpected end" in str(error) else "text after a closing quote"
        how = "double the quotes inside quotes, or add --quoting none to read quotes as text"
        return None, UserError(f"{path}, {_where('line', [line], [record])}: {problem}: {how}")
    except UserError as error:
        return None, error


def _swallowing(table: Table, delimiter: str) -> list[int]:
    """Return the rows with a cell in which some line looks like a row of its own.

    Such a line has as many cells as the header and, since texts contain commas, a cell that its column has elsewhere.
    """
    found, known = [], [set(column) - {""} for column in table.cells]
    for column in table.cells:
        for number, cell in enumerate(column):
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
# fastText, JSON, parquet, folders


def _read_fasttext(path: Path, text: str) -> Table:
    """Read lines as `__label__praise Thank you!`; several labels of a line are joined by commas."""
    lines, notes = _lines(path, text)
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
    if not (begin := re.match(r'[\s\[]*\{\s*"', text)):
        return False
    with suppress(ValueError, RecursionError):
        _, end = json.JSONDecoder().raw_decode(text, text.index("{", 0, begin.end()))
        end = BETWEEN_OBJECTS.match(text, end).end()
        return text[end : end + 1] in ("", "{")
    return False


def _read_json(path: Path, text: str) -> Table:
    """Read objects, one per line or in an array, or in a list in the only object; each key is a column."""
    decode, columns = json.JSONDecoder().raw_decode, {}
    lines, line, end, marked = array("q"), 1, 0, []
    while (begin := BETWEEN_OBJECTS.match(text, end).end()) < len(text):
        is_marked = MARK in text[end:begin]
        line += text.count("\n", end, begin)
        if is_marked:
            marked.append(line)
        try:
            value, end = decode(text, begin)
        except (ValueError, RecursionError) as error:
            line, problem = getattr(error, "lineno", line), getattr(error, "msg", error)
            raise UserError(f"{path}, line {line}: not JSON: {problem}: {EXPECTED}") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {line}: {json.dumps(value):.40}: {EXPECTED}")
        _add_object(columns, value, len(lines))
        lines.append(line)
        line += text.count("\n", begin, end)
    if not lines:
        raise UserError(f"{path} is empty: {EXPECTED}")
    if len(lines) == 1 and (inside := _objects_inside(path, value)):
        objects, notes = inside
        columns.clear()
        for number, each in enumerate(objects):
            _add_object(columns, each, number)
        return Table(path, list(columns), list(columns.values()), range(1, len(objects) + 1), "row", notes=notes)
    return Table(path, list(columns), list(columns.values()), lines, notes=_about_marks(path, marked))


def _add_object(columns: dict[str, list], value: dict, rows: int) -> None:
    """Add an object to columns that have some rows."""
    for name in value:
        if name not in columns:
            columns[name] = [None] * rows
    for name, column in columns.items():
        column.append(value.get(name))


def _objects_inside(path: Path, whole: dict) -> tuple[list[dict], tuple[str, ...]] | None:
    """Return the rows in an answer of the Hugging Face hub's viewer, or the only list of objects; and notes."""

    def are_objects(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)

    rows = whole.get("rows")
    if are_objects(rows) and all(isinstance(row.get("row"), dict) for row in rows):
        notes, total = [], whole.get("num_rows_total")
        if (isinstance(total, int) and total > len(rows)) or whole.get("truncated") or whole.get("partial"):
            of = f"{len(rows):,} of {total:,} rows" if isinstance(total, int) else f"the first {len(rows):,} rows"
            notes.append(f"{path}: only {of} are in it: download the whole data set, for example as parquet")
        if cut := [number for number, row in enumerate(rows, start=1) if row.get("truncated_cells")]:
            notes.append(f"{path}: the viewer has cut texts short in {listed('row', cut)}")
        return [row["row"] for row in rows], tuple(notes)
    lists = [name for name, value in whole.items() if are_objects(value)]
    if len(lists) != 1 or _has_usual_name([name for name in whole if name not in lists]):
        return None
    others = ", ".join(repr(name) for name in whole if name not in lists)
    return whole[lists[0]], (f"{path}: read the list {lists[0]!r}, not {others:.200}",) if others else ()


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
    decoded = [_decoded(file, _content_of(file), encoding) for file in files]
    others = sum(len(visible_files(path, depth)) for depth in ("*", "*/*", "*/*/*")) - len(files)
    notes = [f"{path}: skipped {counted(others, 'file')}, not .txt files in a class's folder"] if others else []
    cells = [names, [text for text, _ in decoded], [file.parent.name for file in files]]
    notes += chain(*(more for _, more in decoded))
    return Table(path, ["id", "text", "label"], cells, names, "file", notes=tuple(notes))


def texts_in(folder: Path) -> list[Path]:
    """Return the .txt files of a folder's folders."""
    return sorted(path for path in visible_files(folder, "*/*") if path.suffix.lower() == ".txt")


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Return the matching files that are not hidden, as a Mac's ._ files are."""
    return [path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith(".")]


# -----------------------------------------------------------------------------
# writing


def ending_of(path: Path) -> str:
    """Return the ending that names a path's format, in lower case: ".csv" of new.csv.gz."""
    return (path.with_suffix("") if path.suffix.lower() in WRITE_PACKED else path).suffix.lower()


def ending_to_write(path: Path, table: Table, added: Iterable[str]) -> str:
    """Return write_table's format for a path, as an ending; raise an error if it cannot write the table in it."""
    ending = ending_of(path)
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
