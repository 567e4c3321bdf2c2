"""What the tests of whole runs share: the command of a tiny one, started or patched, and how two are compared."""

import csv
import subprocess
import sys

import torch
from conftest import REPO

from classifier import checkpoint

TINY = ["--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=32", "--batch_size=64", "--dtype=float32"]
RUN = ["finetune.py", "config/sample.py", *TINY]
TIMES = {"seconds", "examples_per_second", "sha256", "started", "ended", "command"}


def read_log(path) -> list[dict[str, str]]:
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def start(*words: str, cwd) -> subprocess.Popen:
    """Start finetune.py without waiting for it."""
    words = [sys.executable, "-u", str(REPO / RUN[0]), *RUN[1:], *words]
    return subprocess.Popen(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen, beginning: str) -> None:
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(process.stderr.read())


def patched(patch: str, script: str, *arguments: str) -> str:
    """Return Python code that executes patch and then a script of the project."""
    code = f"import runpy, sys, torch\nsys.path.insert(0, {str(REPO)!r})\n{patch}\n"
    return code + f"sys.argv = {[str(REPO / script), *arguments]!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')"


def run_patched(patch: str, *words: str, cwd) -> subprocess.CompletedProcess:
    """Run a script of the project in a process that has executed patch before."""
    return subprocess.run([sys.executable, "-c", patched(patch, *words)], cwd=cwd, capture_output=True, text=True)


def same_state(a: dict, b: dict) -> bool:
    """Whether two nested dicts are equal, tensors bit by bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_state, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def timeless(facts: dict) -> dict:
    """What a run tells of itself, without its times and what depends on them."""
    kept = {key: value for key, value in facts.items() if key not in TIMES}
    return {key: timeless(value) if isinstance(value, dict) else value for key, value in kept.items()}


def assert_same_run(a, b) -> None:
    """Compare two out_dirs bit by bit: last.pt and best.pt, and log.csv but for its times."""
    for name in ("last.pt", "best.pt"):
        first, second = (checkpoint.load(folder / name)[1] for folder in (a, b))
        for part in ("model", "optimizer"):
            assert same_state(first.get(part, {}), second.get(part, {})), (name, part)
        progress = [timeless(saved["progress"]) for saved in (first, second)]
        assert progress[0] == progress[1], name
    assert [*map(timeless, read_log(a / "log.csv"))] == [*map(timeless, read_log(b / "log.csv"))]
