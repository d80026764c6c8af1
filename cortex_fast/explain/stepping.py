"""One step of an optimisation of tokens: embeddings proposed, their loss and its gradient, and the update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cortex_fast.data.token_store import gather
from cortex_fast.engine import Prepared
from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.precision import without_tf32
from cortex_fast.engine.regional import regional
from cortex_fast.engine.replay import Graphs, replayed
from cortex_fast.engine.windows import Box
from cortex_fast.explain.problems import Problems
from cortex_fast.explain.recipes import Recipe, value_at
from cortex_fast.ops.gumbel_codebook import RowStats

Moments = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Method:
    """What tells one optimisation from another. Its variables are float [P,rows,...], changed in place.

    A schedule is float64 [draws,4]: of each draw of the step (tau, the draw's number, lr, the step's number from 1).
    propose and learn are captured into a CUDA graph, so on a GPU they must not read values.

    Args:
        start: (problems) -> variables.
        propose: (variables, problems, schedule) -> the embeddings [draws * P, rows, d] of the free positions, draw by
            draw, and row_stats for learn, or None.
        learn: (variables, moments, problems, schedule, row_stats, gradient) -> None, the update of the variables and
            moments from the mean loss's gradient in the embeddings.
        decide: (variables, problems) -> tokens int64 [P,rows].
    """

    start: Callable[[Problems], Tensor]
    propose: Callable[[Tensor, Problems, Tensor], tuple[Tensor, RowStats | None]]
    learn: Callable[[Tensor, Moments | None, Problems, Tensor, RowStats | None, Tensor], None]
    decide: Callable[[Tensor, Problems], Tensor]


def schedules_of(recipe: Recipe, device: torch.device) -> Tensor:
    """The schedule of every step, float64 [steps,draws,4].

    The word has three meanings: a `Schedule` of the recipe is one setting over the whole run, a step's schedule here
    is [draws,4], and an operator's argument `schedule` is the row [4] of one draw.
    """
    steps, draws = recipe.steps, recipe.draws
    schedules = [
        [
            (value_at(recipe.tau, step, steps), step * draws + draw, value_at(recipe.lr, step, steps), step + 1)
            for draw in range(draws)
        ]
        for step in range(steps)
    ]
    return torch.tensor(schedules, dtype=torch.float64, device=device)


def step_of(
    prepared: Prepared,
    problems: Problems,
    method: Method,
    recipe: Recipe,
    variables: Tensor,
    moments: Moments | None,
) -> Callable[[Tensor], Sequence[Tensor]]:
    """A function that takes one step of the problems; on a GPU it replays one CUDA graph.

    Args:
        prepared: the problems' extractor.
        problems: P problems that are alike.
        method: the variables and their update.
        recipe: the settings.
        variables: float [P,rows,...], changed in place by each step.
        moments: Adam's, changed in place by each step; None for SGD.

    Returns:
        schedule [draws,4] -> (losses [P], the proposed embeddings [draws * P, rows, d], the losses' gradient in them).
    """
    objective = objective_of(prepared, problems, recipe)
    graphs: Graphs = {}

    def step(schedule: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        proposed, row_stats = method.propose(variables, problems, schedule)
        loss, gradient = objective(proposed)
        method.learn(variables, moments, problems, schedule, row_stats, gradient)
        return loss, proposed, gradient

    if not isinstance(prepared.body, Graph):  # a user's forward may read values
        return step
    return lambda schedule: replayed(step, graphs, schedule, repeatable=False)


def objective_of(prepared: Prepared, problems: Problems, recipe: Recipe) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The mean loss over the draws, -f_Y(E)[target] + regularisation |E|^2, and its gradient (eq. 9).

    Only the activations that the region can change are computed.

    Args:
        prepared: the problems' extractor.
        problems: P problems that are alike.
        recipe: its draws and regularisation.

    Returns:
        Proposed embeddings [draws * P, rows, d] of the free positions -> (float32 [P], the gradient in them).
    """
    box, region = Box(*problems.box), problems.region[0]
    fixed = gather(problems.start, problems.codebook).repeat(recipe.draws, 1, 1, 1)
    target = problems.target.repeat(recipe.draws)
    reached = None if box == Box(0, 0, *region.shape) else regional(prepared, fixed, box)
    window, inside = fixed, region
    if reached is not None:
        window = fixed[:, :, box.top : box.bottom, box.left : box.right]
        inside = region[box.top : box.bottom, box.left : box.right]
    free = inside.flatten().nonzero().flatten()
    fixed_squares = fixed.float().square().sum(dim=1).flatten(1)[:, ~region.flatten()].sum(dim=1)
    scale = prepared.scale / recipe.draws

    def objective(proposed: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad(), without_tf32(prepared.exact):
            # at least float32, like the gradient: small values fit float16 only while they are scaled
            wide = proposed.detach().to(torch.promote_types(proposed.dtype, torch.float32))
            leaf = wide.requires_grad_(True)
            embedding = (
                window.flatten(2).index_copy(2, free, leaf.transpose(1, 2).to(window.dtype)).unflatten(2, inside.shape)
            )
            if reached is None:
                value = prepared.value(embedding, target)
            else:
                value = prepared.head_value(reached(embedding), target)
            loss = -value.float()
            if recipe.regularisation:  # in float32: the sum of squares overflows float16
                squares = fixed_squares + leaf.float().square().sum(dim=(1, 2))
                loss = loss + recipe.regularisation * squares
            (gradient,) = torch.autograd.grad(loss.sum() * scale, leaf)
            gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / prepared.scale
        return loss.detach().unflatten(0, (recipe.draws, -1)).mean(dim=0), gradient

    return objective
