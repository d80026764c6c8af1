"""Extractors prepared for input gradients.

`preparing` is the way in. `tracing` records a forward, `assembling` builds a graph of two recordings, and `trying`
checks it against the forward. `folding` and `splitting` reshape the graph; `verified_split` checks its parts. Where a
step fails, `unsplit` runs autograd over the module itself. `prepared` is the result; `smoothing` and `adaptive` average
its gradients over noisy copies, `regional` restricts them to a box.
"""

from cortex_fast.engine.gradients import ordinary
from cortex_fast.engine.prepared import Prepared, logits_of, module_of
from cortex_fast.engine.preparing import PRECISIONS, prepare
from cortex_fast.engine.smoothing import MEMORY, NoiseStream, mean_gradients

__all__ = [
    "MEMORY",
    "PRECISIONS",
    "NoiseStream",
    "Prepared",
    "logits_of",
    "mean_gradients",
    "module_of",
    "ordinary",
    "prepare",
]
