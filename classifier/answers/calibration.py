"""Whether probabilities can be believed: the expected calibration error, and the temperature that lowers the loss.

Logits are (examples, K), labels (examples,) int16.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from classifier.errors import UserError
from classifier.training.predict import loss_and_accuracy

BINS = 15  # as in Guo et al. 2017
FOLDS = 5
COLDEST, HOTTEST = 0.01, 100.0


def binned(confidence: np.ndarray, is_right: np.ndarray) -> np.ndarray:
    """Sort predictions into bins of equal width by their confidence, the probability of the predicted class.

    Returns:
        For each bin the sum of the confidences, the right predictions and all predictions: float64 (3, BINS).
    """
    weights = (confidence, is_right.astype(int), None)
    return np.array([np.histogram(confidence, BINS, (0, 1), weights=each)[0] for each in weights], np.float64)


def error_of_bins(bins: np.ndarray) -> float:
    """Compute the expected calibration error, the mean gap between accuracy and confidence: Guo et al. 2017, eq. 3."""
    confidence, right, examples = bins
    return float(np.abs(right - confidence).sum() / examples.sum())


def calibration_error(logits: Tensor, labels: np.ndarray) -> float:
    """Compute the expected calibration error of logits."""
    highest = logits.double().softmax(-1).max(-1)
    return error_of_bins(binned(highest.values.numpy(), highest.indices.numpy() == labels))


def fit_temperature(logits: Tensor, labels: np.ndarray) -> float:
    """Find the temperature T, from COLDEST to HOTTEST, that gives logits / T the lowest loss: Guo et al., section 4.2.

    The loss is convex in 1 / T, so there is one minimum.
    """
    from scipy.optimize import minimize_scalar  # here: the import takes half a second

    logits = logits.double()

    def loss(log_t: float) -> float:
        return loss_and_accuracy(logits / np.exp(log_t), labels)[0]

    return float(np.exp(minimize_scalar(loss, bounds=np.log([COLDEST, HOTTEST]), options={"xatol": 1e-8}).x))


def calibrated_by_folds(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Divide each fifth of the logits by the temperature fitted to the other four: float64 (examples, K).

    The fifths are random, and the same in every run.
    """
    from sklearn.model_selection import KFold  # here: the import takes a second

    calibrated = torch.empty_like(logits, dtype=torch.float64)
    for others, fold in KFold(FOLDS, shuffle=True, random_state=0).split(labels):
        calibrated[fold] = logits[fold].double() / fit_temperature(logits[others], labels[others])
    return calibrated


def calibrate(logits: Tensor, labels: np.ndarray) -> dict[str, Any]:
    """Fit a temperature; measure loss and calibration error before, after, and cross-validated over five folds.

    Raises:
        UserError: no temperature fits these examples.
    """
    temperature = fit_temperature(logits, labels)
    if len(labels) < FOLDS or not 1.01 * COLDEST < temperature < HOTTEST / 1.01:
        raise UserError(
            f"no temperature from {COLDEST} to {HOTTEST:.0f} fits these {len(labels):,} examples: there are too few, "
            "or the model has all of them right, or is no better than chance: calibrate on a larger dev split"
        )
    stages = {"before": logits.double(), "after": logits.double() / temperature}
    stages["cross_validated"] = calibrated_by_folds(logits, labels)
    found: dict[str, Any] = {"temperature": temperature, "examples": len(labels)}
    for stage, scaled in stages.items():
        loss, _ = loss_and_accuracy(scaled, labels)
        found[stage] = {"loss": loss, "calibration_error": calibration_error(scaled, labels)}
    return found
