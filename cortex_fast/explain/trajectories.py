"""The trajectory of an optimisation of tokens: tokens and probabilities at judged steps, the loss at every step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cortex_fast.explain.problems import Problems
from cortex_fast.explain.recipes import Recipe
from cortex_fast.explain.results import TokenSelection


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The trajectory of all problems, filled in as they step.

    Args:
        history: int64 [T,P,h,w], the tokens at each judged step.
        probability: float32 [T,P], the judge's probability of the target.
        loss: float32 [steps,P], NaN after a problem stopped.
        taken: int64 [P], the number of steps until a problem stopped.
    """

    history: Tensor
    probability: Tensor
    loss: Tensor
    taken: Tensor

    def add(self, row: int, problems: Tensor, tokens: Tensor, probability: Tensor) -> None:
        """Store tokens int64 [G,h,w] and probability [G] of some problems int64 [G] at a judged step, by its row."""
        self.history[row, problems] = tokens
        self.probability[row, problems] = probability.float()


def judged_steps(recipe: Recipe) -> list[int]:
    """The numbers of steps after which the selection is judged, 0 first."""
    return sorted({*range(0, recipe.steps + 1, recipe.judge_every), recipe.steps})


def empty_trajectory(problems: Problems, recipe: Recipe) -> Trajectory:
    """A trajectory of no step yet."""
    shape, device = (len(judged_steps(recipe)), len(problems)), problems.codebook.device
    return Trajectory(
        history=torch.zeros((*shape, *problems.start.shape[1:]), dtype=torch.int64, device=device),
        probability=torch.full(shape, torch.nan, dtype=torch.float32, device=device),
        loss=torch.full((recipe.steps, len(problems)), torch.nan, dtype=torch.float32, device=device),
        taken=torch.zeros(len(problems), dtype=torch.int64, device=device),
    )


def best_selection(
    problems: Problems,
    trajectory: Trajectory,
    recipe: Recipe,
    fingerprint: dict[str, Any],
    startable: Tensor | None = None,
) -> TokenSelection:
    """The best restart of each problem, at its best judged step.

    The best selection has the largest probability, or with a stay_penalty the largest log probability less the price
    of its changes.

    Args:
        problems: P problems, each repeated for its restarts.
        trajectory: their trajectory.
        recipe: its restarts, stay_penalty and judged steps.
        fingerprint: what the result was computed from.
        startable: bool [P], whether a problem's start may be the best. Default None: where the start is the user's.

    Returns:
        P / restarts selections.

    Raises:
        ValueError: a problem without any finite probability.
    """
    probability, restarts = trajectory.probability, recipe.restarts
    if not probability.isfinite().any(dim=0).all():
        raise ValueError("extractor: expected finite logits, got none for any selection that was judged")
    score = _scores(problems, trajectory, recipe, startable)
    first = 0 if problems.given else 1  # without tokens the start is nobody's selection
    top, row = score[first:].max(dim=0)
    count = len(problems) // restarts
    winner = top.view(count, restarts).argmax(dim=1) if count else top.long()
    chosen = torch.arange(count, device=row.device) * restarts + winner
    best = row[chosen] + first
    history = trajectory.history[:, chosen]
    return TokenSelection(
        tokens=history[best, torch.arange(count, device=best.device)],
        initial=problems.start[chosen],
        region=problems.region[chosen],
        target=problems.target[chosen],
        steps=torch.tensor(judged_steps(recipe)),
        history=history,
        probability=probability[:, chosen],
        loss=trajectory.loss[:, chosen],
        taken=trajectory.taken[chosen],
        best=best,
        fingerprint=fingerprint,
    )


def _scores(problems: Problems, trajectory: Trajectory, recipe: Recipe, startable: Tensor | None) -> Tensor:
    """The score whose largest value is the best selection, [T,P]; -inf excludes a selection."""
    score = trajectory.probability
    if recipe.stay_penalty:
        changes = (trajectory.history != problems.start).flatten(2).sum(dim=2)
        score = score.log() - recipe.stay_penalty * changes
    score = score.nan_to_num(nan=-torch.inf)
    if startable is not None:
        score[0] = score[0].where(startable, -torch.inf)
    return score
