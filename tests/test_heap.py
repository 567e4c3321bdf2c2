"""The memory allocator's setting: training on a CPU starts with it, and nothing else is changed."""

import os
import sys
from unittest import mock

import pytest
from conftest import PREPARE_SAMPLE, command, succeed

from classifier.heap import TUNABLES, start_without_thread_cache

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="about glibc")
PLAIN = {"orig_argv": ["python", "finetune.py", "--epochs=1"], "argv": ["finetune.py", "--epochs=1"]}
DEBUGGED = {"orig_argv": ["python", "-m", "pdb", "finetune.py"], "argv": ["finetune.py"]}
TORCHRUN = {"orig_argv": ["python", "-u", "finetune.py"], "argv": ["finetune.py"]}


@pytest.mark.parametrize(
    "process, environment, device, gpu, restarts",
    [
        (PLAIN, {}, "auto", False, True),
        (PLAIN, {}, "auto", True, False),
        (PLAIN, {}, "cpu", True, True),
        (PLAIN, {}, "cuda", False, False),
        (PLAIN, {TUNABLES: ""}, "cpu", False, False),
        (PLAIN, {"LD_PRELOAD": "libjemalloc.so"}, "cpu", False, False),
        (TORCHRUN, {}, "cpu", False, True),
        (DEBUGGED, {}, "cpu", False, False),
    ],
)
def test_python_starts_anew_where_it_is_to_train_on_a_cpu(process, environment, device, gpu, restarts):
    with (
        mock.patch.multiple(sys, **process),
        mock.patch.dict(os.environ, environment, clear=True),
        mock.patch("pathlib.Path.exists", lambda path: gpu),
        mock.patch("os.execv") as execv,
    ):
        start_without_thread_cache(device)
        assert execv.call_count == restarts
        if restarts:
            assert execv.call_args.args == (sys.executable, [sys.executable, *process["orig_argv"][1:]])
            assert os.environ[TUNABLES] == "glibc.malloc.tcache_count=0"


def test_a_run_starts_anew_once_and_ends_as_ever(workspace):
    (workspace / "sitecustomize.py").write_text(
        f"import os\nprint('Python', os.environ.get({TUNABLES!r}), file=open('starts.txt', 'a'))\n"
    )
    succeed(*PREPARE_SAMPLE, "--overwrite", cwd=workspace)
    environment = {name: value for name, value in os.environ.items() if name not in (TUNABLES, "LD_PRELOAD")}
    environment["PYTHONPATH"] = str(workspace)
    run = ["finetune.py", "--data_dir=data/sample", "--init_from=scratch", "--n_layer=1", "--n_embd=16", "--device=cpu"]
    printed = succeed(*run, "--n_head=2", "--max_steps=1", cwd=workspace, run=command, env=environment)
    assert "next: python evaluate.py --ckpt out" in printed
    assert (workspace / "starts.txt").read_text().splitlines() == [
        "Python None",
        "Python glibc.malloc.tcache_count=0",
    ]
