"""The pictures say what the figures are: read from their SVG form, in which text stays text."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPO, make_split

from classifier.answers.models import Chunk
from classifier.answers.plots import draw_confusion, draw_reliability
from classifier.answers.tally import tally_of
from classifier.training.curves import draw_curves

LOG = """step,epoch,split,loss,accuracy,learning_rate,grad_norm,examples_per_second,seconds
1,0.5,train,1.6,,0.001,1.0,10,1
2,1.0,train,1.4,,0.001,1.0,10,2
2,1.0,dev,1.5,0.30,,,10,3
3,1.5,train,1.2,,0.001,1.0,10,4
4,2.0,train,1.1,,0.001,1.0,10,5
4,2.0,dev,1.3,0.45,,,10,6
6,3.0,dev,1.2,0.45,,,10,7
8,4.0,dev,1.9,0.40,,,10,8
"""


def texts(path) -> list[str]:
    """The words of an SVG picture, in the order of drawing."""
    return [re.sub("<.*?>", "", each) for each in re.findall(r"<text[^>]*>(.*?)</text>", path.read_text(), re.DOTALL)]


def test_the_curves_mark_the_best_epoch_and_the_reference(tmp_path):
    (tmp_path / "log.csv").touch()
    draw_curves(tmp_path / "c.svg", tmp_path / "log.csv", 6, 0.5)  # nothing yet; spoilt logs are in test_fuzz.py
    (tmp_path / "log.csv").write_text(re.sub(r"(\d)\n", r"\1,0.3\n", LOG.replace("seconds", "seconds,macro_f1")))
    draw_curves(tmp_path / "c.svg", tmp_path / "log.csv", 6, 0.519)
    words = {"reference: 0.519", "train, each step", "dev, macro-F1", "loss (nats)", "epoch"}
    assert words | {"best.pt: 0.450, epoch 3"} <= set(texts(tmp_path / "c.svg"))
    (tmp_path / "log.csv").write_text(LOG)
    draw_curves(tmp_path / "c.svg", tmp_path / "log.csv", 0, 0.0)  # no best.pt, no reference
    assert not any(word.startswith(("reference:", "best", "dev,")) for word in texts(tmp_path / "c.svg"))


@pytest.fixture(scope="module")
def answers():
    """Logits of 400 examples in three classes, and the split."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 40, size=400)
    split = make_split([[1] * length for length in lengths], random.integers(3, size=400).tolist())
    logits = torch.from_numpy(random.normal(size=(400, 3))).float()
    logits[torch.arange(400), torch.from_numpy(split.labels.astype(np.int64))] += 1
    return logits, split


def test_the_confusion_matrix_has_counts_and_shares_of_rows(answers, tmp_path):
    logits, split = answers
    tally = tally_of(Chunk(np.arange(400), logits.double().log_softmax(-1), np.zeros(1, int)), split.labels)
    draw_confusion(tmp_path / "c.svg", tally, ["one", "two", "three"], "dev")
    words = texts(tmp_path / "c.svg")
    predictions = logits.argmax(-1).numpy()
    for row in range(3):
        for column in range(3):
            count = int(((split.labels == row) & (predictions == column)).sum())
            share = f"{count / int((split.labels == row).sum()):.0%}"
            assert str(count) in words and share in words
    assert words.count("one") == words.count("three") == 2
    draw_confusion(tmp_path / "odd.svg", tally, [r"$\frac$", "a_b^c", "很好 " * 40], "dev")
    assert r"$\frac$" in texts(tmp_path / "odd.svg") and "a_b^c" in texts(tmp_path / "odd.svg")
    many = tally_of(Chunk(np.arange(60), torch.eye(60).double(), np.zeros(1, int)), np.arange(60))
    names = [str(number) for number in range(60)]  # too many classes for figures in the cells
    draw_confusion(tmp_path / "many.png", many, names, "dev")


def test_the_calibration_error_is_guos(answers, tmp_path):
    logits, split = answers
    tally = tally_of(Chunk(np.arange(400), logits.double().log_softmax(-1), np.zeros(1, int)), split.labels)
    draw_reliability(tmp_path / "r.svg", tally, ["one", "two", "three"], "dev")
    confidence, predictions = (each.numpy() for each in logits.double().softmax(-1).max(-1))
    right = predictions == split.labels
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        expected += abs(right[inside].sum() - confidence[inside].sum()) / 400
    assert any(f"expected calibration error {expected:.3f}" in word for word in texts(tmp_path / "r.svg"))


def test_a_notebooks_backend_does_not_matter():
    command = [sys.executable, "-c", "from classifier.answers import plots"]
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    subprocess.run(command, cwd=REPO, env=environment, check=True)
