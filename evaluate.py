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
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

import torch

from classifier import checkpoint, errors
from classifier.answers import parts, report
from classifier.answers.calibration import calibrate
from classifier.answers.models import Classifier, answer_split, load_all, predict_all, prepared_folder
from classifier.answers.tally import Ranked, Tally, classes_to_keep, columns_of_answers, rank
from classifier.answers.texts import classify_texts
from classifier.data.dataset import Split, labels_of, load_split
from classifier.data.rows import delimiter_named
from classifier.data.table import Table
from classifier.data.write_rows import write_table
from classifier.device import DEVICES, DTYPES
from classifier.errors import UserError
from classifier.files import make_way, written_whole

SUBMISSION_SPLITS = ["dev", "test"]
# what a call does: one of the first four, or else a report on --split; and the options that go with it
WRITTEN = ["predictions", "overwrite", "top", "min_confidence"]
GOES_WITH = {
    "info": [],
    "text": ["explain", "min_confidence"],
    "file": [*WRITTEN, *parts.OPTIONS],
    "calibrate": ["data_dir", "overwrite"],
    "split": [*WRITTEN, "data_dir", "plots", "submission", "compare", "errors"],
}


def main() -> None:
    arguments = parse_arguments()
    if arguments.info:
        for path in arguments.ckpt:
            _, saved = checkpoint.load(path)
            print(json.dumps(saved["run"], indent=2, ensure_ascii=False, default=str))
        return
    if arguments.file:
        parts.answer_files(arguments)
        return
    classifiers, machine = load_all(arguments.ckpt, arguments.device, arguments.dtype)
    if arguments.text:
        classify_texts(classifiers, arguments.text, arguments.min_confidence, arguments.explain)
        return
    others, _ = load_all(arguments.compare, arguments.device, arguments.dtype)
    names = dict.fromkeys([arguments.split, *(SUBMISSION_SPLITS if arguments.submission else [])])
    folder = prepared_folder(classifiers + others, arguments.data_dir, list(names))
    splits = {name: load_split(folder, name) for name in names}
    for path in outputs(arguments, classifiers[0].saved["data"]["task"]):
        make_way(path, arguments.overwrite)
    for classifier in classifiers:
        progress = classifier.saved["progress"]
        print(f"checkpoint {classifier.path}, step {progress['step']} (epoch {progress['epoch']:.4g})")
    print(machine)
    print(f"{len(splits[arguments.split]):,} examples of {folder}, {arguments.split} split", flush=True)
    if arguments.calibrate:
        write_calibrated(classifiers[0], arguments.calibrate, folder, splits["dev"])
    else:
        report_on_split(classifiers, others, splits, arguments)


def outputs(arguments: Namespace, task: str) -> list[Path]:
    """Return the files that will be written."""
    files = [path for path in (arguments.predictions, arguments.calibrate) if path]
    if arguments.plots:
        files += [arguments.plots / name for name in ("confusion.png", "reliability.png")]
    if arguments.submission:
        files += [arguments.submission / submission_name(task, split) for split in SUBMISSION_SPLITS]
    return files


# -----------------------------------------------------------------------------
# a prepared split


def report_on_split(
    classifiers: list[Classifier], others: list[Classifier], splits: dict[str, Split], arguments: Namespace
) -> None:
    """Write the files that were asked for, and print how good the answers on --split are."""
    split, names, least = splits[arguments.split], classifiers[0].label_names, arguments.min_confidence
    task = classifiers[0].saved["data"]["task"]
    if arguments.compare or arguments.errors or arguments.plots:
        labels_of(split)  # refuses a split without labels before it is answered

    def ranked_answers(models: list[Classifier], split: Split) -> tuple[Ranked, Tally]:
        top = classes_to_keep(names, arguments.top)
        return rank(answer_split(models, split), len(split), split.labels, top, least)

    answers = {name: ranked_answers(classifiers, each) for name, each in splits.items()}
    ranked, tally = answers[split.name]
    if arguments.submission:
        for name in SUBMISSION_SPLITS:
            write_submission(arguments.submission / submission_name(task, name), splits[name], answers[name][0])
    if arguments.predictions:
        columns = columns_of_answers(ranked, names, arguments.top, least)
        if f"p_{names[0]}" in columns:
            del columns["confidence"]
        labels = [""] * len(split) if split.labels is None else [names[label] for label in split.labels]
        examples = Table(arguments.predictions, ["id", "label"], [split.ids(), labels], [])
        write_table(arguments.predictions, ".csv", examples, columns)
    if arguments.plots:
        from classifier.answers.plots import draw_confusion, draw_reliability  # here: matplotlib takes a second

        draw_confusion(arguments.plots / "confusion.png", tally, names, split.name)
        draw_reliability(arguments.plots / "reliability.png", tally, names, split.name)
    for path in outputs(arguments, task):
        print(f"wrote {path}")
    report.print_report(tally, names, split.name, least)
    for note in report.notes_on_longer(classifiers, tally):
        errors.tell(note)
    if arguments.compare:
        report.print_comparison(ranked, ranked_answers(others, split)[0], split, " + ".join(arguments.compare))
    if arguments.errors:
        report.print_errors(arguments.errors, ranked, split, names)


def submission_name(task: str, split: str) -> str:
    return f"finetune-{task}-{split}-out.csv"


def write_submission(path: Path, split: Split, ranked: Ranked) -> None:
    """Write predictions as the CS224N project's script does, with the blanks at the ends of its lines."""
    with written_whole(path, "w") as f:
        f.write("id \t Predicted_Sentiment \n")
        f.writelines(f"{id}, {label} \n" for id, label in zip(split.ids(), ranked.classes[:, 0], strict=True))


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
# the command line


def parse_arguments() -> Namespace:
    parser = errors.argument_parser(__doc__)
    add = parser.add_argument
    add_files = partial(add, nargs="+", metavar="FILE")
    add_files("--ckpt", default=["out/best.pt"], help="several are an ensemble (default: out/best.pt)")
    add("--data_dir", metavar="DIR", help="prepared folder (default: the one of training)")
    add("--split", default="dev", help="train, dev or test (default: %(default)s)")
    add_files("--compare", default=[], help="test the difference to another checkpoint, or the mean of several")
    add("--errors", type=int, metavar="N", help="list the N most confident mistakes")
    add("--plots", metavar="DIR", type=Path, help="draw the confusion matrix, and accuracy by confidence")
    add("--predictions", metavar="FILE", type=Path, help="write each example's prediction as CSV; the output of --file")
    add(
        "--top",
        type=int,
        metavar="K",
        help="in --predictions the K most probable classes (default: all; 5 of more than 20)",
    )
    add("--min_confidence", type=float, metavar="X", default=0.0, help="leave predictions of a lower confidence empty")
    add("--submission", metavar="DIR", type=Path, help="write the CS224N prediction files of dev and test")
    add("--calibrate", metavar="FILE", type=Path, help="fit a temperature on dev; write a calibrated checkpoint")
    add("--overwrite", action="store_true", help="let output files be replaced")
    add_files("--file", type=Path, help="classify every row of a file; of several files or a folder into a folder")
    add_column = partial(add, metavar="COLUMN", default=[])
    texts = "of --file: the texts (default: the columns of training)"
    add_column("--text_column", nargs="+", action="extend", help=texts)
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


def check_values(given: Namespace) -> None:
    """Raise a UserError for options that are out of range, contradict others or lack one."""
    written = {path.resolve() for path in (given.calibrate, given.predictions) if path}
    is_read = written & {Path(path).resolve() for path in (*given.ckpt, *(given.file or []))}
    text = "".join(given.text or [])
    is_blank, is_broken = given.text and not text.strip(), text != text.encode(errors="ignore").decode()
    is_chosen, is_written = given.top or given.min_confidence, given.predictions or given.text
    problems = [
        (given.errors is not None and given.errors < 1, f"--errors must be 1 or more, not {given.errors}"),
        (given.top is not None and given.top < 1, f"--top must be 1 or more, not {given.top}"),
        (not 0 <= given.min_confidence <= 1, f"--min_confidence must be from 0 to 1, not {given.min_confidence}"),
        (given.calibrate and given.ckpt[1:], "--calibrate takes one --ckpt: run it for each"),
        (given.file and not given.predictions, "--file needs --predictions FILE, the file or folder to write"),
        (is_chosen and not is_written, "--top and --min_confidence need --predictions FILE, the file to write"),
        (given.no_labels and given.label_column, "--no_labels and --label_column exclude each other: leave out one"),
        (is_read, "--predictions and --calibrate must name another file than the one that is read"),
        (is_blank, 'the text is blank: give another, as in --text "A lovely film."'),
        (is_broken, "the text is not valid UTF-8: put it into a file and use --file with --encoding"),
    ]
    for is_met, problem in problems:
        if is_met:
            raise UserError(problem)


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
