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
from classifier.data.own import choose_columns, labels_of_names, row_text
from classifier.data.rows import delimiter_named, read_table
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


def viewer(rows: list[dict], **more) -> dict:
    """An answer of the Hugging Face hub's viewer."""
    rows = [{"row_idx": number, "row": row, "truncated_cells": []} for number, row in enumerate(rows)]
    return {"features": [{"feature_idx": 0, "name": "Text"}], "rows": rows, "num_rows_total": len(rows)} | more


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
    "n.txt": lambda rows: delimited(rows, "|", "\r\n").encode(),
    "o.csv": lambda rows: b"# made by hand, in 2020\n#\n" + delimited(rows, ",").encode(),
    "p.json": lambda rows: json.dumps(viewer(rows)).encode(),
}
if find_spec("pyarrow"):
    WRITERS["m.parquet"] = parquet
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from(',;|#\t"\r\n {}[]é😀')
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
        row = " (row 5 in a spreadsheet)" if name == "a.csv" else ""
        assert list(table.lines) == lines and table.place(1) == f"{tmp_path / name}, line {lines[1]}{row}"
    table = table_of(tmp_path, f"text,label,notes\ra,x,{'n' * 200_000}\r\n{'b' * 140_000},y,\n")
    assert list(map(len, table.column("text"))) == [1, 140_000] and table.column("label") == ["x", "y"]


def test_a_spreadsheet_s_row_is_given_where_it_is_another_one(tmp_path):
    table = table_of(tmp_path, 'sep=,\n# by hand\ntext,label\n"a\nb",x\n\n,y\nc,z\nd,x\ntext,label\ne,y\nf,z\n')
    assert table.place(0) == f"{tmp_path / 'a.csv'}, line 4 (row 3 in a spreadsheet)"
    assert table.where([1, 2]) == "lines 7, 8 (rows 5, 6 in a spreadsheet)"
    assert table.where(range(6)) == "lines 4, 7, 8, 9, 11, ... (rows 3, 5, 6, 7, 9, ... in a spreadsheet)"
    assert table.notes[0].endswith("skipped line 10 (row 8 in a spreadsheet), a repeated header")
    assert table_of(tmp_path, "text,label\n\na,x\nb,y\n").where([0, 1]) == "lines 3, 4"
    for more, problem in {"a,x,y": "3 columns, but the header", '"a" b,x': "text after a closing"}.items():
        with pytest.raises(UserError, match=rf"a.csv, line 4 \(row 3 in a spreadsheet\): {problem}"):
            table_of(tmp_path, f'text,label\n"a\nb",x\n{more}\n')


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


def test_a_list_of_objects_may_be_in_an_object(tmp_path):
    rows = [{"text": "a", "label": 1, "more": [1]}, {"text": "b", "label": 0}]
    cut = viewer(rows, num_rows_total=5000)
    cut["rows"][1]["truncated_cells"] = ["text"]
    notes_on_cut = ["only 2 of 5,000 rows are in it: download the whole ", "the viewer has cut texts short in row 2"]
    for content, notes in [
        (viewer(rows), []),
        (cut, notes_on_cut),
        ({"version": 1, "data": rows}, ["read the list 'data', not 'version'"]),
        ({"data": rows}, []),
    ]:
        for name in ("a.json", "a.csv"):
            (tmp_path / name).write_text(json.dumps(content, indent=1))
            table = read_table(tmp_path / name)
            assert table.cells == [["a", "b"], [1, 0], [[1], None]] and table.place(1) == f"{tmp_path / name}, row 2"
            assert len(table.notes) == len(notes) and all(map(str.__contains__, table.notes, notes))
    (tmp_path / "a.json").write_text('{"text": "a", "label": "x", "words": [{"at": 0}]}')
    assert read_table(tmp_path / "a.json").columns == ["text", "label", "words"]


def test_fasttext_s_lines_are_read_whatever_the_name(run):  # noqa: F811
    lines = '__label__neg so, "bad\n\n\ufeff__label__pos __label__new fine | good\r\n__label__pos\tnice\n__label__neg\n'
    for name in ("a.txt", "cooking.train", "a.csv"):
        Path(name).write_text(lines, newline="")
        table = read_table(Path(name), no_header=True)
        assert table.columns == ["text", "label"] and list(table.lines) == [1, 3, 4, 5]
        assert table.cells == [['so, "bad', "fine | good", "nice", ""], ["neg", "pos,new", "pos", "neg"]]
        assert table.notes == (f"{name}: left out a byte order mark (U+FEFF) in line 3",)
    with pytest.raises(UserError, match="a.txt, line 6: no __label__ at its beginning"):
        Path("a.txt").write_text(lines + "what\n")
        read_table(Path("a.txt"))
    Path("a.csv").write_text("label,text\n__label__neg,bad\n__label__pos,fine\n")
    assert read_table(Path("a.csv")).column("label") == ["__label__neg", "__label__pos"]


def test_one_file_per_class(run):  # noqa: F811
    for name, content in {
        "rt-polarity.neg": b'bad, "so\nworse|1\n\n',
        "rt-polarity.pos": "café\n# fine".encode("cp1252"),
    }.items():
        Path(name).write_bytes(content)
    Path("dev_pos.txt").write_text("\ufefffine\n")
    files = ["--train", "rt-polarity.neg", "rt-polarity.pos", "--dev", "dev_pos.txt"]
    with pytest.raises(UserError, match="the name must end in .*; or, if each .*, pass them with --label_from_name$"):
        run(*files)
    with pytest.raises(UserError, match="rt-polarity.pos, line 1: not UTF-8.* add --encoding cp1252"):
        run(*files, "--label_from_name")
    printed = run(*files, "--label_from_name", "--encoding", "cp1252")
    assert printed.startswith("columns: each line is a text, labels in the files' names: neg, pos\n")
    assert "rt-polarity.neg: left out 1 row without a text: line 3\n" in printed
    assert examples("train") == [("1", 'bad, "so', 0), ("2", "worse|1", 0), ("4", "café", 1), ("5", "# fine", 1)]
    assert examples("dev") == [("1", "fine", 1)] and load_meta("data/x")["label_names"] == ["neg", "pos"]
    with pytest.raises(UserError, match="--label_from_name reads each line as a text, whole: remove --quoting"):
        run(*files, "--label_from_name", "--quoting", "csv")


SPAM = {"spam", "not_spam", "ham"}
NAMES = [  # names, the classes of the training files, labels
    ("rt-polarity.neg.txt rt-polarity.pos.txt", (), "neg pos"),
    ("train-neg.txt train-pos.txt.gz", (), "neg pos"),
    ("negative neutral", (), "negative neutral"),
    ("not_spam.txt spam.txt", (), "not_spam spam"),
    ("class_1_of_2.txt class_2_of_2.txt", (), "1 2"),
    ("x/neg.txt x/pos.txt y/neg.txt", (), "neg pos neg"),
    ("dev_not_spam.txt ham.txt", SPAM, "not_spam ham"),
    ("dev/ham.2.txt", SPAM, "ham"),
]
WRONG_NAMES = [
    ("hamlet.txt", SPAM, "its name has none of the classes 'ham, not_spam, spam'"),
    ("spam-ham.txt", SPAM, "its name has ham and spam of"),
    ("neg.txt", (), "no other class: pass a file for each"),
]


@pytest.mark.parametrize("names, classes, labels", NAMES)
def test_labels_of_names(names, classes, labels):
    assert labels_of_names([Path(name) for name in names.split()], classes) == labels.split()


@pytest.mark.parametrize("name, classes, problem", WRONG_NAMES)
def test_a_name_without_a_label_is_refused(name, classes, problem):
    with pytest.raises(UserError, match=f"^{name}: {problem}"):
        labels_of_names([Path(name)], classes)


# -----------------------------------------------------------------------------
# headers and columns


def table_of(tmp_path, content: str):
    (tmp_path / "a.csv").write_text(content)
    return read_table(tmp_path / "a.csv")


CHOSEN = [  # file, text, label, and what is said of them
    ("Text,LABEL,topic,message\n", "Text", "LABEL", "by its name", "by its name"),
    ("date, Comment ,author,Category", " Comment ", "Category", "by its name", "by its name"),
    ("v1,v2,,\nham,hi,,", "v2", "v1", "by its name", "by its name"),
    ("mood,ID,content\ngood,1,a", "content", "mood", "by its name", "the only other column"),
    ("target,poem\n1,a", "poem", "target", "the only other column", "by its name"),
    ("poem,mood\na,good\nb,good", "poem", "mood", "of two columns", "of two columns"),
    (",mood,poem\n0,good,a\n1,good,b", "poem", "mood", "of two columns", "of two columns"),
]
UNCLEAR = [  # the header, the problem, the option that is asked for
    ("text,review,label", "'text' and 'review' could both be the texts", "--text_column"),
    ("text,label,Label", "'label' and 'Label' could both be the labels", "--label_column"),
    ("poem,mood,author", "no column has a usual name for texts", "--text_column"),
    ("text,mood,author", "no column has a usual name for labels", "--label_column"),
    ("text", "no column has a usual name for labels", "--label_column"),
]


@pytest.mark.parametrize("content, text, label, why_text, why_label", CHOSEN)
def test_columns_are_found_by_their_names_or_as_a_lone_pair(tmp_path, content, text, label, why_text, why_label):
    found, reasons = choose_columns(table_of(tmp_path, content), {})
    assert found == {"text": [text], "label": [label]}
    assert f"texts in {text!r} ({why_text})" in reasons and f"labels in {label!r} ({why_label})" in reasons


@pytest.mark.parametrize("header, problem, option", UNCLEAR)
def test_what_is_unclear_is_refused_with_the_option_and_a_value_of_each_column(tmp_path, header, problem, option):
    names = header.split(",")
    values = ", ".join(f"{name!r} .as {value!r}." for name, value in zip(names, "abc", strict=False))
    with pytest.raises(UserError, match=f"a.csv: {problem}: choose with {option} among {values}"):
        choose_columns(table_of(tmp_path, f"{header}\n{','.join('abc'[: len(names)])}"), {})


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


PIPES = "".join(f"Well {i}, it was nice|{'pos' if i % 3 else 'neg'}\n" for i in range(9))
BLANKS = PIPES.replace("|", " | ")
DELIMITERS = {  # content, options, columns, the first row, whether there is a note
    "|": ("text|label\nfine, good|pos\n", {}, ["text", "label"], ["fine, good", "pos"], False),
    "| and quotes": ('id|text|label\r\n1|"a | b"|pos\r\n', {}, ["id", "text", "label"], ["1", "a | b", "pos"], False),
    "| without a header": (PIPES, {"no_header": True}, ["1", "2"], ["Well 0, it was nice", "neg"], True),
    "| with blanks": (BLANKS, {"no_header": True}, ["1", "2"], ["Well 0, it was nice ", " neg"], True),
    "its comma": (PIPES, {"no_header": True, "delimiter": ","}, ["1", "2"], ["Well 0", " it was nice|neg"], False),
    "| in texts": ("text,label\na|b,pos\nc|d,neg\n", {}, ["text", "label"], ["a|b", "pos"], False),
    "| in texts alone": ("text\na|b\nc|d\n", {}, ["text"], ["a|b"], False),
    "| in titles": ("Rain | News\nSnow | News\n", {"no_header": True}, ["1"], ["Rain | News"], False),
    "tabs": ("ham\tHi, you\nspam\tBuy, now\n", {"no_header": True}, ["1", "2"], ["ham", "Hi, you"], False),
    "another": ("text^label\na,b^pos\n", {"delimiter": "^"}, ["text", "label"], ["a,b", "pos"], False),
    "said twice": ("sep=;\ntext\tlabel\na;b\tpos\n", {"delimiter": "\t"}, ["text", "label"], ["a;b", "pos"], False),
}


@pytest.mark.parametrize("content, options, columns, row, is_noted", DELIMITERS.values(), ids=DELIMITERS.keys())
def test_the_delimiter_is_found_or_told(tmp_path, content, options, columns, row, is_noted):
    (tmp_path / "a.csv").write_text(content, newline="")
    table = read_table(tmp_path / "a.csv", **options)
    assert table.columns == columns and [cells[0] for cells in table.cells] == row
    assert [note.partition(": ")[2] for note in table.notes] == is_noted * [
        "read with the delimiter pipe: if that is wrong, add --delimiter comma"
    ]


def test_a_delimiter_has_a_name(run):  # noqa: F811
    assert list(map(delimiter_named, ["comma", "Tab", "\\t", "\t", "semicolon", "|", "~"])) == list(",\t\t\t;|~")
    Path("a.csv").write_text("text~label\na,b~x\nc,d~y\n")
    with pytest.raises(UserError, match="among 'text~label' .as 'a,b~x'.; if .*, name it with --delimiter"):
        run("--train", "a.csv", "--dev", "a.csv")
    run("--train", "a.csv", "--dev", "a.csv", "--delimiter", "~")
    assert examples("train") == [("1", "a,b", 0), ("2", "c,d", 1)]
    with pytest.raises(UserError, match="--delimiter 'ab': use comma, tab, semicolon or pipe, or another single"):
        run("--train", "a.csv", "--delimiter", "ab")


COMMENTS = {  # content, whether there is no header, the comments, the columns, the first line
    "two lines": ('# by hand\n# a, "b", c\ntext,label\n#a,pos\n', False, 2, ["text", "label"], 4),
    "as wide as the header": ("# by hand, in 2020\npoem,mood\na,x\nb,x\n", False, 1, ["poem", "mood"], 3),
    "with empty lines": ("\ufeff#\r\n\r\n# a\r\n\r\ntext;label\r\na;x\r\n", False, 2, ["text", "label"], 6),
    "with the columns' names": ("# columns: text, label\ntext,label\na,x\n", False, 1, ["text", "label"], 3),
    "sentences on one column": ("# by hand, in 2020\n#\npoem\na\n", False, 2, ["poem"], 4),
    "on one column": ("# texts\ntext\n#a\n", False, 1, ["text"], 3),
    "before rows": ("# by hand\nham,a\nham,b\n", True, 1, ["1", "2"], 2),
    "and a header": ("# by hand\n#text,label\na,x\n", False, 1, ["#text", "label"], 3),
    "a header": ("#text;label\na, b;x\nc, d;y\n", False, 0, ["#text", "label"], 2),
    "texts": ("#love it,x\n#hate it,y\nb,z\n", True, 0, ["1", "2"], 1),
    "texts alone": ("#love it\n#hate it\nb, c\n", True, 0, ["1"], 1),
    "labels": ('#a;b\n#a;"c\nd"\n#b;e\nf;g\n', True, 0, ["1", "2"], 1),
}


@pytest.mark.parametrize("content, no_header, comments, columns, line", COMMENTS.values(), ids=COMMENTS.keys())
def test_lines_of_comments_are_skipped_and_told(tmp_path, content, no_header, comments, columns, line):
    (tmp_path / "a.csv").write_text(content, newline="")
    table = read_table(tmp_path / "a.csv", no_header)
    assert table.columns == columns and table.lines[0] == line
    lines = "1 line" if comments == 1 else "2 lines"
    notes = [f"{tmp_path / 'a.csv'}: skipped {lines} of comments (#) before the first row"] if comments else []
    assert list(table.notes) == notes


def test_marks_of_files_that_were_put_together_are_left_out(tmp_path):
    for name, content, labels, where in [
        ("a.jsonl", '\ufeff{"label": "x"}\n\ufeff{"label": "y"}\ufeff{"label": "z"}\n', ["x", "y", "z"], "lines 2, 2"),
        ("a.csv", '\ufefflabel,text\nx,"a\n\ufeffb"\n\ufeff"y, z",\ufeffc\n', ["x", "y, z"], "line 4"),
    ]:
        (tmp_path / name).write_text(content)
        table = read_table(tmp_path / name)
        assert table.column("label") == labels
        assert table.notes == (f"{tmp_path / name}: left out a byte order mark (U+FEFF) in {where}",)
    assert table.column("text") == ["a\n\ufeffb", "\ufeffc"]
    table = table_of(tmp_path, "\ufefflabel,text\nx,a\n\ufefflabel,text\ny,b\n")
    assert table.column("label") == ["x", "y"] and table.notes[1].endswith("skipped line 3, a repeated header")


def test_several_columns_are_joined_by_line_ends(run):  # noqa: F811
    Path("a.csv").write_text("title,body,label\nBus,It is late.,0\n,Only a body.,1\nOnly a title,,0\n")
    run("--train", "a.csv", "--dev", "a.csv", "--text_column", "Title", "body")
    assert [text for _, text, _ in examples("train")] == ["Bus\nIt is late.", "Only a body.", "Only a title"]
    assert row_text(["It is\nlate. ", " \t", "", "Bus"]) == "It is\nlate. \nBus" and row_text([" ", ""]) == ""
    with pytest.raises(
        UserError, match=r"data/x was prepared from title \+ body of a.csv, not from body of a.csv: choose"
    ):
        run("--train", "a.csv", "--dev", "a.csv")


NO_HEADER = {
    "labels first": "ham\tThe soup was warm\nspam\tWin a boat\nham\tSee you\n",
    "numbers": "7,soup\n8,boat\n8,late\n1,2\n",
    "a label with a usual name": "comment\tsoup\nquestion\ttea?\ncomment\tboat\n",
}


@pytest.mark.parametrize("content", NO_HEADER.values(), ids=NO_HEADER.keys())
def test_a_missing_header_is_told_and_no_row_is_lost(run, content):  # noqa: F811
    Path("a.csv").write_text(content)
    files = ["--train", "a.csv", "--dev", "a.csv"]
    with pytest.raises(UserError, match="a.csv: the first line looks like an example, .*: add --no_header"):
        run(*files)
    for options in ([], ["--text_column", "2", "--label_column", "1"]):
        why = options[0] if options else "of two columns"
        assert f"texts in '2' ({why})" in run(*files, "--no_header", *options)
        assert len(examples("train")) == content.count("\n")


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
    with pytest.raises(
        UserError, match="--strict refuses a file with a note: b.csv: skipped line 3, a repeated header$"
    ):
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
    Path("a.csv").write_bytes(b"\xef\xbb\xbftext;label\r\nab;1\r\nT\xd5e;0\r\n")
    with pytest.raises(UserError, match="a.csv, line 3: not UTF-8. In cp1252,.* 'TÕe|--encoding cp1252"):
        run("--train", "a.csv", "--dev", "a.csv")
    run("--train", "a.csv", "--dev", "a.csv", "--encoding", "cp1252")
    assert examples("train") == [("1", "ab", 1), ("2", "TÕe", 0)]
    Path("a.csv").write_bytes("text,label\né,x\nb,y\n".encode("utf-8-sig"))
    run("--train", "a.csv", "--dev", "a.csv", "--encoding", "cp1252")  # the mark says that it is UTF-8
    assert examples("train")[0][1] == "é"
    Path("a.csv").write_bytes(b"text,label\rfine,x\r\xe9,y\r")
    for encoding, problem in {"ascii": "not valid ascii", "utf-8": "not UTF-8. In cp1252"}.items():
        with pytest.raises(UserError, match=f"a.csv, line 3: {problem}"):
            run("--train", "a.csv", "--encoding", encoding)
    with pytest.raises(UserError, match="--encoding cp9: no such encoding"):
        run("--train", "a.csv", "--encoding", "cp9")


def test_nuls_are_told_apart_from_utf_16_and_left_out(run):  # noqa: F811
    whole = "text,label\n好的,x\nb,y\n"
    for content, message in [
        (whole.replace("\nb", "\n\0b").encode(), "line 3: a NUL byte: .*--encoding utf-8, which leaves NULs out"),
        (whole.encode("utf-16-le"), "line 1: a NUL byte: UTF-16 without .*: add --encoding utf-16-le$"),
        (whole.encode("utf-16-be"), "line 1: a NUL byte: UTF-16 without .*: add --encoding utf-16-be$"),
    ]:
        Path("a.csv").write_bytes(content)
        with pytest.raises(UserError, match=f"^a.csv, {message}"):
            run("--train", "a.csv", "--dev", "a.csv")
        encoding = message.partition("--encoding ")[2].strip("$").partition(",")[0]
        printed = run("--train", "a.csv", "--dev", "a.csv", "--encoding", encoding)
        assert examples("train") == [("1", "好的", 0), ("2", "b", 1)]
        assert ("a.csv: left out 1 NUL character\n" in printed) == (encoding == "utf-8")


def test_rows_without_a_text_are_left_out_and_told(run):  # noqa: F811
    rows = "".join(f"{i},{'' if i % 4 == 1 else f'text {i}'},{i % 2}\n" for i in range(28))
    Path("a.csv").write_text("number,text,label\n" + rows + "28, ,\n,,\n,,\n")  # and two of a spreadsheet's end
    printed = run("--train", "a.csv", "--dev", "a.csv")
    assert "a.csv: left out 8 rows without a text: lines 3, 7, 11, 15, 19, ...\n" in printed
    assert [id for id, _, _ in examples("train")] == [str(i + 1) for i in range(28) if i % 4 != 1]


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
    "after a cell of two lines": ("a.csv", 'text,label\n"a\nb",x\nc\n', "line 4 .row 3 in a spreadsheet.: 1 column"),
    "quote inside": ("a.csv", 'text;label\n"a" b;x\n', "line 2: text after a closing quote: .* --quoting none"),
    "unclosed quote": ("a.csv", 'text,label\n"a,x\n', "line 2: a quote that is never closed: .* --quoting none"),
    "empty": ("a.csv", "", "a.csv is empty: if it was downloaded, download it again"),
    "empty parquet": ("a.parquet", "\ufeff\n", "a.parquet is empty: if"),
    "a web page": ("a.csv", "\ufeff\n <!DOCTYPE html>\n<html>", "this is HTML .a web page., not data: download"),
    "a web page of XHTML": ("a.json", '<?xml version="1.0"?>\n<html>', "this is HTML .a web page., not"),
    "XML": ("a.csv", "<?xml version='1.0'?><Error>", "this is XML, not data"),
    "a server's words": ("a.csv", "404: Not Found", r"this is a server's error, not data \(404: Not Found\): download"),
    "a server's JSON": ("a.parquet", '{"error": "no entry"}', r"this is a server's error, not data \({\"error"),
    "Git LFS": ("a.csv", "version https://git-lfs.github.com/spec/v1\n", "a.csv is a pointer .*: run `git lfs pull`"),
    "Markdown": ("a.txt", "| text | label |\n|---|:-:|\n| a | x |\n", "a table of Markdown: remove the line of dashes"),
    "two columns of a name": ("a.csv", "text,text,label\na,b,x\n", "more than one column is called 'text'"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(OBJECT.encode() * 9)[:-12], "a broken archive .truncated..: 'Comp"),
    "no known file in a zip": ("a.zip", zipped("a.pdf", "x"), "the name must end in"),
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


def test_forms_that_other_programs_write(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    column = pyarrow.array([b"caf\xc3\xa9", b"b"], pyarrow.binary())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet").column("text") == ["café", "b"]
    column = pyarrow.array([b"caf\xe9"], pyarrow.binary())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="b.parquet, row 1, column 'text': bytes that are not UTF-8"):
        read_table(tmp_path / "b.parquet").column("text")
    (tmp_path / "a.csv").write_text('"label", "text"\n"x", "a film, yes"\n"y", "said ""b, \'c"""\n')
    table = read_table(tmp_path / "a.csv")
    assert (table.column("label"), table.column("text")) == (["x", "y"], ["a film, yes", 'said "b, \'c"'])
    for columns in (
        {"text": ["a", "b"], "label": ["x", "y"]},
        {"text": {"0": "a", "7": "b"}, "label": {"0": "x", "7": "y"}},
    ):
        (tmp_path / "a.json").write_text(json.dumps(columns))  # pandas' to_json, and a dict of lists
        table = read_table(tmp_path / "a.json")
        assert (table.column("text"), table.column("label")) == (["a", "b"], ["x", "y"])
    (tmp_path / "b.csv").write_bytes("text,label\nfine 😀,x\n".encode("utf-32"))
    assert read_table(tmp_path / "b.csv").column("text") == ["fine 😀"]
    (tmp_path / "c.csv").write_text("<!-- c -->\n" * 2000 + "text,label\na,x\n")  # in no time
    assert len(read_table(tmp_path / "c.csv").lines) > 2000
    (tmp_path / "d.csv").write_text("<!-- c --> <!-- d -->\n<html>")
    with pytest.raises(UserError, match="this is HTML"):
        read_table(tmp_path / "d.csv")


def test_a_file_that_is_utf8_after_all_gets_a_note(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\ncafé,x\n", encoding="utf-8")
    (note,) = read_table(tmp_path / "a.csv", encoding="cp1252").notes
    assert "a.csv is valid UTF-8, but was read as cp1252 (--encoding)" in note
    (tmp_path / "a.csv").write_text("text,label\ncafé,x\n", encoding="cp1252")
    assert read_table(tmp_path / "a.csv", encoding="cp1252").notes == ()
