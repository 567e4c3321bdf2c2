"""TensorBoard and Weights & Biases, for those who ask for them: each gets every row of log.csv."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm

from classifier.errors import UserError

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
