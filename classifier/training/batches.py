"""From a split's examples to micro-batches of little padding, the same way for training and for prediction.

Texts feeds a GPT, Features feeds its head alone. Both have a length, `labels`, `lengths`, `device` and two methods:
cut() says which examples go together, batch() makes the network's input of them. collate() does both for a whole step.
"""

from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from classifier import distributed
from classifier.data.dataset import Split
from classifier.device import send
from model import GPT, Batch

FLOOR = 6000  # tokens that a GPU computes while the operators of one micro-batch are launched: fewer take as long
MOST_TOKENS = 65536  # of a GPU's micro-batch: a larger one is no faster
SHARE_OF_MEMORY = 0.7  # the rest is for what a backward pass holds for a moment, and for gaps between tensors


class Texts:
    """A split's token sequences, cut to the model's block_size and on the model's device.

    On a CPU sequences are packed: those of each length attend together, and next to nothing is padded. A GPU would wait
    for so many small operators, and compiled blocks be compiled anew for each number of them: there a micro-batch is
    padded to its longest sequence.
    """

    def __init__(self, split: Split, model: GPT, is_compiled: bool = False) -> None:
        self.split, self.labels = split, split.labels
        self.block_size, self.device = model.config.block_size, model.head.weight.device
        self.lengths = split.lengths(self.block_size)  # (examples,) in tokens
        self.is_packed = self.device.type == "cpu" and not is_compiled
        # what a group more costs is an estimate: the time of one or two tokens at GPT-2's width, more in a narrow model
        self.most_padding = min(2**20 // model.config.n_embd**2, 64)
        self.class_weights: np.ndarray | None = None  # (K,) of each class in the loss; None: all count the same

    def __len__(self) -> int:
        return len(self.split)

    def cut(self, indices: np.ndarray, token_budget: int) -> list[np.ndarray]:
        """Sort examples by length and cut them into micro-batches of at most token_budget tokens."""
        return cut_into_micro_batches(indices, self.lengths, token_budget, self.is_packed)

    def batch(self, indices: np.ndarray) -> Batch:
        """Return some examples, (n,) indices sorted by length, longest first, as the input of a GPT."""
        lengths = self.lengths[indices]
        groups = pack(lengths.tolist(), self.most_padding) if self.is_packed else [(len(indices), int(lengths.max()))]
        B, T = np.array(groups).T
        widths = np.repeat(T, B)  # (S,) in tokens, padding included; S counts the sequences that only fill up, too
        starts = np.cumsum(widths) - widths
        tokens = np.zeros(widths.sum(), dtype=np.int64)
        for index, start, length in zip(indices, starts.tolist(), lengths.tolist(), strict=False):
            tokens[start : start + length] = self.split.sequence(index, self.block_size)
        positions = np.arange(len(tokens)) - np.repeat(starts, widths)
        ends = starts + np.pad(lengths, (0, len(starts) - len(indices)), constant_values=1) - 1
        tensors = (send(array, self.device) for array in (tokens, positions, ends))
        return Batch(*tensors, groups, size=len(indices))


class Features:
    """The head's inputs for a whole split, computed once: (examples, C) on the CPU."""

    def __init__(self, features: Tensor, labels: np.ndarray, device: torch.device) -> None:
        self.features, self.labels, self.device = features, labels, device
        self.lengths = np.ones(len(features), dtype=np.int64)
        self.class_weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.features)

    def cut(self, indices: np.ndarray, token_budget: int) -> list[np.ndarray]:
        """Return all of them as one batch: they are small."""
        return [indices]

    def batch(self, indices: np.ndarray) -> Tensor:
        """Return (n, C) features on the device."""
        return self.features[torch.from_numpy(indices)].to(self.device)


class Step(NamedTuple):
    """What this process computes of an optimizer step, on its device."""

    indices: np.ndarray  # (n,) the examples of all processes
    micro_batches: list[tuple[Batch | Tensor, Tensor]]  # inputs, and int64 (examples,) labels
    weight: float  # of each example's loss in the step's mean, beside that of its class
    class_weights: Tensor | None = None  # float32 (K,)


def collate(examples: Texts | Features, indices: np.ndarray, token_budget: int) -> Step:
    """Cut a step's examples into micro-batches and send them to the device, which may be busy: nobody waits.

    Of several processes each takes its share.

    Args:
        indices: (n,) the step's examples.
        token_budget: tokens of a micro-batch, padding included where it is computed.
    """
    mine, weight, class_weights = distributed.share(indices, examples.lengths), 1 / len(indices), None
    if examples.class_weights is not None:
        weight = 1 / float(examples.class_weights[examples.labels[indices]].sum())
        class_weights = send(examples.class_weights.astype(np.float32), examples.device)
    if len(mine) == 0:  # fewer examples than processes: this one takes part with a gradient of zero
        mine, weight = indices[:1], 0.0
    micro_batches = [
        (examples.batch(chosen), send(examples.labels[chosen].astype(np.int64), examples.device))
        for chosen in examples.cut(mine, token_budget)
    ]
    return Step(indices, micro_batches, weight, class_weights)


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return for each class examples / (classes * its examples), as scikit-learn's "balanced" is: float64 (K,)."""
    return len(labels) / (num_classes * np.maximum(np.bincount(labels, minlength=num_classes), 1))


def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which an epoch visits the examples, a permutation that depends on seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def cut_into_micro_batches(
    indices: np.ndarray, lengths: np.ndarray, token_budget: int, is_packed: bool
) -> list[np.ndarray]:
    """Sort examples by length and cut them into micro-batches of at most token_budget tokens.

    Sorting is free: a step's gradient is a mean over all of its examples, and so does not depend on their order.
    Longest first, so that what is too large for the memory fails at once.

    Args:
        indices: (n,) the examples of one step.
        lengths: (examples,) number of tokens of every example of the split, indexed by `indices`.
        token_budget: a sequence that is longer makes a micro-batch of its own.
        is_packed: only real tokens count, and each micro-batch is filled (pack() may add some padding). Otherwise
            padding counts, too, and where to cut is solved exactly, by dynamic programming.
    """
    order = indices[np.argsort(-lengths[indices], kind="stable")]
    sorted_lengths = lengths[order]
    ends = (_filled_ends if is_packed else _cheapest_ends)(sorted_lengths, token_budget)
    micro_batches, start = [], 0
    while start < len(order):
        micro_batches.append(order[start : ends[start]])
        start = ends[start]
    return micro_batches


def _filled_ends(lengths: np.ndarray, token_budget: int) -> list[int]:
    """Return where the micro-batch that starts at each example ends, if it takes as many as the budget allows."""
    totals = np.concatenate([[0], np.cumsum(lengths)])
    ends = np.searchsorted(totals, totals[:-1] + token_budget, side="right") - 1
    return np.maximum(ends, np.arange(1, len(totals))).tolist()  # one at least, however small the budget


def _cheapest_ends(lengths: np.ndarray, token_budget: int) -> list[int]:
    """Return where the micro-batch that starts at each example ends, if all are padded and the cut costs least.

    A micro-batch costs its tokens, padding included, or FLOOR if that is more: a GPU computes one while the next is
    launched, and so takes the longer of the two times.
    """
    longest, count, floor = lengths.tolist(), len(lengths), min(FLOOR, token_budget)
    rows = np.arange(1, count + 1)
    cost = np.zeros(count + 1)  # of the examples from here to the end, in tokens
    ends = [0] * count
    for start in reversed(range(count)):
        # examples that this micro-batch could take: one at least, however small the budget
        most = min(max(token_budget // longest[start], 1), count - start)
        # for each number of examples, what they cost and what then remains
        costs = np.maximum(rows[:most] * longest[start], floor) + cost[start + 1 : start + 1 + most]
        ends[start] = start + 1 + int(costs.argmin())
        cost[start] = costs.min()
    return ends


def pack(lengths: list[int], most_padding: int) -> list[tuple[int, int]]:
    """Return the groups (B, T) in which sequences attend together: neighbours of a length; sorted, they are few.

    A run of equal lengths joins the group before it if padding all of the run takes at most most_padding tokens.
    To a large batch, one-token sequences are added up to a multiple of 32 tokens, which products take 2% faster.
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
# how many tokens a GPU's memory holds


def activation_bytes(model: GPT, dtype: torch.dtype) -> int:
    """Return the memory that a token's activations take in training, from a forward pass to its backward pass.

    Of each block, in units of n_embd: the residual stream before and after attention in float32; in dtype what the four
    linear layers and GELU take in (1 + 1 + 1 + 4 + 4), and queries, keys and values (3); and two dropout masks of one
    byte. With activation checkpointing, only a block's input and one block in whole.
    """
    n_layer, n_embd = model.config.n_layer, model.config.n_embd
    block = n_embd * (2 * 4 + 14 * dtype.itemsize + 2)
    return n_layer * n_embd * 4 + block if model.activation_checkpointing else n_layer * block


def free_memory() -> int:
    """Return the bytes of the GPU's memory that are free, what this process has in reserve included."""
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def token_budget_for(model: GPT, dtype: torch.dtype, free: int) -> int:
    """Return how many tokens of a micro-batch fit into so many free bytes: a power of two.

    Gradients, AdamW's two averages and the copies of the weights in dtype are still to come; so is, in each backward
    pass, a second gradient of the table of embeddings.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    copies = dtype.itemsize * sum(p.numel() for p in model.h.parameters()) if dtype != torch.float32 else 0
    left = SHARE_OF_MEMORY * (free - 3 * 4 * trained - copies - 4 * model.wte.weight.numel())
    tokens = int(max(left, 0)) // activation_bytes(model, dtype)
    return min(1 << max(tokens.bit_length() - 1, 8), MOST_TOKENS)  # 256 at least; it is halved if that is too much
