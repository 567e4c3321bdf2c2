"""Whether probabilities can be believed: the expected calibration error, and one temperature that mends it.

A temperature lies beside the checkpoint that it was fitted for: out/best.temperature.json beside out/best.pt.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classifier.errors import UserError
from classifier.files import file_sha256
from classifier.training.predict import loss_and_accuracy

BINS = 15  # as Guo et al. 2017 have it
FOLDS = 5
COLDEST, HOTTEST = 0.01, 100.0


def reliability(logits: Tensor, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort predictions into bins of equal width by their confidence, the probability of the predicted class.

    Args:
        logits: (examples, K).
        labels: (examples,) int16.

    Returns:
        Of each bin that is not empty its mean confidence, its right predictions and its examples: (bins,) each.
    """
    confidence, predictions = (each.numpy() for each in logits.double().softmax(-1).max(-1))
    summed = [None, (predictions == labels).astype(int), confidence]  # None counts
    examples, right, total = (np.histogram(confidence, BINS, (0, 1), weights=each)[0] for each in summed)
    used = examples > 0
    return total[used] / examples[used], right[used], examples[used]


def calibration_error(logits: Tensor, labels: np.ndarray) -> float:
    """Return the expected calibration error, how far accuracy and confidence are apart: Guo et al. 2017, equation 3."""
    confidence, right, examples = reliability(logits, labels)
    return float(np.abs(right - confidence * examples).sum() / examples.sum())


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
    from sklearn.model_selection import KFold  # here, since importing it takes a second

    whole = torch.empty_like(logits, dtype=torch.float64)
    for others, fold in KFold(FOLDS, shuffle=True, random_state=0).split(labels):
        whole[fold] = logits[fold].double() / fit_temperature(logits[others], labels[others])
    return whole


def calibrate(logits: Tensor, labels: np.ndarray) -> dict[str, Any]:
    """Return the temperature of some examples, and what loss and calibration error are before, after and in folds.

    Args:
        logits: (examples, K), which double precision divides: none become equal, and each argmax stays.
        labels: (examples,) int16.

    Raises:
        UserError: there are no examples that a temperature fits.
    """
    temperature = fit_temperature(logits, labels)
    if len(labels) < FOLDS or not 1.01 * COLDEST < temperature < HOTTEST / 1.01:
        raise UserError(
            f"no temperature from {COLDEST} to {HOTTEST:.0f} fits these {len(labels):,} examples best: they are too "
            "few, or the model has all of them right, or knows nothing of them"
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


def read_temperature(ckpt: str) -> dict[str, Any]:
    """Return what is stored of the temperature that was fitted for a checkpoint, or {}.

    Raises:
        UserError: the file is damaged.
    """
    path = temperature_path(ckpt)
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        is_for_these_weights = stored["checkpoint_sha256"] == file_sha256(ckpt) and stored["temperature"] > 0
    except (ValueError, KeyError, TypeError):  # no JSON, or other content
        raise UserError(f"{path} is damaged or of another program: remove it and fit it again by --calibrate") from None
    if not is_for_these_weights:
        print(f"note: {path} was fitted for other weights than {ckpt} has, and is not used", file=sys.stderr)
        return {}
    return stored
