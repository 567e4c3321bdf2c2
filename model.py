"""GPT-2 with a classification head: the transformer in one file, after nanoGPT.

References:
1) Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", and its code, openai/gpt-2
2) transformers' PyTorch code, whose parameter names are kept: huggingface/transformers, models/gpt2/modeling_gpt2.py
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from errors import UserError
from kernels import Groups, add_dropout, attention, attention_from, dropout, group_by_length


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
        """Refuse what is no model, or none that a machine could hold, before anything is allocated."""
        largest = {"num_classes": 2**15, "block_size": 2**20, "vocab_size": 2**24}
        largest |= {"n_layer": 1000, "n_head": 1000, "n_embd": 2**16}
        for name, most in largest.items():
            value = getattr(self, name)
            if type(value) is not int or not 0 < value <= most:
                raise UserError(f"{name} must be a whole number from 1 to {most}, not {value!r:.60}")
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if not isinstance(self.dropout, float) or not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be at least 0 and below 1, not {self.dropout!r:.60}")


class Linear(nn.Linear):
    """A linear layer that leaves its initialisation to GPT: one draw, and none where the weights come from a file."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """A table of vectors, likewise."""

    def reset_parameters(self) -> None:
        pass


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, groups: Groups, last: Tensor | None = None) -> Tensor:
        """Attend from every token, (N, C), or only from those at `last` (S,), one a sequence: (S, C)."""
        p = self.dropout if self.training else 0.0
        if last is None:
            y = attention(self.c_attn(x), groups, self.n_head, p)
        else:
            C = x.shape[1]
            w_q, w_kv = self.c_attn.weight.split([C, 2 * C])
            b_q, b_kv = self.c_attn.bias.split([C, 2 * C])
            q, kv = F.linear(x[last], w_q, b_q), F.linear(x, w_kv, b_kv)
            y = attention_from(last, q, kv, groups, self.n_head, p)
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

    def forward(self, x: Tensor, groups: Groups, last: Tensor | None = None) -> Tensor:
        """(N, C) -> (N, C), or only what stands at `last` (S,), one token a sequence: (S, C)."""
        p = self.dropout if self.training else 0.0
        attended = self.attn(self.ln_1(x), groups, last)
        x = add_dropout(x if last is None else x[last], attended, p)
        return add_dropout(x, self.mlp(self.ln_2(x)), p)


class GPT(nn.Module):
    """GPT-2's trunk and a linear classification head on the last real token."""

    def __init__(self, config: GPTConfig) -> None:
        """Make a model with random weights, initialised as GPT-2's were."""
        super().__init__()
        self.config = config
        self.activation_checkpointing = False  # in training, compute a block's activations anew in its backward pass
        self.is_compiled = False  # whether step.compile_blocks has compiled the blocks
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.head = Linear(config.n_embd, config.num_classes)
        if self.wte.weight.device.type != "meta":
            self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Draw weights from N(0, 0.02^2), the residual projections' divided by sqrt(2 n_layer): section 2.3 of [1]."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() >= 2:
                residual = name.endswith("c_proj.weight")
                parameter.normal_(std=0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Classify a batch of sequences.

        Args:
            tokens: int64 (B, T), right-padded with anything; B at least 1, T at most block_size.
            lengths: int64 (B,), each sequence's number of real tokens, at least 1.

        Returns:
            float32 logits (B, num_classes), read at each sequence's last real token.
        """
        return self.classify(self.features(tokens, lengths))

    def classify(self, features: Tensor) -> Tensor:
        """Return the head's logits, in full precision, which costs nothing here: (B, C) -> (B, num_classes)."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features)

    def features(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the final LayerNorm's output at each sequence's last real token: (B, C), what the head reads."""
        B, T = tokens.shape
        positions = torch.arange(T, device=tokens.device).expand(B, T)
        tokens = tokens.masked_fill(positions >= lengths[:, None], 0)  # whatever stands in the padding is never read
        if self.skips_padding:
            groups = self.pack(lengths.tolist())
            widths = torch.tensor([width for count, width in groups for _ in range(count)])
            fillers = len(widths) - B
            computed = positions < widths[:B, None]
            tokens, positions = (F.pad(part[computed], (0, fillers)) for part in (tokens, positions))  # (N,) each
            starts, lengths = widths.cumsum(0) - widths, F.pad(lengths, (0, fillers), value=1)
        else:
            groups = [(B, T)]
            tokens, positions = tokens.flatten(), positions.flatten()
            starts = torch.arange(B, device=tokens.device) * T
        x = self.embed(tokens, positions)
        for number, block in enumerate(self.h, start=1):
            last = starts + lengths - 1 if number == len(self.h) else None  # of the last block nothing else is needed
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, groups, last, use_reentrant=False)
            else:
                x = block(x, groups, last)
        with torch.autocast(x.device.type, enabled=False):
            return self.ln_f(x[:B].to(self.ln_f.weight.dtype))

    @property
    def skips_padding(self) -> bool:
        """Whether padding is left out: on a CPU, where sequences are packed, and those of each length attend together.

        A GPU would wait for so many small operators, and compiled blocks be compiled anew for each number of them.
        """
        return self.wte.weight.device.type == "cpu" and not (self.is_compiled or torch.compiler.is_compiling())

    def pack(self, lengths: list[int]) -> Groups:
        """Return the groups of a batch that skips padding, but for a little where it costs less than one more group.

        What a group costs is an estimate: the time of one or two tokens at GPT-2's width, of more in a narrow model.
        To a large batch, one-token sequences are added up to a multiple of 32 tokens, which products take 2% faster.
        """
        groups = group_by_length(lengths, most_padding=min(2**20 // self.config.n_embd**2, 64))
        N = sum(B * T for B, T in groups)
        return [*groups, (-N % 32, 1)] if N % 32 and N >= 1024 else groups

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return the sum of token and position embeddings, with dropout: int64 (N,) each -> (N, C)."""
        table = self.wte.weight
        # on a CPU, a dense gradient of the whole table would cost more in every micro-batch than the rows in use:
        # a sparse one is added to the dense one that is there already
        sparse = table.device.type == "cpu" and table.requires_grad and torch.is_grad_enabled()
        if sparse and table.grad is None:
            table.grad = torch.zeros_like(table)
        x = F.embedding(tokens, table, sparse=sparse) + self.wpe(positions)
        return dropout(x, self.config.dropout if self.training else 0.0)

    def hidden_states(self, tokens: Tensor) -> Tensor:
        """Return the final LayerNorm's output at every position: (B, T) int64 -> (B, T, C)."""
        B, T = tokens.shape
        x = self.embed(tokens.flatten(), torch.arange(T, device=tokens.device).repeat(B))
        for block in self.h:
            x = block(x, [(B, T)])
        return self.ln_f(x).view(B, T, -1)

    @torch.no_grad()
    def start_head_from(self, words: list[int]) -> None:
        """Start the head as one word's embedding a class, bias zero: the language model's logits for these words."""
        self.head.weight.copy_(self.wte.weight[words])
        self.head.bias.zero_()

    def train_last(self, blocks: int) -> None:
        """Freeze all but the last `blocks` blocks, final LayerNorm and head; with 0 blocks, all but the head."""
        frozen = [self.wte, self.wpe, *self.h[: self.config.n_layer - blocks], *([] if blocks else [self.ln_f])]
        for module in frozen:
            module.requires_grad_(False)

    def optimizer_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return AdamW's parameter groups: weight decay on matrices and embeddings, none on biases and LayerNorms."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]

    def flops_per_token(self, length: int) -> float:
        """Return the floating-point operations that training takes for each token of sequences of `length` tokens.

        6 for each weight of the blocks' matrices, and for attention's two products 12 n_layer n_embd length, of which
        the causal mask leaves half: Kaplan et al. 2020 (section 2.1), Chowdhery et al. 2022 (appendix B).
        """
        matrices = sum(p.numel() for p in self.h.parameters() if p.dim() >= 2)
        return 6 * matrices + 6 * self.config.n_layer * self.config.n_embd * length

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        num_classes: int = 2,
        dropout: float = 0.0,
        block_size: int | None = None,
        label_names: list[str] | None = None,
    ) -> "GPT":
        """Load GPT-2's weights, in float32, under a new head (or the stored one, where the weights have one).

        Args:
            name_or_path: gpt2, gpt2-medium, gpt2-large or gpt2-xl, from the Hugging Face cache or else its hub; or a
                local directory with config.json and model.safetensors or pytorch_model.bin, as transformers' GPT-2
                models save it.
            num_classes: classes of the head.
            dropout: dropout probability, everywhere.
            block_size: keep only the first so many positions; None keeps all of them.
            label_names: the classes in the order of their numbers, compared with those of a stored head.

        Raises:
            UserError: the weights are out of reach, not GPT-2's, or do not fill the model exactly; or the stored head
                has other classes.
        """
        # it, too, imports this module
        from pretrained import check_label_names, find_weights, fit_weights, read_config, read_weights

        config_path, weight_paths = find_weights(name_or_path)
        config = read_config(config_path, num_classes, dropout, block_size)
        with torch.device("meta"):  # shapes only: the weights come from the file
            model = cls(config)
        weights = {}
        for path in weight_paths:
            weights.update(read_weights(path))
        model.load_state_dict(fit_weights(weights, model, weight_paths[0].parent), assign=True)
        if label_names and "score.weight" in weights:
            check_label_names(config_path, label_names)
        return model
