"""Training by several processes: torchrun's, joined by torch.distributed (nccl on GPUs, gloo on CPUs)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """The processes of a run: this one is number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "World":
        """The world of the current process group, or of one process if there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def part(self, rows: Tensor) -> Tensor:
        """This process's rows of a global batch."""
        return rows[self.rank :: self.size]

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, computed in place."""
        if self.size > 1:
            dist.all_reduce(numbers)
        return numbers

    def wrap(self, extractor: nn.Module, device: torch.device) -> nn.Module:
        """The module with a backward that averages the gradients over all processes."""
        if self.size == 1:
            return extractor
        return nn.parallel.DistributedDataParallel(
            extractor, device_ids=[device.index] if device.type == "cuda" else None
        )


@contextmanager
def joined() -> Iterator[tuple[World, torch.device]]:
    """Join the process group that torchrun's environment variables describe, and leave it at the end.

    Yields the world, which is one process without torchrun, and this process's device: its GPU, or the CPU on a machine
    without one.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if alone:
        yield World(), device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World.current(), device
    finally:
        dist.destroy_process_group()
