"""Counts of each concept's top tokens: the statistic behind T*_concept (eq. 6)."""

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels.reference import concept_counts as reference
from cortex_fast.ops.backends import check_impl, serving
from cortex_fast.ops.registering import operator

PER = ("occurrence", "image")
MOST_COUNTS = 2**36  # half a terabyte
top_positions = reference.top_positions


def concept_counts(
    tsv: Tensor,
    tokens: Tensor,
    labels: Tensor,
    *,
    top_n: int,
    num_concepts: int,
    codebook_size: int,
    per: str = "occurrence",
    impl: str = "auto",
) -> Tensor:
    """How often each token is among the top positions by TSV of each concept's images.

    Ties go to the lower position, row by row. Not differentiable.

    Args:
        tsv: floating [B, m, m], without NaN.
        tokens: integer [B, m, m], in [0, K).
        labels: integer [B], each image's concept, in [0, num_concepts).
        top_n: the number of top positions of an image, from 1 to m * m.
        num_concepts: the number of concepts.
        codebook_size: K, the number of tokens.
        per: "occurrence" counts every top position (the published code), "image" counts a token at most once an image
            (eq. 6's union). Default "occurrence".
        impl: the backend, "auto", "cuda", "triton", "native" or "reference". Default "auto".

    Returns:
        Counts int64 [num_concepts, K].

    Raises:
        TypeError: for other dtypes.
        ValueError: for shapes that do not fit, values out of range, a NaN in tsv, mixed devices, more than 2^36
            counts, or an unknown `per` or backend.
        BackendUnavailableError: if a forced backend is unavailable.
    """
    checks.rank("tsv", tsv, "[B, m, m]")
    checks.floating("tsv", tsv)
    sizes = check_counting(tsv.shape, tokens, labels, top_n, num_concepts, codebook_size, per=per)
    checks.same_device(tsv=tsv, tokens=tokens, labels=labels)
    check_impl(impl)
    return _concept_counts(tsv.detach(), tokens, labels, **sizes, per=per, impl=impl)


def check_counting(
    shape: torch.Size, tokens: Tensor, labels: Tensor, top_n: int, num_concepts: int, codebook_size: int, *, per: str
) -> dict[str, int]:
    """Check the arguments that `concept_counts` and `saliency_counts` share.

    Args:
        shape: that of the TSVs, [B, m, m].
        tokens, labels, top_n, num_concepts, codebook_size, per: those of `concept_counts`.

    Returns:
        top_n, num_concepts and codebook_size by name, as Python's integers.

    Raises:
        TypeError, ValueError: as `concept_counts`, except for values of tensors.
    """
    checks.integral("tokens", tokens)
    checks.integral("labels", labels)
    checks.same_shape("tokens", tokens, "tsv", shape)
    checks.same_shape("labels", labels, "tsv's batch", shape[:1])
    checks.one_of("per", per, PER)
    top_n = checks.whole("top_n", top_n, 1, shape[1] * shape[2])
    num_concepts = checks.whole("num_concepts", num_concepts, 1)
    codebook_size = checks.whole("codebook_size", codebook_size, 1)
    if num_concepts * codebook_size > MOST_COUNTS:
        raise ValueError(
            f"num_concepts: expected num_concepts x codebook_size of at most 2^36, got {num_concepts} x {codebook_size}"
        )
    return {"top_n": top_n, "num_concepts": num_concepts, "codebook_size": codebook_size}


def check_values(tokens: Tensor, labels: Tensor, num_concepts: int, codebook_size: int) -> None:
    """Check the values of tokens and labels. Called inside operators, because it reads tensors."""
    checks.in_range("tokens", tokens, codebook_size)
    checks.in_range("labels", labels, num_concepts)


def check_numbers(tsv: Tensor) -> None:
    """Check that TSVs have no NaN. Called inside operators, because it reads a tensor."""
    if bool(tsv.isnan().any()):
        raise ValueError("tsv: expected numbers, got NaN")


@operator("concept_counts")
def _concept_counts(
    tsv: Tensor, tokens: Tensor, labels: Tensor, top_n: int, num_concepts: int, codebook_size: int, per: str, impl: str
) -> Tensor:
    check_values(tokens, labels, num_concepts, codebook_size)
    check_numbers(tsv)
    counts: Tensor = serving("concept_counts", impl, tsv)(
        tsv=tsv,
        tokens=tokens,
        labels=labels,
        top_n=top_n,
        num_concepts=num_concepts,
        codebook_size=codebook_size,
        per=per,
    )
    return counts


@_concept_counts.register_fake
def _(
    tsv: Tensor, tokens: Tensor, labels: Tensor, top_n: int, num_concepts: int, codebook_size: int, per: str, impl: str
) -> Tensor:
    return tsv.new_empty((num_concepts, codebook_size), dtype=torch.int64)
