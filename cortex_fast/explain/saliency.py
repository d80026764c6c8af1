"""The sample-level explanation: SmoothGrad, TSV and an image's top tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cortex_fast import checks, ops
from cortex_fast.engine import target_gradient
from cortex_fast.explain.arguments import check_classes, check_embedding, check_extractor, target_vector
from cortex_fast.ops.concept_counts import top_positions
from cortex_fast.ops.token_saliency import REDUCTIONS

SIGMA_RANGES = ("sample", "batch")
NOISES = ("shared", "independent")
_CHUNK = 128  # noisy embeddings of one pass: enough to fill two cores, 0.5 GB of activations at paper scale


def smoothgrad(
    extractor: nn.Module,
    embedding: Tensor,
    target: int | Tensor,
    *,
    num_samples: int = 20,
    alpha: float = 0.2,
    sigma_range: str = "sample",
    noise: str = "shared",
    seed: int = 0,
    item_ids: Tensor | None = None,
    antithetic: bool = False,
    chunk: int = _CHUNK,
    tick: Callable[[int], object] = lambda images: None,
) -> Tensor:
    """Mean over N noisy copies of the gradient of the target's logit with respect to E (eq. 5): [B,d,m,m].

    extractor: eval-mode module, E [B,d,m,m] -> logits [B,classes]. target: a class, or int [B].
    Noise is N(0, sigma^2) with sigma = alpha (max E - min E), of each image ("sample", the paper) or of the whole batch
    ("batch", the published code). noise: "shared" gives all images the same N draws, "independent" each its own, by
    `item_ids` int [B] (default 0, 1, 2, ...). chunk: the most noisy embeddings of one pass; it bounds the memory of the
    activations (the N copies of one image are always made).
    antithetic: draws come in pairs of opposite sign. tick is called with the number of images done.
    Raises TypeError or ValueError naming the argument: wrong shapes or dtypes, non-finite E, a target outside the
    classes.
    """
    checks.rank("embedding", embedding, "[B, d, m, m]")
    gradients = torch.empty_like(embedding, dtype=torch.promote_types(embedding.dtype, torch.float32))
    settings = _Settings(num_samples, alpha, sigma_range, noise, seed, item_ids, antithetic, chunk)
    for rows, part in _noisy_gradients(extractor, embedding, target, settings):
        gradients[rows] = part.to(gradients.dtype).mean(dim=1)
        tick(rows.stop - rows.start)
    return gradients


def token_saliency(
    extractor: nn.Module,
    embedding: Tensor,
    target: int | Tensor,
    *,
    reduction: str = "absmax",
    num_samples: int = 20,
    alpha: float = 0.2,
    sigma_range: str = "sample",
    noise: str = "shared",
    seed: int = 0,
    item_ids: Tensor | None = None,
    antithetic: bool = False,
    chunk: int = _CHUNK,
    tick: Callable[[int], object] = lambda images: None,
) -> Tensor:
    """TSV [B,m,m]: the channel maximum of |smoothgrad(...)| (eq. 5); the other arguments are `smoothgrad`'s.

    reduction: "absmax" (the paper), "max" or "mean" (the published code's signed maximum and mean).
    """
    checks.one_of("reduction", reduction, REDUCTIONS)
    checks.rank("embedding", embedding, "[B, d, m, m]")
    batch, _, *grid = embedding.shape
    tsv = torch.empty(
        (batch, *grid), dtype=torch.promote_types(embedding.dtype, torch.float32), device=embedding.device
    )
    settings = _Settings(num_samples, alpha, sigma_range, noise, seed, item_ids, antithetic, chunk)
    for rows, part in _noisy_gradients(extractor, embedding, target, settings):
        tsv[rows] = ops.token_saliency(part, reduction=reduction)
        tick(rows.stop - rows.start)
    return tsv


@dataclass(frozen=True)
class _Settings:
    num_samples: int
    alpha: float
    sigma_range: str
    noise: str
    seed: int
    item_ids: Tensor | None
    antithetic: bool
    chunk: int


def _noisy_gradients(
    extractor: nn.Module, embedding: Tensor, target: int | Tensor, settings: _Settings
) -> Iterator[tuple[slice, Tensor]]:
    """Check the arguments, then yield (slice of images, gradients [b,N,d,m,m]) over all images."""
    check_embedding(embedding)
    check_extractor(extractor, embedding=embedding)
    samples, chunk = settings.num_samples, settings.chunk
    checks.whole("num_samples", samples, 1)
    checks.non_negative("alpha", settings.alpha)
    checks.one_of("sigma_range", settings.sigma_range, SIGMA_RANGES)
    checks.one_of("noise", settings.noise, NOISES)
    checks.whole("chunk", chunk, 1)
    checks.seed(settings.seed)
    batch = embedding.shape[0]
    targets = target_vector(target, batch, embedding.device)
    items = torch.arange(batch, device=embedding.device) if settings.item_ids is None else settings.item_ids
    checks.integral("item_ids", items)
    checks.same_shape("item_ids", items, "embedding's batch", embedding.shape[:1])
    if batch == 0:
        return
    check_classes(extractor, embedding[:1], targets)
    if settings.noise == "shared":
        items = torch.zeros_like(items)
    sigma = _sigma(embedding, settings.alpha, settings.sigma_range)
    images = max(1, chunk // samples)
    for start in range(0, batch, images):
        rows = slice(start, min(start + images, batch))
        noisy = ops.smoothgrad_noise(
            embedding[rows],
            sigma[rows],
            samples,
            seed=settings.seed,
            item_ids=items[rows],
            antithetic=settings.antithetic,
        )
        flat, repeated = noisy.flatten(0, 1), targets[rows].repeat_interleave(samples)
        parts = [
            target_gradient(extractor, x, t) for x, t in zip(flat.split(chunk), repeated.split(chunk), strict=True)
        ]
        yield rows, torch.cat(parts).view(noisy.shape)


def _sigma(embedding: Tensor, alpha: float, sigma_range: str) -> Tensor:
    """sigma [B] = alpha (max - min), of each image or of the batch."""
    wide = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    flat = wide.flatten(1) if sigma_range == "sample" else wide.reshape(1, -1)
    low, high = flat.aminmax(dim=1)
    return (alpha * (high - low)).expand(embedding.shape[0])


def top_tokens(tsv: Tensor, tokens: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """T*_image (eq. 6): the n positions of largest TSV, largest first: token ids int64 [B,n], flat positions int64
    [B,n].

    tsv [B,m,m] floating; tokens int [B,m,m]. Position y * m + x; ties go to the lower position.
    Raises TypeError or ValueError for wrong dtypes, shapes that differ, n outside [1, m * m], or a NaN.
    """
    checks.rank("tsv", tsv, "[B, m, m]")
    checks.floating("tsv", tsv)
    checks.integral("tokens", tokens)
    checks.same_shape("tokens", tokens, "tsv", tsv.shape)
    checks.same_device(tsv=tsv, tokens=tokens)
    checks.whole("n", n, 1, tsv.shape[1] * tsv.shape[2])
    if bool(tsv.isnan().any()):
        raise ValueError("tsv: expected numbers, got NaN")
    positions = top_positions(tsv, n)
    return tokens.flatten(1).long().gather(1, positions), positions
