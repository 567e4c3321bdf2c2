"""evaluate.py --explain: each figure is the difference of two probabilities that evaluate.py gives one by one."""

import re
from functools import partial

import pytest
import torch
from conftest import random_model, refuse, save, succeed
from hypothesis import given
from hypothesis import strategies as st

from classifier.answers import models as answers
from classifier.answers.explain import Explanation, explain, without_each_word
from classifier.answers.texts import print_explanation

TEXT = "I loved every minute of it,\tand you will."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints, one.pt and two.pt, of models that vary with the text."""
    folder = tmp_path_factory.mktemp("explain")
    for name, block_size in (("one", 8), ("two", 24)):  # the first reads the last 8 tokens only
        save(folder / f"{name}.pt", random_model(2, block_size=block_size), {"label_names": ["bad", "good"]})
    return folder


@given(st.text(max_size=30))
def test_every_variant_has_one_word_less_and_begins_as_the_text_does(text):
    words, variants = text.split(), without_each_word(text)
    assert len(variants) == (len(words) if len(words) > 1 else 0)
    for i, variant in enumerate(variants):
        assert variant.split() == words[:i] + words[i + 1 :]
        assert variant.startswith(" ") == text.startswith(" ")
    assert without_each_word("it,\tand  you will") == [
        "and  you will",
        "it,  you will",
        "it,\tand will",
        "it,\tand  you",
    ]


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
def test_a_contribution_is_the_difference_of_two_texts_classified_one_by_one(folder, names):
    models = [answers.Classifier.load(folder / f"{name}.pt", "cpu", "float32") for name in names]
    calls = []

    def together(texts):
        calls.append(texts)
        return answers.log_probabilities(models, texts)

    def alone(text):  # the mean of the models' probabilities
        parts = [each.logits(each.tokenize([text]))[0] for each in models]
        return torch.stack(parts).double().softmax(-1).mean(0).log()

    found = explain(TEXT, together)
    variants = without_each_word(TEXT)
    assert calls == [[TEXT, *variants]]  # all in one batch
    whole = alone(TEXT)
    torch.testing.assert_close(found.log_probabilities.double(), whole, atol=1e-5, rtol=0)
    expected = [(whole[whole.argmax()] - alone(variant)[whole.argmax()]).item() for variant in variants]
    assert found.words == TEXT.split() and found.contributions == pytest.approx(expected, abs=1e-5)
    assert max(map(abs, expected)) > 0.1
    # of what the first model does not read, nothing counts
    assert len(names) > 1 or found.contributions[:2] == pytest.approx([0, 0], abs=1e-6)


def test_the_command_prints_signed_numbers(folder):
    words = ["evaluate.py", "--ckpt", "one.pt", "--dtype=float32", "--text"]
    *table, legend, numbers = succeed(*words, TEXT, "--explain", cwd=folder).split("\n", 3)
    assert table == succeed(*words, TEXT, cwd=folder).splitlines()
    name = table[1].split()[0]
    assert legend == f'  drop in the log-probability of "{name}" when each word is left out:'
    alone = succeed(*words, "Mess.", "--explain", cwd=folder)
    assert alone.endswith("\n  a one-word text has nothing to leave out\n")
    found = re.findall(r"(\S+) \(([+-]\d+\.\d\d)\)", numbers)
    assert [word for word, _ in found] == TEXT.split() and all(len(line) <= 80 for line in numbers.splitlines())
    model = answers.Classifier.load(folder / "one.pt", "cpu", "float32")
    expected = explain(TEXT, partial(answers.log_probabilities, [model])).contributions
    assert [float(number) for _, number in found] == pytest.approx(expected, abs=0.0051)
    assert "--explain needs --text" in refuse("evaluate.py", "--explain", cwd=folder)


def test_no_word_rewrites_the_terminal(capsys):
    print_explanation(Explanation(torch.tensor([-1.0, -0.5]), ["a\x1b", "b"], [0.11, -0.2]), ["no", "yes"])
    assert capsys.readouterr().out.splitlines()[1] == r"  a\x1b (+0.11) b (-0.20)"
