"""Compiles every Triton kernel ahead of time, for GPUs that need not be present, and reports the resources of each.

    python tools/compile_triton.py [--targets sm_80,sm_90,...] [--dtypes float32,...] [--operators token_saliency,...]

Exit status 1 if a kernel spills registers, uses local memory or needs more shared memory than the GPU has; a kernel
that does not compile raises. The launchers are called with small tensors on the CPU, and only the launch is replaced,
by Triton's own warm-up under a driver of the target. So the variants are the launchers' own, and a new kernel needs one
entry in CALLS: a function that calls its launcher once for each variant.

Runs without TRITON_INTERPRET: the interpreter has nothing to compile.
"""

import argparse
import inspect
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="compile_triton_"))

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from cortex_fast.kernels.reference import philox
from cortex_fast.kernels.row_stats import RowStats
from cortex_fast.kernels.triton import (
    concept_counts,
    gumbel_codebook,
    gumbel_codebook_backward,
    gumbel_codebook_step,
    launching,
    nearest_code,
    random_stream,
    smoothgrad_noise,
    token_saliency,
)
from cortex_fast.ops.token_saliency import REDUCTIONS

KB = 1024
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Target:
    gpu: GPUTarget
    shared: int  # bytes that one block may have


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 * KB),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 * KB),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 * KB),
}


@dataclass
class Driver:
    """What Triton's warm-up asks of a driver. Its caches are by device: each target is one."""

    target: GPUTarget
    device: int

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, _device: int) -> int:
        return 0


@dataclass(frozen=True)
class Resources:
    """Resources of one compiled kernel: registers of a thread, bytes of local and of shared memory."""

    registers: int
    local: int
    shared: int


@dataclass
class Compiling:
    """Stands for `launching.launch`: compiles for the active target, each variant once."""

    resources: dict[str, Resources] = field(default_factory=dict)

    def launch(self, kernel: Any, grid: object, _device_of: Tensor, /, *arguments: object, **options: object) -> None:
        compiled = kernel.warmup(*arguments, grid=grid, **options)
        label = f"{Path(inspect.getfile(kernel.fn)).stem}.{kernel.fn.__name__}({variant(compiled)})"
        if label not in self.resources:
            self.resources[label] = resources(compiled)


def variant(compiled: Any) -> str:
    """The pointers' types, the constants, and the arguments that are multiples of 16."""
    arguments = dict(flattened(compiled.src.signature))
    pointers = [kind for _, kind in arguments.values() if kind.startswith("*")]
    constants = [f"{arguments[path][0]}={value}" for path, value in compiled.src.constants.items()]
    aligned = [
        f"16|{arguments[path][0]}"
        for path, aligned_to_16 in compiled.src.attrs.items()
        if aligned_to_16 and arguments[path][1][0] in "iu"
    ]
    return " ".join(pointers + constants + aligned)


def flattened(
    kinds: dict[str, Any], name: str = "", path: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], tuple[str, str]]]:
    """From a signature the path of each argument, its name and type; those in named tuples with a dotted name."""
    for place, (last, kind) in enumerate(kinds.items()):
        here, dotted = (*path, place), f"{name}.{last}" if name else last
        if isinstance(kind, tuple):
            yield from flattened(kind._asdict(), dotted, here)
        else:
            yield here, (dotted, kind)


def resources(compiled: Any) -> Resources:
    if "cubin" in compiled.asm:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            program = triton.knobs.nvidia.cuobjdump.path
            text = subprocess.run([program, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
        return Resources(numbers["REG"], numbers["STACK"] + numbers["LOCAL"], compiled.metadata.shared)
    keys = ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    numbers = {key: int(re.findall(rf"\.{key}:\s*(\d+)", compiled.asm["amdgcn"])[0]) for key in keys}
    local = numbers["private_segment_fixed_size"] + 4 * numbers["vgpr_spill_count"]
    return Resources(numbers["vgpr_count"], local, compiled.metadata.shared)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def call_token_saliency(dtype: torch.dtype) -> None:
    plain = empty(2, 3, 64, 16, 16, dtype=dtype)
    channels_last = plain.movedim(2, -1).contiguous().movedim(-1, 2)
    for reduction in REDUCTIONS:
        for grads in (plain, channels_last, plain[:, :, :, ::2, ::2]):
            token_saliency.token_saliency(grads=grads, reduction=reduction)


def call_concept_counts(dtype: torch.dtype) -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    sizes = {"labels": labels, "top_n": 5, "num_concepts": 3, "codebook_size": 1024}
    for tokens, per in itertools.product(concept_counts.TOKENS, ("occurrence", "image")):
        tsv = empty(2, 16, 16, dtype=dtype)
        concept_counts.concept_counts(tsv=tsv, tokens=empty(2, 16, 16, dtype=tokens), per=per, **sizes)
    odd = torch.zeros(2, 5, 5, dtype=torch.int64)
    concept_counts.concept_counts(tsv=odd.to(dtype), tokens=odd, per="image", **sizes)


def call_saliency_counts(dtype: torch.dtype) -> None:
    """The two operators' kernels, one after the other: TSVs are float32."""
    call_token_saliency(dtype)
    call_concept_counts(torch.float32)


def call_smoothgrad_noise(dtype: torch.dtype) -> None:
    stream = {"num_samples": 3, "seed": 0, "item_ids": torch.zeros(2, dtype=torch.int64), "first_sample": 0}
    sigma = empty(2)
    for side in (4, 8, 16):
        x = empty(2, 6, side, side, dtype=dtype)
        for antithetic in (False, True):
            smoothgrad_noise.smoothgrad_noise(x=x, sigma=sigma, **stream, antithetic=antithetic, normals=None)
    for dtype_of_normals in FLOATS:
        normals = empty(2, 3, *x.shape[1:], dtype=dtype_of_normals)
        smoothgrad_noise.smoothgrad_noise(x=x, sigma=sigma, **stream, antithetic=False, normals=normals)


def call_gumbel_codebook(dtype: torch.dtype) -> None:
    """Few and many rows, narrow and wide codes, noise that is given; in float32 products of each precision."""
    for rows, channels, precision, with_gumbel in gumbel_variants(dtype):
        torch.set_float32_matmul_precision(precision)
        selection = gumbel_selection(dtype, rows, channels, with_gumbel)
        for hard, with_row_stats in ((True, False), (True, True), (False, True)):
            gumbel_codebook.gumbel_codebook(**selection, hard=hard, with_row_stats=with_row_stats)
    torch.set_float32_matmul_precision("highest")


def call_gumbel_codebook_backward(dtype: torch.dtype) -> None:
    """The same variants."""
    for rows, channels, precision, with_gumbel in gumbel_variants(dtype):
        torch.set_float32_matmul_precision(precision)
        gumbel_codebook_backward.gumbel_codebook_backward(
            **gumbel_selection(dtype, rows, channels, with_gumbel),
            upstream=empty(1, rows, channels),
            hard=False,
            index=torch.zeros(1, rows, dtype=torch.int64),
            row_stats=row_stats(rows, channels),
            codebook_needed=True,
        )
    torch.set_float32_matmul_precision("highest")


def gumbel_variants(dtype: torch.dtype) -> list[tuple[int, int, str, bool]]:
    """Rows, channels, precision of products, and whether the noise is given."""
    if dtype != torch.float32:
        return [(1000, 256, "highest", False)]
    many = [(1000, 256, "highest", False), (1000, 256, "high", False), (1000, 256, "medium", False)]
    return [*many, (1000, 256, "highest", True), (16, 256, "highest", False), (16, 5, "highest", False)]


def gumbel_selection(dtype: torch.dtype, rows: int, channels: int, with_gumbel: bool) -> dict[str, Any]:
    """The arguments that forward and backward share."""
    return {
        "logits": empty(1, rows, 64, dtype=dtype),
        "codebook": empty(64, channels, dtype=dtype),
        "tau": 1.0,
        "seed": 0,
        "draw": 0,
        "item_ids": torch.zeros(1, dtype=torch.int64),
        "gumbel": empty(1, rows, 64) if with_gumbel else None,
        "schedule": None if with_gumbel else torch.ones(4, dtype=torch.float64),
    }


def row_stats(rows: int, channels: int) -> RowStats:
    index = torch.zeros(1, rows, dtype=torch.int64)
    return RowStats(empty(1, rows), empty(1, rows), index, empty(1, rows, channels))


def call_gumbel_codebook_step(dtype: torch.dtype) -> None:
    """Logits are float32; the codebook is of this dtype."""
    schedule = torch.ones(4, dtype=torch.float64)
    for rows in (16, 1000) if dtype == torch.float32 else (1000,):
        logits, anchor = empty(1, rows, 64), torch.zeros(1, rows, dtype=torch.int64)
        options: list[dict[str, Any]] = [
            {"moments": None, "schedule": None, "anchor": None},
            {"moments": (logits, logits), "schedule": None, "anchor": None},
            {"moments": (logits, logits), "schedule": schedule, "anchor": anchor},
        ]
        for chosen in options:
            gumbel_codebook_step.gumbel_codebook_step(
                logits=logits,
                codebook=empty(64, 256, dtype=dtype),
                upstream=empty(1, rows, 256),
                lr=0.1,
                tau=1.0,
                seed=0,
                draw=0,
                item_ids=torch.zeros(1, dtype=torch.int64),
                step_count=1,
                betas=(0.9, 0.999),
                eps=1e-8,
                gumbel=None,
                stay_penalty=0.5,
                row_stats=row_stats(rows, 256),
                **chosen,
            )


def call_nearest_code(dtype: torch.dtype) -> None:
    for channels in (5, 256):
        nearest_code.nearest_code(z=empty(3, channels, dtype=dtype), codebook=empty(200, channels, dtype=dtype))


def call_random_stream(_dtype: torch.dtype) -> None:
    ids = torch.zeros(2, dtype=torch.int64)
    for stream in philox.STREAMS:
        random_stream.random_stream(stream=stream, seed=0, items=ids, draws=ids, rows=3, length=300)


CALLS: dict[str, Callable[[torch.dtype], None]] = {
    "concept_counts": call_concept_counts,
    "gumbel_codebook": call_gumbel_codebook,
    "gumbel_codebook_backward": call_gumbel_codebook_backward,
    "gumbel_codebook_step": call_gumbel_codebook_step,
    "nearest_code": call_nearest_code,
    "random_stream": call_random_stream,
    "saliency_counts": call_saliency_counts,
    "smoothgrad_noise": call_smoothgrad_noise,
    "token_saliency": call_token_saliency,
}


def compile_for(name: str, operators: list[str], dtypes: list[str]) -> dict[str, Resources]:
    compiling = Compiling()
    triton.runtime.driver.set_active(Driver(TARGETS[name].gpu, list(TARGETS).index(name)))
    launching.launch = compiling.launch
    # the launchers ask torch for what the target differs in
    torch.version.hip = "0" if TARGETS[name].gpu.backend == "hip" else None
    for operator, dtype in itertools.product(operators, dtypes):
        CALLS[operator](getattr(torch, dtype))
    return compiling.resources


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--operators", default=",".join(CALLS))
    parser.add_argument("--dtypes", default=",".join(str(dtype).removeprefix("torch.") for dtype in FLOATS))
    options = parser.parse_args(arguments)
    wrong = 0
    for name in options.targets.split(","):
        start = time.monotonic()
        kernels = compile_for(name, options.operators.split(","), options.dtypes.split(","))
        for label, takes in sorted(kernels.items()):
            fits = takes.local == 0 and takes.shared <= TARGETS[name].shared
            wrong += not fits
            used = f"{takes.registers} registers, {takes.local} B local, {takes.shared} B shared"
            print(f"{name} {label}: {used}{'' if fits else ': FAILED'}")
        print(f"{name}: {len(kernels)} variants, {time.monotonic() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
