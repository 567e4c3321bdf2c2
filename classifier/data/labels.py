"""Compare, sort and number labels; notes on labels that may not be what they seem."""

import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

NO_LABEL = {"", r"\n", *"- – — ? n/a #n/a na nan <na> none null unknown missing tbd".split()}  # in lower case
NO_LABEL |= {"unlabeled", "unlabelled", "not labeled", "not labelled", "no label", "unannotated"}
NO_LABEL_NUMBERS = (-1, -99, -100, -999)  # -100 is what PyTorch's loss ignores
LISTED = re.compile(r"\[.*\]|\(.*\)|\{.*\}")  # as Python and JSON write lists
IN_LIST = re.compile(r"""'[^']*'|"[^"]*"|[^\s,;|]+""")
SCORE = re.compile(r"-?(0|[1-9][0-9]{0,14})([.,][0-9]{1,15})?")


def label_value(label: str) -> int | str:
    """Return the same for all spellings of a class: 1 and 1.0, true and True, composed and decomposed accents."""
    if re.fullmatch(r"-?(0|[1-9][0-9]{0,14})(\.0)?", label):
        return int(label.partition(".")[0])
    label = unicodedata.normalize("NFC", label)
    return label.lower() if label.lower() in ("true", "false") else label


def spellings(labels: Iterable[str]) -> dict[int | str, str]:
    """Return label_value -> its most frequent spelling, of equals the shortest."""
    counts, found = Counter(labels), dict[int | str, str]()
    for label in sorted(counts, key=lambda label: (-counts[label], len(label), label)):
        found.setdefault(label_value(label), label)
    return found


def number_in(label: str) -> float | None:
    """Return the number that a label is, leading zeros and a plus sign included."""
    return float(label) if re.fullmatch(r"[-+]?[0-9]{1,15}(\.[0-9]*)?", label) else None


def label_order(label: str) -> tuple:
    """Return a key that sorts numbers before words, and both by the numbers in them: 2 stars, 10 stars."""
    words = re.split("([0-9]{1,9})", unicodedata.normalize("NFC", label))
    parts = [int(part) if i % 2 else part for i, part in enumerate(words)]
    number = number_in(label)
    return (1, 0, parts, len(label), label) if number is None else (0, number, [], len(label), label)


def class_numbers(labels: Sequence[str], *classes: list[str]) -> np.ndarray:
    """Return the labels' numbers in whichever list of classes has most of them, -1 for the others: int16 (rows,)."""
    known = []
    for names in classes:
        numbers = {label_value(name): number for number, name in enumerate(names)}
        found = {label: numbers.get(label_value(label.strip()), -1) for label in set(labels)}
        known.append(np.array([found[label] for label in labels], np.int16))
    return max(known, key=lambda numbers: (numbers >= 0).sum())


def look(label: str) -> str:
    """Return the same for labels that look alike: without case, invisible characters and kinds of spaces."""
    seen = (c for c in label if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    return " ".join(unicodedata.normalize("NFKC", "".join(seen)).casefold().split())


# -----------------------------------------------------------------------------
# notes


def label_notes(labels: Sequence[str], others: Iterable[str]) -> list[str]:
    """Return notes on the labels of the training rows; others: the labels of dev and test."""
    names = sorted(spellings(labels).values(), key=label_order)
    merged = _groups(sorted({*labels, *others}, key=label_order), label_value, " and ")
    alike = _groups(names, look, ", ")
    found = [
        merged and f"note: taken for one class: {merged}: to keep them apart, rename them",
        alike
        and f"note: labels that differ only in case, spaces, Unicode form or invisible characters: {alike}. Each "
        f"is a class of its own: if that is not meant, give them one spelling in the file",
        _joined(names),
        _scores(names),
        _unlabelled(labels, names),
    ]
    return [note for note in found if note]


def _shown(label: str) -> str:
    """Return a label for a note, with decomposed accents made visible; printing does so for invisible characters."""
    is_composed = unicodedata.is_normalized("NFC", label)
    hidden = (c for c in label[:60] if "\ufe00" <= c <= "\ufe0f" or (unicodedata.combining(c) and not is_composed))
    return label[:60].translate({ord(c): ascii(c)[1:-1] for c in hidden})


def _groups(names: list[str], key: Callable[[str], int | str], between: str) -> str:
    """Return, for a note, the first five groups of names with the same key; "" if there are none."""
    groups: dict[int | str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(_shown(name))
    found = [between.join(group) for group in groups.values() if len(group) > 1]
    return "; ".join(found[:5]) + (f"; and {len(found) - 5:,} more" if len(found) > 5 else "")


def _joined(names: list[str]) -> str | None:
    """Return a note if labels look like several labels in one."""
    lists = [name for name in names if LISTED.fullmatch(name)]
    long = [name for name in lists if len(IN_LIST.findall(name[1:-1])) > 1]
    if not long or 2 * len(lists) < len(names):
        long = next(filter(None, (_combinations(names, separator) for separator in ",;|/+#& ")), [])
    if not long:
        return None
    return (
        f"note: labels such as {long[0][:60]!r} look like several labels in one. A text has one class here, so each "
        f"combination is learnt as a class of its own. To learn the labels one by one, make a column of yes and no for "
        f"each and prepare each with its own --name"
    )


def _combinations(names: list[str], separator: str) -> list[str]:
    """Return the names that combine others' parts: most parts recur, alone or in front and also behind others.

    So "Arts, Culture" is none without Arts and Culture, nor are "food#good" and "food#bad".
    """
    if separator == " " and not all(re.fullmatch("[0-9 ]+", name) for name in names):
        return []  # of words, as in "very good"
    parts = {name: tuple(dict.fromkeys(filter(None, map(str.strip, name.split(separator))))) for name in names}
    several = [name for name in names if len(parts[name]) > 1]
    uses = Counter(part for name in names for part in parts[name])
    mixed = [name for name in several if all(uses[part] > 1 for part in parts[name])]
    behind = {part for name in several for part in parts[name][1:]}
    if not behind & {parts[name][0] for name in names if parts[name]}:
        return []
    if separator == "," and all(SCORE.fullmatch(name) for name in names):  # 2,5 may be a decimal number
        if len(behind) < 3 or not all(int(parts[name][0]) < int(parts[name][1]) for name in several):
            return []
    return mixed if 2 * len(mixed) >= len(several) or len(mixed) >= 10 else []


def _scores(names: list[str]) -> str | None:
    """Return a note if labels look like scores: more than 20 numbers, evenly spread, but not numbered from 0 or 1."""
    if len(names) <= 20 or not all(SCORE.fullmatch(name) for name in names):
        return None
    values = np.unique([float(name.replace(",", ".")) for name in names])
    low, high = values[0], values[-1]
    if len(values) < len(names) or np.diff(values).max() > (high - low) / 5:  # 1.1 and 1.10 are codes
        return None
    if (values == values.round()).all():
        are_class_numbers = low in (0, 1) and high != 100 and len(values) >= 0.8 * (high - low + 1)
        if are_class_numbers or np.abs(values).max() > 100:
            return None
    names = sorted(names, key=lambda name: float(name.replace(",", ".")))
    return (
        f"note: {len(names):,} labels are numbers from {names[0]} to {names[-1]}: each is learnt as a class of its "
        f"own. If they are scores, put them into a few ranges, as low, middle and high, and learn these"
    )


def _unlabelled(labels: Sequence[str], names: list[str]) -> str | None:
    """Return a note on labels that often mean "no label"."""
    found = [name for name in names if look(name) in NO_LABEL]
    for name in names:
        value = number_in(name)
        others = {number_in(other) for other in names if other != name} if value in NO_LABEL_NUMBERS else set()
        # beside 1 and perhaps 0, or in -2 to 2, -1 is a value like the others
        if value is not None and not others <= {0, -value} and all(each is None or each >= 0 for each in others):
            found.append(name)
    if not found or len(found) == len(names):
        return None
    counts = Counter(map(label_value, labels))
    listed = ", ".join(f"{name[:60]!r} ({counts[label_value(name)]:,})" for name in found[:5])
    option = "--drop_label " + " ".join(map(shlex.quote, found[:5]))
    return f'note: labels that often mean "no label" (rows): {listed}. If they do here, leave them out with {option}'
