"""Evaluate a checkpoint on a prepared split, or classify text.

python evaluate.py --ckpt out/best.pt
python evaluate.py --ckpt out/best.pt --split test --predictions sst-test.csv
python evaluate.py --ckpt out/best.pt --text "A lovely film."
python evaluate.py --ckpt out/best.pt --text - < reviews.txt     (one a line; blank lines are passed over)
"""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import checkpoint
import device
import errors
from dataset import Split, collate, cut_into_micro_batches, load_meta, load_split
from errors import UserError
from files import refuse_irregular, written_whole
from model import GPT
from tokenizer import VOCAB_SIZE, load_tokenizer

MAX_CHARACTERS = 131072  # of a text, as in the TSV files
TOKEN_BUDGET = 16384  # tokens classified at once: a matter of memory and speed, not of results


def main() -> None:
    arguments = parse_arguments()
    check_predictions_path(arguments)
    model, saved = checkpoint.load(arguments.ckpt)
    if model.config.vocab_size < VOCAB_SIZE:
        raise UserError(f"{arguments.ckpt} has {model.config.vocab_size:,} tokens, fewer than GPT-2's {VOCAB_SIZE:,}")
    if arguments.info:
        print(json.dumps(saved["run"], indent=2, ensure_ascii=False))
        return
    where, why_device = device.choose_device(arguments.device)
    dtype, why_dtype = device.choose_dtype(arguments.dtype, where)
    device.tune(where)
    model.to(where)
    if arguments.text is not None:
        classify_lines(model, saved["data"], read_lines(arguments.text), where, dtype)
        return
    folder = arguments.data_dir or saved["data"]["folder"]
    check_same_task(arguments.ckpt, saved["data"], folder)
    split = load_split(folder, arguments.split)
    progress, dtype_name = saved["progress"], str(dtype).removeprefix("torch.")
    print(f"checkpoint {arguments.ckpt}, step {progress['step']} (epoch {progress['epoch']})")
    print(f"device {where} ({why_device})\ndtype {dtype_name} ({why_dtype})")
    print(f"{len(split):,} examples of {folder}, {split.name} split")
    logits = predict(model, split, where, dtype)
    if arguments.predictions:
        write_predictions(arguments.predictions, split, logits.softmax(-1).numpy())
        print(f"wrote {arguments.predictions}")
    print_report(logits, split, saved["data"]["label_names"])


def parse_arguments() -> argparse.Namespace:
    parser = errors.argument_parser(__doc__)
    parser.add_argument("--ckpt", default="out/best.pt", help="checkpoint of finetune.py (default: %(default)s)")
    parser.add_argument("--data_dir", metavar="DIR", help="prepared folder (default: the one it was trained on)")
    parser.add_argument("--info", action="store_true", help="print the run's settings, versions, data and seed as JSON")
    parser.add_argument("--split", default="dev", help="train, dev or test (default: %(default)s)")
    parser.add_argument(
        "--predictions", metavar="FILE", type=Path, help="write id, label, prediction, probabilities as CSV"
    )
    parser.add_argument("--overwrite", action="store_true", help="let --predictions replace a file")
    parser.add_argument("--text", help="classify this text line by line; - reads standard input")
    parser.add_argument("--device", choices=device.DEVICES, default="auto", help="default: %(default)s")
    parser.add_argument("--dtype", choices=("auto", *device.DTYPES), default="auto", help="default: %(default)s")
    return parser.parse_args()


def check_predictions_path(arguments: argparse.Namespace) -> None:
    """Raise a UserError, before any work is done, where --predictions could not or should not be written."""
    path = arguments.predictions
    if path is None:
        return
    if arguments.text is not None:
        raise UserError("--predictions is for a prepared split; with --text redirect the output instead")
    if not path.name or not path.parent.is_dir():
        raise UserError(f"--predictions {path}: its folder does not exist")
    refuse_irregular(path)
    if path.exists() and (not arguments.overwrite or path.samefile(arguments.ckpt)):
        raise UserError(f"{path} exists already: name another file, or add --overwrite (never the checkpoint itself)")


def check_same_task(ckpt: str, trained_on: dict[str, Any], folder: str) -> None:
    """Raise a UserError where a prepared folder's classes are not those that the checkpoint was trained on."""
    meta = load_meta(folder)
    if (meta["task"], meta["label_names"]) != (trained_on["task"], trained_on["label_names"]):
        raise UserError(
            f"{ckpt} was trained on {trained_on['task']!r} ({', '.join(trained_on['label_names'])}), "
            f"but {folder} holds {meta['task']!r} ({', '.join(meta['label_names'])})"
        )


def predict(
    model: GPT,
    split: Split,
    where: torch.device,
    dtype: torch.dtype,
    on_examples: Callable[[int], Any] = lambda count: None,
) -> Tensor:
    """Return the model's logits for a whole split, in its order: float32 (examples, num_classes) on the CPU.

    on_examples is called with the number of examples of each micro-batch that is done.

    Raises:
        UserError: some are not finite.
    """
    return over_split(model, model, split, where, dtype, on_examples)


@torch.no_grad()
def over_split(
    compute: Callable[[Tensor, Tensor], Tensor],
    model: GPT,
    split: Split,
    where: torch.device,
    dtype: torch.dtype,
    on_examples: Callable[[int], Any] = lambda count: None,
) -> Tensor:
    """Return what compute, the model or its features, gives for a whole split: float32 (examples, K) on the CPU."""
    model.eval()
    block_size = model.config.block_size
    micro_batches = cut_into_micro_batches(
        np.arange(len(split)), split.lengths(block_size), TOKEN_BUDGET, model.micro_batch_cost()
    )
    parts = []
    with device.autocast(where, dtype):  # around all micro-batches, so that weights are cast once
        for indices in micro_batches:
            tokens, lengths = (device.send(array, where) for array in collate(split, indices, block_size))
            parts.append(compute(tokens, lengths))
            on_examples(len(indices))
    outputs = torch.cat(parts).cpu()  # the only wait for the device
    if not outputs.isfinite().all():
        raise UserError("the model's outputs are not finite numbers: its weights are beyond use")
    return torch.empty_like(outputs).index_copy_(0, torch.from_numpy(np.concatenate(micro_batches)), outputs)


def loss_and_accuracy(logits: Tensor, labels: np.ndarray) -> tuple[float, float]:
    """Return the mean cross-entropy in nats and the share of right predictions."""
    targets = torch.from_numpy(labels.astype(np.int64))
    return F.cross_entropy(logits, targets).item(), (logits.argmax(-1) == targets).double().mean().item()


def print_report(logits: Tensor, split: Split, label_names: list[str]) -> None:
    """Print loss, macro-F1, a table of the classes, the confusion matrix and, last, the accuracy."""
    predictions = logits.argmax(-1).numpy()
    if split.labels is None:
        counts = np.bincount(predictions, minlength=len(label_names))
        print("\nno labels to compare with; predicted:")
        print(
            "\n".join(
                f"  {number} {name:<16}{count:>7,}"
                for number, (name, count) in enumerate(zip(label_names, counts, strict=True))
            )
        )
        return
    from sklearn.metrics import (
        classification_report,
        confusion_matrix,
        f1_score,
    )  # here, since importing it takes a second

    loss, accuracy = loss_and_accuracy(logits, split.labels)
    classes, labels = range(len(label_names)), np.asarray(split.labels)
    print(f"\nloss {loss:.4f}")
    print(f"macro-F1 {f1_score(labels, predictions, labels=classes, average='macro', zero_division=0):.4f}\n")
    table = classification_report(
        labels, predictions, labels=classes, target_names=label_names, digits=3, zero_division=0
    )
    print(table)
    print("confusion matrix (a row for each true class, a column for each predicted one)")
    width = max(map(len, label_names)) + 4
    print(" " * width + "".join(f"{number:>7}" for number in classes))
    for number, row in enumerate(confusion_matrix(labels, predictions, labels=classes)):
        print(f"{number} {label_names[number]}".ljust(width) + "".join(f"{count:>7,}" for count in row))
    print(f"\n{split.name} accuracy: {accuracy:.3f}")


def write_predictions(path: Path, split: Split, probabilities: np.ndarray) -> None:
    """Write a CSV row for every example, in place only when whole; the label is empty where there is none."""
    labels = [""] * len(split) if split.labels is None else split.labels.tolist()
    with written_whole(path, "w") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["id", "label", "prediction", *(f"p{c}" for c in range(probabilities.shape[1]))])
        for id, label, row in zip(split.ids(), labels, probabilities, strict=True):
            writer.writerow([id, label, row.argmax(), *(f"{p:.6f}" for p in row)])


def read_lines(text: str) -> Iterator[str]:
    """Yield the lines to classify, without blank ones: those of the text, or of standard input where it is "-"."""
    lines = sys.stdin.buffer if text == "-" else text.encode("utf-8", "surrogateescape").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            decoded = line.decode("utf-8").strip("\r\n\ufeff")
        except UnicodeDecodeError:
            raise UserError(f"line {number} of the text: not valid UTF-8") from None
        if len(decoded) > MAX_CHARACTERS:
            raise UserError(f"line {number} of the text: over {MAX_CHARACTERS:,} characters")
        if decoded.strip():
            yield decoded


def classify_lines(
    model: GPT, data: dict[str, Any], lines: Iterator[str], where: torch.device, dtype: torch.dtype
) -> None:
    """Print a table: each line's predicted class, the probability of every class, and the line."""
    encoding, names = load_tokenizer(), data["label_names"]
    widths = [max(len(name), 5) + 2 for name in names]
    first = max(len("prediction"), *map(len, names))
    first_line = next(lines, None)
    if first_line is None:
        raise UserError("there is no text to classify")
    lines = chain([first_line], lines)
    header = "".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    print("prediction".ljust(first) + header + "  text")
    # a person who types wants an answer after each line, a file wants speed
    while chunk := list(islice(lines, 1 if sys.stdin.isatty() else 256)):
        # a leading space changes the first token: give it to texts where all training sentences have it
        texts = [" " + line if data["leading_space"] and not line.startswith(" ") else line for line in chunk]
        sequences = [np.array(tokens, dtype=np.uint16) for tokens in encoding.encode_ordinary_batch(texts)]
        offsets = np.cumsum([0, *map(len, sequences)])
        split = Split("text", Path(), np.concatenate(sequences), offsets, None)
        for line, row in zip(chunk, predict(model, split, where, dtype).softmax(-1), strict=True):
            probabilities = "".join(f"{p:>{width}.3f}" for p, width in zip(row.tolist(), widths, strict=True))
            print(names[row.argmax()].ljust(first) + probabilities + "  " + errors.printable(line), flush=True)


if __name__ == "__main__":
    errors.run(main)
