"""How gradients of an extractor are computed."""

from cortex_fast.engine.gradients import frozen, ordinary, target_gradient, target_logits
from cortex_fast.engine.prepared import PRECISIONS, Prepared, prepare
from cortex_fast.engine.smoothing import MEMORY, Noise, mean_gradients

__all__ = [
    "MEMORY",
    "PRECISIONS",
    "Noise",
    "Prepared",
    "frozen",
    "mean_gradients",
    "ordinary",
    "prepare",
    "target_gradient",
    "target_logits",
]
