"""A fault at every system call that changes files: death, or a full disk. TORTURE=1 takes each, else every so many."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPO, command, succeed
from runs import RUN, read_log, same_state

from classifier import checkpoint

TORTURE = "TORTURE" in os.environ
FAULTS = REPO / "tests" / "faults"
STRIDES = {"finetune": 29, "overwrite": 53, "prepare": 9, "evaluate": 17, "export": 9}  # without TORTURE


pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the shim is preloaded as Linux's loader does it"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, as cc, for tests/faults/shim.c"),
]


@pytest.fixture
def shim(tmp_path) -> Path:
    """tests/faults/shim.c, compiled."""
    path = tmp_path / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", path, FAULTS / "shim.c", "-ldl"], check=True)
    return path


@pytest.mark.parametrize("mode", ["k", "f"])
@pytest.mark.parametrize("job", STRIDES)
def test_a_fault_at_any_call_leaves_the_old_or_the_new_and_is_forgotten(tmp_path, shim, job, mode):
    place = {"FAULT_ROOT": str(tmp_path / "root"), "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"}
    first = 0 if TORTURE else 4
    words = [sys.executable, FAULTS / "every_call.py", job, mode, str(first), str(1 if TORTURE else STRIDES[job])]
    done = subprocess.run(words, env=os.environ | place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(report)
    assert report["faults"] > 0 and report["calls"] > 20


# -----------------------------------------------------------------------------
# pairs of faults

KINDS = ("kill", "full disk", "removed folder", "SIGTERM", "SIGSTOP")
FIGURES = ("step", "split", "loss", "accuracy", "learning_rate", "grad_norm")


class Patient:
    """A run of a thousand epochs that is started again whenever it has ended."""

    def __init__(self, folder: Path, shim: Path) -> None:
        self.folder, self.out, self.full = folder, folder / "out", folder.parent / "full"
        self.environment = os.environ | {"FAULT_ROOT": str(folder), "LD_PRELOAD": str(shim)}
        self.process = None

    def start(self) -> None:
        if self.process and self.process.poll() is None:
            return
        how = "--init_from=resume" if (self.out / "last.pt").is_file() else "--overwrite=True"
        words = [sys.executable, str(REPO / RUN[0]), *RUN[1:], "--epochs=1000", "--save_interval=3", how]
        streams = {"stdout": subprocess.DEVNULL, "stderr": open(self.folder / "stderr", "a")}
        self.process = subprocess.Popen(words, cwd=self.folder, env=self.environment, **streams)
        log = self.out / "log.csv"
        before = log.stat().st_size if log.is_file() else 0
        for _ in range(1200):  # until it takes steps
            if self.process.poll() is not None or (log.is_file() and log.stat().st_size != before):
                return
            time.sleep(0.05)
        raise AssertionError("no step in a minute")

    def suffer(self, kind: str, number: int, chance: random.Random) -> None:
        time.sleep(chance.uniform(0, 0.5))
        if kind == "kill":
            self.process.kill()
        elif kind == "SIGTERM":
            self.process.terminate()
        elif kind == "full disk":
            self.full.touch()
            time.sleep(chance.uniform(0, 1))
        elif kind == "removed folder" and self.out.is_dir():
            self.out.rename(self.folder / f"gone-{number}")
        elif kind == "SIGSTOP":
            self.process.send_signal(signal.SIGSTOP)
            time.sleep(0.2)
            self.process.send_signal(signal.SIGCONT)
        if kind in ("kill", "SIGTERM"):
            assert self.process.wait(60) in (-signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM, 1)


def assert_true(out: Path, whole: dict[tuple[str, str], dict[str, str]]) -> None:
    """Every row of the log and every best is one of the unbroken run's; every checkpoint is whole."""
    for row in read_log(out / "log.csv")[:-1] if (out / "log.csv").is_file() else []:  # the last may be half a row
        expected = whole[row["step"], row["split"]]
        assert [row[name] for name in FIGURES] == [expected[name] for name in FIGURES]
    for path in out.glob("*.pt"):
        progress = checkpoint.load(path)[1]["progress"]
        if best := progress["best"]:
            expected = whole[str(best["step"]), "dev"]
            assert all(best[name] == float(expected[name]) for name in ("accuracy", "loss"))
            assert path.name == "last.pt" or best["step"] == progress["step"]


def test_pairs_of_faults_in_a_row_leave_a_true_record(workspace, shim, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    chance, patient = random.Random(0), Patient(workspace, shim)
    records = []
    for number in range(40 if TORTURE else 3):
        for kind in chance.sample(KINDS, 2):
            patient.start()
            patient.suffer(kind, number, chance)
        patient.process.kill()
        patient.process.wait()
        patient.full.unlink(missing_ok=True)
        shutil.copytree(patient.out, workspace / f"after-{number}") if patient.out.is_dir() else None
        records.append(workspace / f"after-{number}")
    assert "Traceback" not in (workspace / "stderr").read_text()
    patient.start()
    patient.process.terminate()
    patient.process.wait()
    last = checkpoint.load(patient.out / "last.pt")[1]
    step = max(checkpoint.load(path)[1]["progress"]["step"] for path in workspace.glob("*/*.pt"))
    logged = (int(row["step"]) for path in workspace.glob("*/log.csv") for row in read_log(path)[:-1])
    most = max(step, *logged)
    unbroken = [*RUN, "--epochs=1000", f"--max_steps={most + 7 - most % 7}", "--out_dir=unbroken"]
    succeed(*unbroken, cwd=workspace, run=command)  # with as many threads as the runs that suffered
    whole = {(row["step"], row["split"]): row for row in read_log(workspace / "unbroken" / "log.csv")}
    for record in [*records, patient.out]:
        assert_true(record, whole)
    same = [*RUN, "--epochs=1000", f"--max_steps={last['progress']['step']}", "--out_dir=same"]
    succeed(*same, cwd=workspace, run=command)
    assert same_state(last["model"], checkpoint.load(workspace / "same" / "last.pt")[1]["model"])
