"""Noisy copies of embeddings, by csrc/cpu/smoothgrad_noise.cpp."""

import torch
from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import native

KERNELS = {
    torch.float32: _native.smoothgrad_noise_float32,
    torch.bfloat16: _native.smoothgrad_noise_bfloat16,
    torch.float16: _native.smoothgrad_noise_float16,
}


def smoothgrad_noise(
    x: Tensor,
    sigma: Tensor,
    item_ids: Tensor,
    noise: Tensor | None,
    num_samples: int,
    first_sample: int,
    seed: int,
    antithetic: bool,
) -> Tensor:
    """x [B,d,m,m] -> [B,N,d,m,m] in x's dtype, contiguous; noise None: drawn, and never in memory as a whole."""
    batch, channels, *grid = x.shape
    x, sigma = x.contiguous(), sigma.float().contiguous()
    noise = None if noise is None else noise.float().contiguous()
    # images of one item stand together: its noise is drawn once for all of them
    items, order = item_ids.sort(stable=True)
    group_items, counts = items.unique_consecutive(return_counts=True)
    starts = native.empty((len(counts) + 1,), torch.int64).zero_()
    starts[1:] = counts.cumsum(0)
    out = native.empty((batch, num_samples, channels, *grid), x.dtype)
    KERNELS[x.dtype](
        x=x.data_ptr(),
        sigma=sigma.data_ptr(),
        noise=0 if noise is None else noise.data_ptr(),
        order=order.data_ptr(),
        group_starts=starts.data_ptr(),
        group_items=group_items.data_ptr(),
        sizes=(batch, len(group_items), num_samples, channels, grid[0] * grid[1]),
        first_sample=first_sample,
        seed=seed,
        antithetic=antithetic,
        out=out.data_ptr(),
        **native.run(),
    )
    return out
