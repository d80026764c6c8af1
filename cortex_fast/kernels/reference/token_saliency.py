"""TSV from noisy gradients: mean over samples, then a reduction over channels."""

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


_REDUCED = {
    "absmax": lambda mean: mean.abs().amax(dim=1),
    "max": lambda mean: mean.amax(dim=1),
    "mean": lambda mean: mean.mean(dim=1),
}


def token_saliency(*, grads: Tensor, reduction: str) -> Tensor:
    """grads [B,N,d,m,m] -> TSV [B,m,m]. "absmax": max over d of |mean over N|; "max": signed; "mean": mean over d."""
    return _REDUCED[reduction](grads.to(accumulation_dtype(grads.dtype)).mean(dim=1))
