"""TensorBoard and Weights & Biases, for those who ask for them: each gets every row of log.csv."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from classifier.errors import UserError


def open_trackers(
    settings: SimpleNamespace, run: dict[str, Any], out: Path, step: int
) -> list[Callable[[dict[str, Any]], None]]:
    """Return, for each tracker that is asked for, the function that sends it a row of log.csv.

    Args:
        run: the facts of run.json; a resumed run, which has the same ones, goes on in the same curves.
        step: the last step that has been taken: what a tracker holds of later ones is dropped or written over.

    Raises:
        UserError: a tracker's package is not installed, or it cannot start.
    """
    name = str(run["started"]).replace(":", "") + f"-seed{run['seed']}"  # a run's own, and a file name on every system
    trackers = []
    if settings.tensorboard_log:
        _require("tensorboard", "tensorboard_log")
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(out / "tensorboard" / name), purge_step=step + 1 if step else None)

        trackers.append(lambda row: _to_tensorboard(writer, row))
    if settings.wandb_log:
        _require("wandb", "wandb_log")
        try:
            import wandb

            wandb.init(
                project=settings.wandb_project,
                name=settings.wandb_run_name or str(out),
                id=name.replace("+", "-"),
                resume="allow",
                dir=str(out),
                config=run["settings"],
            )
        except Exception as error:  # its own, and those of whatever it talks to
            raise UserError(
                f"wandb_log: Weights & Biases cannot start ({error}): `wandb login`, or WANDB_MODE=offline"
            ) from None
        trackers.append(lambda row: wandb.log(_figures(row), step=row["step"]))
    return trackers


def _to_tensorboard(writer: Any, row: dict[str, Any]) -> None:
    for key, value in _figures(row).items():
        writer.add_scalar(key, value, row["step"])
    writer.flush()


def _require(package: str, setting: str) -> None:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:  # the latter: a mere folder of that name
        raise UserError(f"{setting}=True needs a package that is not installed: run `pip install {package}`")


def _figures(row: dict[str, Any]) -> dict[str, float]:
    """Return a row's figures under their names: train/loss, dev/accuracy, ..."""
    return {f"{row['split']}/{key}": value for key, value in row.items() if key not in ("split", "step")}
