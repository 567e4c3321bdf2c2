"""Each kind of file gives the same rows, no row is dropped without a message, and a refusal says what to do."""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import refuse, visible
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prepare_own import examples, run, write  # noqa: F401, run is a fixture

from classifier.data.dataset import load_meta, load_split
from classifier.data.own import choose_columns, row_text
from classifier.data.rows import read_table
from classifier.errors import UserError

# -----------------------------------------------------------------------------
# the same rows, whatever the file


def delimited(rows: list[dict], delimiter: str, line_end: str = "\n") -> str:
    buffer = io.StringIO()
    # Python's writer leaves a lone carriage return unquoted, which no reader then takes for part of the field
    quoting = csv.QUOTE_ALL if any("\r" in str(cell) for row in rows for cell in row.values()) else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def json_lines(rows: list[dict], **options) -> str:
    return "".join(json.dumps(row, **options) + "\n" for row in rows)


def zipped(name: str, content: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("__MACOSX/._x", "of a Mac")
        archive.writestr(name, content)
    return buffer.getvalue()


def parquet(rows: list[dict]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    buffer = io.BytesIO()
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


WRITERS = {  # file name -> its content
    "a.tsv": lambda rows: delimited(rows, "\t").encode(),
    "b.tsv.gz": lambda rows: gzip.compress(delimited(rows, "\t", "\r\n").encode("utf-8-sig")),
    "c.csv": lambda rows: delimited(rows, ",").encode("utf-8-sig"),
    "d.CSV": lambda rows: b"sep=;\r\n" + delimited(rows, ";", "\r\n").encode(),
    "e.txt": lambda rows: delimited(rows, ";", "\r\n").encode("utf-16"),
    "f.csv": lambda rows: b"\xfe\xff" + delimited(rows, "\t").encode("utf-16-be"),
    "g.csv.bz2": lambda rows: bz2.compress(delimited(rows, ",").encode()),
    "h.jsonl": lambda rows: json_lines(rows).encode(),
    "i.jsonl.xz": lambda rows: lzma.compress(json_lines(rows, ensure_ascii=False).encode("utf-8-sig")),
    "j.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "k.zip": lambda rows: zipped("folder/k.jsonl", json_lines(rows)),
    "l.csv": lambda rows: zipped("l.csv", delimited(rows, ",")),  # not what its name says
}
if find_spec("pyarrow"):
    WRITERS["m.parquet"] = parquet
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from(',;\t"\r\n {}[]é😀')
TEXTS = st.text(CHARACTERS, min_size=1, max_size=40).filter(str.strip)
ROWS = st.sampled_from([[0, 1], ["complaint", " a, b", '"c;d"', "é"]]).flatmap(
    lambda labels: st.lists(  # of numbers or of words, since a column of parquet has one type
        st.fixed_dictionaries({"ID": st.integers(0, 9**9), "Text": TEXTS, "Label": st.sampled_from(labels)}),
        min_size=1,
        max_size=8,
    )
)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_the_same_rows_are_read_from_every_format(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    for name, writer in WRITERS.items():
        (folder / name).write_bytes(writer(rows))
        table = read_table(folder / name, quoting="csv")
        found = list(zip(*(table.column(column) for column in ("ID", "Text", "Label")), strict=True))
        assert found == [(str(row["ID"]), row["Text"], str(row["Label"])) for row in rows], name


def test_the_same_rows_give_the_same_files_in_every_format(run):  # noqa: F811
    texts = ['so; "good",\r\nso\rtrue', "\ufeff\tx", " 1", "{}", '"', "a,b;c\td", "é😀\u2028", "\n\n.", "null"]
    rows = [{"ID": 3 * i, "Text": f"{text}{i}", "Label": i % 2} for i, text in enumerate(texts * 5)]
    found = {}
    for name, writer in WRITERS.items():
        Path(name).write_bytes(writer(rows))
        run("--train", name, "--test", name, "--overwrite")  # the dev split is set aside
        found[name] = {file: content for file, content in visible(Path("data/x")).items() if file != "meta.json"}
        assert load_meta("data/x")["label_names"] == ["0", "1"]
    assert all(each == found["a.tsv"] for each in found.values()) and len(found["a.tsv"]) == 12
    assert [(id, text) for id, text, _ in examples("test")] == [(str(row["ID"]), row["Text"]) for row in rows]


def test_rows_have_their_lines_whatever_they_span(tmp_path):
    for name, content, lines in [
        ("a.csv", '\nid,text\r\n1,"two\r\nlines"\r\n\r\n,\r\n2,x\n3,y\n,\n', [3, 6, 7, 8]),
        ("a.jsonl", '{"text": "a"}\n\n{"text": "b"}', [1, 3]),
        ("a.json", '[\n {\n"text": "a"},\n{"text": "b"}]', [2, 4]),
    ]:
        (tmp_path / name).write_bytes(content.encode())
        table = read_table(tmp_path / name)
        assert list(table.lines) == lines and table.place(1) == f"{tmp_path / name}, line {lines[1]}"
    table = table_of(tmp_path, f"text,label,notes\ra,x,{'n' * 200_000}\r\n{'b' * 140_000},y,\n")
    assert list(map(len, table.column("text"))) == [1, 140_000] and table.column("label") == ["x", "y"]


def test_values_of_json_become_text_where_they_are_asked_for(tmp_path):
    rows = [{"text": 5, "label": True}, {"label": 1.5, "text": None, "more": [1]}, {"text": float("nan"), "label": "é"}]
    (tmp_path / "a.jsonl").write_text(json_lines(rows) + '{"text": "cut \\ud83d", "label": 0}')
    table = read_table(tmp_path / "a.jsonl")
    assert table.columns == ["text", "label", "more"] and table.cells[1] == [True, 1.5, "é", 0]  # as they stand there
    assert table.column("text") == ["5", "", "", "cut \ufffd"] and table.column("label") == ["true", "1.5", "é", "0"]


def test_a_folder_of_folders_has_a_class_in_each(run):  # noqa: F811
    for split, name, text in [("train", "pos", "fine"), ("train", "neg", "dull"), ("test", "pos", "so\nso")]:
        Path(split, name).mkdir(parents=True)
        Path(split, name, "0_9.txt" if split == "train" else "0_9.TXT").write_text(text)
    Path("train/readme.txt").write_text("not an example")
    assert "train: skipped 1 file, not .txt files in a" in run("--train", "train", "--dev", "train", "--test", "test")
    assert load_meta("data/x")["label_names"] == ["neg", "pos"]
    assert examples("train") == [("neg/0_9.txt", "dull", 0), ("pos/0_9.txt", "fine", 1)]
    assert examples("test") == [("pos/0_9.TXT", "so\nso", 1)]
    source = load_meta("data/x")["splits"]["test"]["source"]
    assert source["name"] == "test" and source["sha256"] == hashlib.sha256(b"so\nso").hexdigest()


def test_a_workbook_is_read_whatever_its_name(run):  # noqa: F811
    book = pytest.importorskip("openpyxl", reason="needs openpyxl").Workbook()
    for row in (["Text", "Stars", None], ["fine", 5, None], [None] * 3, ["dull", 1.0, None], ["so", 3.5, None]):
        book.active.append(row)
    book.create_sheet().append(["other"])
    book.save("a.csv")
    printed = " ".join(run("--train", "a.csv", "--dev", "a.csv").split())
    assert "a.csv: read only the first of 2 sheets, 'Sheet'" in printed
    assert "left out 1 row without a text: row 3" in printed  # blank, but none of those at the end
    assert examples("train") == [("1", "fine", 2), ("3", "dull", 0), ("4", "so", 1)]
    assert load_meta("data/x")["label_names"] == ["1", "3.5", "5"]


# -----------------------------------------------------------------------------
# headers and columns


def table_of(tmp_path, content: str):
    (tmp_path / "a.csv").write_text(content)
    return read_table(tmp_path / "a.csv")


CHOSEN = {  # file: text, label, and what is said of them
    "Text,LABEL,topic,message\n": ("Text", "LABEL", "by its name", "by its name"),
    "date, Comment ,author,Category": (" Comment ", "Category", "by its name", "by its name"),
    "v1,v2,,\nham,hi,,": ("v2", "v1", "by its name", "by its name"),
    "mood,ID,content\ngood,1,a": ("content", "mood", "by its name", "the only other column"),
    "target,poem\n1,a": ("poem", "target", "the only other column", "by its name"),
    "poem,mood\na,good\nb,good": ("poem", "mood", "of two columns", "of two columns"),
    ",mood,poem\n0,good,a\n1,good,b": ("poem", "mood", "of two columns", "of two columns"),
}
UNCLEAR = {  # file: the option that is asked for
    "text,review,label\na,b,c": ("--text_column", "'text' and 'review' could both be the texts"),
    "text,label,Label\na,b,c": ("--label_column", "'label' and 'Label' could both be the labels"),
    "poem,mood,author\na,b,c": ("--text_column", "no column has a usual name for texts"),
    "text,mood,author\na,b,c": ("--label_column", "no column has a usual name for labels"),
    "text\na": ("--label_column", "no column has a usual name for labels"),
}


@pytest.mark.parametrize("content", CHOSEN)
def test_columns_are_found_by_their_names_or_as_a_lone_pair(tmp_path, content):
    found, reasons = choose_columns(table_of(tmp_path, content), {})
    text, label, why_text, why_label = CHOSEN[content]
    assert found == {"text": [text], "label": [label]}
    assert f"texts in {text!r} ({why_text})" in reasons and f"labels in {label!r} ({why_label})" in reasons


@pytest.mark.parametrize("content", UNCLEAR)
def test_what_is_unclear_is_refused_with_the_option_and_a_value_of_each_column(tmp_path, content):
    option, problem = UNCLEAR[content]
    with pytest.raises(UserError) as error:
        choose_columns(table_of(tmp_path, content), {})
    names = content.partition("\n")[0].split(",")
    values = ", ".join(f"{name!r} (as {value!r})" for name, value in zip(names, "abc", strict=False))
    assert f"a.csv: {problem}: choose with {option} among {values}" in str(error.value)


def test_the_training_file_s_columns_hold_for_all_files_in_any_case(run):  # noqa: F811
    Path("a.csv").write_text("Poem,Mood,key,text\nfine,good,n1,x\ndull,bad,n2,x\n")
    Path("d.jsonl").write_text('{"mood": "bad", "poem": "hm", "text": "y", "KEY": 1}\n')
    Path("t.tsv").write_text("POEM\tkey\nwhat\tn3\n")
    named = ["--text_column", "poem", "--label_column", "Mood", "--id_column"]
    printed = run("--train", "a.csv", "--dev", "d.jsonl", "--test", "t.tsv", *named, "key")
    assert printed.startswith("columns: texts in 'Poem' (--text_column), labels in 'Mood' (--label_column), ids\n")
    assert examples("train") == [("n1", "fine", 1), ("n2", "dull", 0)] and examples("dev") == [("1", "hm", 0)]
    assert load_split("data/x", "test").ids() == ["n3"]
    with pytest.raises(UserError, match="d.jsonl: no column 'text' among 'mood' .as 'bad'., 'poem' .as 'hm'."):
        Path("d.jsonl").write_text('{"mood": "bad", "poem": "hm"}\n')
        run("--train", "a.csv", "--dev", "d.jsonl", *named, "text")


def test_several_columns_are_joined_by_line_ends(run):  # noqa: F811
    Path("a.csv").write_text("title,body,label\nBus,It is late.,0\n,Only a body.,1\nOnly a title,,0\n")
    run("--train", "a.csv", "--dev", "a.csv", "--text_column", "Title", "body")
    assert [text for _, text, _ in examples("train")] == ["Bus\nIt is late.", "Only a body.", "Only a title"]
    assert row_text(["It is\nlate. ", " \t", "", "Bus"]) == "It is\nlate. \nBus" and row_text([" ", ""]) == ""
    with pytest.raises(UserError, match="data/x was not prepared from body of a.csv"):
        run("--train", "a.csv", "--dev", "a.csv")


NO_HEADER = {  # file -> the column of the texts
    "labels first": ("a.tsv", "ham\tThe soup was warm\nspam\tWin a boat\nham\tSee you\n", "2"),
    "numbers": ("a.csv", "7,soup\n8,boat\n8,late\n1,2\n", "2"),
    "a label with a usual name": ("a.tsv", "comment\tsoup\nquestion\ttea?\ncomment\tboat\n", "2"),
}


@pytest.mark.parametrize("name, content, text", NO_HEADER.values(), ids=NO_HEADER.keys())
def test_a_missing_header_is_told_and_no_row_is_lost(run, name, content, text):  # noqa: F811
    Path(name).write_text(content)
    with pytest.raises(UserError, match=f"{name}: the first line looks like an example, .*: add --no_header"):
        run("--train", name, "--dev", name)
    label = str(3 - int(text))
    run("--train", name, "--dev", name, "--no_header", "--text_column", text, "--label_column", label)
    assert len(examples("train")) == content.count("\n")
    if name == "a.tsv":  # the labels are the column with fewer different values
        assert f"texts in '{text}' (of two columns)" in run("--train", name, "--dev", name, "--no_header")


def test_a_header_that_looks_like_an_example_is_taken_where_its_names_are_given(run):  # noqa: F811
    Path("a.csv").write_text("0,What did you like?\ngood,soup\nbad,tea\n")
    run("--train", "a.csv", "--dev", "a.csv", "--text_column", "What did you like?", "--label_column", "0")
    assert examples("train") == [("1", "soup", 1), ("2", "tea", 0)]


def test_several_files_are_one_and_a_header_among_the_rows_is_passed_over(run):  # noqa: F811
    Path("a.csv").write_text("text,label\na,0\nb,1\n")
    Path("b.csv").write_text("Label,Text\n1,c\nLabel,Text\n0,d\n")
    printed = run("--train", "a.csv", "b.csv", "--train", "a.csv", "--dev", "b.csv")
    assert "b.csv: skipped line 3, a repeated header\n" in printed
    assert [id for id, _, _ in examples("train")] == list("123456")
    assert [text for _, text, _ in examples("train")] == list("abcdab") and len(examples("dev")) == 2
    assert load_meta("data/x")["splits"]["train"]["source"]["name"] == "a.csv + b.csv + a.csv"
    with pytest.raises(UserError, match=r"b.csv: skipped line 3, a repeated header \(--strict\)"):
        run("--train", "a.csv", "b.csv", "--overwrite", "--strict")


# -----------------------------------------------------------------------------
# quotes

QUOTES = {  # file -> its texts: "_" stands for the delimiter
    "a quote swallows rows": ('text_label\n"a_x\nb_y\nc"_x\nd_y\ne_x\nf_y\n', ['"a', "b", 'c"', "d", "e", "f"]),
    "a quote is never closed": ('label_text\nx_"a\ny_b\nx_c\n', ['"a', "b", "c"]),
    "text after a closing quote": ('text_label\n"a" b_x\nc_y\nd_x\n', ['"a" b', "c", "d"]),
    "a quote inside": ('text_label\na "b" c_x\nd_y\n', ['a "b" c', "d"]),
    "CSV's": ('text_label\n"a ""b""\nc"_x\nd_y\ne_x\n', ['a "b"\nc', "d", "e"]),
    "CSV's, of two lines": ('text_label\n"a\nb"_x\nd_y\ne_x\n', ["a\nb", "d", "e"]),
    "commas": ('text_label\n"Hi,\nthanks"_x\n"All, best,\nbye"_y\na_x\n', ["Hi,\nthanks", "All, best,\nbye", "a"]),
    "backslashes": ('text_label\n"a \\"b\\" c"_x\n"d\\e"_y\n', ['a "b" c', "d\\e"]),
}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("content, texts", QUOTES.values(), ids=QUOTES.keys())
def test_quotes_are_csvs_or_the_texts_own(tmp_path, content, texts, delimiter):
    table = table_of(tmp_path, content.replace("_", delimiter))
    assert table.column("text") == texts and set(table.column("label")) == {"x", "y"}
    lines_are_rows = '"a' in texts or '"a" b' in texts
    assert [note for note in table.notes if "--quoting csv" in note] == list(table.notes)
    assert len(table.notes) == lines_are_rows


def test_an_author_s_quotes_stay_in_a_tsv_and_those_of_excel_go(tmp_path):
    rest = "".join(f"text {i}\tx\n" for i in range(9))
    table = table_of(tmp_path, 'text\tlabel\n"To be or not to be"\tx\n' + rest)
    assert table.column("text")[0] == '"To be or not to be"' and "--quoting csv" in table.notes[0]
    table = table_of(tmp_path, 'text\tlabel\n"To be, or not to be"\tx\n' + rest)
    assert table.column("text")[0] == "To be, or not to be" and not table.notes
    table = table_of(tmp_path, 'text,label\n"To be"\t,x\n' + rest.replace("\t", ","))
    assert len(table.lines) == 10


def test_rows_that_quotes_swallow_are_told_where_the_file_cannot_be_read_line_by_line(tmp_path):
    table = table_of(tmp_path, 'label,text\nx,"Meet you\ny,Win a boat\nx,see you"\n' + "x,c\ny,d\n" * 5 + 'y,"a, b"\n')
    assert table.notes[0].endswith("a quoted text contains what look like rows: see line 2")
    with pytest.raises(UserError, match="line 15: 3 columns, but the header has 2"):
        read_table(tmp_path / "a.csv", quoting="none")


def test_quoting_is_decided_by_hand(run):  # noqa: F811
    Path("a.tsv").write_text('text\tlabel\n"fine"\tx\n"dull"\ty\n')
    for quoting, texts in (("csv", ["fine", "dull"]), ("none", ['"fine"', '"dull"'])):
        run("--train", "a.tsv", "--dev", "a.tsv", "--quoting", quoting)
        assert [text for _, text, _ in examples("train")] == texts


# -----------------------------------------------------------------------------
# encodings, empty texts, a test file's labels


def test_another_encoding_is_told_with_what_it_would_read(run):  # noqa: F811
    for name, text in (("cp1252", "“voilà” €"), ("cp1251", "привет")):
        Path("a.csv").write_bytes(f"text,label\nfine,x\n{text},y\n".encode(name))
        with pytest.raises(UserError) as error:
            run("--train", "a.csv", "--dev", "a.csv")
        assert "a.csv, line 3: not UTF-8" in str(error.value) and "add --encoding cp1252" in str(error.value)
        assert (text in str(error.value)) == (name == "cp1252")
        run("--train", "a.csv", "--dev", "a.csv", "--encoding", name)
        assert examples("train")[1][1] == text
    with pytest.raises(UserError, match="--encoding cp9: no such encoding"):
        run("--train", "a.csv", "--encoding", "cp9")
    with pytest.raises(UserError, match="a.csv, line 3: not valid ascii"):
        run("--train", "a.csv", "--encoding", "ascii")


def test_rows_without_a_text_are_left_out_and_told(run):  # noqa: F811
    rows = "".join(f"{i},{'' if i % 4 == 1 else f'text {i}'},{i % 2}\n" for i in range(28))
    Path("a.csv").write_text("number,text,label\n" + rows + "28, ,\n,,\n,,\n")  # and two of a spreadsheet's end
    printed = run("--train", "a.csv", "--dev", "a.csv")
    assert "a.csv: left out 8 rows without a text: lines 3, 7, 11, 15, 19, ...\n" in printed
    assert [id for id, _, _ in examples("train")] == [str(i + 1) for i in range(28) if i % 4 != 1]
    with pytest.raises(UserError, match="left out 8 rows without a text"):
        run("--train", "a.csv", "--dev", "a.csv", "--strict")


def test_a_test_file_whose_labels_are_empty_or_all_minus_one_has_none(run):  # noqa: F811
    files = ["--train", "a.tsv", "--dev", "a.tsv", "--test", "t.csv"]
    write("a.tsv", [("fine", "good"), ("dull", "bad")], header="text\tlabel")
    for content in ("text,label\nwhat,\nwhy, \n", "text\nwhat\nwhy\n", "text,label\nwhat,-1\nwhy,-1\n"):
        Path("t.csv").write_text(content)
        run(*files)
        assert load_split("data/x", "test").labels is None
        assert load_meta("data/x")["splits"]["test"]["label_counts"] is None
    write("a.tsv", [("fine", "-1"), ("dull", "1")], header="text\tlabel")  # unless that is a class
    run(*files)
    assert load_split("data/x", "test").labels.tolist() == [0, 0]


# -----------------------------------------------------------------------------
# what is broken

OBJECT = '{"text": "a", "label": "x"}\n'
BROKEN = {
    "unquoted comma": ("a.csv", "text,label\nwell, no,x\n", "line 2: 3 columns, but the header has 2: put a text that"),
    "after a cell of two lines": ("a.csv", 'text,label\n"a\nb",x\nc\n', "line 4: 1 column, but the header has 2"),
    "quote inside": ("a.csv", 'text;label\n"a" b;x\n', "line 2: text after a closing quote: .* --quoting none"),
    "unclosed quote": ("a.csv", 'text,label\n"a,x\n', "line 2: a quote that is never closed: .* --quoting none"),
    "UTF-16 without its mark": ("a.csv", "text,label\n".encode("utf-16-le"), "line 1: a NUL byte: not text, or UTF-16"),
    "empty": ("a.csv", "", "a.csv is empty"),
    "two columns of a name": ("a.csv", "text,text,label\na,b,x\n", "more than one column is called 'text'"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(OBJECT.encode() * 9)[:-12], "a broken archive .truncated..: 'Comp"),
    "no known file in a zip": ("a.zip", zipped("a.pdf", ""), "the name must end in"),
    "old Excel": ("a.csv", bytes.fromhex("d0cf11e0a1b11ae1") + bytes(9), "a.csv is an old Excel workbook"),
    "cut JSON": ("a.json", '[{"text": "a"},\n{"text": "b', "line 2: not JSON: Unterminated string"),
    "no object": ("a.jsonl", OBJECT + "5\n", "line 2: 5: expected objects, one per line or in an array"),
    "nested": ("a.jsonl", OBJECT + '{"text": "b", "label": ["x"]}', "line 2, column 'label': a list, .* one label,"),
    "deeply nested": ("a.jsonl", OBJECT + '{"a":' * 100_000, "line 2: not JSON: maximum recursion depth exceeded"),
    "a number of 5,000 digits": ("a.jsonl", OBJECT + '{"text": ' + "9" * 5000 + "}", "line 2: not JSON: Exceeds"),
    "no lines": ("a.jsonl", "\n", "a.jsonl is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name, content, message", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_broken_is_refused_with_its_place(run, name, content, message):  # noqa: F811
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"^{message}" if message.startswith(name) else f"^{name}[,:] {message}"):
        run("--train", name)
    assert not Path("data").exists() and not Path("config").exists()


def test_a_broken_parquet_file_or_workbook_is_refused(run):  # noqa: F811
    rows = [{"text": "a", "label": 1, "more": [1]}, {"text": "b", "label": None, "more": [2]}]
    whole = parquet(rows)
    for content, options, message in (
        (parquet(rows[1:]), [], "a.parquet: no row has a text and a label"),
        (whole[:-9], [], "a.parquet: a broken parquet file "),
        (whole[:4] + bytes(50) + whole[54:], [], "a.parquet: a broken parquet file "),
        (whole, ["--label_column", "more"], "a.parquet, row 1, column 'more': a list, neither text nor a number"),
    ):
        Path("a.parquet").write_bytes(content)
        with pytest.raises(UserError, match=message):
            run("--train", "a.parquet", *options)
    Path("a.xlsx").write_bytes(zipped("xl/workbook.xml", ""))
    pytest.importorskip("openpyxl", reason="needs openpyxl")
    with pytest.raises(UserError, match="a.xlsx: a broken workbook "):
        run("--train", "a.xlsx")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    for package, content in (("pyarrow", b"PAR1"), ("openpyxl", zipped("xl/workbook.xml", ""))):
        monkeypatch.setitem(sys.modules, package, None)
        (tmp_path / "a.csv").write_bytes(content)
        message = refuse("prepare_own.py", "--train", "a.csv", "--name", "x", cwd=tmp_path)
        assert f"the package {package} is not installed: " in message and f"`pip install {package}`" in message
