"""What evaluate.py says of a model's logits: printed reports, and files of predictions."""

import csv
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from classifier.answers.calibration import BINS, calibration_error
from classifier.answers.explain import Explanation
from classifier.answers.models import Loaded, log_probabilities_of_many, surest_mistakes, text_of
from classifier.answers.significance import paired_difference, wilson_interval
from classifier.data.dataset import Split
from classifier.data.own import cells_of
from classifier.data.rows import Table, ending_to_write, write_table
from classifier.errors import printable
from classifier.files import written_whole
from classifier.training.predict import loss_and_accuracy, macro_f1

WIDTH = 80  # of a terminal
MANY = 10  # classes: of more, the five likeliest are shown for a text
INDENTED = {"initial_indent": "  ", "subsequent_indent": "  "}


def print_report(logits: Tensor, labels: np.ndarray | None, label_names: list[str], name: str) -> None:
    """Print loss, calibration error, macro-F1, a table of the classes, the confusion matrix and, last, the accuracy.

    Args:
        logits: (examples, K).
        labels: (examples,) int16, or None.
        label_names: the classes.
        name: the split's.
    """
    predictions = logits.argmax(-1).numpy()
    if labels is None:
        counts = np.bincount(predictions, minlength=len(label_names))
        print("\nno labels to compare with; predicted:")
        for number, (name, count) in enumerate(zip(label_names, counts, strict=True)):
            print(f"  {number} {name:<16}{count:>7,}")
        return
    from sklearn.metrics import classification_report, confusion_matrix  # here: importing it takes a second

    loss, accuracy = loss_and_accuracy(logits, labels)
    classes = range(len(label_names))
    print(f"\nloss {loss:.4f}")
    print(f"expected calibration error {calibration_error(logits, labels):.4f} ({BINS} bins)")
    print(f"macro-F1 {macro_f1(logits, labels):.4f}\n")
    table = classification_report(
        labels, predictions, labels=classes, target_names=label_names, digits=3, zero_division=0
    )
    print(table)
    print("confusion matrix (a row for each true class, a column for each predicted one)")
    width = max(map(len, label_names)) + 4
    print(" " * width + "".join(f"{number:>7}" for number in classes))
    for number, row in enumerate(confusion_matrix(labels, predictions, labels=classes)):
        print(f"{number} {label_names[number]}".ljust(width) + "".join(f"{count:>7,}" for count in row))
    low, high = wilson_interval(int((predictions == labels).sum()), len(labels))
    print(f"\n{name} accuracy: {accuracy:.3f} (95% Wilson interval {low:.3f} to {high:.3f})")


def print_comparison(logits: Tensor, others: Tensor, split: Split, name: str) -> None:
    """Print how a second model (or ensemble) called name differs from the first on the same examples."""
    right, other_right = (each.argmax(-1).numpy() == split.labels for each in (logits, others))
    found = paired_difference(right, other_right)
    print(f"\ncompared with {name}, {split.name} accuracy {other_right.mean():.3f}:")
    print(f"  difference {found.difference:+.3f} (95% bootstrap interval {found.low:+.3f} to {found.high:+.3f})")
    print(f"  right here and wrong there {found.only_first:,}, wrong here and right there {found.only_second:,}:")
    print(f"  McNemar's exact p {found.p:.2g}")


def print_calibration(found: dict[str, Any]) -> None:
    """Print a temperature, and loss and expected calibration error before and after it."""
    title = f"temperature {found['temperature']:.3f}"
    print(f"\n{title:<40}{'loss':>9}{'calibration error':>20}")
    after = {"after": "after, on the same examples", "estimate": "after, each fifth by the other four"}
    for stage, name in {"before": "before", **after}.items():
        print(f"{name:<40}{found[stage]['loss']:>9.4f}{found[stage]['calibration_error']:>20.4f}")


def print_errors(count: int, logits: Tensor, split: Split, label_names: list[str]) -> None:
    """Print the mistakes that the model was surest of, with their sentences and the probabilities of all classes."""
    probabilities, ids, wrong = logits.softmax(-1).numpy(), split.ids(), surest_mistakes(logits, split.labels)
    predictions = probabilities.argmax(1)
    print(f"\nthe surest {len(wrong[:count]):,} of {len(wrong):,} mistakes")
    for i in wrong[:count]:
        truth, predicted = label_names[split.labels[i]], label_names[predictions[i]]
        print("\n" + textwrap.fill(f"id {printable(ids[i])}: {truth}, taken for {predicted}", WIDTH))
        for line in (in_words(probabilities[i], label_names), printable(" ".join(text_of(split, i).split()))):
            print(textwrap.fill(line, WIDTH, **INDENTED))


def in_words(probabilities: np.ndarray, label_names: list[str]) -> str:
    """Return each class with its probability, or of MANY the likeliest: "negative 0.201, positive 0.799"."""
    order = np.argsort(-probabilities, kind="stable")[:5] if len(label_names) > MANY else range(len(label_names))
    return ", ".join(f"{label_names[i]} {probabilities[i]:.3f}" for i in order)


def answer_header(label_names: list[str]) -> str:
    """Return what stands above answer_row's rows."""
    if not fit_in_columns(label_names):
        return f"the {'five likeliest' if len(label_names) > MANY else 'probabilities'}, and under them each text"
    return in_columns("prediction", label_names, label_names) + "  text"


def answer_row(text: str, probabilities: np.ndarray, label_names: list[str]) -> str:
    """Return a text with its predicted class and the probability of every class, or of MANY the likeliest."""
    if not fit_in_columns(label_names):
        return textwrap.fill(in_words(probabilities, label_names), WIDTH) + "\n  " + printable(text)
    cells = [f"{p:.3f}" for p in probabilities]
    return in_columns(label_names[probabilities.argmax()], cells, label_names) + "  " + printable(text)


def fit_in_columns(label_names: list[str]) -> bool:
    """Return whether a prediction and a column for each class leave room for text on a line."""
    return len(label_names) <= MANY and len(in_columns("prediction", label_names, label_names)) < WIDTH - 10


def in_columns(prediction: str, cells: list[str], label_names: list[str]) -> str:
    """Return a prediction and a cell for each class, as wide as the names are."""
    widths = [max(len(name), 5) + 2 for name in label_names]
    first = prediction.ljust(max(map(len, ["prediction", *label_names])))
    return first + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def print_explanation(explanation: Explanation, label_names: list[str]) -> None:
    """Print a text with what each word contributes."""
    if not explanation.contributions:
        print("  a single word cannot be left out: no text would remain")
        return
    print(f"  each word adds to the log-probability of {label_names[explanation.log_probabilities.argmax()]}:")
    pairs = zip(explanation.words, explanation.contributions, strict=True)
    line = " ".join(f"{printable(word)}\N{NO-BREAK SPACE}({contribution:+.2f})" for word, contribution in pairs)
    whole = {"break_long_words": False, "break_on_hyphens": False}
    print(textwrap.fill(line, WIDTH, **INDENTED, **whole).replace("\N{NO-BREAK SPACE}", " "))


def answer_table(models: list[Loaded], table: Table, texts: list[str], path: Path) -> Tensor:
    """Write a table again with the models' answers as further columns; return what log_probabilities_of_many does.

    Added are prediction, confidence, and p_NAME of each class, all of them empty for a blank text.

    Args:
        texts: the names of the columns that hold them.

    Raises:
        UserError: a file of that name cannot hold the table; refused before anything is answered.
    """
    label_names = models[0].label_names
    names = ["prediction", "confidence", *(f"p_{name}" for name in label_names)]
    ending = ending_to_write(path, table, names)
    found = log_probabilities_of_many(models, cells_of(table, texts))
    probabilities = found.exp().numpy().round(6)
    numbers, is_blank = np.nan_to_num(probabilities).argmax(1).tolist(), np.isnan(probabilities[:, 0])
    predictions = [None if blank else label_names[number] for number, blank in zip(numbers, is_blank, strict=True)]
    columns = (predictions, probabilities.max(1), *probabilities.T)
    write_table(path, ending, table, dict(zip(names, columns, strict=True)))
    return found


def write_predictions(path: Path, split: Split, probabilities: np.ndarray, label_names: list[str]) -> None:
    """Write a CSV row for every example: its id, its label (empty where there is none), the prediction, and p_NAME.

    Args:
        path: replaced only when all is written.
        probabilities: (examples, K).
        label_names: what labels and predictions are called; p_NAME is a class's probability.
    """
    labels = [""] * len(split) if split.labels is None else [label_names[label] for label in split.labels]
    with written_whole(path, "w") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["id", "label", "prediction", *(f"p_{name}" for name in label_names)])
        for id, label, row in zip(split.ids(), labels, probabilities, strict=True):
            writer.writerow([id, label, label_names[row.argmax()], *(f"{p:.6f}" for p in row)])


def write_submission(path: Path, split: Split, logits: Tensor) -> None:
    """Write a prediction file as the script of the CS224N project does, with the blanks at the ends of its lines."""
    with written_whole(path, "w") as f:
        f.write("id \t Predicted_Sentiment \n")
        f.writelines(f"{id}, {label} \n" for id, label in zip(split.ids(), logits.argmax(-1).tolist(), strict=True))
