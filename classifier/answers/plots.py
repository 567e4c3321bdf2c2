"""Pictures of a model's predictions."""

import os
import textwrap
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # notebooks set one that their subprocesses cannot load
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from classifier.answers.calibration import BINS, calibration_error, reliability
from classifier.answers.significance import wilson_interval
from classifier.data.dataset import Split
from classifier.training.curves import BLUE, GREY, write_picture


def draw_confusion(path: Path, logits: Tensor, split: Split, label_names: list[str]) -> None:
    """Draw the confusion matrix: a row for each true class, counts and shares of the row in each cell."""
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix  # here, since importing it takes a second

    classes = range(len(label_names))
    counts = confusion_matrix(split.labels, logits.argmax(-1).numpy(), labels=classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side, has_room = min(max(4.0, 1.1 * len(classes)), 14.0), len(classes) <= 16
    figure = Figure(figsize=(side + 1.8, side + 0.6), layout="constrained")
    axes = figure.subplots()
    names = [textwrap.shorten(name, 30, placeholder="...") for name in label_names]
    display = ConfusionMatrixDisplay(shares, display_labels=names)
    display.plot(include_values=has_room, cmap="cividis", ax=axes, colorbar=False, im_kw={"vmin": 0, "vmax": 1})
    for cell, text in np.ndenumerate(display.text_) if has_room else ():
        text.set_text(f"{counts[cell]:,}\n{shares[cell]:.0%}")
    axes.set_xticks(classes, names, rotation=30, ha="right")
    axes.set(xlabel="predicted", ylabel="true", title=f"{split.name}: {'counts and ' * has_room}shares of each row")
    figure.colorbar(display.im_, ax=axes, shrink=0.8, format="{x:.0%}")
    write_picture(figure, path)


def draw_reliability(path: Path, logits: Tensor, split: Split, label_names: list[str]) -> None:
    """Draw accuracy against confidence, the probability of the predicted class, in bins of equal width."""
    bins, error = reliability(logits, split.labels), calibration_error(logits, split.labels)
    figure = Figure(figsize=(5.6, 6.2), layout="constrained")
    accuracy, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    accuracy.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfectly calibrated")
    _plot_with_intervals(accuracy, *bins, f"model (expected calibration error {error:.3f})")
    accuracy.set(ylabel="accuracy", ylim=(0, 1.02), title=f"{split.name}: accuracy by confidence")
    accuracy.legend(loc="upper left")
    histogram.hist(logits.softmax(-1).amax(-1).numpy(), bins=np.linspace(0, 1, BINS + 1), color=BLUE)
    histogram.set(xlabel="confidence: probability of the predicted class", ylabel="examples", xlim=(0, 1))
    write_picture(figure, path)


def draw_accuracy_by_length(path: Path, logits: Tensor, split: Split, label_names: list[str]) -> None:
    """Draw accuracy by sentence length in tokens, in up to eight groups of as many examples each."""
    right = logits.argmax(-1).numpy() == split.labels
    lengths = np.diff(split.offsets)
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, 9)[1:], method="higher"))  # last length of each group
    groups = np.searchsorted(edges, lengths)
    examples = np.bincount(groups)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    _plot_with_intervals(
        axes, np.arange(len(edges)), np.bincount(groups, right).astype(int), examples, "accuracy in the group"
    )
    axes.axhline(right.mean(), color=GREY, linestyle="--", label=f"all: {right.mean():.3f}")
    firsts = [lengths[groups == group].min() for group in range(len(edges))]
    ranges = [f"{first}-{last}" if first < last else f"{first}" for first, last in zip(firsts, edges, strict=True)]
    names = [f"{lengths}\nn={n}" for lengths, n in zip(ranges, examples, strict=True)]
    axes.set_xticks(np.arange(len(edges)), names)
    axes.set(xlabel="sentence length (tokens)", ylabel="accuracy", title=f"{split.name}: accuracy by length")
    axes.legend(frameon=True)
    axes.grid(alpha=0.25)
    write_picture(figure, path)


OF_A_SPLIT = {
    "confusion.png": draw_confusion,
    "reliability.png": draw_reliability,
    "accuracy_by_length.png": draw_accuracy_by_length,
}


def _plot_with_intervals(axes: Axes, x: np.ndarray, right: np.ndarray, examples: np.ndarray, label: str) -> None:
    """Plot the accuracies right / examples with their 95% Wilson intervals."""
    bounds = np.array([*map(wilson_interval, right.tolist(), examples.tolist())]).T
    around = np.abs(bounds - right / examples)
    axes.errorbar(x, right / examples, yerr=around, color=BLUE, marker="o", capsize=3, label=f"{label}, 95% interval")
