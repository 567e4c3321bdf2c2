"""One optimizer step: the exact gradient of its mean loss in micro-batches of little padding, and the update."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import distributed
from dataset import Split, collate, cut_into_micro_batches
from device import autocast, send
from errors import UserError, is_out_of_memory
from model import GPT


def accumulate_gradient(
    model: GPT,
    scaler: torch.amp.GradScaler,
    split: Split,
    indices: np.ndarray,
    token_budget: int,
    dtype: torch.dtype,
    on_examples: Callable[[int], Any] = lambda count: None,
    replica: nn.Module | None = None,
) -> Tensor:
    """Add the gradient of the mean loss over some examples, however many micro-batches it takes; return that loss.

    Of several processes each computes its share, and the sum goes round once, with the last micro-batch.

    Args:
        indices: (n,) the step's examples, numbers into split.
        token_budget: tokens of a micro-batch, padding included where it is computed.
        on_examples: called with the number of examples of each micro-batch that is done.
        replica: the model as distributed.parallel returns it; None is the model itself.
    """
    model.train()
    replica = replica or model
    where, block_size = model.head.weight.device, model.config.block_size
    lengths = split.lengths(block_size)
    mine, weight = distributed.share(indices, lengths), 1 / len(indices)
    if len(mine) == 0:  # fewer examples than processes: this one takes part with a gradient of zero
        mine, weight = indices[:1], 0.0
    micro_batches = cut_into_micro_batches(mine, lengths, token_budget, model.skips_padding)
    # everything is on its way to the device before the first micro-batch is computed
    inputs = [[send(array, where) for array in collate(split, chosen, block_size)] for chosen in micro_batches]
    targets = [send(split.labels[chosen].astype(np.int64), where) for chosen in micro_batches]
    total = torch.zeros((), device=where)
    with autocast(where, dtype):  # around all micro-batches, so that weights are cast once
        for number, (batch, labels) in enumerate(zip(inputs, targets, strict=True), start=1):
            is_last = number == len(inputs)
            with nullcontext() if is_last or replica is model else replica.no_sync():
                # a sum, divided by the whole step's count: micro-batches of any sizes add up to the same mean
                loss = F.cross_entropy(replica(*batch), labels, reduction="sum") * weight
                with torch.autocast(where.type, enabled=False):  # the backward pass keeps each operator's own dtype
                    # DistributedDataParallel divides by the number of processes
                    scaler.scale(loss * distributed.size()).backward()
            total += loss.detach()
            on_examples(len(labels))
    return distributed.total(total)


def accumulate_head_gradient(
    model: GPT, scaler: torch.amp.GradScaler, features: Tensor, split: Split, indices: np.ndarray
) -> Tensor:
    """Do the same for the head alone, on the whole split's features (examples, C)."""
    where = model.head.weight.device
    labels = send(split.labels[indices].astype(np.int64), where)
    loss = F.cross_entropy(model.classify(features[torch.from_numpy(indices)].to(where)), labels)
    scaler.scale(loss).backward()
    return loss.detach()


@torch.no_grad()
def classify(model: GPT, features: Tensor) -> Tensor:
    """Return the head's logits for a whole split's features, on the CPU."""
    return model.classify(features.to(model.head.weight.device)).cpu()


def update(
    model: GPT, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Tensor, grad_clip: float
) -> tuple[float, float]:
    """Clip the gradient, step, and zero it; return the loss and the gradient's norm before clipping.

    Raises:
        UserError: loss or gradient is not finite; the step was not taken. (In float16 the scaler skips it and goes on.)
    """
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    loss, norm = torch.stack([loss, norm]).tolist()  # the step's only wait for the device
    if not scaler.is_enabled() and not math.isfinite(loss + norm):
        raise UserError(
            f"the loss is {loss} and the gradient's norm {norm}, so the step was not taken: "
            f"try a lower learning_rate, warmup_steps, or dtype=float32"
        )
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=False)
    return loss, norm


def halved(token_budget: int, longest: int) -> int:
    """Return the token budget to go on with after memory ran out, and say so.

    Raises:
        UserError: a micro-batch of the longest sequence alone (longest: its tokens) did not fit.
    """
    if token_budget <= longest:
        raise UserError(
            "out of memory with one sequence in memory at a time: try --activation_checkpointing=True, "
            "a smaller block_size, --trainable_blocks=0 or a smaller model"
        )
    halved = max(token_budget // 2, longest)
    tqdm.write(f"out of memory: the step is taken again in micro-batches of {halved:,} tokens, not {token_budget:,}")
    return halved


def compile_blocks(model: GPT, split: Split, token_budget: int, where: torch.device, dtype: torch.dtype) -> None:
    """Compile the model's blocks, for sequences of any length and number, and print how long it took.

    Raises:
        UserError: PyTorch cannot compile on this machine.
    """
    started = time.monotonic()
    torch._dynamo.config.recompile_limit = 32  # first or last block, training or not, single sequences
    model.is_compiled = True
    for block in model.h:
        block.compile(dynamic=True)
    examples = np.arange(min(len(split), 64))
    try:
        accumulate_gradient(model, torch.amp.GradScaler(enabled=False), split, examples, token_budget, dtype)
        model.zero_grad(set_to_none=False)
    except Exception as error:  # a missing compiler, an unsupported GPU: each with its own type
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"compile=True does not work on this machine ({reason}): leave it out") from None
    print(f"compile: {time.monotonic() - started:.0f} s")


def learning_rate_at(step: int, all_steps: int, settings: SimpleNamespace) -> float:
    """Return the rate of a step, counted from 0: a linear warm-up, then constant or half a cosine down to min_lr."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.lr_schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup_steps) / max(1, all_steps - settings.warmup_steps)
    return settings.min_lr + (settings.learning_rate - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * done))
