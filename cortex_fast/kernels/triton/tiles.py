"""Blocks of kernels: each kernel's default, or the one that `cortex_fast.tuning` measured as faster on this GPU.

The table is a JSON file of the user's cache folder, read once:
{"<GPU>, triton <version>": {"<kernel> <sizes>": block}}.
"""

import itertools
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

Block = dict[str, int]


def table_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cortex-fast" / "triton-tiles.json"


def machine(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)}, triton {triton.__version__}"


def read(file: Path) -> dict[str, dict[str, Block]]:
    """The whole table; empty without a file, and with a warning for a file that is no table."""
    if not file.exists():
        return {}
    try:
        tables = json.loads(file.read_text(encoding="utf-8"))
        if all(_is_block(block) for blocks in tables.values() for block in blocks.values()):
            return dict(tables)
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    warnings.warn(f"{file}: not a table of tiles, so that kernels run with their defaults; remove it", stacklevel=2)
    return {}


def _is_block(block: Any) -> bool:
    """Sizes of blocks are powers of two, and so are numbers of warps."""
    if not isinstance(block, Mapping):
        return False
    sizes = [size for name, size in block.items() if name != "num_stages"]
    return all(type(size) is int and size > 0 and size & (size - 1) == 0 for size in sizes)


@cache
def tuned(device: torch.device) -> dict[str, Block]:
    """This GPU's part of the table, as `tune` changes it while it runs."""
    return read(table_file()).get(machine(device), {})


@dataclass(frozen=True)
class Choice:
    """A kernel's block for some sizes: its key in the table, the default, and the others worth measuring."""

    key: str
    default: Block
    others: tuple[Block, ...]


def choice(kernel: str, sizes: Sequence[int | str], default: Block, **others: Sequence[int]) -> Choice:
    """The choice whose others are all combinations of the values of `others`, which names settings of the default.

    Whole numbers among the sizes are rounded up to a power of two.
    """
    parts = [str(triton.next_power_of_2(size)) if isinstance(size, int) else size for size in sizes]
    combined = (dict(zip(others, values, strict=True)) for values in itertools.product(*others.values()))
    return Choice(" ".join([kernel, *parts]), default, tuple(default | block for block in combined))


def block_of(device: torch.device, choice: Choice) -> Block:
    """The block that a kernel runs with."""
    if device.type != "cuda":
        return choice.default
    block = tuned(device).get(choice.key, choice.default)
    return block if block.keys() == choice.default.keys() else choice.default
