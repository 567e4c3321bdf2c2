"""What training on a CPU needs of glibc's malloc; on other systems than Linux nothing here does anything."""

import ctypes
import os
import sys
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"  # read once, when a process starts
GPUS = ("/dev/nvidiactl", "/dev/kfd")  # NVIDIA's, AMD's


def start_without_thread_cache(device: str) -> None:
    """Start Python anew with malloc's cache for small pieces turned off, if this process may train on a CPU.

    The pieces that a thread keeps in that cache lie between large blocks and hold them apart: over some dozens of
    micro-batches of mixed lengths, what is free and of no use grows to twice its size.

    Args:
        device: the run's setting.
    """
    is_plain = sys.orig_argv[1:] in (sys.argv, ["-u", *sys.argv])  # as a person or torchrun starts it: no debugger
    is_tuned = bool({TUNABLES, "LD_PRELOAD"} & os.environ.keys())  # or another malloc
    has_gpu = device not in ("auto", "cpu") or (device == "auto" and any(Path(path).exists() for path in GPUS))
    if is_plain and _has_glibc() and not is_tuned and not has_gpu:
        os.environ[TUNABLES] = "glibc.malloc.tcache_count=0"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_freed_memory() -> None:
    """Make glibc's malloc keep what is freed.

    By default it returns large blocks to the kernel, which hands them back page by page and zeroed. For activations,
    which every micro-batch frees and needs again, that costs about a tenth of the time.
    """
    if _has_glibc():
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks, too, come from the heap
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: and the heap does not shrink


def _has_glibc() -> bool:
    try:
        return sys.platform == "linux" and os.confstr("CS_GNU_LIBC_VERSION").startswith("glibc")
    except (OSError, ValueError):  # musl has no such name
        return False
