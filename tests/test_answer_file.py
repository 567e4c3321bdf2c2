"""evaluate.py --file: a file comes back as it was, with the answers as further columns."""

import bz2
import csv
import datetime
import gzip
import hashlib
import json
import os
import re
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import command, here, random_model, refuse, save, succeed, unwrapped
from sklearn.metrics import classification_report, confusion_matrix, f1_score, log_loss

import app
from classifier.answers import report
from classifier.answers.calibration import calibration_error
from classifier.answers.models import Chunk, Classifier, log_probabilities
from classifier.answers.tally import Tally, tally_of
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


def answer(place, file: str, *options: str, out: str = "out.csv") -> str:
    """Answer a file into another; return what is printed."""
    return succeed("evaluate.py", f"--file={file}", *options, "--overwrite", *ANSWERS, out, cwd=place)


def probabilities(place, texts: list[str]) -> np.ndarray:
    """What the checkpoint gives each text by itself: (texts, classes)."""
    loaded = [Classifier.load(place / "best.pt", "cpu", "float32")]
    return np.concatenate([log_probabilities(loaded, [text]).exp().numpy() for text in texts])


def test_every_row_and_column_is_kept_and_has_its_answer(place, monkeypatch):
    monkeypatch.setattr("classifier.answers.models.AT_ONCE", 2)  # the rows are answered in parts
    printed = answer(place, "new.csv")
    rows = answered(place / "out.csv")
    assert list(rows[0]) == ["key", "text", "label", "more", "prediction", "confidence", "p_1", "p_2", "p_3"]
    assert [tuple(row.values())[:4] for row in rows] == ROWS
    full = [row for row in rows if row["text"].strip()]
    found = np.array([[float(row[f"p_{name}"]) for name in NAMES] for row in full])
    np.testing.assert_allclose(found, probabilities(place, [row["text"] for row in full]), atol=2e-6)
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
    printed = answer(place, "new.csv")
    assert "\ncolumns: texts in 'key' + 'text' (as in training), labels in 'label' (by its" in printed
    other_order = unwrapped(answer(place, "new.csv", "--text_column", "text", "key", out="turned.csv"))
    assert "note: the model was trained on Key + text, in this order" in other_order and "note: the m" not in printed
    whole = probabilities(place, [f"{row[0]}\n{row[1]}".strip() for row in ROWS]).argmax(1)
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
    answer(place, "new.csv", out="plain.csv")
    answer(place, "new.csv", out=name)
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
    answer(place, "new.json", out="out.jsonl")
    found = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    for given, row in zip(objects, found, strict=True):
        assert {name: row[name] for name in given} == given
    assert found[1]["prediction"] is None and found[1]["p_1"] is None and found[0]["confidence"] > 0.3
    answer(place, "new.json")
    assert json.loads(answered(place / "out.csv")[0]["more"]) == objects[0]["more"]


@pytest.mark.parametrize(
    "content, options, texts",
    [
        ('text\ngood film\n"bad\nfilm"\nfine\nok\n', [], ["good film", "bad\nfilm", "fine", "ok"]),
        ('text\ngood film\n""\n\nbad film\n""\n\n', [], ["good film", "", "", "bad film", ""]),
        ("text,note\ngood film,a\n,\n\nbad film,b\n,\n", [], ["good film", "", "bad film"]),
        ("__label__2 fine, good\n", [], ["fine, good"]),
        ("label~text\n2~fine, good\n", ["--delimiter=~"], ["fine, good"]),
    ],
)
def test_no_row_is_torn_or_lost(place, content, options, texts):
    (place / "new.csv").write_text(content)
    answer(place, "new.csv", *options)
    rows = answered(place / "out.csv")
    assert [row["text"] for row in rows] == texts
    assert [bool(row["prediction"]) for row in rows] == [bool(text) for text in texts]
    assert [row.get("label", "2") for row in rows] == ["2"] * len(rows)


def test_a_workbook_of_answers_has_text_as_text_and_dates_go_to_json(place):
    load_workbook = pytest.importorskip("openpyxl").load_workbook
    texts = ["=1+1", "=== great film ===", "good\x0bfilm"]
    (place / "new.json").write_text(json.dumps([{"text": text, "tags": ["x"], "id": 10**18 + 1} for text in texts]))
    answer(place, "new.json", out="out.xlsx")
    column, _, ids, *_ = zip(*load_workbook(place / "out.xlsx", data_only=True).active.values, strict=True)
    assert column == ("text", *texts[:2], "good\ufffdfilm") and ids[1] == "1000000000000000001"  # a number loses digits
    book = pytest.importorskip("openpyxl").Workbook()
    for row in [("text", "when", "n"), ("fine", datetime.datetime(2026, 1, 2), 1), ("good", None, None)]:
        book.active.append(row)
    book.save(place / "dates.xlsx")
    answer(place, "dates.xlsx", out="dates.jsonl")
    assert json.loads((place / "dates.jsonl").read_text().splitlines()[0])["when"].startswith("2026-01-02")
    pyarrow = pytest.importorskip("pyarrow")
    answer(place, "dates.xlsx", out="dates.parquet")
    assert read_table(place / "dates.parquet").column("n") == ["1", ""]
    far = pyarrow.table({"text": ["fine"], "when": pyarrow.array([9 * 10**17], pyarrow.timestamp("s"))})
    pytest.importorskip("pyarrow.parquet").write_table(far, place / "far.parquet")  # a time that Python cannot have
    answer(place, "far.parquet")


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
    assert app.answer_file(loaded, str(place / "many.csv")) == (None, said, [])
    assert app.answer_file(loaded, None) == (None, "Choose a file first.", [])


def test_what_cannot_be_answered_is_refused_before_hours_have_gone_into_it(place, monkeypatch):
    def refused(*words: str) -> str:
        with monkeypatch.context() as patched:
            patched.setattr(Classifier, "logits", lambda *_: pytest.fail("refused too late"))
            return refuse("evaluate.py", *words, cwd=place)

    (place / "two.csv").write_text("text,note,note\ngood film,1,2\n")
    assert "has two columns of one name" in refused("--file=two.csv", *ANSWERS, "two.jsonl")
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
    printed = answer(place, "others.csv", out="others-out.csv")
    assert (
        "\nnote: not compared, since their labels are none of the classes: 1 of 2 rows of others.csv, line 2\n"
        in unwrapped(printed)
    )
    assert "\nlabels to compare with: 1 of 2 rows\n" in printed
    assert not (place / "out.csv").exists()


# -----------------------------------------------------------------------------
# reports


def chunk_of(log_probabilities: torch.Tensor, longer: int = 0) -> Chunk:
    return Chunk(np.arange(len(log_probabilities)), log_probabilities, np.array([longer]))


def test_a_report_of_summed_parts_says_what_the_whole_does(capsys):
    random, names = np.random.default_rng(0), ["low", "middle", "high"]
    found = torch.from_numpy(random.normal(size=(1000, 3))).log_softmax(-1)
    labels = np.where(random.random(1000) < 0.1, -1, random.integers(3, size=1000)).astype(np.int16)
    parts = [tally_of(chunk_of(found[i : i + 300]), labels[i : i + 300]) for i in range(0, 1000, 300)]
    tally = Tally()
    for part in parts:
        tally += Tally.from_json(json.loads(json.dumps(part.to_json())))
    report.print_report(tally, names, "all")
    printed = capsys.readouterr().out
    known, logits = labels[labels >= 0], found[labels >= 0]
    predictions = logits.argmax(1).numpy()
    assert classification_report(known, predictions, target_names=names, digits=3) in printed
    assert f"\nloss {log_loss(known, logits.exp().numpy()):.4f}\n" in printed
    assert f"\nexpected calibration error {calibration_error(logits, known):.4f} (15 bins)\n" in printed
    assert f"\nmacro-F1 {f1_score(known, predictions, average='macro'):.4f}\n" in printed
    for number, row in enumerate(confusion_matrix(known, predictions)):
        assert f"{number} {names[number]}".ljust(10) + "".join(f"{count:>7}" for count in row) + "\n" in printed
    share = Counter(known.tolist()).most_common(1)[0]
    assert f"\nall accuracy: {(known == predictions).mean():.3f} (95% Wilson" in printed
    assert f"\nto compare with: always {names[share[0]]!r} {share[1] / len(known):.3f}\n" in printed
    assert f"\nnote: no better than always answering {names[share[0]]!r}\n" in printed


def test_large_numbers_do_not_run_together(capsys):
    counts = Counter({(0, 0): 197_463_001, (0, 1): 2_537_000, (1, 1): 2_197_463_000})
    report.print_report(Tally(2, counts, 1.0, np.ones((3, 15))), ["neg", "pos"], "big")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0", "neg", "197,463,001", "2,537,000"] in rows and ["1", "pos", "0", "2,197,463,000"] in rows
    assert ["neg", "1.000", "0.987", "0.994", "200000001"] in rows
    report.print_report(Tally(2, Counter({(-1, 1): 2_197_463_000})), ["neg", "a very long name"], "big")
    assert ["1", "a", "very", "long", "name", "2,197,463,000"] in map(str.split, capsys.readouterr().out.splitlines())


def test_of_many_classes_the_most_frequent_are_reported(capsys):
    names = [f"class {number}" for number in range(100)]
    counts = Counter({(number, number): 100 - number for number in range(50)})
    counts |= {(number, 99): 50 - number for number in range(30)}
    report.print_report(Tally(0, counts, 1.0, np.ones((3, 15))), names, "many")
    printed = capsys.readouterr().out
    rows = printed.splitlines()
    assert [line.split()[1] for line in rows if re.match(r" +class \d+ +[01]\.", line)] == [*map(str, range(20))]
    labels, predictions = np.array([pair for pair, count in counts.items() for _ in range(count)]).T
    assert (
        f"macro-F1 {f1_score(labels, predictions, average='macro', labels=range(100), zero_division=0):.4f}" in printed
    )
    rest = sum(count for (label, _), count in counts.items() if label >= 20)
    assert f"not shown: 80 of 100 classes, {rest:,} rows" in rows
    first = rows.index("most frequent confusions (rows, true class, predicted class)") + 1
    assert rows[first] == "     50  class 0, predicted class 99"
    assert rows[first + 20] == f"not shown: 10 other confusions, {sum(range(21, 31)):,} rows" and len(rows) < 70
    unlabelled = Counter({(-1, number): number for number in range(1, 40)})
    report.print_report(Tally(0, unlabelled), names, "many")
    rows = capsys.readouterr().out.splitlines()
    assert rows[2].split() == ["39", "class", "39", "39"] and len(rows) == 23
    assert rows[-1] == f"  not shown: 80 classes, {sum(range(20)):,} rows"


# -----------------------------------------------------------------------------
# what is written of the answers


@pytest.mark.parametrize(
    "classes, options, top", [(30, [], 5), (30, ["--top=2"], 2), (30, ["--top=99"], 30), (3, ["--top=2"], 2)]
)
def test_of_many_classes_or_with_top_the_most_probable_are_written(tmp_path, monkeypatch, classes, options, top):
    monkeypatch.setattr("classifier.answers.models.CELLS", 60)  # of 30 classes two rows at once
    names = [f"topic {number}" for number in range(classes)]
    save(tmp_path / "best.pt", random_model(classes), {"label_names": names, "leading_space": False})
    texts = ["A lovely film.", "", "Dull.", "A mess of a film", "He left."]
    (tmp_path / "new.csv").write_text("text,topic\n" + "".join(f"{text},topic 1\n" for text in texts))
    answer(tmp_path, "new.csv", *options)
    rows = answered(tmp_path / "out.csv")
    columns = ["prediction", "confidence"]
    columns += [f"{name}_{place}" for place in range(2, top + 1) for name in columns[:2]]
    assert list(rows[0]) == ["text", "topic", *columns]
    assert list(rows[1].values())[2:] == [""] * len(columns)
    for row in (row for row in rows if row["text"]):
        (shares,) = probabilities(tmp_path, [row["text"]])
        best = np.argsort(-shares, kind="stable")[:top]
        assert [row[name] for name in columns[::2]] == [names[i] for i in best]
        np.testing.assert_allclose([float(row[name]) for name in columns[1::2]], shares[best], atol=2e-6)


def test_below_min_confidence_the_prediction_is_empty(place):
    answer(place, "new.csv", out="all.csv")
    every = answered(place / "all.csv")
    full = sorted((float(row["confidence"]), row) for row in every if row["confidence"])
    least = full[2][0]  # of four rows, two are below
    printed = answer(place, "new.csv", f"--min_confidence={least}", out="sure.csv")
    unsure = [row["key"] for _, row in full[:2]]
    for one, other in zip(every, answered(place / "sure.csv"), strict=True):
        assert other == one | ({"prediction": ""} if one["key"] in unsure else {})
    sure = [row["prediction"] == row["label"][:1] for _, row in full[2:] if row["label"]]
    line = f"2 of 4 predictions left empty: their confidence is below {least:g}"
    line += f"; accuracy of the other {len(sure)}: {np.mean(sure):.3f}" if sure else ""
    assert f"\n{line}\n" in unwrapped(printed)
    text = ["evaluate.py", "--ckpt=best.pt", "--dtype=float32", "--text", full[0][1]["text"]]
    assert "\n(below 0.9) " in succeed(*text, "--min_confidence=0.9", cwd=place)
    assert "(below" not in succeed(*text, "--min_confidence=0.1", cwd=place)


# -----------------------------------------------------------------------------
# what the user should know about it


def test_labels_of_another_task_are_refused_before_answering(place, monkeypatch):
    (place / "other.csv").write_text("text,label\n" + "fine,spam\nbad,ham\nwell,\n" * 4)
    with monkeypatch.context() as patched:
        patched.setattr(Classifier, "logits", lambda *_: pytest.fail("refused too late"))
        message = refuse("evaluate.py", "--file=other.csv", *ANSWERS, "out.csv", cwd=place)
    assert "other.csv: none of the 8 labels is among the classes (1, 2, 3) of best.pt: is this the right" in message
    assert "no labels to compare with" in answer(place, "other.csv", "--no_labels")
    assert list(answered(place / "out.csv")[0]) == ["text", "label", "prediction", "confidence", "p_1", "p_2", "p_3"]
    (place / "test.csv").write_text("text,label\nfine,-1\nbad,-1\n")  # as GLUE's test files
    assert "note: every label of test.csv is -1: read as no labels\n" in answer(place, "test.csv")


def test_the_accuracy_on_a_file_of_training_has_a_note(place):
    sha256 = hashlib.sha256((place / "new.csv").read_bytes()).hexdigest()
    data = {"label_names": NAMES, "leading_space": False}
    for split, done in (("train", "was trained on"), ("dev", "was chosen on"), ("other", "")):
        sources = {"train": ["0"], "dev": ["1"]} | {split: ["2", sha256]}
        save(place / "best.pt", random_model(3), data | {"sources": sources})
        printed = answer(place, "new.csv")
        note = f"note: best.pt {done} new.csv: new texts may be answered less well\n"
        assert (note in unwrapped(printed)) == bool(done)
        assert "less well" not in answer(place, "new.csv", "--no_labels")


def test_texts_that_are_truncated_are_counted(place):
    data = {"label_names": NAMES, "leading_space": False}
    save(place / "best.pt", random_model(3), data, settings={"prompt": " It was"})  # leaves 22 of 24 tokens
    texts = [" fine" * length for length in (21, 22, 23, 24, 25, 60)] + [""]
    (place / "long.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    note = "note: 4 of 6 texts are longer than 22 tokens: their last 22 are read\n"
    assert note in unwrapped(answer(place, "long.csv"))
    words = ["evaluate.py", "--ckpt=best.pt", "--dtype=float32", "--text"]
    done = here(*words, "-", cwd=place, stdin="\n".join(texts) + "\n")
    assert unwrapped(done.stderr.decode()).startswith(note)
    assert here(*words, texts[1], cwd=place).stderr == b""


# -----------------------------------------------------------------------------
# many files


PARTS = ["p1.csv", "p2.jsonl", "p3.tsv", "p4.csv.gz"]
MANY = ["evaluate.py", "--file", "parts", *ANSWERS, "answered"]


@pytest.fixture
def parts(place):
    """Four parts of 40 rows, of three formats; one row in ten has no text, one in eight no label."""
    random, folder = np.random.default_rng(0), place / "parts"
    folder.mkdir()
    for name in PARTS:
        rows = [
            ("" if i % 10 == 0 else f"film {random.integers(999)}", "" if i % 8 == 0 else NAMES[i % 3])
            for i in range(40)
        ]
        if name.endswith("jsonl"):
            (folder / name).write_text("".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in rows))
        else:
            lines = ["\t".join(row) if name.endswith("tsv") else ",".join(row) for row in [("text", "label"), *rows]]
            content = ("\n".join(lines) + "\n").encode()
            (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return place


def answers_in(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def report_in(printed: str) -> str:
    return printed[printed.index("\nloss ") :].replace("4 files", "all.csv")


def test_each_of_many_files_is_answered_as_if_it_were_the_only_one(parts):
    printed = succeed(*MANY, cwd=parts)
    assert "answered has the answers to 4 files (rows: 160, without a text: 16)\n" in printed
    assert printed.count("columns: ") == 1
    for name, content in answers_in(parts / "answered").items():
        answer(parts, f"parts/{name}", out=f"alone-{name}")
        assert (parts / f"alone-{name}").read_bytes() == content
    # and the report is that of one file with all rows
    columns = [read_table(parts / "parts" / name).column for name in PARTS]
    with open(parts / "all.csv", "w", newline="") as f:
        cells = [row for column in columns for row in zip(column("text"), column("label"), strict=True)]
        csv.writer(f).writerows([("text", "label"), *cells])
    whole = answer(parts, "all.csv")
    assert "labels to compare with: 128 of 160 rows\n" in whole and report_in(printed) == report_in(whole)
    # the same command again has nothing to do, nor has one that names the files
    files = [f"parts/{name}" for name in PARTS]
    for words in (MANY, [*MANY, "--overwrite"], ["evaluate.py", "--file", *files, *ANSWERS, "answered"]):
        again = succeed(*words, cwd=parts)
        assert "answered already: 4 of 4 files\n" in again and report_in(again) == report_in(printed)


def test_answers_that_do_not_fit_are_replaced_only_if_asked(parts):
    def changed(name: str, old: str, new: str) -> None:
        path = parts / name
        path.write_text(path.read_text().replace(old, new))

    def foreign() -> None:
        (parts / "answered" / ".parts" / "p3.tsv" / "record").unlink()

    def other_checkpoint() -> None:
        save(parts / "best.pt", random_model(3), {"label_names": NAMES, "leading_space": True})

    succeed(*MANY, cwd=parts)
    for change, options, problem in [
        (lambda: changed("parts/p3.tsv", "film", "play"), [], "p3.tsv exists already, and its input has changed since"),
        (lambda: changed("answered/p3.tsv", "play", "book"), [], "p3.tsv exists already, and it was changed since"),
        (foreign, [], "p3.tsv exists already, and no record says what it was made from"),
        (lambda: None, ["--top=2"], "p1.csv exists already, and it was answered with other options"),
        (other_checkpoint, [], "p1.csv exists already, and another checkpoint has answered it"),
    ]:
        change()
        before = answers_in(parts / "answered")
        message = refuse(*MANY, *options, cwd=parts)
        assert problem in message and message.endswith("choose another folder for --predictions, or add --overwrite\n")
        assert answers_in(parts / "answered") == before
        succeed(*MANY, *options, "--overwrite", cwd=parts)
        if options:
            succeed(*MANY, "--overwrite", cwd=parts)
        answer(parts, "parts/p3.tsv", out="alone.tsv")
        assert (parts / "answered" / "p3.tsv").read_bytes() == (parts / "alone.tsv").read_bytes()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_a_part_is_never_half_there_and_the_same_command_resumes(parts, monkeypatch, options):
    succeed(*MANY, cwd=parts)
    whole = answers_in(parts / "answered")
    old = dict.fromkeys(PARTS, b"old") if options else {}
    replace, done = os.replace, []
    for fault in range(1, 20):
        folder, calls = parts / f"answered-{fault}", []
        folder.mkdir()
        for name, content in old.items():
            (folder / name).write_bytes(content)

        def dies(*paths, calls=calls, fault=fault):
            calls.append(paths)
            if len(calls) == fault:
                raise Killed
            replace(*paths)

        words = [*MANY[:-1], folder.name, *options]
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", dies)
            try:
                succeed(*words, cwd=parts)
            except Killed:
                pass
        there = answers_in(folder)
        assert all(content in (whole[name], b"old") for name, content in there.items()), fault
        done.append(sum(content != b"old" for content in there.values()))
        assert len(calls) >= fault or done[-1] == 4
        succeed(*words, cwd=parts)
        assert answers_in(folder) == whole
    assert done == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3] + [4] * 7  # staging, record and answers of each part


def test_what_cannot_be_answered_into_a_folder_is_refused(parts):
    (parts / "more").mkdir()
    (parts / "more" / "p1.csv").write_text("text\nfine\n")
    for files, out, message in [
        (["parts", "more/p1.csv"], "a", "parts/p1.csv and more/p1.csv have one name"),
        (["parts"], "a.csv", "several files are answered into a folder, and --predictions a.csv names a file"),
        (["parts/p1.csv"], "parts", "--predictions must name another folder than the one that is read"),
        (["parts/p1.csv", "parts/none.csv"], "a", "parts/none.csv: no such file"),
        (["parts/p1.csv", "best.pt"], "a", "a/best.pt: the name must end in .csv"),
        (["."], "a", ". has no files of a known format"),
    ]:
        (parts / "new.csv").unlink(missing_ok=True)
        assert message in refuse("evaluate.py", "--file", *files, *ANSWERS, out, cwd=parts)
        assert not (parts / "a").exists()
    (parts / "parts" / "notes.pdf").touch()
    (parts / "parts" / ".hidden.csv").touch()
    assert "\nnote: parts: skipped 1 file of no known format\n" in "\n" + succeed(*MANY, cwd=parts)
    printed = succeed("evaluate.py", "--file", "more/p1.csv", *ANSWERS, "one", cwd=parts)  # as a shell's * may give
    assert "one has the answers to 1 file (" in printed and [*answers_in(parts / "one")] == ["p1.csv"]
    (parts / "classes" / "1").mkdir(parents=True)
    (parts / "classes" / "1" / "a.txt").write_text("fine")
    answer(parts, "classes")  # one table
    assert [row["id"] for row in answered(parts / "out.csv")] == ["1/a.txt"]
    env = {"RANK": "2", "WORLD_SIZE": "2"}
    assert "RANK is '2' and WORLD_SIZE '2': RANK is a number" in refuse(
        *MANY, cwd=parts, run=command, env=os.environ | env
    )


def test_cells_with_any_line_end_come_back_as_they_were(place):
    texts = ["one\rtwo", "one\ntwo", "one\r\ntwo", "plain"]
    (place / "ends.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for out in ("ends.csv", "ends.tsv"):
        answer(place, "ends.jsonl", out=out)
        assert read_table(place / out).column("text") == texts
        assert b"plain" in (place / out).read_bytes() and not (place / out).read_bytes().endswith(b"\r\n")


def test_the_page_answers_a_file_whose_last_text_is_blank(place):
    (place / "blank.csv").write_text('text\nbad film\n""\n')
    path, message, rows = app.answer_file([Classifier.load(place / "best.pt", "cpu", "float32")], place / "blank.csv")
    assert path and "- rows: 2, without a text: 1\n" in message and [row[0] for row in rows] == ["bad film", ""]
    assert rows[0][1] in NAMES and rows[1][1:] == ["", ""]
    (place / "other.csv").write_text("text,label\nbad film,spam\n")
    _, message, _ = app.answer_file([Classifier.load(place / "best.pt", "cpu", "float32")], place / "other.csv")
    assert "- no label in 'label' is one of the model's classes: is this the right model?" in message


def test_a_part_that_cannot_be_read_costs_no_other_part_its_answers(parts):
    (parts / "parts" / "p2.csv").write_text("")
    done = here(*MANY, cwd=parts)
    assert done.returncode == 1 and "no answers: parts/p2.csv is empty" in unwrapped(done.stdout.decode())
    found = "error: no answers to parts/p2.csv: mend or remove them, and repeat the command (others are answered)\n"
    assert unwrapped(done.stderr.decode()) == found
    others = {name for name in PARTS if name != "p2.csv"}
    assert others <= set(answers_in(parts / "answered"))
    (parts / "answered" / ".parts" / "p1.csv" / "record").write_text("[1, 2]")
    assert "p1.csv exists already, and no record says" in refuse(*MANY, cwd=parts)


def test_the_number_of_a_process_is_checked(parts, monkeypatch):
    monkeypatch.setenv("RANK", "")
    succeed(*MANY, cwd=parts)  # as unset
    for rank in ("abc", "-1", "2"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert f"RANK is {rank!r} and WORLD_SIZE '2'" in refuse(*MANY, cwd=parts)


def test_models_of_other_columns_are_no_ensemble(place):
    for name, columns in {"one.pt": ["title", "body"], "two.pt": ["body", "title"]}.items():
        data = {"label_names": NAMES, "leading_space": False, "text_columns": columns}
        save(place / name, random_model(3), data)
    message = refuse("evaluate.py", "--ckpt", "one.pt", "two.pt", "--text", "a", "b", cwd=place)
    assert "two.pt was trained on body + title, not as one.pt: they cannot be an ensemble" in message
