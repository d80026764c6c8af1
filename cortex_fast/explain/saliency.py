"""The sample-level explanation: SmoothGrad, TSV and an image's top tokens."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from cortex_fast import checks, ops
from cortex_fast.data.classes import Target, names_of, target_vector
from cortex_fast.engine import MEMORY, NoiseStream, Prepared, mean_gradients, module_of, prepare
from cortex_fast.engine.adaptive import ROUND_SAMPLES, settled_gradients
from cortex_fast.explain.arguments import check_classes, check_embedding, check_extractor
from cortex_fast.explain.saliency_settings import Settings
from cortex_fast.ops.concept_counts import top_positions


def smoothgrad(
    extractor: nn.Module | Prepared,
    embedding: Tensor,
    target: Target,
    *,
    num_samples: int | str = 20,
    alpha: float = 0.2,
    sigma_range: str = "sample",
    noise: str = "shared",
    seed: int = 0,
    item_ids: checks.Integers | None = None,
    antithetic: bool = False,
    memory: int = MEMORY,
    top_n: int = 20,
    tick: Callable[[int], object] | None = None,
) -> Tensor:
    """Mean over N noisy copies of the gradient of the target's logit with respect to E (eq. 5).

    The noise is N(0, sigma^2) with sigma = alpha (max E - min E).

    Args:
        extractor: eval-mode module, E [B,d,h,w] -> logits [B,classes], prepared by `prepare` or not.
        embedding: E, finite float [B,d,h,w].
        target: a class for all images, or int [B], one for each; by number, or by name where the extractor has names
            (as `names`, or in a configuration of transformers).
        num_samples: N, a whole number, or "auto": after every 20 samples the set of each image's top_n positions by TSV
            is compared with the set before. An image is done after three comparisons in a row without a change, or
            after 1000 samples. Default 20.
        alpha: the noise's standard deviation as a share of the range of E, at least 0. Default 0.2.
        sigma_range: the range of E is that of each image ("sample", the paper) or of the whole batch ("batch", the
            published code). Default "sample".
        noise: "shared" (all images get the same N draws) or "independent" (each image's draws are fixed by its item
            id). Default "shared".
        seed: seed of the random stream, in [0, 2^63). Default 0.
        item_ids: int [B] in [0, 2^32), the images' items in the random stream. Default None: 0, 1, 2, ....
        antithetic: whether draws come in pairs of opposite sign. Default False.
        memory: bytes that the activations of one pass may take. The samples are divided into passes accordingly; the
            result does not depend on it. Default 2^30.
        top_n: number of top positions that num_samples="auto" compares. Default 20.
        tick: called with the number of images done. Default None.

    Returns:
        At least float32 [B,d,h,w].

    Raises:
        TypeError, ValueError: wrong shapes or dtypes, E that is not finite, an extractor in training mode, a target
            outside the classes, or a setting outside its values. The message names the argument.
    """
    checks.rank("embedding", embedding, "[B, d, h, w]")
    gradients = torch.empty_like(embedding, dtype=torch.promote_types(embedding.dtype, torch.float32))
    settings = Settings(
        num_samples=num_samples, alpha=alpha, sigma_range=sigma_range, noise=noise, seed=seed,
        item_ids=item_ids, antithetic=antithetic, memory=memory, top_n=top_n,
    )  # fmt: skip
    for images, means in _mean_gradients(extractor, embedding, target, settings):
        gradients[images] = means
        if tick is not None:
            tick(len(means))
    return gradients


def token_saliency(
    extractor: nn.Module | Prepared,
    embedding: Tensor,
    target: Target,
    *,
    reduction: str = "absmax",
    num_samples: int | str = 20,
    alpha: float = 0.2,
    sigma_range: str = "sample",
    noise: str = "shared",
    seed: int = 0,
    item_ids: checks.Integers | None = None,
    antithetic: bool = False,
    memory: int = MEMORY,
    top_n: int = 20,
    tick: Callable[[int], object] | None = None,
) -> Tensor:
    """TSV: the mean gradient of `smoothgrad`, reduced over channels, in the paper to its largest magnitude (eq. 5).

    The noise is N(0, sigma^2) with sigma = alpha (max E - min E).

    Args:
        extractor: eval-mode module, E [B,d,h,w] -> logits [B,classes], prepared by `prepare` or not.
        embedding: E, finite float [B,d,h,w].
        target: a class for all images, or int [B], one for each; by number, or by name where the extractor has names
            (as `names`, or in a configuration of transformers).
        reduction: of the mean gradient's channels: "absmax" (largest magnitude, the paper), "max" or "mean" (the
            published code's signed maximum and mean). Default "absmax".
        num_samples: N, a whole number, or "auto": after every 20 samples the set of each image's top_n positions by TSV
            is compared with the set before. An image is done after three comparisons in a row without a change, or
            after 1000 samples. Default 20.
        alpha: the noise's standard deviation as a share of the range of E, at least 0. Default 0.2.
        sigma_range: the range of E is that of each image ("sample", the paper) or of the whole batch ("batch", the
            published code). Default "sample".
        noise: "shared" (all images get the same N draws) or "independent" (each image's draws are fixed by its item
            id). Default "shared".
        seed: seed of the random stream, in [0, 2^63). Default 0.
        item_ids: int [B] in [0, 2^32), the images' items in the random stream. Default None: 0, 1, 2, ....
        antithetic: whether draws come in pairs of opposite sign. Default False.
        memory: bytes that the activations of one pass may take. The samples are divided into passes accordingly; the
            result does not depend on it. Default 2^30.
        top_n: number of top positions that num_samples="auto" compares. Default 20.
        tick: called with the number of images done. Default None.

    Returns:
        At least float32 [B,h,w].

    Raises:
        TypeError, ValueError: wrong shapes or dtypes, E that is not finite, an extractor in training mode, a target
            outside the classes, or a setting outside its values. The message names the argument.
    """
    checks.rank("embedding", embedding, "[B, d, h, w]")
    batch, _, *grid = embedding.shape
    tsv = torch.empty(
        (batch, *grid), dtype=torch.promote_types(embedding.dtype, torch.float32), device=embedding.device
    )
    settings = Settings(
        num_samples=num_samples, alpha=alpha, sigma_range=sigma_range, noise=noise, seed=seed,
        item_ids=item_ids, antithetic=antithetic, memory=memory, top_n=top_n, reduction=reduction,
    )  # fmt: skip
    for images, means in _mean_gradients(extractor, embedding, target, settings):
        tsv[images] = ops.token_saliency(means[:, None], reduction=reduction)
        if tick is not None:
            tick(len(means))
    return tsv


def _mean_gradients(
    extractor: nn.Module | Prepared, embedding: Tensor, target: Target, settings: Settings
) -> Iterator[tuple[Tensor, Tensor]]:
    """Check the arguments, then yield (images int64 [b], mean gradients [b,d,h,w]) until all images are done."""
    check_embedding(embedding)
    module = module_of(extractor)
    check_extractor(module, embedding=embedding)
    if settings.auto:
        checks.whole("top_n", settings.top_n, 1, embedding.shape[2] * embedding.shape[3])
    batch = embedding.shape[0]
    targets = target_vector(target, batch, embedding.device, names_of(module))
    items = torch.arange(batch) if settings.item_ids is None else checks.integers("item_ids", settings.item_ids)
    checks.same_shape("item_ids", items, "embedding's batch", embedding.shape[:1])
    checks.in_range("item_ids", items, 2**32)
    if batch == 0:
        return
    check_classes(extractor, embedding[:1], targets)
    stream = NoiseStream(
        sigma=_sigma(embedding, settings.alpha, settings.sigma_range),
        item_ids=items.to(embedding.device, torch.int64),
        seed=settings.seed,
        shared=settings.noise == "shared",
        antithetic=settings.antithetic,
    )
    gradients = _settled if settings.auto else _averaged
    yield from gradients(extractor, embedding, targets, stream, settings)


def _settled(
    extractor: nn.Module | Prepared, embedding: Tensor, targets: Tensor, stream: NoiseStream, settings: Settings
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and their mean gradients as their top positions settle."""
    prepared = prepare(extractor, embedding[:1], copies=len(embedding) * 4 * ROUND_SAMPLES)
    for images, means, _ in settled_gradients(
        prepared, embedding, targets, stream,
        top_n=settings.top_n, reduction=settings.reduction, memory=settings.memory,
    ):  # fmt: skip
        yield images, means


def _averaged(
    extractor: nn.Module | Prepared, embedding: Tensor, targets: Tensor, stream: NoiseStream, settings: Settings
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and their mean gradients over a fixed number of samples."""
    samples = range(int(settings.num_samples))
    prepared = prepare(extractor, embedding[:1], copies=len(embedding) * len(samples))
    images = torch.arange(len(embedding), device=embedding.device)
    for rows, means in mean_gradients(prepared, embedding, targets, stream, samples, memory=settings.memory):
        yield images[rows], means


def _sigma(embedding: Tensor, alpha: float, sigma_range: str) -> Tensor:
    """sigma [B] = alpha (max E - min E), of each image or of the batch."""
    wide = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    flat = wide.flatten(1) if sigma_range == "sample" else wide.reshape(1, -1)
    low, high = flat.aminmax(dim=1)
    return (alpha * (high - low)).expand(embedding.shape[0])


def top_tokens(tsv: Tensor, tokens: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """T*_image: the tokens at an image's n positions of largest TSV (eq. 6).

    Args:
        tsv: float [B,h,w] without NaN.
        tokens: int [B,h,w], a tensor or an array.
        n: number of positions, from 1 to h * w.

    Returns:
        Token ids int64 [B,n] and their flat positions y * w + x int64 [B,n], by falling TSV; ties go to the lower
        position.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes that differ, n outside its bounds, or a NaN.
    """
    checks.rank("tsv", tsv, "[B, h, w]")
    checks.floating("tsv", tsv)
    tokens = checks.integers("tokens", tokens, tsv.device)
    checks.same_shape("tokens", tokens, "tsv", tsv.shape)
    checks.same_device(tsv=tsv, tokens=tokens)
    n = checks.whole("n", n, 1, tsv.shape[1] * tsv.shape[2])
    if bool(tsv.isnan().any()):
        raise ValueError("tsv: expected numbers, got NaN")
    positions = top_positions(tsv, n)
    return tokens.flatten(1).long().gather(1, positions), positions
