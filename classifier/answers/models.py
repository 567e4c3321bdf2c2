"""Trained models that answer: one as a Classifier, several together as the mean of their probabilities."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from classifier import checkpoint
from classifier.data.dataset import Split, count_longer, load_meta, prepare_script, training_files
from classifier.data.own import row_text
from classifier.data.tokenizer import check_vocabulary, encode_prompt, load_tokenizer
from classifier.device import DEVICES, DTYPES, choose_device, choose_dtype, tune
from classifier.errors import UserError, own_rank, tell
from classifier.training.batches import Texts
from classifier.training.predict import average, predict
from model import GPT

AT_ONCE = 32768  # texts sorted by length together, so that micro-batches have little padding
CELLS = 2**20  # probabilities in memory at once: of many classes fewer texts


class Answers(NamedTuple):
    """A classifier's answers to texts."""

    labels: list[str]  # the most probable class of each text
    probabilities: np.ndarray  # float32 (texts, K), the classes in the order of label_names


class Chunk(NamedTuple):
    """The answers to some texts."""

    rows: np.ndarray  # (n,) their indices
    log_probabilities: Tensor  # float64 (n, K)
    longer: np.ndarray  # (classifiers,) how many texts each of them truncates


@dataclass(frozen=True)
class Classifier:
    """A model of finetune.py that classifies texts as it was trained to.

    from classifier.answers.models import Classifier

    classifier = Classifier.load("out/best.pt")
    labels, probabilities = classifier(["A lovely film.", "A dull mess."])
    for label, row in zip(labels, probabilities):
        print(label, row.max())
    """

    path: str
    model: GPT
    saved: dict[str, Any]  # the checkpoint's data, settings, progress and run
    dtype: torch.dtype = torch.float32  # of matrix products

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", dtype: str = "auto") -> "Classifier":
        """Load a checkpoint in evaluation mode, on a device (cuda, mps or cpu), for products in a dtype of DTYPES."""
        for name, value, choices in (("device", device, DEVICES), ("dtype", dtype, ("auto", *DTYPES))):
            if value not in choices:
                raise UserError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        chosen, _ = choose_device(device)
        number_format, _ = choose_dtype(dtype, chosen)
        tune(chosen, number_format)
        model, saved = checkpoint.load(path)
        saved = {part: saved[part] for part in ("data", "settings", "progress", "run")}
        check_vocabulary(model.config.vocab_size, str(path))
        return cls(str(path), model.to(chosen).eval(), saved, number_format)

    def __call__(self, texts: Sequence[str | Sequence[str]]) -> Answers:
        """Classify texts, each a str, or a sequence with a str for each of text_columns.

        Raises:
            UserError: a text is blank, or does not have a part for each column.
        """
        if isinstance(texts, str):
            raise UserError("this is one text, and a list of texts is needed: write [text]")
        joined = [text if isinstance(text, str) else self.join_columns(text) for text in texts]
        for index, text in enumerate(joined):
            if not text.strip():
                raise UserError(f"the text at index {index} is blank: leave it out")
        probabilities = log_probabilities([self], joined).exp()
        labels = [self.label_names[number] for number in probabilities.argmax(1)]
        return Answers(labels, probabilities.float().numpy())

    @property
    def label_names(self) -> list[str]:
        """The classes, in the order of their numbers."""
        return self.saved["data"]["label_names"]

    @property
    def file_labels(self) -> list[str]:
        """The classes as the training files spell them; missing from older checkpoints."""
        return self.saved["data"].get("labels", self.label_names)

    @property
    def text_columns(self) -> list[str]:
        """The columns of the training files that have the text; missing from older checkpoints."""
        return self.saved["data"].get("text_columns", [])

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens that end every sequence."""
        return encode_prompt(self.saved["settings"]["prompt"], self.model.config.block_size)

    @property
    def keep(self) -> str:
        """Which tokens of a long text are read, the last or the first; missing from older checkpoints."""
        return self.saved["settings"].get("keep", "last")

    def join_columns(self, parts: Sequence[str]) -> str:
        """Join the parts of one text, one for each of text_columns, as training did."""
        columns = self.text_columns
        if len(columns) > 1 and len(parts) != len(columns):
            example = " ".join(f'"{name.upper()}"' for name in columns)
            raise UserError(
                f"{self.path} was trained on {len(columns)} columns, {', '.join(columns)}, and this text has "
                f"{len(parts)}: give one part for each, in this order, as in --text {example}"
            )
        if len(columns) <= 1 and len(parts) != 1:
            raise UserError(f'{self.path} reads one text, not {len(parts)}: quote it, as in --text "A lovely film."')
        return row_text(parts)

    def tokenize(self, texts: list[str]) -> Split:
        """Return texts as a split, with a leading space where all training texts had it: it changes the first token."""
        space = " " if self.saved["data"]["leading_space"] else ""
        texts = [text if text.startswith(" ") else space + text for text in texts]
        encode, tokens, offsets = load_tokenizer().encode_ordinary, array("H"), array("q", [0])
        for text in texts:  # on two cores twice as fast, for short texts, as encode_ordinary_batch
            tokens.extend(encode(text))
            offsets.append(len(tokens))
        numbers = np.array(tokens, np.uint16), np.array(offsets, np.int64)
        return Split("text", *numbers, labels=None, id_lines=np.zeros(0, np.uint8))

    def as_read(self, split: Split) -> Split:
        """Return a split with the prompt and the truncation of training."""
        return replace(split, prompt=self.prompt, keep=self.keep)

    @property
    def tokens_read(self) -> int:
        """How many tokens of a text are read: block_size without the prompt."""
        return self.model.config.block_size - len(self.prompt)

    def logits(self, split: Split, on_examples: Callable[[int], Any] = lambda count: None) -> Tensor:
        """Compute the logits of a split, read as in training: float64 (examples, K) on the CPU."""
        return predict(self.model, Texts(self.as_read(split), self.model), self.dtype, on_examples).double()

    def count_longer(self, split: Split) -> int:
        """Return how many texts have more tokens, with the prompt of training, than the model reads."""
        return count_longer(self.as_read(split), self.model.config.block_size)


def load_all(paths: list[str], device: str = "auto", dtype: str = "auto") -> tuple[list[Classifier], str]:
    """Load classifiers that answer together; also return two lines that say where they compute, and why."""
    classifiers = [Classifier.load(path, device, dtype) for path in paths]
    for classifier in classifiers:
        if classifier.label_names != classifiers[0].label_names:
            raise UserError(f"{classifier.path} has other classes than {paths[0]}: they cannot be an ensemble")
        if len(columns := classifier.text_columns) > 1 and columns != classifiers[0].text_columns:
            names = " + ".join(columns)
            raise UserError(f"{classifier.path} was trained on {names}, not as {paths[0]}: they cannot be an ensemble")
    chosen, device_reason = choose_device(device)
    number_format, dtype_reason = choose_dtype(dtype, chosen)
    name = str(number_format).removeprefix("torch.")
    return classifiers, f"device {chosen} ({device_reason})\ndtype {name} ({dtype_reason})"


# -----------------------------------------------------------------------------
# answers together


def predict_all(classifiers: list[Classifier], split: Split) -> Tensor:
    """Compute the logits of one model, or the logarithm of the mean probabilities of several: (examples, K)."""
    with progress(len(classifiers) * len(split), " texts") as bar:
        return average([classifier.logits(split, bar.update) for classifier in classifiers])


def log_probabilities(classifiers: list[Classifier], texts: list[str]) -> Tensor:
    """Compute the log-probabilities of any number of texts: float64 (texts, K), NaN for a blank text."""
    found = torch.full((len(texts), len(classifiers[0].label_names)), torch.nan, dtype=torch.float64)
    for chunk in answer_texts(classifiers, texts):
        found[chunk.rows] = chunk.log_probabilities
    return found


def answer_texts(classifiers: list[Classifier], texts: list[str]) -> Iterator[Chunk]:
    """Yield the answers to any number of texts in chunks, leaving out blank texts."""
    rows = np.flatnonzero([bool(text.strip()) for text in texts])
    return _in_chunks(classifiers, rows, lambda classifier, some: classifier.tokenize([texts[row] for row in some]))


def answer_split(classifiers: list[Classifier], split: Split) -> Iterator[Chunk]:
    """Yield the answers to a prepared split in chunks."""

    def part(_: Classifier, chosen: np.ndarray) -> Split:
        return replace(split, offsets=split.offsets[chosen[0] : chosen[-1] + 2], labels=None)

    return _in_chunks(classifiers, np.arange(len(split)), part)


def _in_chunks(
    classifiers: list[Classifier], rows: np.ndarray, split_of: Callable[[Classifier, np.ndarray], Split]
) -> Iterator[Chunk]:
    at_once = max(1, min(AT_ONCE, CELLS // len(classifiers[0].label_names)))
    with progress(len(classifiers) * len(rows), " texts") as bar:
        for start in range(0, len(rows), at_once):
            chosen = rows[start : start + at_once]
            pairs = [(classifier, split_of(classifier, chosen)) for classifier in classifiers]
            found = average([classifier.logits(split, bar.update) for classifier, split in pairs]).log_softmax(-1)
            yield Chunk(chosen, found, np.array([classifier.count_longer(split) for classifier, split in pairs]))


def progress(total: int, unit: str) -> tqdm:
    """Return a progress bar for a terminal; of several processes, the first shows it."""
    is_hidden = None if own_rank() == "0" else True  # None: only where there is no terminal
    return tqdm(total=total, unit=unit, unit_scale=True, disable=is_hidden, leave=False, delay=1)


def example_text(split: Split, index: int) -> str:
    """Return the text of an example of a split, with the space that it may begin with."""
    return load_tokenizer().decode(split.tokens[split.offsets[index] : split.offsets[index + 1]].tolist())


def most_confident_mistakes(logits: Tensor, labels: np.ndarray) -> np.ndarray:
    """Return the indices of wrong predictions, the highest confidence first: (mistakes,) int64."""
    highest = logits.softmax(-1).max(-1)
    wrong = np.flatnonzero(highest.indices.numpy() != labels)
    return wrong[np.argsort(-highest.values.numpy()[wrong], kind="stable")]


# -----------------------------------------------------------------------------
# the prepared data


def prepared_folder(classifiers: list[Classifier], data_dir: str | None, splits: Sequence[str]) -> str:
    """Return data_dir, or else the folder that the first classifier was trained on, checked against all of them.

    Raises:
        UserError: it is missing, has other classes or, unless it is data_dir, may have training texts in the splits.
    """
    first = classifiers[0]
    folder = data_dir or first.saved["data"]["folder"]
    if data_dir is None and not Path(folder, "meta.json").is_file():
        raise UserError(
            f"{first.path} was trained on {folder}, and there is no such prepared folder here "
            f"({Path(folder).resolve()}): name it with --data_dir, or run `python {prepare_script(folder)}`"
        )
    meta = load_meta(folder)
    now = training_files(meta)
    for classifier in classifiers:
        data = classifier.saved["data"]
        known, found = (f"{each['task']!r} ({', '.join(each['label_names'])})" for each in (data, meta))
        if known != found:
            raise UserError(f"{classifier.path} was trained on {known}, but {folder} has {found}: change --data_dir")
        is_same_dev = now["dev"] == data["files"].get("dev")  # and so without training texts
        if now == data["files"] or (list(splits) == ["dev"] and is_same_dev):
            continue
        problem = f"{folder} is not the data that {classifier.path} was trained on: its {' or '.join(splits)} split may"
        problem += " contain training texts"
        if data_dir is None:
            raise UserError(f"{problem}. Prepare it as before, or evaluate anyway with --data_dir {folder}")
        tell(f"note: {problem}")
    return folder
