"""What a run's result hangs on: its settings, code, machine, data and the weights at its start."""

import datetime
import hashlib
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


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


def now() -> str:
    """Return the time as ISO 8601 has it, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _git_state() -> dict[str, Any] | None:
    """Return this code's commit and whether files differ from it, or None where git or its repository is missing."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": found.removesuffix("-dirty"), "dirty": found.endswith("-dirty")}


def _weights_sha256(model: nn.Module) -> str:
    """Return the sha256 over the names and the bytes of all parameters, in their order."""
    digest = hashlib.sha256()
    for name, parameter in model.state_dict().items():
        digest.update(name.encode())
        digest.update(parameter.cpu().contiguous().numpy())
    return digest.hexdigest()
