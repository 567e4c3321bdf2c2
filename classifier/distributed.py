"""Several processes on one job, as torchrun starts them. With a single process nothing here has any effect."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import numpy as np
import torch

# imported before there is a process group, which its functions would keep alive as a default: then gloo's threads are
# still running when Python exits, and abort it
import torch.distributed.nn
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from classifier.errors import UserError

TIMEOUT = timedelta(minutes=10)  # for a silent process: the others wait while the first writes a checkpoint
# gloo's and NCCL's words when another process has gone
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError")


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the other processes, if torchrun has started any, for the length of a block; `device` is the setting."""
    try:
        if "LOCAL_RANK" in os.environ:  # torchrun sets it
            _join(device, int(os.environ["LOCAL_RANK"]))
        yield
    except BaseException as error:
        # its frames refer to the replica, and that to the group, whose threads would keep Python from exiting
        for each in filter(None, (error, error.__context__)):
            traceback.clear_frames(each.__traceback__)
        if is_lost_peer(error):
            raise UserError("another process of this run has ended; its message says why") from None
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join(device: str, local: int) -> None:
    """Join the other processes, take this process's GPU, and leave printing to the first process."""
    is_on_gpu = take_gpu(device, local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if is_on_gpu else "gloo", timeout=TIMEOUT)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"cannot join the other processes ({reason}): check torchrun's options") from None
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")


def take_gpu(device: str, local: int) -> bool:
    """Let this machine's process number `local` compute on the GPU of that number, if the setting allows for GPUs."""
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if 0 < gpus <= local:
        raise UserError(f"process {local} of this machine has no GPU, there are only {gpus}: lower --nproc_per_node")
    if gpus:
        torch.cuda.set_device(local)
    return gpus > 0


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(indices: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return this process's share of some examples, (n,) indices and lengths: every size()-th by length."""
    if size() == 1:
        return indices
    return indices[np.argsort(-lengths, kind="stable")][rank() :: size()]


def parallel(model: nn.Module) -> nn.Module:
    """Wrap the model so that the processes' gradients are summed; a single process gets it as it is."""
    return model if size() == 1 else DistributedDataParallel(model, gradient_as_bucket_view=True)


def reducing(net: nn.Module, is_last: bool) -> AbstractContextManager:
    """Return the context of a micro-batch's backward pass: gradients are exchanged once a step, in the last one."""
    if not isinstance(net, DistributedDataParallel):
        return nullcontext()
    if not is_last:
        return net.no_sync()
    # wait here for all: gloo raises an error if a process has ended, while NCCL would wait in a kernel that no signal
    # can interrupt
    dist.all_reduce(torch.zeros(()))
    return nullcontext()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Return the sum of all processes' tensors."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def refuse_differences(facts: dict[str, Any]) -> None:
    """Raise a UserError if the settings or data of some process differ from the first one's."""
    if size() == 1:
        return
    everyones: list[dict[str, Any]] = [{}] * size()
    dist.all_gather_object(everyones, facts)
    for number, theirs in enumerate(everyones):
        differing = [key for key in facts if theirs.get(key) != everyones[0][key]]
        if differing:
            raise UserError(
                f"process {number} and process 0 differ in {', '.join(differing)}: all processes need the same"
            )


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an error only says that another process has ended, whose own message says why."""
    return size() > 1 and any(words in str(error) for words in LOST)
