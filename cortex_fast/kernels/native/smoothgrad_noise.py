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
    """x [B,d,m,m] -> [B,N,d,m,m] in x's dtype, contiguous. Drawn normals are never in memory as a whole."""
    batch, channels, *grid = x.shape
    x, sigma = x.contiguous(), sigma.float().contiguous()
    normals = None if normals is None else normals.float().contiguous()
    # images of one item are grouped: its normals are drawn once for all of them
    items, order = item_ids.sort(stable=True)
    group_items, counts = items.unique_consecutive(return_counts=True)
    group_starts = native.empty((len(counts) + 1,), torch.int64).zero_()
    group_starts[1:] = counts.cumsum(0)
    out = native.empty((batch, num_samples, channels, *grid), x.dtype)
    KERNELS[x.dtype](
        x=x.data_ptr(),
        sigma=sigma.data_ptr(),
        num_samples=num_samples,
        seed=seed,
        order=order.data_ptr(),
        group_starts=group_starts.data_ptr(),
        group_items=group_items.data_ptr(),
        antithetic=antithetic,
        first_sample=first_sample,
        normals=0 if normals is None else normals.data_ptr(),
        sizes=(batch, len(group_items), channels, grid[0] * grid[1]),
        out=out.data_ptr(),
        **native.run(),
    )
    return out
