"""Logits and gradients of extractors, computed by autograd and compared."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cortex_fast.engine.errors import NoLogitsError
from cortex_fast.engine.trial_images import TrialImages

_ROUNDINGS = 4  # of the dtype: the largest distance between the graph and the forward
_NO_GRADIENT = (
    "extractor: expected logits that are differentiable in the embedding, got none: its forward runs under "
    "torch.no_grad(), detaches, rounds or quantises again"
)


class LogitGradients(NamedTuple):
    """logits [B,classes], and the gradient [B,d,h,w] of each image's target logit."""

    logits: Tensor
    gradient: Tensor


def targets_of(images: int, classes: int, device: torch.device) -> Tensor:
    """A class for each image, int64 [images], from the first class to the last."""
    return torch.arange(images, device=device) * (classes - 1) // max(1, images - 1)


def gradients_of(function: Callable[[Tensor], Tensor], x: Tensor, target: Tensor | None = None) -> LogitGradients:
    """Logits of x [B,d,h,w] and their gradients, by autograd in one pass; target int64 [B], default `targets_of` x."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(True)
        return gradients_of_logits(function(leaf.clone()), leaf, target)


def gradients_of_logits(logits: Tensor, leaf: Tensor, target: Tensor | None = None) -> LogitGradients:
    """The gradients of logits that autograd has recorded, in their leaf."""
    if not logits.requires_grad:
        raise NoLogitsError(_NO_GRADIENT)
    target = targets_of(len(logits), logits.shape[1], logits.device) if target is None else target
    (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), leaf, allow_unused=True)
    if gradient is None:
        raise NoLogitsError(_NO_GRADIENT)
    return LogitGradients(logits.detach(), gradient)


def mixes(extractor: Callable[[Tensor], Tensor], images: TrialImages) -> bool:
    """Whether an image's logits or gradient depend on the other images of its batch."""
    together = gradients_of(extractor, images.more)
    target = targets_of(3, together.logits.shape[1], images.more.device)
    among_others = torch.cat((images.held_out[:1], images.more[1:2], images.held_out[2:]))
    company = gradients_of(extractor, among_others, target)
    alone = gradients_of(extractor, images.more[1:2], target[1:2])
    bound = rounding_bound(together.logits.dtype)
    if not all(near(*pair, bound) for pair in zip(_second(together), _second(company), strict=True)):
        return True
    logits, gradient = _second(together)
    # rounding differs with the number of images, and may switch a ReLU
    return not near(logits, alone.logits, max(1e-3, bound)) or not near(gradient, alone.gradient, 0.05)


def _second(gradients: LogitGradients) -> LogitGradients:
    """The second image's."""
    return LogitGradients(gradients.logits[1:2], gradients.gradient[1:2])


def rounding_bound(dtype: torch.dtype) -> float:
    """The relative distance that the order of additions may cause."""
    return _ROUNDINGS * torch.finfo(dtype).eps


def near(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether the difference is within a share of the norm; infinities, as of masked classes, and NaN must agree."""
    return got.shape == expected.shape and _near_by_row(got[None], expected[None], tolerance)


def near_by_image(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    """`near` for each image alone: an image of large values does not hide the others."""
    return got.shape == expected.shape and _near_by_row(got, expected, tolerance)


def _near_by_row(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    got, expected = got.detach().double().flatten(1), expected.detach().double().flatten(1)
    equal = (got == expected) | (got.isnan() & expected.isnan())
    difference = got.masked_fill(equal, 0) - expected.masked_fill(equal, 0)
    size = expected.nan_to_num(posinf=0, neginf=0).norm(dim=1)
    return bool((difference.norm(dim=1) <= tolerance * size).all())
