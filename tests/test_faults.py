"""A fault at every system call that changes files: death, or a full disk. TORTURE=1 takes each, else every so many."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPO

TORTURE = "TORTURE" in os.environ
FAULTS = REPO / "tests" / "faults"
STRIDES = {"finetune": 29, "overwrite": 53, "resume": 29, "prepare": 9, "evaluate": 17, "export": 9}  # without TORTURE
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the shim is preloaded as Linux's loader does it"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, as cc, for tests/faults/shim.c"),
]


@pytest.mark.parametrize("mode", ["k", "f"])
@pytest.mark.parametrize("job", STRIDES)
def test_a_fault_at_any_call_leaves_the_old_or_the_new_and_is_forgotten(tmp_path, job, mode):
    shim = tmp_path / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, FAULTS / "shim.c", "-ldl"], check=True)
    place = {"FAULT_ROOT": str(tmp_path / "root"), "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"}
    first = 0 if TORTURE else 4
    words = [sys.executable, FAULTS / "every_call.py", job, mode, str(first), str(1 if TORTURE else STRIDES[job])]
    done = subprocess.run(words, env=os.environ | place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(report)
    assert report["faults"] > 0 and report["calls"] > 20
