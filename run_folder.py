"""What a run keeps in its out_dir beside the checkpoints: log.csv."""

import csv
import re
from pathlib import Path
from typing import TextIO

from errors import UserError
from files import written_whole

LOG_COLUMNS = ["step", "epoch", "split", "loss", "accuracy"]
LOG_COLUMNS += ["learning_rate", "grad_norm", "examples_per_second", "seconds"]


def refuse_to_replace_a_run(out: Path) -> None:
    """Raise a UserError where out_dir holds another run."""
    found = [name for name in ("best.pt", "last.pt") if (out / name).exists()]
    if found:
        raise UserError(
            f"{out} holds another run ({', '.join(found)}): go on with it by --init_from=resume, "
            f"choose another --out_dir, or replace it by --overwrite=True"
        )


def start_log(out: Path, step: int) -> TextIO:
    """Return log.csv opened for appending: new, or with the rows of a resumed run up to the step it goes on from."""
    path = out / "log.csv"
    rows = []
    if step and path.is_file():
        lines = path.read_bytes().decode("utf-8", "replace").splitlines()
        # a killed run may have left half a line, and rows of steps that are now taken again
        whole = [line for line in lines if re.match(r"[0-9]{1,15},", line) and line.count(",") == len(LOG_COLUMNS) - 1]
        rows = [line for line in whole if int(line.partition(",")[0]) <= step]
    with written_whole(path, "w") as f:
        f.writelines(line + "\n" for line in [",".join(LOG_COLUMNS), *rows])
    return open(path, "a", encoding="utf-8", newline="")


def write_log(log: TextIO, **values: float | str) -> None:
    """Append a row, numbers in full precision, and flush it."""
    csv.DictWriter(log, LOG_COLUMNS, lineterminator="\n").writerow(values)
    log.flush()
