"""How much each word of a text matters to the prediction: what is lost when that word is left out.

Works with any model: it only calls a function that returns the log-probabilities of texts.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Explanation(NamedTuple):
    """A text's prediction, and what each word contributes to it."""

    log_probabilities: Tensor  # (K,)
    words: list[str]
    contributions: list[float]  # of each word, in nats; empty for a one-word text


def explain(text: str, log_probabilities: Callable[[list[str]], Tensor]) -> Explanation:
    """Compute each word's contribution: how much the predicted class's log-probability falls without the word.

    This is occlusion (Zeiler and Fergus 2014), or leave-one-out (Li, Monroe and Jurafsky 2016): exact by its
    definition, but blind to what words do only together.
    log_probabilities is called once, and returns (texts, K).
    """
    found = log_probabilities([text, *without_each_word(text)])
    predicted = found[0].argmax()
    return Explanation(found[0], re.findall(r"\S+", text), (found[0, predicted] - found[1:, predicted]).tolist())


def without_each_word(text: str) -> list[str]:
    """Return a text once for each of its words, without that word; nothing for a one-word text.

    A word is what stands between white space. It is left out with the white space before it; the first word with the
    white space after it, so that the text begins with a space or not, as before.
    """
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    if len(spans) < 2:
        return []
    gaps = [(spans[0][0], spans[1][0])] + [(spans[i - 1][1], spans[i][1]) for i in range(1, len(spans))]
    return [text[:start] + text[end:] for start, end in gaps]
