"""min-dalle's detokenizer, the decoder half of DALL-E-mini's f16-16384 VQGAN."""

from typing import Any

from cortex_fast.data.digests import of_state
from cortex_fast.data.grids import Grid
from cortex_fast.vqgm.adapters.shared import (
    NO_PRIOR,
    codes_of,
    freeze,
    pixels_of,
    unit_range,
)
from cortex_fast.vqgm.model import Model


def min_dalle(model: Any, *, grid: Grid | None = None) -> Model:
    """A `VQGanDetokenizer` of min-dalle as a VQGM, which can decode only.

    Args:
        model: the model. It is put into eval mode, and its parameters need no gradients any more.
        grid: m or (h, w). Default None: 16.

    Returns:
        The VQGM.
    """
    freeze(model)
    return unit_range(
        Model(
            codes_of(model.embedding),
            16 if grid is None else grid,
            of_state(model.state_dict()),
            pixels=pixels_of(model),
            reasons={"latents": "min-dalle's VQGanDetokenizer has no encoder", "sampler": NO_PRIOR},
        )
    )
