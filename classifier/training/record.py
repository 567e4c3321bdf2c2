"""What a run tells about itself: the rows of log.csv, TensorBoard and Weights & Biases, and the facts in run.json."""

import csv
import datetime
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from classifier import distributed
from classifier.errors import UserError, tell
from classifier.files import write_json, written_whole
from classifier.training.start import initial_weights

COLUMNS = ["step", "epoch", "split", "loss", "accuracy", "learning_rate", "grad_norm", "examples_per_second", "seconds"]
COLUMNS += ["macro_f1"]  # with best_by=macro_f1

Tracker = Callable[[dict[str, Any]], None]  # sends a row of log.csv

# -----------------------------------------------------------------------------
# rows: one for each step and each evaluation


def open_log(out: Path, facts: dict[str, Any], step: int) -> IO[str]:
    """Begin run.json and log.csv, having removed the files of a run that is replaced; or continue a resumed run's.

    Args:
        step: the one that the run is resumed after; 0 for a new run. The log keeps its rows up to there, except the
            evaluation after that step, which a resumed run repeats.
    """
    path, rows = out / "log.csv", []
    if step == 0:
        for name in ("last.pt", "best.pt", "curves.png"):  # last.pt first, since best.pt alone cannot be resumed
            (out / name).unlink(missing_ok=True)
    write_json(out / "run.json", facts)
    if step and not path.is_file():
        tell(f"note: {path} is missing, and with it the rows and curves up to step {step}")
    elif step:
        text = path.read_text(encoding="utf-8", errors="replace")
        rows = [line.split(",") for line in text.split("\n")[1:-1]]  # a killed run may have left half a line
        rows = [row for row in rows if row[0].isdecimal() and len(row[0]) < 16]
        rows = [row for row in rows if len(row) in (len(COLUMNS) - 1, len(COLUMNS))]
        rows = [row for row in rows if int(row[0]) < step or (int(row[0]) == step and row[2] == "train")]
        rows = [row + [""] * (len(COLUMNS) - len(row)) for row in rows]  # older logs have no macro_f1
    with written_whole(path, "w") as f:
        f.writelines(",".join(row) + "\n" for row in [COLUMNS, *rows])
    return open(path, "a", buffering=1, newline="", encoding="utf-8")


def write_row(log: IO[str] | None, trackers: list[Tracker], row: dict[str, Any]) -> None:
    """Add a row to log.csv, if this process writes it, and to the trackers; one that fails is left out from then on."""
    if log is None:
        return
    try:
        csv.DictWriter(log, COLUMNS, lineterminator="\n").writerow(row)
    except OSError as error:
        raise UserError(f"cannot write {log.name}: {error.strerror}") from None
    for tracker in list(trackers):
        try:
            tracker(row)
        except Exception as error:  # the network's, the disk's, or the tracker's own
            tqdm.write(f"warning: a tracker failed and is left out from here on: {error}", file=sys.stderr)
            trackers.remove(tracker)


def to_disk(log: IO[str]) -> None:
    """Make the rows so far survive a power cut."""
    try:
        os.fsync(log.fileno())
    except OSError as error:
        raise UserError(f"cannot write {log.name}: {error.strerror}") from None


def describe(evaluation: dict[str, Any]) -> str:
    """Return an evaluation on one line."""
    line = f"epoch {evaluation['epoch']:.4g}: dev accuracy {evaluation['accuracy']:.3f}, loss {evaluation['loss']:.4f}"
    if "macro_f1" in evaluation:
        line += f", macro-F1 {evaluation['macro_f1']:.3f}"
    return line


def how_to_resume(step: int, last: Path, log: IO[str] | None) -> str:
    """Return how to resume a run that has stopped; before the first step, last.pt is that of a run to be replaced."""
    stopped = "stopped after 1 step" if step == 1 else f"stopped after {step} steps"
    if log is None or not last.is_file():
        return f"{stopped}: no last.pt was written yet"
    return f"{stopped}: to resume from {last}, repeat the command and add --init_from=resume"


def draw(out: Path, best_step: int, reference_accuracy: float) -> None:
    """Draw a run's log.csv as curves.png."""
    from classifier.training.curves import draw_curves  # matplotlib takes a second to import

    draw_curves(out / "curves.png", out / "log.csv", best_step, reference_accuracy)


def open_trackers(settings: Any, facts: dict[str, Any]) -> list[Tracker]:
    """Start the trackers that are asked for: TensorBoard, Weights & Biases."""
    trackers: list[Tracker] = []
    out, name = Path(settings.out_dir), f"{facts['started'].replace(':', '')}-seed{facts['seed']}"
    if settings.tensorboard_log:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(out / "tensorboard" / name))

        def to_tensorboard(row: dict[str, Any]) -> None:
            for key, value in figures_of(row).items():
                writer.add_scalar(key, value, row["step"])
            writer.flush()

        trackers.append(to_tensorboard)
    if settings.wandb_log:
        import wandb

        who = {"project": settings.wandb_project, "name": settings.wandb_run_name or settings.out_dir}
        try:
            wandb.init(**who, dir=settings.out_dir, config=facts["settings"])
        except Exception as error:  # its own, and those of whatever it talks to
            raise UserError(
                f"wandb_log: cannot start ({error}): run `wandb login`, or set WANDB_MODE=offline"
            ) from None
        trackers.append(lambda row: wandb.log(figures_of(row), step=row["step"]))
    return trackers


def figures_of(row: dict[str, Any]) -> dict[str, float]:
    """Name a row's figures as trackers group them: train/loss, dev/accuracy."""
    return {f"{row['split']}/{key}": value for key, value in row.items() if key not in ("split", "step")}


# -----------------------------------------------------------------------------
# facts: what a result depends on


def run_facts(settings: Any, data: dict[str, Any], model: nn.Module, device: str, dtype: str) -> dict[str, Any]:
    """Collect what a result depends on: settings, code, versions, machine, data and initial weights."""
    return {
        "command": [word.encode("utf-8", "backslashreplace").decode() for word in sys.argv],
        "settings": dict(vars(settings)),
        "initial_weights": initial_weights(settings.init_from),
        "git": _git_state(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        "system": platform.platform(),
        "device": device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        "data": data,
        "initial_weights_sha256": _weights_sha256(model),
        "seed": settings.seed,
        "started": now(),
    }


def now() -> str:
    """Return the time in UTC as ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _git_state() -> dict[str, Any] | None:
    """Return this code's commit and whether files differ from it, or None without git or its repository."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": found.removesuffix("-dirty"), "dirty": found.endswith("-dirty")}


def _weights_sha256(model: nn.Module) -> str:
    """Return the sha256 of all parameters' names and bytes, in their order."""
    digest = hashlib.sha256()
    for name, parameter in model.state_dict().items():
        digest.update(name.encode())
        digest.update(parameter.cpu().contiguous().numpy())
    return digest.hexdigest()
