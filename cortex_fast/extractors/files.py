"""Extractor files: the weights, with the name and the sizes that build the module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cortex_fast import checks
from cortex_fast.data.classes import name_classes, names_of
from cortex_fast.data.results import ResultFileError, load_result, read_header, save_result
from cortex_fast.extractors.build import build

KIND = "Extractor"
_SIZES = {"num_classes", "in_channels", "width", "grid"}


def save_extractor(
    path: Path | str, extractor: nn.Module, name: str, sizes: Mapping[str, Any], fingerprint: Mapping[str, Any]
) -> None:
    """Write an extractor to a safetensors file, which is either whole or absent.

    The classes' names are written too, if the extractor has them.

    Args:
        path: the file, which is replaced.
        extractor: the module; `build(name, **sizes)` must give one with the same weights.
        name: the extractor's name, see `build`.
        sizes: num_classes, in_channels, width and grid, see `build`.
        fingerprint: plain values that say how the extractor was trained.

    Raises:
        OSError: the file could not be written; the message names it.
    """
    header = {"name": name, "sizes": dict(sizes), "fingerprint": dict(fingerprint), "names": names_of(extractor)}
    save_result(path, KIND, extractor.state_dict(), header)


def load_extractor(path: Path | str) -> nn.Module:
    """Read an extractor that `save_extractor` wrote.

    Args:
        path: the file.

    Returns:
        The extractor, float32 on the CPU, in eval mode, without parameter gradients, channels last in memory.

    Raises:
        FileNotFoundError: the file does not exist.
        ResultFileError: it is damaged or not an extractor file; the message names it.
    """
    state, header = load_result(path, KIND)
    _check_header(Path(path), header)
    try:
        extractor = filled(header["name"], header["sizes"], state)
        name_classes(extractor, header.get("names", ()))
    except (TypeError, ValueError) as error:
        raise ResultFileError(f"{path}: not an extractor of this version ({error})") from error
    extractor.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return extractor.eval().requires_grad_(False)


def extractor_header(path: Path | str) -> dict[str, Any]:
    """Read the header of an extractor file, without its weights.

    Args:
        path: the file.

    Returns:
        "name", "sizes", "fingerprint" and, where the extractor has them, the classes' "names".

    Raises:
        FileNotFoundError: the file does not exist.
        ResultFileError: it is damaged or not an extractor file; the message names it.
    """
    header = read_header(Path(path), KIND)
    _check_header(Path(path), header)
    sizes = header["sizes"]
    if isinstance(sizes["grid"], list):  # JSON has no tuples
        sizes["grid"] = tuple(sizes["grid"])
    return header


def _check_header(path: Path, header: Mapping[str, Any]) -> None:
    sizes = header.get("sizes")
    whole = header.keys() - {"names"} == {"name", "sizes", "fingerprint"} and isinstance(header["name"], str)
    if not whole or not isinstance(sizes, dict) or sizes.keys() != _SIZES or type(sizes["num_classes"]) is not int:
        raise ResultFileError(f"{path}: not an extractor of this version (its header is {str(dict(header))[:200]})")


def filled(name: str, sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """The extractor of this name and these sizes with the given weights, which become float32.

    Raises TypeError or ValueError if names, shapes, dtypes or values do not fit. Shapes are compared before the module
    takes memory, so a damaged header cannot ask for more than the weights fill.
    """
    try:
        with torch.device("meta"):
            expected = build(name, **sizes).state_dict()
    except (OverflowError, RuntimeError) as error:  # torch raises them where a size or a product exceeds int64
        raise ValueError(f"sizes: no extractor has {dict(sizes)}") from error
    _check_shapes(expected, state)
    for key, value in state.items():
        if not expected[key].is_floating_point():
            checks.integral(key, value)
            continue
        checks.floating(key, value)
        checks.finite(key, value)
    extractor = build(name, **sizes).to(torch.float32)
    extractor.load_state_dict(dict(state))
    return extractor


def _check_shapes(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    shapes = {key: tuple(value.shape) for key, value in expected.items()}
    got = {key: tuple(value.shape) for key, value in state.items()}
    if shapes != got:
        different = sorted(key for key in shapes.keys() | got.keys() if shapes.get(key) != got.get(key))
        described = "; ".join(f"{key}: expected {shapes.get(key)}, got {got.get(key)}" for key in different[:3])
        raise ValueError(f"{len(different)} weights do not fit: {described}")
