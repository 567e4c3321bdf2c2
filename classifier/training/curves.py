"""Draw a run's curves; and the style of all plots."""

import csv
import gc
import logging
import os
import warnings
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # a notebook's own backend cannot be loaded by its subprocesses
logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home it works, and warns
import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from classifier.errors import UserError
from classifier.files import written_whole

# Okabe and Ito 2008, "Color Universal Design": distinct with any kind of colour vision
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#666666"
DPI = 110
matplotlib.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 10}
matplotlib.rcParams |= {"text.parse_math": False}  # a $ in a name is a $


def draw_curves(path: Path, log: Path, best_step: int, reference_accuracy: float) -> None:
    """Draw a run's log.csv: losses above, dev accuracy below, with that of best.pt and the reference.

    Args:
        best_step: the step of best.pt's weights; 0: none.
        reference_accuracy: a dev accuracy to compare with; 0: none.
    """
    try:
        with open(log, newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        train, dev = ([row for row in rows if row["split"] == split] for split in ("train", "dev"))
        train_epochs, train_losses = _columns(train, "epoch", "loss")
        dev_steps, dev_epochs, dev_losses, accuracies = _columns(dev, "step", "epoch", "loss", "accuracy")
        (macro_f1s,) = _columns(dev, "macro_f1") if all(row.get("macro_f1") for row in dev) else ([],)
    except (ValueError, KeyError, TypeError, csv.Error):
        raise UserError(f"{log} is not a log of finetune.py, so its curves cannot be drawn") from None
    figure = Figure(figsize=(7, 5.6))
    # fixed: a layout engine draws twice
    figure.subplots_adjust(left=0.1, right=0.98, top=0.95, bottom=0.09, hspace=0.08)
    losses, accuracy = figure.subplots(2, 1, sharex=True)
    losses.plot(train_epochs, train_losses, color=GREY, linewidth=1, label="train, each step")
    losses.plot(dev_epochs, dev_losses, color=BLUE, marker="o", markersize=4, label="dev")
    losses.set(ylabel="loss (nats)", title=f"{log.parent}")
    losses.legend()
    accuracy.plot(dev_epochs, accuracies, color=BLUE, marker="o", markersize=4, label="dev")
    if macro_f1s:
        accuracy.plot(dev_epochs, macro_f1s, color=BLUE, linestyle=":", label="dev, macro-F1")
    if best_step in dev_steps:
        best = dev_steps.index(best_step)
        label = f"best.pt: {accuracies[best]:.3f}, epoch {dev_epochs[best]:.4g}"
        accuracy.plot(dev_epochs[best], accuracies[best], "D", color=ORANGE, markersize=9, label=label)
    if reference_accuracy:
        label = f"reference: {reference_accuracy:.3f}"
        accuracy.axhline(reference_accuracy, color=GREEN, linestyle="--", label=label)
    accuracy.set(xlabel="epoch", ylabel="accuracy")
    accuracy.legend(loc="best")
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (losses, accuracy):
        axes.grid(alpha=0.25)
    write_picture(figure, path)
    gc.collect()  # a figure is a reference cycle of megabytes


def _columns(rows: list[dict[str, str]], *names: str) -> list[list[float]]:
    return [[float(row[name]) for row in rows] for name in names]


def write_picture(figure: Figure, path: Path) -> None:
    """Write a plot, whole or not at all."""
    kind = path.suffix.removeprefix(".")
    with written_whole(path) as f, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a character that the font lacks is drawn as a box
        figure.savefig(f, format=kind, dpi=DPI, metadata={"Date": None, "Creator": None} if kind == "svg" else None)
