"""Benchmarks: a case, its floor and its siblings, and how one sibling is validated and timed."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.machine import Floor, peak_extra_bytes
from cortex_fast.ops.backends import REASONS, verdicts

IMPLS = ("cuda", "triton", "native", "reference")  # timed for every operator where they can serve, best first
SEED = 0  # of torch's generator, right before a sibling's validated call

LEAST_ROUNDS, MOST_ROUNDS = 5, 200  # of one sibling, all its turns together
FAST_SECONDS, SLOW_SECONDS = 1.0, 2.0


def _unchanged(data: Any) -> Any:
    return data


def _available(_data: Any) -> None:
    return None


@dataclass(frozen=True)
class Sibling:
    """One way to compute a case's result.

    Attributes:
        name: its name in tables.
        run: what is timed, `run(prepare(data))`, without the preparation.
        error: (data, result of the first call) -> the largest error against a float64 formula; beyond `tolerance`
            nothing is timed. That call starts from torch.manual_seed(SEED), so that its random numbers can be drawn
            again. None for a sibling with another random stream.
        tolerance: the largest error allowed.
        prepare: data -> the argument of `run`. Default: data itself.
        unavailable: data -> the reason why it cannot run here, or None. Default None.
        agreement: (data, result of the first call) -> an estimate's rank correlation and overlap of the top with the
            truth. Default None: not an estimate.
        share: the part of the case's work that one call does. Default 1.
    """

    name: str
    run: Callable[[Any], Any]
    error: Callable[[Any, Any], float] | None
    tolerance: float
    prepare: Callable[[Any], Any] = _unchanged
    unavailable: Callable[[Any], str | None] = _available
    agreement: Callable[[Any, Any], tuple[float, float]] | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Case:
    """An operator at one size.

    Attributes:
        operator, name: its title in tables.
        sizes: its sizes in full.
        floor: the least work of any implementation.
        data: device -> the data that its siblings share.
        siblings: tables compare all of them to the first that can run.
    """

    operator: str
    name: str
    sizes: str
    floor: Floor
    data: Callable[[torch.device], Any]
    siblings: tuple[Sibling, ...]

    @property
    def group(self) -> str:
        return f"{self.operator} {self.name}"


def reason_against(operator: Callable[..., Any], impl: str, tensor: Tensor) -> str | None:
    """Why a backend cannot serve an operator of cortex_fast.ops on `tensor`, or None.

    CUDA kernels count as forced, since the benchmarks decide whether "auto" should take them.
    """
    reasons = REASONS[operator.__module__.rpartition(".")[2]]
    answer = next(answer for answer in verdicts(reasons, tensor) if answer.backend == impl)
    served = answer.usable_if_forced if impl == "cuda" else answer.usable
    return None if served else answer.reason


def max_error(result: Tensor, exact: Tensor) -> float:
    """The largest absolute difference; NaN where either has one."""
    if result.shape != exact.shape:
        raise ValueError(f"result: expected the exact one's shape {list(exact.shape)}, got {list(result.shape)}")
    return float((result.double() - exact.double()).abs().max())


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of a function for each shape, called at the first use, since its import takes seconds."""

    @cache
    def fast() -> Callable[..., Any]:
        return torch.compile(function, dynamic=False)

    return lambda *arguments: fast()(*arguments)


def rounds(seconds: float) -> int:
    """How often to time a call of `seconds`: for about a second, five times within two seconds, at least twice."""
    few = min(LEAST_ROUNDS, int(SLOW_SECONDS / seconds))
    return min(MOST_ROUNDS, max(2, few, int(FAST_SECONDS / seconds)))


@dataclass(frozen=True)
class Validated:
    """A call that may be timed, its error, its agreement with the truth if it is an estimate, its peak memory in bytes,
    and roughly the seconds it takes."""

    call: Callable[[], Any]
    max_error: float | None
    agreement: tuple[float, float] | None
    peak_bytes: int | None
    seconds: float


def synchronised(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call, on a GPU waiting for its work to end."""
    if not torch.cuda.is_available():
        return call

    def waiting() -> Any:
        result = call()
        torch.cuda.synchronize()
        return result

    return waiting


def checked(
    case: Case, sibling: Sibling, data: Any
) -> tuple[Callable[[], Any], float | None, tuple[float, float] | None]:
    """The sibling's call, its error, and its agreement. Fails the test where the error is too large."""
    call = synchronised(partial(sibling.run, sibling.prepare(data)))
    torch.manual_seed(SEED)
    result = call()
    error = None if sibling.error is None else sibling.error(data, result)
    if error is not None and not error <= sibling.tolerance:
        pytest.fail(f"{case.group}, {sibling.name}: error {error:.2e} exceeds {sibling.tolerance:.0e}, so not timed")
    return call, error, None if sibling.agreement is None else sibling.agreement(data, result)


def validate(case: Case, sibling: Sibling, data: Any) -> Validated:
    """Checks the sibling, then looks at its memory and its time once."""
    call, error, agreement = checked(case, sibling, data)
    seconds = 0.0

    def timed() -> Any:
        nonlocal seconds
        began = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - began
        return result

    peak = peak_extra_bytes(timed)  # of the second call: the first one compiled, and filled caches
    if peak is None:
        timed()
    return Validated(call, error, agreement, peak, seconds)


def time_turn(benchmark: Any, case: Case, sibling: Sibling, valid: Validated, floor: float, turns: int) -> None:
    """Times one of a sibling's `turns` with pytest-benchmark's fixture. floor: the case's in this turn, in seconds."""
    benchmark.group = case.group
    benchmark.extra_info.update(
        sibling=sibling.name,
        sizes=case.sizes,
        bytes=case.floor.bytes * sibling.share,
        operations=case.floor.operations * sibling.share,
        floor_seconds=floor,
        share=sibling.share,
        max_error=valid.max_error,
        agreement=valid.agreement,
        peak_bytes=valid.peak_bytes,
    )
    warm_up = int(valid.seconds < FAST_SECONDS)  # a slower call does not depend on the state of caches
    benchmark.pedantic(valid.call, rounds=math.ceil(rounds(valid.seconds) / turns), warmup_rounds=warm_up)
