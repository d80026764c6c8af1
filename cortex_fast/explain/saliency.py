"""The sample-level explanation: SmoothGrad, TSV and an image's top tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cortex_fast import checks, ops
from cortex_fast.data.classes import Target, names_of, target_vector
from cortex_fast.engine import MEMORY, NoiseStream, Prepared, mean_gradients, module_of, prepare
from cortex_fast.engine.adaptive import ROUND_SAMPLES, settled_gradients
from cortex_fast.explain.arguments import check_classes, check_embedding, check_extractor
from cortex_fast.ops.concept_counts import top_positions
from cortex_fast.ops.token_saliency import REDUCTIONS

SIGMA_RANGES = ("sample", "batch")
NOISES = ("shared", "independent")
AUTO = "auto"


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
    tick: Callable[[int], object] = lambda images: None,
) -> Tensor:
    """Mean over N noisy copies of the gradient of the target's logit with respect to E (eq. 5): [B,d,h,w].

    extractor: eval-mode module, E [B,d,h,w] -> logits [B,classes], or one that `prepare` made ready for many calls.
    target: a class, or one for each image, int [B]: numbers, or names where the extractor has them (as `names`, or in a
    configuration of transformers).
    Noise is N(0, sigma^2) with sigma = alpha (max E - min E), of each image ("sample", the paper) or of the whole batch
    ("batch", the published code). noise: "shared" gives all images the same N draws, "independent" each its own, by
    `item_ids` int [B] (default 0, 1, 2, ...). memory: bytes that the activations of one pass may take; the copies are
    cut into passes accordingly, and the result does not depend on it.
    num_samples "auto": after every 20 samples the set of each image's top_n positions by TSV is compared with the one
    before; an image is done when three comparisons in a row found no change, or after 1000 samples. top_n is for this.
    antithetic: draws come in pairs of opposite sign. tick is called with the number of images done.
    Raises TypeError or ValueError naming the argument: wrong shapes or dtypes, non-finite E, a target outside the
    classes.
    """
    checks.rank("embedding", embedding, "[B, d, h, w]")
    gradients = torch.empty_like(embedding, dtype=torch.promote_types(embedding.dtype, torch.float32))
    settings = Settings(num_samples, alpha, sigma_range, noise, seed, item_ids, antithetic, memory, top_n, "absmax")
    for images, part in _mean_gradients(extractor, embedding, target, settings):
        gradients[images] = part
        tick(len(part))
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
    tick: Callable[[int], object] = lambda images: None,
) -> Tensor:
    """TSV [B,h,w]: the channel maximum of |smoothgrad(...)| (eq. 5); the other arguments are `smoothgrad`'s.

    reduction: "absmax" (the paper), "max" or "mean" (the published code's signed maximum and mean).
    """
    checks.rank("embedding", embedding, "[B, d, h, w]")
    batch, _, *grid = embedding.shape
    tsv = torch.empty(
        (batch, *grid), dtype=torch.promote_types(embedding.dtype, torch.float32), device=embedding.device
    )
    settings = Settings(num_samples, alpha, sigma_range, noise, seed, item_ids, antithetic, memory, top_n, reduction)
    for images, part in _mean_gradients(extractor, embedding, target, settings):
        tsv[images] = ops.token_saliency(part[:, None], reduction=reduction)
        tick(len(part))
    return tsv


@dataclass(frozen=True)
class Settings:
    """`token_saliency`'s settings, checked, as plain values."""

    num_samples: int | str
    alpha: float
    sigma_range: str
    noise: str
    seed: int
    item_ids: checks.Integers | None
    antithetic: bool
    memory: int
    top_n: int
    reduction: str

    def __post_init__(self) -> None:
        checks.one_of("sigma_range", self.sigma_range, SIGMA_RANGES)
        checks.one_of("noise", self.noise, NOISES)
        checks.one_of("reduction", self.reduction, REDUCTIONS)
        plain = {
            "num_samples": AUTO if self.auto else checks.whole("num_samples", self.num_samples, 1),
            "alpha": checks.non_negative("alpha", self.alpha),
            "seed": checks.seed(self.seed),
            "antithetic": checks.flag("antithetic", self.antithetic),
            "memory": checks.whole("memory", self.memory, 1),
            "top_n": checks.whole("top_n", self.top_n, 1),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @property
    def auto(self) -> bool:
        return isinstance(self.num_samples, str) and self.num_samples == AUTO


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
    if settings.auto:
        prepared = prepare(extractor, embedding[:1], copies=batch * 4 * ROUND_SAMPLES)
        for images, part, _ in settled_gradients(
            prepared,
            embedding,
            targets,
            stream,
            top_n=settings.top_n,
            reduction=settings.reduction,
            memory=settings.memory,
        ):
            yield images, part
        return
    samples = range(int(settings.num_samples))
    prepared = prepare(extractor, embedding[:1], copies=batch * len(samples))
    numbers = torch.arange(batch, device=embedding.device)
    for rows, part in mean_gradients(prepared, embedding, targets, stream, samples, memory=settings.memory):
        yield numbers[rows], part


def _sigma(embedding: Tensor, alpha: float, sigma_range: str) -> Tensor:
    """sigma [B] = alpha (max - min), of each image or of the batch."""
    wide = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    flat = wide.flatten(1) if sigma_range == "sample" else wide.reshape(1, -1)
    low, high = flat.aminmax(dim=1)
    return (alpha * (high - low)).expand(embedding.shape[0])


def top_tokens(tsv: Tensor, tokens: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """T*_image (eq. 6): the n positions of largest TSV, largest first: token ids int64 [B,n], flat positions int64
    [B,n].

    tsv [B,h,w] floating; tokens int [B,h,w], a tensor or an array. Position y * w + x; ties go to the lower position.
    Raises TypeError or ValueError for wrong dtypes, shapes that differ, n outside [1, h * w], or a NaN.
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
