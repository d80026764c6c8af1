"""Extractor files: the weights as they are, with the name and sizes that build the module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cortex_fast.data.classes import name_classes, names_of
from cortex_fast.data.results import ResultFileError, load_result, read_header, save_result
from cortex_fast.extractors.build import build

KIND = "Extractor"


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
    try:
        extractor = build(header["name"], **header["sizes"])
        own = next((value.dtype for value in state.values() if value.is_floating_point()), torch.float32)
        fill(extractor.to(own), state)
        name_classes(extractor, header.get("names", ()))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ResultFileError(f"{path}: not an extractor of this version ({error})") from error
    extractor.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return extractor.eval().requires_grad_(False)


def extractor_header(path: Path | str) -> dict[str, Any]:
    """name, sizes and fingerprint of an extractor file. Raises as `load_extractor`."""
    header = read_header(Path(path), KIND)
    sizes = header.get("sizes")
    if isinstance(sizes, dict) and isinstance(sizes.get("grid"), list):  # JSON has no tuples
        sizes["grid"] = tuple(sizes["grid"])
    return header


def fill(extractor: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights into a module of the same dtype. Raises ValueError where names, shapes or values do not fit."""
    wanted = {name: tuple(value.shape) for name, value in extractor.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in state.items()}
    if wanted != got:
        off = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
        described = "; ".join(f"{name}: expected {wanted.get(name)}, got {got.get(name)}" for name in off[:3])
        raise ValueError(f"{len(off)} weights do not fit: {described}")
    broken = next((name for name, value in state.items() if not bool(torch.isfinite(value).all())), None)
    if broken is not None:
        raise ValueError(f"{broken}: expected finite values, got NaN or infinity")
    extractor.load_state_dict(dict(state))
