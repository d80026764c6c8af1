"""The CUDA Gumbel kernels, run thread by thread on the CPU (tests/cuda/host), against eq. 7 in float64.

Each runs with the copies of sm_80 and of sm_90, its threads in either order. The stand-in has the matrix operands in
the lanes that the PTX ISA states, a matrix unit that rounds as roughly as an A100's, and copies that contain only NaN
until the kernel waits for them. It cannot show: the code that ptxas generates; races between warps that another order
of whole threads does not reveal; the async proxy and its fences; whether mbarriers hang; how a real matrix unit rounds;
registers, bank conflicts, time.
"""

import ctypes
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.cuda import stand_in
from tests.cuda.gumbel_on_host import Kernels, Problem
from tests.ops.backends_under_test import EPS, random, same_bits
from tests.ops.exact_stream import gumbel_noise

if stand_in.missing() is not None:
    pytest.skip(str(stand_in.missing()), allow_module_level=True)

WAYS = {"sm_80": (False, False), "sm_90 backwards": (True, True)}


@contextmanager
def running(way: str) -> Iterator[Kernels]:
    library = ctypes.CDLL(str(stand_in.file()))
    library.run_like(*WAYS[way])
    yield Kernels(library)
    library.run_like(False, True)


@pytest.fixture(params=WAYS)
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    with running(request.param) as host_kernels:
        yield host_kernels


@pytest.fixture
def once() -> Iterator[Kernels]:
    """For tests of what depends on neither copies nor order."""
    with running("sm_80") as host_kernels:
        yield host_kernels


def noise_of(problem: Problem) -> Tensor:
    if problem.gumbel is not None:
        return problem.gumbel
    _, rows, codes = problem.logits.shape
    return torch.from_numpy(gumbel_noise(problem.seed, problem.ids(), problem.draw, rows, codes))


def formula(
    problem: Problem, upstream: Tensor, dtype: torch.dtype, anchor: Tensor | None = None, stay_penalty: float = 0.0
) -> list[Tensor]:
    """y C and the gradients of logits and codebook."""
    logits, codebook, g, dE = (x.to(dtype) for x in (problem.logits, problem.codebook, noise_of(problem), upstream))
    scores = logits + g
    y = ((scores - scores.amax(-1, keepdim=True)) / problem.tau).softmax(-1)
    D = dE @ codebook.T
    if anchor is not None:
        D.scatter_add_(2, anchor[..., None], torch.full_like(anchor[..., None], -stay_penalty, dtype=dtype))
    return [y @ codebook, y * (D - (y * D).sum(-1, keepdim=True)) / problem.tau, torch.einsum("prk,prd->kd", y, dE)]


def assert_as_good(outs: list[Tensor], exact: list[Tensor], rough: list[Tensor], least: float = 1.0) -> None:
    """|out - ref64| <= 2 |ref32 - ref64| + tiny, over each tensor; tiny is a few last bits of its largest number, or
    of `least`: where a gradient is small, it is a difference of larger numbers."""
    for out, fine, coarse in zip(outs, exact, rough, strict=True):
        error, rounding = ((other.double() - fine).abs().max().item() for other in (out, coarse))
        assert error <= 2 * rounding + 8 * EPS * max(least, fine.abs().max().item())


def assert_largest(index: Tensor, scores: Tensor) -> None:
    """But for a float32's last bits, of the noise and of the sum."""
    best = scores.double().amax(-1)
    chosen = scores.double().gather(2, index[..., None])[..., 0]
    assert (best - chosen <= 4 * EPS * best.abs().clamp(min=1)).all()


def random_problem(
    problems: int, rows: int, codes: int, channels: int, with_gumbel: bool = False, **settings: object
) -> tuple[Problem, Tensor]:
    logits = random(problems, rows, codes).mul(2)
    gumbel = random(problems, rows, codes, seed=3) if with_gumbel else None
    item_ids = torch.arange(problems) * 7 + 1
    problem = Problem(
        logits, random(codes, channels, seed=1), seed=5, draw=3, item_ids=item_ids, gumbel=gumbel, **settings
    )
    return problem, random(problems, rows, channels, seed=2)


# P, R, K, d: on both sides of 16, 32, 64 and 128 rows, 16, 64, 128 and 1024 codes, 16 and 256 channels; more than 512
# rows take other tiles
SIZES = [
    (1, 1, 1, 1), (1, 1, 5, 17), (2, 17, 3, 40), (1, 33, 129, 7), (2, 16, 768, 8), (1, 65, 16, 33), (1, 1, 1025, 48),
    (3, 5, 64, 256), (1, 3, 31, 257), (1, 2, 40, 530), (1, 64, 128, 16), (1, 530, 131, 8),
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_forward_and_backward_are_the_formula(kernels: Kernels, sizes: tuple[int, int, int, int]) -> None:
    for tau, with_gumbel in ((1.0, False), (0.6, True)):
        problem, upstream = random_problem(*sizes, with_gumbel=with_gumbel, tau=tau)
        soft, index, row_stats = kernels.forward(problem, hard=False, with_row_stats=True)
        assert row_stats is not None
        exact, rough = (formula(problem, upstream, dtype) for dtype in (torch.float64, torch.float32))
        assert_as_good([soft, *kernels.backward(problem, upstream, row_stats)], exact, rough)
        assert_largest(index, problem.logits + noise_of(problem))
        assert torch.equal(row_stats.soft_embedding, soft)
        assert torch.equal(row_stats.selected, index)
        for with_row_stats in (False, True):
            embedding, selected, _ = kernels.forward(problem, hard=True, with_row_stats=with_row_stats)
            assert torch.equal(selected, index)
            assert torch.equal(embedding, problem.codebook[index])


@pytest.mark.slow
def test_a_problem_of_the_papers_width(kernels: Kernels) -> None:
    """256 rows make tiles of 32; 528 of 128. Both read the 256 channels in 16 slices."""
    for rows in (96, 528):
        problem, upstream = random_problem(1, rows, 16384 if rows == 96 else 1100, 256)
        soft, _, row_stats = kernels.forward(problem, hard=False, with_row_stats=True)
        assert row_stats is not None
        exact, rough = (formula(problem, upstream, dtype) for dtype in (torch.float64, torch.float32))
        assert_as_good([soft, *kernels.backward(problem, upstream, row_stats)], exact, rough)


def test_both_kinds_of_copies_and_both_orders_give_the_same_bits(once: Kernels) -> None:
    results = []
    for way in itertools.product((False, True), repeat=2):
        once.library.run_like(*way)
        problem, upstream = random_problem(1, 66, 150, 20)
        soft, _, row_stats = once.forward(problem, hard=False, with_row_stats=True)
        assert row_stats is not None
        results.append(
            [soft, *row_stats, *once.backward(problem, upstream, row_stats), *once.forward(problem, True, False)[:2]]
        )
    assert all(same_bits(results[0], other) for other in results[1:])


@pytest.mark.parametrize("adam", [False, True], ids=["SGD", "Adam"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 17), (2, 17, 101, 9), (1, 33, 132, 40), (1, 520, 33, 8)], ids=str)
def test_a_step_is_torchs_along_the_gradient(kernels: Kernels, sizes: tuple[int, int, int, int], adam: bool) -> None:
    """Two of them; near 0 Adam divides a gradient by its own size, hence the large eps."""
    options = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 0.05}
    anchor = torch.randint(sizes[2], sizes[:2], generator=torch.Generator().manual_seed(4))
    start, upstream = random_problem(*sizes, tau=0.8)
    expected = []
    for dtype in (torch.float64, torch.float32):
        leaf = start.logits.to(dtype, copy=True).requires_grad_()
        rule = torch.optim.Adam([leaf], **options) if adam else torch.optim.SGD([leaf], lr=0.05)
        for draw in (3, 4):
            now = Problem(leaf.detach(), start.codebook, item_ids=start.ids(), tau=0.8, seed=5, draw=draw)
            leaf.grad = formula(now, upstream, dtype, anchor, 1.5)[1]
            rule.step()
        state = rule.state[leaf]
        expected.append([leaf.detach(), *([state["exp_avg"], state["exp_avg_sq"]] if adam else [])])
    out = start.logits.clone()
    moments = (torch.zeros_like(out), torch.zeros_like(out)) if adam else None
    for step_count, draw in enumerate((3, 4), 1):
        now = Problem(out, start.codebook, item_ids=start.ids(), tau=0.8, seed=5, draw=draw)
        _, _, row_stats = kernels.forward(now, hard=True, with_row_stats=True)
        assert row_stats is not None
        kernels.step(
            now, upstream, row_stats, moments=moments, step_count=step_count, anchor=anchor, stay_penalty=1.5, **options
        )
    assert_as_good([out, *(moments or ())], *expected, least=0)


def test_a_schedule_replaces_the_numbers(once: Kernels) -> None:
    results = []
    for schedule in (None, torch.tensor([0.7, 2**32 - 1, 0.05, 4], dtype=torch.float64)):
        base, upstream = random_problem(2, 3, 40, 6)
        numbers = {"tau": 0.7, "draw": 2**32 - 1} if schedule is None else {"tau": 3.0, "draw": 5}
        problem = replace(base, schedule=schedule, **numbers)
        soft, index, row_stats = once.forward(problem, hard=False, with_row_stats=True)
        assert row_stats is not None
        _, alone, _ = once.forward(problem, hard=True, with_row_stats=False)
        moments = (random(2, 3, 40, seed=8), random(2, 3, 40, seed=9).square())
        rates = {"lr": 0.05, "step_count": 4} if schedule is None else {"lr": 9.0, "step_count": 1}
        once.step(problem, upstream, row_stats, moments=moments, **rates)
        results.append([soft, index, alone, *row_stats, problem.logits, *moments])
    assert same_bits(*results)


def test_late_steps_and_betas_of_zero(once: Kernels) -> None:
    for count, betas in itertools.product((1, 1000, 10**7), [(0.9, 0.999), (0.0, 0.0)]):
        problem, upstream = random_problem(1, 2, 40, 6)
        moments = (random(1, 2, 40, seed=4) * 0.1, random(1, 2, 40, seed=5).square() * 0.01)
        expected = []
        for dtype in (torch.float64, torch.float32):
            leaf = problem.logits.to(dtype, copy=True).requires_grad_()
            leaf.grad = formula(problem, upstream, dtype)[1]
            rule = torch.optim.Adam([leaf], lr=0.05, betas=betas, eps=0.05)
            state = {"exp_avg": moments[0].to(dtype, copy=True), "exp_avg_sq": moments[1].to(dtype, copy=True)}
            rule.state[leaf] = {**state, "step": torch.tensor(count - 1.0)}
            rule.step()
            expected.append([leaf.detach(), *state.values()])
        _, _, row_stats = once.forward(problem, hard=True, with_row_stats=True)
        assert row_stats is not None
        once.step(problem, upstream, row_stats, lr=0.05, moments=moments, step_count=count, betas=betas, eps=0.05)
        assert_as_good([problem.logits, *moments], *expected, least=0)


def test_a_settled_row_does_not_move(kernels: Kernels) -> None:
    """Not by a last bit, of which Adam would make a step of full length; nor does a row with a single code."""
    for codes, channels in ((1, 5), (30, 40), (300, 20)):
        logits = torch.zeros(1, 19, codes)
        logits[:, :, codes // 2] = 200
        problem = Problem(logits, random(codes, channels, seed=1), tau=0.5, seed=1)
        before, moments = logits.clone(), (torch.zeros_like(logits), torch.zeros_like(logits))
        soft, _, row_stats = kernels.forward(problem, hard=False, with_row_stats=True)
        assert row_stats is not None
        assert torch.equal(soft, problem.codebook[codes // 2].expand(1, 19, channels))
        kernels.step(problem, random(1, 19, channels, seed=2), row_stats, moments=moments, lr=0.05)
        assert torch.equal(logits, before)
        assert not moments[0].any()


def test_only_codes_that_cannot_win_are_skipped(once: Kernels) -> None:
    """So many rows that a block takes a part of the codes in two turns."""
    problem, _ = random_problem(2, 350, 5000, 1)
    index = once.forward(problem, hard=True, with_row_stats=False)[1]
    assert_largest(index, problem.logits + noise_of(problem))


def test_equal_scores_select_the_lowest_index(kernels: Kernels) -> None:
    many = torch.zeros(1, 17, 2100)
    many[..., [2000, 1030, 1100, 2099]] = 1
    for logits, lowest in ((torch.zeros(2, 3, 7), 0), (many, 1030)):
        problem = Problem(logits, random(logits.shape[2], 2), gumbel=torch.zeros_like(logits))
        for hard, with_row_stats in ((True, False), (False, True)):
            assert (kernels.forward(problem, hard, with_row_stats)[1] == lowest).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("with_gumbel", [False, True])
def test_a_logit_of_nan_or_infinity_is_selected_and_spoils_its_row_alone(
    kernels: Kernels, value: float, with_gumbel: bool
) -> None:
    for codes in (9, 1101):
        clean, upstream = random_problem(1, 18, codes, 3, with_gumbel=with_gumbel)
        spoiled = replace(clean, logits=clean.logits.clone())
        spoiled.logits[0, 4, codes // 2] = spoiled.logits[0, 4, codes - 1] = value
        others = torch.arange(18) != 4
        results = []
        for problem in (clean, spoiled):
            soft, index, row_stats = kernels.forward(problem, hard=False, with_row_stats=True)
            assert row_stats is not None
            assert torch.equal(kernels.forward(problem, hard=True, with_row_stats=False)[1], index)
            results.append([soft, index, kernels.backward(problem, upstream, row_stats, codebook_needed=False)[0]])
        assert same_bits([out[:, others] for out in results[0]], [out[:, others] for out in results[1]])
        soft, index, gradient = (out[0, 4] for out in results[1])
        assert index.item() == codes // 2  # the first of them
        assert soft.isnan().all()
        assert gradient.isnan().all()


def test_an_upstream_of_nan_or_infinity_spoils_its_row_alone(once: Kernels) -> None:
    problem, upstream = random_problem(1, 40, 101, 3)
    _, _, row_stats = once.forward(problem, hard=True, with_row_stats=True)
    assert row_stats is not None
    clean = once.backward(problem, upstream, row_stats, codebook_needed=False)[0]
    for row, value in ((0, math.nan), (17, math.inf), (39, -math.inf)):
        spoiled = upstream.clone()
        spoiled[0, row, 1] = value
        gradient = once.backward(problem, spoiled, row_stats, codebook_needed=False)[0]
        assert gradient[0, row].isnan().any()
        gradient[0, row] = clean[0, row]
        assert same_bits([gradient], [clean])


def test_banned_tokens_are_never_selected_and_do_not_move(kernels: Kernels) -> None:
    free = torch.tensor([1, 4, 5, 17])
    logits = torch.full((1, 50, 20), -torch.inf)
    logits[..., free] = random(1, 50, 4)
    logits[0, 7] = -torch.inf  # none left: the first, and no softmax
    others = torch.arange(50) != 7
    problem, upstream = Problem(logits, random(20, 3, seed=1), tau=0.5, seed=6), random(1, 50, 3, seed=2)
    for hard, with_row_stats in ((True, False), (True, True), (False, True)):
        embedding, index, row_stats = kernels.forward(problem, hard, with_row_stats)
        assert index[0, 7].item() == 0
        assert set(index[0, others].tolist()) == set(free.tolist())
        assert embedding[:, others].isfinite().all()
    assert embedding[0, 7].isnan().all()
    assert row_stats is not None
    gradient = kernels.backward(problem, upstream, row_stats, codebook_needed=False)[0]
    assert gradient[0, 7].isnan().all()
    assert torch.equal(gradient[:, others] != 0, (logits > -torch.inf)[:, others])
    before, moments = logits.clone(), (torch.zeros_like(logits), torch.zeros_like(logits))
    kernels.step(problem, upstream, row_stats, moments=moments, lr=0.05)
    assert torch.equal(logits[:, others] == -torch.inf, before[:, others] == -torch.inf)
    assert not (logits == before)[:, others][..., free].any()


def test_large_logits(once: Kernels) -> None:
    logits = random(1, 17, 200) * 1e4
    logits[0, 3], logits[0, 5] = 1e4, -1e4  # all equal: the noise alone decides
    logits[0, 6, 7], logits[0, 6, 8] = 3.4e38, -3.4e38
    for tau in (1e-30, 0.7, 1e30):
        problem, upstream = Problem(logits, random(200, 5, seed=1), tau=tau, seed=3), random(1, 17, 5, seed=2)
        soft, index, row_stats = once.forward(problem, hard=False, with_row_stats=True)
        assert row_stats is not None
        assert_largest(index, logits + noise_of(problem))
        exact, rough = (formula(problem, upstream, dtype) for dtype in (torch.float64, torch.float32))
        assert_as_good([soft], exact[:1], rough[:1])
        if tau > 1e-30:  # else float32's own gradient is infinite
            assert_as_good([*once.backward(problem, upstream, row_stats)], exact[1:], rough[1:])


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_codebooks_of_any_size(once: Kernels, scale: float) -> None:
    base, upstream = random_problem(1, 20, 70, 24, tau=0.7)
    problem = Problem(base.logits, base.codebook * scale, tau=0.7, seed=5, draw=3)
    soft, _, row_stats = once.forward(problem, hard=False, with_row_stats=True)
    assert row_stats is not None
    exact, rough = (formula(problem, upstream, dtype) for dtype in (torch.float64, torch.float32))
    assert_as_good([soft, *once.backward(problem, upstream, row_stats)], exact, rough, least=scale)


def test_fewer_products_are_what_torch_calls_high(once: Kernels) -> None:
    """About 16 bits of each product; and not the default's bits."""
    problem, upstream = random_problem(1, 40, 130, 40)
    high = replace(problem, exact=False)
    results = []
    for products in (problem, high):
        soft, _, row_stats = once.forward(products, hard=False, with_row_stats=True)
        assert row_stats is not None
        results.append([soft, *once.backward(products, upstream, row_stats)])
    exact = formula(problem, upstream, torch.float64)
    for fine, coarse, expected in zip(*results, exact, strict=True):
        error = (coarse.double() - expected).abs().max() / expected.abs().max()
        assert 2.0**-24 < error < 2.0**-13
        assert not torch.equal(fine, coarse)


@pytest.mark.parametrize("shape", [(0, 3, 5, 4), (2, 0, 5, 4), (2, 3, 5, 0)])
def test_empty(once: Kernels, shape: tuple[int, int, int, int]) -> None:
    problem, upstream = random_problem(*shape)
    for hard, with_row_stats in ((True, False), (False, True)):
        embedding, index, row_stats = once.forward(problem, hard, with_row_stats)
        assert embedding.shape == (*shape[:2], shape[3])
        assert torch.equal(index, (problem.logits + noise_of(problem)).argmax(-1))
    assert row_stats is not None
    grad_logits, grad_codebook = once.backward(problem, upstream, row_stats)
    assert not grad_logits.any()
    assert not grad_codebook.any()
    once.step(problem, upstream, row_stats, lr=1.0)
    assert torch.equal(problem.logits, random(*shape[:3]).mul(2))


def test_rows_do_not_depend_on_the_other_rows(once: Kernels) -> None:
    """But for rounding: the codes may be split into another number of parts."""
    problem, _ = random_problem(3, 30, 90, 10)
    together, index, _ = once.forward(problem, hard=False, with_row_stats=True)
    for chosen in ([2], [1, 0]):
        part = replace(problem, logits=problem.logits[chosen], item_ids=problem.ids()[chosen])
        soft, selected, _ = once.forward(part, hard=False, with_row_stats=True)
        assert torch.equal(selected, index[chosen])
        torch.testing.assert_close(soft, together[chosen])


def test_selections_follow_the_softmax_of_the_logits(once: Kernels) -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.5, 0.3, -3.0])
    problem = Problem(logits.expand(1, 2000, 6).contiguous(), torch.zeros(6, 1), seed=1)
    counts = np.bincount(once.forward(problem, hard=True, with_row_stats=False)[1].flatten().numpy(), minlength=6)
    expected = logits.double().softmax(0).numpy() * counts.sum()
    assert np.square(counts - expected).dot(1 / expected) < 20.5  # chi-square, 5 degrees of freedom: p = 0.001
