"""Noisy copies of embeddings, by csrc/cuda/smoothgrad_noise.cu."""

import torch
from torch import Tensor

from cortex_fast.kernels import cuda

__all__ = ["smoothgrad_noise"]

KERNELS = {
    torch.float32: "smoothgrad_noise_float32",
    torch.bfloat16: "smoothgrad_noise_bfloat16",
    torch.float16: "smoothgrad_noise_float16",
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
    """x [B,d,m,m] -> [B,N,d,m,m] in x's dtype, contiguous; noise None: drawn, and never in memory."""
    batch, channels, *grid = x.shape
    x, sigma, item_ids = x.contiguous(), sigma.float().contiguous(), item_ids.contiguous()
    noise = None if noise is None else noise.float().contiguous()
    out = torch.empty((batch, num_samples, channels, *grid), dtype=x.dtype, device=x.device)
    cuda.call(
        KERNELS[x.dtype],
        x,
        x=x.data_ptr(),
        sigma=sigma.data_ptr(),
        noise=0 if noise is None else noise.data_ptr(),
        items=item_ids.data_ptr(),
        sizes=(batch, num_samples, channels, grid[0] * grid[1]),
        first_sample=first_sample,
        seed=seed,
        antithetic=antithetic,
        out=out.data_ptr(),
    )
    return out
