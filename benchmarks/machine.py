"""The machine's best rates, measured in the same run; the peak memory of a call; the machine's fingerprint."""

import ctypes
import gc
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cortex_fast.info import info

ROOT = Path(__file__).parents[1]
LARGE_BYTES = 320 * 2**20  # a copy's source and target are half each: still beyond a last-level cache
ROUNDS = 7

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what to write to CLEAR


@dataclass(frozen=True)
class Floor:
    """The least work of any implementation.

    Attributes:
        bytes: to and from memory.
        operations: of matrix products, 2 a term. Default 0.
        traffic: how the bytes move, "read" (torch.sum) or "copy" (copy_; read and written bytes both count). Default
            "read".
    """

    bytes: int
    operations: int = 0
    traffic: str = "read"


def floor_seconds(floor: Floor, device: torch.device) -> float:
    """The seconds that the floor takes here and now: the larger of its bytes moved by torch and its operations.

    Bytes that fit a cache are measured in it, where an operator that is called repeatedly finds them.
    """
    arithmetic = floor.operations / matrix_rate(device) if floor.operations else 0.0
    return max(traffic_seconds(floor.traffic, floor.bytes, device), arithmetic)


def rates(device: torch.device) -> dict[str, float]:
    """Bytes a second of "read" and "copy" beyond any cache, and float32 operations a second of "matrix" products."""
    traffic = {name: LARGE_BYTES / traffic_seconds(name, LARGE_BYTES, device) for name in ("read", "copy")}
    return {**traffic, "matrix": matrix_rate(device)}


def traffic_seconds(traffic: str, size: int, device: torch.device) -> float:
    """The least seconds that `size` bytes take. Memory is reused: page faults of fresh memory are no floor."""
    if traffic == "read":
        return _best_seconds(torch.ones(size // 4, device=device).sum)
    source = torch.ones(size // 8, device=device)
    target = torch.zeros_like(source)
    return _best_seconds(lambda: target.copy_(source))


def matrix_rate(device: torch.device) -> float:
    """Operations a second of torch.mm: the better of the operators' shape and a square."""
    operation_rates = []
    for rows, inner, columns in ((256, 256, 16384), (2048, 2048, 2048)):
        a, b = torch.ones(rows, inner, device=device), torch.ones(inner, columns, device=device)
        out = torch.zeros(rows, columns, device=device)
        operation_rates.append(2 * rows * inner * columns / _best_seconds(partial(torch.mm, a, b, out=out)))
    return max(operation_rates)


def _best_seconds(call: Callable[[], Any]) -> float:
    call()
    seconds = []
    for _ in range(ROUNDS):
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def peak_extra_bytes(call: Callable[[], Any]) -> int | None:
    """The most by which one call raises this process's resident memory; None where the system does not report it (not
    Linux).

    Counts all that the call allocates, results and scratch alike, but neither its caller's memory nor buffers that a
    library allocated in an earlier call. Exact to about a megabyte.
    """
    if torch.cuda.is_initialized():  # then the tensors are on it
        return _peak_on_gpu(call)
    if not os.access(CLEAR, os.W_OK):
        return None
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc: freed memory that is used again would not show
    if trim is not None:
        trim(0)
    CLEAR.write_text(RESET_PEAK, encoding="utf-8")
    before = _status_bytes("VmRSS")
    result = call()
    peak = _status_bytes("VmHWM")
    del result
    return max(0, peak - before)


def _peak_on_gpu(call: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def _status_bytes(name: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def fingerprint() -> dict[str, Any]:
    """The machine, the software and the commit that figures belong to."""
    facts = info()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": _git("status", "--porcelain") != "",
        "machine": facts.devices["CPU"],
        "gpu": gpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),  # of all processes: under a high load times are not reliable
        "python": facts.versions["python"],
        "torch": facts.versions["torch"],
        "triton": facts.versions["triton"],
        "compiler": facts.native.get("compiler", facts.native.get("missing")),
        "cortex_fast": facts.versions["cortex-fast"],
    }


def gpu() -> str | None:
    """The current GPU and its driver."""
    if not torch.cuda.is_available():
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    driver = done.stdout.split("\n")[0].strip() or "unknown"
    return f"{torch.cuda.get_device_name()}, driver {driver}, CUDA {torch.version.cuda}"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown: {error}"
    return done.stdout.strip()
