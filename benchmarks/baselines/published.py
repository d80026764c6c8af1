"""The published CORTEX code's formulas, implemented anew from their description.

Random numbers are arguments where a formula would draw them itself, so that it can be checked exactly.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn


def token_saliency(grads: Tensor) -> Tensor:
    """grads [B,N,d,m,m] -> float64 TSV [B,m,m]: signed maximum over d of the mean over N.

    Each image's gradients come one draw at a time, and are summed in float64.
    """
    maps = []
    for image in grads:
        total = torch.zeros(image.shape[1:], dtype=torch.float64, device=grads.device)
        for draw in image:
            total += draw
        maps.append((total / len(image)).amax(dim=0))
    return torch.stack(maps)


def concept_counts(tsv: Tensor, tokens: Tensor, labels: Tensor, top_n: int) -> dict[int, Counter[int]]:
    """tsv, tokens [B,m,m], labels [B] -> for each label, how often each token is at one of an image's top positions."""
    counts: dict[int, Counter[int]] = {}
    for scores, ids, label in zip(tsv.numpy(), tokens.numpy(), labels.tolist(), strict=True):
        order = np.argsort(scores.ravel())[::-1][:top_n]
        counts.setdefault(label, Counter()).update(ids.ravel()[order].tolist())
    return counts


def noisy_copies(x: Tensor, sigma: float, num_samples: int) -> Iterator[Tensor]:
    """x [B,d,m,m] -> N noisy copies of it, one at a time; the noise is drawn on the CPU, and copied to x's device."""
    for _ in range(num_samples):
        yield x + torch.randn(x.shape).to(x.device) * sigma


def draw_gradients(extractor: nn.Module, x: Tensor, target: Tensor, sigma: float) -> Tensor:
    """One of the N draws of SmoothGrad: x [B,d,m,m], target [B] -> gradients [B,d,m,m].

    One forward pass of the noisy batch, then for each image a backward pass of the batch, its graph kept and made anew.
    The published code holds those graphs until its last draw, which no machine has memory for at 25 images; here they
    go with the draw.
    """
    noisy = (x + torch.randn(x.shape).to(x.device) * sigma).requires_grad_(True)
    logits = extractor(noisy)
    gradients = []
    for image, wanted in enumerate(target.tolist()):
        (gradient,) = torch.autograd.grad(logits[image, wanted], noisy, create_graph=True)
        gradients.append(gradient[image])
    return torch.stack(gradients).detach()


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel(0, 1) noise of uniform numbers in [0, 1)."""
    return -torch.log(-torch.log(uniform + 1e-20) + 1e-20)


def select(logits: Tensor, codebook: Tensor, uniform: Tensor, tau: float) -> Tensor:
    """Logits and uniform numbers [R,K], codebook [K,d] -> E [R,d]: straight-through one-hot rows times the codebook."""
    y = torch.softmax((logits + gumbel(uniform)) / tau, dim=-1)
    y_hard = torch.zeros_like(y).scatter_(-1, y.argmax(dim=-1, keepdim=True), 1.0)
    return ((y_hard - y).detach() + y) @ codebook


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """z [R,d], codebook [K,d] -> int64 [R]: the smallest |z|^2 + |c|^2 - 2 <z, c>."""
    squared = z.pow(2).sum(dim=1, keepdim=True) + codebook.pow(2).sum(dim=1) - 2 * (z @ codebook.T)
    return squared.argmin(dim=1)
