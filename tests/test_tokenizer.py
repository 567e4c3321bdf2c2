"""Our tokenizer: known tokens, without a network, of an unchanged vocabulary. test_export.py: those of transformers."""

import pytest

from classifier.data import tokenizer


def test_known_tokens_without_a_network(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    encoding = tokenizer.load_tokenizer.__wrapped__()
    assert encoding.encode_ordinary(" It 's a lovely film .") == [632, 705, 82, 257, 14081, 2646, 764]
    assert encoding.n_vocab == tokenizer.VOCAB_SIZE and encoding.eot_token == tokenizer.END_OF_TEXT


def test_a_changed_vocabulary_is_refused(tmp_path, monkeypatch):
    for name in ("vocab.bpe", "encoder.json"):
        (tmp_path / name).write_bytes((tokenizer.vocabulary_folder() / name).read_bytes()[:-1])
    monkeypatch.setattr(tokenizer, "vocabulary_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="[Hh]ash mismatch"):
        tokenizer.load_tokenizer.__wrapped__()
