"""Models loaded from checkpoints, and what they answer together: the logarithm of their mean probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from classifier import checkpoint
from classifier.answers.calibration import read_temperature
from classifier.data.dataset import Split, load_meta, prepare_script, training_files
from classifier.data.tokenizer import check_vocabulary, encode_prompt, load_tokenizer
from classifier.device import choose_device, choose_dtype, tune
from classifier.errors import UserError, tell
from classifier.training.batches import Texts
from classifier.training.predict import average, predict
from model import GPT

AT_ONCE = 32768  # texts that are sorted by length


class Loaded(NamedTuple):
    """A model with the checkpoint that it comes from, and the temperature that was fitted for it."""

    path: str
    model: GPT
    saved: dict[str, Any]
    calibration: dict[str, Any] = {}  # what read_temperature returns
    dtype: torch.dtype = torch.float32  # of its matrix products

    @property
    def label_names(self) -> list[str]:
        """The classes, in the order of their numbers."""
        return self.saved["data"]["label_names"]

    @property
    def file_labels(self) -> list[str]:
        """What the files that it was trained on call the classes; a checkpoint of before does not know."""
        return self.saved["data"].get("labels", self.label_names)

    @property
    def text_columns(self) -> list[str]:
        """Where these files have the texts; a checkpoint of before does not know."""
        return self.saved["data"].get("text_columns", [])

    @property
    def temperature(self) -> float:
        """What its logits are divided by."""
        return self.calibration.get("temperature", 1.0)


def load(path: str) -> Loaded:
    """Return a checkpoint and its model, on the CPU and in float32, with the temperature that lies beside it.

    Raises:
        UserError: it is no checkpoint, or of a model without GPT-2's vocabulary; the temperature's file is broken.
    """
    model, saved = checkpoint.load(path)
    check_vocabulary(model.config.vocab_size, path)
    return Loaded(path, model, saved, read_temperature(path))


def load_all(paths: list[str], device: str = "auto", dtype: str = "auto") -> tuple[list[Loaded], str]:
    """Return models that answer together, ready to compute, and two lines that say on what they do and why.

    Args:
        device: auto, cuda, mps or cpu.
        dtype: of matrix products: auto or a key of DTYPES.

    Raises:
        UserError: one cannot be loaded, or tells other classes apart; the device or the dtype is not to be had.
    """
    chosen, device_reason = choose_device(device)
    number_format, dtype_reason = choose_dtype(dtype, chosen)
    tune(chosen, number_format)
    models = [load(path)._replace(dtype=number_format) for path in paths]
    for loaded in models:
        loaded.model.to(chosen)
        if loaded.label_names != models[0].label_names:
            raise UserError(f"{loaded.path} has other classes than {paths[0]}: they cannot answer together")
    name = str(number_format).removeprefix("torch.")
    return models, f"device {chosen} ({device_reason})\ndtype {name} ({dtype_reason})"


# -----------------------------------------------------------------------------
# answers


def predict_all(models: list[Loaded], split: Split) -> Tensor:
    """Return the logits of one model, or of several the logarithm of their mean probabilities: (examples, classes)."""
    with tqdm(total=len(models) * len(split), unit="ex", disable=None, leave=False, delay=1) as bar:
        return average([predict_one(loaded, split, bar.update) for loaded in models])


def predict_one(loaded: Loaded, split: Split, on_examples: Callable[[int], Any] = lambda count: None) -> Tensor:
    """Return the logits of one model, divided by its temperature: float64 (examples, classes).

    The model gets the prompt that it was trained with.
    """
    prompt = encode_prompt(loaded.saved["settings"]["prompt"], loaded.model.config.block_size)
    logits = predict(loaded.model, Texts(replace(split, prompt=prompt), loaded.model), loaded.dtype, on_examples)
    return logits.double() / loaded.temperature  # in double precision, so that no two logits become equal


def log_probabilities(
    models: list[Loaded], texts: list[str], on_examples: Callable[[int], Any] = lambda count: None
) -> Tensor:
    """Return what the models say of texts together: (texts, classes)."""
    logits = [predict_one(loaded, text_split(texts, loaded), on_examples) for loaded in models]
    return average(logits).log_softmax(-1)


def log_probabilities_of_many(models: list[Loaded], texts: list[str]) -> Tensor:
    """Return what the models say of any number of texts, some at a time: float64 (texts, classes), NaN for a blank one.

    Those at a time are many, so that sorted by length they make micro-batches of little padding.
    """
    found = torch.full((len(texts), len(models[0].label_names)), torch.nan, dtype=torch.float64)
    rows = np.flatnonzero([bool(text.strip()) for text in texts])
    with tqdm(total=len(models) * len(rows), unit=" rows", disable=None, leave=False) as bar:
        for start in range(0, len(rows), AT_ONCE):
            chosen = rows[start : start + AT_ONCE]
            found[chosen] = log_probabilities(models, [texts[row] for row in chosen], bar.update)
    return found


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
# the data that they are asked about


def prepared_folder(models: list[Loaded], data_dir: str | None, splits: Sequence[str]) -> str:
    """Return the prepared folder that models are asked about: data_dir, or else the one that the first was trained on.

    Raises:
        UserError: it is not there; it has other classes or other text than the models know; or, unless it was asked
            for, one of the splits may hold what they were trained on.
    """
    folder = data_dir or models[0].saved["data"]["folder"]
    if data_dir is None and not Path(folder, "meta.json").is_file():
        raise UserError(
            f"{models[0].path} was trained on {folder}, and there is no such prepared folder here "
            f"({Path(folder).resolve()}): name it with --data_dir, or run `python {prepare_script(folder)}`"
        )
    meta = load_meta(folder)
    for loaded in models:
        known, found = described(loaded.saved["data"]), described(meta)
        if known != found:
            how = "--data_dir names another folder; models of other classes or other text cannot be compared"
            raise UserError(f"{loaded.path} was trained on {known}, but {folder} holds {found}: {how}")
        check_not_trained_on(loaded, folder, meta, splits, data_dir is not None)
    return folder


def described(data: dict[str, Any]) -> str:
    """Return what a model has to know of its data: the task, the classes, and how the text was prepared."""
    words = "prepared with" if data.get("detokenized") else "prepared without"
    return f"{data['task']!r} ({', '.join(data['label_names'])}), {words} --detokenize"


def check_not_trained_on(
    loaded: Loaded, folder: str, meta: dict[str, Any], splits: Sequence[str], is_asked_for: bool
) -> None:
    """Say, or unless the folder is asked for refuse, that a split may hold what the checkpoint was trained on.

    A dev set that is the same was kept apart from that, whatever else has changed: models can be compared on it.
    """
    now, then = training_files(meta), loaded.saved["data"]["files"]
    if now == then or (list(splits) == ["dev"] and now.get("dev") == then.get("dev")):
        return
    problem = f"{folder} is not the data that {loaded.path} was trained on: its {' or '.join(splits)} split may hold"
    problem += " training sentences"
    if not is_asked_for:
        raise UserError(f"{problem}. Prepare it as it was then, or evaluate all the same with --data_dir {folder}")
    tell(f"note: {problem}")
