"""The Stanford Sentiment Treebank's parse trees, in which every phrase has a label of its own (Socher et al. 2013)."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from classifier.data.own import Examples
from classifier.errors import UserError

Phrase = tuple[str, int]  # as SST's TSV files have a text, with a leading space, and its class number


def with_phrases(splits: dict[str, Examples], tree_file: Path) -> Examples:
    """Return the training sentences as they are, and after them every distinct (phrase, label) of their trees.

    Left out is a phrase that reads as a sentence of any split, as letters and digits in either case, so that nothing
    of dev and test is trained on; and one that has neither a letter nor a digit.

    Args:
        splits: SST's "train", "dev" and "test".
        tree_file: the training sentences' trees, in the order of the sentences.

    Raises:
        UserError: a tree is none, or not that of its sentence; names the line.
    """
    seen = {_letters(text) for examples in splits.values() for text in examples.texts} | {""}
    train, trees = splits["train"], list(read_trees(tree_file))
    if len(trees) != len(train.texts):
        raise UserError(f"{tree_file} has {len(trees):,} trees, and there are {len(train.texts):,} sentences")
    phrases: dict[Phrase, str] = {}  # with the id of where it comes first
    for row, (tree, id, text, label) in enumerate(zip(trees, train.ids, train.texts, train.labels, strict=True)):
        if tree[-1] != (text, label):
            raise UserError(f"{tree_file}, line {row + 1}: not the tree of {train.places[row]}")
        for part, phrase in enumerate(tree[:-1], start=1):
            if phrase not in phrases and _letters(phrase[0]) not in seen:
                phrases[phrase] = f"{id}/{part}"
    places, ids = [*train.places, *[f"{tree_file}"] * len(phrases)], [*train.ids, *phrases.values()]
    texts = [*train.texts, *(text for text, _ in phrases)]
    return Examples(places, ids, texts, np.array([*train.labels, *(label for _, label in phrases)], np.int16), [])


def read_trees(path: Path) -> Iterator[list[Phrase]]:
    """Yield each line's tree as its phrases, a phrase after its parts, so that the whole sentence comes last.

    A tree is `(label word)` or `(label tree tree ...)`.

    Raises:
        UserError: with file and line number, at the first line that is no tree.
    """
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            yield _phrases(line.decode())
        except (ValueError, LookupError):
            raise UserError(f"{path}, line {number}: no tree with labels from 0 to 4") from None


def _phrases(line: str) -> list[Phrase]:
    phrases: list[Phrase] = []
    begun: list[tuple[int, list[str]]] = []  # label and words so far, the innermost last
    for label, word in re.findall(r"\(([0-4]) |([^ ()]+)|\)", line):
        if label:
            begun.append((int(label), []))
        elif word:
            begun[-1][1].append(word)
        else:
            number, words = begun.pop()
            phrases.append((" " + " ".join(words), number))
            if begun:
                begun[-1][1].extend(words)
    if begun or not phrases:
        raise ValueError
    return phrases


def _letters(text: str) -> str:
    """Return a text's letters and digits, in lower case; the Treebank's -LRB- and -RRB- are brackets."""
    return re.sub(r"[\W_]", "", re.sub("-[LR]RB-", "", text).lower())
