"""A model's answers for a whole split, in few micro-batches of little padding, and how good they are."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import distributed
from dataset import Split, collate, cut_into_micro_batches
from device import autocast, send
from errors import UserError
from model import GPT

TOKEN_BUDGET = 16384  # tokens classified at once: a matter of memory and speed, not of results


def predict(
    model: GPT,
    split: Split,
    where: torch.device,
    dtype: torch.dtype,
    on_examples: Callable[[int], Any] = lambda count: None,
) -> Tensor:
    """Return the model's logits for a whole split, in its order: float32 (examples, num_classes) on the CPU.

    on_examples is called with the number of examples of each micro-batch that is done.

    Raises:
        UserError: some are not finite.
    """
    return over_split(model, model, split, where, dtype, on_examples)


@torch.no_grad()
def over_split(
    compute: Callable[[Tensor, Tensor], Tensor],
    model: GPT,
    split: Split,
    where: torch.device,
    dtype: torch.dtype,
    on_examples: Callable[[int], Any] = lambda count: None,
) -> Tensor:
    """Return what compute, the model or its features, gives for a whole split: float32 (examples, K) on the CPU.

    Of several processes each computes its share, and all of them return the whole.
    """
    model.eval()
    block_size = model.config.block_size
    lengths = split.lengths(block_size)
    indices, is_shared = np.arange(len(split)), len(split) >= distributed.size()
    if is_shared:
        indices = distributed.share(indices, lengths)
    token_budget = max(TOKEN_BUDGET, block_size)
    micro_batches = cut_into_micro_batches(indices, lengths, token_budget, model.skips_padding)
    parts = []
    with autocast(where, dtype):  # around all micro-batches, so that weights are cast once
        for chosen in micro_batches:
            inputs = (send(array, where) for array in collate(split, chosen, block_size))
            parts.append(compute(*inputs))
            on_examples(len(chosen))
    outputs = torch.cat(parts).cpu()  # the only wait for the device
    whole = outputs.new_zeros(len(split), outputs.shape[1])
    whole.index_copy_(0, torch.from_numpy(np.concatenate(micro_batches)), outputs)
    if is_shared:
        whole = distributed.total(whole)
    if not whole.isfinite().all():
        raise UserError("the model's outputs are not finite numbers: its weights are beyond use")
    return whole


def average(logits: list[Tensor]) -> Tensor:
    """Return the logarithm of the mean of several models' probabilities (of one model, its logits): (examples, K)."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack(logits).log_softmax(-1).logsumexp(0) - math.log(len(logits))


def loss_and_accuracy(logits: Tensor, labels: np.ndarray) -> tuple[float, float]:
    """Return the mean cross-entropy in nats and the share of right predictions."""
    targets = torch.from_numpy(labels.astype(np.int64))
    return F.cross_entropy(logits, targets).item(), (logits.argmax(-1) == targets).double().mean().item()
