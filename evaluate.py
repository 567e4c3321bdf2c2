"""Evaluate a checkpoint on a prepared split, or classify text.

python evaluate.py --ckpt out/best.pt
python evaluate.py --ckpt out/best.pt --errors 20 --plots plots
python evaluate.py --ckpt out/best.pt --calibrate
python evaluate.py --ckpt out/best.pt --compare other/best.pt
python evaluate.py --ckpt out/seed-1/best.pt out/seed-2/best.pt   (an ensemble)
python evaluate.py --ckpt out/best.pt --split test --predictions sst-test.csv
python evaluate.py --ckpt out/best.pt --submission submission
python evaluate.py --ckpt out/best.pt --text "A lovely film." --explain
python evaluate.py --ckpt out/best.pt --text - < reviews.txt   (a text a line)
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from classifier import errors
from classifier.answers.calibration import calibrate, temperature_path, write_temperature
from classifier.answers.explain import explain
from classifier.answers.models import (
    MAX_CHARACTERS,
    Loaded,
    check_same_classes,
    check_same_data,
    check_same_task,
    load,
    log_probabilities,
    predict_all,
)
from classifier.answers.report import (
    print_calibration,
    print_comparison,
    print_errors,
    print_explanation,
    print_report,
    write_predictions,
    write_submission,
)
from classifier.data.dataset import load_meta, load_split, training_files
from classifier.device import DEVICES, DTYPES, choose_device, choose_dtype, tune
from classifier.errors import UserError
from classifier.files import refuse_irregular

SUBMISSION_SPLITS = ("dev", "test")


def main() -> None:
    arguments = parse_arguments()
    models, others = ([load(path) for path in paths] for paths in (arguments.ckpt, arguments.compare))
    if arguments.info:
        for loaded in models:
            print(json.dumps(loaded.saved["run"], indent=2, ensure_ascii=False, default=str))
        return
    check_outputs(arguments, models[0].saved["data"]["task"])
    device, device_reason = choose_device(arguments.device)
    dtype, dtype_reason = choose_dtype(arguments.dtype, device)
    tune(device, dtype)
    check_same_classes(models + others)
    for loaded in models + others:
        loaded.model.to(device)
    if arguments.text is not None:
        classify_lines(models, read_lines(arguments.text), dtype, arguments.explain)
        return

    folder = arguments.data_dir or models[0].saved["data"]["folder"]
    meta = load_meta(folder)  # once: what is checked here is what is read below
    asked = SUBMISSION_SPLITS if arguments.submission else (arguments.split,)
    for loaded in models + others:
        check_same_task(loaded, folder, meta)
        check_same_data(loaded, folder, meta, asked, arguments.data_dir is not None)
    for loaded in models:
        progress = loaded.saved["progress"]
        print(f"checkpoint {loaded.path}, step {progress['step']} (epoch {progress['epoch']:.4g})")
        if loaded.calibration:
            print(f"  temperature {loaded.temperature:.3f}, fitted on {loaded.calibration['folder']}'s dev split")
    print(f"device {device} ({device_reason})\ndtype {str(dtype).removeprefix('torch.')} ({dtype_reason})")
    if arguments.calibrate:
        calibrate_all(models, folder, meta, dtype)
        return
    if arguments.submission:
        write_course_files(models, folder, meta, arguments.submission, dtype)
    report(models, others, folder, meta, arguments, dtype)


# -----------------------------------------------------------------------------
# a report on a prepared split


def report(
    models: list[Loaded],
    others: list[Loaded],
    folder: str,
    meta: dict[str, Any],
    arguments: argparse.Namespace,
    dtype: torch.dtype,
) -> None:
    """Print how good the models' common answers on a split are, and write what is asked for."""
    split = load_split(folder, arguments.split, meta)
    if split.labels is None and (arguments.compare or arguments.errors or arguments.plots):
        raise UserError(f"{folder}'s {split.name} split has no labels: --compare, --errors and --plots need them")
    print(f"{len(split):,} examples of {folder}, {split.name} split", flush=True)
    logits, label_names = predict_all(models, split, dtype), models[0].saved["data"]["label_names"]
    if arguments.predictions:
        write_predictions(arguments.predictions, split, logits.softmax(-1).numpy())
        print(f"wrote {arguments.predictions}")
    if arguments.plots:
        from classifier.answers.plots import OF_A_SPLIT

        arguments.plots.mkdir(parents=True, exist_ok=True)
        for name, draw in OF_A_SPLIT.items():
            draw(arguments.plots / name, logits, split, label_names)
            print(f"wrote {arguments.plots / name}")
    print_report(logits, split, label_names)
    if arguments.compare:
        print_comparison(logits, predict_all(others, split, dtype), split, " + ".join(arguments.compare))
    if arguments.errors:
        print_errors(arguments.errors, logits, split, label_names)


def calibrate_all(models: list[Loaded], folder: str, meta: dict[str, Any], dtype: torch.dtype) -> None:
    """Fit a temperature to each model on the dev set, say what it changes, and write it beside the checkpoint."""
    dev = load_split(folder, "dev", meta)
    print(f"{len(dev):,} examples of {folder}, dev split", flush=True)
    for loaded in models:
        found = calibrate(predict_all([loaded._replace(calibration={})], dev, dtype), dev.labels)
        facts = {"checkpoint_sha256": loaded.sha256, "folder": folder, "files": training_files(meta)["dev"]}
        print_calibration(found)
        print(f"wrote {write_temperature(loaded.path, found | facts)}; no prediction changes")


# -----------------------------------------------------------------------------
# the course's files


def write_course_files(models: list[Loaded], folder: str, meta: dict[str, Any], out: Path, dtype: torch.dtype) -> None:
    """Write the CS224N prediction files of both splits, which must be there."""
    splits = [load_split(folder, name, meta) for name in SUBMISSION_SPLITS]
    out.mkdir(parents=True, exist_ok=True)
    for path, split in zip(submission_paths(out, models[0].saved["data"]["task"]), splits, strict=True):
        write_submission(path, split, predict_all(models, split, dtype))
        print(f"wrote {path}")


def submission_paths(folder: Path, task: str) -> list[Path]:
    """Return the course's file names, for dev and for test."""
    return [folder / f"finetune-{task}-{split}-out.csv" for split in SUBMISSION_SPLITS]


# -----------------------------------------------------------------------------
# text of one's own


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


def classify_lines(models: list[Loaded], lines: Iterator[str], dtype: torch.dtype, is_explained: bool = False) -> None:
    """Print a table: each line's predicted class, the probability of every class, and the line, explained if asked."""
    names = models[0].saved["data"]["label_names"]
    widths = [max(len(name), 5) + 2 for name in names]
    first = max(len("prediction"), *map(len, names))
    first_line = next(lines, None)
    if first_line is None:
        raise UserError("there is no text to classify")
    lines = chain([first_line], lines)
    header = "".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    print("prediction".ljust(first) + header + "  text")
    answers = partial(log_probabilities, models, dtype)
    # a person who types wants an answer after each line, a file wants speed
    while chunk := list(islice(lines, 1 if sys.stdin.isatty() or is_explained else 256)):
        explanation = explain(chunk[0], answers) if is_explained else None
        found = explanation.log_probabilities[None] if explanation else answers(chunk)
        for line, row in zip(chunk, found.exp(), strict=True):
            probabilities = "".join(f"{p:>{width}.3f}" for p, width in zip(row.tolist(), widths, strict=True))
            print(names[row.argmax()].ljust(first) + probabilities + "  " + errors.printable(line), flush=True)
        if explanation:
            print_explanation(explanation, names)


# -----------------------------------------------------------------------------
# the command line


def parse_arguments() -> argparse.Namespace:
    parser = errors.argument_parser(__doc__)
    add = parser.add_argument
    add(
        "--ckpt",
        nargs="+",
        default=["out/best.pt"],
        metavar="FILE",
        help="checkpoint of finetune.py; of several the probabilities are averaged (default: out/best.pt)",
    )
    add("--data_dir", metavar="DIR", help="prepared folder (default: the one it was trained on)")
    add("--split", default="dev", help="train, dev or test (default: %(default)s)")
    add(
        "--compare",
        nargs="+",
        default=[],
        metavar="FILE",
        help="test the difference to another (of several: to their mean)",
    )
    add("--errors", type=int, default=0, metavar="N", help="list the N mistakes that it was surest of")
    add("--plots", metavar="DIR", type=Path, help="draw confusion matrix, reliability, accuracy by length")
    add("--predictions", metavar="FILE", type=Path, help="write id, label, prediction, probabilities as CSV")
    add("--submission", metavar="DIR", type=Path, help="write the CS224N prediction files of dev and test")
    add("--calibrate", action="store_true", help="fit a temperature on dev; it is used wherever the checkpoint is")
    add("--overwrite", action="store_true", help="let --predictions, --plots, --submission, --calibrate replace files")
    add("--text", help="classify this text, each line that is not blank; - reads standard input")
    add("--explain", action="store_true", help="with --text: what each word contributes to the prediction")
    add("--info", action="store_true", help="print the run's settings, versions, data and seed as JSON")
    add("--device", choices=DEVICES, default="auto", help="default: %(default)s")
    add("--dtype", choices=("auto", *DTYPES), default="auto", help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.explain and arguments.text is None:
        raise UserError("--explain needs a text: --text")
    if arguments.errors < 0:
        raise UserError(f"--errors must be 0 or more, not {arguments.errors}")
    if sorted(map(os.path.realpath, arguments.compare)) == sorted(map(os.path.realpath, arguments.ckpt)):
        raise UserError("--compare names what --ckpt names: there is no difference to test")
    return arguments


def check_outputs(arguments: argparse.Namespace, task: str) -> None:
    """Raise a UserError, before any work is done, where a file could not or should not be written."""
    for_a_split = ("predictions", "plots", "submission", "compare", "errors", "calibrate")
    if arguments.text is not None and (asked := [f"--{name}" for name in for_a_split if getattr(arguments, name)]):
        raise UserError(f"{', '.join(asked)}: for a prepared split only; with --text redirect the output instead")
    if arguments.calibrate and (arguments.split != "dev" or any(getattr(arguments, name) for name in for_a_split[:-1])):
        raise UserError("--calibrate fits on the dev split and does nothing else: call again for what else you want")
    files = [temperature_path(ckpt) for ckpt in dict.fromkeys(arguments.ckpt)] if arguments.calibrate else []
    if path := arguments.predictions:
        if not path.name or not path.parent.is_dir():
            raise UserError(f"--predictions {path}: its folder does not exist")
        files.append(path)
    if arguments.plots:
        from classifier.answers.plots import OF_A_SPLIT  # here, since importing matplotlib takes a second

        files += [arguments.plots / name for name in OF_A_SPLIT]
    if arguments.submission:
        files += submission_paths(arguments.submission, task)
    if len({path.resolve() for path in files}) < len(files):
        raise UserError(f"--predictions {arguments.predictions} is a file that --plots or --submission writes, too")
    for path in files:
        if path.parent.exists() and not path.parent.is_dir():
            raise UserError(f"{path.parent} is no folder")
        refuse_irregular(path)
        is_checkpoint = path.exists() and any(path.samefile(ckpt) for ckpt in arguments.ckpt + arguments.compare)
        if is_checkpoint or (path.exists() and not arguments.overwrite):
            raise UserError(
                f"{path} exists already: move it, name another, or add --overwrite (never a checkpoint itself)"
            )


if __name__ == "__main__":
    errors.run(main)
