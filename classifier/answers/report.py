"""What a report on answers is made of: the most probable classes, and counts that add up; and how it is printed."""

import csv
import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classifier.answers.calibration import BINS, binned, error_of_bins
from classifier.answers.explain import Explanation
from classifier.answers.models import Chunk, Classifier, example_text
from classifier.answers.significance import paired_difference, wilson_interval
from classifier.data.dataset import Split, long_note
from classifier.data.table import counted
from classifier.errors import printable, tell
from classifier.files import written_whole

WIDTH = 80  # of a terminal
MANY = 10  # with more classes, only the five most probable are shown for a text
MOST = 20  # with more classes, only the most probable are written for a row, and the most frequent reported
LISTED = 5  # of many classes
INDENTED = {"initial_indent": "  ", "subsequent_indent": "  "}


# -----------------------------------------------------------------------------
# from log-probabilities to the most probable classes, and to counts


class Ranked(NamedTuple):
    """The most probable classes of each row, the most probable first."""

    classes: np.ndarray  # int16 (rows, top), -1 for a blank text
    probabilities: np.ndarray  # float64 (rows, top), NaN for a blank text

    def is_answered(self) -> np.ndarray:
        return self.classes[:, 0] >= 0

    def is_unsure(self, least: float) -> np.ndarray:
        """Return whether the confidence, as it is written, is below the least one: (rows,) bool."""
        return self.probabilities[:, 0].round(6) < least


@dataclass
class Tally:
    """What a report prints of some rows; the tallies of several parts add up."""

    rows: int = 0  # with those of a blank text
    pairs: Counter = field(default_factory=Counter)  # (class of the label or -1, predicted class) -> rows
    loss: float = 0.0  # the sum of the rows with a label
    bins: np.ndarray = field(default_factory=lambda: np.zeros((3, BINS)))  # of the rows with a label
    unsure: np.ndarray = field(default_factory=lambda: np.zeros(3, int))  # rows, with a label, right
    longer: np.ndarray | int = 0  # (classifiers,) how many texts each of them truncates

    def __iadd__(self, other: "Tally") -> "Tally":
        self.pairs.update(other.pairs)
        for name in ("rows", "loss", "bins", "unsure", "longer"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def counts(self) -> np.ndarray:
        """Return label, predicted class and the number of rows for each pair with a label: (pairs, 3) int64."""
        return np.array([(*pair, n) for pair, n in sorted(self.pairs.items()) if pair[0] >= 0], int).reshape(-1, 3)

    def said_rows(self) -> str:
        return f"rows: {self.rows:,}, without a text: {self.rows - self.pairs.total():,}"

    def to_json(self) -> dict[str, Any]:
        pairs = [[*pair, count] for pair, count in sorted(self.pairs.items())]
        arrays = {name: np.asarray(getattr(self, name)).tolist() for name in ("bins", "unsure", "longer")}
        return {"rows": self.rows, "pairs": pairs, "loss": self.loss, **arrays}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Tally":
        pairs = Counter({(label, predicted): count for label, predicted, count in content["pairs"]})
        arrays = {name: np.array(content[name]) for name in ("bins", "unsure", "longer")}
        return cls(content["rows"], pairs, content["loss"], **arrays)


def tally_of(chunk: Chunk, labels: np.ndarray | None = None, least: float = 0.0) -> Tally:
    """Count the answers to some rows.

    Args:
        labels: int (n,), -1 for none.
        least: with a lower confidence, a prediction is left empty.
    """
    labels = np.full(len(chunk.rows), -1) if labels is None else labels
    found = chunk.log_probabilities.numpy()
    predictions, confidence = found.argmax(1), np.exp(found.max(1))
    known, right = labels >= 0, labels == predictions
    unsure = confidence.round(6) < least
    return Tally(
        len(labels),
        Counter(zip(labels.tolist(), predictions.tolist(), strict=True)),
        -float(found[known, labels[known]].sum()),
        binned(confidence[known], right[known]),
        np.array([unsure.sum(), (unsure & known).sum(), (unsure & right).sum()]),
        chunk.longer,
    )


def rank(
    chunks: Iterable[Chunk], rows: int, labels: np.ndarray | None, top: int, least: float = 0.0
) -> tuple[Ranked, Tally]:
    """Reduce the answers to rows to the most probable classes, `top` of them, and to a tally.

    labels: as tally_of's.
    """
    ranked = Ranked(np.full((rows, top), -1, np.int16), np.full((rows, top), np.nan))
    tally = Tally()
    for chunk in chunks:
        order = chunk.log_probabilities.sort(dim=-1, descending=True, stable=True)
        ranked.classes[chunk.rows] = order.indices[:, :top].numpy()
        ranked.probabilities[chunk.rows] = order.values[:, :top].exp().numpy()
        tally += tally_of(chunk, None if labels is None else labels[chunk.rows], least)
    tally.rows = rows
    return ranked, tally


# -----------------------------------------------------------------------------
# reports


def print_report(tally: Tally, label_names: list[str], name: str, least: float = 0.0) -> None:
    """Print loss, calibration error, macro-F1, tables of the classes and confusions and, last, the accuracy.

    Without labels, print how often each class is predicted. Of many classes, print the most frequent.
    """
    counts = tally.counts()
    if not len(counts):
        _print_predicted(tally, label_names)
        _print_unsure(tally, 0, 0, least)
        return
    labels, predictions, numbers = counts.T
    examples, right = int(numbers.sum()), int(numbers[labels == predictions].sum())
    print(f"\nloss {tally.loss / examples:.4f}")
    print(f"expected calibration error {error_of_bins(tally.bins):.4f} ({BINS} bins)")
    _print_classes(counts, label_names)
    if len(label_names) <= MOST:
        _print_matrix(counts, label_names)
    else:
        _print_confusions(counts, label_names)
    _print_unsure(tally, examples, right, least)
    low, high = wilson_interval(right, examples)
    of_class = np.bincount(labels, numbers).astype(int)
    largest = label_names[of_class.argmax()]
    line = f"{name} accuracy: {right / examples:.3f} (95% Wilson interval {low:.3f} to {high:.3f});"
    always = f'always "{largest}": {of_class.max() / examples:.3f}'
    print("\n" + line + (" " if len(line + always) < WIDTH else "\n  ") + always)
    if right <= of_class.max():
        tell(f'note: no better than always answering "{largest}"')


def _print_predicted(tally: Tally, label_names: list[str]) -> None:
    """Print how often each class is predicted."""
    found = np.zeros(len(label_names), int)
    for (_, predicted), count in tally.pairs.items():
        found[predicted] += count
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


def _print_classes(counts: np.ndarray, label_names: list[str]) -> None:
    """Print macro-F1 and scikit-learn's classification report, of many classes with the most frequent labels only."""
    from sklearn.metrics import precision_recall_fscore_support  # here: the import takes a second

    labels, predictions, numbers = counts.T
    options = {"labels": range(len(label_names)), "sample_weight": numbers, "zero_division": 0}
    *scores, support = precision_recall_fscore_support(labels, predictions, **options)
    scores, support = np.array(scores), support.astype(int)  # (3, K), (K,)
    accuracy, examples = numbers[labels == predictions].sum() / numbers.sum(), support.sum()
    print(f"macro-F1 {scores[2].mean():.4f}\n")
    shown = _most_frequent(support)
    width = max([12, *(len(label_names[number]) for number in shown)])  # 12: of weighted avg

    def row(name: str, figures: np.ndarray, rows: int) -> None:
        print(f"{name:>{width}} " + "".join(f" {figure:>9.3f}" for figure in figures) + f" {rows:>9}")

    print(" " * (width + 1) + "".join(f" {head:>9}" for head in ("precision", "recall", "f1-score", "support")) + "\n")
    for number in shown:
        row(label_names[number], scores[:, number], support[number])
    if rest := len(label_names) - len(shown):
        missing = counted(int(examples - support[shown].sum()), "row")
        print(f"\nnot shown: {rest:,} of {len(label_names):,} classes, {missing}")
    print(f"\n{'accuracy':>{width}} {'':>20} {accuracy:>9.3f} {examples:>9}")
    row("macro avg", scores.mean(1), examples)
    row("weighted avg", scores @ support / examples, examples)
    print()


def _print_matrix(counts: np.ndarray, label_names: list[str]) -> None:
    """Print the confusion matrix."""
    matrix = confusion_matrix(counts, len(label_names))
    print("confusion matrix (a row for each true class, a column for each predicted class)")
    width, places = max(map(len, label_names)) + 4, max(7, len(f"{matrix.max():,}") + 2)
    print(" " * width + "".join(f"{number:>{places}}" for number in range(len(label_names))))
    for number, row in enumerate(matrix):
        print(f"{number} {label_names[number]}".ljust(width) + "".join(f"{count:>{places},}" for count in row))


def confusion_matrix(counts: np.ndarray, classes: int) -> np.ndarray:
    """Return how many rows of each true class (a row) are predicted as each class (a column): (K, K) int64."""
    labels, predictions, numbers = counts.T
    matrix = np.zeros((classes, classes), np.int64)
    matrix[labels, predictions] = numbers
    return matrix


def _print_confusions(counts: np.ndarray, label_names: list[str]) -> None:
    """Print the most frequent pairs of a true class and another that is predicted."""
    wrong = counts[counts[:, 0] != counts[:, 1]]
    wrong = wrong[np.argsort(-wrong[:, 2], kind="stable")]
    print("most frequent confusions (rows, true class, predicted class)")
    places = max(7, len(f"{wrong[:, 2].max(initial=0):,}") + 2)
    for label, predicted, count in wrong[:MOST]:
        print(f"{count:>{places},}  {label_names[label]}, predicted {label_names[predicted]}")
    if len(wrong) > MOST:
        print(f"not shown: {len(wrong) - MOST:,} other confusions, {counted(int(wrong[MOST:, 2].sum()), 'row')}")


def _print_unsure(tally: Tally, examples: int, right: int, least: float) -> None:
    """Print how many predictions were left empty, and the accuracy of the others, of the examples with a label."""
    if not least:
        return
    unsure, known, known_right = tally.unsure.tolist()
    line = f"{unsure:,} of {counted(tally.pairs.total(), 'prediction')} left empty: their confidence is below {least:g}"
    if known < examples:
        line += f"; accuracy of the other {examples - known:,}: {(right - known_right) / (examples - known):.3f}"
    print()
    tell(line)


def notes_on_longer(classifiers: list[Classifier], tally: Tally) -> list[str]:
    """Return a note for each way in which the classifiers truncate texts."""
    notes, texts = [], tally.pairs.total()
    for classifier, longer in zip(classifiers, np.broadcast_to(tally.longer, len(classifiers)).tolist(), strict=True):
        notes.append(long_note(longer, texts, "texts", classifier.tokens_read, classifier.keep))
    return list(dict.fromkeys(filter(None, notes)))


def print_comparison(ranked: Ranked, others: Ranked, split: Split, name: str) -> None:
    """Print how a second model (or ensemble) called name differs from the first on the same examples."""
    right, other_right = (each.classes[:, 0] == split.labels for each in (ranked, others))
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
    wrong = np.flatnonzero(ranked.classes[:, 0] != split.labels)
    mistakes, ids = wrong[np.argsort(-ranked.probabilities[wrong, 0], kind="stable")], split.ids()
    print(f"\nthe {min(count, len(mistakes)):,} most confident of {counted(len(mistakes), 'mistake')}")
    for i in mistakes[:count]:
        truth, predicted = label_names[split.labels[i]], label_names[ranked.classes[i, 0]]
        print("\n" + textwrap.fill(f"id {printable(ids[i])}: {truth}, predicted {predicted}", WIDTH))
        order = slice(LISTED) if len(label_names) > MANY else np.argsort(ranked.classes[i])
        shares = listed_probabilities(ranked.classes[i][order], ranked.probabilities[i][order], label_names)
        print(textwrap.fill(shares, WIDTH, **INDENTED))
        print(textwrap.fill(printable(" ".join(example_text(split, i).split())), WIDTH, **INDENTED))


def listed_probabilities(classes: np.ndarray, probabilities: np.ndarray, label_names: list[str]) -> str:
    """Return "negative 0.201, positive 0.799", with "..." where there are more classes."""
    pairs = zip(classes, probabilities, strict=True)
    rest = ", ..." if len(classes) < len(label_names) else ""
    return ", ".join(f"{label_names[i]} {p:.3f}" for i, p in pairs) + rest


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


def answer_row(text: str, probabilities: np.ndarray, label_names: list[str], least: float = 0.0) -> str:
    """Return the prediction for a text, the probabilities of the classes, and the text on one line."""
    unsure = f"(below {least:g})" if probabilities.max().round(6) < least else ""
    if columns := answer_columns(label_names):
        cells = [f"{p:.3f}" for p in probabilities]
        return columns.format(unsure or label_names[probabilities.argmax()], *cells, printable(text))
    order = np.argsort(-probabilities, kind="stable")[: LISTED if len(label_names) > MANY else None]
    line = listed_probabilities(order, probabilities[order], label_names)
    return textwrap.fill(f"{unsure} {line}".strip(), WIDTH) + "\n  " + printable(text)


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


def columns_of_answers(
    ranked: Ranked, label_names: list[str], top: int | None, least: float = 0.0
) -> dict[str, list | np.ndarray]:
    """Return the columns that answers add to rows, by name: None for a blank text, NaN for its probabilities.

    They are prediction (None below the least confidence), confidence, and p_NAME of each class or, with top or many
    classes, prediction_2, confidence_2 and so on.
    """
    names, shares = np.array([*label_names, None], object), ranked.probabilities.round(6)
    is_empty = ~ranked.is_answered() | ranked.is_unsure(least)
    columns = {"prediction": np.where(is_empty, None, names[ranked.classes[:, 0]]).tolist(), "confidence": shares[:, 0]}
    if top is None and len(label_names) <= MOST:
        for number, name in enumerate(label_names):
            place = (ranked.classes == number).argmax(1)[:, None]
            columns[f"p_{name}"] = np.take_along_axis(shares, place, 1)[:, 0]
        return columns
    for place in range(1, min(top or LISTED, len(label_names))):
        columns[f"prediction_{place + 1}"] = names[ranked.classes[:, place]].tolist()
        columns[f"confidence_{place + 1}"] = shares[:, place]
    return columns


def classes_to_keep(label_names: list[str], top: int | None) -> int:
    """Return how many classes of each row reports and files need: all, or of many the most probable."""
    return len(label_names) if len(label_names) <= MOST else min(max(top or 0, LISTED), len(label_names))


def write_predictions(path: Path, split: Split, columns: dict[str, list | np.ndarray], label_names: list[str]) -> None:
    """Write a CSV row for each example: id, label (empty where there is none), and columns_of_answers."""
    labels = [""] * len(split) if split.labels is None else [label_names[label] for label in split.labels]
    if f"p_{label_names[0]}" in columns:
        columns = {name: cells for name, cells in columns.items() if name != "confidence"}
    texts = [cells if isinstance(cells, list) else [f"{p:.6f}" for p in cells] for cells in columns.values()]
    with written_whole(path, "w") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["id", "label", *columns])
        writer.writerows(zip(split.ids(), labels, *texts, strict=True))


def write_submission(path: Path, split: Split, predictions: np.ndarray) -> None:
    """Write predictions as the CS224N project's script does, with the blanks at the ends of its lines."""
    with written_whole(path, "w") as f:
        f.write("id \t Predicted_Sentiment \n")
        f.writelines(f"{id}, {label} \n" for id, label in zip(split.ids(), predictions.tolist(), strict=True))
