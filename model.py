"""GPT-2 with a classification head: the transformer in one file, after nanoGPT; attention proper in classifier/cpu.py.

    logits = GPT(GPTConfig(num_classes=2))(Batch.from_padded(tokens, lengths))

References:
1) Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", and its code, openai/gpt-2
2) transformers' PyTorch code, whose parameter names are kept: huggingface/transformers, models/gpt2/modeling_gpt2.py

Shapes: N tokens and S sequences in a batch, C = n_embd.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from classifier.cpu import Groups, add_dropout, attention, attention_from, dropout, embedding


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
        """Raise a ValueError for what is no model, or none that a machine could hold, before anything is allocated."""
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
    """Sequences that stand one after another in one dimension, each with any padding to its right."""

    tokens: Tensor  # int64 (N,)
    positions: Tensor  # int64 (N,), each token's place in its sequence, from 0
    ends: Tensor  # int64 (S,), where each sequence's last real token stands among the N
    groups: Groups  # (B, T) for each run of B sequences of T tokens, padding included
    size: int  # the sequences to classify; those after them only fill the batch up

    @classmethod
    def from_padded(cls, tokens: Tensor, lengths: Tensor) -> "Batch":
        """Make a batch of sequences in rows.

        Args:
            tokens: int64 (B, T), right-padded with anything; B at least 1, T at most block_size.
            lengths: int64 (B,), each sequence's number of real tokens, at least 1.
        """
        B, T = tokens.shape
        positions = torch.arange(T, device=tokens.device).expand(B, T)
        tokens = tokens.masked_fill(positions >= lengths[:, None], 0)  # what stands in the padding is never looked up
        ends = torch.arange(B, device=tokens.device) * T + lengths - 1
        return cls(tokens.flatten(), positions.flatten(), ends, [(B, T)], B)


class Linear(nn.Linear):
    """A linear layer that multiplies in another dtype inside `casting`, by one cast copy of its weights."""

    cast: tuple[Tensor, Tensor] | None = None

    def in_use(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias as products take them."""
        return self.cast or (self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.in_use()
        return F.linear(x.to(weight.dtype), weight, bias)


@contextmanager
def casting(net: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let the trunk's linear layers multiply in dtype for the length of a block; all else stays as it is, in float32.

    Weights are cast once, however many forward and backward passes follow, recomputed activations included, as
    torch.autocast does not: it casts anew in each recomputation.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, Linear)] if dtype != torch.float32 else []
    for layer in layers:
        layer.cast = layer.weight.to(dtype), layer.bias.to(dtype)
    try:
        yield
    finally:
        for layer in layers:
            layer.cast = None


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
    """Two linear layers with GPT-2's activation, the tanh approximation of GELU, between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """One pre-LayerNorm transformer block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, groups: Groups, ends: Tensor | None = None) -> Tensor:
        """(N, C) -> (N, C), or only what stands at `ends` (S,), one token a sequence: (S, C)."""
        p = self.dropout if self.training else 0.0
        attended = self.attn(self.ln_1(x), groups, ends)
        x = add_dropout(x if ends is None else x[ends], attended, p)
        return add_dropout(x, self.mlp(self.ln_2(x)), p)


class GPT(nn.Module):
    """GPT-2's trunk and a linear classification head on the last real token."""

    def __init__(self, config: GPTConfig) -> None:
        """Make a model with random weights, initialised as GPT-2's were."""
        super().__init__()
        self.config = config
        self.activation_checkpointing = False  # in training, compute a block's activations anew in its backward pass
        with torch.device("meta"):  # shapes only: torch's own initialisation would draw numbers for nothing
            self.wte = nn.Embedding(config.vocab_size, config.n_embd)
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
            self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
            self.ln_f = nn.LayerNorm(config.n_embd, eps=1e-5)
            self.head = nn.Linear(config.n_embd, config.num_classes)  # in float32, which costs nothing here
        self.to_empty(device=torch.get_default_device())
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Draw weights from N(0, 0.02^2), the residual projections' divided by sqrt(2 n_layer): section 2.3 of [1]."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:  # of a LayerNorm
                parameter.fill_(1.0)
            else:
                residual = name.endswith("c_proj.weight")
                parameter.normal_(std=0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits of a batch's sequences, read at each one's last real token: float32 (S, num_classes)."""
        return self.head(self.features(batch))

    def features(self, batch: Batch) -> Tensor:
        """Return the final LayerNorm's output at each sequence's last real token: (S, C), what the head reads."""
        x = embedding(batch.tokens, self.wte.weight) + self.wpe(batch.positions)
        x = dropout(x, self.config.dropout if self.training else 0.0)
        for block in self.h[:-1]:
            x = self._apply_block(block, x, batch.groups)
        x = self._apply_block(self.h[-1], x, batch.groups, batch.ends)  # of it nothing else is needed
        return self.ln_f(x[: batch.size])

    def _apply_block(self, block: Block, x: Tensor, groups: Groups, ends: Tensor | None = None) -> Tensor:
        if self.activation_checkpointing and self.training:
            return checkpoint(block, x, groups, ends, use_reentrant=False)
        return block(x, groups, ends)
