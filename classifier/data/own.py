"""Files of one's own: which columns hold what, which classes there are, and which rows to set aside as dev."""

import math
from argparse import Namespace
from array import array
from hashlib import blake2b
from pathlib import Path

import numpy as np

from classifier.data.rows import Source, as_source, describe_header, format_of, read_rows, read_texts
from classifier.errors import UserError

USUAL_NAMES = {  # in lower case
    "text": ("text", "sentence", "review", "content", "comment"),
    "label": ("label", "sentiment", "category", "class", "target"),
}
INDEX_NAMES = ("", "unnamed: 0", "index", "__index_level_0__")  # as pandas writes its row numbers


def find_sources(files: dict[str, str | None], options: Namespace) -> tuple[dict[str, Source], str]:
    """Return split -> Source of each file that is given, and in words which columns were chosen and why.

    The training file decides; the others have columns of the same names, whatever their case.

    Args:
        files: split -> file, or None.
        options: with text_column, label_column and id_column, each a name or None.

    Raises:
        UserError: there is no such file, its name tells no format, or its columns do not tell what they hold.
    """
    sources = {split: as_source(Path(file)) for split, file in files.items() if file is not None}
    sources = {split: source._replace(format=format_of(source.path)) for split, source in sources.items()}
    columns = {split: source.format.columns(source.path) for split, source in sources.items()}
    options = {"text": options.text_column, "label": options.label_column, "id": options.id_column}
    chosen = choose_columns(sources["train"], columns["train"], options)
    text, label = (name for name, _ in chosen.values())
    for split, source in sources.items():
        id = match(columns[split], options["id"] or "id")
        sources[split] = source._replace(
            sentence=match(columns[split], text),
            label=match(columns[split], label),
            id=id if options["id"] is not None or id in columns[split] else None,
        )
    train = sources["train"]
    three = [train.sentence, train.label, train.id or "id"]
    if len(set(three)) < 3:
        raise UserError(f"text, label and id must be three columns, not {', '.join(three)}")
    return sources, ", ".join(f"{role}s in {name!r} ({reason})" for role, (name, reason) in chosen.items())


def match(columns: list[str], name: str) -> str:
    """Return the column of that name: as it is written, or else the only one that differs in case or spaces alone."""
    alike = [column for column in columns if plain(column) == plain(name)]
    return alike[0] if name not in columns and len(alike) == 1 else name


def plain(column: str) -> str:
    """Return a column's name in lower case and without spaces around it."""
    return column.strip().lower()


def choose_columns(source: Source, columns: list[str], options: dict[str, str | None]) -> dict[str, tuple[str, str]]:
    """Return the column of the texts and that of the labels, each with the reason: "text" and "label" -> both.

    A column that an option names; else the one with a usual name; else, of the columns that are left, the only one, or
    the two of a lone pair, texts first.

    Raises:
        UserError: no column is the one, or several could be.
    """
    found, missing = {}, []
    for role, usual in USUAL_NAMES.items():
        named = [column for column in dict.fromkeys(columns) if plain(column) in usual]
        if options[role] is not None:
            found[role] = match(columns, options[role]), f"--{role}_column"
        elif len(named) > 1:
            raise _unclear(source, columns, f"{' and '.join(map(repr, named))} could both be the {role}s", role)
        elif named:
            found[role] = named[0], "by its name"
        else:
            missing.append(role)
    taken = {plain(options["id"] or "id"), *INDEX_NAMES, *(plain(name) for name, _ in found.values())}
    taken.update(*USUAL_NAMES.values())
    left = [column for column in columns if plain(column) not in taken]
    if missing and len(left) != len(missing):
        raise _unclear(source, columns, f"no column's name tells that it holds the {missing[0]}s", missing[0])
    reason = "the only other column" if len(missing) == 1 else "of two columns"
    found |= {role: (column, reason) for role, column in zip(missing, left, strict=False)}
    return {role: found[role] for role in USUAL_NAMES}


def _unclear(source: Source, columns: list[str], problem: str, role: str) -> UserError:
    header = describe_header(source.format, columns)
    return UserError(f"{source.place(1)}: {problem}: choose one with --{role}_column; {header}")


MAX_CLASSES = 1000  # more labels than these are surely another column


def sentence_hash(sentence: str) -> int:
    """Return 64 bits that stand for a sentence, the spaces around it left out."""
    return int.from_bytes(blake2b(sentence.strip().encode(), digest_size=8).digest(), "little")


def read_labels(source: Source) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """Read the training file.

    Returns:
        each label's first line; (rows,) uint64 hashes of the sentences; (rows,) int16 labels, numbered as they come.

    Raises:
        UserError: a broken row, an unusable label, or so many labels that it must be the wrong column.
    """
    lines, numbers, sentences, labels = {}, {}, array("Q"), array("h")
    for row in read_texts(source, labelled=True):
        label = (row.label or "").strip()
        if label not in numbers:
            origin = source.place(row.line)
            if not label or not label.isprintable():
                raise UserError(
                    f"{origin}: the label {label!r} is {'no name' if label else 'empty'} (column {source.label!r})"
                )
            if len(numbers) == MAX_CLASSES:
                raise UserError(
                    f"{origin}: more than {MAX_CLASSES:,} different labels up to here: "
                    f"is {source.label!r} the label's column?"
                )
            numbers[label], lines[label] = len(numbers), row.line
        sentences.append(sentence_hash(row.sentence))
        labels.append(numbers[label])
    return lines, np.array(sentences, dtype=np.uint64), np.array(labels, dtype=np.int16)


def read_examples(source: Source, num_classes: int, labelled: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Return (rows,) uint64 hashes of a split's sentences and their (rows,) int16 class numbers, if it has labels."""
    sentences, labels = array("Q"), array("h")
    for row in read_rows(source, num_classes, labelled):
        sentences.append(sentence_hash(row.sentence))
        if row.label is not None:
            labels.append(row.label)
    return np.array(sentences, dtype=np.uint64), np.array(labels, dtype=np.int16) if labels else None


def number_labels(seen: dict[str, int], wanted: list[str], source: Source) -> tuple[list[str], dict[str, int] | None]:
    """Return the classes' names in the order of their numbers, and label -> number, None if labels are the numbers.

    Args:
        seen: the training file's labels, each with its first line.
        wanted: --labels, or nothing.

    Raises:
        UserError: there are not two classes, a number is left out, or --labels does not fit.
    """
    labels, path = list(seen), source.path
    if len(labels) < 2:
        raise UserError(f"{path}: {f'every label is {labels[0]!r}' if labels else 'no examples after the header line'}")
    are_numbers = all(label.isascii() and label.isdecimal() and len(label) <= 9 for label in labels)
    if not are_numbers or set(labels) <= set(wanted):
        names = wanted or sorted(labels)
        unknown = [label for label in labels if label not in names]
        if unknown:
            raise UserError(f"{source.place(seen[unknown[0]])}: the label {unknown[0]!r} is none of --labels")
        unused = [name for name in wanted if name not in labels]
        if unused:
            raise UserError(f"--labels: no row of {path} has the label {unused[0]!r}")
        return names, {name: number for number, name in enumerate(names)}
    numbers = {int(label) for label in labels}  # fewer than labels where one is written both 1 and 01
    missing = [number for number in range(min(max(numbers), MAX_CLASSES)) if number not in numbers]
    if missing:
        raise UserError(
            f"{path}: the labels go up to {max(numbers)}, but none is {missing[0]}: number them 0, 1, 2, ..., "
            f"or name them all in their order, as in --labels {' '.join(map(str, sorted(numbers)[:3]))} ..."
        )
    if len(numbers) < 2:
        raise UserError(f"{path}: every label is {labels[0]!r}")
    if wanted and len(wanted) != len(numbers):
        raise UserError(f"--labels names {len(wanted)} classes, but {path} has {len(numbers)}")
    return wanted or [str(number) for number in sorted(numbers)], None


def choose_dev(sentences: np.ndarray, labels: np.ndarray, names: list[str], share: float, seed: int) -> np.ndarray:
    """Choose the dev split's rows: in each class the same share of the sentences, a repeated one with all its rows.

    Args:
        sentences: (rows,) uint64 hashes.
        labels: (rows,) class numbers; the first of a repeated sentence's counts.

    Returns:
        (rows,) bool.

    Raises:
        UserError: a class has too few sentences to stand in both splits.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    _, first, sentence_of_row = np.unique(sentences, return_index=True, return_inverse=True)
    classes = labels[first]
    counts = np.bincount(classes, minlength=len(names))
    if counts.min() < 2:
        raise UserError(
            f"the class {names[counts.argmin()]!r} has fewer than two different sentences, too few for train and dev: "
            f"add some, or give a dev file with --dev"
        )
    size = math.ceil(share * len(classes))
    if size < len(names):
        raise UserError(
            f"a share of {share} of {len(classes)} sentences is {size}, less than one for each of {len(names)} "
            f"classes: raise --dev_share, or give a dev file with --dev"
        )
    _, dev = train_test_split(np.arange(len(classes)), test_size=size, stratify=classes, random_state=seed)
    in_dev = np.zeros(len(classes), dtype=bool)
    in_dev[dev] = True
    left = np.bincount(classes[~in_dev], minlength=len(names))
    if left.min() == 0:
        raise UserError(f"no sentence of the class {names[left.argmin()]!r} is left to train on: lower --dev_share")
    return in_dev[sentence_of_row]


def count_repeats(sentences: np.ndarray, labels: np.ndarray | None) -> tuple[int, int]:
    """Return how many sentences stand in more than one row, and how many of these have more than one label."""
    _, numbers, rows = np.unique(sentences, return_inverse=True, return_counts=True)
    if labels is None:
        return int((rows > 1).sum()), 0
    pairs = np.unique(numbers * MAX_CLASSES + labels)  # of sentence and label
    return int((rows > 1).sum()), int((np.bincount(pairs // MAX_CLASSES) > 1).sum())
