"""GPT-2 with a classification head: the whole transformer in one file.

    logits = GPT(GPTConfig(num_classes=2))(Batch.from_padded(tokens, lengths))

It computes GPT-2's own function [1], tested against transformers [2], whose parameter names are kept. Its code differs
from theirs and nanoGPT's in this:
- GELU is GPT-2's tanh approximation, which nanoGPT replaces by the exact function.
- The head reads one token of each sequence, so the last block computes only that one; other logits do not exist.
- Sequences stand one after another in one dimension, so that padding is little or nothing.
- Linear multiplies by a copy of its weights in a smaller format, cast once for many micro-batches.
- On a CPU some operators are classifier/cpu.py's, which are faster there.

References:
1) Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", and its code, openai/gpt-2
2) huggingface/transformers, models/gpt2/modeling_gpt2.py

Shapes: N tokens and S sequences in a batch, C = n_embd, H heads of D = C / H; B sequences of T tokens in a group.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from classifier import cpu

Groups = list[tuple[int, int]]  # (B, T) for each run of B sequences of T tokens, padding included


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model; the defaults are GPT-2 small's, 124M parameters."""

    num_classes: int = 2
    block_size: int = 1024
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Raise a ValueError for a shape that is impossible, or too large for any machine."""
        largest = {"num_classes": 2**15, "block_size": 2**20, "vocab_size": 2**24}
        largest |= {"n_layer": 1000, "n_head": 1000, "n_embd": 2**16}
        for name, most in largest.items():
            value = getattr(self, name)
            if type(value) is not int or not 0 < value <= most:
                raise ValueError(f"{name} must be a whole number from 1 to {most}, not {value!r:.60}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if not isinstance(self.dropout, float) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout!r:.60}")


@dataclass(frozen=True)
class Batch:
    """Sequences one after another in one dimension, each with its padding, if any, to its right."""

    tokens: Tensor  # int64 (N,)
    positions: Tensor  # int64 (N,), each token's place in its sequence, from 0
    ends: Tensor  # int64 (S,), where each sequence's last real token is among the N
    groups: Groups
    size: int  # sequences to classify; any after them only fill the batch up

    @classmethod
    def from_padded(cls, tokens: Tensor, lengths: Tensor) -> "Batch":
        """Make a batch of int64 (B, T) tokens, right-padded with anything, and int64 (B,) lengths, at least 1."""
        B, T = tokens.shape
        positions = torch.arange(T, device=tokens.device).expand(B, T)
        tokens = tokens.masked_fill(positions >= lengths[:, None], 0)  # what the padding contains is never looked up
        ends = torch.arange(B, device=tokens.device) * T + lengths - 1
        return cls(tokens.flatten(), positions.flatten(), ends, [(B, T)], B)


# -----------------------------------------------------------------------------
# operators: torch's, or on a CPU those of classifier/cpu.py


def on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def embedding(tokens: Tensor, table: Tensor) -> Tensor:
    return cpu.embedding(tokens, table) if on_cpu(table) else F.embedding(tokens, table)


def dropout(x: Tensor, p: float) -> Tensor:
    return cpu.dropout(x, p) if p and on_cpu(x) else F.dropout(x, p)


def add_dropout(x: Tensor, y: Tensor, p: float) -> Tensor:
    """Return x + dropout(y, p)."""
    return cpu.add_dropout(x, y, p) if p and on_cpu(y) else x + F.dropout(y, p)


def attention(qkv: Tensor, groups: Groups, n_head: int, p: float) -> Tensor:
    """Causal attention within each sequence, with dropout p on its probabilities: (N, 3C) -> (N, C)."""
    if on_cpu(qkv):
        return cpu.attention(qkv, groups, n_head, p)
    ((B, T),) = groups  # elsewhere sequences are padded to one length
    # in this order the three gradients are put together by one copy
    q, k, v = (part.transpose(1, 2) for part in qkv.view(B, T, 3, n_head, -1).unbind(2))  # (B, H, T, D) each
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
    return y.transpose(1, 2).reshape(B * T, -1)


def attention_from(ends: Tensor, queries: Tensor, keys_values: Tensor, groups: Groups, n_head: int, p: float) -> Tensor:
    """Attention from one token a sequence, at `ends` (S,): queries (S, C), keys and values (N, 2C) -> (S, C)."""
    scale = (queries.shape[1] // n_head) ** -0.5
    if queries.dtype == torch.float16:  # in which the sums of products might overflow
        queries, scale = queries * scale, 1.0
    counts, sizes = [B for B, _ in groups], [B * T for B, T in groups]
    parts = zip(groups, ends.split(counts), queries.split(counts), keys_values.split(sizes), strict=True)
    outputs, start = [], 0
    for (B, T), last, q, kv in parts:
        q = q.view(B, n_head, 1, -1)
        k, v = (part.transpose(1, 2) for part in kv.view(B, T, 2, n_head, -1).unbind(2))  # (B, H, T, D) each
        padding = torch.arange(start, start + B * T, device=q.device).view(B, T) > last[:, None]
        scores = (q @ k.transpose(2, 3)) * scale  # (B, H, 1, T)
        probabilities = scores.masked_fill(padding[:, None, None], -math.inf).softmax(-1).to(kv.dtype)
        outputs.append((dropout(probabilities, p) @ v).view(B, -1))
        start += B * T
    return torch.cat(outputs)


class Linear(nn.Linear):
    """A linear layer that multiplies in another dtype inside `casting`, by one cast copy of its weights."""

    cast: tuple[Tensor, Tensor] | None = None

    def in_use(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias in the dtype of products."""
        return self.cast or (self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.in_use()
        return F.linear(x.to(weight.dtype), weight, bias)


@contextmanager
def casting(net: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let the blocks' linear layers multiply in dtype for the length of a block; all else stays in float32.

    Weights are cast once for all forward and backward passes in it; torch.autocast casts again when activations are
    recomputed.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, Linear)] if dtype != torch.float32 else []
    for layer in layers:
        layer.cast = layer.weight.to(dtype), layer.bias.to(dtype)
    try:
        yield
    finally:
        for layer in layers:
            layer.cast = None


# -----------------------------------------------------------------------------
# the transformer


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, groups: Groups, ends: Tensor | None = None) -> Tensor:
        """Attend from every token, (N, C) -> (N, C), or only from those at `ends` (S,), one a sequence: (S, C)."""
        p = self.dropout if self.training else 0.0
        if ends is None:
            y = attention(self.c_attn(x), groups, self.n_head, p)
        else:
            weight, bias = self.c_attn.in_use()
            C = x.shape[1]
            (w_q, w_kv), (b_q, b_kv) = weight.split([C, 2 * C]), bias.split([C, 2 * C])
            q, kv = F.linear(x[ends].to(weight.dtype), w_q, b_q), F.linear(x.to(weight.dtype), w_kv, b_kv)
            y = attention_from(ends, q, kv, groups, self.n_head, p)
        return self.c_proj(y)


class MLP(nn.Module):
    """Two linear layers with GPT-2's activation between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """A pre-LayerNorm transformer block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, groups: Groups, ends: Tensor | None = None) -> Tensor:
        """(N, C) -> (N, C), or only the tokens at `ends` (S,), one a sequence: (S, C)."""
        p = self.dropout if self.training else 0.0
        attended = self.attn(self.ln_1(x), groups, ends)
        x = add_dropout(x if ends is None else x[ends], attended, p)
        return add_dropout(x, self.mlp(self.ln_2(x)), p)


class GPT(nn.Module):
    """GPT-2's blocks, and a linear classification head on each sequence's last real token."""

    def __init__(self, config: GPTConfig) -> None:
        """Make a model with random weights, initialised as GPT-2's were."""
        super().__init__()
        self.config = config
        self.activation_checkpointing = False  # in training, recompute a block's activations in its backward pass
        with torch.device("meta"):  # shapes only, since torch's own initialisation would take time
            self.wte = nn.Embedding(config.vocab_size, config.n_embd)
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
            self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
            self.ln_f = nn.LayerNorm(config.n_embd, eps=1e-5)
            self.head = nn.Linear(config.n_embd, config.num_classes)  # always in float32
        self.to_empty(device=torch.get_default_device())
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Draw weights from N(0, 0.02^2), the residual projections' divided by sqrt(2 n_layer): section 2.3 of [1]."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:  # a LayerNorm's weight
                parameter.fill_(1.0)
            else:
                residual = name.endswith("c_proj.weight")
                parameter.normal_(std=0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits of a batch's sequences, read at each one's last real token: float32 (S, num_classes)."""
        return self.head(self.features(batch))

    def features(self, batch: Batch) -> Tensor:
        """Return the final LayerNorm's output at each sequence's last real token, the head's input: (S, C)."""
        x = embedding(batch.tokens, self.wte.weight) + self.wpe(batch.positions)
        x = dropout(x, self.config.dropout if self.training else 0.0)
        for block in self.h[:-1]:
            x = self._apply_block(block, x, batch.groups)
        x = self._apply_block(self.h[-1], x, batch.groups, batch.ends)  # only these outputs are used
        return self.ln_f(x[: batch.size])

    def _apply_block(self, block: nn.Module, x: Tensor, groups: Groups, ends: Tensor | None = None) -> Tensor:
        if self.activation_checkpointing and self.training:
            return checkpoint(block, x, groups, ends, use_reentrant=False)
        return block(x, groups, ends)
