"""Counts of each concept's top tokens: the statistic behind T*_concept (eq. 6)."""

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels import native
from cortex_fast.kernels.reference import concept_counts as reference
from cortex_fast.ops.backends import REASONS, check_impl, choose
from cortex_fast.ops.registering import operator

if native.UNAVAILABLE is None:
    from cortex_fast.kernels.native import concept_counts as native_kernel

PER = ("occurrence", "image")
MOST_COUNTS = 2**36  # half a terabyte of them
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
    """int64 [num_concepts,K]: how often token t is among the top_n positions by TSV of an image of concept c.

    tsv [B,m,m] floating; tokens [B,m,m] and labels [B] of any integer dtype. Ties go to the lower position (row-major).
    per: "occurrence" counts every position (the published code), "image" a token at most once an image (eq. 6's union).
    Raises TypeError for wrong types, and ValueError for shapes that do not fit, top_n outside [1, m*m], tokens outside
    [0, K), labels outside [0, num_concepts), more than 2^36 counts, or a NaN in tsv.
    """
    checks.rank("tsv", tsv, "[B, m, m]")
    checks.floating("tsv", tsv)
    sizes = check_counting(tsv.shape, tokens, labels, top_n, num_concepts, codebook_size, per)
    checks.same_device(tsv=tsv, tokens=tokens, labels=labels)
    check_impl(impl)
    return _concept_counts(tsv.detach(), tokens, labels, *sizes, per, impl)


def check_counting(
    shape: torch.Size, tokens: Tensor, labels: Tensor, top_n: int, num_concepts: int, codebook_size: int, per: str
) -> tuple[int, int, int]:
    """What this operator and `saliency_counts` ask of a count of TSVs of this shape: top_n, num_concepts, K."""
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
    return top_n, num_concepts, codebook_size


def check_values(tokens: Tensor, labels: Tensor, num_concepts: int, codebook_size: int) -> None:
    """What reads the tensors' values, and so stands where no tracer looks."""
    checks.in_range("tokens", tokens, codebook_size)
    checks.in_range("labels", labels, num_concepts)


def check_numbers(tsv: Tensor) -> None:
    """This reads values as well."""
    if bool(tsv.isnan().any()):
        raise ValueError("tsv: expected numbers, got NaN")


@operator("concept_counts")
def _concept_counts(
    tsv: Tensor, tokens: Tensor, labels: Tensor, top_n: int, num_concepts: int, codebook_size: int, per: str, impl: str
) -> Tensor:
    check_values(tokens, labels, num_concepts, codebook_size)
    check_numbers(tsv)
    backend = choose("concept_counts", REASONS["concept_counts"], impl, tsv)
    if backend == "cuda":
        from cortex_fast.kernels.cuda import concept_counts as cuda_kernel

        return cuda_kernel.concept_counts(tsv, tokens, labels, top_n, num_concepts, codebook_size, per)
    if backend == "triton":
        from cortex_fast.kernels.triton import concept_counts as triton_kernel

        return triton_kernel.concept_counts(tsv, tokens, labels, top_n, num_concepts, codebook_size, per)
    serve = native_kernel if backend == "native" else reference
    return serve.concept_counts(tsv, tokens, labels, top_n, num_concepts, codebook_size, per)


@_concept_counts.register_fake
def _(
    tsv: Tensor, tokens: Tensor, labels: Tensor, top_n: int, num_concepts: int, codebook_size: int, per: str, impl: str
) -> Tensor:
    return tsv.new_empty((num_concepts, codebook_size), dtype=torch.int64)
