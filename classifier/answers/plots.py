"""Pictures of a model's predictions."""

import os
import textwrap
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # notebooks set one that their subprocesses cannot load
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from classifier.answers.calibration import BINS, calibration_error, reliability
from classifier.answers.significance import wilson_interval
from classifier.data.dataset import Split
from classifier.training.curves import BLUE, GREY, write_picture


def draw_confusion(path: Path, logits: Tensor, split: Split, label_names: list[str]) -> None:
    """Draw the confusion matrix: a row for each true class, with counts and shares of the row in each cell."""
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix  # here: the import takes a second

    classes = range(len(label_names))
    counts = confusion_matrix(split.labels, logits.argmax(-1).numpy(), labels=classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(max(4.0, 1.1 * len(classes)), 14.0)
    figure = Figure(figsize=(side + 1.8, side + 0.6), layout="constrained")
    axes = figure.subplots()
    names = [textwrap.shorten(name, 30, placeholder="...") for name in label_names]
    has_room = len(classes) <= 16  # for numbers in the cells
    display = ConfusionMatrixDisplay(shares, display_labels=names)
    display.plot(include_values=has_room, cmap="cividis", ax=axes, colorbar=False, im_kw={"vmin": 0, "vmax": 1})
    if has_room:
        for cell, text in np.ndenumerate(display.text_):
            text.set_text(f"{counts[cell]:,}\n{shares[cell]:.0%}")
    what = "counts and shares of each row" if has_room else "shares of each row"
    axes.set_xticks(classes, names, rotation=30, ha="right")
    axes.set(xlabel="predicted", ylabel="true", title=f"{split.name}: {what}")
    figure.colorbar(display.im_, ax=axes, shrink=0.8, format="{x:.0%}")
    write_picture(figure, path)


def draw_reliability(path: Path, logits: Tensor, split: Split, label_names: list[str]) -> None:
    """Draw accuracy against confidence, the probability of the predicted class, in bins of equal width."""
    confidence, right, examples = reliability(logits, split.labels)
    shares = right / examples
    bounds = np.array([wilson_interval(*pair) for pair in zip(right.tolist(), examples.tolist(), strict=True)]).T
    figure = Figure(figsize=(5.6, 6.2), layout="constrained")
    accuracy, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    accuracy.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfectly calibrated")
    label = f"model (expected calibration error {calibration_error(logits, split.labels):.3f}), 95% interval"
    style = {"color": BLUE, "marker": "o", "capsize": 3, "label": label}
    accuracy.errorbar(confidence, shares, yerr=np.abs(bounds - shares), **style)
    accuracy.set(ylabel="accuracy", ylim=(0, 1.02), title=f"{split.name}: accuracy by confidence")
    accuracy.legend(loc="upper left")
    histogram.hist(logits.softmax(-1).amax(-1).numpy(), bins=np.linspace(0, 1, BINS + 1), color=BLUE)
    histogram.set(xlabel="confidence: probability of the predicted class", ylabel="examples", xlim=(0, 1))
    write_picture(figure, path)


OF_A_SPLIT = {"confusion.png": draw_confusion, "reliability.png": draw_reliability}
