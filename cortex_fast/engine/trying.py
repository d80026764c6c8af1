"""An extractor's graph, checked against the extractor: for images of any scale, alone and in a batch.

The graph replays the operators that the forward dispatched, so it may differ from the forward by rounding alone: the
same bits, but for the order in which gradients add up. NaN in place of an image shows whether it affects the others.
"""

import torch
from torch import nn

from cortex_fast.engine.assembling import assembled
from cortex_fast.engine.comparing import (
    LogitGradients,
    gradients_of,
    gradients_of_logits,
    mixes,
    near_by_image,
    rounding_bound,
)
from cortex_fast.engine.errors import CachingError, UntraceableError
from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.tape import Tape
from cortex_fast.engine.tracing import recorded
from cortex_fast.engine.trial_images import TrialImages

_OTHER_LOGITS = "its forward depends on values or keeps state: the graph gives other logits"
_OTHER_GRADIENTS = "the graph gives other gradients: hooks or a backward of its own change them"
_OTHERWISE_ALONE = "one image alone is treated otherwise"
_MIXED = "the images of a batch change each other's results"
_CACHES = (
    "extractor: its first forward stores results that later ones read; call it once on your own images before you "
    "explain it"
)


def graph_of(extractor: nn.Module, images: TrialImages) -> tuple[Graph, LogitGradients]:
    """A graph that computes what the extractor computes; and the extractor's results for images.more.

    Raises UntraceableError, WritesError, CachingError, or any exception of the forward.
    """
    few, more = recorded(extractor, images.few), recorded(extractor, images.more)
    if more.reads_results_of(few):
        raise CachingError(_CACHES)
    try:
        graph = assembled(few, more)
    except UntraceableError:  # the first run may have created state that the second read
        graph = assembled(recorded(extractor, images.few), more)
    expected = _recorded_gradients(more)
    got = gradients_of(graph, images.more)
    bound = rounding_bound(got.logits.dtype)
    with torch.enable_grad():  # a forward that hangs hooks on its tensors fails without
        held_out = extractor(images.held_out.clone().requires_grad_(True).clone())
    alike = near_by_image(got.logits, expected.logits, bound)
    if not alike or not near_by_image(graph(images.held_out), held_out, bound):
        raise UntraceableError(_OTHER_LOGITS, by_value=True)
    if not near_by_image(got.gradient, expected.gradient, bound):
        raise UntraceableError(_OTHER_GRADIENTS)
    single = images.more[:1]
    for pair in zip(gradients_of(graph, single), gradients_of(extractor, single), strict=True):
        if not near_by_image(*pair, bound):
            raise UntraceableError(_OTHERWISE_ALONE, by_value=True)
    if _poison_spreads(graph, images, got):
        raise UntraceableError(_MIXED, by_value=True)
    return graph, expected


def _recorded_gradients(tape: Tape) -> LogitGradients:
    with torch.enable_grad():
        return gradients_of_logits(tape.output, tape.x)


def _poison_spreads(graph: Graph, images: TrialImages, expected: LogitGradients) -> bool:
    """Whether NaN or infinity in place of two images changes the logits of the third, as any influence would."""
    for poison in (torch.nan, torch.inf):
        poisoned = images.more.clone()
        poisoned[::2] = poison
        try:
            if not torch.equal(graph(poisoned)[1], expected.logits[1]):
                return True
        except Exception:  # an operator that accepts no such values
            return mixes(graph, images)
    return False
