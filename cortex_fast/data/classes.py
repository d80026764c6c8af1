"""Classes by their number or by their name."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cortex_fast import checks

Target = int | str | Sequence[int] | Sequence[str] | np.ndarray | Tensor  # one class, or one for each


def target_vector(target: Target, batch: int, device: torch.device, names: Sequence[str] = ()) -> Tensor:
    """`target`, one class or one for each image, as int64 [batch]. A text stands for the class of that name."""
    if is_single(target):
        number = class_number("target", target, names)
        return torch.full((batch,), number, dtype=torch.int64, device=device)
    found = class_numbers("target", target, names).to(device)
    if found.shape != (batch,):
        raise ValueError(f"target: expected an int or shape [{batch}], got {list(found.shape)}")
    return found


def is_single(target: object) -> bool:
    """Whether it is one class for all, a number or a name, and not one for each."""
    return isinstance(target, str) or not hasattr(target, "__len__") or getattr(target, "shape", None) == ()


def class_number(name: str, value: object, names: Sequence[str]) -> int:
    """A class by its number, or by its name among `names`. Raises ValueError for a name that is not there, with those
    most like it."""
    if not isinstance(value, str):
        return checks.whole(name, value, 0)
    if not names:
        raise ValueError(f"{name}: expected a class number, got {value!r}: there are no names to look it up in")
    found = [number for number, one in enumerate(names) if one == value]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{name}: expected the name of one class, got {value!r}, which is that of classes {found}")
    near = difflib.get_close_matches(value, names, n=3, cutoff=0.5) or names[:3]
    raise ValueError(f"{name}: expected one of {len(names)} names, such as {', '.join(map(repr, near))}, got {value!r}")


def class_numbers(name: str, values: Any, names: Sequence[str]) -> Tensor:
    """Classes by number or name as int64 [n]."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "U":
        values = values.tolist()
    if isinstance(values, list | tuple):
        different = dict.fromkeys(one for one in values if isinstance(one, str))
        numbers = {one: class_number(name, one, names) for one in different}
        values = [numbers[one] if isinstance(one, str) else one for one in values] if numbers else values
    return checks.integers(name, values).long()


def names_of(extractor: nn.Module) -> tuple[str, ...]:
    """The classes' names where the extractor has them: as `names`, or as `id2label` in a configuration of transformers;
    by number, or in order."""
    for found in (getattr(extractor, "names", None), getattr(getattr(extractor, "config", None), "id2label", None)):
        if isinstance(found, Mapping) and set(found) == set(range(len(found))):
            found = [found[number] for number in range(len(found))]
        if isinstance(found, list | tuple) and found and all(isinstance(one, str) for one in found):
            return tuple(found)
    return ()


def name_classes(extractor: nn.Module, names: Sequence[str]) -> nn.Module:
    """Give an extractor its classes' names, by which targets then may be called."""
    extractor.names = tuple(names)  # type: ignore[assignment]
    return extractor
