"""concept_counts alone, and as it follows token_saliency.

Floor: one read of scores, tokens and labels, and the written counts; with token_saliency, one read of the gradients.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.baselines import published
from benchmarks.harness import IMPLS, SEED, Case, Sibling, max_error, reason_against
from benchmarks.machine import Floor
from cortex_fast import ops

CONCEPTS = 100


@dataclass(frozen=True)
class Images:
    """tokens int64 [B,m,m], labels int64 [B]; tsv [B,m,m], or grads [B,N,d,m,m] instead; the settings of the counts."""

    tokens: Tensor
    labels: Tensor
    tsv: Tensor | None
    grads: Tensor | None
    top_n: int
    codes: int


def images(batch: int, grid: int, codes: int, top_n: int, device: torch.device) -> Images:
    """Scores without ties, whose order is free in the published code."""
    generator = torch.Generator().manual_seed(SEED)
    tsv = torch.rand((batch, grid * grid), generator=generator).argsort(dim=1).float().view(batch, grid, grid)
    tokens = torch.randint(codes, (batch, grid, grid), generator=generator)
    labels = torch.randint(CONCEPTS, (batch,), generator=generator)
    return Images(tokens.to(device), labels.to(device), tsv.to(device), None, top_n, codes)


def images_with_gradients(shape: tuple[int, ...], codes: int, top_n: int, device: torch.device) -> Images:
    generator = torch.Generator().manual_seed(SEED)
    grads = torch.randn(shape, generator=generator)
    tokens = torch.randint(codes, (shape[0], *shape[3:]), generator=generator)
    labels = torch.randint(CONCEPTS, shape[:1], generator=generator)
    return Images(tokens.to(device), labels.to(device), None, grads.to(device), top_n, codes)


def exact_counts(data: Images, tsv: Tensor) -> Tensor:
    """int64 [concepts,K] without sorting: a position is chosen if fewer than top_n of its image's scores exceed its."""
    counts = torch.zeros(CONCEPTS, data.codes, dtype=torch.int64)
    images = zip(tsv.flatten(1).cpu(), data.tokens.flatten(1).cpu(), data.labels.tolist(), strict=True)
    for scores, ids, label in images:
        larger = (scores[:, None] < scores).sum(dim=1)
        counts[label] += torch.bincount(ids[larger < data.top_n], minlength=data.codes)
    return counts


def dense(counts: Tensor | dict[int, Counter[int]], codes: int) -> Tensor:
    if isinstance(counts, Tensor):
        return counts.cpu()
    table = torch.zeros(CONCEPTS, codes, dtype=torch.int64)
    for label, tokens in counts.items():
        for token, count in tokens.items():
            table[label, token] = count
    return table


def count_error(data: Images, result: Tensor | dict[int, Counter[int]]) -> float:
    return max_error(dense(result, data.codes), exact_counts(data, data.tsv))


def count_error_of_gradients(data: Images, result: Tensor | dict[int, Counter[int]], signed: bool) -> float:
    means = (image.double().mean(dim=0) for image in data.grads)
    tsv = torch.stack([(mean if signed else mean.abs()).amax(dim=0) for mean in means])
    return max_error(dense(result, data.codes), exact_counts(data, tsv))


def counts(data: Images, tsv: Tensor, impl: str) -> Tensor:
    return ops.concept_counts(
        tsv, data.tokens, data.labels, top_n=data.top_n, num_concepts=CONCEPTS, codebook_size=data.codes, impl=impl
    )


def counting(impl: str) -> Sibling:
    return Sibling(
        impl,
        lambda data: counts(data, data.tsv, impl),
        count_error,
        tolerance=0,
        unavailable=lambda data: reason_against(ops.concept_counts, impl, data.tsv),
    )


def scoring_and_counting(impl: str) -> Sibling:
    """CUDA: in one pass over the gradients."""

    def counted(data: Images) -> Tensor:
        sizes = {"top_n": data.top_n, "num_concepts": CONCEPTS, "codebook_size": data.codes}
        return ops.saliency_counts(data.grads, data.tokens, data.labels, impl=impl, **sizes)[1]

    return Sibling(
        impl,
        counted,
        partial(count_error_of_gradients, signed=False),
        tolerance=0,
        unavailable=lambda data: reason_against(ops.saliency_counts, impl, data.grads),
    )


def published_counts(data: Images, tsv: Tensor) -> dict[int, Counter[int]]:
    return published.concept_counts(tsv.cpu(), data.tokens.cpu(), data.labels.cpu(), data.top_n)


def cases(quick: bool) -> list[Case]:
    batch, grid, codes, top_n = (50, 8, 32, 5) if quick else (2000, 16, 1024, 20)
    shape, all_codes = ((2, 3, 16, 8, 8), 64) if quick else ((25, 20, 256, 16, 16), 16384)
    return [
        Case(
            operator="concept_counts",
            name=f"{batch:,} images",
            sizes=f"{[batch, grid, grid]} float32 and int64, {CONCEPTS} concepts, K {codes}, top {top_n}",
            floor=Floor(bytes=batch * (grid * grid * (4 + 8) + 8) + 8 * CONCEPTS * codes),
            data=partial(images, batch, grid, codes, top_n),
            siblings=(
                *map(counting, IMPLS),
                Sibling("published", lambda data: published_counts(data, data.tsv), count_error, tolerance=0),
            ),
        ),
        Case(
            operator="token_saliency + concept_counts",
            name=f"{shape[0]} images",
            sizes=f"{list(shape)} float32, {CONCEPTS} concepts, K {all_codes}, top {top_n}",
            floor=Floor(bytes=4 * torch.Size(shape).numel()),
            data=partial(images_with_gradients, shape, all_codes, top_n),
            siblings=(
                *map(scoring_and_counting, IMPLS),
                Sibling(
                    "published",
                    lambda data: published_counts(data, published.token_saliency(data.grads)),
                    partial(count_error_of_gradients, signed=True),
                    tolerance=0,
                ),
            ),
        ),
    ]


def test_concept_counts(measure):
    measure()
