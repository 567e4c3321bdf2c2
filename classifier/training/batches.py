"""Cut examples into micro-batches with little padding, for training and for prediction.

Texts is the input of a GPT, Features that of its head alone. Both have `labels`, `device` and three methods: lengths(),
cut() decides which examples go together, batch() makes a network's input of them. collate() does both for a step.
"""

from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from classifier import distributed
from classifier.data.dataset import Split
from classifier.device import send
from classifier.errors import UserError
from model import GPT, Batch

FLOOR = 6000  # tokens that a GPU computes while it launches one micro-batch's operators: fewer take as long
MOST_TOKENS = 65536  # of a GPU's micro-batch: larger ones are no faster
IGNORED = -100  # a label that F.cross_entropy leaves out of the loss
SHARE_OF_MEMORY = 0.7  # the rest is for a backward pass's temporary tensors, and for gaps between tensors


class Texts:
    """A split's token sequences, truncated to the model's block_size, for the model's device.

    On a CPU sequences are packed: those of the same length attend together, almost without padding. For a GPU these
    would be too many small operators, and compiled blocks would be compiled again for each number of them: there a
    micro-batch is padded to its longest sequence.
    """

    def __init__(self, split: Split, model: GPT, is_compiled: bool = False) -> None:
        self.split = split
        self.labels = np.zeros(0, np.int16) if split.labels is None else split.labels  # without any, none is asked for
        self.block_size, self.device = model.config.block_size, model.head.weight.device
        self.is_packed = self.device.type == "cpu" and not is_compiled
        # one more group costs about as much as one or two tokens at GPT-2's width, and more in a narrow model
        self.most_padding = min(2**20 // model.config.n_embd**2, 64)

    def __len__(self) -> int:
        return len(self.split)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Return examples' lengths in tokens: (n,) int64."""
        return self.split.lengths(indices, self.block_size)

    def cut(self, indices: np.ndarray, token_budget: int) -> list[np.ndarray]:
        """Cut examples, (n,) indices, into micro-batches of at most token_budget tokens, sorted by length."""
        return cut_into_micro_batches(indices, self.lengths(indices), token_budget, self.is_packed)

    def batch(self, indices: np.ndarray) -> Batch:
        """Make a GPT's input of some examples, (n,) indices sorted by length, longest first."""
        lengths = self.lengths(indices)
        groups = pack(lengths.tolist(), self.most_padding) if self.is_packed else [(len(indices), int(lengths.max()))]
        B, T = np.array(groups).T
        widths = np.repeat(T, B)  # (S,) in tokens with padding; S includes the sequences that only fill up
        starts = np.cumsum(widths) - widths
        tokens = np.zeros(widths.sum(), dtype=np.int64)
        for index, start, length in zip(indices, starts.tolist(), lengths.tolist(), strict=False):
            tokens[start : start + length] = self.split.sequence(index, self.block_size)
        positions = np.arange(len(tokens)) - np.repeat(starts, widths)
        ends = starts + np.pad(lengths, (0, len(starts) - len(indices)), constant_values=1) - 1
        sent = [send(array, self.device) for array in (tokens, positions, ends)]
        return Batch(sent[0], sent[1], sent[2], groups, size=len(indices))


class Features:
    """The head's inputs for a whole split, computed once: (examples, C) on the CPU."""

    def __init__(self, features: Tensor, labels: np.ndarray, device: torch.device) -> None:
        self.features, self.labels, self.device = features, labels, device

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Return 1 for each example: (n,) int64."""
        return np.ones(len(indices), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.features)

    def cut(self, indices: np.ndarray, token_budget: int) -> list[np.ndarray]:
        """Return all of them as one batch: they are small."""
        return [indices]

    def batch(self, indices: np.ndarray) -> Tensor:
        """Return (n, C) features on the device."""
        return self.features[torch.tensor(indices)].to(self.device)


class Step(NamedTuple):
    """An optimizer step's examples, as one process computes them on its device."""

    labels: np.ndarray  # (n,) of the whole step, the other processes' examples included
    longest: int  # tokens of the step's longest sequence
    micro_batches: list[tuple[Batch | Tensor, Tensor]]  # inputs, and int64 (examples,) labels


def collate(examples: Texts | Features, indices: np.ndarray, token_budget: int) -> Step:
    """Cut a step's examples, (n,) indices, into micro-batches and send them to the device without waiting for it.

    Each of several processes gets its share. token_budget counts the padding where padding is computed.
    """
    lengths = examples.lengths(indices)
    mine = distributed.share(indices, lengths)
    has_none = len(mine) == 0  # fewer examples than processes: this one contributes a gradient of zero
    if has_none:
        mine = indices[:1]
    micro_batches = []
    for chosen in examples.cut(mine, token_budget):
        labels = examples.labels[chosen].astype(np.int64)
        if has_none:
            labels[:] = IGNORED
        micro_batches.append((examples.batch(chosen), send(labels, examples.device)))
    return Step(examples.labels[indices], int(lengths.max()), micro_batches)


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return examples / (classes * the class's examples) for each class, scikit-learn's "balanced": float64 (K,)."""
    chunks = (labels[start : start + 2**20] for start in range(0, len(labels), 2**20))  # bincount makes them int64
    counts = sum(np.bincount(chunk, minlength=num_classes) for chunk in chunks)
    return len(labels) / (num_classes * np.maximum(counts, 1))


@lru_cache(maxsize=1)
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """Return an epoch's order of the examples, a permutation that depends only on seed and epoch: int32."""
    order = np.arange(num_examples, dtype=np.int32)
    np.random.default_rng([seed, epoch]).shuffle(order)
    order.flags.writeable = False  # the cached array is the same for all callers
    return order


def cut_into_micro_batches(
    indices: np.ndarray, lengths: np.ndarray, token_budget: int, is_packed: bool
) -> list[np.ndarray]:
    """Sort examples, indices with their lengths, longest first, and cut them into micro-batches of token_budget tokens.

    Their order does not matter for a step's gradient; with the longest first, running out of memory happens at once.
    A sequence above the budget makes a micro-batch of its own. If is_packed, only real tokens count, and micro-batches
    are filled. Otherwise padding counts, too, and dynamic programming finds the cheapest cut.
    """
    by_length = np.argsort(-lengths, kind="stable")
    order, sorted_lengths = indices[by_length], lengths[by_length]
    if is_packed:
        ends = _filled_ends(sorted_lengths, token_budget)
    else:
        ends = _cheapest_ends(sorted_lengths, token_budget)
    micro_batches, start = [], 0
    while start < len(order):
        micro_batches.append(order[start : ends[start]])
        start = ends[start]
    return micro_batches


def _filled_ends(lengths: np.ndarray, token_budget: int) -> list[int]:
    """Return where a micro-batch that starts at each example ends, if it takes as many as the budget allows."""
    totals = np.concatenate([[0], np.cumsum(lengths)])
    ends = np.searchsorted(totals, totals[:-1] + token_budget, side="right") - 1
    return np.maximum(ends, np.arange(1, len(totals))).tolist()  # one at least, however small the budget


def _cheapest_ends(lengths: np.ndarray, token_budget: int) -> list[int]:
    """Return where a micro-batch that starts at each example ends, in the cut of padded micro-batches that costs least.

    A micro-batch costs its tokens with padding, but at least FLOOR: a GPU computes one while it launches the next, so
    the longer of the two times counts.
    """
    longest, count, floor = lengths.tolist(), len(lengths), min(FLOOR, token_budget)
    rows = np.arange(1, count + 1)
    cost = np.zeros(count + 1)  # of the examples from here to the end, in tokens
    ends = [0] * count
    for start in reversed(range(count)):
        # examples that this micro-batch could take: one at least, however small the budget
        most = min(max(token_budget // longest[start], 1), count - start)
        # for each number of examples: their cost, and that of the rest
        costs = np.maximum(rows[:most] * longest[start], floor) + cost[start + 1 : start + 1 + most]
        ends[start] = start + 1 + int(costs.argmin())
        cost[start] = costs.min()
    return ends


def pack(lengths: list[int], most_padding: int) -> list[tuple[int, int]]:
    """Return the groups (B, T) in which sequences attend together: sorted neighbours of the same length.

    A run of equal lengths joins the group before it if padding the run takes at most most_padding tokens. One-token
    sequences fill a large batch up to a multiple of 32 tokens, with which products are 2% faster.
    """
    groups: list[tuple[int, int]] = []
    for length, run in groupby(lengths):
        count = len(list(run))
        B, T = groups[-1] if groups else (0, 0)
        if 0 <= (T - length) * count <= most_padding:
            groups[-1] = (B + count, T)
        else:
            groups.append((count, length))
    N = sum(B * T for B, T in groups)
    return [*groups, (-N % 32, 1)] if N % 32 and N >= 1024 else groups


# -----------------------------------------------------------------------------
# how many tokens fit into memory


def smaller_budget(tokens: int, longest: int) -> int:
    """Halve the token budget of a step that ran out of memory, but not below its longest sequence; print it."""
    smaller = max(tokens // 2, longest)
    if distributed.size() > 1:
        raise UserError(f"out of memory: try --token_budget={smaller}")
    if tokens <= longest:
        raise UserError(
            "out of memory with one sequence in memory at a time: try --activation_checkpointing=True, "
            "a smaller block_size, --trainable_blocks=0 or a smaller model"
        )
    tqdm.write(f"out of memory: the step is taken again in micro-batches of {smaller:,} tokens, not {tokens:,}")
    return smaller


def activation_bytes(model: GPT, dtype: torch.dtype) -> int:
    """Estimate the bytes of a token's activations in training, from a forward pass to its backward pass.

    Each block keeps, in units of n_embd: the residual stream before and after attention in float32; the inputs of the
    four linear layers and of GELU (1 + 1 + 1 + 4 + 4) and queries, keys and values (3) in dtype; and two dropout masks
    of one byte. With activation checkpointing, a block keeps its input only, and one block everything.
    """
    n_layer, n_embd = model.config.n_layer, model.config.n_embd
    block = n_embd * (2 * 4 + 14 * dtype.itemsize + 2)
    if model.activation_checkpointing:
        return n_layer * n_embd * 4 + block
    return n_layer * block


def free_memory() -> int:
    """Return the free bytes of the GPU's memory, including what this process has reserved and does not use."""
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def token_budget_for(model: GPT, dtype: torch.dtype, free: int) -> int:
    """Estimate how many tokens of a micro-batch fit into so many free bytes: a power of two.

    These bytes must also hold gradients, AdamW's two averages, the copies of the weights in dtype and, in a backward
    pass, a second gradient of the token embeddings.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    copies = dtype.itemsize * sum(p.numel() for p in model.h.parameters()) if dtype != torch.float32 else 0
    left = SHARE_OF_MEMORY * (free - 3 * 4 * trained - copies - 4 * model.wte.weight.numel())
    tokens = int(max(left, 0)) // activation_bytes(model, dtype)
    # at least 256, which training halves if it is too much
    return min(1 << max(tokens.bit_length() - 1, 8), MOST_TOKENS)
