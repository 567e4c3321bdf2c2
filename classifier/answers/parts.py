"""Files of rows answered: one, or many into a folder, each whole or not at all, by one process or several.

Beside the answers, .parts/NAME/record says what a file of answers was made from, its checksum, and what the report
needs. A file counts as done only if it and its record agree; the record is written first.
"""

import json
import os
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from classifier import distributed
from classifier.answers.models import Classifier, answer_texts, load_all, progress
from classifier.answers.report import notes_on_longer, print_report
from classifier.answers.tally import Ranked, Tally, classes_to_keep, columns_of_answers, rank
from classifier.data.own import Columns, cells_of, choose_columns, class_numbers
from classifier.data.rows import ENDINGS, read_table, texts_in, visible_files
from classifier.data.table import Table, counted
from classifier.data.write_rows import ending_of, ending_to_write, write_table
from classifier.errors import UserError, did_you_mean, own_rank, tell
from classifier.files import file_sha256, hold, make_way, replace, to_disk, written_whole

# evaluate.py's options that change answers or reports
OPTIONS = ["top", "min_confidence", "text_column", "label_column", "no_labels", "no_header"]
OPTIONS += ["delimiter", "quoting", "encoding"]
RECORDS = ".parts"
OTHERS = {  # what differs between a record and what is asked for
    "input": "its input has changed since",
    "checkpoints": "another checkpoint has answered it",
    "options": "it was answered with other options",
}
Record = dict[str, Any]


class Job(NamedTuple):
    """What is done with each file."""

    classifiers: list[Classifier]
    arguments: Namespace  # evaluate.py's
    tell_once: Callable[[str], None]  # for notes that are true of many files


def answer_files(arguments: Namespace) -> None:
    """Answer a file, or this process's share of many: RANK of WORLD_SIZE processes, as torchrun starts them."""
    rank, size = own_rank(), os.environ.get("WORLD_SIZE") or "1"
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise UserError(f"RANK is {rank!r} and WORLD_SIZE {size!r}: RANK is a number from 0 to below WORLD_SIZE")
    process, processes = int(rank), int(size)
    out = arguments.predictions
    files = _parts_of(arguments.file, out)
    if processes > 1 and not files:
        raise UserError("several processes share several files: pass them, or a folder, as --file, or use one process")
    if "LOCAL_RANK" in os.environ:  # torchrun sets it
        distributed.take_gpu(arguments.device, int(os.environ["LOCAL_RANK"]))
    classifiers, machine = load_all(arguments.ckpt, arguments.device, arguments.dtype)
    if process == 0:
        print(machine, flush=True)
    job = Job(classifiers, arguments, cache(tell))
    if files:
        _answer_parts(job, files, out, process, processes)
        return
    (path,) = arguments.file
    make_way(out, arguments.overwrite)
    tally = _answer(job, *_read(job, path), out)
    print(f"wrote {out} ({tally.said_rows()})")
    _report(job, tally, path.name, {path: file_sha256(path)} if path.is_file() else {})


# -----------------------------------------------------------------------------
# one file


def _read(job: Job, path: Path) -> tuple[Table, Columns]:
    """Read a file, and choose its columns."""
    first, arguments = job.classifiers[0], job.arguments
    table = read_table(path, arguments.no_header, arguments.quoting, arguments.encoding, arguments.delimiter)
    named = {"text": arguments.text_column, "label": arguments.label_column}
    welcome = () if arguments.no_labels else ("label",)
    columns, reasons = choose_columns(table, named, ["text"], welcome, first.text_columns)
    for line in (f"columns: {reasons}", *table.notes):
        job.tell_once(line)
    trained_on = [name.strip().lower() for name in first.text_columns]
    if len(trained_on) > 1 and [name.strip().lower() for name in columns["text"]] != trained_on:
        names = " + ".join(first.text_columns)
        job.tell_once(f"note: the model was trained on {names}, in this order: the answers may be worse")
    return table, columns


def _answer(job: Job, table: Table, columns: Columns, out: Path, is_first: bool = True) -> Tally:
    """Write a file's rows and their answers.

    is_first: refuse labels of which none is a class; otherwise a note says so.
    """
    labels, options = _labels(job.classifiers[0], table, columns, is_first), job.arguments
    return answer_table(job.classifiers, table, columns["text"], out, labels, options.top, options.min_confidence)[1]


def answer_table(
    classifiers: list[Classifier],
    table: Table,
    text_columns: list[str],
    out: Path,
    labels: np.ndarray | None = None,
    top: int | None = None,
    least: float = 0.0,
) -> tuple[dict[str, Any], Tally]:
    """Write a table with columns_of_answers, empty for a blank text. Where out cannot hold it, a UserError comes first.

    labels: class numbers, -1 for none.
    """
    names, rows = classifiers[0].label_names, len(table.lines)
    width = classes_to_keep(names, top)
    nothing = Ranked(np.zeros((0, width), np.int16), np.zeros((0, width)))
    ending = ending_to_write(out, table, columns_of_answers(nothing, names, top))
    ranked, tally = rank(answer_texts(classifiers, cells_of(table, text_columns)), rows, labels, width, least)
    columns = columns_of_answers(ranked, names, top, least)
    write_table(out, ending, table, columns)
    return columns, tally


def _labels(classifier: Classifier, table: Table, columns: Columns, is_first: bool) -> np.ndarray | None:
    """Return the class numbers of a file's labels, -1 for none and for unknown ones: int16 (rows,), None without any.

    Raises:
        UserError: the file is the first one, and none of its labels is a class.
    """
    if "label" not in columns:
        return None
    labels = [label.strip() for label in cells_of(table, columns["label"])]
    numbers = class_numbers(labels, classifier.label_names, classifier.file_labels)
    is_labelled = np.array([bool(label) for label in labels])
    if not (numbers >= 0).any() and {*labels} <= {"", "-1", "-1.0"}:
        if is_labelled.any():
            tell(f"note: every label of {table.path} is -1: read as no labels")
        return None
    if is_first and not (numbers >= 0).any():
        raise UserError(
            f"{table.path}: none of the {counted(int(is_labelled.sum()), 'label')} is among the classes "
            f"({', '.join(classifier.label_names):.100}) of {classifier.path}: is this the right checkpoint? Another "
            f"column is chosen with --label_column; --no_labels ignores the labels in {columns['label'][0]!r}"
        )
    is_unknown = is_labelled & (numbers < 0)
    if is_unknown.any():
        is_unknown &= [bool(text.strip()) for text in cells_of(table, columns["text"])]
    if unknown := np.flatnonzero(is_unknown).tolist():
        rows = f"{len(unknown):,} of {len(labels):,} rows of {table.path}, {table.where(unknown)}"
        tell(f"note: not compared, since their labels are none of the classes: {rows}")
    return numbers


def _report(job: Job, tally: Tally, name: str, sources: dict[Path, str]) -> None:
    """Print the report on answers to files, given with their checksums."""
    if tally.examples:
        print(f"labels to compare with: {tally.examples:,} of {tally.rows:,} rows")
    print_report(tally, job.classifiers[0].label_names, name, job.arguments.min_confidence)
    for note in notes_on_longer(job.classifiers, tally):
        tell(note)
    for classifier in job.classifiers if tally.examples else ():
        known = classifier.saved["data"].get("sources", {})  # missing from older checkpoints
        told: set[Path] = set()  # a file that dev was drawn from is both
        for split, done in (("train", "was trained on"), ("dev", "was chosen on")):
            of_split = {path for path, sha256 in sources.items() if sha256 in known.get(split, ())} - told
            told |= of_split
            if files := sorted(path.name for path in of_split):
                some = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
                tell(f"note: {classifier.path} {done} {some}: new texts may be answered less well")


# -----------------------------------------------------------------------------
# many files


def _parts_of(files: list[Path], out: Path) -> list[Path]:
    """Return the files to be answered into the folder out; none for one file, or a folder of texts, to answer into one.

    Raises:
        UserError: two files have one name, or out is not a folder for them.
    """
    first, is_folder = files[0], out.is_dir() or not out.suffix
    if len(files) == 1 and (texts_in(first) if first.is_dir() else not is_folder):
        return []
    parts: list[Path] = []
    for path in files:
        parts += _files_in(path) if path.is_dir() else [path]
    if ending_of(out) in ENDINGS and not out.is_dir():
        raise UserError(f"several files are answered into a folder, and --predictions {out} names a file")
    known: dict[str, Path] = {}
    for part in parts:
        if not part.is_file():
            raise UserError(f"{part}: no such file{did_you_mean(part)}")
        if part.suffix.lower() == ".zip":
            raise UserError(f"{part}: unpack it first: answers to it cannot be written under its name")
        if part.name in known:
            same = f"{known[part.name]} and {part} have one name, and so would their answers"
            raise UserError(f"{same}: rename one, or use two folders")
        if part.parent.resolve() == out.resolve():
            raise UserError("--predictions must name another folder than the one that is read")
        ending_to_write(out / part.name, Table(part, [], [], []), ())
        known[part.name] = part
    return parts


def _files_in(folder: Path) -> list[Path]:
    """Return a folder's files of known formats; a note counts the others."""
    found = visible_files(folder, "*")
    known = sorted(path for path in found if ending_of(path) in ENDINGS)
    if not known:
        raise UserError(f"{folder} has no files of a known format ({', '.join(ENDINGS)}), and no folders of .txt files")
    if len(known) < len(found):
        tell(f"note: {folder}: skipped {counted(len(found) - len(known), 'file')} of no known format")
    return known


def _answer_parts(job: Job, parts: list[Path], out: Path, process: int, processes: int) -> None:
    """Answer this process's share of the files, but for those that are done; the process that ends last reports."""
    options = {name: getattr(job.arguments, name) for name in OPTIONS} | {"dtype": str(job.classifiers[0].dtype)}
    made_from = {"checkpoints": [file_sha256(each.path) for each in job.classifiers], "options": options}
    share = parts[process::processes]
    others = [part for number, part in enumerate(parts) if number % processes != process]
    done, to_do = _look_at(share, out, made_from)
    for part, problem in to_do.items():
        if (out / part.name).exists() and not job.arguments.overwrite:
            how = "move it, choose another folder for --predictions, or add --overwrite"
            raise UserError(f"{out / part.name} exists already, and {problem}: {how}")
    if len(to_do) < len(share):
        print(f"answered already: {len(share) - len(to_do):,} of {counted(len(share), 'file')}", flush=True)
    left: dict[Path, str] = {}
    bad: list[str] = []
    with progress(len(to_do), " files") as bar:
        for number, part in enumerate(to_do, start=1):
            input_sha256, staging = file_sha256(part), out / RECORDS / part.name / part.name
            try:
                table, columns = _read(job, part)
            except UserError as error:
                tell(f"no answers: {error}")
                bad.append(str(part))
                continue
            with hold(staging.parent):
                tally = _answer(job, table, columns, staging, part == parts[0])
                del table, columns  # one file at a time is in memory
                record: Record = made_from | {
                    "input": input_sha256,
                    "output": file_sha256(staging),
                    "tally": tally.to_json(),
                }
                with written_whole(staging.with_name("record"), "w") as f:
                    json.dump(record, f)
                # under a lock: of several processes that end together, only the last finds all files there
                with FileLock(out / RECORDS / ".lock"):
                    replace(staging, out / part.name)
                    done[part] = record
                    to_disk(out)
                    if number == len(to_do):
                        of_others, left = _look_at(others, out, made_from)
            bar.update()
    if bad:
        listed = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        raise UserError(f"no answers to {listed}: mend or remove them, and repeat the command (others are answered)")
    if not to_do:
        of_others, left = _look_at(others, out, made_from)
    if left:
        count = f"{len(left):,} of {counted(len(parts), 'file')}"
        print(f"left to other processes, the last of which prints the report: {count}")
    elif to_do or process == 0:
        tally, done = Tally(), done | of_others
        for part in parts:
            tally += Tally.from_json(done[part]["tally"])
        print(f"{out} has the answers to {counted(len(parts), 'file')} ({tally.said_rows()})")
        _report(job, tally, counted(len(parts), "file"), {part: record["input"] for part, record in done.items()})


def _look_at(parts: list[Path], out: Path, made_from: Record) -> tuple[dict[Path, Record], dict[Path, str]]:
    """Return the records of the parts that are done, and why the others are not."""
    records, problems = {}, {}
    for part in parts:
        try:
            record = json.loads((out / RECORDS / part.name / "record").read_text(encoding="utf-8"))
            record = record if isinstance(record, dict) and "tally" in record else {}
        except (OSError, ValueError):
            record = {}
        if problem := _problem(part, out / part.name, record, made_from):
            problems[part] = problem
        else:
            records[part] = record
    return records, problems


def _problem(part: Path, answers: Path, record: Record, made_from: Record) -> str | None:
    """Return why a part is not done, or None where it is."""
    if not answers.exists():
        return "it is missing"
    if not record:
        return "no record says what it was made from"
    asked = made_from | {"input": file_sha256(part)}
    for name, problem in OTHERS.items():
        if record.get(name) != asked[name]:
            return problem
    return None if record.get("output") == file_sha256(answers) else "it was changed since it was written"
