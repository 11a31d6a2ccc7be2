"""The processes that carry out one run together: who is first, what they agree on. One process alone is the usual case.

``torchrun`` starts them, and each knows its rank from the environment. The first one (rank 0) is the one that speaks:
events, checkpoints and the finished model are its; the others compute.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as group


def rank() -> int:
    """Which process this is; 0 is the first."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[None]:
    """The processes found each other; left together, or a finished run dies while a slower one still talks."""
    if world() == 1:
        yield
        return
    if sys.platform == "linux":  # torchrun gives each process a session of its own, and may be killed itself
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    group.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
        group.barrier()
    finally:
        group.destroy_process_group()


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process runs the block, then the others do, and find what it left on the disk."""
    if world() > 1 and rank() > 0:
        group.barrier()
    yield
    if world() > 1 and rank() == 0:
        group.barrier()


def any_of(mine: bool) -> bool:
    """Whether it is true in any process; all have to ask."""
    if world() == 1:
        return mine
    told = torch.tensor([int(mine)], device="cuda" if torch.cuda.is_available() else "cpu")
    group.all_reduce(told, group.ReduceOp.MAX)
    return bool(told.item())
