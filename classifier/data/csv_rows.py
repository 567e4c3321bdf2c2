"""Read CSV and TSV: find the delimiter, leave out comments above the rows, decide whose the quotes are."""

import csv
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from classifier.data.content import LINE, MARK, about_marks
from classifier.data.table import Table, counted, has_usual_name, under_header, where
from classifier.errors import UserError

DELIMITERS = {"comma": ",", "semicolon": ";", "pipe": "|", "\\t": "\t", "tab": "\t"}
COMMENTS = re.compile(r"(?:#[^\r\n]*(?:\r\n?|\n)|[ \t]*(?:\r\n?|\n))*")
MARKDOWN = re.compile(r"[^\r\n]+[\r\n]+[|: ]*-[-|: ]*[\r\n]")  # a header, and a line of dashes
csv.field_size_limit(2**31 - 1)  # Python's default is 128 KiB a cell


def read_csv(path: Path, text: str, no_header: bool, quoting: str | None, delimiter: str | None) -> Table:
    """Read CSV as asked, or else as fits: with CSV's quotes, also with \\" inside them, or with quotes as text."""
    hidden, notes = 0, []
    if separator := re.match(r"sep=([,;|\t])\r?\n", text):  # Excel's; it shows no row for it
        hidden, delimiter = separator.end(), delimiter or separator[1]
    comments, start = _comments(text, hidden, no_header, delimiter)
    if comments:
        notes.append(f"{path}: skipped {counted(comments, 'line')} of comments (#) before the first row")
    if delimiter is None:
        delimiter, other = _delimiter(text, start, no_header)
        words = {character: word for word, character in DELIMITERS.items()}
        if other:
            how = f"if that is wrong, add --delimiter {words[other]}"
            notes.append(f"{path}: read with the delimiter {words[delimiter]}: {how}")
    record = sum(1 for _ in LINE.finditer(text, hidden, start)) + 1
    line, text = record + (hidden > 0), text[start:]
    if delimiter == "|" and MARKDOWN.match(text):
        raise UserError(f"{path}: a table of Markdown: remove the line of dashes below the header")

    # some writers put a blank between the delimiter and the quote
    quoted = rf'"[^"\r\n]*"(?:{re.escape(delimiter)} +"[^"\r\n]*")+[ \t]*[\r\n]'
    is_spaced = re.match(quoted, text) is not None

    def read(text: str, is_quoted: bool = True) -> Table | UserError:
        marked: list[int] = []
        hint = ": put a text that contains the delimiter in quotes, or set another --delimiter"
        try:
            quotes = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
            dialect = {"delimiter": delimiter, "quoting": quotes, "skipinitialspace": is_spaced and is_quoted}
            rows = _rows(path, text, line, record, marked, dialect)
            table = under_header(path, rows, no_header, hint=hint)
        except UserError as error:
            return error
        return table._replace(notes=(*about_marks(path, marked), *table.notes))

    table, plain = read(text, is_quoted=quoting != "none"), None
    if quoting is None and '"' in text:
        if isinstance(table, UserError):
            again = read(re.sub(r'(?<!\\)\\"', '""', text))
            table = again if isinstance(again, Table) else table
        swallowing = _swallowing(table, delimiter) if isinstance(table, Table) else []
        # a writer of CSV quotes whole columns, or the few cells that need it
        if 2 * (text.count('\n"') + text.count(delimiter + '"')) < text.count("\n"):
            plain = read(text, is_quoted=False)
        is_broken = isinstance(table, UserError) or bool(swallowing)
        if isinstance(plain, Table) and _are_quotes_text(plain, is_broken, delimiter):
            table, how = plain, "read line by line, with quotes as part of the texts (if they are CSV's: --quoting csv)"
            notes.append(f"{path}: {how}")
        elif isinstance(table, Table) and swallowing:
            notes.append(f"{path}: a quoted text contains what look like rows: see {table.where(swallowing)}")
    if isinstance(table, UserError):
        raise table
    return table._replace(notes=(*table.notes, *notes))


def _rows(
    path: Path, text: str, line: int, record: int, marked: list[int], dialect: dict[str, Any]
) -> Iterator[tuple[int, int, list[str]]]:
    """Yield each row with its line and its row in a spreadsheet.

    Args:
        line, record: those of the first row.
        marked: the lines of byte order marks before rows are added to it; the marks are left out.
        dialect: csv.reader's.
    """
    first, is_begun = line, False  # whether the reader is inside a row

    def lines() -> Iterator[str]:
        nonlocal is_begun
        for match in LINE.finditer(text):
            content = match[0] if is_begun else match[0].lstrip(MARK)
            if len(content) < len(match[0]):
                marked.append(line)
            is_begun = True
            yield content

    reader = csv.reader(lines(), strict=True, **dialect)
    try:
        for row in reader:
            yield line, record, row
            line, record, is_begun = first + reader.line_num, record + 1, False
    except csv.Error as error:
        problem = "a quote that is never closed" if "unexpected end" in str(error) else "text after a closing quote"
        how = "double the quotes inside quotes, or add --quoting none to read quotes as text"
        raise UserError(f"{path}, {where('line', [line], [record])}: {problem}: {how}") from None


def _first_rows(text: str, start: int, delimiter: str) -> list[list[str]]:
    """Return the first 50 rows but for empty ones."""
    rows = csv.reader((match[0] for match in LINE.finditer(text, start)), delimiter=delimiter)
    return [row for row in islice(rows, 50) if row]


# -----------------------------------------------------------------------------
# the delimiter, comments


def _delimiter(text: str, start: int, no_header: bool) -> tuple[str, str | None]:
    """Return the delimiter, and another one that may be meant.

    One that cuts all rows into texts and labels comes first, then the one that cuts most rows into as many columns as
    the first row; of equals, into most columns. Texts contain |, too: it comes last, and needs a header, or labels.
    """

    def fit(delimiter: str) -> tuple[bool, int, bool, int]:
        rows = _first_rows(text, start, delimiter)
        widths = list(map(len, rows)) or [1]
        even = widths.count(widths[0]) if widths[0] > 1 else 0
        are_examples = 0 < even == len(widths) and _are_examples(rows, delimiter)
        if delimiter == "|" and (not are_examples if no_header else 2 * even <= len(widths)):
            even = 0
        return are_examples, even, delimiter != "|", widths[0]

    fits = {delimiter: fit(delimiter) for delimiter in "\t,;|"}
    found, usual = max(fits, key=lambda each: fits[each]), max("\t,;", key=lambda each: fits[each][1:])
    return found, None if found == usual or (fits[usual][1] == 0 and not no_header) else usual


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


def _comments(text: str, start: int, no_header: bool, delimiter: str | None) -> tuple[int, int]:
    """Return how many lines at start are comments (#), not rows, and where the last of them ends."""
    block, number, end = COMMENTS.match(text, start), 0, start
    if not block or "#" not in block[0] or not text[block.end() :].strip():
        return 0, start
    delimiter = delimiter or _delimiter(text, block.end(), no_header)[0]
    below, *others = _first_rows(text, block.end(), delimiter)
    are_even = all(len(row) == len(below) for row in others)
    for match in LINE.finditer(text, start, block.end()):
        line = match[0]
        if line[0] != "#":
            continue
        width = len(next(csv.reader([line], delimiter=delimiter)))
        if not line.strip("# \t\r\n"):
            is_comment = True
        elif no_header:
            is_comment = are_even and width != len(below) and not line[1:2].isalnum()  # as hashtags are
        elif has_usual_name(below):
            is_comment = True
        else:  # the header may begin with #; sentences have blanks behind commas
            is_sentence = re.search("[,;|] ", line) and not any(cell[:1] == " " for cell in below)
            is_comment = not has_usual_name(re.split(r"[\t,;|]", line)) and bool(is_sentence or width != len(below))
        if not is_comment:
            break
        number, end = number + 1, match.end()
    return number, end


# -----------------------------------------------------------------------------
# quotes


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
