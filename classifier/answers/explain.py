"""How much each word of a text matters to what is predicted: what is lost when that word is left out.

It knows no model, only a function that gives the log-probabilities of texts: evaluate.py's and the page's is our model,
in an exported folder it is transformers'.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Explanation(NamedTuple):
    """A text's prediction and what each word contributes to it."""

    log_probabilities: Tensor  # (K,)
    words: list[str]
    contributions: list[float]  # of each word, in nats; empty for a single word, without which there is no text


def explain(text: str, log_probabilities: Callable[[list[str]], Tensor]) -> Explanation:
    """Return each word's contribution: the predicted class's log-probability less what it is without this word.

    This is occlusion (Zeiler and Fergus 2014), or leave-one-out (Li, Monroe and Jurafsky 2016). It is exact by its
    definition; what words do only together it does not tell.

    Args:
        text: a word at least.
        log_probabilities: returns (texts, K) for a list of texts; it is called once.
    """
    found = log_probabilities([text, *without_each_word(text)])
    predicted = found[0].argmax()
    return Explanation(found[0], re.findall(r"\S+", text), (found[0, predicted] - found[1:, predicted]).tolist())


def without_each_word(text: str) -> list[str]:
    """Return a text as often as it has words, each time without one of them; of a single word, nothing.

    A word is what stands between white space. It goes with the white space before it; the first word with that after
    it, so that what the text begins with, a space or none, stays.
    """
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    if len(spans) < 2:
        return []
    gaps = [(spans[0][0], spans[1][0])] + [(spans[i - 1][1], spans[i][1]) for i in range(1, len(spans))]
    return [text[:start] + text[end:] for start, end in gaps]


def shades(contributions: list[float]) -> list[float]:
    """Return contributions as shares of the largest among them: -1 to 1."""
    largest = max(map(abs, contributions), default=0.0)
    return [contribution / largest if largest else 0.0 for contribution in contributions]
