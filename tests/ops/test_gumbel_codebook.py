"""gumbel_codebook against eq. 7 in numpy and in plain autograd, and the promises of its stream.

test_philox.py and test_random_stream.py check the Gumbel noise itself.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cortex_fast.ops import gumbel_codebook, gumbel_codebook_step
from tests.ops.backends_under_test import (
    EPS,
    assert_same_for_any_threads,
    few,
    random,
    same_bits,
    skip_in_interpreter,
    skip_on_stand_in,
)
from tests.ops.exact_stream import UNIT, gumbel_noise

OPS = torch.ops.cortex_fast
Arrays = tuple[np.ndarray, ...]


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@np.errstate(over="ignore")  # float32 may: it is the rough one
def formula(
    logits: Tensor, codebook: Tensor, g: Tensor | np.ndarray, upstream: Tensor, tau: float, hard: bool, dtype: type
) -> Arrays:
    """Embedding, index, and the gradients of logits and codebook, all in `dtype`."""
    tensors = (torch.as_tensor(values) for values in (logits, codebook, g, upstream))
    P, C, G, dE = (tensor.detach().double().numpy().astype(dtype) for tensor in tensors)
    index = (P + G).argmax(axis=-1)
    y = softmax((P + G - (P + G).max(axis=-1, keepdims=True)) / dtype(tau))
    chosen = np.eye(len(C), dtype=dtype)[index] if hard else y
    D = dE @ C.T
    grad_logits = y * (D - (y * D).sum(axis=-1, keepdims=True)) / dtype(tau)
    lead = tuple(range(P.ndim - 1))
    return chosen @ C, index, grad_logits, np.tensordot(chosen, dE, axes=(lead, lead))


def assert_as_good(out: Tensor | None, exact: np.ndarray, rough: np.ndarray, unit: float = 0.0) -> None:
    """|out - ref64| <= 2 |ref32 - ref64| + tiny, over the whole tensor. unit: what rounding its terms once makes of it,
    where so few numbers are compared that float32's formula may be right by chance."""
    assert out is not None
    assert out.shape == exact.shape
    if exact.size:
        allowed = 2 * np.abs(rough - exact).max() + 2e-6 * max(1, np.abs(exact).max()) + unit
        assert np.abs(out.detach().double().numpy() - exact).max() <= allowed


def assert_largest(index: Tensor, scores: np.ndarray) -> None:
    """The index is that of the largest score, unless a Gumbel's last bits and the sum's rounding swap two."""
    best = scores.max(axis=-1)
    chosen = np.take_along_axis(scores, index.numpy()[..., None], axis=-1)[..., 0]
    assert (best - chosen <= 2 * UNIT * (3 * np.maximum(1, np.abs(best)) + np.abs(best))).all()


@settings(deadline=None, max_examples=30)
@given(
    lead=st.lists(st.integers(0, 3), max_size=2),
    rows=st.integers(0, 5),
    codes=st.integers(1, 33),
    channels=st.integers(1, 9),
    tau=st.floats(0.05, 20),
    hard=st.booleans(),
)
def test_forward_and_backward_are_the_formula(
    impl: str, lead: list[int], rows: int, codes: int, channels: int, tau: float, hard: bool
) -> None:
    logits, codebook = random(*lead, rows, codes).requires_grad_(), random(codes, channels, seed=1).requires_grad_()
    g, upstream = random(*lead, rows, codes, seed=2), random(*lead, rows, channels, seed=3)
    embedding, index = gumbel_codebook(logits, codebook, tau=tau, gumbel=g, hard=hard, impl=impl)
    embedding.backward(upstream)
    exact = formula(logits, codebook, g, upstream, tau, hard, np.float64)
    rough = formula(logits, codebook, g, upstream, tau, hard, np.float32)
    assert_as_good(embedding, exact[0], rough[0])
    assert index.dtype == torch.int64
    np.testing.assert_array_equal(index.numpy(), rough[1])
    terms = (upstream.abs() @ codebook.detach().abs().T).numpy()  # of D, which 1 / tau magnifies
    y = softmax((logits.detach() + g).double().numpy() / tau)
    assert_as_good(logits.grad, exact[2], rough[2], unit=UNIT * (y * terms).max(initial=0) / tau)
    assert_as_good(codebook.grad, exact[3], rough[3])


SIZES = [  # P, R, K, d: on both sides of the kernels' chunks of 768 codes, panels of 16 columns and blocks of 32 rows
    (1, 1, 1, 17), (2, 17, 3, 1030), (1, 33, 15, 7), (1, 1, 767, 1), (2, 16, 768, 7), (1, 17, 769, 16),
    (3, 15, 868, 17), (1, 33, 1537, 16), (1, 1, 1537, 1030), (2, 1, 5000, 7), (1, 32, 64, 33),
]  # fmt: skip
INTERPRETED_SIZES = [(1, 1, 1, 17), (1, 17, 769, 16), (2, 1, 5000, 7)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("tau", "hard", "with_gumbel"), [(1, False, False), (0.5, True, False), (2, False, True)])
def test_odd_sizes(impl: str, sizes: tuple[int, int, int, int], tau: float, hard: bool, with_gumbel: bool) -> None:
    problems, rows, codes, channels = sizes
    if sizes not in INTERPRETED_SIZES:
        skip_in_interpreter(impl)
    logits = random(problems, rows, codes).mul(3).requires_grad_()
    codebook, upstream = random(codes, channels, seed=1).requires_grad_(), random(problems, rows, channels, seed=2)
    ids = torch.arange(problems) * 7 + 1
    gumbel = random(problems, rows, codes, seed=3) if with_gumbel else None
    options = {"tau": tau, "seed": 5, "draw": 3, "item_ids": ids, "gumbel": gumbel, "hard": hard}
    embedding, index = gumbel_codebook(logits, codebook, impl=impl, **options)
    embedding.backward(upstream)
    g = gumbel_noise(5, ids, 3, rows, codes) if gumbel is None else gumbel.double().numpy()
    exact = formula(logits, codebook, g, upstream, tau, hard, np.float64)
    rough = formula(logits, codebook, g, upstream, tau, hard, np.float32)
    assert_largest(index, logits.detach().double().numpy() + g)
    if hard:
        assert torch.equal(embedding, codebook[index])
    else:
        assert_as_good(embedding, exact[0], rough[0])
    assert_as_good(logits.grad, exact[2], rough[2])
    if not hard or np.array_equal(index.numpy(), exact[1]):  # else a tie went to another row of the codebook
        assert_as_good(codebook.grad, exact[3], rough[3])


def test_sums_over_many_codes_lose_no_precision(impl: str) -> None:
    logits, codebook, g = random(1, 4, 16384), random(16384, 256, seed=1), random(1, 4, 16384, seed=2)
    embedding, _ = gumbel_codebook(logits, codebook, tau=0.5, gumbel=g, hard=False, impl=impl)
    exact = formula(logits, codebook, g, embedding, 0.5, False, np.float64)[0]
    rough = formula(logits, codebook, g, embedding, 0.5, False, np.float32)[0]
    scale = formula(logits, codebook.abs(), g, embedding, 0.5, False, np.float64)[0].max()
    assert np.abs(embedding.double().numpy() - exact).max() <= 2 * np.abs(rough - exact).max() + 2 * EPS * scale


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("codebook_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("hard", [False, True])
def test_precisions(dtype: torch.dtype, codebook_dtype: torch.dtype, hard: bool) -> None:
    logits = random(2, 3, 17, dtype=dtype).requires_grad_()
    codebook = random(17, 4, seed=1, dtype=codebook_dtype).requires_grad_()
    g, upstream = random(2, 3, 17, seed=2), random(2, 3, 4, seed=3, dtype=codebook_dtype)
    embedding, index = gumbel_codebook(logits, codebook, tau=0.7, gumbel=g, hard=hard)
    embedding.backward(upstream)
    expected, best, grad_logits, grad_codebook = formula(logits, codebook, g, upstream, 0.7, hard, np.float64)
    np.testing.assert_array_equal(index.numpy(), best)
    assert logits.grad is not None
    assert codebook.grad is not None
    narrow = dtype if dtype == torch.float64 else torch.float32  # of the scores, whatever the codebook
    for out, exact, precision in ((embedding, expected, codebook_dtype), (logits.grad, grad_logits, dtype),
                                  (codebook.grad, grad_codebook, codebook_dtype)):  # fmt: skip
        assert out.dtype == precision
        allowed = 0.51 * torch.finfo(precision).eps * np.abs(exact) + 32 * torch.finfo(narrow).eps * np.abs(exact).max()
        assert (np.abs(out.detach().double().numpy() - exact) <= allowed).all()


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (1, 2, 2)])
def test_hard_is_exactly_the_selected_codebook_row(impl: str, lead: tuple[int, ...]) -> None:
    logits, codebook, g = random(*lead, 4, 11), random(11, 3, seed=1), random(*lead, 4, 11, seed=2)
    embedding, index = gumbel_codebook(logits, codebook, gumbel=g, tau=0.3, impl=impl)
    best = (logits + g).numpy().argmax(axis=-1)
    np.testing.assert_array_equal(index.numpy(), best)
    np.testing.assert_array_equal(embedding.numpy(), codebook.numpy()[best])


@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
def test_straight_through_gradient_is_that_of_the_published_expression(tau: float) -> None:
    logits = random(2, 3, 13, dtype=torch.float64).requires_grad_()
    codebook = random(13, 5, seed=1, dtype=torch.float64).requires_grad_()
    g, weight = random(2, 3, 13, seed=2, dtype=torch.float64), random(2, 3, 5, seed=3, dtype=torch.float64)
    y = ((logits + g) / tau).softmax(dim=-1)
    y_hard = torch.nn.functional.one_hot(y.argmax(dim=-1), 13).to(y)
    published = (y_hard - y.detach() + y) @ codebook
    expected = torch.autograd.grad((published.square() * weight).sum(), (logits, codebook))
    embedding, _ = gumbel_codebook(logits, codebook, tau=tau, gumbel=g)
    torch.testing.assert_close(embedding, published)
    got = torch.autograd.grad((embedding.square() * weight).sum(), (logits, codebook))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
def test_soft_gradcheck(needed: tuple[bool, bool]) -> None:
    logits, codebook = random(2, 2, 4, dtype=torch.float64), random(4, 3, seed=1, dtype=torch.float64)
    g = random(2, 2, 4, seed=2, dtype=torch.float64)

    def operator(logits: Tensor, codebook: Tensor) -> Tensor:
        return gumbel_codebook(logits, codebook, tau=0.6, gumbel=g, hard=False)[0]

    assert torch.autograd.gradcheck(operator, (logits.requires_grad_(needed[0]), codebook.requires_grad_(needed[1])))


@pytest.mark.parametrize("hard", [False, True])
def test_a_second_derivative_is_refused(hard: bool) -> None:
    logits = random(2, 3, 5).requires_grad_()
    embedding, index = gumbel_codebook(logits, random(5, 4, seed=1), hard=hard)
    assert not index.requires_grad
    (first,) = torch.autograd.grad(embedding.square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="gumbel_codebook_backward"):
        torch.autograd.grad((first + logits).sum(), logits)


@pytest.mark.parametrize("hard", [False, True])
def test_rows_and_problems_may_be_permuted(impl: str, hard: bool) -> None:
    logits, codebook, g = random(4, 5, 7).requires_grad_(), random(7, 3, seed=1), random(4, 5, 7, seed=2)
    upstream = random(4, 5, 3, seed=3)
    embedding, index = gumbel_codebook(logits, codebook, gumbel=g, hard=hard, impl=impl)
    (grad,) = torch.autograd.grad(embedding, logits, upstream)
    problems, rows = torch.tensor([2, 0, 3, 1])[:, None], torch.tensor([4, 1, 0, 3, 2])
    moved = logits.detach()[problems, rows].requires_grad_()
    moved_embedding, moved_index = gumbel_codebook(moved, codebook, gumbel=g[problems, rows], hard=hard, impl=impl)
    (moved_grad,) = torch.autograd.grad(moved_embedding, moved, upstream[problems, rows])
    assert torch.equal(moved_index, index[problems, rows])
    torch.testing.assert_close(moved_embedding, embedding[problems, rows])
    torch.testing.assert_close(moved_grad, grad[problems, rows])


def test_a_problem_does_not_depend_on_its_grouping(impl: str) -> None:
    rows = few(impl, 4, 2)
    logits, codebook, ids = random(6, rows, 9), random(9, 3, seed=1), torch.tensor([3, 2**32 - 1, 0, 8, 8, 1])
    together, index = gumbel_codebook(logits, codebook, seed=5, draw=2, item_ids=ids, impl=impl)
    for part in ([0], [4, 2], [5, 1, 0]):
        embedding, chosen = gumbel_codebook(logits[part], codebook, seed=5, draw=2, item_ids=ids[part], impl=impl)
        assert torch.equal(chosen, index[part])
        assert torch.equal(embedding, together[part])
    alone, chosen = gumbel_codebook(logits[3], codebook, seed=5, draw=2, item_ids=ids[3], impl=impl)
    assert torch.equal(chosen, index[3])
    assert torch.equal(alone, together[3])
    two, ids = logits.view(2, 3, rows, 9), ids.view(2, 3)
    _, grouped = gumbel_codebook(two, codebook, seed=5, draw=2, item_ids=ids, impl=impl)
    assert torch.equal(grouped.view(6, rows), index)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.uint16, torch.uint32, torch.int64])
def test_ids_default_to_0_1_2_in_any_integer_type(dtype: torch.dtype) -> None:
    logits, codebook = torch.zeros(2, 3, 40, 9), random(9, 2)
    ids = torch.arange(6).view(2, 3).to(dtype)
    assert torch.equal(gumbel_codebook(logits, codebook)[1], gumbel_codebook(logits, codebook, item_ids=ids)[1])


def test_equal_ids_select_alike_and_seeds_draws_and_items_do_not(impl: str) -> None:
    skip_in_interpreter(impl)
    logits, codebook = torch.zeros(3, 50, 64), random(64, 2)
    _, index = gumbel_codebook(logits, codebook, item_ids=torch.tensor([4, 5, 4]), impl=impl)
    assert torch.equal(index[0], index[2])
    changes = ({"seed": 1}, {"draw": 1}, {"draw": 2**32 - 1}, {"seed": 2**63 - 1})
    item = torch.tensor([4])
    others = [gumbel_codebook(logits[:1], codebook, item_ids=item, impl=impl, **change)[1][0] for change in changes]
    variants = [index[0], index[1], *others]
    for first in range(len(variants)):
        for second in range(first):
            assert (variants[first] == variants[second]).sum() < 8  # one in 64 of 50 by chance


@pytest.mark.parametrize("axis", ["rows", "draws", "items"])
def test_selections_follow_the_softmax_of_the_logits(impl: str, axis: str) -> None:
    skip_in_interpreter(impl)
    skip_on_stand_in(impl)
    logits, codebook = torch.tensor([0.0, 1.0, -1.0, 2.5, 0.3, -3.0]), torch.zeros(6, 1)
    if axis == "rows":
        indices = gumbel_codebook(logits.expand(20000, 6), codebook, seed=1, impl=impl)[1]
    elif axis == "items":
        indices = gumbel_codebook(logits.expand(20000, 1, 6), codebook, seed=2, impl=impl)[1]
    else:
        draws = [
            gumbel_codebook(logits.expand(100, 6), codebook, seed=3, draw=draw, impl=impl)[1] for draw in range(50)
        ]
        indices = torch.cat(draws)
    counts = np.bincount(indices.flatten().numpy(), minlength=6)
    expected = softmax(logits.double().numpy()) * counts.sum()
    assert np.square(counts - expected).dot(1 / expected) < 20.5  # chi-square, 5 degrees of freedom: p = 0.001


@pytest.mark.parametrize("hard", [False, True])
def test_logits_of_300(hard: bool) -> None:
    logits = (random(2, 3, 9).sign() * 300).requires_grad_()
    codebook, g, upstream = random(9, 4, seed=1), random(2, 3, 9, seed=2), random(2, 3, 4, seed=3)
    for tau in (0.01, 1.0, 100.0):
        embedding, index = gumbel_codebook(logits, codebook, tau=tau, gumbel=g, hard=hard)
        (grad,) = torch.autograd.grad(embedding, logits, upstream)
        exact = formula(logits, codebook, g, upstream, tau, hard, np.float64)
        np.testing.assert_array_equal(index.numpy(), exact[1])
        rough = formula(logits, codebook, g, upstream, tau, hard, np.float32)
        assert_as_good(embedding, exact[0], rough[0])
        assert_as_good(grad, exact[2], rough[2])


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("tau", [1e-320, 1e-46, 1e-39, 0.01, 1.0, 50.0, 3.4e38, 3.5e38, 1e39, 1e308])
def test_banned_tokens_are_never_selected_and_get_no_gradient(impl: str, hard: bool, tau: float) -> None:
    if (tau, hard) not in ((1e-46, True), (0.01, False), (1e39, False)):
        skip_in_interpreter(impl)
    free, rows = torch.tensor([1, 4, 5, 8]), few(impl, 300, 10)
    logits = torch.full((2, rows, 10), -torch.inf)
    logits[..., free] = random(2, rows, 4)
    logits.requires_grad_()
    codebook, upstream = random(10, 3, seed=1), random(2, rows, 3, seed=2)
    embedding, index = gumbel_codebook(logits, codebook, tau=tau, seed=6, hard=hard, impl=impl)
    assert set(index.unique().tolist()) == set(free.tolist())
    assert bool(embedding.isfinite().all())
    (grad,) = torch.autograd.grad(embedding, logits, upstream)
    banned = torch.ones(10, dtype=torch.bool).index_fill(0, free, False)
    assert bool(grad.isfinite().all())
    assert not grad[..., banned].any()
    assert bool(grad[..., free].any()) or not 1e-30 < tau < 1e30
    later = logits.detach().clone()
    moments = torch.zeros_like(later), torch.zeros_like(later)
    for pair in (None, moments):
        gumbel_codebook_step(later, codebook, upstream, lr=0.1, tau=tau, seed=6, moments=pair, impl=impl)
    assert torch.equal(later == -torch.inf, banned.expand_as(later))
    assert not any(bool(tensor.isnan().any()) for tensor in (later, *moments))


@pytest.mark.parametrize("tau", [1.0, 0.5])
@pytest.mark.parametrize("banned", [(0, 800), (768, 1536), (768, 2000), (1, 1999)])
def test_chunks_of_codes_that_are_banned_as_a_whole(impl: str, banned: tuple[int, int], tau: float) -> None:
    """The native kernel softens 768 codes at a time, each relative to their own largest score."""
    logits, codebook, upstream = random(2, 3, 2000), random(2000, 5, seed=1), random(2, 3, 5, seed=2)
    logits[..., slice(*banned)] = -torch.inf
    g = random(2, 3, 2000, seed=3)
    for gumbel in (g, None):
        noise = g if gumbel is not None else gumbel_noise(4, torch.arange(2), 0, 3, 2000)
        exact, rough = (
            formula(logits, codebook, noise, upstream, tau, False, kind) for kind in (np.float64, np.float32)
        )
        embedding, index, grad = embedding_index_and_gradient(
            logits, codebook, upstream, tau=tau, seed=4, gumbel=gumbel, hard=False, impl=impl
        )
        assert_as_good(embedding, exact[0], rough[0])
        assert_as_good(grad, exact[2], rough[2])
        assert not bool((logits.gather(2, index[..., None]) == -torch.inf).any())


def test_noise_given_has_the_gradient_of_the_logits(impl: str) -> None:
    logits, codebook, upstream = random(2, 3, 9), random(9, 4, seed=1), random(2, 3, 4, seed=2)
    for hard in (False, True):
        noise = random(2, 3, 9, seed=3).requires_grad_()
        embedding, _ = gumbel_codebook(logits, codebook, gumbel=noise, tau=0.7, hard=hard, impl=impl)
        (grad,) = torch.autograd.grad(embedding, noise, upstream)
        exact, rough = (
            formula(logits, codebook, noise, upstream, 0.7, hard, kind) for kind in (np.float64, np.float32)
        )
        assert_as_good(grad, exact[2], rough[2])


def test_equal_scores_select_the_lowest_index(impl: str) -> None:
    _, index = gumbel_codebook(torch.zeros(2, 3, 7), random(7, 2), gumbel=torch.zeros(2, 3, 7), impl=impl)
    assert not index.any()
    many = torch.zeros(1, 17, 5000)
    many[..., [4000, 1600, 4999]] = 1
    assert gumbel_codebook(many, random(5000, 2), gumbel=torch.zeros_like(many), impl=impl)[1].unique().item() == 1600
    g = torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert gumbel_codebook(torch.zeros(1, 4), random(4, 2), gumbel=g[None], impl=impl)[1].item() == 1


Results = tuple[Tensor, Tensor, Tensor]


def embedding_index_and_gradient(logits: Tensor, codebook: Tensor, upstream: Tensor, **options: object) -> Results:
    logits = logits.clone().requires_grad_()
    embedding, index = gumbel_codebook(logits, codebook, **options)
    embedding.backward(upstream)
    assert logits.grad is not None
    return embedding.detach(), index, logits.grad


@pytest.mark.parametrize("codes", [9, 1001])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("tau", [1.0, 0.5])
@pytest.mark.parametrize("with_gumbel", [False, True])
def test_a_logit_of_nan_or_infinity_is_selected_and_spoils_its_row_alone(
    impl: str, codes: int, value: float, tau: float, with_gumbel: bool
) -> None:
    if codes != 9 or tau == 1:
        skip_in_interpreter(impl)
    rows = few(impl, 17, 6)
    logits, codebook, upstream = random(2, rows, codes), random(codes, 3, seed=1), random(2, rows, 3, seed=2)
    options = {"tau": tau, "gumbel": random(2, rows, codes, seed=3) if with_gumbel else None, "impl": impl}
    spoiled = logits.clone()
    spoiled[1, 4, codes // 2] = spoiled[1, 4, codes - 1] = value
    others = torch.ones(2, rows, dtype=torch.bool)
    others[1, 4] = False
    for hard in (False, True):
        clean = embedding_index_and_gradient(logits, codebook, upstream, hard=hard, **options)
        got = embedding_index_and_gradient(spoiled, codebook, upstream, hard=hard, **options)
        assert all(torch.equal(a[others], b[others]) for a, b in zip(got, clean, strict=True))
        embedding, index, gradient = (out[1, 4] for out in got)
        assert index.item() == codes // 2  # the first of them
        assert torch.equal(embedding, codebook[codes // 2]) if hard else bool(embedding.isnan().all())
        assert bool(gradient.isnan().all())


@pytest.mark.parametrize("codes", [9, 1001])
def test_a_row_of_banned_tokens_alone_selects_the_first_and_has_no_softmax(impl: str, codes: int) -> None:
    logits, codebook, upstream = random(1, 18, codes), random(codes, 3, seed=1), random(1, 18, 3, seed=2)
    logits[0, 1] = -torch.inf
    for tau in (1.0, 0.5):
        embedding, index, gradient = embedding_index_and_gradient(
            logits, codebook, upstream, tau=tau, hard=False, impl=impl
        )
        assert index[0, 1].item() == 0
        assert bool(embedding[0, 1].isnan().all())
        assert bool(gradient[0, 1].isnan().all())
        assert bool(torch.cat((embedding[0, :1], embedding[0, 2:])).isfinite().all())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("codes", [9, 101, 869])
def test_an_upstream_of_nan_or_infinity_spoils_its_row_alone(impl: str, codes: int, value: float) -> None:
    if codes != 101 or value == -math.inf:
        skip_in_interpreter(impl)
    rows = few(impl, 40, 9)
    logits, codebook, upstream = random(1, rows, codes), random(codes, 3, seed=1), random(1, rows, 3, seed=2)
    clean = embedding_index_and_gradient(logits, codebook, upstream, impl=impl)
    for row in (0, few(impl, 17, 4), rows - 1):
        spoiled = upstream.clone()
        spoiled[0, row, 1] = value
        _, _, gradient = embedding_index_and_gradient(logits, codebook, spoiled, impl=impl)
        assert gradient.isnan().any(dim=-1)[0].nonzero().flatten().tolist() == [row]
        gradient[0, row] = clean[2][0, row]
        torch.testing.assert_close(gradient, clean[2])


@pytest.mark.parametrize("tau", [1.0, 0.7])
def test_large_logits(impl: str, tau: float) -> None:
    logits, codebook, upstream = random(2, 17, 900) * 1e4, random(900, 5, seed=1), random(2, 17, 5, seed=2)
    logits[0, 3] = 1e4  # all equal: the noise alone decides
    logits[1, 5] = -1e4
    logits[1, 6, 7], logits[1, 6, 8] = 3.4e38, -3.4e38
    embedding, index, gradient = embedding_index_and_gradient(
        logits, codebook, upstream, tau=tau, seed=3, hard=False, impl=impl
    )
    ids = torch.arange(2)
    g = gumbel_noise(3, ids, 0, 17, 900)
    exact = formula(logits, codebook, g, upstream, tau, False, np.float64)
    rough = formula(logits, codebook, g, upstream, tau, False, np.float32)
    assert_as_good(embedding, exact[0], rough[0])
    assert_as_good(gradient, exact[2], rough[2])
    scores = logits.double().numpy() + g
    assert_largest(index, scores)


@pytest.mark.parametrize("hard", [False, True])
def test_a_single_code_is_always_selected(impl: str, hard: bool) -> None:
    logits, codebook = random(2, 3, 1).requires_grad_(), random(1, 4, seed=1).requires_grad_()
    embedding, index = gumbel_codebook(logits, codebook, hard=hard, impl=impl)
    assert torch.equal(embedding, codebook.detach().expand(2, 3, 4))
    assert not index.any()
    embedding.sum().backward()
    assert logits.grad is not None
    assert codebook.grad is not None
    assert not logits.grad.any()
    assert torch.equal(codebook.grad, torch.full((1, 4), 6.0))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (0, 3, 5), (0, 0, 5), (3, 0, 2, 5), (3, 2, 0, 5)])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("with_gumbel", [False, True])
def test_empty(impl: str, shape: tuple[int, ...], hard: bool, with_gumbel: bool) -> None:
    logits, codebook = torch.zeros(shape, requires_grad=True), random(5, 4).requires_grad_()
    gumbel = torch.zeros(shape) if with_gumbel else None
    embedding, index = gumbel_codebook(logits, codebook, hard=hard, gumbel=gumbel, impl=impl)
    assert embedding.shape == (*shape[:-1], 4)
    assert index.shape == shape[:-1]
    embedding.sum().backward()
    assert logits.grad is not None
    assert codebook.grad is not None
    assert logits.grad.shape == shape
    assert torch.equal(codebook.grad, torch.zeros(5, 4))


@pytest.mark.parametrize("hard", [False, True])
def test_small_and_large_tau(impl: str, hard: bool) -> None:
    logits, codebook, g = random(2, 3, 9).mul(50).requires_grad_(), random(9, 4, seed=1), random(2, 3, 9, seed=2)
    best = (logits.detach() + g).argmax(dim=-1)
    for tau in (1e-4, 1e-30, 1e-37, 1e-40):
        embedding, index = gumbel_codebook(logits, codebook, tau=tau, gumbel=g, hard=hard, impl=impl)
        assert torch.equal(index, best)
        assert torch.equal(embedding, codebook[best])
        (grad,) = torch.autograd.grad(embedding.sum(), logits)
        assert not grad.any()
    for tau in (1e30, 1e38, 1e300):
        embedding, index = gumbel_codebook(logits, codebook, tau=tau, gumbel=g, hard=hard, impl=impl)
        assert torch.equal(index, best)
        torch.testing.assert_close(embedding, codebook[best] if hard else codebook.mean(dim=0).expand(2, 3, 4))
        (grad,) = torch.autograd.grad(embedding.sum(), logits)
        assert bool((grad.abs() < 1e-29).all())


@pytest.mark.parametrize("hard", [False, True])
def test_strided_views(impl: str, hard: bool) -> None:
    logits = random(9, 3, 2).transpose(0, 2).requires_grad_()
    codebook, g = random(4, 18, seed=1).T[::2].requires_grad_(), random(2, 1, 9, seed=2).expand(2, 3, 9)
    upstream = random(1, 1, 4, seed=3).expand(2, 3, 4)
    embedding, index = gumbel_codebook(logits, codebook, gumbel=g, hard=hard, impl=impl)
    grads = torch.autograd.grad(embedding, (logits, codebook), upstream)
    exact = formula(logits, codebook, g, upstream, 1, hard, np.float64)
    rough = formula(logits, codebook, g, upstream, 1, hard, np.float32)
    np.testing.assert_array_equal(index.numpy(), exact[1])
    for out, wanted, near in zip((embedding, *grads), (exact[0], *exact[2:]), (rough[0], *rough[2:]), strict=True):
        assert_as_good(out, wanted, near)
    expanded = random(1, 3, 9).expand(2, 3, 9)
    drawn = gumbel_codebook(expanded, codebook, seed=4, hard=hard, impl=impl)
    copied = gumbel_codebook(expanded.contiguous(), codebook, seed=4, hard=hard, impl=impl)
    for got, wanted in zip(drawn, copied, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("sizes", [(2, 33, 900, 17), (1, 300, 4, 64)])
def test_native_gives_the_same_bits_for_any_threads_and_again(
    level: str, hard: bool, sizes: tuple[int, int, int, int]
) -> None:
    problems, rows, codes, channels = sizes
    logits, codebook = random(problems, rows, codes).requires_grad_(), random(codes, channels, seed=1).requires_grad_()
    upstream = random(problems, rows, channels, seed=2)

    def compute() -> list[Tensor]:
        embedding, index = gumbel_codebook(logits, codebook, seed=8, hard=hard, impl="native")
        return [embedding, index, *torch.autograd.grad(embedding, (logits, codebook), upstream)]

    assert_same_for_any_threads(compute)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_native_rows_and_problems_have_the_same_bits_in_any_group(level: str, hard: bool, tau: float) -> None:
    logits, codebook, upstream = random(3, 35, 800), random(800, 19, seed=1), random(3, 35, 19, seed=2)
    ids = torch.tensor([5, 0, 5])
    options = {"tau": tau, "hard": hard, "seed": 2, "draw": 9, "impl": "native"}
    together = embedding_index_and_gradient(logits, codebook, upstream, item_ids=ids, **options)
    for problem in range(3):
        alone = embedding_index_and_gradient(
            logits[problem], codebook, upstream[problem], item_ids=ids[problem], **options
        )
        assert same_bits(alone, [out[problem] for out in together])
    for rows in (1, 2, 16, 17, 34):  # the first rows keep their numbers in the stream
        fewer = embedding_index_and_gradient(logits[:, :rows], codebook, upstream[:, :rows], item_ids=ids, **options)
        assert same_bits(fewer, [out[:, :rows] for out in together])


@pytest.mark.parametrize("name", ["logits", "codebook", "gumbel"])
def test_lazily_negated_views(impl: str, name: str) -> None:
    tensors = {"logits": random(2, 3, 9), "codebook": random(9, 4, seed=1), "gumbel": random(2, 3, 9, seed=2)}
    lazy = gumbel_codebook(**{**tensors, name: torch._neg_view(tensors[name])}, hard=False, impl=impl)
    assert same_bits(lazy, gumbel_codebook(**{**tensors, name: -tensors[name]}, hard=False, impl=impl))


@pytest.mark.parametrize("hard", [False, True])
def test_repeats_bit_for_bit(hard: bool) -> None:
    logits, codebook = random(256, 4).requires_grad_(), random(4, 64, seed=1).requires_grad_()
    upstream = random(256, 64, seed=2)
    results = []
    for _ in range(5):
        embedding, index = gumbel_codebook(logits, codebook, seed=8, hard=hard, impl="reference")
        results.append((embedding, index, *torch.autograd.grad(embedding, (logits, codebook), upstream)))
    assert all(same_bits(results[0], other) for other in results[1:])


def test_the_backward_draws_the_forwards_noise() -> None:
    logits = random(2, 3, 6, dtype=torch.float64).requires_grad_()
    codebook = random(6, 4, seed=1, dtype=torch.float64)
    ids = torch.tensor([2**32 - 1, 6])
    assert torch.autograd.gradcheck(
        lambda logits: gumbel_codebook(logits, codebook, seed=2**40, draw=7, item_ids=ids, hard=False)[0], logits
    )


LOGITS, CODEBOOK = torch.zeros(2, 3, 5), torch.zeros(5, 4)


@pytest.mark.parametrize(
    ("changed", "error", "named"),
    [
        ({"logits": torch.zeros(5)}, ValueError, "logits"),
        ({"logits": torch.zeros(2, 3, 5, dtype=torch.int64)}, TypeError, "logits"),
        ({"logits": torch.zeros(2, 3, 6)}, ValueError, "logits"),
        ({"logits": torch.zeros(2, 3, 0), "codebook": torch.zeros(0, 4)}, ValueError, "logits"),
        ({"codebook": torch.zeros(5)}, ValueError, "codebook"),
        ({"codebook": torch.zeros(1, 5, 4)}, ValueError, "codebook"),
        ({"codebook": torch.zeros(5, 4, dtype=torch.int32)}, TypeError, "codebook"),
        ({"tau": 0.0}, ValueError, "tau"),
        ({"tau": -1.0}, ValueError, "tau"),
        ({"tau": math.nan}, ValueError, "tau"),
        ({"tau": math.inf}, ValueError, "tau"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**63}, ValueError, "seed"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"seed": False}, TypeError, "seed"),
        ({"draw": -1}, ValueError, "draw"),
        ({"draw": 2**32}, ValueError, "draw"),
        ({"draw": 1.0}, TypeError, "draw"),
        ({"draw": True}, TypeError, "draw"),
        ({"item_ids": torch.tensor([0, -1])}, ValueError, "item_ids"),
        ({"item_ids": torch.tensor([0, 2**32])}, ValueError, "item_ids"),
        ({"item_ids": torch.tensor([0])}, ValueError, "item_ids"),
        ({"item_ids": torch.tensor([[0, 1]])}, ValueError, "item_ids"),
        ({"item_ids": torch.tensor([0.0, 1.0])}, TypeError, "item_ids"),
        ({"item_ids": torch.tensor([True, False])}, TypeError, "item_ids"),
        ({"gumbel": torch.zeros(3, 5)}, ValueError, "gumbel"),
        ({"gumbel": torch.zeros(2, 3, 5, dtype=torch.int8)}, TypeError, "gumbel"),
        ({"codebook": torch.zeros(5, 4, device="meta")}, ValueError, "codebook"),
        ({"gumbel": torch.zeros(2, 3, 5, device="meta")}, ValueError, "gumbel"),
        ({"item_ids": torch.arange(2, device="meta")}, ValueError, "item_ids"),
        ({"schedule": torch.zeros(4)}, ValueError, "schedule"),
        ({"schedule": [1.0, 0.0, 0.1, 1.0]}, TypeError, "schedule"),
        ({"schedule": torch.tensor([0.0, 0.0, 0.1, 1.0]).double()}, ValueError, "schedule"),
        ({"schedule": torch.tensor([1.0, 2.0**32, 0.1, 1.0]).double()}, ValueError, "schedule"),
        ({"schedule": torch.tensor([1.0, 0.0, -0.1, 1.0]).double()}, ValueError, "schedule"),
        ({"schedule": torch.tensor([1.0, 0.0, 0.1, 0.0]).double()}, ValueError, "schedule"),
        ({"schedule": torch.tensor([1.0, math.nan, 0.1, 1.0]).double()}, ValueError, "schedule"),
        ({"schedule": torch.zeros(3, dtype=torch.float64)}, ValueError, "schedule"),
        ({"impl": "fast"}, ValueError, "impl"),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, object], error: type[Exception], named: str) -> None:
    arguments = {"logits": LOGITS, "codebook": CODEBOOK, **changed}
    with pytest.raises(error, match=rf"\b{named}\b.*expected"):
        gumbel_codebook(**arguments)


SELECTION = {"tau": 0.7, "seed": 3, "draw": 1, "item_ids": None, "gumbel": None, "schedule": None, "impl": "auto"}


@pytest.mark.parametrize(("hard", "with_gumbel"), [(True, False), (False, True)])
def test_opcheck(hard: bool, with_gumbel: bool) -> None:
    logits, codebook = random(2, 3, 5).requires_grad_(), random(5, 4, seed=1).requires_grad_()
    item_ids, gumbel = (None, random(2, 3, 5, seed=2)) if with_gumbel else (torch.tensor([0, 4]), None)
    selection = {**SELECTION, "logits": logits, "codebook": codebook, "item_ids": item_ids, "gumbel": gumbel}
    torch.library.opcheck(OPS.gumbel_codebook.default, (), {**selection, "hard": hard, "with_row_stats": True})


@pytest.mark.parametrize("codebook_needed", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_the_fakes_know_shapes_and_strides(hard: bool, codebook_needed: bool) -> None:
    logits, codebook = random(5, 3, 2).transpose(0, 2), random(4, 5, seed=1).T
    upstream, index = random(3, 2, 4, seed=3).transpose(0, 1), torch.tensor([[0, 4, 1], [4, 4, 2]])
    forward = {**SELECTION, "logits": logits, "codebook": codebook, "hard": hard}
    backward = {**forward, "upstream": upstream, "index": index, "row_stats": [], "codebook_needed": codebook_needed}
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(OPS.gumbel_codebook.default, (), {**forward, "with_row_stats": True}, test_utils=checks)
    torch.library.opcheck(OPS.gumbel_codebook_backward.default, (), backward, test_utils=checks)


def test_opcheck_of_the_backward() -> None:
    arguments = {
        **SELECTION,
        "upstream": random(2, 3, 4),
        "logits": random(2, 3, 5),
        "codebook": random(5, 4),
        "item_ids": torch.tensor([0, 4]),
        "hard": True,
        "index": torch.zeros(2, 3).long(),
        "row_stats": [],
        "codebook_needed": True,
    }
    torch.library.opcheck(OPS.gumbel_codebook_backward.default, (), arguments)


def test_meta() -> None:
    embedding, index = gumbel_codebook(LOGITS.to("meta"), CODEBOOK.to("meta"))
    assert (embedding.shape, index.shape) == ((2, 3, 4), (2, 3))


@pytest.mark.parametrize("hard", [False, True])
def test_compile(hard: bool) -> None:
    compiled = torch.compile(gumbel_codebook, fullgraph=True, backend="aot_eager")
    logits, codebook = random(2, 3, 5).requires_grad_(), random(5, 4, seed=1)
    upstream = random(2, 3, 4, seed=3)
    for draw in range(3):
        g = random(2, 3, 5, seed=draw)
        embedding, index = compiled(logits, codebook, tau=0.5, gumbel=g, hard=hard)
        exact = formula(logits, codebook, g, upstream, 0.5, hard, np.float64)
        np.testing.assert_array_equal(index.numpy(), exact[1])
        (grad,) = torch.autograd.grad(embedding, logits, upstream)
        np.testing.assert_allclose(grad.numpy(), exact[2], atol=2e-6)
        _, drawn = compiled(logits, codebook, tau=0.5, seed=9, draw=draw, hard=hard)
        assert torch.equal(drawn, gumbel_codebook(logits, codebook, seed=9, draw=draw)[1])
