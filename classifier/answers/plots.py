"""Pictures of a model's predictions."""

import os
import textwrap
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # notebooks set one that their subprocesses cannot load
import numpy as np
from matplotlib.figure import Figure

from classifier.answers.calibration import BINS, error_of_bins
from classifier.answers.significance import wilson_interval
from classifier.answers.tally import Tally
from classifier.training.curves import BLUE, GREY, write_picture


def draw_confusion(path: Path, tally: Tally, label_names: list[str], name: str) -> None:
    """Draw the confusion matrix: a row for each true class, with counts and shares of the row in each cell."""
    from sklearn.metrics import ConfusionMatrixDisplay  # here: the import takes a second

    classes = range(len(label_names))
    counts = tally.confusion_matrix(len(classes))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(max(4.0, 1.1 * len(classes)), 14.0)
    figure = Figure(figsize=(side + 1.8, side + 0.6), layout="constrained")
    axes = figure.subplots()
    shown = [textwrap.shorten(each, 30, placeholder="...") for each in label_names]
    has_room = len(classes) <= 16  # for numbers in the cells
    display = ConfusionMatrixDisplay(shares, display_labels=shown)
    display.plot(include_values=has_room, cmap="cividis", ax=axes, colorbar=False, im_kw={"vmin": 0, "vmax": 1})
    if has_room:
        for cell, text in np.ndenumerate(display.text_):
            text.set_text(f"{counts[cell]:,}\n{shares[cell]:.0%}")
    what = "counts and shares of each row" if has_room else "shares of each row"
    axes.set_xticks(classes, shown, rotation=30, ha="right")
    axes.set(xlabel="predicted", ylabel="true", title=f"{name}: {what}")
    figure.colorbar(display.im_, ax=axes, shrink=0.8, format="{x:.0%}")
    write_picture(figure, path)


def draw_reliability(path: Path, tally: Tally, label_names: list[str], name: str) -> None:
    """Draw accuracy against confidence, the probability of the predicted class, in bins of equal width."""
    summed, right, examples = tally.bins[:, tally.bins[2] > 0]
    shares = right / examples
    bounds = np.array([wilson_interval(*pair) for pair in zip(right.astype(int), examples.astype(int), strict=True)]).T
    figure = Figure(figsize=(5.6, 6.2), layout="constrained")
    accuracy, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    accuracy.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfectly calibrated")
    label = f"model (expected calibration error {error_of_bins(tally.bins):.3f}), 95% interval"
    style = {"color": BLUE, "marker": "o", "capsize": 3, "label": label}
    accuracy.errorbar(summed / examples, shares, yerr=np.abs(bounds - shares), **style)
    accuracy.set(ylabel="accuracy", ylim=(0, 1.02), title=f"{name}: accuracy by confidence")
    accuracy.legend(loc="upper left")
    histogram.stairs(tally.bins[2], np.linspace(0, 1, BINS + 1), fill=True, color=BLUE)
    histogram.set(xlabel="confidence: probability of the predicted class", ylabel="examples", xlim=(0, 1))
    write_picture(figure, path)
