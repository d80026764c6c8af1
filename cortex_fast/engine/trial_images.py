"""Images to try an extractor on."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TrialImages:
    """Three batches of images of one shape, which differ in scale and content; all derive from a sample."""

    few: Tensor  # [2,d,h,w]
    more: Tensor  # [3,d,h,w]
    held_out: Tensor  # [3,d,h,w]


def trial_images(sample: Tensor) -> TrialImages:
    """Images derived from the first and last of a sample [n,d,h,w], n >= 1, and from noise of its scale."""
    generator = torch.Generator("cpu").manual_seed(0)
    first, last = sample[0], sample[-1]
    noise = torch.randn((3, *first.shape), generator=generator, dtype=torch.float64, device="cpu").to(sample)
    spread, largest = first.std(correction=0), first.abs().max()
    scale = torch.where(spread > 0, spread, torch.where(largest > 0, largest, torch.ones_like(largest)))
    noisy = first + scale * noise[0]
    small = 0.1 * last.flip(-1) + 0.1 * scale * noise[1]
    large = 8 * last.roll(1, -1) + scale * noise[2]
    return TrialImages(
        few=torch.stack((first, large)),
        more=torch.stack((noisy, large, small)),
        held_out=torch.stack((large, -small, first.flip(-2))),
    )
