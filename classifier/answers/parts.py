"""Files of rows answered: one, or many into a folder, each whole or not at all, by one process or several.

Beside the answers, .parts/NAME/record says what a file of answers was made from, its checksum, and what the report
needs. A file counts as done only if it and its record agree; the record is written first.
"""

import json
import os
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from classifier.answers.models import Classifier, answer_texts
from classifier.answers.report import (
    Ranked,
    Tally,
    classes_to_keep,
    columns_of_answers,
    notes_on_longer,
    print_report,
    rank,
)
from classifier.data.own import Columns, cells_of, choose_columns, class_numbers
from classifier.data.rows import ENDINGS, read_table, texts_in, visible_files
from classifier.data.table import Table, counted
from classifier.data.write_rows import ending_of, ending_to_write, write_table
from classifier.errors import UserError, tell
from classifier.files import file_sha256, hold, to_disk, written_whole

RECORDS = ".parts"
OTHERS = {  # what differs between a record and what is asked for
    "input": "its input has changed since",
    "checkpoints": "another checkpoint has answered it",
    "options": "it was answered with other options",
}


class Job(NamedTuple):
    """What is done with each file."""

    classifiers: list[Classifier]
    arguments: Namespace  # evaluate.py's
    options: dict[str, Any]  # those of them that change answers or reports
    told: set[str]  # so that what is true of many files is told once

    def tell(self, line: str) -> None:
        if line not in self.told:
            tell(line)
        self.told.add(line)


# -----------------------------------------------------------------------------
# one file


def answer_file(job: Job, path: Path, out: Path) -> None:
    """Write a file again with the answers as further columns; report on them where the file has labels."""
    with tqdm(unit=" rows", unit_scale=True, disable=None, leave=False, delay=1) as bar:
        tally = _answer(job, path, out, out, bar)
    print(f"wrote {out} ({tally.said_rows()})")
    sources = {path: file_sha256(path)} if path.is_file() else {}
    _report(job, tally, path.name, sources)


def _answer(
    job: Job, path: Path, out: Path, staging: Path, bar: tqdm, size: int | None = None, is_first: bool = True
) -> Tally:
    """Write a file's rows and their answers to staging, in the format of out.

    Args:
        size: how far the file moves the bar; None: as many as there are rows.
        is_first: refuse labels of which none is a class; otherwise a note says so.
    """
    first, arguments = job.classifiers[0], job.arguments
    how = arguments.no_header, arguments.quoting, arguments.encoding, arguments.delimiter
    table = read_table(path, *how)
    named = {"text": arguments.text_column, "label": arguments.label_column}
    welcome = () if arguments.no_labels else ("label",)
    columns, reasons = choose_columns(table, named, ["text"], welcome, first.text_columns)
    for line in (f"columns: {reasons}", *table.notes):
        job.tell(line)
    trained_on = [name.strip().lower() for name in first.text_columns]
    if len(trained_on) > 1 and [name.strip().lower() for name in columns["text"]] != trained_on:
        job.tell(f"note: the model was trained on {' + '.join(first.text_columns)}, in this order: other answers")
    labels = _labels(job, table, columns, is_first)
    if size is None:
        bar.total, size = len(table.lines), len(table.lines)
    limits = {"top": arguments.top, "least": arguments.min_confidence or 0.0}
    return answer_table(job.classifiers, table, columns["text"], out, labels, **limits, bar=bar, size=size, to=staging)


def answer_table(
    classifiers: list[Classifier],
    table: Table,
    text_columns: list[str],
    out: Path,
    labels: np.ndarray | None = None,
    top: int | None = None,
    least: float = 0.0,
    bar: tqdm | None = None,
    size: int = 0,
    to: Path | None = None,
) -> Tally:
    """Write a table with columns_of_answers, empty for a blank text. Where out cannot hold it, a UserError comes first.

    Args:
        labels: class numbers, -1 for none.
        bar, size: a progress bar, and how far the table moves it.
        to: the file that is written, in the format of out, if it is another one.
    """
    names, rows = classifiers[0].label_names, len(table.lines)
    width = classes_to_keep(names, top)
    nothing = Ranked(np.zeros((0, width), np.int16), np.zeros((0, width)))
    ending = ending_to_write(out, table, columns_of_answers(nothing, names, top))
    step = size / max(rows * len(classifiers), 1)
    bar = bar if bar is not None else tqdm(disable=True)
    chunks = answer_texts(classifiers, cells_of(table, text_columns), lambda count: bar.update(step * count))
    ranked, tally = rank(chunks, rows, labels, width, least)
    write_table(to or out, ending, table, columns_of_answers(ranked, names, top, least))
    return tally


def _labels(job: Job, table: Table, columns: Columns, is_first: bool) -> np.ndarray | None:
    """Return the class numbers of a file's labels, -1 for none and for unknown ones: int16 (rows,), None without any.

    Raises:
        UserError: the file is the first one, and none of its labels is a class.
    """
    if "label" not in columns:
        return None
    first, labels = job.classifiers[0], [label.strip() for label in cells_of(table, columns["label"])]
    numbers = class_numbers(labels, first.label_names, first.file_labels)
    is_labelled = np.array([bool(label) for label in labels])
    if not (numbers >= 0).any() and {*labels} <= {"", "-1", "-1.0"}:
        if is_labelled.any():
            tell(f"note: every label of {table.path} is -1: read as no labels")
        return None
    if is_first and not (numbers >= 0).any():
        raise UserError(
            f"{table.path}: none of the {counted(int(is_labelled.sum()), 'label')} is among the classes "
            f"({', '.join(first.label_names):.100}) of {first.path}: is this the right checkpoint? Another column is "
            f"chosen with --label_column; --no_labels ignores the labels in {columns['label'][0]!r}"
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
    if examples := int(tally.counts()[:, 2].sum()):
        print(f"labels to compare with: {examples:,} of {tally.rows:,} rows")
    print_report(tally, job.classifiers[0].label_names, name, job.arguments.min_confidence or 0.0)
    notes = notes_on_longer(job.classifiers, tally)
    for classifier in job.classifiers if examples else ():
        known = classifier.saved["data"].get("sources", {})  # missing from older checkpoints
        for split, done in (("train", "was trained on"), ("dev", "was chosen on")):
            files = [path.name for path, sha256 in sources.items() if sha256 in known.get(split, ())]
            if files:
                some = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
                notes.append(f"note: {classifier.path} {done} {some}: new texts may be answered less well")
    for note in notes:
        tell(note)


# -----------------------------------------------------------------------------
# many files


def parts_of(files: list[Path], out: Path) -> list[Path] | None:
    """Return the files to be answered into the folder out; None for one file, or folders of texts, to answer into one.

    Raises:
        UserError: two files have one name, or out is not a folder for them.
    """
    if len(files) == 1:
        (path,) = files
        is_file = path.is_file() and out.suffix and not out.is_dir()
        if is_file or not path.exists() or (path.is_dir() and texts_in(path)):
            return None
    parts = []
    for path in files:
        found = visible_files(path, "*") if path.is_dir() else [path]
        known = sorted(each for each in found if ending_of(each) in ENDINGS) if path.is_dir() else found
        if not known:
            raise UserError(
                f"{path} has no files of a known format ({', '.join(ENDINGS)}), and no folders of .txt files"
            )
        if len(known) < len(found):
            tell(f"note: {path}: skipped {counted(len(found) - len(known), 'file')} of no known format")
        parts += known
    repeated = [name for name, count in Counter(part.name for part in parts).items() if count > 1]
    if repeated:
        same = " and ".join(str(part) for part in parts if part.name == repeated[0])
        raise UserError(f"{same} have one name, and so would their answers: rename one, or use two folders")
    if ending_of(out) in ENDINGS and not out.is_dir():
        raise UserError(f"several files are answered into a folder, and --predictions {out} names a file")
    if any(part.parent.resolve() == out.resolve() for part in parts):
        raise UserError("--predictions must name another folder than the one that is read")
    for part in parts:
        if not part.is_file():
            raise UserError(f"{part}: {'a folder' if part.is_dir() else 'no such file'}")
        ending_to_write(out / part.name, Table(part, [], [], []), ())
    return parts


def answer_parts(job: Job, parts: list[Path], out: Path, process: int, processes: int) -> None:
    """Answer this process's share of the files, but for those that are done; the process that ends last reports."""
    made_from = {"checkpoints": [file_sha256(each.path) for each in job.classifiers], "options": job.options}
    to_do = _to_do(parts[process::processes], out, made_from, job.arguments.overwrite)
    records = {}
    sizes = [part.stat().st_size for part in to_do]
    quiet = {"disable": None if process == 0 else True, "leave": False, "delay": 1}
    with tqdm(total=sum(sizes), unit="B", unit_scale=True, **quiet) as bar:
        for number, part in enumerate(to_do, start=1):
            with hold(out / RECORDS / part.name):
                _answer_part(job, part, out, made_from, bar, part == parts[0])
                # under a lock: of several processes that end together, only the last finds all files there
                with FileLock(out / RECORDS / ".lock"):
                    os.replace(out / RECORDS / part.name / part.name, out / part.name)
                    to_disk(out)
                    records = _done(parts, out, made_from) if number == len(to_do) else {}
            bar.update(sum(sizes[:number]) - bar.n)
    records = records if to_do else _done(parts, out, made_from)
    if len(records) < len(parts):
        left = f"{len(parts) - len(records):,} of {counted(len(parts), 'file')}"
        print(f"left to other processes, the last of which prints the report: {left}")
    elif to_do or process == 0:
        tally = Tally()
        for record in records.values():
            tally += Tally.from_json(record["tally"])
        print(f"{out} has the answers to {counted(len(parts), 'file')} ({tally.said_rows()})")
        _report(job, tally, counted(len(parts), "file"), {part: record["input"] for part, record in records.items()})


def _to_do(parts: list[Path], out: Path, made_from: dict[str, Any], is_replaced: bool) -> list[Path]:
    """Return the parts that are not done; raise a UserError where something else is in the place of answers."""
    to_do = []
    for part in parts:
        problem, answers = _problem(part, out, made_from), out / part.name
        if problem and answers.exists() and not is_replaced:
            how = "move it, choose another folder for --predictions, or add --overwrite"
            raise UserError(f"{answers} exists already, and {problem}: {how}")
        to_do += [part] if problem else []
    if len(to_do) < len(parts):
        print(f"answered already: {len(parts) - len(to_do):,} of {counted(len(parts), 'file')}", flush=True)
    return to_do


def _answer_part(job: Job, part: Path, out: Path, made_from: dict[str, Any], bar: tqdm, is_first: bool) -> None:
    """Write a part's answers beside its record, then the record."""
    folder, input_sha256 = out / RECORDS / part.name, file_sha256(part)
    staging = folder / part.name
    tally = _answer(job, part, out / part.name, staging, bar, part.stat().st_size, is_first)
    record = made_from | {"input": input_sha256, "output": file_sha256(staging), "tally": tally.to_json()}
    with written_whole(folder / "record", "w") as f:
        json.dump(record, f)


def _done(parts: list[Path], out: Path, made_from: dict[str, Any]) -> dict[Path, dict[str, Any]]:
    """Return the records of the parts that are done."""
    return {part: _read_record(part, out) for part in parts if not _problem(part, out, made_from)}


def _problem(part: Path, out: Path, made_from: dict[str, Any]) -> str | None:
    """Return why a part is not done, or None where it is."""
    answers, record = out / part.name, _read_record(part, out)
    if not answers.exists():
        return "it is missing"
    if not record:
        return "no record says what it was made from"
    asked = made_from | {"input": file_sha256(part)}
    different = [problem for name, problem in OTHERS.items() if record.get(name) != asked[name]]
    if not different and record.get("output") != file_sha256(answers):
        return "it was changed since it was written"
    return different[0] if different else None


def _read_record(part: Path, out: Path) -> dict[str, Any]:
    """Return a part's record, empty where there is none."""
    try:
        return json.loads((out / RECORDS / part.name / "record").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
