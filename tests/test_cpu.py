"""The operators that are written by hand for CPUs are what torch's own are."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import model
from classifier import cpu
from classifier.cpu import add_dropout, attention, dropout
from model import attention_from


@pytest.mark.parametrize("p, dtype", [(0.1, torch.float32), (0.2, torch.bfloat16), (0.5, torch.float32)])
def test_dropout_has_the_right_rate_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(24_000_001, dtype=dtype)  # no multiple of the four that one random word decides on
    y = dropout(x, p)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=1e-3)
    assert y.float().mean().item() == pytest.approx(1, abs=4e-3 if dtype == torch.bfloat16 else 2e-3)
    assert len(y.unique()) == 2
    # neighbours, which share a random word, are independent: so many that the bound is five standard deviations
    dropped = (y == 0).float() - p
    for distance in (1, 2, 3, 4):
        assert abs((dropped[:-distance] * dropped[distance:]).mean()) < 1e-3 * p
    assert not torch.equal(y, dropout(x, p))  # a fresh mask each time
    torch.manual_seed(0)
    assert torch.equal(y, dropout(x, p))  # and the same one from the same seed


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_dropout_at_the_ends_of_its_range_stays_finite(p):
    torch.manual_seed(0)
    y = dropout(torch.ones(100_000), p)
    assert y.isfinite().all() and (y == 0).float().mean().item() == pytest.approx(p, abs=1e-3)


def test_a_residual_with_dropout_is_their_sum():
    x, y = torch.randn(50, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    results = []
    for compute in (lambda: add_dropout(x, y, 0.3), lambda: x + dropout(y, 0.3)):
        torch.manual_seed(3)
        out = compute()
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, y))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def packed(groups, n_head, head_size) -> torch.Tensor:
    N = sum(B * T for B, T in groups)
    return torch.randn(N, 3 * n_head * head_size, dtype=torch.float64, requires_grad=True)


def one_sequence_at_a_time(qkv, groups, n_head) -> torch.Tensor:
    """The same by torch's own kernel, each sequence alone."""
    lengths = [T for B, T in groups for _ in range(B)]
    outputs = []
    for sequence in qkv.split(lengths):
        q, k, v = sequence.unflatten(1, (3, n_head, -1)).permute(1, 2, 0, 3)  # (H, T, D) each
        outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1))
    return torch.cat(outputs)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 20)), min_size=1, max_size=5), st.integers(1, 3))
def test_attention_and_its_gradient_are_those_of_torch(groups, n_head):
    compare(groups, n_head)


def test_attention_of_more_queries_than_are_computed_at_once():
    compare([(1, 300), (3, 129), (2, 128)], n_head=2)


def compare(groups, n_head) -> None:
    qkv = packed(groups, n_head, head_size=4)
    before = qkv.detach().clone()
    ours, expected = attention(qkv, groups, n_head, 0.0), one_sequence_at_a_time(qkv, groups, n_head)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * weights).sum(), qkv)[0] for y in (ours, expected)]
    torch.testing.assert_close(*gradients, atol=1e-11, rtol=0)
    assert torch.equal(qkv, before)


def test_attentions_gradient_with_dropout_is_the_slope_that_differences_show(monkeypatch):
    monkeypatch.setattr(cpu, "QUERIES_AT_ONCE", 2)
    groups = [(2, 5), (1, 3)]

    def same_masks(qkv):
        torch.manual_seed(0)
        return attention(qkv, groups, 2, 0.4)

    torch.manual_seed(1)
    assert torch.autograd.gradcheck(same_masks, packed(groups, 2, head_size=3))


def test_attentions_dropout_has_the_right_rate_and_scale():
    groups, p = [(400, 30)], 0.2
    qkv = torch.zeros(12_000, 3)  # zero queries and keys: each probability is 1 / (number of tokens so far)
    qkv[:, 2] = 1  # so that the output is the sum of what dropout left of the probabilities
    torch.manual_seed(0)
    y = attention(qkv, groups, 1, p).view(400, 30)
    assert y[:, 0].unique().tolist() == pytest.approx([0, 1.25], abs=1e-4)
    assert (y[:, 0] == 0).float().mean().item() == pytest.approx(p, abs=0.1)
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(y, attention(qkv, groups, 1, p).view(400, 30))


def test_attentions_gradient_in_bfloat16_is_that_of_float64_but_for_rounding():
    torch.manual_seed(0)
    groups = [(1, 300), (2, 100)]
    common = 3 * torch.randn(2 * 64)  # what GPT-2's keys have in common must not show in the queries' gradient
    qkv = packed(groups, 1, 64).detach().float()
    qkv[:, 64:] += common
    qkv = qkv.bfloat16()
    weights = torch.randn(len(qkv), 64).bfloat16()
    gradients = []
    for dtype in (torch.bfloat16, torch.float64):
        x = qkv.to(dtype).requires_grad_()
        y = attention(x, groups, 1, 0.0)
        gradients.append(torch.autograd.grad(y, x, weights.to(dtype))[0].double())
    for ours, exact in zip(*(gradient.split(64, dim=1) for gradient in gradients), strict=True):
        assert (ours - exact).norm() < 0.05 * exact.norm()  # with the row sums of Y dY it would be 0.12


def test_scores_that_only_fit_into_float16_when_scaled_are_finite():
    qkv = torch.full((4, 192), 40.0, dtype=torch.float16)  # 64 products of 1,600 make 102,400, an eighth of it fits
    y = attention_from(torch.tensor([3]), qkv[3:, :64], qkv[:, 64:], [(1, 4)], 1, 0.0)
    assert torch.equal(y, torch.full_like(y, 40.0))


def test_dropout_in_attention_from_one_token_keeps_the_mean():
    kv = torch.zeros(12_000, 2)  # zero keys: each of 30 tokens has the same probability
    kv[:, 1] = 1
    last = torch.arange(29, 12_000, 30)
    torch.manual_seed(0)
    y = attention_from(last, torch.zeros(400, 1), kv, [(400, 30)], 1, 0.2)
    assert len(y.unique()) > 5 and y.mean().item() == pytest.approx(1, abs=0.02)


def test_off_the_cpu_attention_and_dropout_are_torchs_own(monkeypatch):
    qkv, groups = packed([(3, 6)], 2, head_size=4), [(3, 6)]
    expected = attention(qkv, groups, 2, 0.0)
    monkeypatch.setattr(model, "on_cpu", lambda x: False)
    attend = mock.Mock(wraps=F.scaled_dot_product_attention)
    drop = mock.Mock(wraps=F.dropout)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(F, "dropout", drop)
    y = model.attention(qkv, groups, 2, 0.0)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=0)
    y.sum().backward()
    model.attention(qkv, groups, 2, 0.3)
    model.dropout(torch.ones(5), 0.3)
    model.add_dropout(torch.ones(5), torch.ones(5), 0.3)
    assert [call.kwargs for call in attend.mock_calls] == [{"dropout_p": p, "is_causal": True} for p in (0.0, 0.3)]
    assert drop.call_count == 2
