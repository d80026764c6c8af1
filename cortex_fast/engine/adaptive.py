"""SmoothGrad with as many noisy copies as an image needs: until the image's top tokens stay the same."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cortex_fast import ops
from cortex_fast.engine.smoothing import NoiseStream, mean_gradients
from cortex_fast.engine.split_model import SplitModel
from cortex_fast.ops.concept_counts import top_positions

ROUND_SAMPLES = 20  # samples between two comparisons
SETTLED_ROUNDS = 3  # comparisons in a row without a change of the top positions
MAX_SAMPLES = 1000


def settled_gradients(
    model: SplitModel,
    embedding: Tensor,
    target: Tensor,
    stream: NoiseStream,
    *,
    top_n: int,
    reduction: str,
    memory: int,
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Mean gradients of images, as soon as each image settles.

    After every ROUND_SAMPLES samples the set of each image's top_n positions by TSV is compared with the one before. An
    image settles when SETTLED_ROUNDS comparisons in a row find no change, or after MAX_SAMPLES samples.

    Args:
        model: the split extractor.
        embedding: float [B,d,h,w].
        target: int64 [B], the images' classes.
        stream: the noise.
        top_n: the number of compared positions, at most h * w.
        reduction: of the channels to a TSV, as in `ops.token_saliency`.
        memory: bytes that the activations of one pass may take.
    Returns:
        An iterator over (numbers of the images that settled, their mean gradients [b,d,h,w], samples taken).
    """
    active = torch.arange(len(embedding), device=embedding.device)
    mean = torch.zeros_like(embedding, dtype=torch.promote_types(embedding.dtype, torch.float32))
    top = torch.zeros(len(embedding), embedding[0, 0].numel(), dtype=torch.bool, device=embedding.device)
    unchanged_rounds = torch.zeros_like(active)
    for first in range(0, MAX_SAMPLES, ROUND_SAMPLES):
        taken = first + ROUND_SAMPLES
        samples, part = range(first, taken), stream.of_images(active)
        pieces = mean_gradients(model, embedding[active], target[active], part, samples, memory=memory)
        round_mean = torch.cat([gradient for _, gradient in pieces]).to(mean.dtype)
        mean[active] += (round_mean - mean[active]) * (ROUND_SAMPLES / taken)
        tsv = ops.token_saliency(mean[active][:, None], reduction=reduction)
        new_top = torch.zeros_like(top[active]).scatter_(1, top_positions(tsv, top_n), True)
        unchanged = (new_top == top[active]).all(dim=1)
        unchanged_rounds[active] = torch.where(unchanged, unchanged_rounds[active] + 1, 0)
        top[active] = new_top
        settled = (unchanged_rounds[active] >= SETTLED_ROUNDS) | (taken >= MAX_SAMPLES)
        if settled.any():
            yield active[settled], mean[active[settled]], taken
        active = active[~settled]
        if not len(active):
            return
