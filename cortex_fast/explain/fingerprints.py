"""What made a result, in plain values: the extractors and the versions."""

from typing import Any

import torch
from torch import nn

from cortex_fast.data import digests
from cortex_fast.engine import Prepared, module_of
from cortex_fast.version import __version__

VERSIONS = {"cortex-fast": __version__, "torch": str(torch.__version__)}


def contents(extractor: nn.Module | Prepared) -> list[Any]:
    """The names and values of its parameters and buffers, and what else it keeps."""
    state = module_of(extractor).state_dict()
    return [list(state), *state.values()]


def about_extractor(extractor: nn.Module | Prepared) -> dict[str, str]:
    """Its class, and digests of its weights and of its modules with their settings; and the dtype that it is run in."""
    module = module_of(extractor)
    if isinstance(extractor, Prepared):
        dtype: torch.dtype | None = extractor.dtype
    else:
        dtype = next((one.dtype for one in module.parameters() if one.is_floating_point()), None)
    return {
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "weights": digests.short(digests.of_parts(contents(module))),
        "modules": digests.short(digests.of_parts([module])),
        "dtype": str(dtype),
    }
