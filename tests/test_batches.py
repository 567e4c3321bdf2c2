"""Micro-batches: every example once, next to no padding, the same logits however they are laid out; and what fits."""

from unittest import mock

import numpy as np
import pytest
import torch
from conftest import random_split, succeed, tiny_model_and_split
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from classifier.data.dataset import load_split
from classifier.training.batches import (
    Texts,
    activation_bytes,
    cut_into_micro_batches,
    epoch_order,
    pack,
    token_budget_for,
)
from classifier.training.predict import predict
from model import GPT, Batch, GPTConfig, casting


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=200), st.integers(64, 600), st.integers(0, 100))
def test_micro_batches_hold_every_example_once_within_the_budget(lengths, budget, seed):
    lengths = np.array(lengths)
    indices = np.random.default_rng(seed).permutation(len(lengths))[: seed + 1]
    padded = cut_into_micro_batches(indices, lengths[indices], budget, is_packed=False)
    assert all(len(batch) * lengths[batch].max() <= budget for batch in padded)
    filled = cut_into_micro_batches(indices, lengths[indices], budget, is_packed=True)
    sizes = [lengths[batch].sum() for batch in filled]
    assert max(sizes) <= budget
    # one more would not have fitted
    assert all(size + lengths[after[0]] > budget for size, after in zip(sizes, filled[1:], strict=False))
    for cut in (padded, filled):
        assert sorted(np.concatenate(cut).tolist()) == sorted(indices.tolist())


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("budget", [1, 4])
def test_what_exceeds_the_budget_makes_a_micro_batch_of_its_own(budget, is_packed):
    lengths = np.array([4, 5, 9])
    cut = cut_into_micro_batches(np.arange(3), lengths, budget, is_packed)
    assert [batch.tolist() for batch in cut] == [[2], [1], [0]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(20, 60), st.integers(0, 60))
def test_no_other_cut_of_the_sorted_examples_costs_less(lengths, budget, floor):
    lengths = np.array(lengths)
    ordered = sorted(lengths.tolist(), reverse=True)

    def cost(longest: int, count: int) -> int:
        return max(longest * count, min(floor, budget))

    def least(start: int) -> int:
        """The cost of the best cut from here on, by trying all."""
        ends = [end for end in range(start + 1, len(ordered) + 1) if ordered[start] * (end - start) <= budget]
        return min((cost(ordered[start], end - start) + least(end) for end in ends), default=0)

    with mock.patch("classifier.training.batches.FLOOR", floor):
        cut = cut_into_micro_batches(np.arange(len(lengths)), lengths, budget, is_packed=False)
    assert sum(cost(int(lengths[batch].max()), len(batch)) for batch in cut) == least(0)


@pytest.mark.parametrize("task, config", [("sst", (64, 64, 2048)), ("cfimdb", (512, 8, 512))])
def test_little_of_an_epoch_is_padding(tsv_dir, tmp_path, task, config):
    block_size, batch_size, step_size = config
    succeed(f"prepare_{task}.py", "--source", tsv_dir, cwd=tmp_path)
    split = load_split(tmp_path / "data" / task, "train")
    for is_compiled, most in ((False, 0.05), (True, 0.1)):  # packed, as on a CPU; padded, to fewer micro-batches
        texts = Texts(split, GPT(GPTConfig(block_size=block_size, n_layer=1)), is_compiled)
        order = epoch_order(len(split), 1337, epoch=1)
        steps = [order[start : start + step_size] for start in range(0, len(split), step_size)]
        cut = [chosen for step in steps for chosen in texts.cut(step, batch_size * block_size)]
        assert sorted(np.concatenate(cut).tolist()) == list(range(len(split)))
        if not is_compiled:
            padded = sum(B * T for chosen in cut for B, T in pack(texts.lengths(chosen).tolist(), texts.most_padding))
        else:
            padded = sum(len(chosen) * int(texts.lengths(chosen).max()) for chosen in cut)
        assert 1 - texts.lengths(np.arange(len(split))).sum() / padded <= most


def test_every_example_is_visited_once_an_epoch_in_an_order_of_seed_and_epoch():
    orders = [epoch_order(1000, seed, epoch).tolist() for seed, epoch in [(1, 0), (1, 0), (1, 1), (2, 0)]]
    assert all(sorted(order) == list(range(1000)) for order in orders)
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0] != orders[3]


def test_off_the_cpu_batches_are_padded():
    with torch.device("meta"):
        model = GPT(GPTConfig(n_layer=1))
    on_cpu, split = tiny_model_and_split()
    assert not Texts(split, model).is_packed and Texts(split, on_cpu).is_packed


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(0, 64), st.integers(0, 2**32 - 1))
def test_packed_and_padded_batches_have_the_logits_and_gradients_of_rows(examples, most_padding, seed):
    torch.manual_seed(0)
    model, split = GPT(GPTConfig(3, 12, 97, 2, 2, 4)).double().eval(), random_split(examples, 20, 97, 3, seed)
    indices = np.argsort(-split.lengths(np.arange(len(split)), 12), kind="stable")
    sequences = [torch.from_numpy(split.sequence(i, 12).astype(np.int64)) for i in indices]
    rows = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    batches = [Batch.from_padded(rows, torch.tensor([len(sequence) for sequence in sequences]))]
    for is_compiled in (False, True):
        texts = Texts(split, model, is_compiled)
        texts.most_padding = most_padding
        batches.append(texts.batch(indices))
    results = []
    for batch in batches:
        model.zero_grad()
        logits = model(batch)
        logits.square().sum().backward()
        results.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
    for others in results[1:]:
        for ours, expected in zip(others, results[0], strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-10)


# -----------------------------------------------------------------------------
# what fits into memory


def kept_for_backward(dtype: torch.dtype, recomputes: bool, n_layer: int) -> int:
    """The bytes a forward pass keeps a token, in torch's own operators as on a GPU, without dropout."""
    model = GPT(GPTConfig(5, 64, 503, n_layer, 4, 128))
    model.activation_checkpointing = recomputes
    kept = {}
    with casting(model, dtype), mock.patch("model.on_cpu", lambda x: False):
        weights = [*model.parameters(), *(w for layer in model.modules() for w in getattr(layer, "cast", None) or ())]
        weights = {weight.untyped_storage().data_ptr() for weight in weights}

        def keep(tensor):
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor  # which keeps its address from another
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            batch = Batch.from_padded(torch.zeros(8, 32, dtype=torch.int64), torch.full((8,), 32))
            F.cross_entropy(model(batch), torch.zeros(8, dtype=torch.int64))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / (8 * 32)


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_memory_of_activations_is_what_a_forward_pass_keeps(dtype, recomputes):
    measured = (kept_for_backward(dtype, recomputes, 7) - kept_for_backward(dtype, recomputes, 3)) / 4  # of one block
    models = [GPT(GPTConfig(5, 64, 503, n_layer, 4, 128)) for n_layer in (7, 3)]
    for model in models:
        model.activation_checkpointing = recomputes
    formula = (activation_bytes(models[0], dtype) - activation_bytes(models[1], dtype)) / 4
    masks = 0 if recomputes else 2 * 128
    assert formula - masks == pytest.approx(measured, rel=0.01)


def test_a_gpus_free_memory_gives_the_token_budget():
    with torch.device("meta"):
        model = GPT(GPTConfig(num_classes=5, block_size=64))
    for free, dtype, tokens in (
        (78 * 2**30, torch.bfloat16, 65536),
        (7 * 2**30, torch.float32, 4096),  # a GTX 1080 whose weights are loaded: what its configuration took
        (0, torch.float32, 256),
    ):
        assert token_budget_for(model, dtype, free) == tokens
    budget = token_budget_for(model, torch.float32, 4 * 10**9)
    model.requires_grad_(False)  # what is not trained leaves room
    assert token_budget_for(model, torch.float32, 4 * 10**9) >= 2 * budget


@pytest.mark.parametrize("is_compiled", [False, True])  # packed as on a CPU, padded as on a GPU
def test_an_evaluation_that_does_not_fit_is_cut_until_it_does(is_compiled, monkeypatch):
    model, split = tiny_model_and_split()
    texts = Texts(split, model, is_compiled)
    expected, forward, tried = predict(model, texts, torch.float32), model.forward, []

    def limited(batch, most):
        tried.append(len(batch.tokens))
        if len(batch.tokens) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(batch)

    monkeypatch.setattr(model, "forward", lambda batch: limited(batch, 100))
    counts = []
    torch.testing.assert_close(predict(model, texts, torch.float32, counts.append), expected)
    assert sum(counts) == 60 and len(counts) > 5 and max(tried) > 100

    monkeypatch.setattr(model, "forward", lambda batch: limited(batch, 20))
    with pytest.raises(torch.OutOfMemoryError):  # a single text of 24 tokens
        predict(model, texts, torch.float32)
