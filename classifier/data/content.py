"""Read files' bytes: unpack archives, refuse what is no data, decode text."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import zipfile
from contextlib import suppress
from pathlib import Path

from classifier.data.table import counted, has_usual_name, listed
from classifier.errors import UserError, did_you_mean

PACKED = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ\0": lzma.decompress}  # by their first bytes
OLD_EXCEL = bytes.fromhex("d0cf11e0a1b11ae1")
PAGE = re.compile(rb"<(!doctype html|html|head|\?xml|error)\b", re.I)
SERVERS_WORDS = re.compile(r"([45]\d\d:? )?((entry|repository|file) )?not found\.?|[45]\d\d:? [a-z ]+", re.I)
LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
MARK = "\ufeff"  # a byte order mark, decoded; files that were put together have some in the middle


def bytes_of(path: Path) -> bytes:
    """Return a file's bytes as they are."""
    try:
        return path.read_bytes()
    except OSError as error:
        meant = did_you_mean(path) if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"{path}: {error.strerror}{meant}") from None


def content_of(path: Path) -> tuple[str, bytes]:
    """Return a file's format, as the ending of a name, and its unpacked content."""
    name, content = re.sub(r"\.(gz|zip|bz2|xz)$", "", path.name.lower()), bytes_of(path)
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
        raise broken(path, "archive", error) from None
    if content.startswith(b"PK\3\4"):
        raise UserError(f"{path} is a zip archive of {counted(len(files), 'file')}: unpack it and pass one of them")
    if content.startswith(OLD_EXCEL):
        raise UserError(f"{path} is an old Excel workbook (.xls): save it as .xlsx or .csv")
    _refuse_other_things(path, content)
    return ".parquet" if content.startswith(b"PAR1") else Path(name).suffix, content


def broken(path: Path, kind: str, error: Exception) -> UserError:
    """Return the error for a file that a library cannot read."""
    return UserError(f"{path}: a broken {kind} (truncated?): {str(error) or type(error).__name__!r:.200}")


def _refuse_other_things(path: Path, content: bytes) -> None:
    """Raise a UserError for what people get in place of a file: nothing, a web page, a server's error, a pointer."""
    start = content[:2000].removeprefix(codecs.BOM_UTF8).lstrip()
    if not start and not content.strip(codecs.BOM_UTF8 + b" \t\r\n"):
        raise UserError(f"{path} is empty: if it was downloaded, download it again")
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UserError(f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull` in its repository")
    page = start
    while page.startswith(b"<!--") and b"-->" in page:  # comments above it
        page = page.partition(b"-->")[2].lstrip()
    if found := PAGE.match(page):
        is_page = found[1].lower() not in (b"?xml", b"error") or re.search(rb"<(!doctype )?html", start, re.I)
        raise UserError(f"{path}: this is {'HTML (a web page)' if is_page else 'XML'}, not data: download the raw file")
    said = start.decode("utf-8", "replace").strip()
    if len(content) < 2000 and _is_server_error(said):
        raise UserError(f"{path}: this is a server's error, not data ({said:.80}): download the file again")


def _is_server_error(text: str) -> bool:
    with suppress(ValueError, RecursionError):
        whole = json.loads(text)
        keys = set(whole if isinstance(whole, dict) else ())
        is_error = bool(keys & {"error", "errors", "detail", "documentation_url"})
        return is_error and not has_usual_name(keys - {"message"})
    return bool(SERVERS_WORDS.fullmatch(text))


def decoded(path: Path, content: bytes, encoding: str | None) -> tuple[str, tuple[str, ...]]:
    """Return a file's text without NULs, and a note if there were some."""
    if content.startswith(codecs.BOM_UTF8):
        content = content.removeprefix(codecs.BOM_UTF8)
        with suppress(UnicodeDecodeError):
            return _without_nuls(path, content.decode("utf-8"))
    elif content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "utf-32"
    elif content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif encoding is None and b"\0" in content:
        raise UserError(f"{path}, line {_line_at(content, content.index(0))}: a NUL byte: {_about_nuls(content)}")
    try:
        text, notes = _without_nuls(path, content.decode(encoding or "utf-8"))
        return text, (*notes, *_about_utf8(path, content, text, encoding))
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


def _about_nuls(content: bytes) -> str:
    """Return what to do about NULs: in UTF-16 they are one of the two bytes of many characters."""
    even, odd = content[::2].count(0), content[1::2].count(0)
    if min(even, odd) == 0 and max(even, odd) > len(content) // 20:
        return f"UTF-16 without a byte order mark: add --encoding {'utf-16-le' if odd else 'utf-16-be'}"
    text = "if the file is text, add --encoding utf-8, which leaves NULs out"
    return f"{text}, or --encoding utf-16-le for UTF-16 without a byte order mark"


def _about_utf8(path: Path, content: bytes, text: str, encoding: str | None) -> list[str]:
    """Return a note if a file is UTF-8 after all, and was read as something else, as was asked."""
    if encoding in (None, "utf-8") or content.isascii() or b"\0" in content:
        return []
    with suppress(UnicodeDecodeError):
        if content.decode() != text:
            return [
                f"note: {path} is valid UTF-8, but was read as {encoding} (--encoding): save all files in one encoding"
            ]
    return []


def _without_nuls(path: Path, text: str) -> tuple[str, tuple[str, ...]]:
    number = text.count("\0")
    return text.replace("\0", ""), (f"{path}: left out {counted(number, 'NUL character')}",) if number else ()


def lines_of(path: Path, text: str) -> tuple[list[str], tuple[str, ...]]:
    """Return a text's lines without their ends, and a note if some began with a byte order mark."""
    lines = [match[0].rstrip("\r\n") for match in LINE.finditer(text)]
    marked = [number for number, line in enumerate(lines, start=1) if line.startswith(MARK)]
    return [line.lstrip(MARK) for line in lines], about_marks(path, marked)


def about_marks(path: Path, lines: list[int]) -> tuple[str, ...]:
    """Return a note about the marks at the beginning of lines, or of objects, as files that were put together have."""
    return (f"{path}: left out a byte order mark (U+FEFF) in {listed('line', lines)}",) if lines else ()
