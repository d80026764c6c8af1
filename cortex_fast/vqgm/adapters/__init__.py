"""Models of other libraries as VQGMs. None of the libraries is imported: an adapter takes an object of its library."""

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

# By the class's name and one component of its module's path; the first match counts.
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
    """A model of another library as a VQGM; its class selects the adapter.

    The model is put into eval mode, and its parameters need no gradients any more.

    Args:
        model: the model object.
        grid: m or (h, w), the only grid whose images are encoded. Default None: the configuration's grid, and images
            whose height and width are multiples of a token's.

    Returns:
        The VQGM.

    Raises:
        TypeError: a class without an adapter; the message lists those with one.
        ValueError: the adapter needs `grid`, or does not support the model.
    """
    kinds = type(model).__mro__
    for kind in kinds:
        for (name, component), adapter in _ADAPTERS.items():
            if kind.__name__ == name and component in kind.__module__.split("."):
                return adapter(model, grid=grid)
    names = ", ".join(f"{name} ({component})" for name, component in _ADAPTERS)
    raise TypeError(f"model: expected one of {names}, got {kinds[0].__module__}.{kinds[0].__qualname__}")
