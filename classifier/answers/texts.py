"""Texts given on the command line or on standard input: their probabilities, and what each word contributes."""

import sys
import textwrap
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice

import numpy as np

from classifier.answers.explain import Explanation, explain
from classifier.answers.models import Classifier, answer_texts, log_probabilities
from classifier.answers.report import MANY, WIDTH, indented, listed_probabilities, notes_on_longer
from classifier.answers.tally import LISTED, Tally, tally_of
from classifier.data.table import counted, listed
from classifier.errors import UserError, printable, wrapped


def classify_texts(classifiers: list[Classifier], words: list[str], least: float, is_explained: bool) -> None:
    """Print a table of answers to one text, a word for each text column, or to the lines of standard input ("-").

    least: with a lower confidence, no prediction is shown.
    """
    first, names = classifiers[0], classifiers[0].label_names
    blank: list[int] = []
    unreadable: list[int] = []
    tally = Tally()
    at_once = 1 if sys.stdin.isatty() else 256  # a person who types waits for an answer to each line
    if words != ["-"]:
        texts = iter([first.join_columns(words)])
    elif len(first.text_columns) > 1:
        columns = ", ".join(first.text_columns)
        raise UserError(f"{first.path} was trained on the columns {columns}: --text - cannot give them, --file can")
    else:
        texts = decode_lines(sys.stdin.buffer, blank, unreadable)
    print(answer_header(names))
    while some := list(islice(texts, at_once)):
        for chunk in list(answer_texts(classifiers, some)):  # a list: its progress bar ends before lines are printed
            tally += tally_of(chunk)
            for row, probabilities in zip(chunk.rows, chunk.log_probabilities.exp().numpy(), strict=True):
                print(answer_row(some[row], probabilities, names, least), flush=True)
                if is_explained:
                    print_explanation(explain(some[row], partial(log_probabilities, classifiers)), names)
    for note in notes_on_longer(classifiers, tally):
        print(wrapped(note), file=sys.stderr)
    if blank:
        print(f"note: left out {counted(len(blank), 'blank line')}: {listed('line', blank)}", file=sys.stderr)
    if unreadable:
        where = listed("line", unreadable)
        raise UserError(f"no answer for {where}: not valid UTF-8, so save the texts as UTF-8 (the others are answered)")


def decode_lines(lines: Iterable[bytes], blank: list[int], unreadable: list[int]) -> Iterator[str]:
    """Yield lines as text; append the numbers of those that are blank, or not UTF-8, to these lists."""
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8").strip("\r\n\ufeff")
        except UnicodeDecodeError:
            unreadable.append(number)
            continue
        if text.strip():
            yield text
        else:
            blank.append(number)


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
    predicted = label_names[int(explanation.log_probabilities.argmax())]
    print(indented(f'drop in the log-probability of "{predicted}" when each word is left out:'))
    pairs = zip(explanation.words, explanation.contributions, strict=True)
    line = " ".join(f"{printable(word)}\N{NO-BREAK SPACE}({contribution:+.2f})" for word, contribution in pairs)
    print(indented(line).replace("\N{NO-BREAK SPACE}", " "))
