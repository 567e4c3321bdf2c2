"""Our tokenizer against transformers', an independent implementation, over the same vocabulary files."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifier.data import tokenizer

ENCODING = tokenizer.load_tokenizer()
VOCABULARY = tokenizer.vocabulary_folder()


@pytest.fixture(scope="session")
def theirs(tmp_path_factory):
    from transformers import GPT2Tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(VOCABULARY / "encoder.json", folder / "vocab.json")
    shutil.copy(VOCABULARY / "vocab.bpe", folder / "merges.txt")
    return GPT2Tokenizer.from_pretrained(folder)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
def test_tokens_are_those_of_transformers_and_decode_to_the_text(theirs, text):
    tokens = ENCODING.encode_ordinary(text)
    assert ENCODING.decode(tokens) == text
    if "<|endoftext|>" not in text:  # plain text to us, a special token to them
        assert tokens == theirs(text)["input_ids"]


def test_known_tokens_without_a_network(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    encoding = tokenizer.load_tokenizer.__wrapped__()
    assert encoding.encode_ordinary(" It 's a lovely film .") == [632, 705, 82, 257, 14081, 2646, 764]
    assert encoding.n_vocab == tokenizer.VOCAB_SIZE and encoding.eot_token == tokenizer.END_OF_TEXT


def test_a_changed_vocabulary_is_refused(tmp_path, monkeypatch):
    for name in ("vocab.bpe", "encoder.json"):
        (tmp_path / name).write_bytes((VOCABULARY / name).read_bytes()[:-1])
    monkeypatch.setattr(tokenizer, "vocabulary_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="[Hh]ash mismatch"):
        tokenizer.load_tokenizer.__wrapped__()
