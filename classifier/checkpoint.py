"""Checkpoints: written whole or not at all, read without unpickling, checked before use.

A checkpoint is a dict of
    format, format_version    what this file is
    config                    GPTConfig's fields
    model                     name -> float32 tensor
    data                      what the model was trained on: initial.load_data's facts
    settings                  the run's full configuration
    progress                  epoch, and progress.STORED
    run                       what the result hangs on: facts.run_facts
and, in last.pt, optimizer and scaler: what resuming needs.
"""

import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from classifier.errors import UserError
from classifier.files import file_sha256, written_whole
from classifier.schema import EVALUATION, are_names, is_count, is_finite, is_plain, is_positive, misfit
from model import GPT, GPTConfig

FORMAT = "gpt2-classifier"
FORMAT_VERSION = 2
START = {"path": str, "sha256": str, "folder": str, "files": dict}  # of a checkpoint that a training began from
CONTENT = {  # the schema of what must be in a checkpoint
    "config": dict,
    "model": dict,
    "settings": {"init_from": str, "prompt": str},
    "data": {
        "task": str,
        "label_names": are_names,
        "detokenized": bool,
        "folder": str,
        "leading_space": bool,
        "examples": {"train": is_positive, "dev": is_positive},
        "files": dict,
        "ancestors": lambda value: isinstance(value, list) and all(misfit(start, START) is None for start in value),
    },
    "run": {"settings": dict, "started": str, "seed": int},
    "progress": {
        "step": is_count,
        "epoch": is_finite,
        "evaluated": is_count,
        "seconds": lambda value: type(value) is float and 0 <= value < 1e12,
        "token_budget": is_positive,
        "skipped": is_count,
        "best": lambda value: value == {} or misfit(value, EVALUATION) is None,
        "unsaved": lambda value: value == {} or misfit(value, EVALUATION) is None,
    },
}
SCALER = {  # of the scaler's state, in float16; else it is empty
    "scale": is_finite,
    "growth_factor": is_finite,
    "backoff_factor": is_finite,
    "growth_interval": is_positive,
    "_growth_tracker": is_count,
}
PLAIN = dict.fromkeys(("settings", "data", "run", "progress"), is_plain)  # what run.json or a model card repeats


def save(path: Path, model: GPT, **parts: dict[str, Any]) -> None:
    """Write a checkpoint so that at any moment path holds the old one or the new one, whole.

    Args:
        path: the file to write.
        model: its configuration and weights go in.
        parts: data, settings, progress, run and, to be able to resume, optimizer and scaler.

    Raises:
        UserError: the disk is full, or path cannot be written.
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
        raise UserError(
            f"there is no checkpoint {path}" + (": it is a folder" if path.is_dir() else ": finetune.py writes it")
        )
    try:
        with zipfile.ZipFile(path) as archive:  # torch's format; torch itself does not look at the checksums
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            if not stored or archive.testzip() is not None:
                raise ValueError
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception:  # zipfile and torch.load raise whatever the broken bytes lead them into
        raise UserError(f"{path} is no whole checkpoint: truncated, damaged or of another program") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of finetune.py")
    version = content.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        shown = version if is_count(version) else "unknown"  # anything may stand there
        raise UserError(f"{path} has format version {shown}, and this program reads {FORMAT_VERSION}")
    if isinstance(content.get("progress"), dict):
        content["progress"].setdefault("unsaved", {})  # it came later than format version 2
    if isinstance(content.get("data"), dict):
        content["data"].setdefault("ancestors", [])  # and so did this
    if (wrong := misfit(content, CONTENT) or misfit(content, PLAIN)) is not None:
        raise UserError(f"{path} is damaged or incomplete: {wrong}")
    try:
        model = _model(content["config"], content["model"])
    except (TypeError, ValueError, AttributeError, RuntimeError):
        raise UserError(f"{path} is damaged: its weights do not fit its configuration") from None
    if len(content["data"]["label_names"]) != model.config.num_classes:
        raise UserError(f"{path} is damaged: its class names do not fit its configuration")
    return model, content


def copied(model: GPT) -> GPT:
    """Return a copy of a model, on the CPU."""
    return _model(asdict(model.config), {name: tensor.cpu() for name, tensor in model.state_dict().items()})


def _model(config: dict[str, Any], weights: dict[str, Any]) -> GPT:
    """Return the model, or raise whatever does not fit."""
    with torch.device("meta"):  # shapes only
        model = GPT(GPTConfig(**config))
    for tensor in weights.values():
        if tensor.dtype != torch.float32 or tensor.layout != torch.strided or not tensor.isfinite().all():
            raise ValueError
    # copies, since the file is only mapped
    model.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
    return model


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: Any, path: Path) -> None:
    """Put a checkpoint's moments into AdamW; its settings are the run's own.

    Raises:
        UserError: the state does not belong to these parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        state = saved["state"]
        if sorted(state) != list(range(len(parameters))):
            raise ValueError
        for number, parameter in enumerate(parameters):
            for key in ("exp_avg", "exp_avg_sq"):  # the fused AdamW trusts their shapes
                moment = state[number][key]
                if moment.shape != parameter.shape or moment.dtype != parameter.dtype or not moment.isfinite().all():
                    raise ValueError
            if state[number]["step"].shape != ():
                raise ValueError
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        raise UserError(f"{path} is damaged: its optimizer state does not fit its weights") from None


def evaluation_in(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Return the evaluation of the weights in a run's best.pt, with the file's sha256; {} where the file is gone.

    Args:
        run: the facts of the run that the file must come from.

    Raises:
        UserError: it is damaged, or not the best.pt of this run.
    """
    if not path.exists():
        return {}
    _, saved = load(path)
    best, step, theirs = saved["progress"]["best"], saved["progress"]["step"], saved["run"]
    its_run = [(facts["started"], facts.get("initial_weights_sha256")) for facts in (theirs, run)]
    if its_run[0] != its_run[1] or not best or best["step"] != step:
        raise UserError(f"{path} is no best.pt of the run of {path.with_name('last.pt')}: move one of them elsewhere")
    return best | {"sha256": file_sha256(path)}
