"""Gumbel-Softmax selection times codebook (eq. 7): the embedding of a sampled token in every row."""

import math
from typing import Any

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels import native
from cortex_fast.kernels.reference import gumbel_codebook as reference
from cortex_fast.ops.backends import REASONS, check_impl, choose
from cortex_fast.ops.registering import operator

if native.UNAVAILABLE is None:
    from cortex_fast.kernels.native import gumbel_codebook as native_kernel


def gumbel_codebook(
    logits: Tensor,
    codebook: Tensor,
    *,
    tau: float = 1.0,
    seed: int = 0,
    draw: int = 0,
    item_ids: Tensor | None = None,
    hard: bool = True,
    gumbel: Tensor | None = None,
    schedule: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Logits [...,R,K] and codebook C [K,d] -> embedding [...,R,d] in C's dtype, and the selected index int64 [...,R].

    With g ~ Gumbel(0, 1) and y = softmax((logits + g) / tau), the index is argmax(logits + g); the embedding is
    C[index] (hard, gradient straight through y) or y C (soft). g is fixed by (seed, item id, draw, row, code):
    item_ids int [...] defaults to 0, 1, 2, ... over the leading dimensions. gumbel [...,R,K] replaces g, for exact
    tests. A logit of -inf bans its token, as long as its row has a finite one.
    schedule: float64 [4] on the logits' device, (tau, draw, lr, step_count), whose tau and draw stand for the numbers:
    a CUDA graph reads them anew each time that it is launched. On a GPU its values are not checked. The backward pass
    reads it again: change it in place only after that.
    Differentiable once, in logits, codebook and gumbel.
    Raises TypeError for wrong dtypes, ValueError for shapes that do not fit, tau <= 0, mixed devices, or a seed, draw
    or item id outside [0, 2^63), [0, 2^32), [0, 2^32).
    """
    settings = (tau, seed, draw, item_ids, hard, gumbel, schedule)
    return _checked(logits, codebook, *settings, keep=False, impl=impl)[:2]


def gumbel_codebook_with_row_stats(
    logits: Tensor,
    codebook: Tensor,
    *,
    tau: float = 1.0,
    seed: int = 0,
    draw: int = 0,
    item_ids: Tensor | None = None,
    hard: bool = True,
    gumbel: Tensor | None = None,
    schedule: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """`gumbel_codebook`, and what spares `gumbel_codebook_step` of the same arguments a pass over the logits.

    That is float32 [...,R,3+d], the largest score, the logarithm of y's denominator behind it, the index's bits and
    y C; or nothing, [0], of a backend that makes no use of it.
    """
    return _checked(logits, codebook, tau, seed, draw, item_ids, hard, gumbel, schedule, keep=True, impl=impl)


def _checked(
    logits: Tensor,
    codebook: Tensor,
    tau: float,
    seed: int,
    draw: int,
    item_ids: Tensor | None,
    hard: bool,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    *,
    keep: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    tau, seed, draw = check_arguments(logits, codebook, tau, seed, draw, item_ids, gumbel, schedule, impl)
    hard = checks.flag("hard", hard)
    *lead, rows, codes = logits.shape
    problems = logits.shape[:-2].numel()
    keep = keep or (
        torch.is_grad_enabled() and any(tensor.requires_grad for tensor in floats(logits, codebook, gumbel))
    )
    flat_gumbel = None if gumbel is None else gumbel.reshape(problems, rows, codes)
    flat = logits.reshape(problems, rows, codes)
    flat_ids = None if item_ids is None else item_ids.reshape(problems).long()
    embedding, index, row_stats = _gumbel_codebook(
        flat, codebook, flat_ids, flat_gumbel, schedule, tau, seed, draw, hard, keep, impl
    )
    row_stats = row_stats.view(*lead, rows, row_stats.shape[-1]) if row_stats.ndim == 3 else row_stats
    return embedding.view(*lead, rows, codebook.shape[1]), index.view(*lead, rows), row_stats


def check_arguments(
    logits: Tensor,
    codebook: Tensor,
    tau: float,
    seed: int,
    draw: int,
    item_ids: Tensor | None,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    impl: str,
) -> tuple[float, int, int]:
    """What this operator and its fused step ask of the arguments that they share: tau, seed, draw."""
    checks.floating("logits", logits)
    if logits.ndim < 2:
        raise ValueError(f"logits: expected shape [..., R, K], got {list(logits.shape)}")
    checks.rank("codebook", codebook, "[K, d]")
    checks.floating("codebook", codebook)
    codes = logits.shape[-1]
    if codes == 0 or codes != codebook.shape[0]:
        raise ValueError(f"logits: expected K = {codebook.shape[0]} >= 1 codes as in codebook, got {codes}")
    tau, seed, draw = checks.positive("tau", tau), checks.seed(seed), checks.whole("draw", draw, 0, 2**32 - 1)
    check_impl(impl)
    if item_ids is not None:
        checks.integral("item_ids", item_ids)
        checks.same_shape("item_ids", item_ids, "the leading dimensions of logits", logits.shape[:-2])
    if gumbel is not None:
        checks.floating("gumbel", gumbel)
        checks.same_shape("gumbel", gumbel, "logits", logits.shape)
    if schedule is not None:
        checks.floating("schedule", schedule)
        if schedule.dtype != torch.float64 or schedule.shape != (4,):
            raise ValueError(f"schedule: expected float64 [4], got {schedule.dtype} {list(schedule.shape)}")
    checks.same_device(logits=logits, codebook=codebook, item_ids=item_ids, gumbel=gumbel, schedule=schedule)
    return tau, seed, draw


def numbers(
    schedule: Tensor | None, tau: float = 1.0, draw: int = 0, lr: float = 0.0, step: int = 1
) -> tuple[Any, Any, Any, Any]:
    """tau, draw, lr and step: those given, or a schedule's; on a GPU as scalar tensors, since reading waits."""
    if schedule is None:
        return tau, draw, lr, step
    if schedule.device.type != "cpu":
        tau_now, draw_now, lr_now, step_now = schedule.unbind()
        return tau_now, draw_now.long(), lr_now, step_now
    tau, draw_now, lr, step_now = schedule.tolist()
    if not (0 < tau < math.inf and 0 <= draw_now < 2**32 and 0 <= lr < math.inf and step_now >= 1):
        raise ValueError(
            f"schedule: expected tau > 0, a draw in [0, 2^32), lr >= 0 and step >= 1, got {schedule.tolist()}"
        )
    return tau, int(draw_now), lr, int(step_now)


@operator("gumbel_codebook")
def _gumbel_codebook(
    logits: Tensor,
    codebook: Tensor,
    item_ids: Tensor | None,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    tau: float,
    seed: int,
    draw: int,
    hard: bool,
    keep: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if item_ids is not None:
        checks.in_range("item_ids", item_ids, 2**32)
    item_ids = problem_ids(logits, item_ids)
    backend = choose("gumbel_codebook", REASONS["gumbel_codebook"], impl, *floats(logits, codebook, gumbel))
    if backend == "cuda":
        from cortex_fast.kernels.cuda import gumbel_codebook as cuda_kernel

        return cuda_kernel.forward(logits, codebook, item_ids, gumbel, schedule, tau, seed, draw, hard, keep)
    if backend == "triton":
        from cortex_fast.kernels.triton import gumbel_codebook as triton_kernel

        return triton_kernel.forward(logits, codebook, item_ids, gumbel, schedule, tau, seed, draw, hard, keep)
    tau, draw, _, _ = numbers(schedule, tau, draw)
    if backend == "native":
        embedding, index = native_kernel.forward(logits, codebook, item_ids, gumbel, tau, seed, draw, hard)
    else:
        noise = reference.noise_of(logits, item_ids, gumbel, seed, draw)
        embedding, index = reference.forward(logits, codebook, noise, tau, hard)
    return embedding, index, logits.new_empty(0, dtype=torch.float32)


@_gumbel_codebook.register_fake
def _(logits, codebook, item_ids, gumbel, schedule, tau, seed, draw, hard, keep, impl):
    backend = choose("gumbel_codebook", REASONS["gumbel_codebook"], impl, *floats(logits, codebook, gumbel))
    return reference.empty_results(logits, codebook, backend in ("cuda", "triton") and (keep or not hard))


@operator("gumbel_codebook_backward")
def _gumbel_codebook_backward(
    upstream: Tensor,
    logits: Tensor,
    codebook: Tensor,
    item_ids: Tensor | None,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    index: Tensor,
    row_stats: Tensor,
    tau: float,
    seed: int,
    draw: int,
    hard: bool,
    impl: str,
    codebook_needed: bool,
) -> tuple[Tensor, Tensor]:
    item_ids = problem_ids(logits, item_ids)
    backend = choose("gumbel_codebook", REASONS["gumbel_codebook"], impl, *floats(logits, codebook, gumbel))
    if backend == "cuda":
        from cortex_fast.kernels.cuda import gumbel_codebook as cuda_kernel

        return cuda_kernel.backward(
            upstream,
            logits,
            codebook,
            item_ids,
            gumbel,
            schedule,
            index,
            row_stats,
            tau,
            seed,
            draw,
            hard,
            codebook_needed,
        )
    if backend == "triton":
        from cortex_fast.kernels.triton import gumbel_codebook_backward as triton_kernel

        return triton_kernel.backward(
            upstream,
            logits,
            codebook,
            item_ids,
            gumbel,
            schedule,
            index,
            row_stats,
            tau,
            seed,
            draw,
            hard,
            codebook_needed,
        )
    tau, draw, _, _ = numbers(schedule, tau, draw)
    if backend == "native":
        return native_kernel.backward(
            upstream, logits, codebook, item_ids, gumbel, index, tau, seed, draw, hard, codebook_needed
        )
    noise = reference.noise_of(logits, item_ids, gumbel, seed, draw)
    return reference.backward(upstream, logits, codebook, noise, index, tau, hard, codebook_needed)


@_gumbel_codebook_backward.register_fake
def _(
    upstream,
    logits,
    codebook,
    item_ids,
    gumbel,
    schedule,
    index,
    row_stats,
    tau,
    seed,
    draw,
    hard,
    impl,
    codebook_needed,
):
    codes, channels = codebook.shape
    return logits.new_empty(logits.shape), codebook.new_empty((codes if codebook_needed else 0, channels))


def problem_ids(logits: Tensor, item_ids: Tensor | None) -> Tensor:
    """The item of each of the P problems."""
    return torch.arange(logits.shape[0], device=logits.device) if item_ids is None else item_ids


def floats(*tensors: Tensor | None) -> list[Tensor]:
    """Those whose dtype a backend must be able to take."""
    return [tensor for tensor in tensors if tensor is not None]


def _setup_context(ctx, inputs, output) -> None:
    logits, codebook, item_ids, gumbel, schedule, tau, seed, draw, hard, _keep, impl = inputs
    _, index, row_stats = output
    ctx.settings = (tau, seed, draw, hard, impl)
    ctx.mark_non_differentiable(index, row_stats)
    ctx.save_for_backward(logits, codebook, item_ids, gumbel, schedule, index, row_stats)


def _backward(ctx, upstream: Tensor, _index_upstream, _kept_upstream):
    codebook_needed = ctx.needs_input_grad[1]
    grad_logits, grad_codebook = _gumbel_codebook_backward(upstream, *ctx.saved_tensors, *ctx.settings, codebook_needed)
    gumbel = ctx.saved_tensors[3]
    grad_gumbel = grad_logits.to(gumbel.dtype) if ctx.needs_input_grad[3] else None  # the scores are their sum
    return grad_logits, grad_codebook if codebook_needed else None, None, grad_gumbel, *[None] * 7


_gumbel_codebook.register_autograd(_backward, setup_context=_setup_context)
