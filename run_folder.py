"""What a run keeps in its out_dir beside the checkpoints: log.csv, a row a step, and run.json, all its facts."""

import csv
import datetime
import hashlib
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from errors import UserError
from files import written_whole

LOG_COLUMNS = ["step", "epoch", "split", "loss", "accuracy"]
LOG_COLUMNS += ["learning_rate", "grad_norm", "examples_per_second", "seconds"]


def refuse_to_replace_a_run(out: Path) -> None:
    """Raise a UserError where out_dir holds another run."""
    found = [name for name in ("best.pt", "last.pt") if (out / name).exists()]
    if found:
        raise UserError(
            f"{out} holds another run ({', '.join(found)}): go on with it by --init_from=resume, "
            f"choose another --out_dir, or replace it by --overwrite=True"
        )


def start_log(path: Path, step: int, evaluated: int) -> None:
    """Write log.csv anew: its header, and of a resumed run the rows up to the step and the evaluation it starts at."""
    rows = []
    if step and path.is_file():
        for line in path.read_bytes().decode("utf-8", "replace").splitlines():
            # a killed run may have left half a line, and rows of steps that are now taken again
            whole = re.fullmatch(r"([0-9]{1,15}),[0-9.e-]+,(train|dev)(,[^,]*){6}", line)
            if whole and int(whole[1]) <= (step if whole[2] == "train" else evaluated):
                rows.append(line)
    with written_whole(path, "w") as f:
        f.writelines(line + "\n" for line in [",".join(LOG_COLUMNS), *rows])


def write_log(path: Path, **values: float | str) -> None:
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


def write_run(path: Path, facts: dict[str, Any]) -> None:
    """Write run.json."""
    with written_whole(path, "w") as f:
        json.dump(facts, f, indent=2, ensure_ascii=False)
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
