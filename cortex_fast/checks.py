"""Checks of arguments, for the public edge only: each names the argument, what was expected and what was got."""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PART = 2**22  # values looked at in one go where they must be widened for it


def rank(name: str, tensor: Tensor, shape: str) -> None:
    """`shape` is written as in the documentation, for instance "[B, m, m]"; only its rank is checked."""
    _tensor(name, tensor)
    expected = shape.count(",") + 1
    if tensor.ndim != expected:
        raise ValueError(f"{name}: expected shape {shape}, got {list(tensor.shape)}")


def same_shape(name: str, tensor: Tensor, other_name: str, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected the shape of {other_name}, {list(shape)}, got {list(tensor.shape)}")


def floating(name: str, tensor: Tensor) -> None:
    _tensor(name, tensor)
    if tensor.dtype not in _FLOATS:  # narrower ones have next to no operators
        raise TypeError(f"{name}: expected a floating-point tensor of at least 16 bits, got {tensor.dtype}")


def integral(name: str, tensor: Tensor) -> None:
    _tensor(name, tensor)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: expected an integer tensor, got {tensor.dtype}")


def same_device(**tensors: Tensor | None) -> None:
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        got = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{', '.join(devices)}: expected one device, got {got}")


def device(name: str, value: object) -> None:
    """A device that torch knows, and for CUDA one that is there."""
    try:
        found = torch.device(value)  # type: ignore[call-overload]
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{name}: expected a torch device such as 'cpu' or 'cuda:0', got {value!r}") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{name}: expected one of {torch.cuda.device_count()} CUDA devices, got {value!r}")


def in_range(name: str, tensor: Tensor, stop: int) -> None:
    """All values within [0, stop). Not while a CUDA graph is being captured, when nothing can be looked at."""
    if tensor.numel() == 0 or (tensor.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        parts = [part.long().aminmax() for part in tensor.reshape(-1).split(_PART)]  # torch has no minimum of these
        tensor = torch.stack([value for part in parts for value in part])
    low, high = int(tensor.min()), int(tensor.max())
    if low < 0 or high >= stop:
        raise ValueError(f"{name}: expected values in [0, {stop}), got {low} to {high}")


def finite(name: str, tensor: Tensor) -> None:
    if tensor.numel() and not bool(torch.isfinite(torch.stack(tensor.aminmax())).all()):  # a NaN is both
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")


def whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """An int within [low, high], both inclusive."""
    bounds = f"at least {low}" if high is None else f"from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number {bounds}, got {value!r}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name}: expected a whole number {bounds}, got {value}")


def positive(name: str, value: object) -> None:
    _number(name, value, "a positive number")
    if not 0 < value < float("inf"):  # type: ignore[operator]
        raise ValueError(f"{name}: expected a positive number, got {value}")


def one_of(name: str, value: object, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def texts(name: str, values: Iterable[object]) -> None:
    others = [value for value in values if not isinstance(value, str)]
    if others:
        raise TypeError(f"{name}: expected texts, got {others[0]!r}")


def seed(value: object) -> None:
    """A seed within [0, 2^63)."""
    whole("seed", value, 0, 2**63 - 1)


def non_negative(name: str, value: object) -> None:
    _number(name, value, "a number of at least 0")
    if not 0 <= value < float("inf"):  # type: ignore[operator]
        raise ValueError(f"{name}: expected a number of at least 0, got {value}")


def _number(name: str, value: object, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")


def _tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
