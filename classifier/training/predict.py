"""Predict a whole split, and measure how good the predictions are."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classifier import distributed
from classifier.errors import UserError, is_out_of_memory
from classifier.training.batches import Features, Texts
from model import GPT, casting

TOKEN_BUDGET = 16384  # tokens in memory at once; no result depends on it


@torch.no_grad()
def predict(
    net: nn.Module,
    examples: Texts | Features,
    dtype: torch.dtype,
    on_examples: Callable[[int], Any] = lambda count: None,
    compute: Callable[[Any], Tensor] | None = None,
) -> Tensor:
    """Compute a network's outputs for a whole split, in its order: float32 (examples, K) on the CPU.

    Each of several processes computes its share and returns the whole. What does not fit into memory is cut in two.

    Args:
        net: a GPT for Texts, its head for Features; put into evaluation mode.
        dtype: of matrix products.
        on_examples: called with the number of examples of each finished micro-batch.
        compute: called instead of net, such as model.features, whose outputs are (examples, C).

    Raises:
        UserError: some outputs are not finite.
    """
    net.eval()
    compute = compute or net
    indices, is_shared = np.arange(len(examples)), len(examples) >= distributed.size()
    if is_shared:
        indices = distributed.share(indices, examples.lengths(indices))
    to_do, order, parts = examples.cut(indices, TOKEN_BUDGET), [], []
    with casting(net, dtype):
        while to_do:
            try:
                parts.append(compute(examples.batch(to_do[0])))
            except (MemoryError, RuntimeError) as error:
                if len(to_do[0]) == 1 or not is_out_of_memory(error):
                    raise
                to_do[:1] = np.array_split(to_do[0], 2)
                continue
            order.append(to_do.pop(0))
            on_examples(len(order[-1]))
    outputs = torch.cat(parts).cpu()  # the only wait for the device
    whole = outputs.new_zeros(len(examples), outputs.shape[1])
    whole.index_copy_(0, torch.from_numpy(np.concatenate(order)), outputs)
    if is_shared:
        whole = distributed.sum_over_processes(whole)
    if not whole.isfinite().all():
        raise UserError("the model's output is NaN or infinite: train again with a lower learning_rate")
    return whole


def cached_features(model: GPT, texts: Texts, dtype: torch.dtype) -> Features:
    """Compute the head's inputs for a whole split, in evaluation mode."""
    return Features(predict(model, texts, dtype, compute=model.features), texts.labels, texts.device)


def average(logits: list[Tensor]) -> Tensor:
    """Return the logarithm of several models' mean probabilities, or a single model's logits: (examples, K)."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack(logits).log_softmax(-1).logsumexp(0) - math.log(len(logits))


def loss_and_accuracy(logits: Tensor, labels: np.ndarray) -> tuple[float, float]:
    """Return the mean cross-entropy in nats, and the accuracy."""
    targets = torch.from_numpy(labels.astype(np.int64))
    return F.cross_entropy(logits, targets).item(), (logits.argmax(-1) == targets).double().mean().item()


def most_frequent(labels: np.ndarray) -> tuple[int, float]:
    """Return the most frequent class's number, and its share, the accuracy of always answering it."""
    counts = np.bincount(labels)
    return int(counts.argmax()), float(counts.max() / len(labels))


def macro_f1(logits: Tensor, labels: np.ndarray) -> float:
    """Return the mean F1 of all classes; it is 0 for a class that neither occurs nor is predicted."""
    from sklearn.metrics import f1_score  # takes a second to import

    classes = range(logits.shape[1])
    return float(f1_score(labels, logits.argmax(-1).numpy(), labels=classes, average="macro", zero_division=0))
