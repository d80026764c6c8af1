"""token_saliency at paper scale: of 20 noisy gradients an image, and of the package's mean gradients, one an image.

`cortex_fast.token_saliency` calls the operator with at most 64 mean gradients [B,1,d,h,w], channels-last.

Floor: one read of the gradients. Those of 25 images (131 MB) exceed a last-level cache; those of 4 (21 MB) and the mean
gradients of 64 (17 MB) may stay in it and then beat the floor, which is memory's. "one read" is torch's sum of the same
gradients.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.baselines import published
from benchmarks.harness import IMPLS, SEED, Case, Sibling, compiled, max_error, reason_against
from benchmarks.machine import Floor
from cortex_fast import ops

TOLERANCE = 1e-6  # of means of 20 standard normals


@dataclass(frozen=True)
class Gradients:
    """grads [B,N,d,m,m] and, in float64, the maxima over d of their mean over N, of magnitudes and signed: [B,m,m]."""

    grads: Tensor
    absmax: Tensor
    signed: Tensor


def gradients(shape: tuple[int, ...], channels_last: bool, device: torch.device) -> Gradients:
    batch, samples, channels, height, width = shape
    generator = torch.Generator().manual_seed(SEED)
    stored = (batch, samples, height, width, channels) if channels_last else shape
    grads = torch.randn(stored, generator=generator).to(device)
    if channels_last:
        grads = grads.movedim(-1, 2)
    means = [image.double().mean(dim=0) for image in grads]
    return Gradients(
        grads, torch.stack([mean.abs().amax(dim=0) for mean in means]), torch.stack([m.amax(dim=0) for m in means])
    )


def eager(grads: Tensor) -> Tensor:
    return grads.mean(dim=1).abs().amax(dim=1)


def absmax_error(data: Gradients, result: Tensor) -> float:
    return max_error(result, data.absmax)


def siblings() -> tuple[Sibling, ...]:
    fast = compiled(eager)
    return (
        *(
            Sibling(
                impl,
                lambda data, impl=impl: ops.token_saliency(data.grads, impl=impl),
                absmax_error,
                TOLERANCE,
                unavailable=lambda data, impl=impl: reason_against(ops.token_saliency, impl, data.grads),
            )
            for impl in IMPLS
        ),
        Sibling(
            "published",
            lambda data: published.token_saliency(data.grads),
            lambda data, result: max_error(result, data.signed),
            TOLERANCE,
        ),
        Sibling("torch.compile", lambda data: fast(data.grads), absmax_error, TOLERANCE),
        Sibling(
            "one read (sum)",
            lambda data: data.grads.sum(),
            lambda data, result: abs(float(result) / float(data.grads.sum(dtype=torch.float64)) - 1),
            1e-2,  # relative, of a sum that nearly cancels
        ),
    )


def cases(quick: bool) -> list[Case]:
    grid = (16, 8, 8) if quick else (256, 16, 16)
    shapes = {"2 images": (2, 3), "2 means": (2, 1)}
    if not quick:
        shapes = {"25 images": (25, 20), "4 images": (4, 20), "64 means": (64, 1)}
    return [
        Case(
            operator="token_saliency",
            name=f"{name} {layout}",
            sizes=f"{[*shape, *grid]} float32, {layout}",
            floor=Floor(bytes=4 * torch.Size((*shape, *grid)).numel()),
            data=partial(gradients, (*shape, *grid), layout == "channels-last"),
            siblings=siblings(),
        )
        for name, shape in shapes.items()
        for layout in ("contiguous", "channels-last")
    ]


def test_token_saliency(measure):
    measure()
