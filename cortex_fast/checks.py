"""Checks of arguments, for the public edge only. Each message names the argument, what was expected and what was got.

Every check takes the argument's name and its value, and raises TypeError for another type and ValueError for another
value. Checks of single numbers return Python's int or float; the number may also be one of numpy's scalars, or an array
or a tensor without dimensions.
"""

from collections.abc import Collection, Iterable, Sequence
from types import UnionType

import numpy as np
import torch
from torch import Tensor

Integers = Tensor | np.ndarray | Sequence[int]  # the argument of `integers`
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)
_PART = 2**22  # values that are widened at a time


def rank(name: str, tensor: Tensor, shape: str) -> None:
    """A tensor of the rank of `shape`, which is written as in the documentation: "[B, m, m]"."""
    _tensor(name, tensor)
    expected = shape.count(",") + 1
    if tensor.ndim != expected:
        raise ValueError(f"{name}: expected shape {shape}, got {list(tensor.shape)}")


def same_shape(name: str, tensor: Tensor, other_name: str, shape: torch.Size) -> None:
    """A tensor of this shape, that of `other_name`."""
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected the shape of {other_name}, {list(shape)}, got {list(tensor.shape)}")


def floating(name: str, tensor: Tensor) -> None:
    """A floating-point tensor of 16, 32 or 64 bits."""
    _tensor(name, tensor)
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected a floating-point tensor of at least 16 bits, got {tensor.dtype}")


def integral(name: str, tensor: Tensor) -> None:
    """An integer tensor of any width, with or without sign."""
    _tensor(name, tensor)
    if tensor.dtype not in _INTEGERS:
        raise TypeError(f"{name}: expected an integer tensor, got {tensor.dtype}")


def same_device(**tensors: Tensor | None) -> None:
    """Tensors by name that are all on one device; None is skipped."""
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        got = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{', '.join(devices)}: expected one device, got {got}")


def device(name: str, value: object) -> None:
    """A device that torch knows; a CUDA device must exist."""
    try:
        torch_device = torch.device(value)  # type: ignore[call-overload]
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{name}: expected a torch device such as 'cpu' or 'cuda:0', got {value!r}") from error
    if torch_device.type == "cuda" and (torch_device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{name}: expected one of {torch.cuda.device_count()} CUDA devices, got {value!r}")


def integers(name: str, value: object, device: torch.device | None = None) -> Tensor:
    """Integers as a tensor: a tensor unchanged; an array, a list or a tuple converted, on `device`."""
    tensor = _values(name, value, "iu", "whole numbers", device)
    integral(name, tensor)
    return tensor


def reals(name: str, value: object, device: torch.device | None = None) -> Tensor:
    """Numbers as a tensor: a tensor unchanged; an array, a list or a tuple as float64, on `device`."""
    return _values(name, value, "iuf", "numbers", device)


def mask(name: str, value: object, device: torch.device | None = None) -> Tensor:
    """Booleans as a tensor: a tensor unchanged; an array converted, on `device`."""
    tensor = _values(name, value, "b", "booleans", device) if isinstance(value, np.ndarray) else value
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool:
        got = tensor.dtype if isinstance(tensor, Tensor) else shown(value)
        raise TypeError(f"{name}: expected a boolean tensor, got {got}")
    return tensor


def _values(name: str, value: object, kinds: str, expected: str, device: torch.device | None) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple | range):
        array = _array(name, value, int if kinds == "iu" else int | float, expected)
    elif isinstance(value, np.ma.MaskedArray) or not hasattr(value, "__array__"):
        raise TypeError(f"{name}: expected {expected} in a tensor, an array, a list or a tuple, got {shown(value)}")
    else:
        array = np.asarray(value)
    if array.dtype.kind not in kinds:
        raise TypeError(f"{name}: expected {expected}, got an array of {array.dtype}")
    array = array.astype(np.float64 if "f" in kinds else array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)  # torch takes no others


def _array(name: str, values: Sequence[object], kind: type | UnionType, expected: str) -> np.ndarray:
    numbers = [_number(value) for value in values]
    for place, (value, number) in enumerate(zip(values, numbers, strict=True)):
        if not isinstance(number, kind):
            if isinstance(value, list | tuple):
                raise TypeError(
                    f"{name}: expected a torch.Tensor, got {type(values).__name__} of {type(value).__name__}s"
                )
            raise TypeError(f"{name}: expected {expected}, got {shown(value)} at place {place}")
    try:
        return np.array(numbers, dtype=np.int64 if kind is int else np.float64)
    except OverflowError as error:
        raise ValueError(f"{name}: expected numbers of 64 bits, got larger ones") from error


def in_range(name: str, tensor: Tensor, stop: int) -> None:
    """A tensor with all values within [0, stop). Not checked while a CUDA graph is captured, when none can be read."""
    if tensor.numel() == 0 or (tensor.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        parts = [part.long().aminmax() for part in tensor.reshape(-1).split(_PART)]  # torch has no minimum of these
        tensor = torch.stack([value for part in parts for value in part])
    low, high = int(tensor.min()), int(tensor.max())
    if low < 0 or high >= stop:
        raise ValueError(f"{name}: expected values in [0, {stop}), got {low} to {high}")


def finite(name: str, tensor: Tensor) -> None:
    """A tensor without infinities and NaN."""
    if tensor.numel() and not bool(torch.isfinite(torch.stack(tensor.aminmax())).all()):  # a NaN is both
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")


def whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """An int within [low, high], both inclusive."""
    bounds = f"at least {low}" if high is None else f"from {low} to {high}"
    number = _number(value)
    if not isinstance(number, int):
        raise TypeError(f"{name}: expected a whole number {bounds}, got {shown(value)}")
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name}: expected a whole number {bounds}, got {number}")
    return int(number)


def seed(value: object) -> int:
    """A seed within [0, 2^63)."""
    return whole("seed", value, 0, 2**63 - 1)


def positive(name: str, value: object) -> float:
    """A finite number above 0."""
    number = _real(name, value, "a positive number")
    if not 0 < number < float("inf"):
        raise ValueError(f"{name}: expected a positive number, got {number}")
    return number


def non_negative(name: str, value: object) -> float:
    """A finite number of at least 0."""
    number = _real(name, value, "a number of at least 0")
    if not 0 <= number < float("inf"):
        raise ValueError(f"{name}: expected a number of at least 0, got {number}")
    return number


def flag(name: str, value: object) -> bool:
    """True or False, Python's or numpy's."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise TypeError(f"{name}: expected True or False, got {shown(value)}")


def one_of(name: str, value: object, choices: Collection[str]) -> None:
    """One of these texts."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {shown(value)}")


def shown(value: object) -> str:
    """A value for a message: a tensor's or an array's type and shape, the first 80 characters of another one's repr."""
    if isinstance(value, Tensor) and value.is_nested:
        return "a nested tensor"
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} of {value.dtype}, shape {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def texts(name: str, values: Iterable[object]) -> None:
    """Values that are all texts."""
    others = [value for value in values if not isinstance(value, str)]
    if others:
        raise TypeError(f"{name}: expected texts, got {others[0]!r}")


def _real(name: str, value: object, expected: str) -> float:
    number = _number(value)
    if number is None:
        raise TypeError(f"{name}: expected {expected}, got {shown(value)}")
    try:
        return float(number)
    except OverflowError as error:  # an int that no float reaches
        raise ValueError(f"{name}: expected {expected}, got {shown(value)}") from error


def _number(value: object) -> int | float | None:
    """The value as Python's number if it is a single number, else None; also None for a tensor that requires a
    gradient, which the number would not carry."""
    if isinstance(value, Tensor):
        readable = value.layout == torch.strided and value.dtype in (*_FLOATS, *_INTEGERS) and not value.is_meta
        value = value.item() if readable and value.ndim == 0 and not value.requires_grad else None
    elif isinstance(value, np.generic) or type(value) is np.ndarray:  # a subclass may mask its value
        value = value.item() if value.dtype.kind in "iuf" and value.ndim == 0 else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _tensor(name: str, value: object) -> None:
    """A dense tensor: every element is in memory."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.is_nested or value.layout != torch.strided:
        form = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name}: expected a dense tensor (torch.strided), got {form}")
