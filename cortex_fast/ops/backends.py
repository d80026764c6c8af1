"""Which backend serves an operator, and why.

`REASONS` maps each operator to its backends, and each backend to a function from a tensor to the reason against it
(None: it can serve). `impl="auto"` takes the best backend that can serve. Forcing an unavailable backend raises an
error that states the reason. Nothing falls back silently: `choose` is the only place that decides.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cortex_fast import checks, kernels
from cortex_fast.kernels import cuda, native, triton

IMPL_VARIABLE = "CORTEX_FAST_IMPL"
NAMES = kernels.BACKENDS
_REQUESTS = ("auto", *NAMES)

Reason = Callable[[Tensor], str | None]
HALVES = kernels.HALVES


class UnlessForced(str):
    """A reason against a backend for "auto" alone: forcing the backend overrides it."""


class BackendUnavailableError(RuntimeError):
    """A forced backend is unavailable; the message states the reason."""


@dataclass(frozen=True)
class Verdict:
    """Whether one backend can serve one operator.

    Attributes:
        backend: the backend's name.
        usable: whether "auto" may choose it.
        reason: "yes", or why it is not usable.
    """

    backend: str
    usable: bool
    reason: str

    @property
    def usable_if_forced(self) -> bool:
        """Whether `impl=backend` is served."""
        return self.usable or isinstance(self.reason, UnlessForced)


def verdicts(backends: Mapping[str, Reason], *tensors: Tensor) -> list[Verdict]:
    """Every backend's verdict on an operator applied to these tensors.

    Args:
        backends: backend -> its reason function, an entry of `REASONS`.
        *tensors: the operator's tensors that a backend may refuse.

    Returns:
        One `Verdict` for each name of `NAMES`, best backend first.
    """
    reasons = {name: _reason_against(backends, name, tensors) for name in NAMES}
    return [Verdict(name, against is None, against or "yes") for name, against in reasons.items()]


def _reason_against(backends: Mapping[str, Reason], name: str, tensors: Sequence[Tensor]) -> str | None:
    """Why a backend is not usable for these tensors; a reason that holds even if it is forced comes first."""
    if name not in backends:
        return f"no {name} kernel of this operator in this version"
    reasons = [reason for reason in map(backends[name], tensors) if reason is not None]
    return next((reason for reason in reasons if type(reason) is not UnlessForced), reasons[0] if reasons else None)


def check_impl(impl: object, source: str = "impl") -> None:
    """Check a requested backend: "auto" or one of `NAMES`.

    Args:
        impl: the requested backend.
        source: the argument's or variable's name in the message.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(impl, str) or impl not in _REQUESTS:
        raise ValueError(f"{source}: expected 'auto' or one of {', '.join(map(repr, NAMES))}, got {checks.shown(impl)}")


def choose(operator: str, backends: Mapping[str, Reason], impl: str, *tensors: Tensor) -> str:
    """The backend that serves an operator.

    Args:
        operator: its name, for messages.
        backends: backend -> its reason function, an entry of `REASONS`.
        impl: "auto", or one of `NAMES`. The environment variable `CORTEX_FAST_IMPL` replaces "auto".
        *tensors: the operator's tensors that a backend may refuse.

    Returns:
        One of `NAMES`.

    Raises:
        ValueError: for an unknown name.
        BackendUnavailableError: if a forced backend is unavailable.
    """
    check_impl(impl)
    wanted = os.environ.get(IMPL_VARIABLE, "auto") if impl == "auto" else impl
    check_impl(wanted, IMPL_VARIABLE)
    if wanted == "auto":
        return next(name for name in NAMES if _reason_against(backends, name, tensors) is None)
    against = _reason_against(backends, wanted, tensors)
    if against is not None and not isinstance(against, UnlessForced):
        raise BackendUnavailableError(f"{operator}: impl={wanted!r} cannot serve: {against}")
    return wanted


def serving(operator: str, impl: str, *tensors: Tensor) -> Callable[..., Any]:
    """The kernel that serves an operator, to be called by keyword.

    Args:
        operator: a name of `REASONS`.
        impl: "auto", or one of `NAMES`.
        *tensors: the operator's tensors that a backend may refuse.

    Returns:
        The function of that name of the backend that `choose` takes.

    Raises:
        ValueError, BackendUnavailableError: as `choose`.
    """
    return kernels.load(choose(operator, REASONS[operator], impl, *tensors), operator)


def never(_tensor: Tensor) -> None:
    """The reference's reason function: it serves every tensor."""
    return None


def native_on_cpu(*dtypes: torch.dtype) -> Reason:
    """The reason function of a native CPU kernel.

    Args:
        *dtypes: the dtypes that the kernel takes; none: any.
    """

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
    """The reason function of a Triton kernel.

    Args:
        *dtypes: the dtypes that the kernel takes; none: any.
    """

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
    """The reason function of a CUDA kernel.

    Args:
        *dtypes: the dtypes that the kernel takes; none: any.
    """

    def against(tensor: Tensor) -> str | None:
        if cuda.unavailable() is not None:
            return cuda.unavailable()
        if tensor.device.type != "cuda":
            return f"the CUDA kernel runs on a GPU, the tensor is on {tensor.device}"
        if dtypes and tensor.dtype not in dtypes:
            return f"the CUDA kernel takes {', '.join(map(str, dtypes))}, not {tensor.dtype}"
        if torch.version.hip is not None:
            return "the CUDA kernel runs on NVIDIA's GPUs, torch is built for AMD's"
        capability = torch.cuda.get_device_capability(tensor.device)
        if capability < cuda.OLDEST:
            needed, present = _versions(cuda.OLDEST, capability)
            return f"the CUDA kernel needs compute capability {needed}, this GPU has {present}"
        return UnlessForced("not yet measured against Triton on a GPU: only where it is forced")

    return against


def _too_old(tensor: Tensor) -> str | None:
    """Why the tensor's GPU is too old for a Triton kernel of its dtype; None if it is not."""
    capability = torch.cuda.get_device_capability(tensor.device)
    oldest = (8, 0) if tensor.dtype == torch.bfloat16 else (7, 0)
    if torch.version.hip is None and capability < oldest:
        needed, present = _versions(oldest, capability)
        return f"the Triton kernel needs compute capability {needed} for {tensor.dtype}, this GPU has {present}"
    return None


def _versions(*versions: tuple[int, int]) -> list[str]:
    return [".".join(map(str, version)) for version in versions]


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
