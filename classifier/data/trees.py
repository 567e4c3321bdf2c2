"""Read the parse trees of the Stanford Sentiment Treebank, in which every phrase has a label (Socher et al. 2013)."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from classifier.data.own import Examples
from classifier.errors import UserError

Phrase = tuple[str, int]  # text with a leading space, as in SST's TSV files, and class number


def with_phrases(splits: dict[str, Examples], tree_file: Path) -> Examples:
    """Return the training sentences, and after them every distinct (phrase, label) of their trees.

    A phrase with the letters and digits of a sentence in any split, in either case, is left out: no text of dev or test
    may be trained on. So is a phrase without letters and digits.
    """
    seen = {_letters(text) for examples in splits.values() for text in examples.texts} | {""}
    train, trees = splits["train"], list(read_trees(tree_file))
    if len(trees) != len(train.texts):
        raise UserError(f"{tree_file} has {len(trees):,} trees, but there are {len(train.texts):,} sentences")
    phrases: dict[Phrase, str] = {}  # with the id of its first occurrence
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
    """Yield each line's tree, `(label word)` or `(label tree tree ...)`, as its phrases, the sentence last."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            yield _phrases(line.decode())
        except (ValueError, LookupError):
            raise UserError(f"{path}, line {number}: not a tree with labels from 0 to 4") from None


def _phrases(line: str) -> list[Phrase]:
    phrases: list[Phrase] = []
    open_trees: list[tuple[int, list[str]]] = []  # label and words so far, the innermost last
    for label, word in re.findall(r"\(([0-4]) |([^ ()]+)|\)", line):
        if label:
            open_trees.append((int(label), []))
        elif word:
            open_trees[-1][1].append(word)
        else:
            number, words = open_trees.pop()
            phrases.append((" " + " ".join(words), number))
            if open_trees:
                open_trees[-1][1].extend(words)
    if open_trees or not phrases:
        raise ValueError
    return phrases


def _letters(text: str) -> str:
    """Return a text's letters and digits in lower case; the Treebank's -LRB- and -RRB- are brackets."""
    return re.sub(r"[\W_]", "", re.sub("-[LR]RB-", "", text).lower())
