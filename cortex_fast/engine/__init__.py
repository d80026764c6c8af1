"""How gradients of an extractor are computed."""

from cortex_fast.engine.gradients import ordinary
from cortex_fast.engine.prepared import PRECISIONS, Prepared, logits_of, module_of, prepare
from cortex_fast.engine.smoothing import MEMORY, Noise, mean_gradients

__all__ = [
    "MEMORY",
    "PRECISIONS",
    "Noise",
    "Prepared",
    "logits_of",
    "mean_gradients",
    "module_of",
    "ordinary",
    "prepare",
]
