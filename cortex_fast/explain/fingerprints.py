"""Fingerprints of results, in plain values: the extractors, the settings and the versions."""

import dataclasses
from typing import Any

import torch
from torch import nn

from cortex_fast.data import digests
from cortex_fast.engine import Prepared, module_of
from cortex_fast.explain.problems import Problems
from cortex_fast.explain.recipes import Recipe
from cortex_fast.version import __version__

VERSIONS = {"cortex-fast": __version__, "torch": str(torch.__version__)}


def about_extractor(extractor: nn.Module | Prepared) -> dict[str, str]:
    """An extractor's class, digests of its weights and of its modules with their settings, and the dtype it runs in."""
    module = module_of(extractor)
    if isinstance(extractor, Prepared):
        dtype: torch.dtype | None = extractor.dtype
    else:
        dtype = next((tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()), None)
    return {
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "weights": digests.short(digests.of_parts(_contents(module))),
        "modules": digests.short(digests.of_parts([module])),
        "dtype": str(dtype),
    }


def about_optimisation(method: str, recipe: Recipe, problems: Problems, **settings: Any) -> dict[str, Any]:
    """The method, its settings, and digests of the extractors and the codebook.

    Where the problems have several extractors, also the index of each problem's.
    """
    contents = [value for extractor in problems.extractors for value in _contents(extractor)]
    inputs = {"extractor": digests.of_parts(contents), "codebook": digests.of_parts([problems.codebook])}
    indices = {"extractor_numbers": problems.extractor_index.tolist()} if len(problems.extractors) > 1 else {}
    values = dataclasses.asdict(recipe)
    values["stay"] = values.pop("stay_penalty")  # its name in files of earlier versions, which can be continued
    return {"method": method, **values, **inputs, **indices, **settings}


def _contents(extractor: nn.Module | Prepared) -> list[Any]:
    """The names and values of everything in the extractor's state."""
    state = module_of(extractor).state_dict()
    return [list(state), *state.values()]
