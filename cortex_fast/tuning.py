"""Faster blocks for the Triton kernels on this machine's GPU, measured once and stored in the user's cache folder.

Kernels have default blocks and never try others by themselves. `tune` does, for the given sizes of a token selection;
the fastest are used from then on, by this process and by later ones. Sums may be added in another order then: results
can differ in their last bits.
"""

import contextlib
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cortex_fast import checks, ops
from cortex_fast.data.results import replace_whole
from cortex_fast.kernels import triton as triton_kernels
from cortex_fast.ops.backends import BackendUnavailableError

if TYPE_CHECKING:
    from cortex_fast.kernels.triton.tiles import Choice  # imports triton, which is optional

Block = dict[str, int]
_CHANCE = 0.98
_WARM_UPS, _CALLS = 5, 20


@dataclass(frozen=True)
class Tuned:
    """A kernel's fastest block for some sizes.

    Args:
        key: the kernel and its sizes, as in the stored table.
        block: the fastest block, setting -> number.
        default: the default block.
        time: of a call with `block`, in milliseconds.
        default_time: of a call with `default`, in milliseconds.
    """

    key: str
    block: Block
    default: Block
    time: float
    default_time: float


def tune(
    rows: int = 256,
    codes: int = 16384,
    channels: int = 256,
    *,
    measure: Callable[[Callable[[], object]], float] | None = None,
) -> list[Tuned]:
    """Measure the blocks of `gumbel_codebook` and its step on the current GPU, and store the fastest.

    Args:
        rows: R, the rows of logits over all problems, from 1. Default 256.
        codes: K, the codebook's size, from 1. Default 16384.
        channels: d, the length of a code, from 1. Default 256.
        measure: from a function to its time in milliseconds. Default: the median of 20 calls after 5.

    Returns:
        The fastest block of each kernel, with its time and the default's.

    Raises:
        TypeError: sizes that are not whole numbers.
        ValueError: sizes below 1.
        BackendUnavailableError: no Triton kernel can be compiled here, or there is no GPU.
    """
    for name, value in (("rows", rows), ("codes", codes), ("channels", channels)):
        checks.whole(name, value, 1)
    if triton_kernels.unavailable() is not None:
        raise BackendUnavailableError(f"tune: {triton_kernels.unavailable()}")
    if not torch.cuda.is_available():
        raise BackendUnavailableError("tune: torch sees no GPU here")
    from cortex_fast.kernels.triton import gumbel_codebook, gumbel_gradient, tiles

    device = torch.device("cuda", torch.cuda.current_device())
    calls = _calls(rows, codes, channels, device)
    choices = {
        "select": gumbel_codebook.select_choice(rows),
        "scan": gumbel_codebook.scan_choice(rows, channels),
        "update": gumbel_gradient.update_choice(rows, channels),
    }
    table = tiles.tuned(device)
    results = [fastest(choices[kernel], call, table, measure or _median) for kernel, call in calls.items()]
    tables = tiles.read(tiles.table_file())
    earlier = tables.get(tiles.machine(device), {})
    tables[tiles.machine(device)] = earlier | {tuned.key: tuned.block for tuned in results}
    text = json.dumps(tables, indent=1, sort_keys=True)
    replace_whole(tiles.table_file(), lambda path: path.write_text(text, "utf-8"))
    return results


def _calls(rows: int, codes: int, channels: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """For each kernel a call that consists mostly of it."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device=device)

    logits, codebook, upstream = normal(rows, codes), normal(codes, channels), normal(rows, channels)
    moments = (torch.zeros_like(logits), torch.zeros_like(logits))
    _, _, row_stats = ops.gumbel_codebook_with_row_stats(logits, codebook, impl="triton")
    return {
        "select": lambda: ops.gumbel_codebook(logits, codebook, impl="triton"),
        "scan": lambda: ops.gumbel_codebook_with_row_stats(logits, codebook, impl="triton"),
        "update": lambda: ops.gumbel_codebook_step(
            logits, codebook, upstream, lr=1e-6, moments=moments, row_stats=row_stats, impl="triton"
        ),
    }


def fastest(
    choice: "Choice",
    call: Callable[[], object],
    table: dict[str, Block],
    measure: Callable[[Callable[[], object]], float],
) -> Tuned:
    """Time `call` with each block of a choice, set in `table`, and leave the fastest there.

    The default stays unless another is faster by more than chance (2 %); a block that this GPU has no room for is
    skipped.

    Args:
        choice: the kernel's key in the table, its default block and the others.
        call: launches the kernel, which reads its block from `table`.
        table: key -> block, changed in place.
        measure: from a function to its time in milliseconds.

    Returns:
        The fastest block, with its time and the default's.
    """
    from triton.runtime.errors import OutOfResources

    times: list[tuple[float, Block]] = []
    remaining = table[choice.key] = choice.default
    try:
        before = measure(call)
        for block in choice.others:
            table[choice.key] = block
            with contextlib.suppress(OutOfResources):
                times.append((measure(call), block))
        time, block = min(times, key=lambda timed: timed[0], default=(before, choice.default))
        if time > _CHANCE * before:
            time, block = before, choice.default
        remaining = block
    finally:
        table[choice.key] = remaining
    return Tuned(choice.key, block, choice.default, time, before)


def _median(call: Callable[[], object]) -> float:
    """Milliseconds of a call's kernels alone, launched as a CUDA graph, which takes the host little time."""
    call()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for number in range(_WARM_UPS + _CALLS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if number >= _WARM_UPS:
            times.append(start.elapsed_time(end))
    return statistics.median(times)
