"""token_saliency at paper scale: of mean gradients, as the package calls it, and of 20 noisy samples.

The engine returns the mean gradients of up to 64 images at a time, N = 1. They are channels-last where the extractor
begins with a convolution, contiguous where it does not.

Floor: one read of the gradients. The 20 samples of 25 images (131 MB) exceed a last-level cache; the means of 64 images
(17 MB) may stay in one. "one read" is torch's sum of the same gradients.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.baselines import published
from benchmarks.harness import IMPLS, SEED, Case, Sibling, compiled, max_error, reason_against
from benchmarks.machine import Floor
from cortex_fast import ops

TOLERANCE = 1e-6  # of standard normals and their means


@dataclass(frozen=True)
class Gradients:
    """grads [B,N,d,m,m] and, in float64, the maxima over d of their mean over N: [B,m,m], of magnitudes and signed."""

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
    image = (16, 8, 8) if quick else (256, 16, 16)
    sizes = ((3, 1), (2, 3)) if quick else ((64, 1), (25, 20))
    return [
        Case(
            operator="token_saliency",
            name=f"{batch} images, N {samples}, {layout}",
            sizes=f"{[batch, samples, *image]} float32, {layout}",
            floor=Floor(bytes=4 * torch.Size((batch, samples, *image)).numel()),
            data=partial(gradients, (batch, samples, *image), layout == "channels-last"),
            siblings=siblings(),
        )
        for batch, samples in sizes
        for layout in ("channels-last", "contiguous")
    ]


def test_token_saliency(measure):
    measure()
