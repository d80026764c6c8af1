"""Prepared extractors checked against expected logits and gradients."""

import torch
from torch import Tensor

from cortex_fast.engine.comparing import LogitGradients, near, targets_of
from cortex_fast.engine.errors import UntraceableError
from cortex_fast.engine.prepared import Prepared
from cortex_fast.engine.smoothing import MEMORY, NoiseStream

OTHER_LOGITS = "its parts give other logits than the whole"
_OTHER_GRADIENTS = "its parts give other gradients than the whole"
_FLOAT64_TOLERANCE = 1e-7  # of the norm
# of the norms of logits and of gradients: a ReLU that rounding switches changes a gradient by its whole share
_TOLERANCES, _HALF_TOLERANCES = (1e-3, 0.05), (0.1, 0.5)


def verify_in_float64(prepared: Prepared, x: Tensor, target: Tensor, alone: LogitGradients) -> None:
    """Raise UntraceableError where an extractor in float64 gives the first image another logit or gradient than
    `alone`."""
    value, gradient = prepared.value_and_grad(x.double(), target)
    if not near(value[:1], alone.logits.gather(1, target[:1, None])[:, 0], _FLOAT64_TOLERANCE):
        raise UntraceableError(OTHER_LOGITS)
    if not near(gradient[:1], alone.gradient, _FLOAT64_TOLERANCE):
        raise UntraceableError(_OTHER_GRADIENTS)


def verify(prepared: Prepared, x: Tensor, expected: LogitGradients, *, half: bool) -> None:
    """Raise UntraceableError where an extractor gives others than the expected logits and gradients of `targets_of` x.

    half: whether half precision's tolerances apply.
    """
    of_logits, of_gradients = _HALF_TOLERANCES if half else _TOLERANCES
    with torch.enable_grad():  # a forward that hangs hooks on its tensors fails without
        h = prepared.body(*prepared.body_inputs(x.clone().requires_grad_(True)))
    logits = h if prepared.head is None else prepared.head(h)
    if not near(logits, expected.logits, of_logits):
        raise UntraceableError(OTHER_LOGITS)
    target = targets_of(len(x), logits.shape[1], x.device)
    silent = NoiseStream(
        sigma=torch.zeros(len(x), dtype=torch.float32, device=x.device),
        item_ids=torch.arange(len(x), device=x.device),
        seed=0,
        shared=True,
        antithetic=False,
    )
    wide = x.to(torch.promote_types(x.dtype, prepared.dtype))
    gradient = prepared.smoothgrad(wide, target, silent, num_samples=1, memory=MEMORY)
    if not near(gradient, expected.gradient, of_gradients):
        raise UntraceableError(_OTHER_GRADIENTS)
