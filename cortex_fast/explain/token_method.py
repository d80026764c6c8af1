"""Token selection as a method of optimisation: Gumbel-Softmax over the logits of the free positions (eq. 7)."""

import math
from functools import partial

import torch
from torch import Tensor

from cortex_fast import ops
from cortex_fast.explain.problems import Problems
from cortex_fast.explain.recipes import BETAS, EPS, Recipe
from cortex_fast.explain.stepping import Method, Moments
from cortex_fast.ops.descent_step import descent_step
from cortex_fast.ops.gumbel_codebook import RowStats, scheduled_values
from cortex_fast.ops.random_stream import gumbel, normal

_START_DRAW = 2**32 - 1  # the draw of the first logits; steps use 0, 1, 2, ...
_LIKELY = 1.0  # above the logarithm of the number of codes: the first logit of an image's token


def token_method(recipe: Recipe, seed: int, mask: Tensor | None) -> Method:
    """Gumbel-Softmax over logits float32 [P,rows,K].

    Args:
        recipe: its start, optimizer, draws and stay_penalty.
        seed: seed of the random stream.
        mask: the allowed tokens, as `allowed_mask` returns them.

    Returns:
        The method, whose variables are the logits.
    """
    propose, learn = (_propose, _learn) if recipe.draws == 1 else (_propose_draws, _learn_from_draws)
    return Method(
        start=partial(_first_logits, recipe=recipe, seed=seed, mask=mask),
        propose=partial(propose, seed=seed),
        learn=partial(learn, recipe=recipe, seed=seed),
        decide=_most_likely,
    )


def _first_logits(problems: Problems, *, recipe: Recipe, seed: int, mask: Tensor | None) -> Tensor:
    """Logits before the first step; those of forbidden tokens are -inf."""
    rows, codes, device = len(problems.free), len(problems.codebook), problems.codebook.device
    if recipe.start == "image":
        logits = torch.zeros(len(problems), rows, codes, dtype=torch.float32, device=device)
        logits.scatter_(2, problems.anchor[..., None], math.log(codes) + _LIKELY)
    else:
        draw = torch.tensor([_START_DRAW], device=device)
        logits = normal(seed, problems.item_ids, draw, rows, codes)[:, 0].contiguous()
    if mask is not None:
        logits.masked_fill_(~(mask[problems.places] if mask.ndim == 3 else mask), -math.inf)
    return logits


def _propose(logits: Tensor, problems: Problems, schedule: Tensor, *, seed: int) -> tuple[Tensor, RowStats | None]:
    """The embeddings [P,rows,d] of the step's only draw, and its row statistics."""
    embedding, _, row_stats = ops.gumbel_codebook_with_row_stats(
        logits, problems.codebook, seed=seed, item_ids=problems.item_ids, schedule=schedule[0]
    )
    return embedding, row_stats


def _propose_draws(logits: Tensor, problems: Problems, schedule: Tensor, *, seed: int) -> tuple[Tensor, None]:
    """The embeddings [draws * P, rows, d] of several draws, whose mean gradient needs no row statistics."""
    draws = [
        ops.gumbel_codebook(logits, problems.codebook, seed=seed, item_ids=problems.item_ids, schedule=of_draw)[0]
        for of_draw in schedule
    ]
    return torch.cat(draws), None


def _learn(
    logits: Tensor,
    moments: Moments | None,
    problems: Problems,
    schedule: Tensor,
    row_stats: RowStats | None,
    gradient: Tensor,
    *,
    recipe: Recipe,
    seed: int,
) -> None:
    """The optimiser's step from a single draw, fused with the backward pass."""
    ops.gumbel_codebook_step(
        logits,
        problems.codebook,
        gradient,
        seed=seed,
        item_ids=problems.item_ids,
        moments=moments,
        anchor=problems.anchor if recipe.stay_penalty else None,
        stay_penalty=recipe.stay_penalty,
        schedule=schedule[0],
        row_stats=row_stats,
    )


def _learn_from_draws(
    logits: Tensor,
    moments: Moments | None,
    problems: Problems,
    schedule: Tensor,
    row_stats: RowStats | None,
    gradient: Tensor,
    *,
    recipe: Recipe,
    seed: int,
) -> None:
    """The optimiser's step along the mean gradient of several draws. gradient: of their mean loss."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_(True)
        for of_draw, upstream in zip(schedule, gradient.unflatten(0, (recipe.draws, -1)), strict=True):
            embedding, _ = ops.gumbel_codebook(
                leaf, problems.codebook, seed=seed, item_ids=problems.item_ids, schedule=of_draw
            )
            embedding.backward(upstream)
            if recipe.stay_penalty:
                stay = _stay_probability(leaf, problems, of_draw, seed).sum()
                (-recipe.stay_penalty / recipe.draws * stay).backward()
    assert leaf.grad is not None
    _, _, lr, step_count = scheduled_values(schedule[0])
    descent_step(logits, leaf.grad, lr=lr, moments=moments, step_count=step_count, betas=BETAS, eps=EPS)


def _stay_probability(logits: Tensor, problems: Problems, schedule: Tensor, seed: int) -> Tensor:
    """y of the image's token in each row of a draw, [P,rows,1]."""
    tau, draw, _, _ = scheduled_values(schedule)
    draw = torch.as_tensor(draw, device=logits.device).view(1)
    g = gumbel(seed, problems.item_ids, draw, *logits.shape[1:])[:, 0]
    return ((logits + g) / tau).softmax(dim=2).gather(2, problems.anchor[..., None])


def _most_likely(logits: Tensor, problems: Problems) -> Tensor:
    """The tokens of largest logit, without noise, int64 [P,rows]."""
    return logits.argmax(dim=2)
