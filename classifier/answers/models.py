"""Models loaded from checkpoints, and what they answer together: the logarithm of their mean probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from classifier import checkpoint
from classifier.answers.calibration import read_temperature
from classifier.data.dataset import Split, prepare_script, training_files
from classifier.data.tokenizer import check_vocabulary, encode_prompt, load_tokenizer
from classifier.errors import UserError
from classifier.files import file_sha256
from classifier.training.batches import Texts
from classifier.training.predict import average, predict
from model import GPT

MAX_CHARACTERS = 131072  # of a text, as in the TSV files


class Loaded(NamedTuple):
    """A model with the checkpoint that it comes from, and the temperature that was fitted for it."""

    path: str
    model: GPT
    saved: dict[str, Any]
    sha256: str = ""
    calibration: dict[str, Any] = {}  # calibration.STORED, or empty

    @property
    def temperature(self) -> float:
        """What its logits are divided by."""
        return self.calibration.get("temperature", 1.0)


def load(path: str) -> Loaded:
    """Return a checkpoint and its model, on the CPU, with the temperature that lies beside it.

    Raises:
        UserError: it is no checkpoint, or of a model without GPT-2's vocabulary; the temperature's file is broken.
    """
    model, saved = checkpoint.load(path)
    check_vocabulary(model.config.vocab_size, path)
    sha256 = file_sha256(path)
    return Loaded(path, model, saved, sha256, read_temperature(path, sha256))


# -----------------------------------------------------------------------------
# answers


def predict_all(models: list[Loaded], split: Split, dtype: torch.dtype) -> Tensor:
    """Return the logits of one model, or of several the logarithm of their mean probabilities: (examples, classes)."""
    with tqdm(total=len(models) * len(split), unit="ex", disable=None, leave=False, delay=1) as bar:
        return average([predict_one(loaded, split, dtype, bar.update) for loaded in models])


def predict_one(
    loaded: Loaded, split: Split, dtype: torch.dtype, on_examples: Callable[[int], Any] = lambda count: None
) -> Tensor:
    """Return the logits of one model, divided by its temperature: float64 (examples, classes).

    The model gets the prompt that it was trained with.
    """
    prompt = encode_prompt(loaded.saved["settings"]["prompt"], loaded.model.config.block_size)
    logits = predict(loaded.model, Texts(replace(split, prompt=prompt), loaded.model), dtype, on_examples)
    return logits.double() / loaded.temperature  # in double precision, so that no two logits become equal


def log_probabilities(models: list[Loaded], dtype: torch.dtype, texts: list[str]) -> Tensor:
    """Return what the models say of texts together: (texts, classes)."""
    return average([predict_one(loaded, text_split(texts, loaded), dtype) for loaded in models]).log_softmax(-1)


def text_split(texts: list[str], loaded: Loaded) -> Split:
    """Return texts as the split of a prepared folder that a model would read."""
    # a leading space changes the first token: give it to texts where all training sentences have it
    space = " " if loaded.saved["data"]["leading_space"] else ""
    texts = [text if text.startswith(" ") else space + text for text in texts]
    sequences = [np.array(tokens, dtype=np.uint16) for tokens in load_tokenizer().encode_ordinary_batch(texts)]
    offsets = np.cumsum([0, *map(len, sequences)])
    return Split("text", np.concatenate(sequences), offsets, labels=None, id_lines=np.zeros(0, np.uint8))


def text_of(split: Split, index: int) -> str:
    """Return an example's text, the space that it may begin with included: text_split's inverse."""
    return load_tokenizer().decode(split.tokens[split.offsets[index] : split.offsets[index + 1]].tolist())


def surest_mistakes(logits: Tensor, labels: np.ndarray) -> np.ndarray:
    """Return the examples that are predicted wrongly, those of the highest confidence first: (mistakes,) int64."""
    confidence, predictions = (each.numpy() for each in logits.softmax(-1).max(-1))
    wrong = np.flatnonzero(predictions != labels)
    return wrong[np.argsort(-confidence[wrong], kind="stable")]


# -----------------------------------------------------------------------------
# what fits together


def check_same_classes(models: list[Loaded]) -> None:
    """Raise a UserError where models tell other classes apart than the first one does."""
    for loaded in models:
        if loaded.saved["data"]["label_names"] != models[0].saved["data"]["label_names"]:
            raise UserError(f"{loaded.path} has other classes than {models[0].path}: they cannot answer together")


def check_same_task(loaded: Loaded, folder: str, meta: dict[str, Any]) -> None:
    """Raise a UserError where a prepared folder's classes or text are not what the checkpoint was trained on."""
    ckpt, trained_on = loaded.path, loaded.saved["data"]
    if (meta["task"], meta["label_names"]) != (trained_on["task"], trained_on["label_names"]):
        raise UserError(
            f"{ckpt} was trained on {trained_on['task']!r} ({', '.join(trained_on['label_names'])}), "
            f"but {folder} holds {meta['task']!r} ({', '.join(meta['label_names'])})"
        )
    if meta["detokenized"] != trained_on["detokenized"]:
        words = ("with", "without") if trained_on["detokenized"] else ("without", "with")
        raise UserError(
            f"{ckpt} was trained on text prepared {words[0]} --detokenize, but {folder} was prepared {words[1]} it: "
            f"run `python {prepare_script(folder)}{' --detokenize' if trained_on['detokenized'] else ''}`"
        )


def check_same_data(
    loaded: Loaded, folder: str, meta: dict[str, Any], splits: Sequence[str], is_asked_for: bool = False
) -> None:
    """Say, or unless the folder is asked for refuse, that a split may hold what the checkpoint was trained on.

    A dev set that is the same was kept apart from that, whatever else has changed: models can be compared on it.
    """
    now, then = training_files(meta), loaded.saved["data"]["files"]
    is_dev_the_same = now.get("dev") == then.get("dev")
    unsure = [] if now == then else [split for split in splits if split != "dev" or not is_dev_the_same]
    if unsure:
        problem = f"{folder} is not the data that {loaded.path} was trained on: its {' and '.join(unsure)} split may"
        problem += " hold training sentences"
        if not is_asked_for:
            raise UserError(f"{problem}. Prepare it as it was then, or evaluate all the same with --data_dir {folder}")
        print(f"note: {problem}")
