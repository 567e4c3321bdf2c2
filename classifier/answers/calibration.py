"""Whether probabilities can be believed: the expected calibration error, and one temperature that mends it.

A temperature lies beside the checkpoint that it was fitted for: out/best.temperature.json beside out/best.pt.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from classifier import errors
from classifier.errors import UserError
from classifier.files import written_whole
from classifier.training.predict import loss_and_accuracy

BINS = 15  # as Guo et al. 2017 have it
FOLDS = 5
COLDEST, HOTTEST = 0.01, 100.0


class Reliability(NamedTuple):
    """Examples in bins of equal width by their confidence, the probability of the predicted class; no bin is empty."""

    confidence: np.ndarray  # (bins,) float64, the mean in each
    right: np.ndarray  # (bins,) int64, correct predictions
    examples: np.ndarray  # (bins,) int64


def reliability(logits: Tensor, labels: np.ndarray) -> Reliability:
    """Sort predictions into bins by their confidence; what is empty is left out.

    Args:
        logits: (examples, K).
        labels: (examples,) int16.
    """
    confidence, predictions = (each.numpy() for each in logits.double().softmax(-1).max(-1))
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    examples = np.bincount(bins, minlength=BINS)
    used = examples > 0
    right = np.bincount(bins, weights=predictions == labels, minlength=BINS)[used].astype(int)
    total = np.bincount(bins, weights=confidence, minlength=BINS)[used]
    return Reliability(total / examples[used], right, examples[used])


def calibration_error(logits: Tensor, labels: np.ndarray) -> float:
    """Return the expected calibration error, how far accuracy and confidence are apart: Guo et al. 2017, equation 3."""
    found = reliability(logits, labels)
    return float(np.abs(found.right - found.confidence * found.examples).sum() / found.examples.sum())


def fit_temperature(logits: Tensor, labels: np.ndarray) -> float:
    """Return the temperature T for which logits / T make the labels likeliest: Guo et al. 2017, section 4.2.

    In 1 / T the mean cross-entropy is convex: there is one minimum. Where it lies beyond COLDEST or HOTTEST, as where
    every prediction is right, or none better than chance, that end is returned.
    """
    from scipy.optimize import minimize_scalar  # here, since importing it takes half a second

    logits = logits.double()
    bounds = np.log([COLDEST, HOTTEST])

    def loss(log_t: float) -> float:
        return loss_and_accuracy(logits / np.exp(log_t), labels)[0]

    return float(np.exp(minimize_scalar(loss, bounds=bounds, options={"xatol": 1e-8}).x))


def calibrated_by_folds(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Return logits of which each fifth is divided by the temperature that the other four were fitted to: float64.

    What is measured on them is an estimate for examples that no temperature has seen. The folds are drawn at random,
    the same in every run.
    """
    whole = torch.empty_like(logits, dtype=torch.float64)
    order = np.random.default_rng(0).permutation(len(labels))
    for fold in np.array_split(order, FOLDS):
        others = np.setdiff1d(order, fold)
        whole[fold] = logits[fold].double() / fit_temperature(logits[others], labels[others])
    return whole


def calibrate(logits: Tensor, labels: np.ndarray) -> dict[str, Any]:
    """Return the temperature of some examples, and what loss and calibration error are before, after and in folds.

    Args:
        logits: (examples, K) float32, which double precision divides: none become equal, and each argmax stays.
        labels: (examples,) int16.

    Raises:
        UserError: there are too few examples, or none that a temperature fits.
    """
    if len(labels) < 2 * FOLDS:
        raise UserError(f"{len(labels)} labelled examples are too few to fit a temperature: {2 * FOLDS} at least")
    temperature = fit_temperature(logits, labels)
    if not 1.01 * COLDEST < temperature < HOTTEST / 1.01:
        raise UserError(
            f"no temperature from {COLDEST} to {HOTTEST:.0f} fits these {len(labels):,} examples best: the model has "
            f"all of them right, or knows nothing of them"
        )
    stages = {"before": logits, "after": logits.double() / temperature, "estimate": calibrated_by_folds(logits, labels)}
    found = {"temperature": temperature, "examples": len(labels)}
    for name, each in stages.items():
        loss, _ = loss_and_accuracy(each.double(), labels)
        found[name] = {"loss": loss, "calibration_error": calibration_error(each, labels)}
    return found


def temperature_path(ckpt: str | Path) -> Path:
    """Return where a checkpoint's temperature is kept."""
    return Path(ckpt).with_suffix(".temperature.json")


def write_temperature(ckpt: str, content: dict[str, Any]) -> Path:
    """Write what calibrate() has found, and for what, beside a checkpoint, whole or not at all; return its path."""
    path = temperature_path(ckpt)
    with written_whole(path, "w") as f:
        f.write(json.dumps(content, indent=2) + "\n")
    return path


def read_temperature(ckpt: str, sha256: str) -> dict[str, Any]:
    """Return what is stored of the temperature that was fitted for a checkpoint of this checksum, or {}.

    Raises:
        UserError: the file is damaged.
    """
    path = temperature_path(ckpt)
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        is_for_these_weights = stored["checkpoint_sha256"] == sha256
        if not COLDEST <= stored["temperature"] <= HOTTEST:
            raise ValueError
    except (ValueError, KeyError, TypeError):  # no JSON, or other content
        raise UserError(f"{path} is damaged or of another program: remove it and fit it again by --calibrate") from None
    if not is_for_these_weights:
        note = f"note: {path} was fitted for other weights than {ckpt} has, and is not used: see --calibrate"
        print(errors.printable(note), file=sys.stderr)
        return {}
    return stored
