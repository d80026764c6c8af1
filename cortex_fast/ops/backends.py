"""Which backend serves an operator, and why.

`REASONS` has each operator's backends, and for each a function from a tensor to the reason against it (None: it can
serve). `impl="auto"` takes the first that can; forcing a backend that cannot raises an error that states the reason.
Nothing falls back silently: `choose` is the only place that decides.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cortex_fast import checks, kernels
from cortex_fast.kernels import cuda, native, triton

IMPL_VARIABLE = "CORTEX_FAST_IMPL"
NAMES = kernels.BACKENDS

Reason = Callable[[Tensor], str | None]
HALVES = kernels.HALVES


class UnlessForced(str):
    """A reason against a backend that stands for "auto" alone: who forces the backend is served."""


class BackendUnavailableError(RuntimeError):
    """A forced backend cannot serve; the message is its reason."""


@dataclass(frozen=True)
class Verdict:
    """One backend's answer for one operator: usable by "auto", or `reason` why not."""

    backend: str
    usable: bool
    reason: str

    @property
    def usable_if_forced(self) -> bool:
        return self.usable or isinstance(self.reason, UnlessForced)


def verdicts(backends: Mapping[str, Reason], *tensors: Tensor) -> list[Verdict]:
    """Every backend's answer for an operator applied to `tensors`, best first."""
    answers = []
    for name in NAMES:
        if name in backends:
            reasons = sorted(
                filter(None, map(backends[name], tensors)), key=lambda reason: type(reason) is UnlessForced
            )
            against = next(iter(reasons), None)  # of which one that stands in any case comes first
        else:
            against = f"no {name} kernel of this operator in this version"
        answers.append(Verdict(name, against is None, against or "yes"))
    return answers


def check_impl(impl: object, source: str = "impl") -> None:
    if not isinstance(impl, str) or impl not in ("auto", *NAMES):
        raise ValueError(f"{source}: expected 'auto' or one of {', '.join(map(repr, NAMES))}, got {checks.shown(impl)}")


def choose(operator: str, backends: Mapping[str, Reason], impl: str, *tensors: Tensor) -> str:
    """The backend's name for `impl`: "auto", or a name from NAMES. `CORTEX_FAST_IMPL` replaces "auto".

    Raises ValueError for an unknown name and BackendUnavailableError for a forced backend that cannot serve.
    """
    check_impl(impl)
    wanted = os.environ.get(IMPL_VARIABLE, "auto") if impl == "auto" else impl
    check_impl(wanted, IMPL_VARIABLE)
    answers = verdicts(backends, *tensors)
    if wanted == "auto":
        return next(answer.backend for answer in answers if answer.usable)
    answer = next(answer for answer in answers if answer.backend == wanted)
    if not answer.usable_if_forced:
        raise BackendUnavailableError(f"{operator}: impl={wanted!r} cannot serve: {answer.reason}")
    return wanted


def serving(operator: str, impl: str, *tensors: Tensor) -> Callable[..., Any]:
    """The function of the backend that `choose` takes for this operator, to be called by keyword."""
    return kernels.load(choose(operator, REASONS[operator], impl, *tensors), operator)


def never(_tensor: Tensor) -> None:
    """No reason against: the reference serves every tensor."""
    return None


def native_on_cpu(*dtypes: torch.dtype) -> Reason:
    """The reason function of a native CPU kernel that takes these dtypes (none named: any)."""

    def against(tensor: Tensor) -> str | None:
        if native.UNAVAILABLE is not None:
            return native.UNAVAILABLE
        if tensor.device.type != "cpu":
            return f"the native kernel runs on the CPU, the tensor is on {tensor.device}"
        if dtypes and tensor.dtype not in dtypes:
            return f"the native kernel takes {', '.join(map(str, dtypes))}, not {tensor.dtype}"
        return None

    return against


def triton_on_gpu(*dtypes: torch.dtype) -> Reason:
    """The reason function of a Triton kernel that takes these dtypes (none named: any)."""

    def against(tensor: Tensor) -> str | None:
        if tensor.device.type != "cuda" and not (triton.INTERPRETED and tensor.device.type == "cpu"):
            return f"the Triton kernel runs on a GPU, the tensor is on {tensor.device}"
        if dtypes and tensor.dtype not in dtypes:
            return f"the Triton kernel takes {', '.join(map(str, dtypes))}, not {tensor.dtype}"
        if triton.unavailable() is not None:
            return triton.unavailable()
        if triton.INTERPRETED and tensor.dtype == torch.bfloat16:
            return "Triton's interpreter (TRITON_INTERPRET) does not round to torch.bfloat16 as a GPU does"
        if triton.INTERPRETED:
            return UnlessForced("Triton's interpreter (TRITON_INTERPRET) would run it: only where it is forced")
        return _too_old(tensor)

    return against


def cuda_on_gpu(*dtypes: torch.dtype) -> Reason:
    """The reason function of a CUDA kernel that takes these dtypes (none named: any)."""

    def against(tensor: Tensor) -> str | None:
        if cuda.unavailable() is not None:
            return cuda.unavailable()
        if tensor.device.type != "cuda":
            return f"the CUDA kernel runs on a GPU, the tensor is on {tensor.device}"
        if dtypes and tensor.dtype not in dtypes:
            return f"the CUDA kernel takes {', '.join(map(str, dtypes))}, not {tensor.dtype}"
        if torch.version.hip is not None:
            return "the CUDA kernel runs on NVIDIA's GPUs, torch is built for AMD's"
        had = torch.cuda.get_device_capability(tensor.device)
        if had < cuda.OLDEST:
            needed = ".".join(map(str, cuda.OLDEST))
            return f"the CUDA kernel needs compute capability {needed}, this GPU has {'.'.join(map(str, had))}"
        return UnlessForced("not yet measured against Triton on a GPU: only where it is forced")

    return against


def _too_old(tensor: Tensor) -> str | None:
    capability = torch.cuda.get_device_capability(tensor.device)
    least = (8, 0) if tensor.dtype == torch.bfloat16 else (7, 0)
    if torch.version.hip is None and capability < least:
        had, needed = (".".join(map(str, version)) for version in (capability, least))
        return f"the Triton kernel needs compute capability {needed} for {tensor.dtype}, this GPU has {had}"
    return None


_REASON_OF = {
    "cuda": cuda_on_gpu,
    "triton": triton_on_gpu,
    "native": native_on_cpu,
    "reference": lambda *_dtypes: never,
}
REASONS: dict[str, dict[str, Reason]] = {
    operator: {backend: _REASON_OF[backend](*dtypes) for backend, dtypes in backends.items()}
    for operator, backends in kernels.OPERATORS.items()
}
