"""What is shown of a training while it runs: a progress bar, or lines where there is no terminal; and trackers."""

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm

from classifier.errors import UserError
from classifier.training.progress import Progress

SECONDS_BETWEEN_LINES = 5


class Display:
    """Shows a Progress, and the speed since it was made; its bar counts the examples of the step at hand, too."""

    def __init__(self, progress: Progress, is_hidden: bool) -> None:
        self.progress, self.first_step, self.began_at, self.line_due = progress, progress.step, time.monotonic(), 0.0
        done, total = (progress.examples_before(step) for step in (progress.step, progress.last_step))
        is_disabled = is_hidden or not sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, unit="ex", disable=is_disabled, dynamic_ncols=True)

    def set_back(self) -> None:
        """Show only what is counted in progress: the steps that have been taken."""
        self.bar.n = self.progress.examples_before(self.progress.step)

    def show_step(self, loss: float, learning_rate: float, examples_per_second: float) -> None:
        """Show a step that was taken."""
        progress = self.progress
        self.set_back()
        self.bar.set_description(f"epoch {min(int(progress.epoch) + 1, progress.epochs)}/{progress.epochs}", False)
        self.bar.set_postfix(loss=f"{loss:.3f}")
        if self.bar.disable and time.monotonic() > self.line_due:
            taken, left = progress.step - self.first_step, progress.last_step - progress.step
            time_left = timedelta(seconds=round((time.monotonic() - self.began_at) / taken * left))
            step = f"step {progress.step}/{progress.last_step}: loss {loss:.4f}, lr {learning_rate:.1e}"
            print(f"{step}, {examples_per_second:.1f} examples/s, {time_left} left", flush=True)
            self.line_due = time.monotonic() + SECONDS_BETWEEN_LINES

    def show_evaluation(self, figures: dict[str, float], is_best: bool) -> None:
        """Show how good the model is on the dev set."""
        mark = ", the best so far" if is_best else ""
        tqdm.write(f"epoch {self.progress.epoch:.4g}: {in_words(figures)}{mark}")
        if self.progress.is_out_of_patience:
            tqdm.write(f"patience={self.progress.patience}: no better evaluation for so long, so the run ends")


def in_words(figures: dict[str, float]) -> str:
    """Return an evaluation's figures on one line."""
    macro_f1 = f", macro-F1 {figures['macro_f1']:.3f}" if "macro_f1" in figures else ""
    return f"dev accuracy {figures['accuracy']:.3f}, loss {figures['loss']:.4f}{macro_f1}"


def show_results(progress: Progress, out: Path) -> None:
    """Print what came out of a run in a folder."""
    if best := progress.best:
        print(f"best: epoch {best['epoch']:.4g}, {in_words(best)}")
    if progress.skipped:
        print(f"skipped: {progress.skipped} of {progress.step} steps, whose gradient was not finite in float16")
    print(f"wall time {timedelta(seconds=round(progress.seconds))}; the results are in {out}{os.sep}")


# -----------------------------------------------------------------------------
# TensorBoard and Weights & Biases, for those who ask for them: each gets every row of log.csv

Tracker = Callable[[dict[str, Any]], None]


def open_trackers(settings: SimpleNamespace, run: dict[str, Any], out: Path, step: int) -> list[Tracker]:
    """Return, for each tracker that is asked for, the function that sends it a row of log.csv, which never raises.

    Args:
        run: the facts of run.json; a resumed run, which has the same ones, goes on in the same curves.
        step: the last step that has been taken: what a tracker holds of later ones is dropped or written over.

    Raises:
        UserError: Weights & Biases cannot start.
    """
    name = str(run["started"]).replace(":", "") + f"-seed{run['seed']}"  # a run's own, and a file name on every system
    trackers = []
    if settings.tensorboard_log:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(out / "tensorboard" / name), purge_step=step + 1 if step else None)

        def to_tensorboard(figures: dict[str, float], step: int) -> None:
            for name, value in figures.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        trackers.append(_forgiving(to_tensorboard))
    if settings.wandb_log:
        import wandb

        who = {"project": settings.wandb_project, "name": settings.wandb_run_name or str(out)}
        try:
            wandb.init(**who, id=name.replace("+", "-"), resume="allow", dir=str(out), config=run["settings"])
        except Exception as error:  # its own, and those of whatever it talks to
            raise UserError(f"wandb_log: cannot start ({error}): `wandb login`, or WANDB_MODE=offline") from None
        trackers.append(_forgiving(lambda figures, step: wandb.log(figures, step=step)))
    return trackers


def _forgiving(send: Callable[[dict[str, float], int], None]) -> Tracker:
    """Return the tracker that sends figures of a step; that it fails is told once, and does not end the training."""
    failures = []

    def track(row: dict[str, Any]) -> None:
        figures = {f"{row['split']}/{key}": value for key, value in row.items() if key not in ("split", "step")}
        try:
            send(figures, row["step"])
        except Exception as error:  # the network's, the disk's, or the tracker's own
            if not failures:
                tqdm.write(f"warning: cannot track the run: {error}; training goes on", file=sys.stderr)
            failures.append(error)

    return track
