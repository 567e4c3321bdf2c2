"""What a run keeps in its out_dir: checkpoints, log.csv, a row a step, run.json, all its facts, and curves.png."""

import csv
import datetime
import gc
import hashlib
import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from classifier import checkpoint, distributed
from classifier.errors import UserError
from classifier.files import written_whole
from classifier.trackers import open_trackers

LOG_COLUMNS = ["step", "epoch", "split", "loss", "accuracy"]
LOG_COLUMNS += ["learning_rate", "grad_norm", "examples_per_second", "seconds"]


def refuse_another_run(out: Path, overwrite: bool) -> None:
    """Raise a UserError where out_dir holds another run, unless that may be replaced."""
    found = [name for name in ("best.pt", "last.pt") if (out / name).exists()]
    if found and not overwrite:
        raise UserError(
            f"{out} holds another run ({', '.join(found)}): go on with it by --init_from=resume, "
            f"choose another --out_dir, or replace it by --overwrite=True"
        )


class Record:
    """The files of a run and its trackers. What cannot be written is said, noted, and does not end the training.

    Of several processes only the first writes.
    """

    def __init__(self, settings: SimpleNamespace, facts: dict[str, Any], step: int, evaluated: int) -> None:
        """Begin a record, or take up that of a resumed run, which is at a step and its evaluations at another."""
        self.out, self.facts, self.reference_accuracy = Path(settings.out_dir), facts, settings.reference_accuracy
        self.failed: dict[str, str] = {}  # what could not be written at the last attempt, and why
        is_first = distributed.rank() == 0
        self.trackers = open_trackers(settings, facts, self.out, step) if is_first else []
        if step and is_first:
            begin_log(self.out / "log.csv", step, evaluated)

    def begin(self) -> None:
        """Write what a new run begins with: not sooner than after its first step, so that failing changes nothing."""
        self._write("log.csv", lambda path: begin_log(path, 0, 0))
        self.write_facts()

    def add_row(self, **row: float | str) -> None:
        """Add a row to log.csv, and give it to the trackers."""
        self._write("log.csv", lambda path: append_to_log(path, **row))
        for track in self.trackers:
            self._write("trackers", lambda _, track=track: track(row), "cannot track the run")

    def write_checkpoint(self, name: str, model: nn.Module, **parts: dict[str, Any]) -> None:
        """Write best.pt or last.pt; the facts go in, too."""
        self._write(name, lambda path: checkpoint.save(path, model, run=self.facts, **parts))

    def write_facts(self) -> None:
        """Write run.json."""
        self._write("run.json", lambda path: write_json(path, self.facts))

    def draw_curves(self) -> None:
        """Draw curves.png from log.csv."""
        self._write("curves.png", self._draw, f"cannot draw {self.out / 'curves.png'}")

    def _draw(self, path: Path) -> None:
        from classifier.plots import draw_curves  # here, since importing matplotlib takes a second

        draw_curves(path, self.out / "log.csv", self.reference_accuracy)
        gc.collect()  # figures are cycles of megabytes, which else pile up

    def _write(self, name: str, action: Callable[[Path], None], failure: str = "") -> None:
        """Call action(path). A failure of any kind is forgiven where words for it are given: it is no checkpoint."""
        if distributed.rank() > 0:
            return
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            action(self.out / name)
            self.failed.pop(name, None)
        except Exception as error:
            if not failure and not isinstance(error, UserError | OSError):
                raise
            message = f"{failure}: {error}" if failure else str(error)
            if name not in self.failed:
                tqdm.write(f"warning: {message}; training goes on", file=sys.stderr)
            self.failed[name] = message


def begin_log(path: Path, step: int, evaluated: int) -> None:
    """Write log.csv anew: its header, and of a resumed run the rows up to its step and the last evaluation's."""
    rows = []
    if step and path.is_file():
        for line in path.read_bytes().decode("utf-8", "replace").splitlines():
            # a killed run may have left half a line, and rows of steps that are now taken again
            whole = re.fullmatch(r"([0-9]{1,15}),[0-9.e-]+,(train|dev)(,[^,]*){6}", line)
            if whole and int(whole[1]) <= (step if whole[2] == "train" else evaluated):
                rows.append(line)
    with written_whole(path, "w") as f:
        f.writelines(line + "\n" for line in [",".join(LOG_COLUMNS), *rows])


def append_to_log(path: Path, **values: float | str) -> None:
    """Append a row to log.csv, numbers in full precision."""
    with open(path, "a", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, LOG_COLUMNS, lineterminator="\n")
        if f.tell() == 0:  # its folder was removed in the meantime
            writer.writeheader()
        writer.writerow(values)


def run_facts(settings: dict[str, Any], data: dict[str, Any], model: nn.Module, device: str) -> dict[str, Any]:
    """Return what a result hangs on: settings, code, versions, machine, data and the weights at the start."""
    return {
        "command": [word.encode("utf-8", "backslashreplace").decode() for word in sys.argv],
        "settings": dict(settings),
        "git": _git_state(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        "system": platform.platform(),
        "device": device,
        "dtype": settings["dtype"],
        "threads": torch.get_num_threads(),
        "data": data,
        "initial_weights_sha256": _weights_sha256(model),
        "seed": settings["seed"],
        "started": now(),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON for people to read, too."""
    with written_whole(path, "w") as f:
        json.dump(content, f, indent=2, ensure_ascii=False)
        f.write("\n")


def now() -> str:
    """Return the time as ISO 8601 has it, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _git_state() -> dict[str, Any] | None:
    """Return this code's commit and whether files differ from it, or None where git or its repository is missing."""

    def git(*words: str) -> str:
        folder = Path(__file__).resolve().parent
        return subprocess.run(
            ["git", "-C", folder, *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _weights_sha256(model: nn.Module) -> str:
    """Return the sha256 over the names and the bytes of all parameters, in their order."""
    digest = hashlib.sha256()
    for name, parameter in model.state_dict().items():
        digest.update(name.encode())
        digest.update(parameter.cpu().contiguous().numpy())
    return digest.hexdigest()
