"""Extractor files: the weights as they are, with the name and sizes that build the module."""

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
    """Write one safetensors file, whole or not at all, with the classes' names where the extractor has them.

    `build(name, **sizes)` must make a module of these weights.
    """
    header = {"name": name, "sizes": dict(sizes), "fingerprint": dict(fingerprint), "names": names_of(extractor)}
    save_result(path, KIND, extractor.state_dict(), header)


def load_extractor(path: Path | str) -> nn.Module:
    """The extractor, in eval mode without parameter gradients, channels last in memory.

    Raises FileNotFoundError, or ResultFileError for anything but `save_extractor`'s file, naming it.
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
    """name, sizes and fingerprint of an extractor file. Raises as `load_extractor`."""
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


def filled(name: str, sizes: Mapping[str, int], state: Mapping[str, Tensor]) -> nn.Module:
    """The extractor of this name and sizes with these weights, float32 whatever they are.

    Raises TypeError or ValueError where names, shapes, types or values do not fit, before memory is taken for sizes
    that these weights do not have.
    """
    try:
        with torch.device("meta"):
            wanted = build(name, **sizes).state_dict()
    except (OverflowError, RuntimeError) as error:  # of torch, where a size or a product of them is beyond int64
        raise ValueError(f"sizes: no extractor has {dict(sizes)}") from error
    shapes = {key: tuple(value.shape) for key, value in wanted.items()}
    got = {key: tuple(value.shape) for key, value in state.items()}
    if shapes != got:
        off = sorted(key for key in shapes.keys() | got.keys() if shapes.get(key) != got.get(key))
        described = "; ".join(f"{key}: expected {shapes.get(key)}, got {got.get(key)}" for key in off[:3])
        raise ValueError(f"{len(off)} weights do not fit: {described}")
    for key, value in state.items():
        if not wanted[key].is_floating_point():
            checks.integral(key, value)
            continue
        checks.floating(key, value)
        checks.finite(key, value)
    extractor = build(name, **sizes).to(torch.float32)
    extractor.load_state_dict(dict(state))
    return extractor
