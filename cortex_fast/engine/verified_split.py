"""An extractor split by its graph, and checked against the graph.

In float64, where no ReLU is near enough to its kink to switch, an image in a batch is checked against the image alone.
"""

from dataclasses import replace

import torch
from torch import nn

from cortex_fast.engine.borrowing import in_dtype
from cortex_fast.engine.comparing import LogitGradients, mixes, targets_of
from cortex_fast.engine.errors import UntraceableError
from cortex_fast.engine.folding import fold
from cortex_fast.engine.fusing import FilterCache, fuse
from cortex_fast.engine.gating import take_gates
from cortex_fast.engine.gradients import float16_scale
from cortex_fast.engine.graphs import Graph, discard, layers
from cortex_fast.engine.prepared import Prepared
from cortex_fast.engine.splitting import split
from cortex_fast.engine.trial_images import TrialImages
from cortex_fast.engine.verifying import OTHER_LOGITS, verify, verify_in_float64
from cortex_fast.engine.widening import alone_in_float64, copied
from cortex_fast.ops.backends import REASONS, verdicts

_COPIES_WORTH_FUSING = 64  # with fewer the filters' transform costs more than it saves


def verified_split(
    extractor: nn.Module,
    stand_in: nn.Module,
    graph: Graph,
    expected: LogitGradients,
    images: TrialImages,
    *,
    dtype: torch.dtype,
    copies: int | None,
) -> Prepared:
    """The extractor split by its graph, which is taken apart; expected: its results for images.more.

    Raises UntraceableError where the parts give other logits or gradients than the whole.
    """
    classes = expected.logits.shape[1]
    exact = _verified_in_float64(extractor, stand_in, graph, images, classes)
    gradient = (expected if exact is None else exact).gradient
    prepared = _split(extractor, stand_in, graph, images.more.dtype)
    discard(graph)
    prepared = _converted(prepared, dtype)
    fusing_note = _fuse(prepared, images.more.device, copies)
    prepared = replace(
        prepared,
        notes=(*prepared.notes, fusing_note),
        classes=classes,
        shape=images.more.shape[1:],
        scale=float16_scale(gradient, dtype),
    )
    verify(prepared, images.more, expected, half=dtype in (torch.float16, torch.bfloat16))
    return prepared


def _verified_in_float64(
    extractor: nn.Module, stand_in: nn.Module, graph: Graph, images: TrialImages, classes: int
) -> LogitGradients | None:
    """Check the parts against the graph in float64; returns the graph's results for the first image, or None where an
    operator has no float64."""
    pair = images.more[:2]
    target = targets_of(2, classes, pair.device)
    wide = alone_in_float64(graph, pair, target)
    if wide is None:
        if mixes(graph, images):
            raise UntraceableError(OTHER_LOGITS)
        return None
    wide_graph, alone = wide
    prepared = _split(extractor, stand_in, wide_graph, torch.float64)
    verify_in_float64(prepared, pair, target, alone)
    parts = (prepared.prefix, prepared.linear_prefix, prepared.body)
    discard(wide_graph, *(part for part in parts if isinstance(part, Graph)))
    return alone


def _split(extractor: nn.Module, stand_in: nn.Module, graph: Graph, dtype: torch.dtype) -> Prepared:
    """A copy of the graph, folded and split."""
    folded = fold(copied(graph))
    parts = split(folded)
    discard(folded)
    notes = ["BatchNorm folded, dropout gone, gradients of the input only"]
    hoisted = len(list(layers(parts.prefix)))
    if hoisted:
        notes.append(f"{hoisted} affine layers at the beginning hoisted")
    if parts.head is not None:
        notes.append("of the last linear layer only the targets' rows")
    return Prepared(
        extractor=extractor,
        stand_in=stand_in,
        prefix=parts.prefix,
        linear_prefix=parts.linear_prefix,
        body=parts.body,
        head=parts.head,
        dtype=dtype,
        notes=tuple(notes),
        gates=take_gates(parts.body),
    )


def _converted(prepared: Prepared, dtype: torch.dtype) -> Prepared:
    """The extractor with its parts in a dtype."""
    if dtype == prepared.dtype:
        return prepared
    return replace(
        prepared,
        prefix=in_dtype(prepared.prefix, dtype),
        linear_prefix=in_dtype(prepared.linear_prefix, dtype),
        body=in_dtype(prepared.body, dtype),
        head=None if prepared.head is None else in_dtype(prepared.head, dtype),
        dtype=dtype,
        notes=(*prepared.notes, f"in {dtype}"),
    )


def _fuse(prepared: Prepared, device: torch.device, copies: int | None) -> str:
    """Replace convolutions by ops.conv3x3, in place, where that is faster; returns a note."""
    sample = torch.empty(0, dtype=prepared.dtype, device=device)
    answers = {answer.backend: answer for answer in verdicts(REASONS["conv3x3"], sample)}
    if not answers["native"].usable:
        return f"convolutions by torch: {answers['native'].reason}"
    if copies is not None and copies < _COPIES_WORTH_FUSING:
        return f"convolutions by torch: {copies} copies are fewer than transforming the filters is worth"
    cache: FilterCache = {}  # the prefix and its linear part have the same filters
    parts = (prepared.prefix, prepared.linear_prefix, prepared.body)
    replaced = sum(fuse(part, cache) for part in parts if isinstance(part, Graph))
    return f"{replaced} convolutions with their ReLU and pooling by ops.conv3x3 (Winograd)"
