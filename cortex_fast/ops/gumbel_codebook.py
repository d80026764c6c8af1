"""Gumbel-Softmax selection times codebook (eq. 7): the embedding of a sampled token in every row."""

from collections.abc import Sequence
from typing import Any, List  # noqa: UP035 (torch 2.6 creates no schema of list[Tensor])

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels.row_stats import RowStats, empty_results
from cortex_fast.kernels.schedule import scheduled_values
from cortex_fast.ops.backends import REASONS, check_impl, choose, serving
from cortex_fast.ops.registering import operator

__all__ = ["RowStats", "gumbel_codebook", "gumbel_codebook_with_row_stats", "scheduled_values"]


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
    """Select a row of the codebook for each row of logits, by the Gumbel-Softmax with straight-through gradients.

    With g ~ Gumbel(0, 1), fixed by (seed, item id, draw, row, code), and y = softmax((logits + g) / tau), the index is
    argmax(logits + g) and the embedding codebook[index] (hard, gradient straight through y) or y @ codebook (soft).
    Differentiable once, in logits, codebook and gumbel.

    Args:
        logits: float [..., R, K]. A logit of -inf bans its code, as long as its row has a finite one.
        codebook: float [K, d].
        tau: the temperature, above 0. Default 1.
        seed: of the noise, in [0, 2^63). Default 0.
        draw: the number of the noise's draw, in [0, 2^32). Default 0.
        item_ids: integer [...], in [0, 2^32), the noise's item of each leading position. Default 0, 1, 2, ...
        hard: whether the embedding is that of the selected code alone. Default True.
        gumbel: float [..., R, K], used as g, for exact tests. Default None: drawn.
        schedule: float64 [4] on the logits' device, (tau, draw, lr, step_count), whose tau and draw replace the
            arguments: a CUDA graph reads them anew at each launch. On a GPU its values are not checked. The backward
            pass reads it again: change it in place only after that. Default None.
        impl: "auto", or the backend's name. Default "auto".

    Returns:
        embedding [..., R, d] in the codebook's dtype, and the index int64 [..., R] of the selected codes.

    Raises:
        TypeError: arguments of wrong types or dtypes.
        ValueError: shapes that do not fit, tau <= 0, mixed devices, or a seed, draw or item id out of range.
        BackendUnavailableError: a forced backend that is unavailable.
    """
    embedding, index, _ = _select(
        logits=logits,
        codebook=codebook,
        tau=tau,
        seed=seed,
        draw=draw,
        item_ids=item_ids,
        hard=hard,
        gumbel=gumbel,
        schedule=schedule,
        with_row_stats=False,
        impl=impl,
    )
    return embedding, index


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
) -> tuple[Tensor, Tensor, RowStats | None]:
    """Select as `gumbel_codebook`, and return what saves `gumbel_codebook_step` of the same arguments a pass.

    Args:
        logits: float [..., R, K], as all further arguments those of `gumbel_codebook`.
        codebook: float [K, d].
        tau: the temperature, above 0. Default 1.
        seed: of the noise, in [0, 2^63). Default 0.
        draw: the number of the noise's draw, in [0, 2^32). Default 0.
        item_ids: integer [...], in [0, 2^32), the noise's item of each leading position. Default 0, 1, 2, ...
        hard: whether the embedding is that of the selected code alone. Default True.
        gumbel: float [..., R, K], used as the noise. Default None: drawn.
        schedule: float64 [4] on the logits' device, whose tau and draw replace the arguments. Default None.
        impl: "auto", or the backend's name. Default "auto".

    Returns:
        embedding [..., R, d] in the codebook's dtype, the index int64 [..., R] of the selected codes, and the
        statistics of the rows, or None from a backend that makes no use of them.

    Raises:
        TypeError: as `gumbel_codebook` does.
        ValueError: as `gumbel_codebook` does.
        BackendUnavailableError: a forced backend that is unavailable.
    """
    return _select(
        logits=logits,
        codebook=codebook,
        tau=tau,
        seed=seed,
        draw=draw,
        item_ids=item_ids,
        hard=hard,
        gumbel=gumbel,
        schedule=schedule,
        with_row_stats=True,
        impl=impl,
    )


def _select(
    *,
    logits: Tensor,
    codebook: Tensor,
    tau: float,
    seed: int,
    draw: int,
    item_ids: Tensor | None,
    hard: bool,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    with_row_stats: bool,
    impl: str,
) -> tuple[Tensor, Tensor, RowStats | None]:
    """Check, flatten the leading dimensions, call the operator, and give its results the logits' leading dimensions."""
    tau, seed, draw = check_selection(
        logits, codebook, tau=tau, seed=seed, draw=draw, item_ids=item_ids, gumbel=gumbel, schedule=schedule, impl=impl
    )
    hard = checks.flag("hard", hard)
    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in present(logits, codebook, gumbel))
    shape = flat_shape(logits)
    embedding, index, largest_score, log_denominator, soft_embedding = _gumbel_codebook(
        logits=shaped(logits, shape),
        codebook=codebook,
        tau=tau,
        seed=seed,
        draw=draw,
        item_ids=flat_ids(item_ids),
        hard=hard,
        gumbel=None if gumbel is None else shaped(gumbel, shape),
        schedule=schedule,
        with_row_stats=with_row_stats or differentiated,
        impl=impl,
    )
    rows = logits.shape[:-1]
    embedding_shape = (*rows, codebook.shape[1])
    embedding, index = shaped(embedding, embedding_shape), shaped(index, rows)
    if largest_score.ndim == 1:  # empty: the backend computed none
        return embedding, index, None
    row_stats = RowStats(
        shaped(largest_score, rows), shaped(log_denominator, rows), index, shaped(soft_embedding, embedding_shape)
    )
    return embedding, index, row_stats


def check_selection(
    logits: Tensor,
    codebook: Tensor,
    *,
    tau: float,
    seed: int,
    draw: int,
    item_ids: Tensor | None,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    impl: str,
) -> tuple[float, int, int]:
    """Check the arguments that this operator and its fused step share; tau, seed and draw as Python's numbers."""
    _check_codes(logits, codebook)
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


def _check_codes(logits: Tensor, codebook: Tensor) -> None:
    checks.floating("logits", logits)
    if logits.ndim < 2:
        raise ValueError(f"logits: expected shape [..., R, K], got {list(logits.shape)}")
    checks.rank("codebook", codebook, "[K, d]")
    checks.floating("codebook", codebook)
    codes = logits.shape[-1]
    if codes == 0 or codes != codebook.shape[0]:
        raise ValueError(f"logits: expected K = {codebook.shape[0]} >= 1 codes as in codebook, got {codes}")


def flat_shape(logits: Tensor) -> tuple[int, int, int]:
    """(P, R, K) of logits [..., R, K], whose leading dimensions are the problems."""
    rows, codes = logits.shape[-2:]
    return logits.shape[:-2].numel(), rows, codes


def shaped(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor itself where it has the shape, since a view takes a microsecond; else reshaped."""
    return tensor if tensor.shape == shape else tensor.reshape(shape)


def flat_ids(item_ids: Tensor | None) -> Tensor | None:
    """int64 [P]."""
    return None if item_ids is None else item_ids.reshape(-1).long()


def present(*tensors: Tensor | None) -> list[Tensor]:
    """The tensors that are not None: those whose dtype a backend must be able to take."""
    return [tensor for tensor in tensors if tensor is not None]


def problem_ids(logits: Tensor, item_ids: Tensor | None) -> Tensor:
    """The random-stream item id of each problem, int64 [P]."""
    return torch.arange(logits.shape[0], device=logits.device) if item_ids is None else item_ids


@operator("gumbel_codebook")
def _gumbel_codebook(
    logits: Tensor,
    codebook: Tensor,
    tau: float,
    seed: int,
    draw: int,
    item_ids: Tensor | None,
    hard: bool,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    with_row_stats: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Embedding, index, and the row statistics but `selected`, which is the index; empty [0] where there are none."""
    if item_ids is not None:
        checks.in_range("item_ids", item_ids, 2**32)
    kernel = serving("gumbel_codebook", impl, *present(logits, codebook, gumbel))
    return _flat_results(
        logits,
        *kernel(
            logits=logits,
            codebook=codebook,
            tau=tau,
            seed=seed,
            draw=draw,
            item_ids=problem_ids(logits, item_ids),
            hard=hard,
            gumbel=gumbel,
            schedule=schedule,
            with_row_stats=with_row_stats,
        ),
    )


def _flat_results(
    logits: Tensor, embedding: Tensor, index: Tensor, row_stats: RowStats | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if row_stats is None:
        first, second, third = (logits.new_empty(0, dtype=torch.float32) for _ in range(3))
        return embedding, index, first, second, third
    return embedding, index, row_stats.largest_score, row_stats.log_denominator, row_stats.soft_embedding


@_gumbel_codebook.register_fake
def _(logits, codebook, tau, seed, draw, item_ids, hard, gumbel, schedule, with_row_stats, impl):
    backend = choose("gumbel_codebook", REASONS["gumbel_codebook"], impl, *present(logits, codebook, gumbel))
    computed = backend in ("cuda", "triton") and (with_row_stats or not hard)
    return _flat_results(logits, *empty_results(logits, codebook, computed))


@operator("gumbel_codebook_backward")
def _gumbel_codebook_backward(
    upstream: Tensor,
    logits: Tensor,
    codebook: Tensor,
    tau: float,
    seed: int,
    draw: int,
    item_ids: Tensor | None,
    hard: bool,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    index: Tensor,
    row_stats: List[Tensor],  # noqa: UP006
    codebook_needed: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of logits and codebook. row_stats: those of RowStats, or none."""
    kernel = serving("gumbel_codebook_backward", impl, *present(logits, codebook, gumbel))
    gradients: tuple[Tensor, Tensor] = kernel(
        upstream=upstream,
        logits=logits,
        codebook=codebook,
        tau=tau,
        seed=seed,
        draw=draw,
        item_ids=problem_ids(logits, item_ids),
        hard=hard,
        gumbel=gumbel,
        schedule=schedule,
        index=index,
        row_stats=RowStats(*row_stats) if row_stats else None,
        codebook_needed=codebook_needed,
    )
    return gradients


@_gumbel_codebook_backward.register_fake
def _(
    upstream, logits, codebook, tau, seed, draw, item_ids, hard, gumbel, schedule, index, row_stats, codebook_needed,
    impl,
):  # fmt: skip
    codes, channels = codebook.shape
    return logits.new_empty(logits.shape), codebook.new_empty((codes if codebook_needed else 0, channels))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, codebook, tau, seed, draw, item_ids, hard, gumbel, schedule, _, impl = inputs
    _, *constants = output
    ctx.settings = {"tau": tau, "seed": seed, "draw": draw, "hard": hard, "impl": impl}
    ctx.mark_non_differentiable(*constants)
    ctx.save_for_backward(logits, codebook, item_ids, gumbel, schedule, *constants)


def _backward(ctx: Any, upstream: Tensor, *_constants: Any) -> tuple[Tensor | None, ...]:
    logits, codebook, item_ids, gumbel, schedule, index, *others = ctx.saved_tensors
    largest_score, log_denominator, soft_embedding = others
    codebook_needed, gumbel_needed = ctx.needs_input_grad[1], ctx.needs_input_grad[7]
    grad_logits, grad_codebook = _gumbel_codebook_backward(
        upstream=upstream,
        logits=logits,
        codebook=codebook,
        item_ids=item_ids,
        gumbel=gumbel,
        schedule=schedule,
        index=index,
        row_stats=[largest_score, log_denominator, index, soft_embedding] if largest_score.ndim > 1 else [],
        codebook_needed=codebook_needed,
        **ctx.settings,
    )
    grad_gumbel = grad_logits.to(gumbel.dtype) if gumbel_needed else None  # the scores are their sum
    return grad_logits, grad_codebook if codebook_needed else None, *[None] * 5, grad_gumbel, *[None] * 3


_gumbel_codebook.register_autograd(_backward, setup_context=_setup_context)
