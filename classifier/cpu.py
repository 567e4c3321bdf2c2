"""Embedding, dropout and causal attention that are fast on a CPU, too.

On any other device, and compiled, they are torch's own, but for attention from one token alone: plain products.

Attention works on a packed batch: its sequences stand one after another in one dimension. `groups` says where they are:
(B, T) for each run of B sequences of T tokens, padding included. That stands to the right of every real token of its
sequence, where the causal mask hides it.
"""

import math
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

QUERIES_AT_ONCE = 128  # so that much of what the causal mask hides is never computed

Groups = list[tuple[int, int]]


def embedding(tokens: Tensor, table: Tensor) -> Tensor:
    """Look tokens up: int64 (N,) in a table (V, C) -> (N, C).

    On a CPU, a dense gradient of the whole table would cost more in every micro-batch than the rows in use: a sparse
    one is added to the dense one that is there already.
    """
    is_sparse = table.device.type == "cpu" and table.requires_grad and torch.is_grad_enabled()
    if is_sparse and table.grad is None:
        table.grad = torch.zeros_like(table)
    return F.embedding(tokens, table, sparse=is_sparse)


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability p and scale the others by 1 / (1 - p)."""
    if p == 0 or not _is_by_hand(x):
        return F.dropout(x, p)
    mask, scale = _dropout_mask(x.shape, x.dtype, p)
    return x * mask * scale


def add_dropout(x: Tensor, y: Tensor, p: float) -> Tensor:
    """Return x + dropout(y, p)."""
    if p == 0 or not _is_by_hand(y):
        return x + F.dropout(y, p)
    mask, scale = _dropout_mask(y.shape, y.dtype, p)
    return torch.add(x, y * mask, alpha=scale)


def attention(qkv: Tensor, groups: Groups, n_head: int, p: float) -> Tensor:
    """Causal attention within each sequence, with dropout p on its probabilities.

    Args:
        qkv: (N, 3C), the queries, keys and values of all tokens.
        groups: one group alone where it is not computed by hand.

    Returns:
        (N, C), the heads side by side.
    """
    if _is_by_hand(qkv):
        return _Attention.apply(qkv, groups, n_head, p)
    ((B, T),) = groups
    # in this order, so that the gradients of the three are put together by one copy
    q, k, v = (part.transpose(1, 2) for part in qkv.view(B, T, 3, n_head, -1).unbind(2))  # (B, H, T, D) each
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
    return y.transpose(1, 2).reshape(B * T, -1)


def attention_from(ends: Tensor, q: Tensor, kv: Tensor, groups: Groups, n_head: int, p: float) -> Tensor:
    """Attention from one token of each sequence, with dropout p on its probabilities.

    Args:
        ends: int64 (S,), where that token stands in the batch; what follows it in its sequence is padding.
        q: (S, C), the queries of these tokens.
        kv: (N, 2C), the keys and values of all tokens.

    Returns:
        (S, C), the heads side by side.
    """
    scale = (q.shape[1] // n_head) ** -0.5
    if q.dtype == torch.float16:  # which might not hold the sums of products
        q, scale = q * scale, 1.0
    counts, sizes = [B for B, _ in groups], [B * T for B, T in groups]
    parts = zip(_rows(groups), ends.split(counts), q.split(counts), kv.split(sizes), strict=True)
    outputs = []
    for (rows, B, T), lasts, queries, keys_values in parts:
        queries = queries.view(B, n_head, 1, -1)
        keys, values = (part.transpose(1, 2) for part in keys_values.view(B, T, 2, n_head, -1).unbind(2))
        padding = torch.arange(rows.start, rows.stop, device=q.device).view(B, T) > lasts[:, None]
        scores = (queries @ keys.transpose(2, 3)) * scale  # (B, H, 1, T)
        probabilities = scores.masked_fill(padding[:, None, None], -math.inf).softmax(-1).to(kv.dtype)
        outputs.append((dropout(probabilities, p) @ values).view(B, -1))
    return torch.cat(outputs)


def _is_by_hand(x: Tensor) -> bool:
    """Return whether x's device is one where torch's own dropout and attention are slow, unless they are compiled."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _dropout_mask(shape: torch.Size, dtype: torch.dtype, p: float) -> tuple[Tensor, float]:
    """Draw a mask that is zero with probability p and else one; return it and the scale of what it keeps.

    torch draws each element by itself, about 8 ns each; here 64 random bits decide on four. The probability is then a
    multiple of 1/65536, and the scale is that of the probability really used.
    """
    keep = min(max(round((1 - p) * 65536), 1), 65535)
    seed = torch.empty((), dtype=torch.int64).random_().item()  # torch's generator decides, numpy's is twice as fast
    bits = np.random.SFC64(seed).random_raw((shape.numel() + 3) // 4).view(np.int16)[: shape.numel()]
    mask = torch.empty(shape, dtype=dtype)
    torch.lt(torch.from_numpy(bits).view(shape), keep - 32768, out=mask)  # far faster than converting a boolean mask
    return mask, 65536 / keep


class _Attention(torch.autograd.Function):
    """Attention as plain batched products, several times faster on a CPU than torch's kernel, which is made for long
    sequences without dropout. The backward pass is by hand, for what autograd would copy and keep.

    With the dropout mask M and its scale c: P = softmax(Q K' / sqrt(D)), Y = c (M P) V. The gradients are
    dV = c (M P)' dY, dP = c M (dY V'), dS = P (dP - rowsum(P dP)), dQ = dS K / sqrt(D), dK = dS' Q / sqrt(D).
    Dao et al. 2022, "FlashAttention", appendix B, takes rowsum(Y dY) for rowsum(P dP): in bfloat16 the rounding of Y
    would spoil dQ.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, groups: Groups, n_head: int, p: float) -> Tensor:
        N, C = len(qkv), qkv.shape[1] // 3
        D = C // n_head
        y, heads = qkv.new_empty(N, C), qkv.new_empty(N, 3 * C)
        sizes = [B * n_head * (end - start) * end for B, T in groups for start, end in _query_blocks(T)]
        probabilities = qkv.new_empty(sum(sizes))
        # one mask for all groups, since each draw has its fixed cost; without dropout it is never looked at
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
                # what autograd calls for softmax, too: in float32 within, whatever the dtype
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
    """Return where each group stands in the packed batch, with its B and T."""
    ends = accumulate(B * T for B, T in groups)
    return [(slice(end - B * T, end), B, T) for end, (B, T) in zip(ends, groups, strict=True)]


def _query_blocks(T: int) -> list[tuple[int, int]]:
    """Return where each block of at most QUERIES_AT_ONCE queries starts and ends."""
    return [(start, min(start + QUERIES_AT_ONCE, T)) for start in range(0, T, QUERIES_AT_ONCE)]
