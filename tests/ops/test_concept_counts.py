"""concept_counts: every backend against counting in Python, and the operator's contract."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cortex_fast.ops.backends import BackendUnavailableError
from cortex_fast.ops.concept_counts import PER, concept_counts
from tests.ops.backends_under_test import (
    CUDA,
    TRITON,
    assert_same_for_any_threads,
    few,
    needs_native,
    skip_in_interpreter,
)

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64)

# the native kernel is compiled once, for every instruction set
every_impl = pytest.mark.parametrize(
    "impl", ["reference", pytest.param("native", marks=needs_native), CUDA, TRITON], indirect=True
)
every_per = pytest.mark.parametrize("per", PER)


def formula(tsv: Tensor, tokens: Tensor, labels: Tensor, top_n: int, shape: tuple[int, int], per: str) -> np.ndarray:
    """int64 `shape` = [num_concepts,K], an image and a position at a time."""
    counts = np.zeros(shape, dtype=np.int64)
    for values, ids, label in zip(tsv.flatten(1).tolist(), tokens.flatten(1).tolist(), labels.tolist(), strict=True):
        best = sorted(range(len(values)), key=lambda position: (-values[position], position))[:top_n]
        chosen = [ids[position] for position in best]
        for token in chosen if per == "occurrence" else set(chosen):
            counts[label, token] += 1
    return counts


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int, int, int]:
    """Images of any grid with many ties, stored transposed or with gaps: tsv, tokens, labels, top_n, concepts, K."""
    batch, height, width = draw(st.integers(0, 5)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    top_n = draw(st.integers(1, height * width))
    concepts, codes = draw(st.integers(1, 4)), draw(st.integers(1, 30))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    levels = draw(st.sampled_from([1, 3, 10**6]))
    tsv = torch.randint(-levels, levels + 1, (batch, width, height), generator=generator).float().transpose(1, 2) / 8
    tsv[tsv == 0] *= torch.where(torch.rand(int((tsv == 0).sum()), generator=generator) < 0.5, -1.0, 1.0)
    tokens = torch.randint(0, codes, (batch, height, 2 * width), generator=generator)[:, :, ::2]
    labels = torch.randint(0, concepts, (batch, 2), generator=generator)[:, 1]
    return tsv, tokens.to(draw(st.sampled_from(INTEGERS))), labels, top_n, concepts, codes


@every_impl
@every_per
@settings(max_examples=80, deadline=None)
@given(case=cases())
def test_agrees_with_counting(impl: str, per: str, case: tuple[Tensor, Tensor, Tensor, int, int, int]) -> None:
    tsv, tokens, labels, top_n, concepts, codes = case
    out = concept_counts(
        tsv, tokens, labels, top_n=top_n, num_concepts=concepts, codebook_size=codes, per=per, impl=impl
    )
    assert out.dtype == torch.int64
    np.testing.assert_array_equal(out.numpy(), formula(tsv, tokens, labels, top_n, (concepts, codes), per))


def paper_sized(batch: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tsv = torch.rand((batch, 16, 16), generator=generator)
    tokens = torch.randint(0, 1024, (batch, 16, 16), generator=generator).to(torch.uint16)
    return tsv, tokens, torch.randint(0, 10, (batch,), generator=generator)


@every_impl
@every_per
def test_paper_sized_grid(impl: str, per: str) -> None:
    tsv, tokens, labels = paper_sized(few(impl, 40, 3))
    out = concept_counts(tsv, tokens, labels, top_n=20, num_concepts=10, codebook_size=1024, per=per, impl=impl)
    np.testing.assert_array_equal(out.numpy(), formula(tsv, tokens, labels, 20, (10, 1024), per))


@every_impl
def test_occurrence_and_image_differ_on_a_repeated_token(impl: str) -> None:
    tsv, tokens, labels = torch.ones(1, 2, 2), torch.tensor([[[3, 3], [3, 0]]]), torch.tensor([1])
    counts = [
        concept_counts(tsv, tokens, labels, top_n=3, num_concepts=2, codebook_size=4, per=per, impl=impl).tolist()
        for per in PER
    ]
    assert counts == [[[0, 0, 0, 0], [0, 0, 0, 3]], [[0, 0, 0, 0], [0, 0, 0, 1]]]


@every_impl
@every_per
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (5, 51), (1, 257)])
def test_grids_of_odd_sizes_and_empty_batches(impl: str, per: str, grid: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    many = few(impl, 1, 17)
    batches = ((0, torch.uint16), (1, torch.uint8), (17 // many, torch.int16), (33, torch.int64))
    for batch, dtype in batches[: few(impl, 4, 3)]:
        tsv = torch.randint(0, 9, (batch, *grid), generator=generator).float()  # many ties
        tokens = torch.randint(0, 200, (batch, *grid), generator=generator).to(dtype)
        labels = torch.randint(0, 3, (batch,), generator=generator)
        for top_n in {1, grid[1], grid[0] * grid[1]}:
            options = {"top_n": top_n, "num_concepts": 3, "codebook_size": 200, "per": per, "impl": impl}
            out = concept_counts(tsv, tokens, labels, **options)
            np.testing.assert_array_equal(out.numpy(), formula(tsv, tokens, labels, top_n, (3, 200), per))


@every_impl
def test_signed_zeros_tie_and_infinities_order(impl: str) -> None:
    inf = float("inf")
    tsv, tokens = torch.tensor([[[-inf, -0.0, 0.0, inf]]]), torch.tensor([[[0, 1, 2, 3]]])
    chosen = [
        concept_counts(tsv, tokens, torch.tensor([0]), top_n=n, num_concepts=1, codebook_size=4, impl=impl)[0].tolist()
        for n in (1, 2, 3, 4)
    ]
    assert chosen == [[0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]]


@every_impl
def test_adds_up(impl: str) -> None:
    tsv, tokens, labels = paper_sized(few(impl, 40, 3))
    options = {"top_n": 20, "num_concepts": 10, "codebook_size": 1024, "impl": impl}
    whole = concept_counts(tsv, tokens, labels, **options)
    assert torch.equal(whole.sum(dim=1), 20 * torch.bincount(labels, minlength=10))
    halves = [concept_counts(tsv[part], tokens[part], labels[part], **options) for part in (slice(2), slice(2, None))]
    assert torch.equal(halves[0] + halves[1], whole)
    order = torch.randperm(len(tsv), generator=torch.Generator().manual_seed(1))
    assert torch.equal(concept_counts(tsv[order], tokens[order], labels[order], **options), whole)
    assert (concept_counts(tsv, tokens, labels, per="image", **options) <= whole).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_dtypes(dtype: torch.dtype) -> None:
    tsv, tokens, labels = paper_sized()
    out = concept_counts(tsv.to(dtype), tokens, labels, top_n=20, num_concepts=10, codebook_size=1024)
    np.testing.assert_array_equal(out.numpy(), formula(tsv.to(dtype), tokens, labels, 20, (10, 1024), "occurrence"))


@every_impl
@every_per
def test_same_counts_for_any_threads_and_again(impl: str, per: str) -> None:
    skip_in_interpreter(impl)
    tsv, tokens, labels = paper_sized(200)
    options = {"top_n": 20, "num_concepts": 1, "codebook_size": 1024, "per": per, "impl": impl}
    assert_same_for_any_threads(lambda: [concept_counts(tsv, tokens, labels * 0, **options)])


@every_impl
def test_lazily_negated_view(impl: str) -> None:
    tsv, tokens, labels = paper_sized(few(impl, 40, 3))
    options = {"top_n": 20, "num_concepts": 10, "codebook_size": 1024, "impl": impl}
    lazy = torch._neg_view(tsv)
    assert torch.equal(concept_counts(lazy, tokens, labels, **options), concept_counts(-tsv, tokens, labels, **options))


@every_impl
def test_gradient_does_not_flow(impl: str) -> None:
    tsv, tokens, labels = paper_sized(few(impl, 40, 3))
    out = concept_counts(tsv.requires_grad_(), tokens, labels, top_n=1, num_concepts=10, codebook_size=1024, impl=impl)
    assert not out.requires_grad


@every_impl
@every_per
def test_opcheck(impl: str, per: str) -> None:
    tsv, tokens, labels = paper_sized(few(impl, 3, 1))
    operator = torch.ops.cortex_fast.concept_counts.default
    torch.library.opcheck(operator, (tsv, tokens.long(), labels, 5, 10, 1024, per, impl))


@every_impl
def test_compiles_whole(impl: str) -> None:
    def doubled(tsv: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
        return 2 * concept_counts(tsv * 3, tokens, labels, top_n=4, num_concepts=10, codebook_size=1024, impl=impl)

    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    tsv, tokens, labels = paper_sized(3)
    assert torch.equal(compiled(tsv, tokens.long(), labels), doubled(tsv, tokens.long(), labels))


def valid() -> dict[str, object]:
    return {
        "tsv": torch.rand(2, 3, 3),
        "tokens": torch.zeros(2, 3, 3, dtype=torch.int64),
        "labels": torch.zeros(2, dtype=torch.int64),
        "top_n": 2,
        "num_concepts": 2,
        "codebook_size": 4,
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tsv": torch.rand(2, 9)}, ValueError, r"tsv: expected shape \[B, m, m\]"),
        ({"tsv": torch.ones(2, 3, 3, dtype=torch.int64)}, TypeError, "tsv: expected a floating-point"),
        ({"tsv": torch.full((2, 3, 3), float("nan"))}, ValueError, "tsv: expected numbers, got NaN"),
        ({"tokens": torch.zeros(2, 3, 3)}, TypeError, "tokens: expected an integer tensor"),
        ({"tokens": torch.zeros(2, 3, 4, dtype=torch.int64)}, ValueError, "tokens: expected the shape of tsv"),
        ({"tokens": torch.full((2, 3, 3), 4)}, ValueError, r"tokens: expected values in \[0, 4\), got 4 to 4"),
        ({"tokens": torch.full((2, 3, 3), -1)}, ValueError, r"tokens: expected values in \[0, 4\), got -1"),
        ({"tokens": torch.full((2, 3, 3), 9, dtype=torch.uint16)}, ValueError, r"tokens: .* got 9 to 9"),
        ({"labels": torch.zeros(2, dtype=torch.bool)}, TypeError, "labels: expected an integer tensor"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, "labels: expected the shape of tsv's batch"),
        ({"labels": torch.tensor([0, 2])}, ValueError, r"labels: expected values in \[0, 2\), got 0 to 2"),
        ({"labels": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "labels: expected one device"),
        ({"top_n": 0}, ValueError, "top_n: expected a whole number from 1 to 9, got 0"),
        ({"top_n": 10}, ValueError, "top_n: expected a whole number from 1 to 9, got 10"),
        ({"top_n": 2.0}, TypeError, "top_n: expected a whole number"),
        ({"num_concepts": 0}, ValueError, "num_concepts: expected a whole number at least 1"),
        ({"codebook_size": 0}, ValueError, "codebook_size: expected a whole number at least 1"),
        ({"num_concepts": 2**40}, ValueError, "num_concepts: expected num_concepts x codebook_size of at most 2"),
        ({"codebook_size": 10**30}, ValueError, "num_concepts: expected num_concepts x codebook_size of at most 2"),
        ({"per": "pixel"}, ValueError, "per: expected one of 'occurrence', 'image'"),
        ({"impl": "fast"}, ValueError, "impl: expected 'auto' or one of"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        concept_counts(**{**valid(), **change})


@needs_native
def test_forced_native_says_why_it_cannot_serve() -> None:
    arguments = {**valid(), "tsv": torch.rand(2, 3, 3).half()}
    with pytest.raises(BackendUnavailableError, match=r"concept_counts: impl='native' .* not torch.float16"):
        concept_counts(**arguments, impl="native")


@needs_native
@pytest.mark.parametrize(("token", "label"), [(4, 0), (-1, 0), (0, 2), (0, -1)])
def test_the_core_itself_writes_nowhere_out_of_range(token: int, label: int) -> None:
    from cortex_fast.kernels.native.concept_counts import concept_counts as unchecked

    with pytest.raises(ValueError, match="tokens, labels: expected values"):
        unchecked(
            tsv=torch.rand(1, 2, 2),
            tokens=torch.full((1, 2, 2), token),
            labels=torch.tensor([label]),
            top_n=2,
            num_concepts=2,
            codebook_size=4,
            per="image",
        )
