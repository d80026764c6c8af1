"""Which process this is of how many: torchrun's, SLURM's, a job array's by `--shard`, or one alone."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
_VARIABLES = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))  # torchrun's first: it may run under SLURM
_LOCAL = ("LOCAL_RANK", "SLURM_LOCALID")


@dataclass(frozen=True)
class Workers:
    """This process is number `rank` of `size`, and number `local` on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    def order(self, items: Sequence[Item]) -> list[Item]:
        """All items, this process's own (index mod size) first, then the next process's, and so on.

        Each process works through all of them, passing over what is finished: so none waits for one that died.
        """
        return [item for turn in range(self.size) for item in items[(self.rank + turn) % self.size :: self.size]]


def workers_of(shard: str | None = None, environment: Mapping[str, str] = os.environ) -> Workers:
    """The workers that `--shard` or the launcher's variables describe.

    Args:
        shard: "3/40" for the third of 40 processes, counted from 1; None: as the environment says. Default None.
        environment: the variables. Default this process's.
    Returns:
        This process's place.
    Raises:
        ValueError: shard is not of this form, or a launcher's variables are no numbers.
    """
    local = next((environment[name] for name in _LOCAL if name in environment), "0")
    if shard is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", shard)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"--shard: expected I/N with I from 1 to N, got {shard!r}")
        return Workers(int(match[1]) - 1, int(match[2]), _whole("LOCAL_RANK", local))
    for rank, size in _VARIABLES:
        if rank in environment and size in environment:
            return Workers(_whole(rank, environment[rank]), _whole(size, environment[size]), _whole(rank, local))
    return Workers()


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{name}: expected a whole number, got {text!r}")
    return int(text)
