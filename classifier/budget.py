"""How large a GPU's micro-batches are: what its memory holds, and what time each costs beside that of its tokens."""

import time
from collections.abc import Callable

import numpy as np
import torch

from classifier.batches import MICRO_BATCH_COST, Step, Texts
from classifier.device import send
from classifier.errors import is_out_of_memory
from model import GPT

MOST_TOKENS = 65536  # a larger micro-batch is no faster
SHARE_OF_MEMORY = 0.7  # the rest is for what a backward pass holds for a moment, and for gaps between tensors


def activation_bytes(model: GPT, dtype: torch.dtype) -> int:
    """Return the memory that a token's activations take in training, from a forward pass to its backward pass.

    Of each block, in units of n_embd: the residual stream before and after attention in float32; in dtype what the four
    linear layers and GELU take in (1 + 1 + 1 + 4 + 4), and queries, keys and values (3); and two dropout masks of one
    byte. With activation checkpointing, only a block's input and one block in whole.
    """
    block = model.config.n_embd * (2 * 4 + 14 * dtype.itemsize + 2)
    if model.activation_checkpointing:
        return model.config.n_layer * model.config.n_embd * 4 + block
    return model.config.n_layer * block


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


def micro_batch_cost(seconds: Callable[[int], float], most: int) -> int:
    """Return how many tokens could be computed in the time that a micro-batch costs beside that of its tokens.

    A small one takes as long as its launches, whatever its size. From where the time grows with the size, it is taken
    for a + b tokens, and a / b is returned.

    Args:
        seconds: measures a micro-batch of about so many tokens, one of several in a row.
        most: tokens of the largest micro-batch to try.
    """
    tokens, before = 1024, seconds(1024)
    while 2 * tokens <= most:
        after = seconds(2 * tokens)
        if after > 1.6 * before:  # the device computes while the next one is launched
            return int(np.clip(tokens * (2 * before - after) / (after - before), 64, 2048))
        tokens, before = 2 * tokens, after
    return 2048  # all are bound by their launches


def measured_cost(compute: Callable[[Step], object], texts: Texts, most: int) -> int:
    """Return micro_batch_cost of a split on its GPU, measured on texts of about the median length.

    Args:
        compute: a forward and a backward pass.
        most: tokens of the largest micro-batch to try.
    """
    order = np.argsort(-texts.lengths, kind="stable")[len(texts) // 2 :]
    longest = int(texts.lengths[order[0]])

    def seconds(tokens: int) -> float:
        indices = order[: max(1, tokens // longest)]
        labels = send(texts.labels[indices].astype(np.int64), texts.device)
        step = Step(indices, [(texts.batch(indices), labels)], 1 / len(indices))
        compute(step)  # a warm-up
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(4):
            compute(step)
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / 4

    try:
        return micro_batch_cost(seconds, min(most, longest * len(order)))
    except RuntimeError as error:
        if not is_out_of_memory(error):  # the training finds out what fits
            raise
        return MICRO_BATCH_COST
