"""The backward pass of `gumbel_codebook` fused with an optimiser's step on the logits, in place."""

import itertools
from typing import Any, List  # noqa: UP035 (torch 2.6 creates no schema of list[Tensor])

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels.row_stats import RowStats
from cortex_fast.ops.backends import serving
from cortex_fast.ops.gumbel_codebook import (
    check_selection,
    flat_ids,
    flat_shape,
    present,
    problem_ids,
    shaped,
)
from cortex_fast.ops.registering import operator


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
    row_stats: RowStats | None = None,
    impl: str = "auto",
) -> None:
    """Take one optimiser's step on the logits, in place, from the gradient of their embedding.

    The same as the backward pass of `gumbel_codebook` (eq. 7) with the same arguments, hard or soft,
    dP = y (D - <y, D>) / tau with D = upstream @ codebook.T, then torch.optim.Adam's step, or torch.optim.SGD's without
    momentum; but dP is never written.

    Args:
        logits: float32 or float64 [..., R, K], contiguous, without gradient; changed in place.
        codebook: float [K, d].
        upstream: float [..., R, d], the loss's gradient in the embedding.
        lr: the learning rate, at least 0; needed without a schedule.
        tau: the temperature, above 0. Default 1.
        seed: of the noise, in [0, 2^63). Default 0.
        draw: the number of the noise's draw, in [0, 2^32). Default 0.
        item_ids: integer [...], in [0, 2^32), the noise's item of each leading position. Default 0, 1, 2, ...
        moments: (m, v), Adam's averages of dP and dP^2, each [..., R, K] of the logits' dtype, contiguous, zero before
            step 1; changed in place. Default None: SGD.
        step_count: the number of this step, from 1. Default 1.
        betas: Adam's decay rates, two numbers in [0, 1). Default (0.9, 0.999).
        eps: Adam's epsilon, above 0. Default 1e-8.
        gumbel: float [..., R, K], used as the noise. Default None: drawn.
        anchor: integer [..., R], in [0, K), a code of each row that `stay_penalty` holds it to. Default None.
        stay_penalty: the loss has stay_penalty * (1 - y[anchor]) added for each row. Default 0.
        schedule: float64 [4] on the logits' device, (tau, draw, lr, step_count), which replace the arguments.
            Default None.
        row_stats: what `gumbel_codebook_with_row_stats` returned for these logits. Default None: computed if needed.
        impl: "auto", or the backend's name. Default "auto".

    Raises:
        TypeError: as `gumbel_codebook` does, and for logits or moments of other dtypes.
        ValueError: as `gumbel_codebook` does, and for logits or moments that cannot be changed in place.
        BackendUnavailableError: a forced backend that is unavailable.
    """
    tau, seed, draw = check_selection(
        logits, codebook, tau=tau, seed=seed, draw=draw, item_ids=item_ids, gumbel=gumbel, schedule=schedule, impl=impl
    )
    checks.floating("upstream", upstream)
    checks.same_shape("upstream", upstream, "the embedding", torch.Size((*logits.shape[:-1], codebook.shape[1])))
    lr = _checked_rate(lr, schedule)
    eps, stay_penalty = checks.positive("eps", eps), checks.non_negative("stay_penalty", stay_penalty)
    step_count, betas = checks.whole("step_count", step_count, 1, 2**53), _checked_betas(betas)
    _check_anchor(anchor, stay_penalty, logits)
    _check_row_stats(row_stats, logits, codebook)
    named_moments = _checked_moments(moments, logits)
    checks.same_device(logits=logits, upstream=upstream, **named_moments)
    shape = problems, rows, _ = flat_shape(logits)
    _gumbel_codebook_step(
        logits=shaped(logits, shape),
        codebook=codebook,
        upstream=shaped(upstream, (problems, rows, codebook.shape[1])),
        lr=lr,
        tau=tau,
        seed=seed,
        draw=draw,
        item_ids=flat_ids(item_ids),
        moments=[shaped(moment, shape) for moment in named_moments.values()],
        step_count=step_count,
        betas=list(betas),
        eps=eps,
        gumbel=None if gumbel is None else shaped(gumbel, shape),
        anchor=None if anchor is None or stay_penalty == 0 else shaped(anchor, (problems, rows)).long(),
        stay_penalty=stay_penalty,
        schedule=schedule,
        row_stats=[] if row_stats is None else _flat_row_stats(row_stats, problems),
        impl=impl,
    )


def _checked_rate(lr: float | None, schedule: Tensor | None) -> float:
    if lr is None and schedule is None:
        raise ValueError("lr: expected a number, or a schedule that has one, got None")
    return 0.0 if lr is None else checks.non_negative("lr", lr)


def _checked_betas(betas: Any) -> tuple[float, float]:
    expected = "two numbers in [0, 1)"
    first, second = (checks.non_negative("betas", beta) for beta in _pair("betas", betas, expected))
    if max(first, second) >= 1:
        raise ValueError(f"betas: expected {expected}, got {checks.shown(betas)}")
    return first, second


def _check_anchor(anchor: Tensor | None, stay_penalty: float, logits: Tensor) -> None:
    if anchor is None and stay_penalty:
        raise ValueError(f"anchor: expected each row's code for a penalty of {stay_penalty}, got None")
    if anchor is not None:
        checks.integral("anchor", anchor)
        checks.same_shape("anchor", anchor, "logits' rows", logits.shape[:-1])
        checks.same_device(logits=logits, anchor=anchor)


def _check_row_stats(row_stats: Any, logits: Tensor, codebook: Tensor) -> None:
    if row_stats is None:
        return
    if not isinstance(row_stats, tuple | list) or len(row_stats) != len(RowStats._fields):
        names = ", ".join(RowStats._fields)
        raise TypeError(f"row_stats: expected the tensors {names}, or None, got {checks.shown(row_stats)}")
    rows = logits.shape[:-1]
    for field, tensor in zip(RowStats._fields, row_stats, strict=True):
        name = f"row_stats.{field}"
        checks.integral(name, tensor) if field == "selected" else checks.floating(name, tensor)
        dtype = torch.int64 if field == "selected" else torch.float32
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: expected {dtype}, got {tensor.dtype}")
        shape = torch.Size((*rows, codebook.shape[1])) if field == "soft_embedding" else rows
        checks.same_shape(name, tensor, "the embedding" if field == "soft_embedding" else "logits' rows", shape)
        checks.same_device(logits=logits, row_stats=tensor)


def _flat_row_stats(row_stats: RowStats, problems: int) -> list[Tensor]:
    """Each [P, R], the last [P, R, d]."""
    *of_rows, soft_embedding = row_stats
    rows, channels = soft_embedding.shape[-2:]
    return [
        *(shaped(tensor, (problems, rows)) for tensor in of_rows),
        shaped(soft_embedding, (problems, rows, channels)),
    ]


def _checked_moments(moments: Any, logits: Tensor) -> dict[str, Tensor]:
    """The moments by the names that errors give them; empty for None."""
    named: dict[str, Tensor] = {}
    if moments is not None:
        named["moments[0]"], named["moments[1]"] = _pair("moments", moments, "two tensors")
    for name, tensor in {"logits": logits, **named}.items():
        _check_changeable(name, tensor, logits)
    return named


def _pair(name: str, value: Any, expected: str) -> Any:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{name}: expected {expected}, got {checks.shown(value)}")
    return value


def _check_changeable(name: str, tensor: Tensor, logits: Tensor) -> None:
    checks.floating(name, tensor)
    if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != logits.dtype:
        raise TypeError(f"{name}: expected the logits' dtype, float32 or float64, got {tensor.dtype}")
    checks.same_shape(name, tensor, "logits", logits.shape)
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected contiguous memory, since it is changed in place, got a strided view")
    # torch.compile creates neither lazy views nor such zeros
    if not torch.compiler.is_compiling() and (tensor.is_neg() or tensor._is_zerotensor()):
        raise ValueError(f"{name}: expected memory of its own, since it is changed in place, got a lazy view or zeros")
    if tensor.requires_grad:
        raise ValueError(f"{name}: expected a tensor that requires no gradient, since it is changed in place")


@operator("gumbel_codebook_step", mutates_args=("logits", "moments"))
def _gumbel_codebook_step(
    logits: Tensor,
    codebook: Tensor,
    upstream: Tensor,
    lr: float,
    tau: float,
    seed: int,
    draw: int,
    item_ids: Tensor | None,
    moments: List[Tensor],  # noqa: UP006
    step_count: int,
    betas: List[float],  # noqa: UP006
    eps: float,
    gumbel: Tensor | None,
    anchor: Tensor | None,
    stay_penalty: float,
    schedule: Tensor | None,
    row_stats: List[Tensor],  # noqa: UP006
    impl: str,
) -> None:
    """moments: none for gradient descent. row_stats: those of RowStats, or none."""
    if item_ids is not None:
        checks.in_range("item_ids", item_ids, 2**32)
    if anchor is not None:
        checks.in_range("anchor", anchor, codebook.shape[0])
    _check_apart({"logits": logits, **{f"moments[{i}]": moment for i, moment in enumerate(moments)}})
    serving("gumbel_codebook_step", impl, *present(logits, codebook, gumbel))(
        logits=logits,
        codebook=codebook,
        upstream=upstream,
        lr=lr,
        tau=tau,
        seed=seed,
        draw=draw,
        item_ids=problem_ids(logits, item_ids),
        moments=(moments[0], moments[1]) if moments else None,
        step_count=step_count,
        betas=(betas[0], betas[1]),
        eps=eps,
        gumbel=gumbel,
        anchor=anchor,
        stay_penalty=stay_penalty,
        schedule=schedule,
        row_stats=RowStats(*row_stats) if row_stats else None,
    )


def _check_apart(changed: dict[str, Tensor]) -> None:
    """Raise where tensors overlap. It reads addresses, so that no tracer may see it."""
    extents = sorted((tensor.data_ptr(), name, tensor) for name, tensor in changed.items())
    for (begin, before, tensor), (next_begin, name, _) in itertools.pairwise(extents):
        if begin + tensor.nbytes > next_begin:
            raise ValueError(f"{name}: expected memory of its own, since it is changed in place, got that of {before}")


@_gumbel_codebook_step.register_fake
def _(
    logits, codebook, upstream, lr, tau, seed, draw, item_ids, moments, step_count, betas, eps, gumbel, anchor,
    stay_penalty, schedule, row_stats, impl,
):  # fmt: skip
    return None
