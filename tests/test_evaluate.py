"""evaluate.py: its figures against scikit-learn and against one example at a time; text in, classes out."""

import csv
import io
import json
import math
import os
import shutil

import matplotlib.image
import numpy as np
import pytest
import torch
from conftest import PREPARE_SAMPLE, command, random_split, refuse, succeed
from sklearn.metrics import accuracy_score, f1_score, log_loss

import evaluate
from classifier import checkpoint
from classifier.answers import models as answers
from classifier.answers.models import Loaded
from classifier.data.dataset import meta_sha256
from classifier.data.tokenizer import load_tokenizer
from classifier.errors import UserError
from classifier.training.batches import Texts
from classifier.training.predict import loss_and_accuracy, predict
from evaluate import classify_lines
from model import GPT, Batch, GPTConfig

TEXTS = "I loved every minute of it.\n\nA dull, endless mess.\n"


@pytest.fixture(scope="session")
def trained(prepared_sample):
    """The prepared sample with a checkpoint of a short run on it."""
    arguments = ["--data_dir=data/sample", "--init_from=scratch", "--n_layer=1", "--n_head=2", "--n_embd=16"]
    succeed("finetune.py", *arguments, "--block_size=32", "--max_steps=20", "--gradient_accumulation_steps=1",
            "--learning_rate=3e-3", "--dtype=float32", cwd=prepared_sample)  # fmt: skip
    return prepared_sample


@pytest.fixture
def place(trained, tmp_path):
    """A copy of it that a test may spoil."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def run_here(place, monkeypatch, capsys):
    """evaluate.py's main in this process and that copy: importing PyTorch anew for every call would take minutes."""
    monkeypatch.chdir(place)

    def run_here(*words: str, stdin: str | bytes = b"") -> str:
        stdin = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr("sys.argv", ["evaluate.py", *words])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        evaluate.main()
        return capsys.readouterr().out

    return run_here


def test_predictions_are_those_of_each_example_alone():
    torch.manual_seed(0)
    model = GPT(GPTConfig(3, 20, 97, 2, 2, 16)).eval()
    split = random_split(50, 30, 97, 3)
    logits = predict(model, Texts(split, model), torch.float32)
    for i in range(len(split)):
        tokens = torch.from_numpy(split.tokens[split.offsets[i] : split.offsets[i + 1]].astype(np.int64))[-20:]
        with torch.no_grad():
            alone = model(Batch.from_padded(tokens[None], torch.tensor([len(tokens)])))[0]
        torch.testing.assert_close(logits[i], alone, atol=1e-5, rtol=1e-5)
    loss, accuracy = loss_and_accuracy(logits, split.labels)
    assert loss == pytest.approx(
        log_loss(split.labels, logits.double().softmax(-1).numpy(), labels=[0, 1, 2]), abs=1e-5
    )
    assert accuracy == accuracy_score(split.labels, logits.argmax(-1).numpy())


def wilson_by_hand(right: int, n: int) -> tuple[float, float]:
    """The interval's two ends: the roots in p of (right / n - p)^2 = z^2 p (1 - p) / n."""
    z2 = 1.959963984540054**2
    return tuple(sorted(np.roots([1 + z2 / n, -2 * right / n - z2 / n, (right / n) ** 2]).real))


def test_the_report_agrees_with_the_predictions_it_writes(place):
    printed = succeed("evaluate.py", "--predictions", "p.csv", "--dtype=float32", cwd=place, run=command)
    with open(place / "p.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    with open(place / "data" / "sample" / "dev.tsv", encoding="utf-8", newline="") as f:
        source = list(csv.DictReader(f, delimiter="\t"))
    assert [(row["id"], row["label"]) for row in rows] == [(row["id"], row["sentiment"]) for row in source]
    probabilities = np.array([[float(row["p0"]), float(row["p1"])] for row in rows])
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=2e-6)
    labels, predictions = ([int(row[column]) for row in rows] for column in ("label", "prediction"))
    assert predictions == probabilities.argmax(1).tolist()
    accuracy = accuracy_score(labels, predictions)
    low, high = wilson_by_hand(round(accuracy * 240), 240)
    assert printed.splitlines()[-1] == f"dev accuracy: {accuracy:.3f} (95% Wilson interval {low:.3f} to {high:.3f})"
    assert f"macro-F1 {f1_score(labels, predictions, average='macro'):.4f}" in printed
    assert f"loss {log_loss(labels, probabilities / probabilities.sum(1, keepdims=True)):.4f}" in printed
    right_negatives = sum(label == prediction == 0 for label, prediction in zip(labels, predictions, strict=True))
    (row,) = [line for line in printed.splitlines() if line.startswith("0 negative")]
    assert row.split()[2:] == [str(right_negatives), str(labels.count(0) - right_negatives)]
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("device"))


def test_an_ensemble_averages_probabilities_and_is_compared_example_by_example(place, run_here):
    arguments = ["--data_dir=data/sample", "--init_from=scratch", "--n_layer=1", "--n_head=2", "--n_embd=16"]
    succeed("finetune.py", *arguments, "--block_size=20", "--max_steps=12", "--gradient_accumulation_steps=1",
            "--seed=2", "--learning_rate=3e-3", "--dtype=float32", "--out_dir=out-2", cwd=place)  # fmt: skip
    one, two, both = (["out/best.pt"], ["out-2/best.pt"], ["out/best.pt", "out-2/best.pt"])
    tables = {}
    for name, paths in [("one", one), ("two", two), ("both", both)]:
        run_here("--ckpt", *paths, "--predictions", f"{name}.csv", "--dtype=float32")
        tables[name] = np.genfromtxt(place / f"{name}.csv", delimiter=",", skip_header=1)
    mean = (tables["one"][:, 3:] + tables["two"][:, 3:]) / 2
    np.testing.assert_allclose(tables["both"][:, 3:], mean, atol=1.1e-6)

    printed = run_here("--ckpt", *one, "--compare", *both, "--dtype=float32")
    right, other = (tables[name][:, 1] == tables[name][:, 2] for name in ("one", "both"))
    only_one, only_other = int((right & ~other).sum()), int((other & ~right).sum())
    assert only_one + only_other > 0
    assert f"compared with out/best.pt + out-2/best.pt, dev accuracy {other.mean():.3f}" in printed
    with pytest.raises(UserError, match="--compare names what --ckpt names: there is no difference to test"):
        run_here("--ckpt", *both, "--compare", "out-2/best.pt", "./out/../out/best.pt")
    assert f"difference {right.mean() - other.mean():+.3f} (95% bootstrap interval" in printed
    assert f"right here and wrong there {only_one}, wrong here and right there {only_other}" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("device"))
    alone = [float(line.split()[2]) for line in run_here("--ckpt", *one, "--text", TEXTS).splitlines()[1:]]
    others = [float(line.split()[2]) for line in run_here("--ckpt", *two, "--text", TEXTS).splitlines()[1:]]
    together = [float(line.split()[2]) for line in run_here("--ckpt", *both, "--text", TEXTS).splitlines()[1:]]
    assert together == pytest.approx([(a + b) / 2 for a, b in zip(alone, others, strict=True)], abs=1.1e-3)
    content = torch.load(place / "out-2" / "best.pt", weights_only=True)
    content["data"]["label_names"] = ["positive", "negative"]
    torch.save(content, place / "out-2" / "best.pt")
    with pytest.raises(UserError, match="out-2/best.pt has other classes than out/best.pt"):
        run_here("--ckpt", *both)


def test_the_surest_mistakes_come_first_with_their_sentences(place, run_here):
    printed = run_here("--errors=7", "--predictions=p.csv", "--dtype=float32")
    with open(place / "p.csv", newline="") as f:
        wrong = [row for row in csv.DictReader(f) if row["label"] != row["prediction"]]
    wrong.sort(key=lambda row: -max(float(row["p0"]), float(row["p1"])))
    with open(place / "data" / "sample" / "dev.tsv", encoding="utf-8", newline="") as f:
        sentences = {row["id"]: row["sentence"] for row in csv.DictReader(f, delimiter="\t")}
    head, *listed = printed[printed.index("the surest") :].rstrip().split("\n\n")
    assert head == f"the surest 7 of {len(wrong)} mistakes"
    names = ["negative", "positive"]
    for row, entry in zip(wrong[:7], listed, strict=True):
        first, shares, *text = entry.splitlines()
        truth, taken = names[int(row["label"])], names[int(row["prediction"])]
        assert first == f"{row['id']}: {truth}, taken for {taken}"
        assert shares == f"  negative {float(row['p0']):.3f}, positive {float(row['p1']):.3f}"
        assert " ".join(" ".join(text).split()) == " ".join(sentences[row["id"]].split())
        assert max(map(len, text)) <= 80
    with pytest.raises(UserError, match="--errors must be 0 or more"):
        run_here("--errors=-1")


def test_submission_files_are_the_courses_byte_for_byte(place, run_here):
    with pytest.raises(UserError, match="has no 'test' split"):
        run_here("--submission=sub")
    assert not (place / "sub").exists()
    add_test_split(place)
    run_here("--submission=sub", "--predictions=p.csv")
    rows = [line.split(",") for line in (place / "p.csv").read_text().splitlines()[1:]]
    expected = "id \t Predicted_Sentiment \n" + "".join(f"{row[0]}, {row[2]} \n" for row in rows)
    assert (place / "sub" / "finetune-sample-dev-out.csv").read_bytes() == expected.encode()
    test = (place / "sub" / "finetune-sample-test-out.csv").read_text().split("\n")
    assert [line[:4] for line in test[1:3]] == ["t1, ", "t2, "] and test[1][4:] in ("0 ", "1 ") and len(test) == 4
    with pytest.raises(UserError, match="finetune-sample-dev-out.csv exists already"):
        run_here("--submission=sub")
    (place / "new").mkdir()
    with pytest.raises(UserError, match="is a file that --plots or --submission writes, too"):
        run_here("--submission=new", "--predictions=new/finetune-sample-dev-out.csv")


def test_plots_are_pictures_of_their_names_and_replace_nothing(place, run_here):
    run_here("--plots=pictures")
    names = {"confusion.png", "reliability.png", "accuracy_by_length.png"}
    assert {path.name for path in (place / "pictures").iterdir()} == names
    for path in (place / "pictures").iterdir():
        height, width, _ = matplotlib.image.imread(path).shape
        assert 300 < height < 1000 and 300 < width < 1000
    with pytest.raises(UserError, match="pictures/confusion.png exists already"):
        run_here("--plots=pictures")
    run_here("--plots=pictures", "--overwrite")
    with pytest.raises(UserError, match="for a prepared split only"):
        run_here("--plots=more", "--text=A mess.")
    (place / "file").write_text("")
    with pytest.raises(UserError, match="file is no folder"):
        run_here("--plots=file")


def test_predictions_are_not_overwritten_unless_asked(place, run_here):
    (place / "p.csv").write_text("mine")
    assert "p.csv exists already" in refuse("evaluate.py", "--predictions", "p.csv", cwd=place)
    assert (place / "p.csv").read_text() == "mine"
    run_here("--predictions", "p.csv", "--overwrite")
    assert (place / "p.csv").read_text().startswith("id,label,prediction,p0,p1\n")


@pytest.mark.parametrize(
    "path, message",
    [
        ("pipe", "no regular file"),
        ("data", "no regular file"),
        ("nowhere/p.csv", "its folder does not exist"),
        ("out/best.pt", "never a checkpoint itself"),
    ],
)
def test_predictions_go_to_regular_files_only(place, run_here, path, message):
    os.mkfifo(place / "pipe")
    with pytest.raises(UserError, match=message):
        run_here("--overwrite", "--predictions", path)


def test_writing_predictions_takes_no_other_file_away(place, run_here):
    (place / "p.csv.tmp").write_text("precious")
    run_here("--predictions", "p.csv")
    assert (place / "p.csv.tmp").read_text() == "precious" and (place / "p.csv").is_file()


def test_odd_text_is_classified_or_refused(place, run_here):
    with pytest.raises(UserError, match="no text to classify"):
        run_here("--text", "-")
    with pytest.raises(UserError, match="over 131,072 characters"):
        run_here("--text", "-", stdin="a" + " " * 200_000 + "b")
    run_here("--text", "-", stdin="a" + " " * 131_000 + "b")
    words = ["evaluate.py", "--text", "日 \x1b[2J"]
    assert r"\u65e5 \x1b[2J" in succeed(*words, cwd=place, run=command, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert "unrecognized arguments" in refuse("evaluate.py", "--bogus", cwd=place, run=command)


def test_data_that_changed_since_training_is_not_evaluated_unasked(place, run_here):
    for split in ("train", "dev"):
        file = place / "data" / "sample" / f"{split}.tsv"
        file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
        succeed(*PREPARE_SAMPLE, cwd=place)
        with pytest.raises(UserError, match="out/best.pt was trained on: its train split may hold training sentences"):
            run_here("--ckpt", "out/best.pt", "--split", "train")
        if split == "train":  # dev is still what it was, and can be compared with
            assert "dev accuracy" in run_here("--ckpt", "out/best.pt")
    with pytest.raises(
        UserError, match="data/sample is not the data that out/best.pt was trained on: its dev split may"
    ):
        run_here("--ckpt", "out/best.pt")
    printed = run_here("--ckpt", "out/best.pt", "--data_dir", "data/sample")
    assert "note: data/sample is not the data" in printed and "dev accuracy" in printed


def add_test_split(place):
    """Prepare the sample anew, with a test split of two sentences without labels."""
    (place / "test.tsv").write_text("id\tsentence\nt1\tA lovely film .\nt2\tA mess .\n")
    succeed(*PREPARE_SAMPLE, "--test", "test.tsv", cwd=place)


def test_a_split_without_labels_gets_predictions_and_no_accuracy(place, run_here):
    add_test_split(place)
    printed = run_here("--split=test", "--predictions=p.csv")
    assert "no labels to compare with" in printed and "accuracy" not in printed
    rows = (place / "p.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[1].startswith("t1,,") and rows[2].startswith("t2,,")
    with pytest.raises(UserError, match="test split has no labels: --compare, --errors and --plots need them"):
        run_here("--split=test", "--errors=3")
    with pytest.raises(UserError, match="has no 'extra' split, only train, dev, test"):
        run_here("--split=extra")


def test_text_is_classified_line_by_line(place, run_here):
    from_argument = run_here("--text", TEXTS)
    lines = from_argument.splitlines()
    assert lines[0].split() == ["prediction", "negative", "positive", "text"] and len(lines) == 3
    assert lines[1].endswith("  I loved every minute of it.")
    name, negative, positive = lines[1].split()[:3]
    assert float(negative) + float(positive) == pytest.approx(1, abs=2e-3)
    assert name == ("positive" if float(positive) > float(negative) else "negative")
    assert succeed("evaluate.py", "--text", "-", cwd=place, stdin=TEXTS) == from_argument
    assert run_here("--text", "-", stdin="\ufeff" + TEXTS.replace("\n", "\r\n")) == from_argument
    with pytest.raises(UserError, match="line 2 of the text: not valid UTF-8"):
        run_here("--text", "-", stdin=b"fine\n\xff\xfe\n")


def test_text_gets_the_leading_space_of_the_training_data(place, monkeypatch, capsys):
    model, saved = checkpoint.load(place / "out" / "best.pt")
    seen = []

    def predict(model, texts, dtype, on_examples):
        seen.append(texts.split.tokens.tolist())
        return torch.zeros(len(texts), 2)

    monkeypatch.setattr(answers, "predict", predict)
    encoding = load_tokenizer()
    for text, leading_space, expected in [
        ("A mess.", True, " A mess."),
        (" A mess.", True, " A mess."),
        (" A mess.", False, " A mess."),
        ("A mess.", False, "A mess."),
    ]:
        changed = saved | {"data": saved["data"] | {"leading_space": leading_space}}
        classify_lines([Loaded("out/best.pt", model, changed)], iter([text]), torch.float32)
        assert seen.pop() == encoding.encode_ordinary(expected)
    assert "A mess." in capsys.readouterr().out


def spoil_task(place):
    meta = place / "data" / "sample" / "meta.json"
    content = json.loads(meta.read_text()) | {"task": "other"}
    meta.write_text(json.dumps(content | {"sha256": meta_sha256(content)}))


def detokenize(place):
    meta = place / "data" / "sample" / "meta.json"
    content = json.loads(meta.read_text()) | {"detokenized": True}
    meta.write_text(json.dumps(content | {"sha256": meta_sha256(content)}))


def spoil_weights(place):
    content = torch.load(place / "out" / "best.pt", weights_only=True)
    content["model"]["wte.weight"] = content["model"]["wte.weight"][:10]
    torch.save(content, place / "out" / "best.pt")


def spoil_pickle(place):
    class Trap:
        def __reduce__(self):
            return open, (str(place / "trap"), "w")

    torch.save({"format": "gpt2-classifier", "trap": Trap()}, place / "out" / "best.pt")


def change(part, **values):
    """Save best.pt again with some values of a part changed."""

    def spoil(place):
        content = torch.load(place / "out" / "best.pt", weights_only=True)
        content[part] = content[part] | values
        torch.save(content, place / "out" / "best.pt")

    return spoil


def flip_a_weight(place):
    content = bytearray((place / "out" / "best.pt").read_bytes())
    content[len(content) // 2] ^= 0x40
    (place / "out" / "best.pt").write_bytes(content)


DAMAGED = "out/best.pt is damaged"


def write(content):
    return lambda place: torch.save(content, place / "out" / "best.pt")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda place: (place / "out" / "best.pt").unlink(), "there is no checkpoint out/best.pt"),
        (lambda place: (place / "out" / "best.pt").write_bytes(b""), "no whole checkpoint"),
        (lambda place: (place / "out" / "best.pt").write_bytes(b"PK\x03\x04 and so on"), "no whole checkpoint"),
        (spoil_pickle, "no whole checkpoint"),
        (spoil_weights, "its weights do not fit its configuration"),
        (spoil_task, "was trained on 'sample' (negative, positive), but data/sample holds 'other'"),
        (detokenize, "prepared without --detokenize, but data/sample was prepared with it"),
        (flip_a_weight, "no whole checkpoint"),
        (change("model", **{"head.bias": torch.tensor([math.nan, 0])}), DAMAGED),
        (change("model", **{"head.bias": torch.zeros(2, dtype=torch.float64)}), DAMAGED),
        (change("model", **{"head.bias": "no tensor"}), DAMAGED),
        (change("config", n_layer=3_000_000), DAMAGED),
        (change("config", n_head=0), DAMAGED),
        (change("config", dropout="x"), DAMAGED),
        (change("config", surprise=1), DAMAGED),
        (change("data", label_names=["one"]), DAMAGED),
        (change("data", label_names=["a", "\x1b[2J"]), DAMAGED),
        (change("data", leading_space=None), DAMAGED),
        (change("settings", prompt=None), DAMAGED),
        (change("data", examples={"train": 3}), DAMAGED),
        (change("data", examples={"train": 3, "dev": 10**30}), DAMAGED),
        (change("data", folder=3), DAMAGED),
        (change("progress", step="3"), DAMAGED),
        (change("progress", best={"step": 1}), DAMAGED),
        (change("progress", token_budget=None), DAMAGED),
        (change("progress", step=-5), DAMAGED),
        (change("progress", seconds=math.inf), DAMAGED),
        (change("run", settings=[1]), DAMAGED),
        (write({"format": "gpt2-classifier", "format_version": torch.tensor([1, 2])}), "has format version"),
        (write([1, 2]), "no checkpoint of finetune.py"),
        (write({"model": {}}), "no checkpoint of finetune.py"),
        (write({"format": "gpt2-classifier", "format_version": 7}), "has format version 7"),
        (write({"format": "gpt2-classifier", "format_version": 2}), "damaged or incomplete"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(place, run_here, spoil, message):
    spoil(place)
    with pytest.raises(UserError) as error:
        run_here("--ckpt", "out/best.pt")
    assert message in str(error.value)
    assert not (place / "trap").exists()


def test_a_damaged_checkpoint_is_one_line_from_the_command(place):
    flip_a_weight(place)
    assert "out/best.pt is no whole checkpoint" in refuse("evaluate.py", "--ckpt", "out/best.pt", cwd=place)
