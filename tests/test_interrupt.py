"""Ctrl-C while a script starts: it ends, and no traceback is shown. (What ends a run softly: test_survival.py.)"""

import signal
import subprocess
import sys
import time

import pytest
from conftest import REPO

ARGUMENTS = {
    "finetune.py": ["--data_dir=data/sample"],
    "evaluate.py": ["--ckpt", "none.pt"],
    "app.py": ["--ckpt", "none.pt"],
    "export_hf.py": ["--ckpt", "none.pt", "--out", "out-hf"],
    "prepare_own.py": ["--train", "data/sample/train.tsv", "--name", "again"],
    "prepare_sst.py": ["--source", "none"],
    "prepare_cfimdb.py": ["--source", "none"],
}


def test_these_are_all_scripts():
    assert sorted(ARGUMENTS) == sorted(path.name for path in REPO.glob("*.py") if path.name != "model.py")


@pytest.mark.parametrize("seconds", [0, 0.15, 0.6])
@pytest.mark.parametrize("script", ARGUMENTS)
def test_ctrl_c_in_the_first_moments_shows_no_traceback(workspace, script, seconds):
    words = [sys.executable, "-X", "importtime", str(REPO / script), *ARGUMENTS[script]]
    process = subprocess.Popen(words, cwd=workspace, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    is_ready = False
    for line in process.stderr:  # to the import after the script's first; until there all is up to Python
        if is_ready:
            break
        is_ready = line.endswith("| classifier.signals\n")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    lines = [line for line in process.stderr if not line.startswith("import time:")]
    status = process.wait(60)
    # 0 and 1: the script was through; it may have been so before SIGINT, too, with an error that it had told
    assert status in (-signal.SIGINT, 130, 0, 1)
    assert status != 130 or lines == ["interrupted\n"], lines
    assert status != -signal.SIGINT or all(line.startswith("error: ") for line in lines), lines
    assert "Traceback" not in "".join(lines)
