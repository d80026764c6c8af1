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
    """x [B,d,m,m] -> [B,N,d,m,m] in x's dtype, contiguous. Drawn normals are never in memory."""
    batch, channels, *grid = x.shape
    x, sigma, item_ids = x.contiguous(), sigma.float().contiguous(), item_ids.contiguous()
    normals = None if normals is None else normals.float().contiguous()
    out = torch.empty((batch, num_samples, channels, *grid), dtype=x.dtype, device=x.device)
    cuda.call(
        KERNELS[x.dtype],
        x,
        x=x.data_ptr(),
        sigma=sigma.data_ptr(),
        num_samples=num_samples,
        seed=seed,
        item_ids=item_ids.data_ptr(),
        antithetic=antithetic,
        first_sample=first_sample,
        normals=0 if normals is None else normals.data_ptr(),
        sizes=(batch, channels, grid[0] * grid[1]),
        out=out.data_ptr(),
    )
    return out
