"""Checkpoints: written whole or not at all, read without unpickling, checked before use.

A checkpoint is a dict of
    format, format_version    what this file is
    config                    GPTConfig's fields
    model                     name -> float32 tensor
    data                      what the model was trained on: start.load_data's facts
    settings                  the run's full configuration
    progress                  epoch, and progress.STORED
    run                       what the result hangs on: start.run_facts, and the best evaluation so far
and, in last.pt, optimizer and scaler: what resuming needs.
"""

import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from classifier.errors import UserError
from classifier.files import written_whole
from model import GPT, GPTConfig

FORMAT = "gpt2-classifier"
FORMAT_VERSION = 2
PARTS = {"config", "model", "data", "settings", "progress", "run"}


def save(path: Path, model: GPT, **parts: dict[str, Any]) -> None:
    """Write a checkpoint so that at any moment path holds the old one or the new one, whole.

    Args:
        path: the file to write.
        model: its configuration and weights go in.
        parts: data, settings, progress, run and, to be able to resume, optimizer and scaler.

    Raises:
        OSError: the disk is full, or path cannot be written.
    """
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "config": asdict(model.config)}
    with written_whole(path) as f:
        torch.save(content | {"model": model.state_dict(), **parts}, f)


def load(path: str | Path) -> tuple[GPT, dict[str, Any]]:
    """Return a checkpoint's model, on the CPU, and the checkpoint.

    Raises:
        UserError: no such file, not a whole checkpoint of this program, or another format version.
    """
    path = Path(path)
    if not path.is_file():
        why = "it is a folder" if path.is_dir() else "finetune.py writes it at its first evaluation"
        raise UserError(f"there is no checkpoint {path}: {why}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch's format; torch itself does not look at the checksums
            if archive.testzip() is not None:
                raise ValueError
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception:  # zipfile and torch.load raise whatever the broken bytes lead them into
        raise UserError(f"{path} is no whole checkpoint: truncated, damaged or of another program") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not content.keys() >= PARTS:
        raise UserError(f"{path} is no checkpoint of finetune.py")
    if content["format_version"] != FORMAT_VERSION:
        version = content["format_version"]
        raise UserError(f"{path} has format version {version!r:.20}, and this program reads {FORMAT_VERSION}")
    try:
        with torch.device("meta"):  # shapes only
            model = GPT(GPTConfig(**content["config"]))
        # copies, since the file is only mapped
        model.load_state_dict({name: tensor.clone() for name, tensor in content["model"].items()}, assign=True)
        fits = all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    except (TypeError, ValueError, AttributeError, RuntimeError):
        fits = False
    if not fits:
        raise UserError(f"{path} is damaged: its weights do not fit its configuration")
    return model, content


def load_training_state(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, saved: dict[str, Any], path: Path
) -> None:
    """Put a checkpoint's moments into AdamW, whose settings are the run's own, and its scale into the scaler.

    Raises:
        UserError: the state does not belong to these parameters.
    """
    state = {"param_groups": optimizer.state_dict()["param_groups"]}
    try:
        optimizer.load_state_dict(state | {"state": saved["optimizer"]["state"]})
        scaler.load_state_dict(saved["scaler"])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        fits = all(optimizer.state[p]["exp_avg"].shape == p.shape for p in parameters)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        fits = False
    if not fits:
        raise UserError(f"{path} is damaged: its optimizer state does not fit its weights")


def step_of_best(path: Path, run: dict[str, Any]) -> int | None:
    """Return after which step the weights in a run's best.pt were evaluated; None where the file is gone.

    Args:
        run: the facts of the run that the file must come from.

    Raises:
        UserError: it is damaged, or of another run.
    """
    if not path.exists():
        return None
    _, saved = load(path)
    its_run = [(facts["started"], facts.get("initial_weights_sha256")) for facts in (saved["run"], run)]
    if its_run[0] != its_run[1]:
        raise UserError(f"{path} is no best.pt of the run of {path.with_name('last.pt')}: move one of them elsewhere")
    return saved["progress"]["step"]
