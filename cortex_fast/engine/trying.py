"""An extractor tried out: whether a graph of it is the extractor, for images of any scale and in any company.

The graph replays the operators that the forward dispatched, so it is held to the forward by its own rounding: the same
bits, but for the order in which gradients add up. NaN in an image's place tells whether it reaches others. What is made
of the graph then is held to it in float64, where no ReLU is near enough to its kink to turn over: an image in company
against itself alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from cortex_fast.engine.assembling import assembled
from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.lifting import lift_norms
from cortex_fast.engine.outputs import NoLogitsError
from cortex_fast.engine.tracing import Tape, UntraceableError, recorded

_ROUNDINGS = 4  # times the dtype's own: how far the graph may be from the forward
_WIDER = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}
ALIKE = 1e-7  # in float64, of the norm: how far what is made of the graph may be from it
_OTHER_LOGITS = "its forward depends on values or keeps state: the graph gives other logits"
_COMPANY = "the images of a batch change each other's results"
_KEEPS = (
    "extractor: it keeps what it makes of the first images that it sees; call it once on images of yours before it is "
    "explained"
)
_OTHER_GRADIENTS = "the graph gives other gradients: hooks or a backward of its own change them"
_NO_GRADIENT = (
    "extractor: expected logits that are differentiable in the embedding, got none: its forward runs under "
    "torch.no_grad(), detaches, rounds or quantises again"
)


class KeepsError(ValueError):
    """The extractor's first forward decides what later ones do."""


Gradients = tuple[Tensor, Tensor]  # logits [B,classes], and each target's gradient [B,d,h,w]


@dataclass(frozen=True, eq=False)
class Images:
    """Three batches of the same shape of image, which differ in scale and content; all begin from the sample's."""

    few: Tensor
    more: Tensor
    other: Tensor


def images_of(sample: Tensor) -> Images:
    """What to try an extractor on: sample [n,d,h,w], n >= 1, and what can be made of it."""
    generator = torch.Generator("cpu").manual_seed(0)
    first, last = sample[0], sample[-1]
    noise = torch.randn((3, *first.shape), generator=generator, dtype=torch.float64, device="cpu").to(sample)
    spread, largest = first.std(correction=0), first.abs().max()
    scale = torch.where(spread > 0, spread, torch.where(largest > 0, largest, torch.ones_like(largest)))
    noisy = first + scale * noise[0]
    small = 0.1 * last.flip(-1) + 0.1 * scale * noise[1]
    large = 8 * last.roll(1, -1) + scale * noise[2]
    return Images(
        few=torch.stack((first, large)),
        more=torch.stack((noisy, large, small)),
        other=torch.stack((large, -small, first.flip(-2))),
    )


def targets_of(count: int, classes: int, device: torch.device) -> Tensor:
    """A class for each image, from the first to the last."""
    return torch.arange(count, device=device) * (classes - 1) // max(1, count - 1)


def gradients_of(function: Callable[[Tensor], Tensor], x: Tensor, target: Tensor | None = None) -> Gradients:
    """Logits of x [B,d,h,w] and the gradients of its targets' [B], by autograd in one pass; target: `targets_of` x."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(True)
        return _gradients(function(leaf.clone()), leaf, target)


def _gradients(logits: Tensor, leaf: Tensor, target: Tensor | None = None) -> Gradients:
    if not logits.requires_grad:
        raise NoLogitsError(_NO_GRADIENT)
    target = targets_of(len(logits), logits.shape[1], logits.device) if target is None else target
    (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), leaf, allow_unused=True)
    if gradient is None:
        raise NoLogitsError(_NO_GRADIENT)
    return logits.detach(), gradient


def graph_of(extractor: nn.Module, images: Images) -> tuple[Graph, Gradients]:
    """The extractor's graph, which does what the extractor does; and what that gave for images.more.

    Raises UntraceableError, WritesError, or whatever the forward raises.
    """
    few, more = recorded(extractor, images.few), recorded(extractor, images.more)
    if more.found(few):
        raise KeepsError(_KEEPS)
    try:
        graph = assembled(few, more)
    except UntraceableError:  # the first run may have made what the second found
        graph = assembled(recorded(extractor, images.few), more)
    expected = _of(more)
    got = gradients_of(graph, images.more)
    bound = _ROUNDINGS * torch.finfo(got[0].dtype).eps
    with torch.enable_grad():  # as everywhere: what hangs hooks on its tensors fails without
        other = extractor(images.other.clone().requires_grad_(True).clone())
    if not near_each(got[0], expected[0], bound) or not near_each(graph(images.other), other, bound):
        raise UntraceableError(_OTHER_LOGITS, by_value=True)
    if not near_each(got[1], expected[1], bound):
        raise UntraceableError(_OTHER_GRADIENTS)
    single = images.more[:1]
    for one, other in zip(gradients_of(graph, single), gradients_of(extractor, single), strict=True):
        if not near_each(one, other, bound):
            raise UntraceableError("one image alone is treated otherwise", by_value=True)
    if _reaches(graph, images, got[0]):
        raise UntraceableError(_COMPANY, by_value=True)
    return graph, expected


def _reaches(graph: Graph, images: Images, logits: Tensor) -> bool:
    """Whether an image changes another's logits: NaN and infinity in its place would, at whatever scale it does."""
    for poison in (torch.nan, torch.inf):
        poisoned = images.more.clone()
        poisoned[::2] = poison
        try:
            if not torch.equal(graph(poisoned)[1], logits[1]):
                return True
        except Exception:  # an operator that takes no such values
            return mixes(graph, images)
    return False


def _of(tape: Tape) -> Gradients:
    with torch.enable_grad():
        return _gradients(tape.output, tape.x)


def mixes(extractor: Callable[[Tensor], Tensor], images: Images) -> bool:
    """Whether an image's logits or gradient depend on its company."""
    together = gradients_of(extractor, images.more)
    target = targets_of(3, together[0].shape[1], images.more.device)
    company = gradients_of(extractor, torch.cat((images.other[:1], images.more[1:2], images.other[2:])), target)
    alone = gradients_of(extractor, images.more[1:2], target[1:2])
    bound = _ROUNDINGS * torch.finfo(together[0].dtype).eps
    if not all(near(one[1:2], other[1:2], bound) for one, other in zip(together, company, strict=True)):
        return True
    # rounding differs with the number of images, and may turn a ReLU over
    return not near(together[0][1:2], alone[0], max(1e-3, bound)) or not near(together[1][1:2], alone[1], 0.05)


def alone_in_float64(graph: Graph, x: Tensor, target: Tensor) -> tuple[Graph, Gradients] | None:
    """The graph in float64, and what it gives for the first image of x alone; None where an operator has no float64."""
    wide = lift_norms(widened(graph))
    try:
        return wide, gradients_of(wide, x[:1].double(), target[:1])
    except (RuntimeError, NotImplementedError):
        return None


def copied(graph: Graph) -> Graph:
    """The same graph once more, sharing its constants: to be changed."""
    nodes = fx.Graph()
    nodes.output(nodes.graph_copy(graph.graph, {}))
    return Graph(nodes, graph)


def widened(graph: Graph) -> Graph:
    """A graph without modules in float64."""
    wide = copied(graph)
    for node in wide.graph.nodes:
        node.args, node.kwargs = _wider(node.args), _wider(node.kwargs)
    for name, tensor in list(wide.named_buffers()):
        wide.register_buffer(name, tensor.to(_WIDER.get(tensor.dtype, tensor.dtype)))
    wide.compile_steps()
    return wide


def _wider(arguments: Any) -> Any:
    """Arguments of a node with float64 for every narrower dtype."""
    if isinstance(arguments, dict):
        return {key: _wider(value) for key, value in arguments.items()}
    if isinstance(arguments, tuple | list):
        return tuple(_wider(value) for value in arguments)
    return _WIDER.get(arguments, arguments) if isinstance(arguments, torch.dtype) else arguments


def near(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Within a share of the norm; infinities, as of masked classes, and NaN are to be the same."""
    return got.shape == expected.shape and _close(got[None], expected[None], tolerance)


def near_each(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Within a share of the norm of each image's: an image of large values does not hide the others."""
    return got.shape == expected.shape and _close(got, expected, tolerance)


def _close(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    got, expected = got.detach().double().flatten(1), expected.detach().double().flatten(1)
    alike = (got == expected) | (got.isnan() & expected.isnan())
    difference = got.masked_fill(alike, 0) - expected.masked_fill(alike, 0)
    size = expected.nan_to_num(posinf=0, neginf=0).norm(dim=1)
    return bool((difference.norm(dim=1) <= tolerance * size).all())
