"""log.csv: a row for every step and every evaluation."""

import csv
import errno
import io
import os
import re
from pathlib import Path

from classifier.files import refuse_irregular, written_whole

COLUMNS = ["step", "epoch", "split", "loss", "accuracy", "learning_rate", "grad_norm", "examples_per_second", "seconds"]


def begin_log(path: Path, step: int, evaluated: int) -> None:
    """Write log.csv anew: its header, and of a resumed run the rows up to its step and the last evaluation's."""
    rows = []
    if step and path.is_file():
        for line in path.read_bytes().decode("utf-8", "replace").splitlines(keepends=True):
            # a killed run may have left half a line, and rows of steps that are now taken again
            whole = re.fullmatch(r"([0-9]{1,15}),[0-9.e-]+,(train|dev)(,[^,]*){6}\n", line)
            if whole and int(whole[1]) <= (step if whole[2] == "train" else evaluated):
                rows.append(line)
    with written_whole(path, "w") as f:
        f.writelines([",".join(COLUMNS) + "\n", *rows])


def append_to_log(path: Path, rows: list[dict[str, float | str]]) -> None:
    """Append rows to log.csv, all or none of them, numbers in full precision."""
    refuse_irregular(path)
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(rows)
    content = text.getvalue().encode()
    with open(path, "r+b", buffering=0) as f:
        before = f.seek(0, os.SEEK_END)
        try:
            if f.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            f.truncate(before)
            raise
