"""gumbel_codebook against eq. 7 in numpy and in plain autograd, and the promises of its stream.

test_philox.py checks the Gumbel noise itself.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cortex_fast.ops import gumbel_codebook

OPS = torch.ops.cortex_fast
Arrays = tuple[np.ndarray, ...]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def formula(
    logits: Tensor, codebook: Tensor, g: Tensor, upstream: Tensor, tau: float, hard: bool, dtype: type
) -> Arrays:
    """Embedding, index, and the gradients of logits and codebook, all in `dtype`; y's Jacobian written out."""
    P, C, G, dE = (tensor.detach().double().numpy().astype(dtype) for tensor in (logits, codebook, g, upstream))
    one = np.eye(len(C), dtype=dtype)
    index = (P + G).argmax(axis=-1)
    y = softmax((P + G) / dtype(tau))
    chosen = one[index] if hard else y
    jacobian = y[..., None] * (one - y[..., None, :]) / dtype(tau)
    grad_logits = np.einsum("...ij,...j->...i", jacobian, dE @ C.T)
    lead = tuple(range(P.ndim - 1))
    return chosen @ C, index, grad_logits, np.tensordot(chosen, dE, axes=(lead, lead))


def assert_as_good(out: Tensor | None, exact: np.ndarray, rough: np.ndarray) -> None:
    """|out - ref64| <= 2 |ref32 - ref64| + tiny, over the whole tensor."""
    assert out is not None
    assert out.shape == exact.shape
    if exact.size:
        allowed = 2 * np.abs(rough - exact).max() + 2e-6 * max(1, np.abs(exact).max())
        assert np.abs(out.detach().double().numpy() - exact).max() <= allowed


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
    lead: list[int], rows: int, codes: int, channels: int, tau: float, hard: bool
) -> None:
    logits, codebook = random(*lead, rows, codes).requires_grad_(), random(codes, channels, seed=1).requires_grad_()
    g, upstream = random(*lead, rows, codes, seed=2), random(*lead, rows, channels, seed=3)
    embedding, index = gumbel_codebook(logits, codebook, tau=tau, gumbel=g, hard=hard)
    embedding.backward(upstream)
    exact = formula(logits, codebook, g, upstream, tau, hard, np.float64)
    rough = formula(logits, codebook, g, upstream, tau, hard, np.float32)
    assert_as_good(embedding, exact[0], rough[0])
    assert index.dtype == torch.int64
    np.testing.assert_array_equal(index.numpy(), rough[1])
    assert_as_good(logits.grad, exact[2], rough[2])
    assert_as_good(codebook.grad, exact[3], rough[3])


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
    for out, exact, kept in ((embedding, expected, codebook_dtype), (logits.grad, grad_logits, dtype),
                             (codebook.grad, grad_codebook, codebook_dtype)):  # fmt: skip
        assert out.dtype == kept
        allowed = 0.51 * torch.finfo(kept).eps * np.abs(exact) + 32 * torch.finfo(narrow).eps * np.abs(exact).max()
        assert (np.abs(out.detach().double().numpy() - exact) <= allowed).all()


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (1, 2, 2)])
def test_hard_is_exactly_the_selected_codebook_row(lead: tuple[int, ...]) -> None:
    logits, codebook, g = random(*lead, 4, 11), random(11, 3, seed=1), random(*lead, 4, 11, seed=2)
    embedding, index = gumbel_codebook(logits, codebook, gumbel=g, tau=0.3)
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
def test_rows_and_problems_may_be_permuted(hard: bool) -> None:
    logits, codebook, g = random(4, 5, 7).requires_grad_(), random(7, 3, seed=1), random(4, 5, 7, seed=2)
    upstream = random(4, 5, 3, seed=3)
    embedding, index = gumbel_codebook(logits, codebook, gumbel=g, hard=hard)
    (grad,) = torch.autograd.grad(embedding, logits, upstream)
    problems, rows = torch.tensor([2, 0, 3, 1])[:, None], torch.tensor([4, 1, 0, 3, 2])
    moved = logits.detach()[problems, rows].requires_grad_()
    moved_embedding, moved_index = gumbel_codebook(moved, codebook, gumbel=g[problems, rows], hard=hard)
    (moved_grad,) = torch.autograd.grad(moved_embedding, moved, upstream[problems, rows])
    assert torch.equal(moved_index, index[problems, rows])
    torch.testing.assert_close(moved_embedding, embedding[problems, rows])
    torch.testing.assert_close(moved_grad, grad[problems, rows])


def test_a_problem_does_not_depend_on_its_grouping() -> None:
    logits, codebook, ids = random(6, 4, 9), random(9, 3, seed=1), torch.tensor([3, 2**32 - 1, 0, 8, 8, 1])
    together, index = gumbel_codebook(logits, codebook, seed=5, draw=2, item_ids=ids)
    for part in ([0], [4, 2], [5, 1, 0]):
        embedding, chosen = gumbel_codebook(logits[part], codebook, seed=5, draw=2, item_ids=ids[part])
        assert torch.equal(chosen, index[part])
        assert torch.equal(embedding, together[part])
    alone, chosen = gumbel_codebook(logits[3], codebook, seed=5, draw=2, item_ids=ids[3])
    assert torch.equal(chosen, index[3])
    assert torch.equal(alone, together[3])
    _, grouped = gumbel_codebook(logits.view(2, 3, 4, 9), codebook, seed=5, draw=2, item_ids=ids.view(2, 3))
    assert torch.equal(grouped.view(6, 4), index)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.uint16, torch.uint32, torch.int64])
def test_ids_default_to_0_1_2_in_any_integer_type(dtype: torch.dtype) -> None:
    logits, codebook = torch.zeros(2, 3, 40, 9), random(9, 2)
    ids = torch.arange(6).view(2, 3).to(dtype)
    assert torch.equal(gumbel_codebook(logits, codebook)[1], gumbel_codebook(logits, codebook, item_ids=ids)[1])


def test_equal_ids_select_alike_and_seeds_draws_and_items_do_not() -> None:
    logits, codebook = torch.zeros(3, 50, 64), random(64, 2)
    _, index = gumbel_codebook(logits, codebook, item_ids=torch.tensor([4, 5, 4]))
    assert torch.equal(index[0], index[2])
    variants = [index[0], index[1], *(gumbel_codebook(logits[:1], codebook, item_ids=torch.tensor([4]), **other)[1][0]
                for other in ({"seed": 1}, {"draw": 1}, {"draw": 2**32 - 1}, {"seed": 2**63 - 1}))]  # fmt: skip
    for first in range(len(variants)):
        for second in range(first):
            assert (variants[first] == variants[second]).sum() < 8  # one in 64 of 50 by chance


@pytest.mark.parametrize("axis", ["rows", "draws", "items"])
def test_selections_follow_the_softmax_of_the_logits(axis: str) -> None:
    logits, codebook = torch.tensor([0.0, 1.0, -1.0, 2.5, 0.3, -3.0]), torch.zeros(6, 1)
    if axis == "rows":
        indices = gumbel_codebook(logits.expand(20000, 6), codebook, seed=1)[1]
    elif axis == "items":
        indices = gumbel_codebook(logits.expand(20000, 1, 6), codebook, seed=2)[1]
    else:
        draws = [gumbel_codebook(logits.expand(100, 6), codebook, seed=3, draw=draw)[1] for draw in range(50)]
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
@pytest.mark.parametrize("tau", [0.01, 1.0, 50.0])
def test_banned_tokens_are_never_selected_and_get_no_gradient(hard: bool, tau: float) -> None:
    free = torch.tensor([1, 4, 5, 8])
    logits = torch.full((2, 300, 10), -torch.inf)
    logits[..., free] = random(2, 300, 4)
    logits.requires_grad_()
    codebook, upstream = random(10, 3, seed=1), random(2, 300, 3, seed=2)
    embedding, index = gumbel_codebook(logits, codebook, tau=tau, seed=6, hard=hard)
    assert set(index.unique().tolist()) == set(free.tolist())
    assert bool(embedding.isfinite().all())
    (grad,) = torch.autograd.grad(embedding, logits, upstream)
    banned = torch.ones(10, dtype=torch.bool).index_fill(0, free, False)
    assert bool(grad.isfinite().all())
    assert not grad[..., banned].any()
    assert bool(grad[..., free].any())


def test_equal_scores_select_the_lowest_index() -> None:
    _, index = gumbel_codebook(torch.zeros(2, 3, 7), random(7, 2), gumbel=torch.zeros(2, 3, 7))
    assert not index.any()
    g = torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert gumbel_codebook(torch.zeros(1, 4), random(4, 2), gumbel=g[None])[1].item() == 1


@pytest.mark.parametrize("hard", [False, True])
def test_a_single_code_is_always_selected(hard: bool) -> None:
    logits, codebook = random(2, 3, 1).requires_grad_(), random(1, 4, seed=1).requires_grad_()
    embedding, index = gumbel_codebook(logits, codebook, hard=hard)
    assert torch.equal(embedding, codebook.detach().expand(2, 3, 4))
    assert not index.any()
    embedding.sum().backward()
    assert logits.grad is not None
    assert codebook.grad is not None
    assert not logits.grad.any()
    assert torch.equal(codebook.grad, torch.full((1, 4), 6.0))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (0, 3, 5), (0, 0, 5), (3, 0, 2, 5), (3, 2, 0, 5)])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("own_noise", [False, True])
def test_empty(shape: tuple[int, ...], hard: bool, own_noise: bool) -> None:
    logits, codebook = torch.zeros(shape, requires_grad=True), random(5, 4).requires_grad_()
    gumbel = torch.zeros(shape) if own_noise else None
    embedding, index = gumbel_codebook(logits, codebook, hard=hard, gumbel=gumbel)
    assert embedding.shape == (*shape[:-1], 4)
    assert index.shape == shape[:-1]
    embedding.sum().backward()
    assert logits.grad is not None
    assert codebook.grad is not None
    assert logits.grad.shape == shape
    assert torch.equal(codebook.grad, torch.zeros(5, 4))


@pytest.mark.parametrize("hard", [False, True])
def test_small_and_large_tau(hard: bool) -> None:
    logits, codebook, g = random(2, 3, 9).mul(50).requires_grad_(), random(9, 4, seed=1), random(2, 3, 9, seed=2)
    best = (logits.detach() + g).argmax(dim=-1)
    for tau in (1e-4, 1e-30, 1e-37):
        embedding, index = gumbel_codebook(logits, codebook, tau=tau, gumbel=g, hard=hard)
        assert torch.equal(index, best)
        assert torch.equal(embedding, codebook[best])
        (grad,) = torch.autograd.grad(embedding.sum(), logits)
        assert not grad.any()
    embedding, index = gumbel_codebook(logits, codebook, tau=1e30, gumbel=g, hard=hard)
    assert torch.equal(index, best)
    torch.testing.assert_close(embedding, codebook[best] if hard else codebook.mean(dim=0).expand(2, 3, 4))
    (grad,) = torch.autograd.grad(embedding.sum(), logits)
    assert bool((grad.abs() < 1e-29).all())


@pytest.mark.parametrize("hard", [False, True])
def test_strided_views(hard: bool) -> None:
    logits = random(9, 3, 2).transpose(0, 2).requires_grad_()
    codebook, g = random(4, 18, seed=1).T[::2].requires_grad_(), random(2, 1, 9, seed=2).expand(2, 3, 9)
    upstream = random(1, 1, 4, seed=3).expand(2, 3, 4)
    embedding, index = gumbel_codebook(logits, codebook, gumbel=g, hard=hard)
    grads = torch.autograd.grad(embedding, (logits, codebook), upstream)
    exact = formula(logits, codebook, g, upstream, 1, hard, np.float64)
    rough = formula(logits, codebook, g, upstream, 1, hard, np.float32)
    np.testing.assert_array_equal(index.numpy(), exact[1])
    for out, wanted, near in zip((embedding, *grads), (exact[0], *exact[2:]), (rough[0], *rough[2:]), strict=True):
        assert_as_good(out, wanted, near)
    expanded = random(1, 3, 9).expand(2, 3, 9)
    drawn = gumbel_codebook(expanded, codebook, seed=4, hard=hard)
    for got, wanted in zip(drawn, gumbel_codebook(expanded.contiguous(), codebook, seed=4, hard=hard), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("hard", [False, True])
def test_repeats_bit_for_bit(hard: bool) -> None:
    logits, codebook = random(2048, 4).requires_grad_(), random(4, 64, seed=1).requires_grad_()
    upstream = random(2048, 64, seed=2)
    results = []
    for _ in range(8):
        embedding, index = gumbel_codebook(logits, codebook, seed=8, hard=hard)
        results.append((embedding, index, *torch.autograd.grad(embedding, (logits, codebook), upstream)))
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


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
        ({"impl": "fast"}, ValueError, "impl"),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, object], error: type[Exception], named: str) -> None:
    arguments = {"logits": LOGITS, "codebook": CODEBOOK, **changed}
    with pytest.raises(error, match=rf"\b{named}\b.*expected"):
        gumbel_codebook(**arguments)


@pytest.mark.parametrize(("hard", "own_noise"), [(True, False), (False, True)])
def test_opcheck(hard: bool, own_noise: bool) -> None:
    logits, codebook = random(2, 3, 5).requires_grad_(), random(5, 4, seed=1).requires_grad_()
    noise = (None, random(2, 3, 5, seed=2)) if own_noise else (torch.tensor([0, 4]), None)
    torch.library.opcheck(OPS.gumbel_codebook.default, (logits, codebook, *noise, 0.7, 3, 1, hard, "auto"))


@pytest.mark.parametrize("codebook_needed", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_the_fakes_know_shapes_and_strides(hard: bool, codebook_needed: bool) -> None:
    logits, codebook = random(5, 3, 2).transpose(0, 2), random(4, 5, seed=1).T
    upstream, index = random(3, 2, 4, seed=3).transpose(0, 1), torch.tensor([[0, 4, 1], [4, 4, 2]])
    settings = (0.7, 3, 1, hard, "auto")
    backward = (upstream, logits, codebook, None, None, index, *settings, codebook_needed)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(OPS.gumbel_codebook.default, (logits, codebook, None, None, *settings), test_utils=checks)
    torch.library.opcheck(OPS.gumbel_codebook_backward.default, backward, test_utils=checks)


def test_opcheck_of_the_backward() -> None:
    arguments = (random(2, 3, 4), random(2, 3, 5), random(5, 4), torch.tensor([0, 4]), None, torch.zeros(2, 3).long())
    torch.library.opcheck(OPS.gumbel_codebook_backward.default, (*arguments, 0.7, 3, 1, True, "auto", True))


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
