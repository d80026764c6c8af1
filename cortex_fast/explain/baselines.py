"""The baselines of token selection: an optimised embedding with its nearest tokens, and drawn tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import Unpack

from cortex_fast import checks, ops
from cortex_fast.data import digests
from cortex_fast.data.classes import Target
from cortex_fast.data.grids import Grid
from cortex_fast.data.token_store import gather
from cortex_fast.engine import MEMORY
from cortex_fast.explain.fingerprints import about_optimisation
from cortex_fast.explain.groups import Group, Judge, grouped
from cortex_fast.explain.optimisation import optimise
from cortex_fast.explain.problems import Extractor, Problems, Regions, check_problems
from cortex_fast.explain.recipes import BETAS, EPS, DrawSettings, EmbeddingSettings, Recipe, recipe_with
from cortex_fast.explain.results import TokenSelection
from cortex_fast.explain.stepping import Method, Moments
from cortex_fast.explain.trajectories import Trajectory, best_selection, empty_trajectory, judged_steps
from cortex_fast.ops.descent_step import descent_step
from cortex_fast.ops.gumbel_codebook import RowStats, scheduled_values
from cortex_fast.ops.random_stream import gumbel

Frequency = checks.Integers | Sequence[float]

# Settings of token selection alone, at the values at which they have no effect.
_UNUSED_BY_EMBEDDINGS = {"tau": 1.0, "draws": 1, "restarts": 1, "start": "random", "stay_penalty": 0.0}
# Of a recipe for another method, the settings that draws would have to follow; they have no rates and no temperature.
_UNUSED_BY_DRAWS = {"draws": 1, "restarts": 1, "patience": None, "start": "random", "stay_penalty": 0.0}
_BYTES_OF_DRAW = 24  # for each token of a row: its noise, and what computing the noise takes


@torch.inference_mode(False)
def optimise_embedding(
    extractor: Extractor | Sequence[Extractor],
    codebook: Tensor,
    target: Target,
    *,
    tokens: checks.Integers | None = None,
    region: Regions = None,
    grid: Grid | None = None,
    recipe: Recipe | None = None,
    judge: Judge | None = None,
    memory: int = MEMORY,
    checkpoint: Path | str | None = None,
    progress: str | None = None,
    **settings: Unpack[EmbeddingSettings],
) -> TokenSelection:
    """The baseline of eq. 10: gradient steps on E in the region, then each position's nearest code.

    It starts from the tokens' embedding, and nothing is random.

    Args:
        extractor: eval-mode module, E [P,d,h,w] -> logits [P,classes], prepared by `prepare` or not; or a list of P.
        codebook: C, finite float [K,d].
        target: a class for all problems, or int [P], one for each; by number, or by name where the extractor has names.
        tokens: int [P,h,w] in [0, K), the image to start from. Default None: token 0 everywhere.
        region: the positions that may change: a half-open box (top, left, bottom, right) or a boolean mask [h,w] for
            all problems, or a list of P boxes or a mask [P,h,w]. Default None: every position.
        grid: m or (h, w), only without tokens. Default None: 16.
        recipe: the settings. Default None: Recipe().
        judge: (tokens int64 [P,h,w], target int64 [P]) -> probability [P]. Default None: the extractor.
        memory: bytes that the problems stepping together may take. Default 2^30.
        checkpoint: a file for the run's state, from which an interrupted run is resumed. Default None: no file.
        progress: the progress bar's title. Default None: no bar.
        steps: number of gradient steps. Default the recipe's, 3000.
        lr: learning rate, a number or a Schedule. Default the recipe's, 0.01.
        optimizer: "adam" or "sgd". Default the recipe's, "adam".
        regularisation: weight of |E|^2 in the loss. Default the recipe's, 0.0.
        judge_every: number of steps between two judgements. Default the recipe's, 100.
        patience: number of steps without a change of token after which a problem stops. Default the recipe's, None.

    Returns:
        P selections: of each problem the one of largest target probability among those judged.

    Raises:
        TypeError, ValueError: as `select_tokens`, and for a recipe with tau, draws, restarts, start or stay_penalty
            other than the default. The message names the argument.
        ResultFileError: a damaged checkpoint, or another run's.
        BlockingIOError: another run writes to the checkpoint.
    """
    recipe = recipe_with(recipe, settings)
    _refuse(recipe, _UNUSED_BY_EMBEDDINGS, "embeddings")
    problems = check_problems(extractor, codebook, target, tokens=tokens, region=region, grid=grid)
    path = None if checkpoint is None else Path(checkpoint)
    selection = optimise(
        problems,
        Method(_initial_embedding, _cast_embedding, _step_embedding, _nearest_tokens),
        recipe,
        bytes_of_row=12 * problems.codebook.shape[1],
        memory=memory,
        judge=judge,
        checkpoint=path,
        progress=progress,
        fingerprint=about_optimisation("embedding optimisation", recipe, problems),
    )
    if path is not None:
        path.unlink(missing_ok=True)
    return selection


def _initial_embedding(problems: Problems) -> Tensor:
    """The start's embedding at the free positions, [P,rows,d]."""
    embedding = gather(problems.start, problems.codebook).flatten(2).transpose(1, 2)[:, problems.free]
    # at least float32, as the logits of token selection are: Adam's epsilon is 0 in float16
    return embedding.to(torch.promote_types(embedding.dtype, torch.float32), copy=True).contiguous()


def _cast_embedding(embedding: Tensor, problems: Problems, schedule: Tensor) -> tuple[Tensor, None]:
    """The embedding in the codebook's dtype."""
    return embedding.to(problems.codebook.dtype), None


def _step_embedding(
    embedding: Tensor,
    moments: Moments | None,
    problems: Problems,
    schedule: Tensor,
    row_stats: RowStats | None,
    gradient: Tensor,
) -> None:
    """One step of the optimiser along the gradient."""
    _, _, lr, step_count = scheduled_values(schedule[0])
    gradient = gradient.to(embedding.dtype)
    descent_step(embedding, gradient, lr=lr, moments=moments, step_count=step_count, betas=BETAS, eps=EPS)


def _nearest_tokens(embedding: Tensor, problems: Problems) -> Tensor:
    """Each position's token of nearest code, [P,rows]."""
    return ops.nearest_code(embedding, problems.codebook)


@dataclass(frozen=True, eq=False)
class _Drawing:
    """What all groups of drawn tokens share: log_weights float [P,K] or None, `bar` the progress bar."""

    problems: Problems
    recipe: Recipe
    seed: int
    log_weights: Tensor | None
    trajectory: Trajectory
    bar: Any


@torch.inference_mode(False)
def draw_tokens(
    extractor: Extractor | Sequence[Extractor],
    codebook: Tensor,
    target: Target,
    *,
    tokens: checks.Integers | None = None,
    region: Regions = None,
    grid: Grid | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    item_ids: checks.Integers | None = None,
    frequency: Frequency | None = None,
    judge: Judge | None = None,
    memory: int = MEMORY,
    progress: str | None = None,
    **settings: Unpack[DrawSettings],
) -> TokenSelection:
    """The best of tokens drawn anew in every step: what as many calls of the extractor find by chance.

    A step's draw replaces the best one so far where its logit of the target is larger.

    Args:
        extractor: eval-mode module, E [P,d,h,w] -> logits [P,classes], prepared by `prepare` or not; or a list of P.
        codebook: C, finite float [K,d].
        target: a class for all problems, or int [P], one for each; by number, or by name where the extractor has names.
        tokens: int [P,h,w] in [0, K), the image outside the region. Default None: every position is drawn.
        region: the positions that may change: a half-open box (top, left, bottom, right) or a boolean mask [h,w] for
            all problems, or a list of P boxes or a mask [P,h,w]. Default None: every position.
        grid: m or (h, w), only without tokens. Default None: 16.
        recipe: the settings, of which steps and judge_every are used. Default None: Recipe().
        seed: seed of the random stream, in [0, 2^63). Default 0.
        item_ids: int [P] in [0, 2^32), the problems' items in the random stream. Default None: 0, 1, 2, ....
        frequency: float or int [K] or [P,K], at least 0: tokens are drawn in proportion to it. Default None: all alike.
        judge: (tokens int64 [P,h,w], target int64 [P]) -> probability [P]. Default None: the extractor.
        memory: bytes that the problems drawn together may take. Default 2^30.
        progress: the progress bar's title. Default None: no bar.
        steps: number of draws. Default the recipe's, 3000.
        judge_every: number of steps between two judgements. Default the recipe's, 100.

    Returns:
        P selections: of each problem the one of largest target probability among those judged.

    Raises:
        TypeError, ValueError: as `select_tokens`; another setting by name; a recipe with draws, restarts, patience,
            start or stay_penalty other than the default. The message names the argument.
    """
    for name in settings:
        if name not in DrawSettings.__annotations__:
            expected = " or ".join(DrawSettings.__annotations__)
            raise TypeError(f"{name}: expected {expected} for drawn tokens, got a setting without effect")
    recipe = recipe_with(recipe, settings)
    _refuse(recipe, _UNUSED_BY_DRAWS, "drawn tokens")
    problems = check_problems(extractor, codebook, target, tokens=tokens, region=region, grid=grid, item_ids=item_ids)
    seed = checks.seed(seed)
    log_weights, trajectory = _log_weights(frequency, problems), empty_trajectory(problems, recipe)
    bytes_of_row = _BYTES_OF_DRAW * len(problems.codebook)
    groups = grouped(problems, bytes_of_row=bytes_of_row, copies=1, passes=0, memory=memory, judge=judge)
    with tqdm(total=recipe.steps * len(groups), desc=progress or "", unit="step", disable=progress is None) as bar:
        drawing = _Drawing(problems, recipe, seed, log_weights, trajectory, bar)
        for group in groups:
            _draw_group(drawing, group)
    fingerprint = _draw_fingerprint(recipe, problems, seed, frequency)
    return best_selection(problems, trajectory, recipe, fingerprint)


def _refuse(recipe: Recipe, unused: Mapping[str, object], method: str) -> None:
    """Raise ValueError for a setting without effect at another value than `unused` has."""
    for name, value in unused.items():
        if getattr(recipe, name) != value:
            raise ValueError(f"{name}: expected {value!r} for {method}, got {getattr(recipe, name)!r}")


def _draw_group(drawing: _Drawing, group: Group) -> None:
    """Draw one group's tokens, into its rows of the trajectory."""
    problems, rows, trajectory = drawing.problems.take(group.rows), group.rows, drawing.trajectory
    steps = judged_steps(drawing.recipe)
    log_weights = None if drawing.log_weights is None else drawing.log_weights[rows]
    best, lowest = problems.start, torch.full((len(problems),), torch.inf, dtype=torch.float32, device=rows.device)
    trajectory.add(0, rows, best, group.judge(best, problems.target))
    for step in range(drawing.recipe.steps):
        tokens = _drawn(problems, step, drawing.seed, log_weights)
        with torch.no_grad():
            loss = -group.prepared.value(gather(tokens, problems.codebook), problems.target).float()
        trajectory.loss[step, rows] = loss
        better = loss < lowest
        best, lowest = tokens.where(better[:, None, None], best), loss.where(better, lowest)
        if step + 1 in steps:
            trajectory.add(steps.index(step + 1), rows, best, group.judge(best, problems.target))
        drawing.bar.update()
    trajectory.taken[rows] = drawing.recipe.steps


def _drawn(problems: Problems, step: int, seed: int, log_weights: Tensor | None) -> Tensor:
    """The tokens that a step draws, int64 [P,h,w]."""
    draw = torch.tensor([step], device=problems.target.device)
    g = gumbel(seed, problems.item_ids, draw, len(problems.free), len(problems.codebook))[:, 0]
    scores = g if log_weights is None else g + log_weights[:, None]
    return problems.filled(scores.argmax(dim=2))


def _log_weights(frequency: Frequency | None, problems: Problems) -> Tensor | None:
    """The logarithm of the frequency, float32 [P,K]: the largest sum with Gumbel noise is drawn in proportion to it."""
    if frequency is None:
        return None
    frequency = checks.reals("frequency", frequency, problems.codebook.device)
    shape = (len(problems), len(problems.codebook))
    if tuple(frequency.shape) not in (shape, shape[1:]):
        raise ValueError(f"frequency: expected shape {list(shape[1:])} or {list(shape)}, got {list(frequency.shape)}")
    checks.same_device(frequency=frequency, codebook=problems.codebook)
    weights = frequency.double()
    if not bool(((weights >= 0) & weights.isfinite()).all()) or not bool((weights > 0).any(dim=-1).all()):
        raise ValueError("frequency: expected numbers of at least 0, of which each problem has one above 0")
    return weights.log().float().expand(shape)


def _draw_fingerprint(recipe: Recipe, problems: Problems, seed: int, frequency: Frequency | None) -> dict[str, Any]:
    """What drawn tokens depend on."""
    if frequency is None:
        return about_optimisation("random tokens", recipe, problems, seed=seed)
    digest = digests.of_parts([checks.reals("frequency", frequency).double()])
    return about_optimisation("frequent tokens", recipe, problems, seed=seed, frequency=digest)
