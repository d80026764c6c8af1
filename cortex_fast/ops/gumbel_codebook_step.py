"""The backward pass of `gumbel_codebook` fused with an optimiser's step on the logits, in place."""

import itertools
from typing import Any, List  # noqa: UP035

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels import native
from cortex_fast.kernels.reference import gumbel_codebook as reference
from cortex_fast.ops.backends import REASONS, choose
from cortex_fast.ops.gumbel_codebook import check_arguments, floats, numbers, problem_ids
from cortex_fast.ops.registering import operator

if native.UNAVAILABLE is None:
    from cortex_fast.kernels.native import gumbel_codebook as native_kernel


def gumbel_codebook_step(
    logits: Tensor,
    codebook: Tensor,
    upstream: Tensor,
    *,
    lr: float | None = None,
    tau: float = 1.0,
    seed: int = 0,
    draw: int = 0,
    item_ids: Tensor | None = None,
    moments: tuple[Tensor, Tensor] | None = None,
    step_count: int = 1,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    gumbel: Tensor | None = None,
    anchor: Tensor | None = None,
    stay_penalty: float = 0.0,
    schedule: Tensor | None = None,
    row_stats: Tensor | None = None,
    impl: str = "auto",
) -> None:
    """One optimiser's step on logits [...,R,K], in place, from the gradient dE [...,R,d] of their embedding.

    The same as the backward pass of `gumbel_codebook` (eq. 7) with the same codebook C [K,d], tau, seed, draw, item_ids
    and gumbel, dP = y (D - <y, D>) / tau with D = dE C^T, then torch.optim.Adam's step, or torch.optim.SGD's without
    momentum; but dP is never written.
    moments (m, v): Adam's averages of dP and dP^2, shaped as logits, zero before step 1; changed in place. None: SGD.
    anchor, stay_penalty: int64 [...,R], a code of each row; the loss then also has stay_penalty (1 - y[anchor]).
    step_count: the number of this step, from 1. The same step serves a hard and a soft selection.
    schedule: float64 [4] on the logits' device, (tau, draw, lr, step_count), which then stand for the numbers.
    row_stats: what `gumbel_codebook_with_row_stats` gave for these logits.
    logits and moments are float32 or float64 and contiguous, and require no gradient.
    Raises TypeError or ValueError as `gumbel_codebook` does, and for logits or moments that cannot be changed in place.
    """
    tau, seed, draw = check_arguments(logits, codebook, tau, seed, draw, item_ids, gumbel, schedule, impl)
    checks.floating("upstream", upstream)
    checks.same_shape("upstream", upstream, "the embedding", torch.Size((*logits.shape[:-1], codebook.shape[1])))
    if lr is None and schedule is None:
        raise ValueError("lr: expected a number, or a schedule that has one, got None")
    lr = 0.0 if lr is None else checks.non_negative("lr", lr)
    eps, stay_penalty = checks.positive("eps", eps), checks.non_negative("stay_penalty", stay_penalty)
    step_count = checks.whole("step_count", step_count, 1, 2**53)
    pair = _pair("betas", betas, "two numbers in [0, 1)")
    first_beta, second_beta = (checks.non_negative("betas", beta) for beta in pair)
    if max(first_beta, second_beta) >= 1:
        raise ValueError(f"betas: expected two numbers in [0, 1), got {checks.shown(betas)}")
    if anchor is None and stay_penalty:
        raise ValueError(f"anchor: expected each row's code for a price of {stay_penalty}, got None")
    if anchor is not None:
        checks.integral("anchor", anchor)
        checks.same_shape("anchor", anchor, "logits' rows", logits.shape[:-1])
        checks.same_device(logits=logits, anchor=anchor)
    if row_stats is not None:
        checks.floating("row_stats", row_stats)
    if row_stats is not None and row_stats.numel():
        if row_stats.dtype != torch.float32:
            raise TypeError(f"row_stats: expected float32, got {row_stats.dtype}")
        expected = torch.Size((*logits.shape[:-1], 3 + codebook.shape[1]))
        checks.same_shape("row_stats", row_stats, "the logits' rows and 3 + d", expected)
        checks.same_device(logits=logits, row_stats=row_stats)
    changed: dict[str, Tensor] = {"logits": logits}
    if moments is not None:
        changed["moments[0]"], changed["moments[1]"] = _pair("moments", moments, "two tensors")
    for name, tensor in changed.items():
        _check_changeable(name, tensor, logits)
    first, second = changed.get("moments[0]"), changed.get("moments[1]")
    checks.same_device(logits=logits, upstream=upstream, first=first, second=second)
    rows, codes = logits.shape[-2:]
    problems = logits.shape[:-2].numel()
    flat_gumbel = None if gumbel is None else gumbel.reshape(problems, rows, codes)
    flat_ids = None if item_ids is None else item_ids.reshape(problems).long()
    shape = (problems, rows, codes)
    _gumbel_codebook_step(
        logits.view(shape),
        None if first is None else first.view(shape),
        None if second is None else second.view(shape),
        codebook,
        upstream.reshape(problems, rows, codebook.shape[1]),
        flat_ids,
        flat_gumbel,
        schedule,
        None
        if row_stats is None
        else row_stats.reshape(-1, rows, row_stats.shape[-1])
        if row_stats.numel()
        else row_stats,
        None if anchor is None or stay_penalty == 0 else anchor.reshape(problems, rows).long(),
        stay_penalty,
        tau,
        seed,
        draw,
        lr,
        [first_beta, second_beta],
        eps,
        step_count,
        impl,
    )


def _pair(name: str, value: Any, expected: str) -> Any:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{name}: expected {expected}, got {checks.shown(value)}")
    return value


def _check_apart(changed: dict[str, Tensor | None]) -> None:
    """This reads addresses, and so stands where no tracer looks."""
    places = sorted((tensor.data_ptr(), name, tensor) for name, tensor in changed.items() if tensor is not None)
    for (begin, before, tensor), (next_begin, name, _) in itertools.pairwise(places):
        if begin + tensor.nbytes > next_begin:
            raise ValueError(f"{name}: expected memory of its own, since it is changed in place, got that of {before}")


def _check_changeable(name: str, tensor: Tensor, logits: Tensor) -> None:
    checks.floating(name, tensor)
    if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != logits.dtype:
        raise TypeError(f"{name}: expected float32 or float64 as logits, got {tensor.dtype}")
    checks.same_shape(name, tensor, "logits", logits.shape)
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected contiguous memory, since it is changed in place, got a strided view")
    if not torch.compiler.is_compiling() and (tensor.is_neg() or tensor._is_zerotensor()):  # it makes no such tensors
        raise ValueError(f"{name}: expected memory of its own, since it is changed in place, got a lazy view or zeros")
    if tensor.requires_grad:
        raise ValueError(f"{name}: expected a tensor that requires no gradient, since it is changed in place")


@operator("gumbel_codebook_step", mutates_args=("logits", "first", "second"))
def _gumbel_codebook_step(
    logits: Tensor,
    first: Tensor | None,
    second: Tensor | None,
    codebook: Tensor,
    upstream: Tensor,
    item_ids: Tensor | None,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    row_stats: Tensor | None,
    anchor: Tensor | None,
    stay_penalty: float,
    tau: float,
    seed: int,
    draw: int,
    lr: float,
    betas: List[float],  # noqa: UP006 (torch 2.6 makes no schema of list[float])
    eps: float,
    step_count: int,
    impl: str,
) -> None:
    if item_ids is not None:
        checks.in_range("item_ids", item_ids, 2**32)
    item_ids = problem_ids(logits, item_ids)
    if anchor is not None:
        checks.in_range("anchor", anchor, codebook.shape[0])
    moments = None if first is None or second is None else (first, second)
    _check_apart({"logits": logits, "moments[0]": first, "moments[1]": second})
    pair = (betas[0], betas[1])
    backend = choose("gumbel_codebook_step", REASONS["gumbel_codebook_step"], impl, *floats(logits, codebook, gumbel))
    if backend == "cuda":
        from cortex_fast.kernels.cuda import gumbel_codebook as cuda_kernel

        cuda_kernel.step(
            logits, codebook, upstream, item_ids, gumbel, schedule, row_stats, tau, seed, draw, moments, lr, pair, eps,
            step_count, anchor, stay_penalty,
        )  # fmt: skip
        return
    if backend == "triton":
        from cortex_fast.kernels.triton import gumbel_codebook_backward as triton_kernel

        triton_kernel.step(
            logits, codebook, upstream, item_ids, gumbel, schedule, row_stats, tau, seed, draw, moments, lr, pair, eps,
            step_count, anchor, stay_penalty,
        )  # fmt: skip
        return
    tau, draw, lr, step_count = numbers(schedule, tau, draw, lr, step_count)
    if backend == "native":
        native_kernel.step(
            logits,
            codebook,
            upstream,
            item_ids,
            gumbel,
            tau,
            seed,
            draw,
            moments,
            lr,
            pair,
            eps,
            step_count,
            anchor,
            stay_penalty,
        )
    else:
        noise = reference.noise_of(logits, item_ids, gumbel, seed, draw)
        reference.step(logits, codebook, upstream, noise, tau, moments, lr, pair, eps, step_count, anchor, stay_penalty)


@_gumbel_codebook_step.register_fake
def _(
    logits,
    first,
    second,
    codebook,
    upstream,
    item_ids,
    gumbel,
    schedule,
    row_stats,
    anchor,
    stay_penalty,
    tau,
    seed,
    draw,
    lr,
    betas,
    eps,
    step_count,
    impl,
):
    return None
