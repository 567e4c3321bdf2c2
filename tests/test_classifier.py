"""Classifier in Python: the lines of its docstring in a real notebook's kernel, and what it refuses."""

import textwrap

import numpy as np
import pytest
import torch
from conftest import REPO, random_model, save

from classifier.answers.models import Classifier
from classifier.data.own import read_examples
from classifier.data.rows import read_table
from classifier.data.tokenizer import load_tokenizer
from classifier.errors import UserError
from model import Batch

NAMES = ["bad", "good"]
TEXTS = ["A lovely film.", "A dull mess."]


def test_the_lines_of_the_docstring_in_a_notebook(tmp_path, run_cell_of):
    run_cell = run_cell_of(tmp_path)
    model = random_model(2)
    (tmp_path / "out").mkdir()
    save(tmp_path / "out" / "best.pt", model, {"label_names": NAMES, "leading_space": True})
    lines = textwrap.dedent(Classifier.__doc__.split("\n\n", 1)[1])
    assert len([line for line in lines.splitlines() if line.strip()]) == 5
    assert not run_cell(f"import sys; sys.path.insert(0, {str(REPO)!r})")  # where a notebook of the repository runs
    shown = [line.split() for line in run_cell(lines).splitlines()]
    expected = torch.stack([alone(model, " " + text) for text in TEXTS])
    assert [label for label, _ in shown] == [NAMES[number] for number in expected.argmax(1)]
    assert [float(share) for _, share in shown] == pytest.approx(expected.amax(1).tolist(), abs=0.01)  # in bfloat16
    code = "print(classifier.model.training, probabilities.dtype, probabilities.shape)"
    assert run_cell(code) == "False float32 (2, 2)\n"


def alone(model, text: str) -> torch.Tensor:
    """The probabilities of a text's tokens, (K,)."""
    tokens = torch.tensor([load_tokenizer().encode_ordinary(text)])
    with torch.no_grad():
        return model(Batch.from_padded(tokens, torch.tensor([tokens.shape[1]]))).softmax(-1)[0]


def test_columns_are_joined_as_for_training(tmp_path):
    model = random_model(2)
    data = {"label_names": NAMES, "leading_space": False, "text_columns": ["title", "body"]}
    classifier = Classifier.load(save(tmp_path / "best.pt", model, data), "cpu", "float32")
    rows = [["A title", "a body\nof two lines"], ["", "a body"], ["A title", " "]]
    (tmp_path / "rows.csv").write_text('title,body,label\nA title,"a body\nof two lines",1\n,a body,0\nA title, ,1\n')
    examples, _ = read_examples([read_table(tmp_path / "rows.csv")], {"text": ["title", "body"], "label": ["label"]})
    assert [classifier.join_columns(row) for row in rows] == examples.texts
    labels, probabilities = classifier(rows)
    expected = torch.stack([alone(model, text) for text in examples.texts])
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert labels == [NAMES[number] for number in expected.argmax(1)]
    assert (classifier(examples.texts).probabilities == probabilities).all()
    with pytest.raises(UserError, match='2 columns, title, body, and this text has 3: .* as in --text "TITLE" "BODY"'):
        classifier([["a", "b", "c"]])


def test_what_is_no_list_of_texts_is_refused(tmp_path):
    classifier = Classifier.load(save(tmp_path / "best.pt", random_model(2)), "cpu", "float32")
    assert classifier([]).labels == [] and classifier([]).probabilities.shape == (0, 2)
    with pytest.raises(UserError, match=r"this is one text, and a list of texts is needed: write \[text\]"):
        classifier("A lovely film.")
    with pytest.raises(UserError, match="the text at index 1 is blank: leave it out"):
        classifier(["Fine.", " \n"])
    with pytest.raises(UserError, match="reads one text, not 2"):
        classifier([["Fine.", "Bad."]])
    for wrong in ({"device": "gpu"}, {"dtype": "half"}):
        with pytest.raises(UserError, match="must be one of auto, .*, not '(gpu|half)'"):
            Classifier.load(tmp_path / "best.pt", **wrong)
