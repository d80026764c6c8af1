"""Classes by their number or by their name."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cortex_fast import checks

Target = int | str | Sequence[int] | Sequence[str] | np.ndarray | Tensor  # a class, or one for each image


def target_vector(target: Target, batch: int, device: torch.device, names: Sequence[str] = ()) -> Tensor:
    """One class for each image.

    Args:
        target: a class by number or name, for all images or one for each.
        batch: the number of images.
        device: of the result.
        names: the classes' names, to look up texts in. Default none.
    Returns:
        int64 [batch].
    Raises:
        TypeError: target is neither whole numbers nor texts.
        ValueError: there is no such name, or the number of classes differs from the number of images.
    """
    if is_single(target):
        number = class_number("target", target, names)
        return torch.full((batch,), number, dtype=torch.int64, device=device)
    numbers = class_numbers("target", target, names).to(device)
    if numbers.shape != (batch,):
        raise ValueError(f"target: expected an int or shape [{batch}], got {list(numbers.shape)}")
    return numbers


def is_single(target: object) -> bool:
    """Whether a target is one class for all images, a number or a name, and not one for each."""
    return isinstance(target, str) or not hasattr(target, "__len__") or getattr(target, "shape", None) == ()


def class_number(name: str, value: object, names: Sequence[str]) -> int:
    """The number of a class.

    Args:
        name: the argument's, for messages.
        value: a number, or a name among `names`.
        names: the classes' names.
    Raises:
        TypeError: value is neither a whole number nor a text.
        ValueError: the number is negative, or the name is not that of one class; the message has similar names.
    """
    if not isinstance(value, str):
        return checks.whole(name, value, 0)
    if not names:
        raise ValueError(f"{name}: expected a class number, got {value!r}: there are no names to look it up in")
    matches = [number for number, class_name in enumerate(names) if class_name == value]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"{name}: expected the name of one class, got {value!r}, which is that of classes {matches}")
    near = difflib.get_close_matches(value, names, n=3, cutoff=0.5) or names[:3]
    raise ValueError(f"{name}: expected one of {len(names)} names, such as {', '.join(map(repr, near))}, got {value!r}")


def class_numbers(name: str, values: Any, names: Sequence[str]) -> Tensor:
    """The numbers of n classes.

    Args:
        name: the argument's, for messages.
        values: n numbers or names, in a tensor, an array, a list or a tuple.
        names: the classes' names.
    Returns:
        int64 [n].
    Raises:
        TypeError: as `class_number`.
        ValueError: as `class_number`.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind == "U":
        values = values.tolist()
    if isinstance(values, list | tuple):
        texts = dict.fromkeys(value for value in values if isinstance(value, str))
        numbers = {text: class_number(name, text, names) for text in texts}
        values = [numbers[value] if isinstance(value, str) else value for value in values] if numbers else values
    return checks.integers(name, values).long()


def names_of(extractor: nn.Module) -> tuple[str, ...]:
    """The names of an extractor's classes, in order; empty where it has none.

    They are its attribute `names`, or `id2label` in a configuration of transformers, by number or in order.
    """
    for names in (getattr(extractor, "names", None), getattr(getattr(extractor, "config", None), "id2label", None)):
        if isinstance(names, Mapping) and set(names) == set(range(len(names))):
            names = [names[number] for number in range(len(names))]
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return ()


def name_classes(extractor: nn.Module, names: Sequence[str]) -> nn.Module:
    """Give an extractor its classes' names, by which targets may then be given. Returns the extractor."""
    extractor.names = tuple(names)  # type: ignore[assignment]
    return extractor
