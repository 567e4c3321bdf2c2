"""From log-probabilities to each row's most probable classes, as columns of a file, and to counts that add up."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from classifier.answers.calibration import BINS, binned
from classifier.answers.models import Chunk

MOST = 20  # with more classes, only the most probable are written for a row, and the most frequent reported
LISTED = 5  # of many classes


class Ranked(NamedTuple):
    """The most probable classes of each row, the most probable first."""

    classes: np.ndarray  # int16 (rows, top), -1 for a blank text
    probabilities: np.ndarray  # float64 (rows, top), NaN for a blank text


@dataclass
class Tally:
    """What a report prints of some rows; the tallies of several parts add up."""

    rows: int = 0  # with those of a blank text
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)  # (class of the label or -1, prediction) -> rows
    loss: float = 0.0  # the sum of the rows with a label
    bins: np.ndarray = field(default_factory=lambda: np.zeros((3, BINS)))  # of the rows with a label
    unsure: np.ndarray = field(default_factory=lambda: np.zeros(3, int))  # rows, with a label, right
    longer: np.ndarray | int = 0  # (classifiers,) how many texts each of them truncates

    def __iadd__(self, other: "Tally") -> "Tally":
        self.pairs.update(other.pairs)
        for name in ("rows", "loss", "bins", "unsure", "longer"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    @property
    def examples(self) -> int:
        """The number of rows with a label."""
        return sum(count for (label, _), count in self.pairs.items() if label >= 0)

    @property
    def right(self) -> int:
        """The number of rows whose prediction is their label."""
        return sum(count for (label, prediction), count in self.pairs.items() if label == prediction)

    @property
    def predicted(self) -> Counter[int]:
        """How many rows have each prediction."""
        found: Counter[int] = Counter()
        for (_, prediction), count in self.pairs.items():
            found[prediction] += count
        return found

    def most_frequent(self) -> tuple[int, float]:
        """Return the most frequent label and its share, the accuracy of always answering it."""
        labels, _, numbers = self.counts()
        of_class = np.bincount(labels, numbers)
        return int(of_class.argmax()), float(of_class.max() / self.examples)

    def counts(self) -> np.ndarray:
        """Return the labels, the predictions and their numbers of rows with a label: (3, pairs) int64."""
        return np.array([(*pair, n) for pair, n in sorted(self.pairs.items()) if pair[0] >= 0], int).reshape(-1, 3).T

    def confusion_matrix(self, classes: int) -> np.ndarray:
        """Return how many rows of each true class (a row) have each prediction (a column): (K, K) int64."""
        labels, predictions, numbers = self.counts()
        matrix = np.zeros((classes, classes), np.int64)
        matrix[labels, predictions] = numbers
        return matrix

    def said_rows(self) -> str:
        return f"rows: {self.rows:,}, without a text: {self.rows - self.pairs.total():,}"

    def to_json(self) -> dict[str, Any]:
        pairs = [[*pair, count] for pair, count in sorted(self.pairs.items())]
        arrays = {name: np.asarray(getattr(self, name)).tolist() for name in ("bins", "unsure", "longer")}
        return {"rows": self.rows, "pairs": pairs, "loss": self.loss, **arrays}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Tally":
        pairs = Counter({(label, prediction): count for label, prediction, count in content["pairs"]})
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
    unsure = confidence.round(6) < least  # as it is written
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


def classes_to_keep(label_names: list[str], top: int | None) -> int:
    """Return how many classes of each row reports and files need: all, or of many the most probable."""
    return len(label_names) if len(label_names) <= MOST else min(max(top or 0, LISTED), len(label_names))


def columns_of_answers(ranked: Ranked, label_names: list[str], top: int | None, least: float = 0.0) -> dict[str, Any]:
    """Return the columns that answers add to rows, by name: None for a blank text, NaN for its probabilities.

    They are prediction (None below the least confidence), confidence, and p_NAME of each class or, with top or many
    classes, prediction_2, confidence_2 and so on.
    """
    names, shares = np.array([*label_names, None], object), ranked.probabilities.round(6)
    prediction = np.where(shares[:, 0] < least, None, names[ranked.classes[:, 0]])
    columns: dict[str, Any] = {"prediction": prediction, "confidence": shares[:, 0]}
    if top is None and len(label_names) <= MOST:
        by_class = np.take_along_axis(shares, ranked.classes.argsort(1), 1)
        columns |= {f"p_{name}": by_class[:, number] for number, name in enumerate(label_names)}
        return columns
    for place in range(1, min(top or LISTED, len(label_names))):
        columns[f"prediction_{place + 1}"] = np.where(shares[:, 0] < least, None, names[ranked.classes[:, place]])
        columns[f"confidence_{place + 1}"] = shares[:, place]
    return columns
