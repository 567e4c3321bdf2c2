"""Checkpoints: written whole or not at all, read without unpickling, checked before use.

A checkpoint is a dict of
    format, format_version    what this file is
    config                    GPTConfig's fields
    model                     name -> float32 tensor
    data                      task, label_names, folder, leading_space: what the model was trained on
    settings                  the run's full configuration
    progress                  step, epoch, step_in_epoch, seconds, best
and, in last.pt, optimizer and scaler: what resuming needs.
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from errors import UserError
from model import GPT, GPTConfig

FORMAT = "gpt2-classifier"
FORMAT_VERSION = 1
KEYS = {"config": dict, "model": dict, "data": dict, "settings": dict, "progress": dict}


def save(path: Path, model: GPT, **parts: dict[str, Any]) -> None:
    """Write a checkpoint so that at any moment path holds the old one or the new one, whole.

    Args:
        parts: data, settings, progress and, to be able to resume, optimizer and scaler.

    Raises:
        UserError: the disk is full, or path cannot be written.
    """
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "config": asdict(model.config)}
    content |= {"model": model.state_dict(), **parts}
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as f:
            torch.save(content, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch's writer hides the OSError of a full disk behind a RuntimeError of its own
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(f"cannot write {path}: {cause.strerror}; what was there before is untouched") from None
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the rename, too, must survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def load(path: str | Path) -> tuple[GPT, dict[str, Any]]:
    """Return a checkpoint's model, on the CPU, and the checkpoint.

    Raises:
        UserError: no such file, not a whole checkpoint of this program, or another format version.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception:  # torch.load raises whatever the broken bytes lead it into
        raise UserError(f"{path} is no whole checkpoint: truncated, damaged or of another program") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of finetune.py")
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {content.get('format_version')}, and this program reads {FORMAT_VERSION}"
        )
    if not all(isinstance(content.get(key), kind) for key, kind in KEYS.items()):
        raise UserError(f"{path} is incomplete: it needs {', '.join(KEYS)}")
    try:
        with torch.device("meta"):
            model = GPT(GPTConfig(**content["config"]))
        model.load_state_dict({name: tensor.clone() for name, tensor in content["model"].items()}, assign=True)
    except (TypeError, ValueError, AttributeError, RuntimeError, UserError):
        raise UserError(f"{path} is damaged: its weights do not fit its configuration") from None
    return model, content
