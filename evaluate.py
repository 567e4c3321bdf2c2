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
python evaluate.py --ckpt out/best.pt --file new.csv --predictions answered.csv
"""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import compress, islice
from pathlib import Path

from classifier import errors
from classifier.answers import report
from classifier.answers.calibration import calibrate, temperature_path
from classifier.answers.explain import explain
from classifier.answers.models import Loaded, load, load_all, log_probabilities, predict_all, prepared_folder
from classifier.data.dataset import Split, load_split
from classifier.data.own import cells_of, choose_columns, class_numbers
from classifier.data.rows import listed, read_table
from classifier.device import DEVICES, DTYPES
from classifier.errors import UserError
from classifier.files import file_sha256, write_json

SUBMISSION_SPLITS = ["dev", "test"]


def main() -> None:
    arguments = parse_arguments()
    if arguments.info:
        for path in arguments.ckpt:
            print(json.dumps(load(path).saved["run"], indent=2, ensure_ascii=False, default=str))
        return
    models, machine = load_all(arguments.ckpt, arguments.device, arguments.dtype)
    if arguments.text is not None:
        lines = sys.stdin.buffer if arguments.text == "-" else os.fsencode(arguments.text).splitlines()
        classify_lines(models, lines, arguments.explain)
        return

    if arguments.file:
        check_outputs(arguments, models)
        print(machine)
        answer_file(models, arguments)
        return

    others, _ = load_all(arguments.compare, arguments.device, arguments.dtype)
    names = list(dict.fromkeys([arguments.split, *(SUBMISSION_SPLITS if arguments.submission else [])]))
    folder = prepared_folder(models + others, arguments.data_dir, names)
    splits = {name: load_split(folder, name) for name in names}
    check_outputs(arguments, models)
    for loaded in models:
        progress = loaded.saved["progress"]
        print(f"checkpoint {loaded.path}, step {progress['step']} (epoch {progress['epoch']:.4g})")
        if loaded.calibration:
            print(f"  temperature {loaded.temperature:.3f}, fitted on {loaded.calibration['folder']}'s dev split")
    print(machine)
    print(f"{len(splits[arguments.split]):,} examples of {folder}, {arguments.split} split", flush=True)
    if arguments.calibrate:
        calibrate_all(models, folder, splits["dev"])
    else:
        report_on_split(models, others, splits, arguments)


# -----------------------------------------------------------------------------
# on a prepared split


def check_outputs(arguments: Namespace, models: list[Loaded]) -> None:
    """Make the folders of all files that are to be written.

    Raises:
        UserError: one of the files is there already, and --overwrite was not given.
    """
    files = [temperature_path(loaded.path) for loaded in models if arguments.calibrate]
    if arguments.predictions:
        files.append(arguments.predictions)
    if arguments.plots:
        from classifier.answers.plots import OF_A_SPLIT  # here, since importing matplotlib takes a second

        files += [arguments.plots / name for name in OF_A_SPLIT]
    if arguments.submission:
        files += submission_paths(arguments.submission, models)
    for path in files:
        if path.exists() and not arguments.overwrite:
            raise UserError(f"{path} exists already: move it, or add --overwrite")
        path.parent.mkdir(parents=True, exist_ok=True)


def submission_paths(folder: Path, models: list[Loaded]) -> list[Path]:
    """Return the CS224N project's file names, for each of SUBMISSION_SPLITS."""
    return [folder / f"finetune-{models[0].saved['data']['task']}-{split}-out.csv" for split in SUBMISSION_SPLITS]


def report_on_split(models: list[Loaded], others: list[Loaded], splits: dict[str, Split], arguments: Namespace) -> None:
    """Print how good the models' common answers on --split are, and write what is asked for."""
    split, label_names = splits[arguments.split], models[0].label_names
    if split.labels is None and (arguments.compare or arguments.errors or arguments.plots):
        raise UserError(f"the {split.name} split has no labels: --compare, --errors and --plots need them")
    answers = {name: predict_all(models, each) for name, each in splits.items()}
    logits = answers[split.name]
    if arguments.submission:
        for path, name in zip(submission_paths(arguments.submission, models), SUBMISSION_SPLITS, strict=True):
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


def calibrate_all(models: list[Loaded], folder: str, dev: Split) -> None:
    """Fit a temperature to each model on the dev set, say what it changes, and write it beside the checkpoint."""
    for loaded in models:
        facts = {"checkpoint_sha256": file_sha256(loaded.path), "folder": folder}
        found = calibrate(predict_all([loaded._replace(calibration={})], dev), dev.labels)
        report.print_calibration(found)
        path = temperature_path(loaded.path)
        write_json(path, found | facts)
        print(f"wrote {path}; no prediction changes")


# -----------------------------------------------------------------------------
# text of one's own


def classify_lines(models: list[Loaded], lines: Iterable[bytes], is_explained: bool = False) -> None:
    """Print a table: of each line that is not blank the answer, and the line, explained if asked.

    Raises:
        UserError: at the end, where there were lines that are no UTF-8: all others have their answers.
    """
    names, answers, unreadable = models[0].label_names, partial(log_probabilities, models), []
    texts = read_lines(lines, unreadable)
    print(report.answer_header(names))
    # a person who types wants an answer after each line, a file wants speed
    while chunk := list(islice(texts, 1 if sys.stdin.isatty() or is_explained else 256)):
        explanation = explain(chunk[0], answers) if is_explained else None
        found = explanation.log_probabilities[None] if explanation else answers(chunk)
        for text, probabilities in zip(chunk, found.exp().numpy(), strict=True):
            print(report.answer_row(text, probabilities, names), flush=True)
        if explanation:
            report.print_explanation(explanation, names)
    if unreadable:
        where = listed("line", unreadable)
        raise UserError(f"no answer for what is not valid UTF-8, {where}: save it as UTF-8 (all else is answered)")


def read_lines(lines: Iterable[bytes], unreadable: list[int]) -> Iterator[str]:
    """Yield lines as text, blank ones left out; the numbers of those that are no UTF-8 are appended to unreadable."""
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8").strip("\r\n\ufeff")
        except UnicodeDecodeError:
            unreadable.append(number)
            continue
        if text.strip():
            yield text


# -----------------------------------------------------------------------------
# a file of one's own


def answer_file(models: list[Loaded], arguments: Namespace) -> None:
    """Write a file again with the answers as further columns; report on them where it has labels, too."""
    how, names = (arguments.no_header, arguments.quoting, arguments.encoding), models[0].label_names
    table = read_table(arguments.file, *how)
    named = {role: getattr(arguments, f"{role}_column") for role in ("text", "label")}
    columns, reasons = choose_columns(table, named, ["text"], ["label"], models[0].text_columns)
    for line in (f"columns: {reasons}", *table.notes):
        errors.tell(line)
    found = report.answer_table(models, table, columns["text"], arguments.predictions)
    blank = int(found[:, 0].isnan().sum())
    print(f"wrote {arguments.predictions}, {len(found):,} rows" + f", {blank:,} of them without a text" * (blank > 0))
    labels = cells_of(table, columns.get("label", [])) or [""] * len(found)
    is_answered, numbers = ~found[:, 0].isnan().numpy(), class_numbers(labels, names, models[0].file_labels)
    if unknown := sum(bool(label.strip()) for label in compress(labels, is_answered & (numbers < 0))):
        print(f"note: {unknown:,} rows have a label that is none of the classes, and are not compared")
    is_compared = is_answered & (numbers >= 0)
    chosen = is_compared if is_compared.any() else is_answered
    report.print_report(found[chosen], numbers[chosen] if is_compared.any() else None, names, arguments.file.name)


# -----------------------------------------------------------------------------
# the command line


def parse_arguments() -> Namespace:
    parser = errors.argument_parser(__doc__)
    add, files = parser.add_argument, {"nargs": "+", "metavar": "FILE"}
    add("--ckpt", **files, default=["out/best.pt"], help="of several the mean probabilities (default: out/best.pt)")
    add("--data_dir", metavar="DIR", help="prepared folder (default: the one it was trained on)")
    add("--split", default="dev", help="train, dev or test (default: %(default)s)")
    add("--compare", **files, default=[], help="test the difference to another (of several: to their mean)")
    add("--errors", type=int, default=0, metavar="N", help="list the N mistakes that it was surest of")
    add("--plots", metavar="DIR", type=Path, help="draw confusion matrix, reliability, accuracy by length")
    add("--predictions", metavar="FILE", type=Path, help="write each example's answers as CSV, or those to --file")
    add("--submission", metavar="DIR", type=Path, help="write the CS224N prediction files of dev and test")
    add("--calibrate", action="store_true", help="fit a temperature on dev; it is used wherever the checkpoint is")
    add("--overwrite", action="store_true", help="let --predictions, --plots, --submission, --calibrate replace files")
    add("--file", metavar="FILE", type=Path, help="answer a file's texts, into --predictions: its columns and answers")
    column = {"metavar": "COLUMN", "default": []}
    add("--text_column", **column, nargs="+", help="of --file: the texts (default: found by name, as text)")
    add("--label_column", **column, nargs=1, help="of --file: labels to compare with (default: found by name)")
    add("--no_header", action="store_true", help="of --file: the first line is a row; the columns are 1, 2, 3 ...")
    add("--quoting", choices=("csv", "none"), help="of --file: whose quotes are: CSV's, or the texts' own")
    add("--encoding", metavar="NAME", help="of --file, if it is not UTF-8, as cp1252")
    add("--text", help="classify this text, each line that is not blank; - reads standard input")
    add("--explain", action="store_true", help="with --text: what each word contributes to the prediction")
    add("--info", action="store_true", help="print the run's settings, versions, data and seed as JSON")
    add("--device", choices=DEVICES, default="auto", help="default: %(default)s")
    add("--dtype", choices=("auto", *DTYPES), default="auto", help="default: %(default)s")
    arguments = parser.parse_args()
    for_a_split = ["predictions", "plots", "submission", "compare", "errors", "calibrate"]
    asked = [f"--{name}" for name in for_a_split if getattr(arguments, name)]
    if arguments.text is not None and asked:
        raise UserError(f"{', '.join(asked)}: for a prepared split only; with --text redirect the output instead")
    if arguments.calibrate and (asked != ["--calibrate"] or arguments.split != "dev"):
        raise UserError("--calibrate fits on the dev split and does nothing else: call again for what else you want")
    if arguments.file and (asked != ["--predictions"] or arguments.text is not None):
        raise UserError("--file needs --predictions, which names the file to write, and nothing else")
    if arguments.file and arguments.file.resolve() == arguments.predictions.resolve():
        raise UserError("--predictions names the very file that is to be answered: name another")
    if (arguments.explain and arguments.text is None) or arguments.text == "":
        raise UserError('there is no text: --text "A lovely film.", or --text - for standard input')
    return arguments


if __name__ == "__main__":
    errors.run(main)
