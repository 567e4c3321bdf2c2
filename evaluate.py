"""Evaluate a checkpoint on a prepared split, or classify text.

python evaluate.py --ckpt out/best.pt
python evaluate.py --ckpt out/best.pt --errors 20 --plots plots
python evaluate.py --ckpt out/best.pt --compare other/best.pt
python evaluate.py --ckpt out/seed-1/best.pt out/seed-2/best.pt   (an ensemble)
python evaluate.py --ckpt out/best.pt --split test --predictions sst-test.csv
python evaluate.py --ckpt out/best.pt --submission submission
python evaluate.py --ckpt out/best.pt --calibrate calibrated.pt
python evaluate.py --ckpt out/best.pt --text "A lovely film." --explain
python evaluate.py --ckpt out/best.pt --text - < reviews.txt   (a text a line)
python evaluate.py --ckpt out/best.pt --file new.csv --predictions answered.csv
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from classifier import checkpoint, errors
from classifier.answers import report
from classifier.answers.calibration import calibrate
from classifier.answers.explain import explain
from classifier.answers.models import Classifier, load_all, log_probabilities, predict_all, prepared_folder
from classifier.data.dataset import Split, load_split
from classifier.data.own import cells_of, choose_columns, class_numbers
from classifier.data.rows import counted, delimiter_named, listed, read_table
from classifier.device import DEVICES, DTYPES
from classifier.errors import UserError

SUBMISSION_SPLITS = ["dev", "test"]
# what a call does: one of the first four, or else a report on --split; and the options that go with it
GOES_WITH = {
    "info": [],
    "text": ["explain"],
    "file": [
        "predictions",
        "overwrite",
        "text_column",
        "label_column",
        "no_header",
        "delimiter",
        "quoting",
        "encoding",
    ],
    "calibrate": ["data_dir", "overwrite"],
    "split": ["data_dir", "overwrite", "predictions", "plots", "submission", "compare", "errors"],
}


def main() -> None:
    arguments = parse_arguments()
    if arguments.info:
        for path in arguments.ckpt:
            _, saved = checkpoint.load(path)
            print(json.dumps(saved["run"], indent=2, ensure_ascii=False, default=str))
        return
    classifiers, machine = load_all(arguments.ckpt, arguments.device, arguments.dtype)
    if arguments.text:
        classify_texts(classifiers, arguments.text, arguments.explain)
        return
    if arguments.file:
        check_outputs(arguments, classifiers)
        print(machine)
        classify_file(classifiers, arguments)
        return
    others, _ = load_all(arguments.compare, arguments.device, arguments.dtype)
    names = [arguments.split]
    if arguments.submission:
        names += [name for name in SUBMISSION_SPLITS if name != arguments.split]
    folder = prepared_folder(classifiers + others, arguments.data_dir, names)
    splits = {name: load_split(folder, name) for name in names}
    check_outputs(arguments, classifiers)
    for classifier in classifiers:
        progress = classifier.saved["progress"]
        print(f"checkpoint {classifier.path}, step {progress['step']} (epoch {progress['epoch']:.4g})")
    print(machine)
    print(f"{len(splits[arguments.split]):,} examples of {folder}, {arguments.split} split", flush=True)
    if arguments.calibrate:
        write_calibrated(classifiers[0], arguments.calibrate, folder, splits["dev"])
    else:
        report_on_split(classifiers, others, splits, arguments)


def check_outputs(arguments: Namespace, classifiers: list[Classifier]) -> None:
    """Make the folders of all files to be written; raise a UserError for a file that exists without --overwrite."""
    files = [path for path in (arguments.predictions, arguments.calibrate) if path]
    if arguments.plots:
        from classifier.answers.plots import OF_A_SPLIT  # here: importing matplotlib takes a second

        files += [arguments.plots / name for name in OF_A_SPLIT]
    if arguments.submission:
        files += submission_paths(arguments.submission, classifiers).values()
    for path in files:
        if path.exists() and not arguments.overwrite:
            raise UserError(f"{path} exists already: move it, or add --overwrite")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None


# -----------------------------------------------------------------------------
# a prepared split


def report_on_split(
    classifiers: list[Classifier], others: list[Classifier], splits: dict[str, Split], arguments: Namespace
) -> None:
    """Write the files that were asked for, and print how good the answers on --split are."""
    split, label_names = splits[arguments.split], classifiers[0].label_names
    if split.labels is None and (arguments.compare or arguments.errors or arguments.plots):
        raise UserError(f"the {split.name} split has no labels: --compare, --errors and --plots need them")
    answers = {name: predict_all(classifiers, each) for name, each in splits.items()}
    logits = answers[split.name]
    if arguments.submission:
        for name, path in submission_paths(arguments.submission, classifiers).items():
            report.write_submission(path, splits[name], answers[name])
            print(f"wrote {path}")
    if arguments.predictions:
        report.write_predictions(arguments.predictions, split, logits.softmax(-1).numpy(), label_names)
        print(f"wrote {arguments.predictions}")
    if arguments.plots:
        from classifier.answers.plots import OF_A_SPLIT

        for name, draw in OF_A_SPLIT.items():
            draw(arguments.plots / name, logits, split, label_names)
            print(f"wrote {arguments.plots / name}")
    report.print_report(logits, split.labels, label_names, split.name)
    if arguments.compare:
        report.print_comparison(logits, predict_all(others, split), split, " + ".join(arguments.compare))
    if arguments.errors:
        report.print_errors(arguments.errors, logits, split, label_names)


def submission_paths(folder: Path, classifiers: list[Classifier]) -> dict[str, Path]:
    """Return split -> the CS224N project's file name."""
    task = classifiers[0].saved["data"]["task"]
    return {split: folder / f"finetune-{task}-{split}-out.csv" for split in SUBMISSION_SPLITS}


def write_calibrated(classifier: Classifier, path: Path, folder: str, dev: Split) -> None:
    """Fit a temperature on the dev split, and write the checkpoint again with its head divided by the temperature."""
    found = calibrate(predict_all([classifier], dev), dev.labels)
    report.print_calibration(found)
    before, after = found["before"]["loss"], found["cross_validated"]["loss"]
    if after > before:
        raise UserError(
            f"the temperature makes the loss worse, cross-validated ({before:.4f} before, {after:.4f} after), so "
            f"{path} was not written: keep {classifier.path}, or calibrate on a larger dev split"
        )
    with torch.no_grad():
        classifier.model.head.weight /= found["temperature"]
        classifier.model.head.bias /= found["temperature"]
    run = classifier.saved["run"] | {"calibration": found | {"folder": folder}}
    checkpoint.save(path, classifier.model, **classifier.saved | {"run": run})
    errors.tell(f"wrote {path}: {classifier.path} with its head divided by the temperature; predictions stay the same")


# -----------------------------------------------------------------------------
# texts of your own


def classify_texts(classifiers: list[Classifier], words: list[str], is_explained: bool) -> None:
    """Print a table of answers to one text, a word for each text column, or to the lines of standard input ("-")."""
    first, answer = classifiers[0], partial(log_probabilities, classifiers)
    blank, unreadable = [], []
    at_once = 1 if sys.stdin.isatty() else 256  # a person who types waits for an answer to each line
    if words != ["-"]:
        texts = iter([first.join_columns(words)])
    elif len(first.text_columns) > 1:
        columns = ", ".join(first.text_columns)
        raise UserError(f"{first.path} was trained on the columns {columns}: --text - cannot give them, --file can")
    else:
        texts = decode_lines(sys.stdin.buffer, blank, unreadable)
    print(report.answer_header(first.label_names))
    while some := list(islice(texts, at_once)):
        for text, probabilities in zip(some, answer(some).exp().numpy(), strict=True):
            print(report.answer_row(text, probabilities, first.label_names), flush=True)
            if is_explained:
                report.print_explanation(explain(text, answer), first.label_names)
    if blank:
        print(f"note: left out {counted(len(blank), 'blank line')}: {listed('line', blank)}", file=sys.stderr)
    if unreadable:
        where = listed("line", unreadable)
        raise UserError(f"no answer for {where}: not valid UTF-8, so save the texts as UTF-8 (the others are answered)")


def decode_lines(lines: Iterable[bytes], blank: list[int], unreadable: list[int]) -> Iterator[str]:
    """Yield lines as text; append the numbers of those that are blank, or not UTF-8, to these lists."""
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8").strip("\r\n\ufeff")
        except UnicodeDecodeError:
            unreadable.append(number)
            continue
        if text.strip():
            yield text
        else:
            blank.append(number)


def classify_file(classifiers: list[Classifier], arguments: Namespace) -> None:
    """Write a file again with the answers as further columns; report on them where the file has labels."""
    first = classifiers[0]
    how = arguments.no_header, arguments.quoting, arguments.encoding, arguments.delimiter
    table = read_table(arguments.file, *how)
    named = {"text": arguments.text_column, "label": arguments.label_column}
    columns, reasons = choose_columns(table, named, ["text"], ["label"], first.text_columns)
    for line in (f"columns: {reasons}", *table.notes):
        errors.tell(line)
    trained_on = [name.strip().lower() for name in first.text_columns]
    if len(trained_on) > 1 and [name.strip().lower() for name in columns["text"]] != trained_on:
        errors.tell(f"note: the model was trained on {' + '.join(first.text_columns)}, in this order: other answers")
    found = report.answer_table(classifiers, table, columns["text"], arguments.predictions)
    is_answered = ~found[:, 0].isnan().numpy()
    print(f"wrote {arguments.predictions} (rows: {len(found):,}, without a text: {(~is_answered).sum():,})")
    labels = cells_of(table, columns["label"]) if "label" in columns else [""] * len(found)
    numbers = class_numbers(labels, first.label_names, first.file_labels)
    is_labelled = np.array([bool(label.strip()) for label in labels])
    if unknown := np.flatnonzero(is_answered & is_labelled & (numbers < 0)).tolist():
        rows = f"{len(unknown):,} of {len(found):,} rows, {table.where(unknown)}"
        errors.tell(f"note: not compared, since their labels are none of the classes: {rows}")
    is_compared = is_answered & (numbers >= 0)
    if is_compared.any():
        print(f"labels to compare with: {is_compared.sum():,} of {len(found):,} rows")
        report.print_report(found[is_compared], numbers[is_compared], first.label_names, arguments.file.name)
    else:
        report.print_report(found[is_answered], None, first.label_names, arguments.file.name)


# -----------------------------------------------------------------------------
# the command line


def parse_arguments() -> Namespace:
    parser = errors.argument_parser(__doc__)
    add, files = parser.add_argument, {"nargs": "+", "metavar": "FILE"}
    add("--ckpt", **files, default=["out/best.pt"], help="several answer as their mean (default: out/best.pt)")
    add("--data_dir", metavar="DIR", help="prepared folder (default: the one of training)")
    add("--split", default="dev", help="train, dev or test (default: %(default)s)")
    add("--compare", **files, default=[], help="test the difference to another checkpoint, or the mean of several")
    add("--errors", type=int, metavar="N", help="list the N most confident mistakes")
    add("--plots", metavar="DIR", type=Path, help="draw the confusion matrix, and accuracy by confidence")
    add("--predictions", metavar="FILE", type=Path, help="write each example's prediction as CSV; the output of --file")
    add("--submission", metavar="DIR", type=Path, help="write the CS224N prediction files of dev and test")
    add("--calibrate", metavar="FILE", type=Path, help="fit a temperature on dev; write a calibrated checkpoint")
    add("--overwrite", action="store_true", help="let output files be replaced")
    add("--file", metavar="FILE", type=Path, help="classify every row of a file, and write it as --predictions")
    column = {"metavar": "COLUMN", "default": []}
    add("--text_column", **column, nargs="+", help="of --file: the texts (default: found by name)")
    add("--label_column", **column, nargs=1, help="of --file: labels to compare with (default: found by name)")
    add("--no_header", action="store_true", help="of --file: the first line is a row; the columns are 1, 2, 3 ...")
    add(
        "--delimiter",
        metavar="CHARACTER",
        type=delimiter_named,
        help="of --file: comma, tab, semicolon, pipe (default: detected)",
    )
    add("--quoting", choices=("csv", "none"), help="of --file: CSV's quotes, or none (default: detected)")
    add("--encoding", metavar="NAME", help="of --file, if it is not UTF-8, as in cp1252")
    add("--text", nargs="+", help="classify one text, a part for each text column; - reads a text a line from stdin")
    add("--explain", action="store_true", help="with --text: what each word contributes to the prediction")
    add("--info", action="store_true", help="print the run's settings, versions, data and seed as JSON")
    add("--device", choices=DEVICES, default="auto", help="default: %(default)s")
    add("--dtype", choices=("auto", *DTYPES), default="auto", help="default: %(default)s")
    arguments = parser.parse_args()
    refuse_what_is_ignored(arguments, parser)
    if arguments.errors is not None and arguments.errors < 1:
        raise UserError(f"--errors must be 1 or more, not {arguments.errors}")
    if arguments.calibrate and arguments.ckpt[1:]:
        raise UserError("--calibrate takes one --ckpt: run it for each")
    if arguments.file and not arguments.predictions:
        raise UserError("--file needs --predictions FILE, the file to write")
    outputs = {path.resolve() for path in (arguments.calibrate, arguments.predictions) if path}
    if outputs & {Path(path).resolve() for path in (*arguments.ckpt, arguments.file) if path}:
        raise UserError("--predictions and --calibrate must name another file than the one that is read")
    text = "".join(arguments.text or [])
    if arguments.text and (not text.strip() or text != text.encode(errors="ignore").decode()):
        raise UserError('the text is blank or not valid UTF-8: give another, as in --text "A lovely film."')
    return arguments


def refuse_what_is_ignored(arguments: Namespace, parser: ArgumentParser) -> None:
    """Raise a UserError where an option would be ignored."""
    task = next(name for name in GOES_WITH if getattr(arguments, name))
    for name, value in vars(arguments).items():
        if value == parser.get_default(name) or name in ("ckpt", "device", "dtype", task, *GOES_WITH[task]):
            continue
        if task != "split":
            raise UserError(f"--{name} cannot be combined with --{task}: run it on its own")
        needed = next(other for other in GOES_WITH if name in GOES_WITH[other])
        raise UserError(f"--{name} needs --{needed}")


if __name__ == "__main__":
    errors.run(main)
