"""Models of other libraries as VQGMs. None of those is imported here: each adapter takes an object of its library."""

from collections.abc import Callable
from typing import Any

from cortex_fast.data.grids import Grid
from cortex_fast.vqgm.adapters.diffusers import diffusers_vqmodel
from cortex_fast.vqgm.adapters.ibq import ibq, load_ibq
from cortex_fast.vqgm.adapters.llamagen import llamagen, load_llamagen
from cortex_fast.vqgm.adapters.min_dalle import min_dalle
from cortex_fast.vqgm.adapters.shared import unit_range
from cortex_fast.vqgm.adapters.transformers import chameleon, emu3, janus
from cortex_fast.vqgm.model import Model

__all__ = [
    "adapt",
    "chameleon",
    "diffusers_vqmodel",
    "emu3",
    "ibq",
    "janus",
    "llamagen",
    "load_ibq",
    "load_llamagen",
    "min_dalle",
    "unit_range",
]

# By the class's name and a part of its module's; the first that fits.
_ADAPTERS: dict[tuple[str, str], Callable[..., Model]] = {
    ("VQModel", "diffusers"): diffusers_vqmodel,
    ("JanusVQVAE", "transformers"): janus,
    ("Emu3VQVAE", "transformers"): emu3,
    ("ChameleonVQVAE", "transformers"): chameleon,
    ("VQModel", "vq_model"): llamagen,
    ("IBQ", "ibqgan"): ibq,
    ("VQGanDetokenizer", "vqgan_detokenizer"): min_dalle,
}


def adapt(model: Any, *, grid: Grid | None = None) -> Model:
    """A model object of another library as a VQGM, recognised by its class; see that library's adapter.

    grid: m or (h, w), where the model's configuration does not say it; then only images of that size are encoded, by
    default those of any size that the model's cells fill.
    Raises TypeError, naming what is known, for an object of another class.
    """
    kinds = type(model).__mro__
    for kind in kinds:
        for (name, place), adapter in _ADAPTERS.items():
            if kind.__name__ == name and place in kind.__module__.split("."):
                return adapter(model, grid=grid)
    known = ", ".join(f"{name} ({place})" for name, place in _ADAPTERS)
    raise TypeError(f"model: expected one of {known}, got {kinds[0].__module__}.{kinds[0].__qualname__}")
