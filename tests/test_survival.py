"""Stops of every kind lose nothing. TORTURE=1 runs the long version (make torture)."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPO, here, refuse, succeed
from runs import RUN, assert_same_run, read_log, start, wait_for

from classifier import checkpoint
from classifier.files import file_sha256
from classifier.training import predict

TORTURE = "TORTURE" in os.environ
LONGER = ["--epochs=8", "--save_interval=3"]  # 56 steps


@pytest.fixture(scope="module")
def unbroken(prepared_sample, tmp_path_factory):
    """The out_dir of a run that nothing stopped."""
    place = tmp_path_factory.mktemp("unbroken")
    shutil.copytree(prepared_sample / "data", place / "data")
    shutil.copytree(prepared_sample / "config", place / "config")
    succeed(*RUN, *LONGER, cwd=place)
    return place / "out"


def test_ctrl_c_stops_softly_and_the_run_resumes_to_the_same_bits(workspace, unbroken):
    process = start(*LONGER, cwd=workspace)
    wait_for(process, "epoch 2:")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "to resume from out/last.pt, repeat the command and add --init_from=resume" in errors
    assert "Traceback" not in errors
    assert len(read_log(workspace / "out" / "log.csv")) >= 16
    succeed(*RUN, *LONGER, "--init_from=resume", cwd=workspace)
    assert_same_run(workspace / "out", unbroken)


def test_a_terminal_that_is_closed_stops_the_run_softly(workspace, unbroken):
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))  # not on Windows
    ours, its = pty.openpty()
    own_terminal = lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0))  # noqa: E731
    words = [sys.executable, "-u", str(REPO / RUN[0]), *RUN[1:], *LONGER]
    process = subprocess.Popen(words, cwd=workspace, stdin=its, stdout=its, stderr=its, preexec_fn=own_terminal)
    os.close(its)
    shown = b""
    while b"epoch 2:" not in shown:
        shown += os.read(ours, 1000)
    os.close(ours)
    assert process.wait(60) == 128 + signal.SIGHUP
    succeed(*RUN, *LONGER, "--init_from=resume", cwd=workspace)
    assert_same_run(workspace / "out", unbroken)


def test_a_stop_while_evaluating_resumes_with_that_evaluation(workspace, unbroken, monkeypatch):
    whole = predict.predict

    def stopped_in_the_middle(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(*args)

    monkeypatch.setattr(predict, "predict", stopped_in_the_middle)
    done = here(*RUN, *LONGER, cwd=workspace)
    monkeypatch.undo()
    assert done.returncode == 143 and b"stopped after 7 steps" in done.stderr, done.stderr
    assert [row["split"] for row in read_log(workspace / "out" / "log.csv")] == ["train"] * 7
    succeed(*RUN, *LONGER, "--init_from=resume", cwd=workspace)
    assert_same_run(workspace / "out", unbroken)


def test_two_runs_in_one_folder_are_kept_apart_and_a_second_ctrl_c_ends_at_once(workspace):
    process = start("--epochs=1000", cwd=workspace)
    wait_for(process, "epoch 2:")  # the checkpoints of epoch 1 are written
    for option in ("--overwrite=True", "--init_from=resume"):
        message = refuse(*RUN, option, cwd=workspace)
        assert "out is in use by another process: wait for it, or use another folder" in message
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    step = checkpoint.load(workspace / "out" / "last.pt")[1]["progress"]["step"]
    succeed(*RUN, "--init_from=resume", "--epochs=1000", f"--max_steps={step + 1}", cwd=workspace)


def test_a_run_records_what_its_result_hangs_on(workspace):
    succeed(*RUN, "--seed=5", "--max_steps=1", cwd=workspace)
    for steps in (2, 0):  # resumed twice, it still says what it began with
        succeed(*RUN, "--seed=5", "--init_from=resume", f"--max_steps={steps}", cwd=workspace)
    run = json.loads((workspace / "out" / "run.json").read_text())
    meta = json.loads((workspace / "data" / "sample" / "meta.json").read_text())
    assert run["settings"]["seed"] == run["seed"] == 5 and run["dtype"] == "float32"
    assert run["settings"]["init_from"] == "scratch" and run["settings"]["max_steps"] == 0
    assert run["data"]["files"]["train"] == meta["splits"]["train"]["files"]
    commit = subprocess.run(["git", "-C", REPO, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert commit.returncode != 0 or run["git"]["commit"] == commit.stdout.strip()
    assert len(run["initial_weights_sha256"]) == 64 and run["started"] <= run["ended"]
    dev = [row for row in read_log(workspace / "out" / "log.csv") if row["split"] == "dev"]
    assert run["best"]["accuracy"] == max(float(row["accuracy"]) for row in dev)
    shown = json.loads(succeed("evaluate.py", "--info", cwd=workspace))
    checksum = run["best"].pop("sha256")  # of best.pt, which cannot hold its own
    assert checksum == file_sha256(workspace / "out" / "best.pt")
    assert shown == {key: value for key, value in run.items() if key != "ended"}


def test_memory_stays_flat_over_many_steps(workspace):
    steps, settled = (2000, 200) if TORTURE else (300, 170)  # three evaluations: matplotlib fills caches in two
    options = ["--batch_size=16", "--gradient_accumulation_steps=1", "--epochs=1000", f"--max_steps={steps}"]
    process = start(*options, cwd=workspace)
    log, memory = workspace / "out" / "log.csv", {}
    while process.poll() is None:
        time.sleep(0.05)
        try:
            with open(f"/proc/{process.pid}/status") as f:
                resident = next(int(line.split()[1]) for line in f if line.startswith("RssAnon"))
            with open(log, newline="") as f:
                memory[sum(row["split"] == "train" for row in csv.DictReader(f))] = resident
        except (OSError, StopIteration):
            continue
    assert process.returncode == 0, process.stderr.read()
    later = {step: resident for step, resident in memory.items() if step >= settled}
    assert len(later) > 5
    first = later[min(later)]
    assert max(later.values()) <= 1.02 * first, (first, max(later.values()))
