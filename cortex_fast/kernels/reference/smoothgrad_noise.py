"""Noisy copies of embeddings for SmoothGrad: x + sigma e, with e from the shared stream."""

import torch
from torch import Tensor

from cortex_fast.kernels.reference import philox


def standard_normals(
    item_ids: Tensor, samples: range, channels: int, grid: tuple[int, int], seed: int, antithetic: bool
) -> Tensor:
    """e float32 [B,N,d,m,m]: row = grid position, index = channel, item = item id, draw = sample.

    Antithetic samples 2j and 2j + 1 are +- draw j, and `samples` then starts with an even one.
    """
    first, stop = (samples.start // 2, (samples.stop + 1) // 2) if antithetic else (samples.start, samples.stop)
    draws = torch.arange(first, stop, device=item_ids.device)
    distinct, inverse = item_ids.unique(return_inverse=True)
    normals = philox.normal(seed, distinct, draws, grid[0] * grid[1], channels)  # [items, draws, m*m, d]
    if antithetic:
        normals = torch.stack((normals, -normals), dim=2).flatten(1, 2)[:, : len(samples)]
    return normals.transpose(2, 3).unflatten(3, grid)[inverse].contiguous()


def smoothgrad_noise(
    *,
    x: Tensor,
    sigma: Tensor,
    num_samples: int,
    seed: int,
    item_ids: Tensor,
    antithetic: bool,
    first_sample: int,
    normals: Tensor | None,
) -> Tensor:
    """x [B,d,m,m], sigma [B] -> x + sigma e [B,N,d,m,m] in x's dtype, computed in float32 or wider.

    normals [B,N,d,m,m] is e; None: e is drawn.
    """
    if normals is None:
        _, channels, height, width = x.shape
        samples = range(first_sample, first_sample + num_samples)
        normals = standard_normals(item_ids, samples, channels, (height, width), seed, antithetic)
    wide = torch.promote_types(x.dtype, torch.float32)
    scale = sigma.to(wide)[:, None, None, None, None]
    return (x.to(wide)[:, None] + scale * normals.to(wide)).to(x.dtype).contiguous()
