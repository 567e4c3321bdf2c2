"""Which device and number format a run uses, and why."""

import ctypes
import os
import platform
import re
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from classifier.errors import UserError, is_out_of_memory

DEVICES = ("auto", "cuda", "mps", "cpu")
FIRST_FAST = {"bfloat16": 8, "float16": 7, "float32": 0}  # major compute capability whose products are fast in it
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(setting: str) -> tuple[torch.device, str]:
    """Return the device for a setting (auto, cuda, mps or cpu) and the reason for it.

    Raises:
        UserError: the device that was asked for is not there.
    """
    problems = {
        "cuda": _cuda_problem(),
        "mps": None if torch.backends.mps.is_available() else "no Apple GPU",
        "cpu": None,
    }
    if setting != "auto":
        if problems[setting]:
            raise UserError(f"device={setting} cannot be used: {problems[setting]}; device=auto takes what is there")
        return torch.device(setting), "as asked"
    name = next(name for name, problem in problems.items() if problem is None)
    passed_over = "; ".join(f"{other}: {problem}" for other, problem in problems.items() if problem)
    return torch.device(name), torch.cuda.get_device_name() if name == "cuda" else passed_over


def _cuda_problem() -> str | None:
    """Return why CUDA cannot be used, or None where it can."""
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:  # a build without CUDA; no GPU, no driver, or too old a one
        return " ".join(str(error).split()).partition(" Please ")[0]  # without its links; the README has the advice
    major, minor = torch.cuda.get_device_capability()
    built_for = " ".join(torch.cuda.get_arch_list())
    known = [int(number) for number in re.findall("(?:sm|compute)_([0-9]+)", built_for)]  # none of AMD's, as gfx90a
    if 10 * major + minor < min(known, default=0):  # recent wheels leave out older GPUs, a GTX 1080 among them
        other = "an older CUDA"
    elif known and major > max(known) // 10 and "compute_" not in built_for:
        other = "a newer CUDA"  # only what is built as compute_ is compiled for GPUs to come
    else:
        return None
    return (
        f"this PyTorch (CUDA {torch.version.cuda}) is built for compute capability {min(known) / 10} to "
        f"{max(known) / 10}, {torch.cuda.get_device_name()} has {major}.{minor}: install PyTorch for {other}"
    )


def choose_dtype(setting: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the dtype of matrix products for a setting (auto or a key of DTYPES) on a device, and the reason.

    Weights, optimizer and reductions stay in float32 in any case.

    Raises:
        UserError: float16 is asked for on a device without CUDA.
    """
    if setting == "float16" and device.type != "cuda":
        raise UserError(f"dtype=float16 needs a CUDA GPU, not {device.type}: use bfloat16 or float32")
    if setting == "float32" and _has_tf32(device):
        return torch.float32, "as asked, products in TF32"
    if setting != "auto":
        is_slow = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < FIRST_FAST[setting]
        return DTYPES[setting], "as asked, though slow on this GPU" if is_slow else "as asked"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = next(name for name, first in FIRST_FAST.items() if major >= first)
        return DTYPES[name], f"what compute capability {major}.{minor} is fast in"
    if device.type == "cpu":
        found = [name for name in ("amx_bf16", "avx512_bf16") if torch.cpu.get_capabilities().get(name)]
        return (torch.bfloat16, f"the CPU has {found[0]}") if found else (torch.float32, "the CPU has no bfloat16")
    return torch.float32, f"the safe choice on {device.type}"


def tune(device: torch.device, dtype: torch.dtype, deterministic: bool = False) -> None:
    """Change the process's settings to what is fast on a device: TF32 for float32 on a GPU, malloc's on a CPU.

    Args:
        deterministic: use only kernels that give the same bits every time. PyTorch raises where it has none.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as PyTorch's notes on reproducibility ask for
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads memory that it has not written
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN's attention plans anew for every shape, and ours differ
    if dtype == torch.float32 and _has_tf32(device):  # else the head alone is in float32, and stays exact
        torch.set_float32_matmul_precision("high")
    if device.type == "cpu":
        _keep_freed_memory()


def refuse_other_masks(device: torch.device, activation_checkpointing: bool, dropout: float) -> None:
    """Raise a UserError where recomputed activations would have other dropout masks, and gradients be wrong.

    torch.utils.checkpoint draws the same masks again by restoring the generator's state, which it does not do on MPS.
    """
    if device.type == "mps" and activation_checkpointing and dropout > 0:
        raise UserError(
            "activation_checkpointing with dropout gives wrong gradients on an Apple GPU, where PyTorch cannot draw "
            "the same masks again: leave it out and use a smaller batch_size, or --dropout=0"
        )


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _keep_freed_memory() -> None:
    """Make glibc's malloc keep what is freed.

    By default it returns large blocks to the kernel, which hands them back page by page and zeroed. For activations,
    which every micro-batch frees and needs again, that costs about a tenth of the time.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks, too, come from the heap
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: and the heap does not shrink


def send(array: np.ndarray, device: torch.device) -> Tensor:
    """Return an array as a tensor on a device; a GPU copies it without anyone waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def compile_blocks(model: nn.Module, warm_up: Callable[[], object]) -> None:
    """Compile a GPT's blocks, for sequences of any length and number, and print how long it took.

    Args:
        warm_up: a step and an evaluation, which make PyTorch compile; the gradient is thrown away.

    Raises:
        UserError: PyTorch cannot compile on this machine.
    """
    started = time.monotonic()
    torch._dynamo.config.recompile_limit = 32  # first or last block, training or not, single sequences
    for block in model.h:
        block.compile(dynamic=True)
    try:
        warm_up()
        model.zero_grad(set_to_none=False)
    except Exception as error:  # a missing compiler, an unsupported GPU: each with its own type
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"compile=True does not work on this machine ({reason}): leave it out") from None
    print(f"compile: {time.monotonic() - started:.0f} s")
