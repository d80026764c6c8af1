"""gumbel_codebook_step against torch.optim's own steps along the gradient of the formula."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cortex_fast.kernels.reference.descent import descend
from cortex_fast.kernels.reference.gumbel_codebook import noise_of, noisy_scores, softened
from cortex_fast.kernels.reference.gumbel_codebook_backward import logits_gradient
from cortex_fast.ops import gumbel_codebook, gumbel_codebook_step
from cortex_fast.ops.backends import BackendUnavailableError
from tests.ops.backends_under_test import (
    EPS,
    assert_same_for_any_threads,
    few,
    needs_native,
    random,
    same_bits,
    skip_in_interpreter,
    skip_on_stand_in,
)
from tests.ops.exact_stream import gumbel_noise

Moments = tuple[Tensor, Tensor]
ADAM = {"lr": 0.05, "betas": (0.9, 0.999), "eps": 1e-8}
# Near 0 Adam divides a gradient by its own size, so that with a small eps its last bit moves a logit by as much as lr.
STEADY = {**ADAM, "eps": 0.05}

every_optimiser = pytest.mark.parametrize("adam", [False, True], ids=["SGD", "Adam"])


def zeros(logits: Tensor) -> Moments:
    return torch.zeros_like(logits), torch.zeros_like(logits)


def gradient(logits: Tensor, codebook: Tensor, upstream: Tensor, g: Tensor, tau: float) -> Tensor:
    """dP of eq. 7 in the dtype of its arguments."""
    scores = logits + g
    y = ((scores - scores.amax(dim=-1, keepdim=True)) / tau).softmax(dim=-1)
    d = upstream @ codebook.T
    return y * (d - (y * d).sum(dim=-1, keepdim=True)) / tau


def by_torch(
    dtype: torch.dtype, tensors: Sequence[Tensor], noises: Sequence[Tensor], tau: float, adam: bool, **options: object
) -> list[Tensor]:
    """Logits, then Adam's moments, after one of torch's steps for each noise, all in `dtype`."""
    logits, codebook, upstream = (tensor.detach().to(dtype) for tensor in tensors)
    logits = logits.clone().requires_grad_()
    optimiser = torch.optim.Adam([logits], **options) if adam else torch.optim.SGD([logits], lr=options["lr"])
    for g in noises:
        logits.grad = gradient(logits.detach(), codebook, upstream, g.to(dtype), tau)
        optimiser.step()
    state = optimiser.state[logits]
    return [logits.detach(), state["exp_avg"], state["exp_avg_sq"]] if adam else [logits.detach()]


def assert_as_good(outs: Sequence[Tensor], exact: Sequence[Tensor], rough: Sequence[Tensor]) -> None:
    """|out - ref64| <= 2 |ref32 - ref64| + tiny, over each tensor; tiny is a few last bits of its largest number."""
    for name, out, fine, coarse in zip(("logits", "first moment", "second moment"), outs, exact, rough, strict=False):
        if fine.numel():
            error, rounding = ((other.double() - fine).abs().max().item() for other in (out, coarse))
            assert error <= 2 * rounding + 16 * EPS * fine.abs().max().item(), name


@settings(deadline=None, max_examples=20)
@given(
    lead=st.lists(st.integers(0, 3), max_size=2),
    rows=st.integers(0, 5),
    codes=st.integers(1, 40),
    channels=st.integers(1, 9),
    tau=st.floats(0.3, 5),
    betas=st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.0, 0.9, 0.999])),
    adam=st.booleans(),
)
def test_is_torchs_step_along_the_gradient(
    impl: str,
    lead: list[int],
    rows: int,
    codes: int,
    channels: int,
    tau: float,
    betas: tuple[float, float],
    adam: bool,
) -> None:
    logits, codebook, upstream = (
        random(*lead, rows, codes),
        random(codes, channels, seed=1),
        random(*lead, rows, channels),
    )
    noises = [random(*lead, rows, codes, seed=step) for step in (2, 3)]
    options = {**STEADY, "betas": betas}
    out, moments = logits.clone(), zeros(logits) if adam else None
    for step, g in enumerate(noises, 1):
        gumbel_codebook_step(
            out, codebook, upstream, tau=tau, gumbel=g, moments=moments, step_count=step, impl=impl, **options
        )
    exact, rough = (
        by_torch(dtype, (logits, codebook, upstream), noises, tau, adam, **options)
        for dtype in (torch.float64, torch.float32)
    )
    assert_as_good([out, *(moments or ())], exact, rough)


SIZES = [  # P, R, K, d
    (1, 1, 1, 17), (2, 17, 3, 1030), (1, 33, 15, 7), (1, 1, 767, 1), (2, 16, 768, 7), (1, 17, 769, 16),
    (3, 15, 868, 17), (1, 33, 1537, 16), (1, 1, 1537, 1030),
]  # fmt: skip
INTERPRETED_SIZES = [(1, 1, 1, 17), (1, 17, 769, 16)]


@every_optimiser
@pytest.mark.parametrize("tau", [1.0, 0.5])
@pytest.mark.parametrize("sizes", SIZES)
def test_odd_sizes_with_the_streams_noise(impl: str, sizes: tuple[int, int, int, int], tau: float, adam: bool) -> None:
    problems, rows, codes, channels = sizes
    if sizes not in INTERPRETED_SIZES or (tau != 1 and not adam):
        skip_in_interpreter(impl)
    if sizes == SIZES[-1]:
        skip_on_stand_in(impl)
    logits, codebook = random(problems, rows, codes), random(codes, channels, seed=1)
    upstream, ids = random(problems, rows, channels, seed=2), torch.arange(problems) * 5
    out, moments = logits.clone(), zeros(logits) if adam else None
    for step in (1, 2, 3):
        gumbel_codebook_step(out, codebook, upstream, tau=tau, seed=4, draw=step, item_ids=ids, moments=moments,
                             step_count=step, impl=impl, **STEADY)  # fmt: skip
    noises = [torch.from_numpy(gumbel_noise(4, ids, draw, rows, codes)) for draw in (1, 2, 3)]
    exact, rough = (
        by_torch(dtype, (logits, codebook, upstream), noises, tau, adam, **STEADY)
        for dtype in (torch.float64, torch.float32)
    )
    assert_as_good([out, *(moments or ())], exact, rough)


@every_optimiser
def test_a_schedule_replaces_the_numbers(impl: str, adam: bool) -> None:
    logits, codebook, upstream = random(2, 3, 40), random(40, 6, seed=1), random(2, 3, 6, seed=2)
    results = []
    for schedule in (None, torch.tensor([0.7, 2**32 - 1, 0.05, 4], dtype=torch.float64)):
        numbers = {"tau": 0.7, "draw": 2**32 - 1} if schedule is None else {"tau": 3.0, "draw": 5}
        rates = {"lr": 0.05, "step_count": 4} if schedule is None else {"lr": 9.0, "step_count": 1}
        out, moments = logits.clone(), zeros(logits) if adam else None
        embedding, index = gumbel_codebook(logits, codebook, hard=False, schedule=schedule, impl=impl, **numbers)
        gumbel_codebook_step(out, codebook, upstream, moments=moments, schedule=schedule, impl=impl, **numbers, **rates)
        results.append([embedding, index, out, *(moments or ())])
    assert same_bits(*results)


@every_optimiser
def test_the_reference_takes_scalar_tensors(adam: bool) -> None:
    """As a schedule on a GPU gives it."""
    logits, codebook, upstream = random(2, 3, 40), random(40, 6, seed=1), random(2, 3, 6, seed=2)
    ids, numbers, results = torch.arange(2), (0.7, 2**32 - 1, 0.05, 4), []
    scalars = torch.tensor(numbers, dtype=torch.float64)
    for tau, draw, lr, step_count in (numbers, (scalars[0], scalars[1].long(), *scalars[2:])):
        out, moments = logits.clone(), zeros(logits) if adam else None
        noise = noise_of(logits, ids, None, 5, draw)
        gradient = logits_gradient(softened(noisy_scores(out, noise), tau, codebook), codebook, upstream, tau)
        descend(out, moments, gradient, lr=lr, betas=(0.9, 0.999), eps=1e-8, step_count=step_count)
        results.append([noise, out, *(moments or ())])
    for number, scalar in zip(*results, strict=True):
        torch.testing.assert_close(number, scalar, rtol=1e-6, atol=1e-7)


@every_optimiser
def test_a_rate_of_zero_leaves_the_logits(impl: str, adam: bool) -> None:
    logits, codebook, upstream = random(2, 3, 40), random(40, 6, seed=1), random(2, 3, 6, seed=2)
    out, moments = logits.clone(), zeros(logits) if adam else None
    gumbel_codebook_step(out, codebook, upstream, lr=0.0, moments=moments, impl=impl)
    assert torch.equal(out, logits)
    assert moments is None or bool(moments[0].any())


def test_later_steps_are_torchs(impl: str) -> None:
    """Bias corrections of a late step, from moments that are not zero."""
    logits, codebook, upstream, g = random(2, 40), random(40, 6, seed=1), random(2, 6, seed=2), random(2, 40, seed=3)
    state = {"exp_avg": random(2, 40, seed=4) * 0.1, "exp_avg_sq": random(2, 40, seed=5).square() * 0.01}
    for count, betas in itertools.product((2, 1000, 10**7), [(0.9, 0.999), (0.5, 0.9)]):
        expected = []
        for dtype in (torch.float64, torch.float32):
            p = logits.to(dtype, copy=True).requires_grad_()
            p.grad = gradient(p.detach(), codebook.to(dtype), upstream.to(dtype), g.to(dtype), 1)
            optimiser = torch.optim.Adam([p], lr=0.05, betas=betas)
            optimiser.state[p] = {name: tensor.to(dtype, copy=True) for name, tensor in state.items()}
            optimiser.state[p]["step"] = torch.tensor(float(count - 1))
            optimiser.step()
            expected.append([p.detach(), optimiser.state[p]["exp_avg"], optimiser.state[p]["exp_avg_sq"]])
        out, moments = logits.clone(), (state["exp_avg"].clone(), state["exp_avg_sq"].clone())
        gumbel_codebook_step(
            out, codebook, upstream, lr=0.05, betas=betas, gumbel=g, moments=moments, step_count=count, impl=impl
        )
        assert_as_good([out, *moments], *expected)


@every_optimiser
@pytest.mark.parametrize("hard", [False, True])
def test_is_the_backward_pass_then_torchs_step(impl: str, adam: bool, hard: bool) -> None:
    if not hard:
        skip_in_interpreter(impl)
    logits, codebook, upstream = random(2, 5, 90).requires_grad_(), random(90, 7, seed=1), random(2, 5, 7, seed=2)
    optimiser = torch.optim.Adam([logits], **ADAM) if adam else torch.optim.SGD([logits], lr=0.05)
    fused = logits.detach().clone()
    moments = zeros(fused) if adam else None
    for draw in range(few(impl, 4, 2)):
        noise = {"seed": 9, "draw": draw, "tau": 0.8, "item_ids": torch.tensor([3, 2**32 - 1]), "impl": impl}
        embedding, _ = gumbel_codebook(logits, codebook, hard=hard, **noise)
        optimiser.zero_grad()
        embedding.backward(upstream)
        optimiser.step()
        gumbel_codebook_step(fused, codebook, upstream, moments=moments, step_count=draw + 1, **noise, **ADAM)
    torch.testing.assert_close(fused, logits.detach(), rtol=1e-5, atol=2e-5)


@every_optimiser
def test_banned_tokens_stay_banned_and_move_no_other(impl: str, adam: bool) -> None:
    if not adam:
        skip_in_interpreter(impl)
    free, rows = torch.tensor([1, 4, 5, 8]), few(impl, 20, 6)
    logits, codebook = torch.full((2, rows, 10), -torch.inf), random(10, 3, seed=1)
    upstream = random(2, rows, 3, seed=2)
    logits[..., free] = random(2, rows, 4)
    out, moments = logits.clone(), zeros(logits) if adam else None
    for tau in (1.0, 0.3):
        gumbel_codebook_step(out, codebook, upstream, tau=tau, moments=moments, seed=1, impl=impl, **ADAM)
    assert torch.equal(out == -torch.inf, logits == -torch.inf)
    assert bool(out[..., free].isfinite().all())
    assert not (out[..., free] == logits[..., free]).all()
    alone, moments = logits[..., free].contiguous(), zeros(logits[..., free]) if adam else None
    g = torch.zeros(2, rows, 10)
    gumbel_codebook_step(alone, codebook[free], upstream, moments=moments, gumbel=g[..., free], impl=impl, **ADAM)
    again, moments = logits.clone(), zeros(logits) if adam else None
    gumbel_codebook_step(again, codebook, upstream, moments=moments, gumbel=g, impl=impl, **ADAM)
    torch.testing.assert_close(again[..., free], alone)


@every_optimiser
def test_nan_spoils_its_row_alone(impl: str, adam: bool) -> None:
    logits, codebook, upstream = random(1, 40, 101), random(101, 3, seed=1), random(1, 40, 3, seed=2)
    spoiled_logits, spoiled_upstream = logits.clone(), upstream.clone()
    spoiled_logits[0, 5, 50] = torch.nan
    spoiled_upstream[0, 22, 2] = torch.inf
    moments = zeros(logits) if adam else None
    gumbel_codebook_step(spoiled_logits, codebook, spoiled_upstream, moments=moments, impl=impl, **ADAM)
    for tensor in (spoiled_logits, *(moments or ())):
        assert tensor.isfinite().all(dim=-1).logical_not()[0].nonzero().flatten().tolist() == [5, 22]


@every_optimiser
def test_a_single_code_and_a_saturated_row_do_not_move(impl: str, adam: bool) -> None:
    for codes in (1, 30):
        logits = torch.zeros(3, codes)
        logits[:, 0] = 200.0
        out, moments = logits.clone(), zeros(logits) if adam else None
        # tau is not 1, and the noise given: then the weight of the only candidate is 1, to the last bit
        gumbel_codebook_step(out, random(codes, 4, seed=1), random(3, 4, seed=2), tau=0.5, moments=moments,
                             gumbel=torch.zeros(3, codes), impl=impl, **ADAM)  # fmt: skip
        assert torch.equal(out, logits)


@every_optimiser
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (0, 3, 5), (3, 2, 0, 5)])
def test_empty(impl: str, shape: tuple[int, ...], adam: bool) -> None:
    logits = torch.zeros(shape)
    moments = zeros(logits) if adam else None
    gumbel_codebook_step(logits, random(5, 4), torch.zeros(*shape[:-1], 4), lr=1, moments=moments, impl=impl)
    assert logits.shape == shape


@every_optimiser
def test_strided_and_half_inputs(impl: str, adam: bool) -> None:
    logits, wide = random(2, 3, 9), random(4, 18, seed=1).half()
    upstream, g = random(1, 1, 4, seed=3).bfloat16().expand(2, 3, 4), random(2, 1, 9, seed=2).half().expand(2, 3, 9)
    codebook = wide.T[::2]
    exact = by_torch(torch.float64, (logits, codebook, upstream), [g], 1, adam, **STEADY)
    rough = by_torch(torch.float32, (logits, codebook, upstream), [g], 1, adam, **STEADY)
    out, moments = logits.clone(), zeros(logits) if adam else None
    gumbel_codebook_step(out, codebook, upstream, gumbel=g, moments=moments, impl=impl, **STEADY)
    assert_as_good([out, *(moments or ())], exact, rough)


def test_float64_is_not_narrowed() -> None:
    logits, codebook, upstream = (random(*shape, dtype=torch.float64) for shape in ((2, 9), (9, 4), (2, 4)))
    g = random(2, 9, seed=3, dtype=torch.float64)
    out, moments = logits.clone(), zeros(logits)
    gumbel_codebook_step(out, codebook, upstream, gumbel=g, moments=moments, **ADAM)
    exact = by_torch(torch.float64, (logits, codebook, upstream), [g], 1, True, **ADAM)
    for got, wanted in zip((out, *moments), exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-15)


@every_optimiser
@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_native_gives_the_same_bits_for_any_threads_and_in_any_group(level: str, adam: bool, tau: float) -> None:
    logits, codebook, upstream = random(3, 35, 801), random(801, 19, seed=1), random(3, 35, 19, seed=2)
    ids = torch.tensor([5, 0, 5])

    def stepped(part: tuple[slice, slice]) -> list[Tensor]:
        out = logits[part].clone()
        moments = zeros(out) if adam else None
        for step in (1, 2):
            gumbel_codebook_step(out, codebook, upstream[part], tau=tau, seed=6, draw=step, item_ids=ids[part[0]],
                                 moments=moments, step_count=step, impl="native", **ADAM)  # fmt: skip
        return [out, *(moments or ())]

    everything = (slice(None), slice(None))
    assert_same_for_any_threads(lambda: stepped(everything))
    together = stepped(everything)
    for problem, rows in itertools.product(range(3), (1, 17, 35)):
        part = (slice(problem, problem + 1), slice(rows))
        assert same_bits(stepped(part), [out[part] for out in together])


def valid() -> dict[str, object]:
    return {"logits": torch.zeros(2, 3, 5), "codebook": torch.zeros(5, 4), "upstream": torch.zeros(2, 3, 4), "lr": 0.1}


WHOLE, STRIDED = torch.zeros(2, 3, 5), torch.zeros(5, 3, 2).transpose(0, 2)


@pytest.mark.parametrize(
    ("changed", "error", "named"),
    [
        ({"logits": torch.zeros(5)}, ValueError, "logits"),
        ({"logits": torch.zeros(2, 3, 5, dtype=torch.int64)}, TypeError, "logits"),
        ({"logits": torch.zeros(2, 3, 5, dtype=torch.float16)}, TypeError, "logits"),
        ({"logits": torch.zeros(2, 3, 6)}, ValueError, "logits"),
        ({"logits": STRIDED}, ValueError, "logits"),
        ({"logits": torch.zeros(2, 3, 5, requires_grad=True)}, ValueError, "logits"),
        ({"codebook": torch.zeros(5)}, ValueError, "codebook"),
        ({"codebook": torch.zeros(5, 4, dtype=torch.int32)}, TypeError, "codebook"),
        ({"codebook": torch.zeros(5, 4, device="meta")}, ValueError, "codebook"),
        ({"upstream": torch.zeros(2, 3, 5)}, ValueError, "upstream"),
        ({"upstream": torch.zeros(3, 4)}, ValueError, "upstream"),
        ({"upstream": torch.zeros(2, 3, 4, dtype=torch.int64)}, TypeError, "upstream"),
        ({"upstream": torch.zeros(2, 3, 4, device="meta")}, ValueError, "upstream"),
        ({"moments": (WHOLE, torch.zeros(2, 3, 6))}, ValueError, r"moments\[1\]"),
        ({"moments": (torch.zeros(3, 5), WHOLE)}, ValueError, r"moments\[0\]"),
        ({"moments": (WHOLE, WHOLE.double())}, TypeError, r"moments\[1\]"),
        ({"moments": (STRIDED, WHOLE)}, ValueError, r"moments\[0\]"),
        ({"moments": (WHOLE, torch.zeros(2, 3, 5, requires_grad=True))}, ValueError, r"moments\[1\]"),
        ({"logits": torch._neg_view(torch.zeros(2, 3, 5))}, ValueError, "logits"),
        ({"moments": (WHOLE, WHOLE)}, ValueError, r"moments\[1\]"),
        ({"logits": WHOLE, "moments": (torch.zeros(2, 3, 5), WHOLE)}, ValueError, r"moments\[1\]"),
        ({"moments": (None, WHOLE)}, TypeError, r"moments\[0\]"),
        ({"moments": WHOLE}, TypeError, "moments"),
        ({"moments": (WHOLE,)}, TypeError, "moments"),
        ({"betas": 0.9}, TypeError, "betas"),
        ({"betas": ("0.9", 0.9)}, TypeError, "betas"),
        ({"row_stats": 3}, TypeError, "row_stats"),
        ({"step_count": 2**64}, ValueError, "step_count"),
        ({"lr": -0.1}, ValueError, "lr"),
        ({"lr": math.nan}, ValueError, "lr"),
        ({"lr": "fast"}, TypeError, "lr"),
        ({"eps": 0.0}, ValueError, "eps"),
        ({"eps": math.inf}, ValueError, "eps"),
        ({"betas": (1.0, 0.9)}, ValueError, "betas"),
        ({"betas": (0.9, -0.1)}, ValueError, "betas"),
        ({"betas": (0.9, math.nan)}, ValueError, "betas"),
        ({"step_count": 0}, ValueError, "step_count"),
        ({"step_count": 1.0}, TypeError, "step_count"),
        ({"step_count": True}, TypeError, "step_count"),
        ({"tau": 0.0}, ValueError, "tau"),
        ({"seed": -1}, ValueError, "seed"),
        ({"draw": 2**32}, ValueError, "draw"),
        ({"item_ids": torch.tensor([0])}, ValueError, "item_ids"),
        ({"item_ids": torch.tensor([0, 2**32])}, ValueError, "item_ids"),
        ({"item_ids": torch.tensor([0.0, 1.0])}, TypeError, "item_ids"),
        ({"gumbel": torch.zeros(3, 5)}, ValueError, "gumbel"),
        ({"impl": "fast"}, ValueError, "impl"),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, object], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=rf"(^|\b){named}.*expected"):
        gumbel_codebook_step(**{**valid(), **changed})


@needs_native
def test_forcing_native_raises_with_the_reason() -> None:
    arguments = {**valid(), "logits": torch.zeros(2, 3, 5, dtype=torch.float64)}
    with pytest.raises(BackendUnavailableError, match=r"gumbel_codebook_step: impl='native' .* not torch.float64"):
        gumbel_codebook_step(**arguments, impl="native")


@every_optimiser
def test_a_penalty_for_leaving_a_code(impl: str, adam: bool) -> None:
    """One step along the gradient of <E, dE> + stay_penalty (1 - y[anchor]), by autograd in float64."""
    if not adam:
        skip_in_interpreter(impl)
    for codes, tau in ((5, 0.7), (700, 1.0), (1500, 2.0)):
        rows = few(impl, 35, 6)
        logits, codebook, upstream = random(2, rows, codes), random(codes, 4, seed=1), random(2, rows, 4, seed=2)
        anchor = torch.randint(codes, (2, rows), generator=torch.Generator().manual_seed(5))
        g = random(2, rows, codes, seed=3)
        leaf = logits.double().requires_grad_()
        y = ((leaf + g) / tau).softmax(dim=-1)
        loss = (y @ codebook.double() * upstream).sum() + 1.5 * (1 - y.gather(2, anchor[..., None])).sum()
        loss.backward()
        rule = torch.optim.Adam([leaf], **STEADY) if adam else torch.optim.SGD([leaf], lr=STEADY["lr"])
        rule.step()
        got = logits.clone()
        options = STEADY if adam else {"lr": STEADY["lr"]}
        moments = zeros(got) if adam else None
        gumbel_codebook_step(
            got,
            codebook,
            upstream,
            tau=tau,
            gumbel=g,
            moments=moments,
            anchor=anchor,
            stay_penalty=1.5,
            impl=impl,
            **options,
        )
        torch.testing.assert_close(got.double(), leaf.detach(), rtol=1e-5, atol=2e-6)
        without = logits.clone()
        gumbel_codebook_step(
            without, codebook, upstream, tau=tau, gumbel=g, moments=zeros(got) if adam else None, impl=impl, **options
        )
        assert (got.gather(2, anchor[..., None]) > without.gather(2, anchor[..., None])).all()


@pytest.mark.parametrize(
    "anchor", [torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 3), torch.full((2, 3), 5), torch.full((2, 3), -1)]
)
def test_bad_anchor_is_named(anchor: Tensor) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^anchor:"):
        gumbel_codebook_step(random(2, 3, 5), random(5, 4), random(2, 3, 4), lr=0.1, anchor=anchor, stay_penalty=1.0)


@every_optimiser
def test_opcheck(adam: bool) -> None:
    logits, codebook, upstream = random(2, 3, 5), random(5, 4, seed=1), random(2, 3, 4, seed=2)
    item_ids, gumbel = (torch.tensor([0, 4]), None) if adam else (None, random(2, 3, 5, seed=3))
    anchor = torch.tensor([[0, 4, 1], [2, 2, 3]]) if adam else None
    arguments = {
        "logits": logits,
        "codebook": codebook,
        "upstream": upstream,
        "lr": 0.1,
        "tau": 0.7,
        "seed": 3,
        "draw": 1,
        "item_ids": item_ids,
        "moments": list(zeros(logits)) if adam else [],
        "step_count": 2,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "gumbel": gumbel,
        "anchor": anchor,
        "stay_penalty": 0.5,
        "schedule": None,
        "row_stats": [],
        "impl": "auto",
    }
    torch.library.opcheck(torch.ops.cortex_fast.gumbel_codebook_step.default, (), arguments)


@every_optimiser
def test_compiles_whole(adam: bool) -> None:
    def stepped(logits: Tensor, codebook: Tensor, upstream: Tensor, moments: Moments | None) -> Tensor:
        gumbel_codebook_step(logits, codebook, 2 * upstream, lr=0.1, tau=0.5, seed=3, moments=moments)
        return logits + 1

    compiled = torch.compile(stepped, fullgraph=True, backend="aot_eager")
    codebook, upstream = random(5, 4, seed=1), random(2, 3, 4, seed=2)
    results = []
    for function in (stepped, compiled):
        logits = random(2, 3, 5)
        moments = zeros(logits) if adam else None
        returned = function(logits, codebook, upstream, moments)
        assert torch.equal(returned, logits + 1)
        results.append([logits, *(moments or ())])
    assert same_bits(*results)
    assert not torch.equal(results[0][0], random(2, 3, 5))


def test_numpy_agrees_with_the_gradient_used_here() -> None:
    logits, codebook, upstream, g = (random(*shape, dtype=torch.float64) for shape in ((1, 7), (7, 3), (1, 3), (1, 7)))
    leaf = logits.clone().requires_grad_()
    (((leaf + g) / 0.6).softmax(dim=-1) @ codebook * upstream).sum().backward()
    np.testing.assert_allclose(leaf.grad, gradient(logits, codebook, upstream, g, 0.6), rtol=1e-12)
