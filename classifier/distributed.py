"""Several processes on one job, as torchrun starts them: which one this is, its share, and what all of them agree on.

With a single process nothing here does anything.
"""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import numpy as np
import torch

# before there is a group: functions in it have the group of that moment as a default, so that it would never end, and
# a thread of gloo's that frees a tensor while Python ends aborts the process
import torch.distributed.nn
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from classifier.errors import UserError

TIMEOUT = timedelta(minutes=10)  # for a process that is alive and silent; the first writes its checkpoints meanwhile
# how gloo and NCCL word that another process has gone
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError")


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Be one of several processes, if torchrun has started any, for the length of a block.

    Args:
        device: the run's setting; each process takes the GPU of its number on its machine.

    Raises:
        UserError: there is no GPU for this process, the others cannot be reached, or one of them has ended.
    """
    try:
        _join(device)
        yield
    except BaseException as error:
        # its frames hold the replica, and that the group, whose threads and Python would at the end wait for each other
        for each in filter(None, (error, error.__context__)):
            traceback.clear_frames(each.__traceback__)
        if is_lost_peer(error):
            raise UserError("another process of this run has ended; its message says why") from None
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join(device: str) -> None:
    """Join the other processes, and leave printing to the first."""
    if "LOCAL_RANK" not in os.environ:  # torchrun sets it
        return
    local = int(os.environ["LOCAL_RANK"])
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if 0 < gpus <= local:
        raise UserError(f"process {local} of this machine has no GPU, there are {gpus}: lower --nproc_per_node")
    if gpus:
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=TIMEOUT)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"cannot join the other processes ({reason}): check torchrun's options") from None
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(indices: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return this process's part of some examples: every size()-th by length, so that all have as much to do.

    Args:
        indices: (n,) examples.
        lengths: (examples,) number of tokens of every example of the split, indexed by `indices`.
    """
    if size() == 1:
        return indices
    return indices[np.argsort(-lengths[indices], kind="stable")][rank() :: size()]


def parallel(model: nn.Module) -> nn.Module:
    """Return the model, of which several processes hold replicas with one gradient."""
    return model if size() == 1 else DistributedDataParallel(model, gradient_as_bucket_view=True)


def reducing(net: nn.Module, is_last: bool) -> AbstractContextManager:
    """Return the context of a micro-batch's backward pass: the gradients go round once, with the last one."""
    if not isinstance(net, DistributedDataParallel):
        return nullcontext()
    if not is_last:
        return net.no_sync()
    # all must have come this far: gloo raises an error where a process has ended, while NCCL might wait for it until
    # torchrun kills this one, in a kernel that no signal interrupts
    dist.all_reduce(torch.zeros(()))
    return nullcontext()


def total(tensor: Tensor) -> Tensor:
    """Return the sum of all processes' tensors."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def refuse_differences(facts: dict[str, Any]) -> None:
    """Raise a UserError where another process has other settings or other data than the first."""
    if size() == 1:
        return
    everyones: list[dict[str, Any]] = [{}] * size()
    dist.all_gather_object(everyones, facts)
    for number, theirs in enumerate(everyones):
        differing = [key for key in facts if theirs.get(key) != everyones[0][key]]
        if differing:
            raise UserError(f"process {number} has another {', '.join(differing)} than process 0: all need the same")


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an error says no more than that another process has ended, which has said why."""
    return size() > 1 and any(words in str(error) for words in LOST)
