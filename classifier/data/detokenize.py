"""Penn-Treebank tokens ("It 's `` good '' .") back to text as people type it ('It's "good".'), which GPT-2 has seen."""

import re
from functools import cache
from typing import Any

from classifier.errors import UserError

# What NLTK's rules do not know, applied before them to tokens with one space between them. SST is in the Treebank's
# style; CFIMDB was cut up by another tokenizer (hyphens, slashes and asterisks, too) and written as CSV more than once.
BEFORE = [
    (r'^(?:" )?"{3,} | "{3,}$', ""),  # CSV's quotes around a whole review
    (r'"{2,}(?: "{2,})?', '"'),  # CSV's doubling of the quotes in it
    (r'(?<!\S)" ([^"]+) "(?!\S)', r"``\1''"),
    (r"(?<!\S)`` (?=\S)", "``"),
    (r"(?<=\S) ''(?!\S)", "''"),
    (r"(?<!\S)` (?=\S)", "'"),
    (r"(?<=\w) ((?i:n[’'´`]?t|[’'´](?:s|m|d|re|ve|ll)))(?!\w)", r"\1"),  # is n't, she 's, do n’t, ca nt
    (r"(?<!\S)' (?=(?:\d0s?|n|em|til)\b)", "'"),  # the ' 60s
    # ' a pair of single quotes ', unless the first may be a genitive: the actors ' best
    (
        r"(^|(?<!\S)(?:is|was|as|this|his|has|its|\S*'s|\S*[^s'\s]) )' "
        r"((?:[^']|(?<=\w)'\w|'(?:\d0s?|n|em|til)\b){1,80}?) '(?!\S)",
        r"\1'\2'",
    ),
    (r"(?<=[\w.,!?]) '(?= [^\w\s])", "'"),  # else a ' before punctuation closes
    (r"(?<!\S)\. \. \.(?!\S)", "..."),
    (r"(?<=\S) (\.{2,})(?!\S)", r"\1"),  # well ... yes
    (r"^(\.{3}) ", r"\1"),
    (r"(?<=\w) / (?=\w)", "/"),
    (r"\\([/*])", r"\1"),
    (r"(?<=\*) (?=\*)", ""),
]
# and after them
NO_SECOND_PART = r"(?i:the|and|an?|i|i[tsn]|but|or|so|th(?:is|at|ey|ere)|s?he|you|we|wh\w+|not|for|with|from|as|of)"
AFTER = [
    (r"(?<=[^\s-])--(?=[^\s-])", " -- "),  # NLTK closes the dash up
    # " - " is a hyphen in a chain of words and before most words, and a dash before those that begin a clause
    (r"(?<=[^\W_]) - (?=\w+ - \w)|(?<=[^\W_]) - (?!" + NO_SECOND_PART + r"\b)(?=[^\W_])", "-"),
    (r"(?<=-)(to|the|of|and|in|a) - (?=\w)", r"\1-"),  # balls-to-the - wall
]


@cache
def _nltk_rules() -> Any:
    try:  # here, since it takes seconds and few need it
        from nltk.tokenize.treebank import TreebankWordDetokenizer
    except ImportError:
        raise UserError("NLTK is missing: run `pip install -r requirements.txt` (package nltk)") from None
    return TreebankWordDetokenizer()


def detokenize(text: str) -> str:
    """Return text as a person would have typed it; its leading space, if any, is kept.

    The spaces cannot all be told: whether " - " was a hyphen or a dash and which ' closes a quotation are guesses.
    """
    tokens = " ".join(text.split())
    for pattern, replacement in BEFORE:
        tokens = re.sub(pattern, replacement, tokens)
    typed = _nltk_rules().tokenize(tokens.split(), convert_parentheses=True)
    for pattern, replacement in AFTER:
        typed = re.sub(pattern, replacement, typed)
    return text[: text[:1] == " "] + typed if typed else text
