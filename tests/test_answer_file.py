"""evaluate.py --file: a file comes back as it was, with the answers as further columns."""

import bz2
import csv
import datetime
import gzip
import json
import sys

import numpy as np
import pytest
from conftest import command, random_model, refuse, save, succeed

import app
from classifier.answers.models import Classifier, log_probabilities
from classifier.data.own import choose_columns, class_numbers
from classifier.data.rows import read_table

NAMES = ["1", "2", "3"]
ROWS = [
    ("a1", "A lovely film, with a plot.", "3", "x"),
    ("a2", "", "1", "y"),
    ("a3", 'He said "no"\nand left.', "1.0", ""),
    ("a4", "Dull.", "2", "é"),
    ("a5", " \t ", "", "z"),
    ("a6", "A mess of a film that never ends", "", "z"),
]
ANSWERS = ["--ckpt=best.pt", "--dtype=float32", "--predictions"]


@pytest.fixture
def place(tmp_path):
    """A checkpoint of three classes, and a file."""
    save(tmp_path / "best.pt", random_model(3), {"label_names": NAMES, "leading_space": False})
    with open(tmp_path / "new.csv", "w", newline="", encoding="utf-8-sig") as f:
        csv.writer(f, delimiter=";").writerows([("key", "text", "label", "more"), *ROWS])
    return tmp_path


def answered(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def expected(place) -> np.ndarray:
    """The probabilities of the rows that have a text, each by itself."""
    loaded = [Classifier.load(place / "best.pt", "cpu", "float32")]
    return np.concatenate([log_probabilities(loaded, [row[1]]).exp().numpy() for row in ROWS if row[1].strip()])


def test_every_row_and_column_is_kept_and_has_its_answer(place, monkeypatch):
    monkeypatch.setattr("classifier.answers.models.AT_ONCE", 2)  # the rows are answered in parts
    printed = succeed("evaluate.py", "--file=new.csv", *ANSWERS, "out.csv", cwd=place)
    rows = answered(place / "out.csv")
    assert list(rows[0]) == ["key", "text", "label", "more", "prediction", "confidence", "p_1", "p_2", "p_3"]
    assert [tuple(row.values())[:4] for row in rows] == ROWS
    full = [row for row in rows if row["text"].strip()]
    found = np.array([[float(row[f"p_{name}"]) for name in NAMES] for row in full])
    np.testing.assert_allclose(found, expected(place), atol=2e-6)
    assert [row["prediction"] for row in full] == [NAMES[number] for number in found.argmax(1)]
    assert [float(row["confidence"]) for row in full] == found.max(1).tolist()
    empty = [list(row.values())[4:] for row in rows if not row["text"].strip()]
    assert empty == [[""] * 5] * 2
    # three of the rows have a text and a label: 3, 1.0 and 2
    right = (found.argmax(1)[:3] == [2, 0, 1]).mean()
    assert f"new.csv accuracy: {right:.3f} (95% Wilson" in printed
    assert "wrote out.csv (rows: 6, without a text: 2)" in printed
    assert "out.csv exists already" in refuse("evaluate.py", "--file=new.csv", *ANSWERS, "out.csv", cwd=place)


def test_columns_and_labels_are_those_that_the_files_of_training_had(place):
    data = {"label_names": ["low", "mid", "high"], "labels": NAMES, "text_columns": ["Key", "text"]}
    save(place / "best.pt", random_model(3), data | {"leading_space": False})
    printed = succeed("evaluate.py", "--file=new.csv", *ANSWERS, "out.csv", cwd=place)
    assert "\ncolumns: texts in 'key' + 'text' (as in training), labels in 'label' (by its" in printed
    turned = ["--file=new.csv", "--text_column", "text", "key", *ANSWERS, "turned.csv"]
    other_order = " ".join(succeed("evaluate.py", *turned, cwd=place).split())
    assert "note: the model was trained on Key + text, in this order" in other_order and "note: the m" not in printed
    whole = log_probabilities(
        [Classifier.load(place / "best.pt", "cpu", "float32")], [f"{row[0]}\n{row[1]}".strip() for row in ROWS]
    ).argmax(1)
    assert [row["prediction"] for row in answered(place / "out.csv")] == [data["label_names"][i] for i in whole]
    right = [NAMES[i] == row[2][:1] for i, row in zip(whole, ROWS, strict=True) if row[2]]
    assert f"new.csv accuracy: {np.mean(right):.3f} (" in printed
    for labels, numbers in ((["1", "3 ", "x"], [0, 2, -1]), (["0", "2", "1"], [0, 2, 1])):
        assert class_numbers(labels, ["1", "2", "3"], ["0", "1", "2"]).tolist() == numbers
    table = read_table(place / "new.csv")
    assert choose_columns(table, {}, ["text"], ["label"], ["label"])[0] == {"text": ["label"]}  # and no labels
    assert "'text' (by its name, not 'body' as in training)" in choose_columns(table, {}, ["text"], [], ["body"])[1]


@pytest.mark.parametrize(
    "name", ["out.tsv", "out.csv.gz", "out.txt.bz2", "out.jsonl", "out.json", "out.parquet", "out.xlsx"]
)
def test_the_name_of_the_answers_tells_their_format(place, name):
    if name.endswith((".parquet", ".xlsx")):
        pytest.importorskip("pyarrow" if name.endswith("parquet") else "openpyxl")
    succeed("evaluate.py", "--file=new.csv", *ANSWERS, "plain.csv", cwd=place)
    succeed("evaluate.py", "--file=new.csv", *ANSWERS, name, cwd=place)
    plain, table = answered(place / "plain.csv"), read_table(place / name)
    for column in ("key", "text", "label", "more", "prediction"):
        assert table.column(column) == [row[column] for row in plain], column
    shares = [float(cell) if cell else None for cell in table.column("p_2")]
    assert shares == [float(row["p_2"]) if row["p_2"] else None for row in plain]
    unpack = {".gz": gzip.decompress, ".bz2": bz2.decompress}.get((place / name).suffix)
    assert unpack is None or unpack((place / name).read_bytes()).startswith(b"key")


def test_values_keep_their_kinds_from_json_to_json(place):
    objects = [{"text": "fine", "n": 3, "more": {"a": ["half \udc00"]}}, {"text": None, "n": 0.5}]
    objects.append({"text": "bad \ud83d", "flag": True})
    (place / "new.json").write_text(json.dumps(objects))
    succeed("evaluate.py", "--file=new.json", *ANSWERS, "out.jsonl", cwd=place)
    found = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    for given, row in zip(objects, found, strict=True):
        assert {name: row[name] for name in given} == given
    assert found[1]["prediction"] is None and found[1]["p_1"] is None and found[0]["confidence"] > 0.3
    succeed("evaluate.py", "--file=new.json", *ANSWERS, "out.csv", cwd=place)
    assert json.loads(answered(place / "out.csv")[0]["more"]) == objects[0]["more"]


def test_no_row_is_torn_or_lost(place):
    for text, texts in {
        'text\ngood film\n"bad\nfilm"\nfine\nok\n': ["good film", "bad\nfilm", "fine", "ok"],
        'text\ngood film\n""\n\nbad film\n""\n\n': ["good film", "", "", "bad film", ""],
        "text,note\ngood film,a\n,\n\nbad film,b\n,\n": ["good film", "", "bad film"],
    }.items():
        (place / "new.csv").write_text(text)
        succeed("evaluate.py", "--file=new.csv", *ANSWERS, "out.csv", "--overwrite", cwd=place)
        rows = answered(place / "out.csv")
        assert [row["text"] for row in rows] == texts
        assert [bool(row["prediction"]) for row in rows] == [bool(text) for text in texts]


def test_a_workbook_of_answers_has_text_as_text_and_dates_go_to_json(place):
    load_workbook = pytest.importorskip("openpyxl").load_workbook
    texts = ["=1+1", "=== great film ===", "good\x0bfilm"]
    (place / "new.json").write_text(json.dumps([{"text": text, "tags": ["x"], "id": 10**18 + 1} for text in texts]))
    succeed("evaluate.py", "--file=new.json", *ANSWERS, "out.xlsx", cwd=place)
    column, _, ids, *_ = zip(*load_workbook(place / "out.xlsx", data_only=True).active.values, strict=True)
    assert column == ("text", *texts[:2], "good\ufffdfilm") and ids[1] == "1000000000000000001"  # a number loses digits
    book = pytest.importorskip("openpyxl").Workbook()
    for row in [("text", "when", "n"), ("fine", datetime.datetime(2026, 1, 2), 1), ("good", None, None)]:
        book.active.append(row)
    book.save(place / "dates.xlsx")
    succeed("evaluate.py", "--file=dates.xlsx", *ANSWERS, "dates.jsonl", cwd=place)
    assert json.loads((place / "dates.jsonl").read_text().splitlines()[0])["when"].startswith("2026-01-02")
    pyarrow = pytest.importorskip("pyarrow")
    succeed("evaluate.py", "--file=dates.xlsx", *ANSWERS, "dates.parquet", cwd=place)
    assert read_table(place / "dates.parquet").column("n") == ["1", ""]
    far = pyarrow.table({"text": ["fine"], "when": pyarrow.array([9 * 10**17], pyarrow.timestamp("s"))})
    pytest.importorskip("pyarrow.parquet").write_table(far, place / "far.parquet")  # a time that Python cannot have
    succeed("evaluate.py", "--file=far.parquet", *ANSWERS, "far.csv", cwd=place)


def test_a_full_disk_is_told_in_one_line(place):
    pytest.importorskip("openpyxl")
    resource = pytest.importorskip("resource")  # not on Windows
    with open(place / "new.csv", "a", encoding="utf-8") as f:
        f.writelines(f"{number};{number * 7919} words;;\n" for number in range(3000))
    limited = {"run": command, "preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))}
    message = refuse("evaluate.py", "--file=new.csv", *ANSWERS, "out.xlsx", cwd=place, **limited)
    assert "cannot write out.xlsx: File too large" in message and not (place / "out.xlsx").exists()


def test_the_page_takes_no_file_that_is_missing_or_too_long(place):
    loaded = [Classifier.load(place / "best.pt", "cpu", "float32")]
    (place / "many.csv").write_text("text\n" + "fine\n" * 10_001)
    said = "No answers: 10,001 rows; the page takes 10,000, evaluate.py --file any number"
    assert app.answer_file(loaded, str(place / "many.csv")) == (None, said)
    assert app.answer_file(loaded, None) == (None, "Choose a file first.")


def test_what_cannot_be_answered_is_refused_before_hours_have_gone_into_it(place, monkeypatch):
    def refused(*words: str) -> str:
        with monkeypatch.context() as patched:
            patched.setattr(Classifier, "logits", lambda *_: pytest.fail("refused too late"))
            return refuse("evaluate.py", *words, cwd=place)

    assert "--calibrate must name another file than the one that is read" in refused(
        "--file=new.csv", *ANSWERS, "new.csv", "--overwrite"
    )
    (place / "two.csv").write_text("text,note,note\ngood film,1,2\n")
    assert "has two columns of one name" in refused("--file=two.csv", *ANSWERS, "two.jsonl")
    assert "--file needs --predictions" in refused("--ckpt=best.pt", "--file=new.csv")
    assert "must end in .csv" in refused("--file=new.csv", *ANSWERS, "out.docx")
    assert "no column 'body' among 'key'" in refused("--file=new.csv", "--text_column=body", *ANSWERS, "out.csv")
    for name, content in {"long": "text\n" + "good " * 8000, "many": "text\n" + "fine\n" * 2**20}.items():
        (place / f"{name}.csv").write_text(content)
        assert "more than a workbook can hold, 1,048," in refused(f"--file={name}.csv", *ANSWERS, "out.xlsx")
    (place / "mixed.jsonl").write_text('{"text": "fine", "n": 1}\n{"text": "bad", "n": "one"}\n')
    assert "parquet cannot hold that, .jsonl can" in refused("--file=mixed.jsonl", *ANSWERS, "out.parquet")
    (place / "taken.csv").write_text("text,prediction\nfine,1\n")
    assert "has a column 'prediction' already" in refused("--file=taken.csv", *ANSWERS, "out.csv")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "openpyxl", None)
        assert "the package openpyxl is not installed" in refused("--file=new.csv", *ANSWERS, "out.xlsx")
    (place / "others.csv").write_text("text,label\nfine,9\nbad,3\n")
    printed = succeed("evaluate.py", "--file=others.csv", *ANSWERS, "others-out.csv", cwd=place)
    assert "\nnote: not compared, since their labels are none of the classes: 1 of 2 rows\n  (line 2)\n" in printed
    assert "\nlabels to compare with: 1 of 2 rows\n" in printed
    assert not (place / "out.csv").exists()
