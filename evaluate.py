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
python evaluate.py --ckpt out/best.pt --file parts/ --predictions answered/
"""

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path

import torch

from classifier import checkpoint, distributed, errors
from classifier.answers import parts, report
from classifier.answers.calibration import calibrate
from classifier.answers.explain import explain
from classifier.answers.models import (
    Classifier,
    answer_split,
    answer_texts,
    labels_of,
    load_all,
    log_probabilities,
    predict_all,
    prepared_folder,
)
from classifier.answers.tally import Ranked, Tally, classes_to_keep, columns_of_answers, rank, tally_of
from classifier.data.dataset import Split, load_split
from classifier.data.rows import Table, counted, delimiter_named, listed, write_table
from classifier.device import DEVICES, DTYPES
from classifier.errors import UserError
from classifier.files import written_whole

SUBMISSION_SPLITS = ["dev", "test"]
# what a call does: one of the first four, or else a report on --split; and the options that go with it
GOES_WITH = {
    "info": [],
    "text": ["explain", "min_confidence"],
    "file": ["predictions", "overwrite", *parts.OPTIONS],
    "calibrate": ["data_dir", "overwrite"],
    "split": [
        "predictions",
        "overwrite",
        "top",
        "min_confidence",
        "data_dir",
        "plots",
        "submission",
        "compare",
        "errors",
    ],
}


def main() -> None:
    arguments = parse_arguments()
    if arguments.info:
        for path in arguments.ckpt:
            _, saved = checkpoint.load(path)
            print(json.dumps(saved["run"], indent=2, ensure_ascii=False, default=str))
        return
    if arguments.file:
        answer_files(arguments)
        return
    classifiers, machine = load_all(arguments.ckpt, arguments.device, arguments.dtype)
    if arguments.text:
        classify_texts(classifiers, arguments)
        return
    others, _ = load_all(arguments.compare, arguments.device, arguments.dtype)
    names = dict.fromkeys([arguments.split, *(SUBMISSION_SPLITS if arguments.submission else [])])
    folder = prepared_folder(classifiers + others, arguments.data_dir, list(names))
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
        files += [submission_path(arguments.submission, classifiers, split) for split in SUBMISSION_SPLITS]
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
    split, names, least = splits[arguments.split], classifiers[0].label_names, arguments.min_confidence
    if arguments.compare or arguments.errors or arguments.plots:
        labels_of(split)  # refuses a split without labels before it is answered

    def ranked_answers(models: list[Classifier], split: Split) -> tuple[Ranked, Tally]:
        top = classes_to_keep(names, arguments.top)
        return rank(answer_split(models, split), len(split), split.labels, top, least)

    answers = {name: ranked_answers(classifiers, each) for name, each in splits.items()}
    ranked, tally = answers[split.name]
    if arguments.submission:
        for name in SUBMISSION_SPLITS:
            path = submission_path(arguments.submission, classifiers, name)
            write_submission(path, splits[name], answers[name][0])
    if arguments.predictions:
        columns = columns_of_answers(ranked, names, arguments.top, least)
        if f"p_{names[0]}" in columns:
            del columns["confidence"]
        labels = [""] * len(split) if split.labels is None else [names[label] for label in split.labels]
        examples = Table(arguments.predictions, ["id", "label"], [split.ids(), labels], [])
        write_table(arguments.predictions, ".csv", examples, columns)
        print(f"wrote {arguments.predictions}")
    if arguments.plots:
        from classifier.answers.plots import OF_A_SPLIT

        for name, draw in OF_A_SPLIT.items():
            draw(arguments.plots / name, tally, names, split.name)
            print(f"wrote {arguments.plots / name}")
    report.print_report(tally, names, split.name, least)
    for note in report.notes_on_longer(classifiers, tally):
        errors.tell(note)
    if arguments.compare:
        report.print_comparison(ranked, ranked_answers(others, split)[0], split, " + ".join(arguments.compare))
    if arguments.errors:
        report.print_errors(arguments.errors, ranked, split, names)


def submission_path(folder: Path, classifiers: list[Classifier], split: str) -> Path:
    return folder / f"finetune-{classifiers[0].saved['data']['task']}-{split}-out.csv"


def write_submission(path: Path, split: Split, ranked: Ranked) -> None:
    """Write predictions as the CS224N project's script does, with the blanks at the ends of its lines."""
    with written_whole(path, "w") as f:
        f.write("id \t Predicted_Sentiment \n")
        f.writelines(f"{id}, {label} \n" for id, label in zip(split.ids(), ranked.classes[:, 0], strict=True))
    print(f"wrote {path}")


def write_calibrated(classifier: Classifier, path: Path, folder: str, dev: Split) -> None:
    """Fit a temperature on the dev split, and write the checkpoint again with its head divided by the temperature."""
    found = calibrate(predict_all([classifier], dev), labels_of(dev))
    report.print_calibration(found)
    before, after = found["before"]["loss"], found["cross_validated"]["loss"]
    if after > before:
        raise UserError(
            f"the temperature makes the loss worse, cross-validated ({before:.4f} before, {after:.4f} after), so "
            f"{path} was not written: keep {classifier.path}, or calibrate on a larger dev split"
        )
    with torch.no_grad():
        for parameter in classifier.model.head.parameters():
            parameter.div_(found["temperature"])
    run = classifier.saved["run"] | {"calibration": found | {"folder": folder}}
    checkpoint.save(path, classifier.model, **classifier.saved | {"run": run})
    errors.tell(f"wrote {path}: {classifier.path} with its head divided by the temperature; predictions stay the same")


# -----------------------------------------------------------------------------
# texts of your own


def classify_texts(classifiers: list[Classifier], arguments: Namespace) -> None:
    """Print a table of answers to one text, a word for each text column, or to the lines of standard input ("-")."""
    first, names, words = classifiers[0], classifiers[0].label_names, arguments.text
    blank: list[int] = []
    unreadable: list[int] = []
    tally = Tally()
    at_once = 1 if sys.stdin.isatty() else 256  # a person who types waits for an answer to each line
    if words != ["-"]:
        texts = iter([first.join_columns(words)])
    elif len(first.text_columns) > 1:
        columns = ", ".join(first.text_columns)
        raise UserError(f"{first.path} was trained on the columns {columns}: --text - cannot give them, --file can")
    else:
        texts = decode_lines(sys.stdin.buffer, blank, unreadable)
    print(report.answer_header(names))
    while some := list(islice(texts, at_once)):
        for chunk in list(answer_texts(classifiers, some)):  # a list: its progress bar ends before lines are printed
            tally += tally_of(chunk)
            for row, probabilities in zip(chunk.rows, chunk.log_probabilities.exp().numpy(), strict=True):
                print(report.answer_row(some[row], probabilities, names, arguments.min_confidence), flush=True)
                if arguments.explain:
                    report.print_explanation(explain(some[row], partial(log_probabilities, classifiers)), names)
    for note in report.notes_on_longer(classifiers, tally):
        print(errors.wrapped(note), file=sys.stderr)
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


def answer_files(arguments: Namespace) -> None:
    """Answer a file, or this process's share of many: RANK of WORLD_SIZE processes, as torchrun starts them."""
    process, processes = (int(os.environ.get(name, number)) for name, number in (("RANK", 0), ("WORLD_SIZE", 1)))
    if not 0 <= process < processes:
        raise UserError(f"RANK is {process}: it must be at least 0 and below WORLD_SIZE, {processes}")
    files = parts.parts_of(arguments.file, arguments.predictions)
    if processes > 1 and not files:
        raise UserError("several processes share several files: pass them, or a folder, as --file, or use one process")
    if "LOCAL_RANK" in os.environ:  # torchrun sets it
        distributed.take_gpu(arguments.device, int(os.environ["LOCAL_RANK"]))
    classifiers, machine = load_all(arguments.ckpt, arguments.device, arguments.dtype)
    if process == 0:
        print(machine, flush=True)
    job = parts.Job(classifiers, arguments, cache(errors.tell))
    if files:
        parts.answer_parts(job, files, arguments.predictions, process, processes)
    else:
        check_outputs(arguments, classifiers)
        parts.answer_file(job, arguments.file[0], arguments.predictions)


# -----------------------------------------------------------------------------
# the command line


def parse_arguments() -> Namespace:
    parser = errors.argument_parser(__doc__)
    add = parser.add_argument
    add_files = partial(add, nargs="+", metavar="FILE")
    add_files("--ckpt", default=["out/best.pt"], help="several answer as their mean (default: out/best.pt)")
    add("--data_dir", metavar="DIR", help="prepared folder (default: the one of training)")
    add("--split", default="dev", help="train, dev or test (default: %(default)s)")
    add_files("--compare", default=[], help="test the difference to another checkpoint, or the mean of several")
    add("--errors", type=int, metavar="N", help="list the N most confident mistakes")
    add("--plots", metavar="DIR", type=Path, help="draw the confusion matrix, and accuracy by confidence")
    add("--predictions", metavar="FILE", type=Path, help="write each example's prediction as CSV; the output of --file")
    add("--top", type=int, metavar="K", help="in --predictions the K most probable classes (default: all, of many 5)")
    add("--min_confidence", type=float, metavar="X", default=0.0, help="leave predictions of a lower confidence empty")
    add("--submission", metavar="DIR", type=Path, help="write the CS224N prediction files of dev and test")
    add("--calibrate", metavar="FILE", type=Path, help="fit a temperature on dev; write a calibrated checkpoint")
    add("--overwrite", action="store_true", help="let output files be replaced")
    add_files("--file", type=Path, help="classify every row of a file; of several files or a folder into a folder")
    add_column = partial(add, metavar="COLUMN", default=[])
    add_column("--text_column", nargs="+", help="of --file: the texts (default: found by name)")
    add_column("--label_column", nargs=1, help="of --file: labels to compare with (default: found by name)")
    add("--no_labels", action="store_true", help="of --file: compare with no labels")
    add("--no_header", action="store_true", help="of --file: the first line is a row; the columns are 1, 2, 3 ...")
    delimiters = "of --file: comma, tab, semicolon, pipe (default: detected)"
    add("--delimiter", metavar="CHARACTER", type=delimiter_named, help=delimiters)
    add("--quoting", choices=("csv", "none"), help="of --file: CSV's quotes, or none (default: detected)")
    add("--encoding", metavar="NAME", help="of --file, if it is not UTF-8, as in cp1252")
    add("--text", nargs="+", help="classify one text, a part for each text column; - reads a text a line from stdin")
    add("--explain", action="store_true", help="with --text: what each word contributes to the prediction")
    add("--info", action="store_true", help="print the run's settings, versions, data and seed as JSON")
    add("--device", choices=DEVICES, default="auto", help="default: %(default)s")
    add("--dtype", choices=("auto", *DTYPES), default="auto", help="default: %(default)s")
    arguments = parser.parse_args()
    refuse_what_is_ignored(arguments, parser)
    check_values(arguments)
    return arguments


def check_values(arguments: Namespace) -> None:
    """Raise a UserError for options that are out of range, contradict others or lack one."""
    for name, value in {"errors": arguments.errors, "top": arguments.top}.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} must be 1 or more, not {value}")
    if not 0 <= arguments.min_confidence <= 1:
        raise UserError(f"--min_confidence must be from 0 to 1, not {arguments.min_confidence}")
    if arguments.calibrate and arguments.ckpt[1:]:
        raise UserError("--calibrate takes one --ckpt: run it for each")
    if arguments.file and not arguments.predictions:
        raise UserError("--file needs --predictions FILE, the file or folder to write")
    if (arguments.top or arguments.min_confidence) and not (arguments.predictions or arguments.text):
        raise UserError("--top and --min_confidence need --predictions FILE, the file to write")
    if arguments.no_labels and arguments.label_column:
        raise UserError("--no_labels and --label_column exclude each other: leave out one of them")
    outputs = {path.resolve() for path in (arguments.calibrate, arguments.predictions) if path}
    if outputs & {Path(path).resolve() for path in (*arguments.ckpt, *(arguments.file or []))}:
        raise UserError("--predictions and --calibrate must name another file than the one that is read")
    text = "".join(arguments.text or [])
    if arguments.text and (not text.strip() or text != text.encode(errors="ignore").decode()):
        raise UserError('the text is blank or not valid UTF-8: give another, as in --text "A lovely film."')


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
