"""A run's curves as a picture, and how all pictures here look and are written."""

import csv
import os
import warnings
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # notebooks set one that their subprocesses cannot load
import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from classifier.errors import UserError
from classifier.files import written_whole

# Okabe and Ito 2008, "Color Universal Design": told apart with any kind of colour vision
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#666666"
DPI = 110
matplotlib.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 10}
matplotlib.rcParams |= {"text.parse_math": False}  # a $ in a name is a $


def draw_curves(path: Path, log: Path, best_step: int, reference_accuracy: float) -> None:
    """Draw a run's log.csv: losses above, dev accuracy below, with the best and the reference as a line.

    Args:
        path: the picture.
        log: what finetune.py wrote.
        best_step: after which step the weights in best.pt were evaluated; 0 marks none.
        reference_accuracy: dev accuracy to compare with; 0 draws no line.

    Raises:
        UserError: the log is not what finetune.py writes.
    """
    try:
        with open(log, newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        train, dev = ([row for row in rows if row["split"] == split] for split in ("train", "dev"))
        train_epochs, train_losses = _columns(train, "epoch", "loss")
        dev_steps, dev_epochs, dev_losses, accuracies = _columns(dev, "step", "epoch", "loss", "accuracy")
        (macro_f1s,) = _columns(dev, "macro_f1") if all(row.get("macro_f1") for row in dev) else ([],)
    except (ValueError, KeyError, TypeError, csv.Error):
        raise UserError(f"{log} is not what finetune.py wrote there, so there are no curves to draw") from None
    figure = Figure(figsize=(7, 5.6))
    figure.subplots_adjust(left=0.1, right=0.98, top=0.95, bottom=0.09, hspace=0.08)  # at once, not laid out by trial
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


def _columns(rows: list[dict[str, str]], *names: str) -> list[list[float]]:
    return [[float(row[name]) for row in rows] for name in names]


def write_picture(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all."""
    kind = path.suffix.removeprefix(".")
    with written_whole(path) as f, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a character that the font lacks is drawn as a box
        figure.savefig(f, format=kind, dpi=DPI, metadata={"Date": None, "Creator": None} if kind == "svg" else None)
