"""Choose the device and the number format of matrix products, and say why."""

import ctypes
import os
import platform
import sys

import numpy as np
import torch
from torch import Tensor, nn

from classifier.errors import UserError

DEVICES = ("auto", "cuda", "mps", "cpu")
FIRST_FAST = {"bfloat16": 8, "float16": 7, "float32": 0}  # major compute capability whose products are fast in it
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(setting: str) -> tuple[torch.device, str]:
    """Choose the device for a setting (auto, cuda, mps or cpu); return it and the reason."""
    problems = {
        "cuda": _cuda_problem(),
        "mps": None if torch.backends.mps.is_available() else "no Apple GPU",
        "cpu": None,
    }
    if setting != "auto":
        if problems[setting]:
            raise UserError(f"device={setting} cannot be used: {problems[setting]}; device=auto uses what works")
        return torch.device(setting), "as asked"
    name = next(name for name, problem in problems.items() if problem is None)
    passed_over = "; ".join(f"{other}: {problem}" for other, problem in problems.items() if problem)
    return torch.device(name), torch.cuda.get_device_name() if name == "cuda" else passed_over


def _cuda_problem() -> str | None:
    """Return why CUDA cannot be used, or None where it can."""
    try:
        torch.zeros(1, device="cuda").add_(1)
    except (AssertionError, RuntimeError) as error:  # a build without CUDA; no GPU; no driver, or one that is too old
        if "no kernel image" in str(error):  # recent builds leave out older GPUs, such as the GTX 1080
            gpu, version = torch.cuda.get_device_name(), torch.version.cuda
            return f"this PyTorch (CUDA {version}) is not built for {gpu}: see docs/troubleshooting.md for one that is"
        return " ".join(str(error).split()).partition(" Please ")[0]  # without its links
    return None


def choose_dtype(setting: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Choose the dtype of matrix products for a setting; return it and the reason. All else is always float32."""
    if setting == "float16" and device.type != "cuda":
        raise UserError(f"float16 needs a CUDA GPU, and this is {device.type}: begin a run in bfloat16 or float32")
    if setting == "float32" and _has_tf32(device):
        return torch.float32, "as asked, products in TF32"
    if setting != "auto":
        is_slow = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < FIRST_FAST[setting]
        return DTYPES[setting], "as asked, though slow on this GPU" if is_slow else "as asked"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = next(name for name, first in FIRST_FAST.items() if major >= first)
        return DTYPES[name], f"fast with compute capability {major}.{minor}"
    if device.type == "cpu":
        found = [name for name in ("amx_bf16", "avx512_bf16") if torch.cpu.get_capabilities().get(name)]
        return (torch.bfloat16, f"the CPU has {found[0]}") if found else (torch.float32, "the CPU has no bfloat16")
    return torch.float32, f"the safe choice on {device.type}"


def tune(device: torch.device, dtype: torch.dtype, deterministic: bool = False) -> None:
    """Set up the process for speed on a device, or for the same bits on every run."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as PyTorch's notes on reproducibility ask for
        torch.use_deterministic_algorithms(True)
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for every new shape, and shapes differ
    if dtype == torch.float32 and _has_tf32(device):
        torch.set_float32_matmul_precision("high")
    # glibc's malloc returns large blocks to the kernel, which hands them back zeroed, page by page. Every micro-batch
    # frees its activations and needs them again: keeping the memory saves about a tenth of the time
    if device.type == "cpu" and sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap, too
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: and the heap does not shrink


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def refuse_other_masks(device: torch.device, activation_checkpointing: bool, dropout: float) -> None:
    """Raise a UserError on MPS, where torch.utils.checkpoint cannot draw the same dropout masks again."""
    if device.type == "mps" and activation_checkpointing and dropout > 0:
        how = "leave it out and set a smaller token_budget, or --dropout=0"
        raise UserError(f"activation_checkpointing with dropout gives wrong gradients on an Apple GPU: {how}")


def send(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device; a GPU does so while the program runs on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def compile_blocks(model: nn.Module) -> None:
    """Let torch.compile compile a GPT's blocks at their first use, for any number and length of sequences."""
    torch._dynamo.config.recompile_limit = 32  # first or last block, training or not, single sequences
    for block in model.get_submodule("h").children():
        block.compile(dynamic=True)
