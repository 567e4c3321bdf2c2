"""Parity with transformers: the same weights on disk give the same outputs and the same gradients."""

import pytest
import torch
from conftest import padded_batch, transformers_model
from torch.nn import functional as F

from classifier.gpt2 import load_gpt2
from model import GPT, Batch, GPTConfig

LENGTHS = [7, 1, 40, 23, 2, 31, 40, 12]
FULL_SIZE = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}


def every_prefix(tokens: torch.Tensor, lengths: torch.Tensor) -> Batch:
    """Every sequence up to each of its tokens, in order: the features of these are all hidden states."""
    rows = torch.arange(len(tokens)).repeat_interleave(lengths)
    return Batch.from_padded(tokens[rows], torch.cat([torch.arange(1, length + 1) for length in lengths.tolist()]))


def ours_and_theirs(folder, **config) -> tuple[GPT, torch.nn.Module]:
    theirs = transformers_model("GPT2ForSequenceClassification", folder, **config)
    return load_gpt2(str(folder), num_classes=5).eval(), theirs


@pytest.mark.parametrize("size", [{}, FULL_SIZE], ids=["small", "124M"])
def test_hidden_states_and_logits_are_those_of_transformers(tmp_path, size):
    ours, theirs = ours_and_theirs(tmp_path, **size)
    tokens, lengths, mask = padded_batch(LENGTHS, theirs.config.vocab_size, theirs.config.pad_token_id)
    with torch.no_grad():
        their_states = theirs.transformer(tokens, attention_mask=mask).last_hidden_state
        our_states = ours.features(every_prefix(tokens, lengths))
        torch.testing.assert_close(our_states, their_states[mask.bool()], atol=1e-4, rtol=0)
        their_logits = theirs(tokens, attention_mask=mask).logits
        our_logits = ours(Batch.from_padded(tokens, lengths))
    assert their_logits.std() > 0.1  # the comparison is about something
    torch.testing.assert_close(our_logits, their_logits, atol=1e-4, rtol=0)


def test_gradients_of_every_parameter_are_those_of_transformers(tmp_path):
    ours, theirs = ours_and_theirs(tmp_path)
    tokens, lengths, mask = padded_batch(LENGTHS, theirs.config.vocab_size, theirs.config.pad_token_id)
    labels = torch.arange(len(LENGTHS)) % 5
    F.cross_entropy(ours(Batch.from_padded(tokens, lengths)), labels).backward()
    F.cross_entropy(theirs(tokens, attention_mask=mask).logits, labels).backward()
    their_gradients = {name.removeprefix("transformer."): p.grad for name, p in theirs.named_parameters()}
    compared = 0
    for name, parameter in ours.named_parameters():
        if name == "head.bias":  # transformers' head has none: its gradient is that of the mean loss by the logits
            continue
        expected = their_gradients.pop("score.weight" if name == "head.weight" else name)
        if name.startswith("h.") and expected.dim() == 2:
            expected = expected.t()
        assert expected.norm() > 0, name
        assert (parameter.grad - expected).norm() <= 1e-4 * expected.norm(), name
        compared += 1
    assert not their_gradients and compared == 3 * 12 + 5


def test_padding_changes_no_logit_and_no_gradient(tmp_path):
    ours, _ = ours_and_theirs(tmp_path)
    tokens, lengths, mask = padded_batch(LENGTHS, 211, 0)
    gradients, logits = [], []
    for filler in (0, 210, -1, 10**9):  # the last two are no tokens at all
        ours.zero_grad()
        logits.append(ours(Batch.from_padded(tokens.masked_fill(mask == 0, filler), lengths)))
        logits[-1].square().sum().backward()
        gradients.append([p.grad.clone() for p in ours.parameters()])
    assert all(torch.equal(logits[0], other) for other in logits[1:])
    assert all(torch.equal(a, b) for other in gradients[1:] for a, b in zip(gradients[0], other, strict=True))


def test_fresh_weights_have_gpt2s_scale():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=500, block_size=64, n_layer=8, n_head=2, n_embd=256))
    assert model.h[3].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.h[3].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
    assert model.head.bias.abs().sum() == 0 and (model.ln_f.weight == 1).all()
