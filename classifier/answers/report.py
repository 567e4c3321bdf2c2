"""Printed reports about a model's answers, and files of predictions."""

import csv
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from classifier.answers.calibration import BINS, calibration_error
from classifier.answers.explain import Explanation
from classifier.answers.models import Classifier, example_text, log_probabilities, most_confident_mistakes
from classifier.answers.significance import paired_difference, wilson_interval
from classifier.data.dataset import Split
from classifier.data.own import cells_of
from classifier.data.rows import Table, ending_to_write, write_table
from classifier.errors import printable
from classifier.files import written_whole
from classifier.training.predict import loss_and_accuracy, macro_f1

WIDTH = 80  # of a terminal
MANY = 10  # with more classes, only the five most probable are shown for a text
INDENTED = {"initial_indent": "  ", "subsequent_indent": "  "}


def print_report(logits: Tensor, labels: np.ndarray | None, label_names: list[str], name: str) -> None:
    """Print loss, calibration error, macro-F1, a table of the classes, the confusion matrix and, last, the accuracy.

    Without labels, print how often each class is predicted.
    """
    predictions, classes = logits.argmax(-1).numpy(), range(len(label_names))
    if labels is None:
        print("\nno labels to compare with; predicted:")
        for number, count in enumerate(np.bincount(predictions, minlength=len(label_names))):
            print(f"  {number} {label_names[number]:<16}{count:>7,}")
        return
    from sklearn.metrics import classification_report, confusion_matrix  # here: the import takes a second

    loss, accuracy = loss_and_accuracy(logits, labels)
    print(f"\nloss {loss:.4f}")
    print(f"expected calibration error {calibration_error(logits, labels):.4f} ({BINS} bins)")
    print(f"macro-F1 {macro_f1(logits, labels):.4f}\n")
    options = {"labels": classes, "target_names": label_names, "digits": 3, "zero_division": 0}
    print(classification_report(labels, predictions, **options))
    print("confusion matrix (a row for each true class, a column for each predicted class)")
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
    """Print the figures of calibrate: a temperature, and loss and expected calibration error at each stage."""
    title = f"temperature {found['temperature']:.3f}"
    print(f"\n{title:<40}{'loss':>9}{'calibration error':>20}")
    stages = {"before": "before", "after": "after", "cross_validated": "cross-validated over five folds"}
    for stage, name in stages.items():
        print(f"{name:<40}{found[stage]['loss']:>9.4f}{found[stage]['calibration_error']:>20.4f}")


def print_errors(count: int, logits: Tensor, split: Split, label_names: list[str]) -> None:
    """Print the most confident mistakes, with their texts and the probabilities of the classes."""
    probabilities, ids = logits.softmax(-1).numpy(), split.ids()
    predictions = probabilities.argmax(1)
    mistakes = most_confident_mistakes(logits, split.labels)
    noun = "mistake" if len(mistakes) == 1 else "mistakes"
    print(f"\nthe {min(count, len(mistakes)):,} most confident of {len(mistakes):,} {noun}")
    for i in mistakes[:count]:
        truth, predicted = label_names[split.labels[i]], label_names[predictions[i]]
        print("\n" + textwrap.fill(f"id {printable(ids[i])}: {truth}, predicted {predicted}", WIDTH))
        print(textwrap.fill(listed_probabilities(probabilities[i], label_names), WIDTH, **INDENTED))
        print(textwrap.fill(printable(" ".join(example_text(split, i).split())), WIDTH, **INDENTED))


def listed_probabilities(probabilities: np.ndarray, label_names: list[str]) -> str:
    """Return "negative 0.201, positive 0.799", for many classes the five most probable and "..."."""
    order, rest = range(len(label_names)), ""
    if len(label_names) > MANY:
        order, rest = np.argsort(-probabilities, kind="stable")[:5], ", ..."
    return ", ".join(f"{label_names[i]} {probabilities[i]:.3f}" for i in order) + rest


def answer_columns(label_names: list[str]) -> str | None:
    """Return the format of a row: prediction, a cell for each class, text; None where they do not fit on a line."""
    first, widths = max(map(len, ["prediction", *label_names])), [max(len(name), 5) + 2 for name in label_names]
    if len(label_names) > MANY or first + sum(widths) >= WIDTH - 10:
        return None
    return f"{{:<{first}}}" + "".join(f"{{:>{width}}}" for width in widths) + "  {}"


def answer_header(label_names: list[str]) -> str:
    """Return the line above answer_row's rows."""
    if columns := answer_columns(label_names):
        return columns.format("prediction", *label_names, "text")
    shown = f"the five most probable of {len(label_names):,} classes" if len(label_names) > MANY else "probabilities"
    return f"{shown}, then the text"


def answer_row(text: str, probabilities: np.ndarray, label_names: list[str]) -> str:
    """Return the prediction for a text, the probabilities of the classes, and the text on one line."""
    if columns := answer_columns(label_names):
        cells = [f"{p:.3f}" for p in probabilities]
        return columns.format(label_names[probabilities.argmax()], *cells, printable(text))
    return textwrap.fill(listed_probabilities(probabilities, label_names), WIDTH) + "\n  " + printable(text)


def print_explanation(explanation: Explanation, label_names: list[str]) -> None:
    """Print what each word of a text contributes to the prediction."""
    if not explanation.contributions:
        print("  a one-word text has nothing to leave out")
        return
    predicted = label_names[explanation.log_probabilities.argmax()]
    print(textwrap.fill(f'drop in the log-probability of "{predicted}" when each word is left out:', WIDTH, **INDENTED))
    pairs = zip(explanation.words, explanation.contributions, strict=True)
    line = " ".join(f"{printable(word)}\N{NO-BREAK SPACE}({contribution:+.2f})" for word, contribution in pairs)
    whole_words = {"break_long_words": False, "break_on_hyphens": False}
    print(textwrap.fill(line, WIDTH, **INDENTED, **whole_words).replace("\N{NO-BREAK SPACE}", " "))


def answer_table(classifiers: list[Classifier], table: Table, text_columns: list[str], path: Path) -> Tensor:
    """Write a table with a prediction, a confidence and p_NAME of each class for each row, empty for a blank text.

    Return the log-probabilities, NaN for a blank text. A UserError, where path cannot hold the table, comes first.
    """
    label_names = classifiers[0].label_names
    names = ["prediction", "confidence", *(f"p_{name}" for name in label_names)]
    ending = ending_to_write(path, table, names)
    found = log_probabilities(classifiers, cells_of(table, text_columns))
    probabilities = found.exp().numpy().round(6)
    predictions = [
        None if np.isnan(row[0]) else label_names[number]
        for row, number in zip(probabilities, np.nan_to_num(probabilities).argmax(1), strict=True)
    ]
    columns = (predictions, probabilities.max(1), *probabilities.T)
    write_table(path, ending, table, dict(zip(names, columns, strict=True)))
    return found


def write_predictions(path: Path, split: Split, probabilities: np.ndarray, label_names: list[str]) -> None:
    """Write a CSV row for each example: id, label (empty where there is none), prediction, and p_NAME of each class."""
    labels = [""] * len(split) if split.labels is None else [label_names[label] for label in split.labels]
    with written_whole(path, "w") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["id", "label", "prediction", *(f"p_{name}" for name in label_names)])
        for id, label, row in zip(split.ids(), labels, probabilities, strict=True):
            writer.writerow([id, label, label_names[row.argmax()], *(f"{p:.6f}" for p in row)])


def write_submission(path: Path, split: Split, logits: Tensor) -> None:
    """Write predictions as the CS224N project's script does, with the blanks at the ends of its lines."""
    with written_whole(path, "w") as f:
        f.write("id \t Predicted_Sentiment \n")
        f.writelines(f"{id}, {label} \n" for id, label in zip(split.ids(), logits.argmax(-1).tolist(), strict=True))
