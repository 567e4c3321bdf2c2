"""evaluate.py: its figures against scikit-learn and against one example at a time; text in, classes out."""

import csv
import io
import json
import math
import shutil
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import PREPARE_SAMPLE, command, here, random_model, refuse, save, succeed, unwrapped
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score, log_loss

import evaluate
from classifier import errors
from classifier.data.dataset import load_split, meta_sha256
from classifier.data.tokenizer import load_tokenizer
from model import Batch

NAMES = ["negative", "positive"]
LINES = "I loved every minute of it.\n\nA dull, endless mess.\n"
TRAIN = ["finetune.py", "--data_dir=data/sample", "--init_from=scratch", "--n_layer=1", "--n_head=2", "--n_embd=16"]
TRAIN += ["--block_size=32", "--gradient_accumulation_steps=1", "--learning_rate=3e-3", "--dtype=float32"]
EVALUATE = ["evaluate.py", "--dtype=float32"]


@pytest.fixture(scope="session")
def trained(prepared_sample):
    """The prepared sample with a checkpoint of a short run on it."""
    succeed(*TRAIN, "--max_steps=20", cwd=prepared_sample)
    return prepared_sample


@pytest.fixture
def place(trained, tmp_path):
    """A copy of it that a test may spoil."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def table(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f, delimiter="\t" if path.suffix == ".tsv" else ","))


def test_the_report_agrees_with_the_predictions_it_writes(place):
    printed = succeed(*EVALUATE, "--predictions=p.csv", cwd=place, run=command)
    rows, source = table(place / "p.csv"), table(place / "data" / "sample" / "dev.tsv")
    assert list(rows[0]) == ["id", "label", "prediction", "p_negative", "p_positive"]
    given = [(row["id"], int(row["sentiment"])) for row in source]
    assert [(row["id"], NAMES.index(row["label"])) for row in rows] == given
    probabilities = np.array([[float(row["p_negative"]), float(row["p_positive"])] for row in rows])
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=2e-6)
    labels, predictions = ([NAMES.index(row[column]) for row in rows] for column in ("label", "prediction"))
    assert predictions == probabilities.argmax(1).tolist()
    accuracy = accuracy_score(labels, predictions)
    low, high = binomtest(round(accuracy * 240), 240).proportion_ci(method="wilson")
    interval = f"(95% Wilson interval {low:.3f} to {high:.3f})"
    always = f"always 'negative' {labels.count(0) / 240:.3f}"
    lines = printed.splitlines()
    assert lines[-2:] == [f"to compare with: {always}", f"dev accuracy: {accuracy:.3f} {interval}"]
    assert f"macro-F1 {f1_score(labels, predictions, average='macro'):.4f}" in printed
    assert f"loss {log_loss(labels, probabilities / probabilities.sum(1, keepdims=True)):.4f}" in printed
    right_negatives = sum(label == prediction == 0 for label, prediction in zip(labels, predictions, strict=True))
    (row,) = [line for line in printed.splitlines() if line.startswith("0 negative")]
    assert row.split()[2:] == [str(right_negatives), str(labels.count(0) - right_negatives)]
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("device"))


def test_an_ensemble_averages_probabilities_and_is_compared_example_by_example(place):
    succeed(*TRAIN, "--block_size=20", "--max_steps=12", "--seed=2", "--out_dir=out-2", cwd=place)
    one, two, both = (["out/best.pt"], ["out-2/best.pt"], ["out/best.pt", "out-2/best.pt"])
    tables, shares = {}, {}
    for name, paths in [("one", one), ("two", two), ("both", both)]:
        succeed(*EVALUATE, "--ckpt", *paths, f"--predictions={name}.csv", cwd=place)
        tables[name] = table(place / f"{name}.csv")
        printed = succeed(*EVALUATE, "--ckpt", *paths, "--text=-", cwd=place, stdin=LINES)
        shares[name] = np.array([float(line.split()[2]) for line in printed.splitlines()[1:]])
    one_p, two_p, both_p = (np.array([float(row["p_positive"]) for row in rows]) for rows in tables.values())
    np.testing.assert_allclose(both_p, (one_p + two_p) / 2, atol=1.1e-6)
    np.testing.assert_allclose(shares["both"], (shares["one"] + shares["two"]) / 2, atol=1.1e-3)

    printed = succeed(*EVALUATE, "--ckpt", *one, "--compare", *both, cwd=place)
    right, other = (np.array([row["label"] == row["prediction"] for row in tables[name]]) for name in ("one", "both"))
    only_one, only_other = int((right & ~other).sum()), int((other & ~right).sum())
    assert only_one + only_other > 0
    assert f"compared with out/best.pt + out-2/best.pt, dev accuracy {other.mean():.3f}" in printed
    assert f"difference {right.mean() - other.mean():+.3f} (95% bootstrap interval" in printed
    assert f"right here and wrong there {only_one}, wrong here and right there {only_other}" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("device"))
    content = torch.load(place / "out-2" / "best.pt", weights_only=True)
    content["data"]["label_names"] = ["positive", "negative"]
    torch.save(content, place / "out-2" / "best.pt")
    assert "out-2/best.pt has other classes than out/best.pt" in refuse(*EVALUATE, "--ckpt", *both, cwd=place)
    message = refuse(*EVALUATE, "--compare", *two, cwd=place)
    assert "out-2/best.pt was trained on 'sample' (positive, negative)" in message


def test_a_split_is_answered_in_chunks_and_only_as_far_as_asked(place, monkeypatch):
    whole = succeed(*EVALUATE, "--predictions=p.csv", cwd=place)
    monkeypatch.setattr("classifier.answers.models.AT_ONCE", 50)
    chunks = succeed(*EVALUATE, "--predictions=chunks.csv", cwd=place)
    assert chunks.replace("chunks", "p") == whole
    least = sorted(max(row["p_negative"], row["p_positive"]) for row in table(place / "p.csv"))[100]
    printed = succeed(*EVALUATE, "--top=1", f"--min_confidence={least}", "--predictions=top.csv", cwd=place)
    right = []
    for row, every in zip(table(place / "top.csv"), table(place / "p.csv"), strict=True):
        assert list(row) == ["id", "label", "prediction", "confidence"]
        assert float(row["confidence"]) == pytest.approx(float(every[f"p_{every['prediction']}"]), abs=2e-6)
        assert row["prediction"] == (every["prediction"] if row["confidence"] >= least else "")
        right += [row["prediction"] == row["label"]] if row["prediction"] else []
    line = f"{240 - len(right)} of 240 predictions left empty: their confidence is below {float(least):g}"
    assert f"\n{line}; accuracy of the other {len(right)}: {np.mean(right):.3f}\n" in unwrapped(printed)


def test_truncated_texts_of_a_split_are_counted_for_each_model(place):
    succeed(*TRAIN, "--block_size=20", "--max_steps=1", "--out_dir=out-2", cwd=place)
    longer = (np.diff(load_split(place / "data" / "sample", "dev").offsets) > 20).sum()
    note = f"\nnote: {longer} of 240 texts are longer than 20 tokens: their last 20 are read\n"
    assert longer > 0 and note in succeed(*EVALUATE, "--ckpt=out-2/best.pt", cwd=place)
    assert note in succeed(*EVALUATE, "--ckpt", "out/best.pt", "out-2/best.pt", cwd=place)
    assert "longer than" not in succeed(*EVALUATE, cwd=place)


def test_the_most_confident_mistakes_come_first_with_their_texts(place):
    printed = succeed(*EVALUATE, "--errors=7", "--predictions=p.csv", cwd=place)
    wrong = [row for row in table(place / "p.csv") if row["label"] != row["prediction"]]
    wrong.sort(key=lambda row: -float(row[f"p_{row['prediction']}"]))
    sentences = {row["id"]: row["sentence"] for row in table(place / "data" / "sample" / "dev.tsv")}
    head, *listed = printed[printed.index("the 7 most") :].rstrip().split("\n\n")
    assert head == f"the 7 most confident of {len(wrong)} mistakes"
    for row, entry in zip(wrong[:7], listed, strict=True):
        first, shares, *text = entry.splitlines()
        assert first == f"id {row['id']}: {row['label']}, predicted {row['prediction']}"
        assert shares == f"  negative {float(row['p_negative']):.3f}, positive {float(row['p_positive']):.3f}"
        assert " ".join(" ".join(text).split()) == " ".join(sentences[row["id"]].split())
        assert max(map(len, text)) <= 80
    assert f"\nthe {len(wrong)} most confident of {len(wrong)} mistakes\n" in succeed(
        *EVALUATE, "--errors=999", cwd=place
    )


def add_test_split(place):
    """Prepare the sample anew, with a test split of two sentences without labels."""
    (place / "test.tsv").write_text("id\tsentence\nt1\tA lovely film .\nt2\tA mess .\n")
    succeed(*PREPARE_SAMPLE, "--test", "test.tsv", cwd=place)


def test_submission_files_are_the_courses_byte_for_byte_and_a_split_may_have_no_labels(place):
    again = "only train, dev: run `python prepare_own.py --name sample ...` again, with --test FILE"
    assert f"has no 'test' split, {again}" in refuse(*EVALUATE, "--submission=sub", cwd=place)
    assert not (place / "sub").exists()
    add_test_split(place)
    succeed(*EVALUATE, "--submission=sub", "--predictions=p.csv", cwd=place)
    expected = "id \t Predicted_Sentiment \n"
    expected += "".join(f"{row['id']}, {NAMES.index(row['prediction'])} \n" for row in table(place / "p.csv"))
    assert (place / "sub" / "finetune-sample-dev-out.csv").read_bytes() == expected.encode()
    test = (place / "sub" / "finetune-sample-test-out.csv").read_text().split("\n")
    assert [line[:4] for line in test[1:3]] == ["t1, ", "t2, "] and test[1][4:] in ("0 ", "1 ") and len(test) == 4
    # the test split has no labels, and gets predictions without an accuracy
    printed = succeed(*EVALUATE, "--split=test", "--predictions=test.csv", cwd=place)
    assert "no labels to compare with" in printed and "accuracy" not in printed
    rows = (place / "test.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[1].startswith("t1,,") and rows[2].startswith("t2,,")
    message = refuse(*EVALUATE, "--split=test", "--errors=3", cwd=place)
    assert "the test split has no labels: --compare, --errors and --plots need them" in message


def test_what_is_there_is_replaced_only_if_asked_and_plots_are_pictures(place):
    add_test_split(place)
    outputs = {"--predictions=new/p.csv": "new/p.csv", "--plots=pictures": "pictures/confusion.png"}
    outputs |= {"--submission=sub": "sub/finetune-sample-dev-out.csv"}
    succeed(*EVALUATE, *outputs, cwd=place)
    for option, name in outputs.items():
        (place / name).write_text("mine")
        assert f"{name} exists already" in refuse(*EVALUATE, option, cwd=place)
        assert (place / name).read_text() == "mine"
    (place / "taken").write_text("mine")
    assert "cannot write taken/p.csv: " in refuse(*EVALUATE, "--predictions=taken/p.csv", cwd=place)
    succeed(*EVALUATE, *outputs, "--overwrite", cwd=place)
    assert all((place / name).read_bytes() != b"mine" for name in outputs.values())
    pictures = {path.name: matplotlib.image.imread(path) for path in (place / "pictures").iterdir()}
    assert pictures.keys() == {"confusion.png", "reliability.png"}
    assert all(300 < size < 1000 for picture in pictures.values() for size in picture.shape[:2])


def test_data_that_changed_since_training_is_not_evaluated_unasked(place):
    for split in ("train", "dev"):
        file = place / "data" / "sample" / f"{split}.tsv"
        file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
        succeed(*PREPARE_SAMPLE, cwd=place)
        message = refuse(*EVALUATE, "--split=train", cwd=place)
        assert "out/best.pt was trained on: its train split may contain training texts" in message
        if split == "train":  # dev is still what it was, and can be compared with
            assert "dev accuracy" in succeed(*EVALUATE, cwd=place)
    message = refuse(*EVALUATE, cwd=place)
    assert "data/sample is not the data that out/best.pt was trained on: its dev split may" in message
    printed = succeed(*EVALUATE, "--data_dir=data/sample", cwd=place)
    assert "note: data/sample is not the data" in printed and "dev accuracy" in printed


def test_from_another_folder_the_data_is_named_that_was_looked_for(place):
    elsewhere, words = place / "else", [*EVALUATE, "--ckpt=../out/best.pt"]
    elsewhere.mkdir()
    told = f"no such prepared folder here ({elsewhere / 'data' / 'sample'}): name it with --data_dir, or"
    assert told in refuse(*words, cwd=elsewhere)
    assert "dev accuracy" in succeed(*words, "--data_dir=../data/sample", cwd=elsewhere)


# -----------------------------------------------------------------------------
# text


@pytest.mark.parametrize(
    "words, message",
    [
        (["--text_column=title"], "--text_column needs --file"),
        (["--label_column=label"], "--label_column needs --file"),
        (["--quoting=csv"], "--quoting needs --file"),
        (["--encoding=cp1252"], "--encoding needs --file"),
        (["--delimiter=|"], "--delimiter needs --file"),
        (["--no_header"], "--no_header needs --file"),
        (["--text=A mess.", "--errors=3"], "--errors cannot be combined with --text"),
        (["--file=new.csv", "--split=test"], "--split cannot be combined with --file"),
        (["--info", "--errors=3"], "--errors cannot be combined with --info"),
        (["--top=3"], "--top and --min_confidence need --predictions"),
        (["--min_confidence=0.5"], "--top and --min_confidence need --predictions"),
        (["--errors=-3"], "--errors must be 1 or more, not -3"),
        (["--errors=0"], "--errors must be 1 or more, not 0"),
        (["--file=new.csv"], "--file needs --predictions"),
        (["--file=new.csv", "--top=0"], "--top must be 1 or more, not 0"),
        (["--file=new.csv", "--min_confidence=1.5"], "--min_confidence must be from 0 to 1, not 1.5"),
        (["--file=a", "--predictions=b", "--no_labels", "--label_column=c"], "--no_labels and --label_column exclude"),
        (["--file=a", "--predictions=a", "--overwrite"], "must name another file than the one that is read"),
    ],
)
def test_an_option_that_is_wrong_or_would_be_ignored_is_refused(tmp_path, words, message):
    assert message in refuse("evaluate.py", *words, cwd=tmp_path)


def test_each_line_of_standard_input_is_classified(place):
    done = here(*EVALUATE, "--text", "-", cwd=place, stdin=LINES)
    assert done.stderr.decode() == "note: left out 1 blank line: line 2\n"
    lines = done.stdout.decode().splitlines()
    assert lines[0].split() == ["prediction", "negative", "positive", "text"] and len(lines) == 3
    for line, text in zip(lines[1:], LINES.split("\n\n"), strict=True):
        assert line.endswith("  " + text.strip())
        name, negative, positive = line.split()[:3]
        assert float(negative) + float(positive) == pytest.approx(1, abs=2e-3)
        assert name == ("positive" if float(positive) > float(negative) else "negative")
        assert succeed(*EVALUATE, "--text", text.strip(), cwd=place).splitlines() == [lines[0], line]
    windows = here(*EVALUATE, "--text", "-", cwd=place, stdin="\ufeff" + LINES.replace("\n", "\r\n"))
    assert windows.stdout == done.stdout


def test_lines_that_are_not_utf8_cost_no_other_line_its_answer(place):
    lines = [*LINES.encode().splitlines(), b"caf\xe9", b"Fine.", b"\xff\xfe"]
    done = here(*EVALUATE, "--text=-", cwd=place, stdin=b"\n".join(lines))
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 4 and b"Fine." in done.stdout
    error = unwrapped(done.stderr.decode()).splitlines()[-1]
    assert error.startswith("error: no answer for lines 4, 6: not valid UTF-8")


def test_of_many_classes_the_five_likeliest_are_shown(tmp_path):
    names = [f"topic {number}" for number in range(150)]
    model = random_model(150)
    save(tmp_path / "best.pt", model, {"label_names": names, "leading_space": False})
    header, *lines, text = succeed(*EVALUATE, "--ckpt=best.pt", "--text=A mess.", cwd=tmp_path).splitlines()
    tokens = torch.tensor([load_tokenizer().encode_ordinary("A mess.")])
    shares = model(Batch.from_padded(tokens, torch.tensor([tokens.shape[1]])))[0].softmax(-1)
    likeliest = ", ".join(f"topic {i} {shares[i]:.3f}" for i in shares.argsort(descending=True)[:5])
    assert (header, text) == ("the five most probable of 150 classes, then the text", "  A mess.")
    assert " ".join(lines) == likeliest + ", ..." and max(map(len, lines)) <= 80


def test_long_names_of_classes_keep_to_80_columns(tmp_path):
    names = [f"a rather long name of a class, {number}" for number in range(4)]
    save(tmp_path / "best.pt", random_model(4), {"label_names": names, "leading_space": False})
    printed = succeed(*EVALUATE, "--ckpt=best.pt", "--text=A mess.", cwd=tmp_path)
    assert printed.startswith("probabilities, then the text\na rather long name of a class, 0 0.")
    assert max(map(len, printed.splitlines())) <= 80 and printed.endswith("\n  A mess.\n")


def test_a_terminal_is_not_rewritten_by_a_text_and_gets_what_it_can_show(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--text", "日 \x1b[2J"])
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    errors.run(evaluate.main)
    assert rb"\u65e5 \x1b[2J" in sys.stdout.buffer.getvalue()


# -----------------------------------------------------------------------------
# what does not fit


def spoil_meta(**values):
    """Change the prepared folder's facts, checksum included."""

    def spoil(place):
        meta = place / "data" / "sample" / "meta.json"
        content = json.loads(meta.read_text()) | values
        meta.write_text(json.dumps(content | {"sha256": meta_sha256(content)}))

    return spoil


def spoil_pickle(place):
    class Trap:
        def __reduce__(self):
            return open, (str(place / "trap"), "w")

    torch.save({"format": "gpt2-classifier", "trap": Trap()}, place / "out" / "best.pt")


def change(part, value):
    """Save best.pt again with a part changed, or some values of it."""

    def spoil(place):
        content = torch.load(place / "out" / "best.pt", weights_only=True)
        content[part] = content[part] | value if isinstance(value, dict) else value
        torch.save(content, place / "out" / "best.pt")

    return spoil


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda place: (place / "out" / "best.pt").unlink(), "there is no checkpoint out/best.pt"),
        (spoil_pickle, "not a whole checkpoint"),
        (lambda place: torch.save({"model": {}}, place / "out" / "best.pt"), "no checkpoint of finetune.py"),
        (change("model", {"wte.weight": torch.zeros(10, 16)}), "its weights do not fit its configuration"),
        (change("model", {"head.bias": torch.tensor([math.nan, 0])}), "out/best.pt is damaged"),
        (change("config", {"n_head": 0}), "out/best.pt is damaged"),
        (change("format_version", 7), "out/best.pt has format version 7, and this program reads 2"),
        (spoil_meta(task="other"), "trained on 'sample' (negative, positive), but data/sample has 'other' (negative, "),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(place, spoil, message):
    spoil(place)
    assert message in refuse(*EVALUATE, cwd=place)
    assert not (place / "trap").exists()
