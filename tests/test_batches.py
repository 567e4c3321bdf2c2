"""Micro-batches: every example once, next to no padding, and the same logits however they are laid out."""

import numpy as np
import pytest
import torch
from conftest import make_split, random_split, succeed
from hypothesis import given, settings
from hypothesis import strategies as st

from classifier.batches import Texts, cut_into_micro_batches, epoch_order, pack
from classifier.dataset import load_split
from model import GPT, Batch, GPTConfig


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=200), st.integers(64, 600), st.integers(0, 100))
def test_micro_batches_hold_every_example_once_within_the_budget(lengths, budget, seed):
    lengths = np.array(lengths)
    indices = np.random.default_rng(seed).permutation(len(lengths))[: seed + 1]
    padded = cut_into_micro_batches(indices, lengths, budget, is_packed=False)
    assert all(len(batch) * lengths[batch].max() <= budget for batch in padded)
    filled = cut_into_micro_batches(indices, lengths, budget, is_packed=True)
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
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(20, 60), st.integers(0, 30))
def test_no_other_cut_of_the_sorted_examples_costs_less(lengths, budget, cost):
    lengths = np.array(lengths)
    ordered = sorted(lengths.tolist(), reverse=True)

    def least(start: int) -> int:
        """The cost of the best cut from here on, by trying all."""
        ends = [end for end in range(start + 1, len(ordered) + 1) if ordered[start] * (end - start) <= budget]
        return min((ordered[start] * (end - start) + cost + least(end) for end in ends), default=0)

    cut = cut_into_micro_batches(np.arange(len(lengths)), lengths, budget, is_packed=False, micro_batch_cost=cost)
    assert sum(len(batch) * int(lengths[batch].max()) + cost for batch in cut) == least(0)


@pytest.mark.parametrize("task, config", [("sst", (64, 64, 2048)), ("cfimdb", (512, 8, 512))])
@pytest.mark.parametrize("is_compiled", [False, True])  # packed, as on a CPU; padded, as on a GPU
def test_at_most_five_percent_of_an_epochs_tokens_are_padding(tsv_dir, tmp_path, task, config, is_compiled):
    block_size, batch_size, step_size = config
    succeed(f"prepare_{task}.py", "--source", tsv_dir, cwd=tmp_path)
    split = load_split(tmp_path / "data" / task, "train")
    texts = Texts(split, GPT(GPTConfig(block_size=block_size, n_layer=1)), is_compiled)
    for epoch in range(3):
        order = epoch_order(len(split), 1337, epoch)
        steps = [order[start : start + step_size] for start in range(0, len(split), step_size)]
        cut = [chosen for step in steps for chosen in texts.cut(step, batch_size * block_size)]
        assert sorted(np.concatenate(cut).tolist()) == list(range(len(split)))
        if not is_compiled:
            padded = sum(B * T for chosen in cut for B, T in pack(texts.lengths[chosen].tolist(), texts.most_padding))
        else:
            padded = sum(len(chosen) * int(texts.lengths[chosen].max()) for chosen in cut)
        assert 1 - texts.lengths.sum() / padded <= 0.05


def test_every_example_is_visited_once_an_epoch_in_an_order_of_seed_and_epoch():
    orders = [epoch_order(1000, seed, epoch).tolist() for seed, epoch in [(1, 0), (1, 0), (1, 1), (2, 0)]]
    assert all(sorted(order) == list(range(1000)) for order in orders)
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0] != orders[3]


def test_groups_are_runs_of_a_length_and_shorter_ones_that_need_little_padding():
    lengths = [9, 9, 7, 7, 6, 2, 5, 5]
    assert pack(lengths, 0) == [(2, 9), (2, 7), (1, 6), (1, 2), (2, 5)]
    assert pack(lengths, 3) == [(2, 9), (3, 7), (1, 2), (2, 5)]  # the 6 needs one more, the others four
    assert pack(lengths, 7) == [(6, 9), (2, 5)] and pack(lengths, 8) == [(8, 9)]


def test_a_large_batch_is_made_up_to_a_multiple_of_32_tokens():
    lengths = [40, 40, 31, 23, 12, 7, 2, 1]  # 156 tokens
    for times, fillers in ((7, [(28, 1)]), (6, [])):  # 1,092 and 936, which is not yet large
        repeated = sorted(times * lengths, reverse=True)
        assert pack(repeated, 0)[: len(set(lengths))] == [(repeated.count(n), n) for n in sorted(set(lengths))[::-1]]
        assert pack(repeated, 0)[len(set(lengths)) :] == fillers
    assert pack(32 * [32], 0) == [(32, 32)]


def wide(n_embd: int = 4) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(3, 12, 97, 2, 2, n_embd)).double().eval()


def test_what_a_packed_and_a_padded_batch_hold():
    split = make_split([[1, 2, 3], [4, 5, 6], [7], [8, 9]], [0, 1, 0, 1])
    texts = Texts(split, wide())
    texts.most_padding = 0
    batch = texts.batch(np.array([1, 0, 3, 2]))
    assert batch.tokens.tolist() == [4, 5, 6, 1, 2, 3, 8, 9, 7]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0]
    assert batch.ends.tolist() == [2, 5, 7, 8] and batch.groups == [(2, 3), (1, 2), (1, 1)] and batch.size == 4
    texts.most_padding = 1
    assert texts.batch(np.array([1, 0, 3, 2])).groups == [(3, 3), (1, 1)]
    assert texts.batch(np.array([1, 0, 3, 2])).ends.tolist() == [2, 5, 7, 9]
    padded = Texts(split, wide(), is_compiled=True).batch(np.array([3, 2]))
    assert padded.tokens.tolist() == [8, 9, 7, 0] and padded.positions.tolist() == [0, 1, 0, 1]
    assert padded.ends.tolist() == [1, 2] and padded.groups == [(2, 2)] and padded.size == 2
    assert padded.tokens.dtype == padded.positions.dtype == padded.ends.dtype == torch.int64


def test_off_the_cpu_batches_are_padded():
    with torch.device("meta"):
        model = GPT(GPTConfig(n_layer=1))
    assert not Texts(make_split([[1]], [0]), model).is_packed and Texts(make_split([[1]], [0]), wide()).is_packed


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(0, 64), st.integers(0, 2**32 - 1))
def test_packed_and_padded_batches_have_the_logits_and_gradients_of_rows(examples, most_padding, seed):
    model, split = wide(), random_split(examples, 20, 97, 3, seed)
    indices = np.argsort(-split.lengths(12), kind="stable")
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
