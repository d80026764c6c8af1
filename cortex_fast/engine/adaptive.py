"""As many noisy copies as an image needs: SmoothGrad until the image's top tokens stay the same."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cortex_fast import ops
from cortex_fast.engine.parts import Parts
from cortex_fast.engine.smoothing import Noise, mean_gradients
from cortex_fast.ops.concept_counts import top_positions

ROUND = 20  # samples between two looks
SETTLED = 3  # looks in a row that found the set of top positions as it was before
MOST = 1000  # samples


def settled_gradients(
    parts: Parts, embedding: Tensor, target: Tensor, noise: Noise, *, top_n: int, reduction: str, memory: int
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """(images, their mean gradients [b,d,h,w], samples) as images settle, until all have.

    After every ROUND samples the set of each image's top_n positions by TSV is compared with the one before; an image
    is done when SETTLED comparisons in a row found no change, or after MOST samples.
    """
    active = torch.arange(len(embedding), device=embedding.device)
    mean = torch.zeros_like(embedding, dtype=torch.promote_types(embedding.dtype, torch.float32))
    top = torch.zeros(len(embedding), embedding[0, 0].numel(), dtype=torch.bool, device=embedding.device)
    same = torch.zeros_like(active)
    for done in range(0, MOST, ROUND):
        part = Noise(noise.sigma[active], noise.item_ids[active], noise.seed, noise.shared, noise.antithetic)
        samples = range(done, done + ROUND)
        pieces = mean_gradients(parts, embedding[active], target[active], part, samples, memory=memory)
        fresh = torch.cat([gradient for _, gradient in pieces]).to(mean.dtype)
        mean[active] += (fresh - mean[active]) * (ROUND / (done + ROUND))
        tsv = ops.token_saliency(mean[active][:, None], reduction=reduction)
        now = torch.zeros_like(top[active]).scatter_(1, top_positions(tsv, top_n), True)
        same[active] = torch.where((now == top[active]).all(dim=1), same[active] + 1, 0)
        top[active] = now
        finished = (same[active] >= SETTLED) | (done + ROUND >= MOST)
        if finished.any():
            yield active[finished], mean[active[finished]], done + ROUND
        active = active[~finished]
        if not len(active):
            return
