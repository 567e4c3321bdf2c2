"""Checkpoints: written whole or not at all, read without unpickling, checked before use.

A checkpoint is a dict of
    format, format_version    what this file is
    config                    GPTConfig's fields
    model                     name -> float32 tensor
    data                      what the model was trained on: start.load_data's facts
    settings                  the run's full configuration
    progress                  epoch, and finetune.py's state: step, seconds, token_budget, skipped, best
    run                       what the result depends on: record.run_facts, and the best evaluation so far
and, in last.pt, optimizer and scaler, which resuming needs.
"""

import errno
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from classifier.errors import UserError, did_you_mean, is_out_of_memory, tell
from classifier.files import written_whole
from classifier.settings import MAY_CHANGE, differences
from model import GPT, GPTConfig

FORMAT = "gpt2-classifier"
FORMAT_VERSION = 2
PARTS = {"config", "model", "data", "settings", "progress", "run"}


def save(path: Path, model: GPT, **parts: Any) -> None:
    """Write a model and the parts above, so that at any moment path is the old checkpoint or the new one, whole."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "config": asdict(model.config)}
    with written_whole(path) as f:
        torch.save(content | {"model": model.state_dict(), **parts}, f)


def load(path: str | Path) -> tuple[GPT, dict[str, Any]]:
    """Load a checkpoint; return its model, on the CPU, and the whole content.

    Raises:
        UserError: no such file, not a whole checkpoint of this program, or another format version.
        OSError, MemoryError, RuntimeError: the machine cannot read the file, which may be a good one.
    """
    path = Path(path)
    if not path.is_file():
        why = "it is a folder" if path.is_dir() else "finetune.py writes it at its first evaluation"
        there = sorted(Path().glob("*/best.pt"))[:1]
        meant = did_you_mean(path / "best.pt" if path.is_dir() else path)
        meant = meant or "".join(f"; did you mean {other}?" for other in there)
        raise UserError(f"there is no checkpoint {path}: {why}{meant}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch's format, whose checksums torch itself does not verify
            if archive.testzip() is not None:
                raise ValueError
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes lead zipfile and torch.load into any error
        is_unreadable = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
        if is_unreadable or is_out_of_memory(error):
            raise
        raise UserError(f"{path} is not a whole checkpoint: truncated, damaged, or from another program") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not content.keys() >= PARTS:
        raise UserError(f"{path} is no checkpoint of finetune.py")
    if content["format_version"] != FORMAT_VERSION:
        version = content["format_version"]
        raise UserError(f"{path} has format version {version!r:.20}, and this program reads {FORMAT_VERSION}")
    try:
        with torch.device("meta"):  # shapes only
            model = GPT(GPTConfig(**content["config"]))
        model.load_state_dict(content["model"], assign=True)
        # isfinite would copy the weights
        fits = all(p.dtype == torch.float32 and torch.stack(p.aminmax()).isfinite().all() for p in model.parameters())
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        fits = False
    if not fits:
        raise UserError(f"{path} is damaged: its weights do not fit its configuration")
    return model, content


# -----------------------------------------------------------------------------
# resuming


def load_to_resume(path: Path, settings: Any, files: dict[str, Any]) -> tuple[GPT, dict[str, Any]]:
    """Load last.pt, and check that its run had the same settings, but for those that may change, and the same data."""
    model, saved = load(path)
    if "optimizer" not in saved:
        raise UserError(f"{path} has no optimizer state: only last.pt can be resumed")
    if saved["data"]["files"] != files:
        raise UserError(f"{path} was trained on other data than what {settings.data_dir} contains now")
    before, now = {"keep": "last"} | saved["settings"], dict(vars(settings))  # older runs had no keep
    if now["dtype"] == "auto":  # stays what it was, on whatever machine
        now["dtype"] = before["dtype"]
    elif before["dtype"] == "auto":
        before["dtype"] = saved["run"]["dtype"]
    free = MAY_CHANGE - {"epochs"} if settings.lr_schedule == "cosine" else MAY_CHANGE
    if changed := differences(before, now, free):
        how = "repeat the run's own command and add --init_from=resume"
        raise UserError(f"cannot resume {path} with other settings: {changed}: {how}")
    return model, saved


def load_training_state(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, saved: dict[str, Any], path: Path
) -> None:
    """Put a checkpoint's moments into AdamW, which keeps the run's own settings, and its scale into the scaler."""
    state = optimizer.state_dict()
    try:
        for group, before in zip(state["param_groups"], saved["optimizer"]["param_groups"], strict=True):
            group["lr"] = before["lr"]  # until the next step sets it: a run may save before it takes one
        optimizer.load_state_dict(state | {"state": saved["optimizer"]["state"]})
        scaler.load_state_dict(saved["scaler"])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        fits = all(optimizer.state[p]["exp_avg"].shape == p.shape for p in parameters)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        fits = False
    if not fits:
        raise UserError(f"{path} is damaged: its optimizer state does not fit its weights")


def best_evaluation(path: Path, last: dict[str, Any]) -> dict[str, Any]:
    """Return the evaluation of best.pt's weights, {} without that file; `last` is the content of last.pt."""
    if not path.exists():
        if 0 < last["progress"]["best"].get("step", 0) < last["progress"]["step"]:  # else it was about to be written
            tell(f"note: {path} is missing, and with it the best weights so far")
        return {}
    best = load(path)[1]
    if any(best["run"].get(fact) != last["run"].get(fact) for fact in ("started", "initial_weights_sha256")):
        raise UserError(f"{path} is from another run than {path.with_name('last.pt')}: move one of them elsewhere")
    return best["progress"]["best"]
