"""One step of an optimisation of tokens: from proposals through the extractor to its gradient, and on."""

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

Moments = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Method:
    """What tells one optimisation from another. Variables are float [P,rows,...], changed in place.

    start(problems) -> variables; propose(variables, problems, schedule) -> embeddings [draws * P, rows, d] of the free
    positions, one draw after the other, and what learn makes use of; learn(variables, moments, problems, schedule,
    that, the mean loss's gradient in the embeddings); decide(variables, problems) -> tokens [P,rows]. schedule float64
    [draws,4]: of each draw of the step tau, its number, lr and the step's number from 1. Both are captured into a CUDA
    graph: they may look at no value on a GPU.
    """

    start: Callable[[Problems], Tensor]
    propose: Callable[[Tensor, Problems, Tensor], tuple[Tensor, Sequence[Tensor]]]
    learn: Callable[[Tensor, Moments | None, Problems, Tensor, Sequence[Tensor], Tensor], None]
    decide: Callable[[Tensor, Problems], Tensor]


def schedules_of(recipe: Recipe, device: torch.device) -> Tensor:
    """float64 [steps,draws,4]: of each step and draw tau, the draw's number, lr, and the step's number from 1."""
    draws = recipe.draws
    rows = [
        [
            (
                value_at(recipe.tau, step, recipe.steps),
                step * draws + draw,
                value_at(recipe.lr, step, recipe.steps),
                step + 1,
            )
            for draw in range(draws)
        ]
        for step in range(recipe.steps)
    ]
    return torch.tensor(rows, dtype=torch.float64, device=device)


def step_of(
    prepared: Prepared,
    problems: Problems,
    method: Method,
    recipe: Recipe,
    variables: Tensor,
    moments: Moments | None,
) -> Callable[[Tensor], Sequence[Tensor]]:
    """One step of the problems, which changes variables and moments in place; on a GPU in one CUDA graph. From a
    schedule [draws,4] to their losses [P], the embeddings proposed, and the losses' gradient there.
    """
    objective = objective_of(prepared, problems, recipe)
    graphs: Graphs = {}

    def step(schedule: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        proposed, kept = method.propose(variables, problems, schedule)
        loss, gradient = objective(proposed)
        method.learn(variables, moments, problems, schedule, kept, gradient)
        return loss, proposed, gradient

    if not isinstance(prepared.body, Graph):  # a forward of any kind may look at values
        return step
    return lambda schedule: replayed(step, graphs, schedule, repeatable=False)


def objective_of(prepared: Prepared, problems: Problems, recipe: Recipe) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """From proposals [draws * P, rows, d] to the mean loss [P] over the draws and its gradient in them: eq. 9.

    Where the region is a part of the grid only what it reaches is computed.
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
    kept = fixed.float().square().sum(dim=1).flatten(1)[:, ~region.flatten()].sum(dim=1)
    scale = prepared.scale / recipe.draws

    def objective(proposed: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad(), without_tf32(prepared.exact):
            # at least in float32, like the gradient: what is small fits a half only as long as it is scaled
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
                loss = loss + recipe.regularisation * (kept + leaf.float().square().sum(dim=(1, 2)))
            (gradient,) = torch.autograd.grad(loss.sum() * scale, leaf)
            gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / prepared.scale
        return loss.detach().unflatten(0, (recipe.draws, -1)).mean(dim=0), gradient

    return objective
