"""What is printed about answers: of a split or of files, of two models, of mistakes, of a text."""

import re
import textwrap
from typing import Any

import numpy as np

from classifier.answers.calibration import BINS, error_of_bins
from classifier.answers.models import Classifier, example_text
from classifier.answers.significance import paired_difference, wilson_interval
from classifier.answers.tally import LISTED, MOST, Ranked, Tally
from classifier.data.dataset import Split, labels_of, long_note
from classifier.data.table import counted
from classifier.errors import printable, tell

WIDTH = 80  # of a terminal
MANY = 10  # with more classes, only the five most probable are shown for a text


def print_report(tally: Tally, label_names: list[str], name: str, least: float = 0.0) -> None:
    """Print loss, calibration error, macro-F1, tables of the classes and confusions and, last, the accuracy.

    Without labels, print how often each class is predicted. Of many classes, print the most frequent.
    """
    examples, right = tally.examples, tally.right
    if not examples:
        _print_predicted(tally, label_names)
        _tell_unsure(tally, least)
        return
    print(f"\nloss {tally.loss / examples:.4f}")
    print(f"expected calibration error {error_of_bins(tally.bins):.4f} ({BINS} bins)")
    _print_classes(tally, label_names)
    if len(label_names) <= MOST:
        _print_matrix(tally, label_names)
    else:
        _print_confusions(tally, label_names)
    _tell_unsure(tally, least)
    low, high = wilson_interval(right, examples)
    number, share = tally.most_frequent()
    largest = label_names[number]
    print()
    if right / examples <= share:
        tell(f"note: no better than always answering {largest!r}")
    tell(f"to compare with: always {largest!r} {share:.3f}")
    print(f"{name} accuracy: {right / examples:.3f} (95% Wilson interval {low:.3f} to {high:.3f})")


def _print_predicted(tally: Tally, label_names: list[str]) -> None:
    """Print how often each class is predicted."""
    found = np.array([tally.predicted[number] for number in range(len(label_names))])
    print("\nno labels to compare with; predicted:")
    shown = _most_frequent(found)
    width = max([16, *(len(label_names[number]) for number in shown)])
    places = max(7, len(f"{found.max():,}") + 2)
    for number in shown:
        print(f"  {number} {label_names[number]:<{width}}{found[number]:>{places},}")
    if rest := len(found) - len(shown):
        print(f"  not shown: {rest:,} classes, {counted(int(found.sum() - found[shown].sum()), 'row')}")


def _most_frequent(counts: np.ndarray) -> np.ndarray:
    """Return the classes to show, (K,) counts: all in their order, or of many the most frequent."""
    if len(counts) <= MOST:
        return np.arange(len(counts))
    order = np.argsort(-counts, kind="stable")[:MOST]
    return order[counts[order] > 0]


def _print_classes(tally: Tally, label_names: list[str]) -> None:
    """Print macro-F1 and scikit-learn's classification report, of many classes with the most frequent labels only."""
    from sklearn.metrics import classification_report, f1_score  # here: the import takes a second

    labels, predictions, numbers = tally.counts()
    classes = np.arange(len(label_names))
    options = {"labels": classes, "sample_weight": numbers, "zero_division": 0}
    print(f"macro-F1 {f1_score(labels, predictions, average='macro', **options):.4f}\n")
    names = [printable(name) for name in label_names]
    table = classification_report(labels, predictions, target_names=names, digits=3, **options)
    table = re.sub(r"(\d+)\.0$", r"  \1", table, flags=re.MULTILINE)  # rows, which sample_weight makes 12.0
    lines = table.splitlines()  # a header of two lines, the classes, the averages under a blank line
    support = np.bincount(labels, numbers, len(classes)).astype(int)
    shown = _most_frequent(support)
    print(*lines[:2], *(lines[2 + number] for number in shown), sep="\n")
    if rest := len(classes) - len(shown):
        missing = counted(int(support.sum() - support[shown].sum()), "row")
        print(f"\nnot shown: {rest:,} of {len(classes):,} classes, {missing}")
    print(*lines[2 + len(classes) :], "", sep="\n")


def _print_matrix(tally: Tally, label_names: list[str]) -> None:
    """Print the confusion matrix."""
    matrix = tally.confusion_matrix(len(label_names))
    print("confusion matrix (a row for each true class, a column for each predicted class)")
    width, places = max(map(len, label_names)) + 4, max(7, len(f"{matrix.max():,}") + 2)
    print(" " * width + "".join(f"{number:>{places}}" for number in range(len(label_names))))
    for number, row in enumerate(matrix):
        print(f"{number} {label_names[number]}".ljust(width) + "".join(f"{count:>{places},}" for count in row))


def _print_confusions(tally: Tally, label_names: list[str]) -> None:
    """Print the most frequent pairs of a true class and another that is predicted."""
    wrong = sorted((-count, *pair) for pair, count in tally.pairs.items() if -1 < pair[0] != pair[1])
    print("most frequent confusions (rows, true class, predicted class)")
    places = max([7, *(len(f"{-count:,}") + 2 for count, _, _ in wrong[:1])])
    for count, label, predicted in wrong[:MOST]:
        print(f"{-count:>{places},}  {label_names[label]}, predicted {label_names[predicted]}")
    if others := wrong[MOST:]:
        rows = counted(-sum(count for count, _, _ in others), "row")
        print(f"not shown: {len(others):,} other confusions, {rows}")


def _tell_unsure(tally: Tally, least: float) -> None:
    """Print how many predictions were left empty, and the accuracy of the others, of the examples with a label."""
    if not least:
        return
    unsure, known, right = tally.unsure.tolist()
    line = f"{unsure:,} of {counted(tally.pairs.total(), 'prediction')} left empty: their confidence is below {least:g}"
    if others := tally.examples - known:
        line += f"; accuracy of the other {others:,}: {(tally.right - right) / others:.3f}"
    print()
    tell(line)


def notes_on_longer(classifiers: list[Classifier], tally: Tally) -> list[str]:
    """Return a note for each way in which the classifiers truncate texts."""
    pairs = zip(classifiers, np.broadcast_to(tally.longer, len(classifiers)).tolist(), strict=True)
    notes = [long_note(n, tally.pairs.total(), "texts", each.tokens_read, each.keep) for each, n in pairs]
    return list(dict.fromkeys(filter(None, notes)))


def print_comparison(ranked: Ranked, others: Ranked, split: Split, name: str) -> None:
    """Print how a second model (or ensemble) called name differs from the first on the same examples."""
    right, other_right = (each.classes[:, 0] == labels_of(split) for each in (ranked, others))
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


def print_errors(count: int, ranked: Ranked, split: Split, label_names: list[str]) -> None:
    """Print the most confident mistakes, with their texts and the probabilities of the classes."""
    labels, ids = labels_of(split), split.ids()
    wrong = np.flatnonzero(ranked.classes[:, 0] != labels)
    mistakes = wrong[np.argsort(-ranked.probabilities[wrong, 0], kind="stable")]
    print(f"\nthe {min(count, len(mistakes)):,} most confident of {counted(len(mistakes), 'mistake')}")
    for i in mistakes[:count]:
        print()
        tell(f"id {ids[i]}: {label_names[labels[i]]}, predicted {label_names[ranked.classes[i, 0]]}")
        order = slice(LISTED) if len(label_names) > MANY else np.argsort(ranked.classes[i])
        print(indented(listed_probabilities(ranked.classes[i][order], ranked.probabilities[i][order], label_names)))
        print(indented(printable(" ".join(example_text(split, i).split()))))


def indented(text: str) -> str:
    """Return text wrapped at 80 columns, with words whole and two spaces before each line."""
    return textwrap.TextWrapper(WIDTH, "  ", "  ", break_long_words=False, break_on_hyphens=False).fill(text)


def listed_probabilities(classes: np.ndarray, probabilities: np.ndarray, label_names: list[str]) -> str:
    """Return "negative 0.201, positive 0.799", with "..." where there are more classes."""
    pairs = zip(classes, probabilities, strict=True)
    rest = ", ..." if len(classes) < len(label_names) else ""
    return ", ".join(f"{label_names[i]} {p:.3f}" for i, p in pairs) + rest
