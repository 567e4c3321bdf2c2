"""Which device and number format a run takes, on GPUs that this machine need not have."""

import shutil
import subprocess
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import REPO

from classifier.device import choose_device, choose_dtype, refuse_other_masks, tune
from classifier.errors import UserError

CUDA = torch.device("cuda")


def gpu(name: str, capability: tuple[int, int]):
    """A machine with this GPU, on which the build of PyTorch works."""
    return mock.patch.multiple(
        "torch",
        zeros=mock.Mock(),
        cuda=mock.Mock(get_device_capability=lambda *_: capability, get_device_name=lambda *_: name),
    )


@pytest.mark.parametrize(
    "name, capability, dtype",
    [
        ("A100", (8, 0), torch.bfloat16),
        ("V100", (7, 0), torch.float16),
        ("GTX 1080", (6, 1), torch.float32),
        ("of tomorrow", (14, 0), torch.bfloat16),
    ],
)
def test_a_gpu_is_taken_with_the_format_that_it_is_fast_in(name, capability, dtype):
    with gpu(name, capability):
        assert choose_device("auto") == (CUDA, name) and choose_device("cuda")[0] == CUDA
        assert choose_dtype("auto", CUDA)[0] == dtype
        fast = {torch.bfloat16: {"bfloat16", "float16", "float32"}, torch.float16: {"float16", "float32"}}
        for setting in ("float32", "float16", "bfloat16"):
            chosen, reason = choose_dtype(setting, CUDA)
            assert str(chosen) == f"torch.{setting}"
            assert ("slow" in reason) == (setting not in fast.get(dtype, {"float32"}))
            assert ("TF32" in reason) == (setting == "float32" and capability >= (8, 0))


def test_a_gpu_that_the_build_leaves_out_is_passed_over_and_named():
    error = RuntimeError("CUDA error: no kernel image is available for execution on the device\nSearch for ...")
    with (
        gpu("GTX 1080", (6, 1)),
        mock.patch("torch.zeros", side_effect=error),
        mock.patch("torch.version.cuda", "13.0"),
    ):
        why = "this PyTorch (CUDA 13.0) is not built for GTX 1080: see docs/troubleshooting.md for one that is"
        assert choose_device("auto") == (torch.device("cpu"), f"cuda: {why}; mps: no Apple GPU")
        with pytest.raises(UserError, match="device=cuda cannot be used: this PyTorch"):
            choose_device("cuda")


@pytest.mark.parametrize(
    "error, reason, advice",
    [
        (AssertionError, "Torch not compiled with CUDA enabled", ""),
        (RuntimeError, "The NVIDIA driver on your system is too old (found version 12040).", " Please update ..."),
        (RuntimeError, "Unexpected error. Did you set an error already? Error 803: driver combination", ""),
    ],
)
def test_why_there_is_no_cuda_is_told_in_its_own_words(error, reason, advice):
    with mock.patch("torch.zeros", side_effect=error(reason + advice)):
        assert choose_device("auto") == (torch.device("cpu"), f"cuda: {reason}; mps: no Apple GPU")
        with pytest.raises(UserError) as refusal:
            choose_device("cuda")
    assert str(refusal.value) == f"device=cuda cannot be used: {reason}; device=auto uses what works"


def test_an_apple_gpu_gets_float32_and_no_masks_that_cannot_be_drawn_again():
    mps = torch.device("mps")
    with mock.patch("torch.backends.mps.is_available", lambda: True):
        assert choose_device("auto")[0] == mps
    assert choose_dtype("auto", mps)[0] == torch.float32
    with pytest.raises(UserError, match="float16 needs a CUDA GPU"):
        choose_dtype("float16", mps)
    with pytest.raises(UserError, match="wrong gradients on an Apple GPU"):
        refuse_other_masks(mps, activation_checkpointing=True, dropout=0.1)
    for device, recomputes, dropout in ((mps, True, 0.0), (mps, False, 0.1), (CUDA, True, 0.1)):
        refuse_other_masks(device, recomputes, dropout)


def test_tuning_for_a_gpu_turns_off_attention_that_plans_for_every_shape():
    before = torch.get_float32_matmul_precision(), torch.backends.cuda.cudnn_sdp_enabled()
    try:
        with mock.patch("torch.cuda.get_device_capability", lambda *_: (9, 0)):
            tune(CUDA, torch.bfloat16)
            assert torch.get_float32_matmul_precision() == "highest"  # the head's, which alone is in float32
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            tune(CUDA, torch.float32)
            assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cuda.enable_cudnn_sdp(before[1])


# -----------------------------------------------------------------------------
# `make gpu`, with a Python that writes down what it is asked for


def make_gpu(folder: Path, failing: str) -> tuple[int, list[str]]:
    """The exit status of `make gpu` where what runs this word fails, and all that it runs."""
    python, asked = folder / ".venv" / "bin" / "python", folder / "asked"
    python.parent.mkdir(parents=True)
    shutil.copy(REPO / "Makefile", folder)
    python.write_text(f'#!/bin/sh\necho "$@" >> {asked}\ncase "$*" in *{failing}*) exit 1;; esac\n')
    python.chmod(0o755)
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-app.txt"):
        (folder / name).touch()
    done = subprocess.run(["make", "gpu", "PYTHON=true"], cwd=folder, capture_output=True)
    return done.returncode, asked.read_text().splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_gpu_asks_for_our_own_choice_and_loses_nothing_to_one_failing_test(tmp_path):
    status, asked = make_gpu(tmp_path / "test", failing="test_gpu.py")
    installed = [words for words in asked if "pip install" in words]
    assert "import torch" in asked[0] and not any("torch==" in words for words in installed)  # one is there, and stays
    after = [words.split()[0] for words in asked[-3:]]
    assert status and after == ["prepare_sst.py", "prepare_cfimdb.py", "bench/throughput.py"]
    status, asked = make_gpu(tmp_path / "device", failing="choose_device")
    assert status and "device.choose_device('cuda')" in asked[-1]
    _, asked = make_gpu(tmp_path / "bare", failing="import?torch")
    assert "pip install --quiet --disable-pip-version-check torch==2.13.0" in asked[1]
