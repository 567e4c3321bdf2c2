"""The files that people have: every format gives the same data, columns are found, what is broken is named."""

import csv
import gzip
import io
import json
import sys
import tracemalloc
from pathlib import Path

import pytest
from conftest import command, refuse, succeed, visible
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prepare_own import examples, run, write  # noqa: F401, run is a fixture

from classifier.data.dataset import load_meta, load_split
from classifier.data.own import choose_columns, read_labels
from classifier.data.rows import Source, format_of, read_rows, read_texts
from classifier.errors import UserError

# -----------------------------------------------------------------------------
# the same rows, whatever the file


def delimited(rows: list[dict], delimiter: str, line_end: str = "\n") -> str:
    buffer = io.StringIO()
    # Python's writer leaves a lone carriage return unquoted, which no reader then takes for part of the field
    quoting = csv.QUOTE_ALL if any("\r" in row["Text"] for row in rows) else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def json_lines(rows: list[dict], **options) -> str:
    return "".join(json.dumps(row, **options) + "\n" for row in rows)


def parquet(rows: list[dict]) -> bytes:
    buffer, table = io.BytesIO(), pytest.importorskip("pyarrow", reason="needs pyarrow").Table.from_pylist(rows)
    pytest.importorskip("pyarrow.parquet").write_table(table, buffer)
    return buffer.getvalue()


WRITERS = {  # file name -> its content
    "a.tsv": lambda rows: delimited(rows, "\t").encode(),
    "b.tsv.gz": lambda rows: gzip.compress(delimited(rows, "\t", "\r\n").encode("utf-8-sig")),
    "c.csv": lambda rows: delimited(rows, ",").encode("utf-8-sig"),
    "d.CSV": lambda rows: delimited(rows, ";", "\r\n").encode(),
    "e.csv": lambda rows: delimited(rows, ";", "\r\n").encode("utf-16"),
    "f.csv": lambda rows: b"\xfe\xff" + delimited(rows, "\t").encode("utf-16-be"),
    "g.csv.gz": lambda rows: gzip.compress(delimited(rows, ",").encode()),
    "h.jsonl": lambda rows: json_lines(rows).encode(),
    "i.jsonl.gz": lambda rows: gzip.compress(json_lines(rows, ensure_ascii=False).encode("utf-8-sig")),
    "j.parquet": parquet,
}
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from(',;\t"\r\n {}[]é😀')
TEXTS = st.text(CHARACTERS, min_size=1, max_size=40).filter(str.strip)
ROWS = st.sampled_from([[0, 1], ["complaint", " a, b", '"c;d"', "é"]]).flatmap(
    lambda labels: st.lists(  # of numbers or of words, since a column of parquet has one type
        st.fixed_dictionaries({"ID": st.integers(0, 9**9), "Text": TEXTS, "Label": st.sampled_from(labels)}),
        min_size=1,
        max_size=8,
    )
)


@pytest.fixture(scope="module")
def writers() -> dict:
    """Those of WRITERS that this machine has the packages for."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return {name: writer for name, writer in WRITERS.items() if not name.endswith(".parquet")}
    return WRITERS


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_the_same_rows_are_read_from_every_format(tmp_path_factory, writers, rows):
    folder = tmp_path_factory.mktemp("rows")
    for name, writer in writers.items():
        (folder / name).write_bytes(writer(rows))
        source = Source(folder / name, sentence="Text", label="Label", id="ID", format=format_of(folder / name))
        found = [(row.id, row.sentence, row.label) for row in read_texts(source, labelled=True)]
        assert found == [(str(row["ID"]), row["Text"], str(row["Label"])) for row in rows], name


def test_the_same_rows_give_the_same_files_in_every_format(run, writers):  # noqa: F811
    texts = ['so; "good",\r\nso\rtrue', "\ufeff\tx", " 1", "{}", '"', "a,b;c\td", "é😀\u2028", "\n\n.", "null"]
    rows = [{"ID": 3 * i, "Text": f"{text}{i}", "Label": i % 2} for i, text in enumerate(texts * 5)]
    found = {}
    for name, writer in writers.items():
        Path(name).write_bytes(writer(rows))
        run("--train", name, "--test", name, "--overwrite")  # the dev split is set aside
        found[name] = {file: content for file, content in visible(Path("data/x")).items() if file != "meta.json"}
        assert load_meta("data/x")["label_names"] == ["0", "1"]
    assert all(each == found["a.tsv"] for each in found.values()) and len(found["a.tsv"]) == 12
    assert [text for _, text, _ in examples("test")] == [row["Text"] for row in rows]


def test_numbers_truth_values_and_null_in_json_and_parquet(run, writers):  # noqa: F811
    rows = [{"text": 5, "label": True, "id": None}, {"text": 1.5, "label": False, "id": 7}]
    for name in ("h.jsonl", "j.parquet"):
        if name in writers:
            # a column of parquet has one type
            Path(name).write_bytes(writers[name](rows if name == "h.jsonl" else [row | {"text": "x"} for row in rows]))
            run("--train", name, "--dev", name, "--overwrite")
            assert load_meta("data/x")["label_names"] == ["false", "true"]
            texts = ["5", "1.5"] if name == "h.jsonl" else ["x", "x"]
            assert examples("train") == [("1", texts[0], 1), ("7", texts[1], 0)]
    Path("k.jsonl").write_text(
        '{"label": 1, "text": "a"}\n\n{"text": "b", "label": "1", "more": [{}]}\n{"text": "c", "label": 0}'
    )
    run("--train", "k.jsonl", "--dev", "k.jsonl", "--overwrite")
    assert examples("train") == [("1", "a", 1), ("2", "b", 1), ("3", "c", 0)]


def test_the_courses_files_need_no_renaming(tsv_dir, run):  # noqa: F811
    path = tsv_dir / "ids-sst-dev.csv"  # tabs, whatever its name says
    run("--train", path, "--dev", path)
    assert load_meta("data/x")["splits"]["dev"]["tokens"] == 24_946
    assert len(list(read_rows(path, 5, labelled=True))) == 1_101


@pytest.mark.parametrize("name", ["a.tsv", "c.csv", "e.csv", "g.csv.gz", "h.jsonl", "j.parquet"])
def test_reading_keeps_no_rows(tmp_path, writers, name):
    if name not in writers:
        pytest.skip("needs pyarrow")
    path = tmp_path / name
    path.write_bytes(writers[name]([{"ID": i, "Text": f"{i} " + "x" * 2000, "Label": i % 2} for i in range(10_000)]))
    source = Source(path, sentence="Text", label="Label", id="ID", format=format_of(path))
    tracemalloc.start()
    try:
        _, sentences, labels = read_labels(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(set(sentences.tolist())) == 10_000 and labels.sum() == 5_000
    assert peak < (1 << 23 if name == "j.parquet" else 1 << 20)  # of 20 MB; parquet: 1,024 rows


# -----------------------------------------------------------------------------
# columns

NONE = {"text": None, "label": None, "id": None}
CHOSEN = {  # header: text, label, and what is said of them
    "id,sentence,sentiment": ("sentence", "sentiment", "by its name", "by its name"),
    "Text,LABEL": ("Text", "LABEL", "by its name", "by its name"),
    "class,review": ("review", "class", "by its name", "by its name"),
    "date, Comment ,author,Category": (" Comment ", "Category", "by its name", "by its name"),
    "tweet,mood": ("tweet", "mood", "of two columns", "of two columns"),
    ",tweet,mood": ("tweet", "mood", "of two columns", "of two columns"),
    "mood,ID,content": ("content", "mood", "by its name", "the only other column"),
    "target,tweet": ("tweet", "target", "the only other column", "by its name"),
}
UNCLEAR = {  # header: the option that is asked for
    "text,review,label": ("--text_column", "'text' and 'review' could both be the texts"),
    "text,label,Label": ("--label_column", "'label' and 'Label' could both be the labels"),
    "text,comment": ("--text_column", "'text' and 'comment' could both be the texts"),
    "tweet,mood,author": ("--text_column", "no column's name tells that it holds the texts"),
    "text,mood,author": ("--label_column", "no column's name tells that it holds the labels"),
    "text": ("--label_column", "no column's name tells that it holds the labels"),
    "id,label": ("--text_column", "no column's name tells that it holds the texts"),
    "a,a,a": ("--text_column", "no column's name tells"),
}


@pytest.mark.parametrize("header", CHOSEN)
def test_columns_are_found_by_their_names_or_as_a_lone_pair(header):
    chosen = choose_columns(Source(Path("a.csv")), header.split(","), NONE)
    text, label, why_text, why_label = CHOSEN[header]
    assert chosen == {"text": (text, why_text), "label": (label, why_label)}


@pytest.mark.parametrize("header", UNCLEAR)
def test_what_is_unclear_is_refused_with_the_header_and_the_option(run, header):  # noqa: F811
    option, problem = UNCLEAR[header]
    Path("a.csv").write_text(f"{header}\n")
    with pytest.raises(UserError) as error:
        run("--train", "a.csv")
    names = ", ".join(header.split(","))
    assert str(error.value).startswith(f"a.csv, line 1: {problem}")
    assert f": choose one with {option}; the header has '{names}'" in str(error.value)


def test_the_training_file_s_columns_hold_for_all_files_in_any_case(run):  # noqa: F811
    Path("a.csv").write_text("Tweet,Mood,id,text\nfine,good,n1,x\ndull,bad,n2,x\n")
    Path("d.jsonl").write_text('{"mood": "bad", "tweet": "hm", "text": "y"}\n')
    Path("t.tsv").write_text("TWEET\tid\nwhat\tn3\n")
    named = ["--text_column", "tweet", "--label_column", "Mood"]
    printed = run("--train", "a.csv", "--dev", "d.jsonl", "--test", "t.tsv", *named)
    assert printed.startswith("columns: texts in 'Tweet' (--text_column), labels in 'Mood' (--label_column)\n")
    assert examples("train") == [("n1", "fine", 1), ("n2", "dull", 0)] and examples("dev") == [("1", "hm", 0)]
    assert load_split("data/x", "test").ids() == ["n3"]
    with pytest.raises(UserError, match="d.jsonl, line 1: no column 'id'; the first object has 'mood, tweet, text'"):
        run("--train", "a.csv", "--dev", "d.jsonl", *named, "--id_column", "id")
    with pytest.raises(UserError, match="a.csv, line 1: no column 'tweets'; the header has 'Tweet, Mood, id, text'"):
        run("--train", "a.csv", "--dev", "d.jsonl", "--text_column", "tweets", "--label_column", "mood")


def test_the_choice_is_printed_in_lines_that_fit(run):  # noqa: F811
    Path("a.csv").write_text(f"{'long ' * 20}text,label\nfine,good\ndull,bad\n")
    printed = run("--train", "a.csv", "--dev", "a.csv")
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert "labels in 'label' (by its name)" in " ".join(printed.split())


# -----------------------------------------------------------------------------
# a test file's labels


@pytest.mark.parametrize("content", ["text,label\nwhat,\nwhy, \n", "text\nwhat\nwhy\n"])
def test_a_test_file_whose_labels_are_empty_has_none(run, content):  # noqa: F811
    write("a.tsv", [("fine", "good"), ("dull", "bad")], header="text\tlabel")
    Path("t.csv").write_text(content)
    run("--train", "a.tsv", "--dev", "a.tsv", "--test", "t.csv")
    assert load_split("data/x", "test").labels is None and load_meta("data/x")["splits"]["test"]["label_counts"] is None


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.csv", "text,label\nwhat,\n\nwhy,bad\n", r"t.csv, line 4: a label, other than .* \(column 'label'\)"),
        ("t.csv", "text,label\nwhat,bad\nwhy,\n", "t.csv, line 3: no label, other than in the rows before"),
        ("t.jsonl", '{"text": "what"}\n{"text": "why", "label": "bad"}\n', "t.jsonl, line 2: a label, other"),
        ("t.jsonl", '{"text": "what", "label": "bad"}\n{"text": "why"}\n', "t.jsonl, line 2: no label, other"),
    ],
)
def test_a_test_file_with_some_labels_is_refused(run, name, content, message):  # noqa: F811
    write("a.tsv", [("fine", "good"), ("dull", "bad")], header="text\tlabel")
    Path(name).write_text(content)
    with pytest.raises(UserError, match=message):
        run("--train", "a.tsv", "--dev", "a.tsv", "--test", name)
    assert not Path("data").exists()


# -----------------------------------------------------------------------------
# what is broken

OBJECT = '{"text": "a", "label": "x"}\n'
BROKEN = {
    "unquoted comma": ("a.csv", "text,label\nwell, no,x\n", "line 2: 3 columns, but the header has 2: is there a text"),
    "too few cells": ("a.csv", "text,label\na,x\nb\n", "line 3: 1 columns, but the header has 2"),
    "after a cell of two lines": ("a.csv", 'text,label\n"a\nb",x\nc\n', "line 4: 1 columns"),
    "in a cell of two lines": ("a.csv", 'text;label\na;x\n" \n ";y\n', r"line 3: .* is empty, .*\(column 'text'\)"),
    "quote inside": ("a.csv", 'text;label\n"a" b;x\n', "line 2: not semicolon-separated values: ';' expected"),
    "unclosed quote": ("a.csv", 'text,label\n"a,x\nb,y\n', "line 2: .* a quoted field that is never closed"),
    "endless cell": ("a.csv", f"text,label\n{'a' * 131_073},x\n", "line 2: .* a field of over 131,072 characters"),
    "NUL": ("a.csv", "text,label\na\0b,x\n", "line 2: a NUL byte"),
    "UTF-16 without its mark": ("a.csv", "text,label\n".encode("utf-16-le"), "line 1: a NUL byte: no text, or UTF-16"),
    "half of UTF-16": ("a.csv", "text,label\na,x\n".encode("utf-16")[:-1], "line 2: not valid UTF-16"),
    "half a pair": ("a.csv", "text,label\n\ud800,x\n".encode("utf-16", "surrogatepass"), "line 2: not valid UTF-16"),
    "Latin-1": ("a.csv", "text,label\nvoilà,x\n".encode("latin-1"), r"line 2: not valid UTF-8 \(byte 5 of the line\)"),
    "empty": ("a.csv", "", "line 1: no header: the first line must name the columns, and it is empty"),
    "first line empty": ("a.tsv", "\ntext\tlabel\na\tx\n", "line 1: no header"),
    "old Mac": ("a.csv", "text,label\ra,x\r", r"line 1: .*line ends of old Macs\?"),
    "no gzip": ("a.csv.gz", "text,label\na,x\n", "line 1: not a whole gzip file: Not a gzipped file"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(OBJECT.encode() * 9)[:-12], r"line \d+: not a whole gzip file: "),
    "flipped gzip": ("a.csv.gz", gzip.compress(b"text,label\na,x\n")[:-8] + bytes(8), "line 3: not a whole gzip file"),
    "no JSON": ("a.jsonl", OBJECT + "{'text': 1}\n", "line 2: not JSON: Expecting property name .*, at character 2"),
    "an array": ("a.jsonl", f"[{OBJECT[:-1]}]", "line 1: a list: each line must be an object of its own"),
    "one object in lines": ("a.jsonl", '{\n"text": "a"\n}\n', "line 1: not JSON: .*: each line must be an object"),
    "no object": ("a.jsonl", OBJECT + "5\n", "line 2: a value of type int: each line must be"),
    "nested": ("a.jsonl", OBJECT + '{"text": "b", "label": ["x"]}', "line 2, column 'label': a list, neither text nor"),
    "deeply nested": ("a.jsonl", OBJECT + "[" * 100_000, "line 2: maximum recursion depth exceeded"),
    "a number of 5,000 digits": ("a.jsonl", OBJECT + '{"text": ' + "9" * 5000 + "}", "line 2: Exceeds the limit"),
    "doubled key": ("a.jsonl", '{"text": "a", "label": 1, "text": "b"}', "line 1: the key 'text' stands there twice"),
    "no text": ("a.jsonl", OBJECT + '{"label": "x"}', r"line 2: the sentence is missing, .*\(column 'text'\)"),
    "null for a text": ("a.jsonl", OBJECT + '{"text": null}', "line 2: the sentence is missing"),
    "no label": ("a.jsonl", OBJECT + '{"text": "b"}', r"line 2: the label '' is empty \(column 'label'\)"),
    "NaN for a label": ("a.jsonl", OBJECT + '{"text": "b", "label": NaN}', "line 2: the label '' is empty"),
    "half a character": ("a.jsonl", OBJECT + '{"text": "\\ud83d"}', "line 2, column 'text': half a character"),
    "endless text": ("a.jsonl", json_lines([{"text": "a" * 131_073, "label": 1}]), "line 1, column 'text': over 131,"),
    "endless line": ("a.jsonl", '{"text": "' + "a" * (1 << 20), "line 1: longer than 1,048,576 bytes"),
    "no lines": ("a.jsonl", "\n", "a.jsonl: no examples"),
    "a workbook": ("a.xlsx", "", r"a.xlsx: its name must end in .tsv, .csv, .jsonl \(or one of these and .gz\), or"),
    "no suffix": ("csv", "text,label\n", "its name must end in"),
}  # fmt: skip


@pytest.mark.parametrize("name, content, message", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_broken_is_refused_with_its_place(run, name, content, message):  # noqa: F811
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"^{message}" if message.startswith(name) else f"^{name}[,:] {message}"):
        run("--train", name)
    assert not Path("data").exists() and not Path("config").exists()


def test_a_broken_parquet_file_is_refused(run):  # noqa: F811
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": None}]
    whole = parquet(rows)
    nested = parquet([{"text": "a", "label": 1, "more": [1]}, {"text": " ", "label": 2, "more": [2]}])
    for content, options, message in (
        (whole, [], r"a.parquet, row 2: the label '' is empty \(column 'label'\)"),
        (whole[:-9], [], "a.parquet: no parquet file, or a broken one: "),
        (b"", [], "a.parquet: no parquet file, or a broken one: "),
        (parquet(rows)[:4] + bytes(50) + whole[54:], [], "a.parquet, after row 0: cannot be read: "),
        (nested, [], r"a.parquet, row 2: the sentence is empty, .*\(column 'text'\)"),
        (nested, ["--label_column", "more"], "a.parquet, row 1, column 'more': a list, neither text nor a number"),
        (nested, ["--label_column", "x"], "a.parquet, row 1: no column 'x'; the schema has 'text, label, more'"),
    ):
        Path("a.parquet").write_bytes(content)
        with pytest.raises(UserError, match=message):
            run("--train", "a.parquet", *options)


def test_parquet_without_pyarrow_says_what_to_install(run, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    Path("a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="^a.parquet: parquet files need one more package: pip install pyarrow$"):
        run("--train", "a.parquet")


def test_a_spreadsheet_s_file_as_a_person_would_prepare_it(tmp_path):
    rows = [f'"Order {i}; no news, ""still"" waiting";{"late" if i % 2 else "lost"}' for i in range(40)]
    (tmp_path / "tickets.csv").write_text(
        "\ufeffMessage;Category\r\n" + "\r\n".join(rows), encoding="utf-8", newline=""
    )
    train = ["prepare_own.py", "--train", "tickets.csv", "--name", "tickets"]
    printed = succeed(*train, cwd=tmp_path, run=command)
    assert "columns: texts in 'Message' (the only other column), labels in 'Category' (by\n  its name)\n" in printed
    assert load_meta(tmp_path / "data" / "tickets")["label_names"] == ["late", "lost"]
    (tmp_path / "tickets.csv").write_text("Message;Category;Class\n")
    message = refuse(*train, "--overwrite", cwd=tmp_path, run=command)
    assert "'Category' and 'Class' could both be the labels: choose one with --label_column; the header" in message
