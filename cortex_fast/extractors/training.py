"""Training an extractor on token grids: the paper's recipe."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cortex_fast import checks
from cortex_fast.data.token_store import gather


@dataclass(frozen=True)
class Recipe:
    """Adam with weight decay, a step schedule and cross-entropy (the paper's section on training f_Y)."""

    epochs: int
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 1e-4
    step_epochs: int = 10
    gamma: float = 0.1


def train_extractor(
    extractor: nn.Module,
    codebook: Tensor,
    tokens: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    seed: int = 0,
    after_epoch: Callable[[int, float], object] = lambda epoch, loss: None,
) -> None:
    """Train in place on E gathered from `codebook` [K,d] at `tokens` int [n,m,m] with `labels` int [n].

    `after_epoch` gets the epoch's number and mean loss. The extractor is left in eval mode.
    """
    checks.rank("tokens", tokens, "[n, m, m]")
    checks.integral("tokens", tokens)
    checks.integral("labels", labels)
    checks.in_range("tokens", tokens, codebook.shape[0])
    if len(tokens) < 2:
        raise ValueError(f"tokens: expected at least two images, got {len(tokens)}")
    codebook, device = codebook.detach(), codebook.device
    checks.same_shape("labels", labels, "tokens' first dimension", tokens.shape[:1])
    optimizer = torch.optim.Adam(extractor.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, recipe.step_epochs, recipe.gamma)
    order = torch.Generator().manual_seed(seed)
    for epoch in range(recipe.epochs):
        extractor.train()
        total = 0.0
        batches = torch.randperm(len(tokens), generator=order).split(recipe.batch_size)
        for rows in batches:
            if len(rows) < 2:  # BatchNorm has no statistics of one image
                continue
            embedding = gather(tokens[rows].to(device), codebook)
            if codebook.shape[1] % 8:  # torch 2.13 on CPUs: a strided 1 x 1 convolution's weight gradient is wrong
                embedding = embedding.contiguous()  # in channels-last memory with such channel counts
            loss = F.cross_entropy(extractor(embedding), labels[rows].to(device, torch.int64))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        schedule.step()
        after_epoch(epoch, total / len(tokens))
    extractor.eval()


@torch.no_grad()
def accuracy(
    extractor: nn.Module, codebook: Tensor, tokens: Tensor, labels: Tensor, *, top: tuple[int, ...] = (1,)
) -> dict[int, float]:
    """Top-k accuracy in [0,1] for each k in `top`, on token grids int [n,m,m] with labels int [n]."""
    hits = dict.fromkeys(top, 0)
    for part, truth in zip(tokens.split(256), labels.split(256), strict=True):
        logits = extractor(gather(part.to(codebook.device), codebook)).cpu()
        order = logits.argsort(dim=1, descending=True)
        for k in top:
            hits[k] += int((order[:, :k] == truth.cpu()[:, None]).any(dim=1).sum())
    return {k: count / max(1, len(tokens)) for k, count in hits.items()}
