"""Other systems' ways, taken on Linux: Windows, Macs, odd file systems, schedulers, notebooks."""

import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import REPO, save, succeed, unwrapped
from runs import RUN, run_patched, start, wait_for

from classifier import errors, files
from classifier.files import written_whole
from classifier.training import stop
from model import GPT, GPTConfig

# -----------------------------------------------------------------------------
# file systems


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_file_system_that_cannot_sync_folders_is_used_without(tmp_path, monkeypatch, number):
    sync = os.fsync

    def fsync(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with written_whole(tmp_path / "a", "w") as f:
        f.write("whole")
    with files.folder_written_whole(tmp_path / "b") as folder:
        (folder / "c").write_text("whole")
    assert (tmp_path / "a").read_text() == (tmp_path / "b" / "c").read_text() == "whole"

    def full(handle):
        raise OSError(number if number != errno.ENOTSUP else errno.ENOSPC, "no")

    monkeypatch.setattr(os, "fsync", full)  # of a file
    with pytest.raises(errors.UserError, match="cannot write"), written_whole(tmp_path / "a", "w") as f:
        f.write("lost")
    assert (tmp_path / "a").read_text() == "whole"


def test_on_a_mac_a_file_reaches_the_platter(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(files, "FULL_SYNC", 51)
    monkeypatch.setattr(files.fcntl, "fcntl", lambda handle, command: calls.append(command))
    with written_whole(tmp_path / "a", "w") as f:
        f.write("whole")
    assert calls == [51, 51]  # the file and its folder

    def on_a_network_drive(*_):
        calls.append("fcntl")
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(files.fcntl, "fcntl", on_a_network_drive)
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("fsync"))
    files.to_disk(tmp_path / "a")
    assert calls[2:] == ["fcntl", "fsync"]


def test_a_file_that_a_virus_scanner_has_open_is_replaced_when_it_is_done(tmp_path, monkeypatch):
    replace, times = os.replace, []

    def busy(*paths):
        times.append(time.monotonic())
        if len(times) < 4:
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        replace(*paths)

    monkeypatch.setattr(os, "replace", busy)
    with written_whole(tmp_path / "a", "w") as f:
        f.write("whole")
    assert (tmp_path / "a").read_text() == "whole" and 0.5 < times[-1] - times[0] < 5
    times[:] = [0] * -1000
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EACCES, "in use")))
    with pytest.raises(errors.UserError, match="cannot write .*in use"), written_whole(tmp_path / "a", "w") as f:
        f.write("lost")
    assert os.listdir(tmp_path) == ["a"]


def test_a_full_quota_names_what_could_not_be_written(tmp_path):
    rows = "".join(f"text number {n},{n % 2}\n" for n in range(500))
    (tmp_path / "my.csv").write_text("text,label\n" + rows)
    words = [sys.executable, str(REPO / "prepare_own.py"), "--train", "my.csv", "--name", "my"]
    limited = ["bash", "-c", 'ulimit -f 2; exec "$@"', "-", *words]  # kilobytes, as a quota: EFBIG
    done = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "error: cannot write data/my: File too large\n"
    assert not list((tmp_path / "data" / "my").glob("*.bin"))


def test_without_a_home_plots_are_drawn_in_silence():
    environment = {"HOME": "/proc/none", "PATH": os.environ["PATH"]}
    code = f"import sys; sys.path.insert(0, {str(REPO)!r}); import classifier.training.curves as c; print(c.Figure())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("Figure(") and done.stderr == ""


# -----------------------------------------------------------------------------
# Windows and Macs


NO_FCNTL = "sys.modules['fcntl'] = None"


def test_without_fcntl_two_runs_in_one_folder_are_kept_apart(workspace):
    hold = f"{NO_FCNTL}\nimport pathlib\nfrom classifier.files import hold\n"
    hold = f"import sys\nsys.path.insert(0, {str(REPO)!r})\n{hold}"
    hold += "with hold(pathlib.Path('out')):\n    print('held', flush=True)\n    sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", hold], cwd=workspace, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    done = run_patched(NO_FCNTL, *RUN, cwd=workspace)
    assert done.returncode == 1 and "out is in use by another process" in unwrapped(done.stderr), done.stderr
    process.communicate()
    done = run_patched(NO_FCNTL, *RUN, "--max_steps=1", cwd=workspace)
    assert done.returncode == 0, done.stderr


def test_windows_word_for_a_closed_pipe_is_understood(monkeypatch, capsys):
    def main():
        raise OSError(errno.EINVAL, "Invalid argument")

    for system, message in {"nt": "", "posix": "error: Invalid argument"}.items():
        monkeypatch.setattr(errors.os, "name", system)
        with pytest.raises(SystemExit) as end:
            errors.run(main)
        assert end.value.code == 1 and capsys.readouterr().err.startswith(message)
        assert message or not capsys.readouterr().err


def test_an_operator_that_apples_gpus_lack_is_told_with_the_way_out(capsys):
    def main():
        raise NotImplementedError("The operator 'aten::x' is not currently implemented for the MPS device. If you")

    with pytest.raises(SystemExit):
        errors.run(main)
    assert "'aten::x' is missing on Apple's GPUs: set the environment variable PYTORCH_ENABLE_MPS_FALLBACK=1" in (
        unwrapped(capsys.readouterr().err)
    )


@pytest.mark.parametrize("resumed", [False, True])
def test_no_checkpoint_stays_mapped_while_a_run_trains(workspace, resumed):
    """Windows refuses to replace a file that is mapped."""
    words = ["--epochs=1000"]
    if resumed:
        succeed(*RUN, *words, "--max_steps=7", cwd=workspace)
        words.append("--init_from=resume")
    process = start(*words, cwd=workspace)
    wait_for(process, "epoch 2:")
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    process.kill()
    process.communicate()
    assert "libtorch" in maps and "/train.bin" in maps and ".pt" not in maps.replace(".pth", "")


def test_loading_a_checkpoint_takes_less_than_twice_the_memory_of_its_weights(tmp_path):
    small, path = (save(tmp_path / f"{width}.pt", GPT(GPTConfig(2, 64, 50257, 1, 8, width))) for width in (8, 512))
    code = """
import re, sys, torch
sys.path.insert(0, sys.argv[1])
from classifier import checkpoint
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
checkpoint.load(sys.argv[2])
before = peak()
model, _ = checkpoint.load(sys.argv[3])
print((peak() - before) / sum(4 * p.numel() for p in model.parameters()))
"""
    done = subprocess.run([sys.executable, "-c", code, *map(str, (REPO, small, path))], capture_output=True, text=True)
    assert 0.9 < float(done.stdout) < 2, done.stderr


# -----------------------------------------------------------------------------
# schedulers and notebooks


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_a_schedulers_warning_saves(workspace, name):
    number = getattr(signal, name)
    process = start("--epochs=1000", cwd=workspace)
    wait_for(process, "epoch 1:")
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + number and "to resume from out/last.pt" in unwrapped(said)
    assert (workspace / "out" / "last.pt").is_file()


def test_the_slurm_job_of_the_page_resumes_and_submits_itself(workspace):
    page = (REPO / "docs" / "settings.md").read_text(encoding="utf-8")
    script = re.search(r"^```bash\n(.*?)^```$", page, re.DOTALL | re.MULTILINE).group(1)
    (workspace / "sbatch").write_text('#!/bin/sh\necho "$@" >> submitted\n')
    (workspace / "sbatch").chmod(0o755)

    def run_job(*options: str, signal_at: str = "") -> tuple[int, str]:
        words = [sys.executable, "-u", str(REPO / RUN[0]), *RUN[1:], *options]
        job = script.replace("python finetune.py config/finetune_sst.py", shlex.join(words))
        (workspace / "job.sh").write_text(job)
        environment = os.environ | {"PATH": f"{workspace}:{os.environ['PATH']}"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(["bash", "job.sh"], cwd=workspace, env=environment, **pipes)
        if signal_at:
            wait_for(process, signal_at)
            process.send_signal(signal.SIGUSR1)  # to the script alone, as with --signal=B:
        _, said = process.communicate(timeout=300)
        return process.returncode, unwrapped(said)

    for submitted in ("job.sh\n", "job.sh\njob.sh\n"):  # a new run, then a resumed one
        status, said = run_job("--epochs=1000", signal_at="epoch ")
        assert status == 0 and "to resume from out/last.pt" in said
        assert (workspace / "submitted").read_text() == submitted
    status, said = run_job("--max_steps=1")  # resumed, and refused
    assert status == 1 and "out/last.pt is at step" in said
    shutil.rmtree(workspace / "out")
    assert run_job("--max_steps=1") == (0, "")
    assert (workspace / "submitted").read_text() == submitted


def test_a_thread_other_than_the_main_one_sets_no_signals():
    found, before = [], [signal.getsignal(number) for number in stop.SIGNALS]

    def listen():
        with stop.listening(True):
            found.extend(signal.getsignal(number) for number in stop.SIGNALS)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == before and len(found) >= 6


def test_a_second_ctrl_c_leaves_a_notebooks_kernel_alive(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", object())
    with pytest.raises(KeyboardInterrupt), stop.listening(True):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(stop.Stopped):
            stop.check()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


AFTER = """
import signal, sys
print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook is sys.__unraisablehook__)
"""


def test_a_notebook_runs_the_script_again_and_again(workspace, run_cell_of):
    run_cell = run_cell_of(workspace)
    before = run_cell(AFTER)
    words = " ".join([f"%run {REPO / RUN[0]}", *RUN[1:]])
    assert "next: python evaluate.py" in run_cell(words)
    assert "contains another run" in unwrapped(run_cell(words, allow_error=True))
    assert "next: python evaluate.py" in run_cell(f"{words} --epochs=3 --init_from=resume")
    assert "in use by" not in run_cell(f"{words} --overwrite=True")
    assert run_cell(AFTER) == before
    said = run_cell(f"{words} --overwrite=True --epochs=4000", interrupt_at="epoch 2:", allow_error=True)
    assert "to resume from out/last.pt" in unwrapped(said)
    assert run_cell(AFTER) == before
    found = run_cell(
        "from classifier.settings import read_settings; import gc, torch; gc.collect()\n"
        "print(sum(type(each).__name__ == 'AdamW' for each in gc.get_objects()))"
    )
    assert found == "0\n"
