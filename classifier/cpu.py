"""The model's operators that are faster on a CPU than torch's own; model.py calls them, under "operators".

Attention works on a packed batch, whose sequences stand one after another in one dimension. `groups` describes it as
(B, T) for each run of B sequences of T tokens. Padding stands to the right of its sequence's real tokens, where the
causal mask hides it.
"""

import math
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

QUERIES_AT_ONCE = 128  # so that most of what the causal mask hides is never computed

Groups = list[tuple[int, int]]


def embedding(tokens: Tensor, table: Tensor) -> Tensor:
    """Look up tokens, int64 (N,), in a table (V, C) -> (N, C).

    A dense gradient of the whole table would cost more in every micro-batch than the rows in use: here it is sparse,
    and added to a dense one that is made once.
    """
    is_trained = table.requires_grad and torch.is_grad_enabled()
    if is_trained and table.grad is None:
        table.grad = torch.zeros_like(table)
    return F.embedding(tokens, table, sparse=is_trained)


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability p, and scale the others by 1 / (1 - p)."""
    mask, scale = _dropout_mask(x.shape, x.dtype, p)
    return x * mask * scale


def add_dropout(x: Tensor, y: Tensor, p: float) -> Tensor:
    """Return x + dropout(y, p)."""
    mask, scale = _dropout_mask(y.shape, y.dtype, p)
    return torch.add(x, y * mask, alpha=scale)


def attention(qkv: Tensor, groups: Groups, n_head: int, p: float) -> Tensor:
    """Causal attention within each sequence, with dropout p on its probabilities: (N, 3C) -> (N, C)."""
    return _Attention.apply(qkv, groups, n_head, p)


def _dropout_mask(shape: torch.Size, dtype: torch.dtype, p: float) -> tuple[Tensor, float]:
    """Draw a mask that is zero with probability p and one otherwise; return it and the scale of what it keeps.

    torch draws each element by itself, in about 8 ns; here 64 random bits are used for four. The probability is rounded
    to a multiple of 1/65536, and the scale is that of the rounded one.
    """
    keep = min(max(round((1 - p) * 65536), 1), 65535)
    seed = int(torch.empty((), dtype=torch.int64).random_())  # torch's generator seeds numpy's, which is twice as fast
    bits = np.random.SFC64(seed).random_raw((shape.numel() + 3) // 4).view(np.int16)[: shape.numel()]
    mask = torch.empty(shape, dtype=dtype)
    torch.lt(torch.from_numpy(bits).view(shape), keep - 32768, out=mask)  # far faster than converting a boolean mask
    return mask, 65536 / keep


class _Attention(torch.autograd.Function):
    """Attention as batched products, several times faster on a CPU than torch's kernel, which is made for long
    sequences without dropout. The backward pass is written by hand, since autograd would copy and keep more.

    With the dropout mask M and its scale c: P = softmax(Q K' / sqrt(D)), Y = c (M P) V. The gradients are
    dV = c (M P)' dY, dP = c M (dY V'), dS = P (dP - rowsum(P dP)), dQ = dS K / sqrt(D), dK = dS' Q / sqrt(D).
    Dao et al. 2022, "FlashAttention", appendix B, computes rowsum(P dP) as rowsum(Y dY); in bfloat16 the rounding of Y
    would make dQ inexact.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, groups: Groups, n_head: int, p: float) -> Tensor:
        N, C = len(qkv), qkv.shape[1] // 3
        D = C // n_head
        y, heads = qkv.new_empty(N, C), qkv.new_empty(N, 3 * C)
        sizes = [B * n_head * (end - start) * end for B, T in groups for start, end in _query_blocks(T)]
        probabilities = qkv.new_empty(sum(sizes))
        # one mask for all groups, since each draw has a fixed cost; without dropout it is not used
        mask, scale = _dropout_mask(probabilities.shape, qkv.dtype, p) if p else (probabilities, 1.0)
        blocks = zip(probabilities.split(sizes), mask.split(sizes), strict=True)
        future = qkv.new_full((QUERIES_AT_ONCE, QUERIES_AT_ONCE), -math.inf).triu(1)
        for rows, B, T in _rows(groups):
            parts = qkv[rows].view(B, T, 3, n_head, D).permute(2, 0, 3, 1, 4)
            q, k, v = heads[rows].view(3, B, n_head, T, D).copy_(parts).view(3, B * n_head, T, D)
            q *= D**-0.5
            for start, end in _query_blocks(T):
                scores = q[:, start:end] @ k[:, :end].transpose(1, 2)
                scores[:, :, start:] += future[: end - start, : end - start]
                P, M = (part.view_as(scores) for part in next(blocks))
                torch.softmax(scores, -1, out=P)
                output = (P * M if p else P) @ v[:, :end]
                output = output.view(B, n_head, end - start, D).transpose(1, 2)
                torch.mul(output, scale, out=y[rows].view(B, T, n_head, D)[:, start:end])
        ctx.groups, ctx.n_head, ctx.p, ctx.scale, ctx.sizes = groups, n_head, p, scale, sizes
        ctx.save_for_backward(heads, probabilities, mask)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        heads, probabilities, mask = ctx.saved_tensors
        n_head, (N, C) = ctx.n_head, dy.shape
        D = C // n_head
        dqkv = dy.new_empty(N, 3 * C)
        blocks = list(zip(probabilities.split(ctx.sizes), mask.split(ctx.sizes), strict=True))
        for rows, B, T in reversed(_rows(ctx.groups)):
            q, k, v = heads[rows].view(3, B * n_head, T, D)
            g = dy[rows].view(B, T, n_head, D).transpose(1, 2).contiguous().view(B * n_head, T, D)
            gradients = dy.new_empty(3, B * n_head, T, D)
            dq, dk, dv = gradients
            for start, end in reversed(_query_blocks(T)):
                dp = g[:, start:end] @ v[:, :end].transpose(1, 2)
                P, M = (part.view_as(dp) for part in blocks.pop())
                if ctx.p:
                    dp *= M
                kept = P * M if ctx.p else P
                # softmax's own backward pass in autograd, which computes in float32 whatever the dtype
                ds = torch._softmax_backward_data(dp, P, -1, dp.dtype)
                torch.bmm(ds, k[:, :end], out=dq[:, start:end])
                if end == T:  # the last queries, taken first, reach all keys
                    torch.bmm(ds.transpose(1, 2), q[:, start:end], out=dk)
                    torch.bmm(kept.transpose(1, 2), g[:, start:end], out=dv)
                else:
                    dk[:, :end] += ds.transpose(1, 2) @ q[:, start:end]
                    dv[:, :end] += kept.transpose(1, 2) @ g[:, start:end]
            gradients *= ctx.scale
            dq *= D**-0.5
            dqkv[rows].view(B, T, 3, n_head, D).copy_(gradients.view(3, B, n_head, T, D).permute(1, 3, 0, 2, 4))
        return dqkv, None, None, None


def _rows(groups: Groups) -> list[tuple[slice, int, int]]:
    """Return each group's place in the packed batch, and its B and T."""
    ends = accumulate(B * T for B, T in groups)
    return [(slice(end - B * T, end), B, T) for end, (B, T) in zip(ends, groups, strict=True)]


def _query_blocks(T: int) -> list[tuple[int, int]]:
    """Return where each block of at most QUERIES_AT_ONCE queries starts and ends."""
    return [(start, min(start + QUERIES_AT_ONCE, T)) for start in range(0, T, QUERIES_AT_ONCE)]
