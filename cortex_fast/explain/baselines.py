"""What token selection is compared with: the embedding itself optimised, then the nearest tokens; and drawn tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cortex_fast import checks, ops
from cortex_fast.data import digests
from cortex_fast.data.classes import Target
from cortex_fast.data.grids import Grid
from cortex_fast.data.token_store import gather
from cortex_fast.engine import MEMORY
from cortex_fast.explain.groups import Group, Judge, grouped
from cortex_fast.explain.optimisation import (
    Records,
    blank,
    fingerprint_of,
    judged_at,
    optimise,
    record,
    result_of,
)
from cortex_fast.explain.problems import Extractor, Problems, Regions, check_problems
from cortex_fast.explain.recipes import BETAS, EPS, Recipe
from cortex_fast.explain.results import TokenSelection
from cortex_fast.explain.selection import recipe_of
from cortex_fast.explain.stepping import Method, Moments
from cortex_fast.kernels.reference.descent import descend
from cortex_fast.ops.gumbel_codebook import scheduled_values
from cortex_fast.ops.random_stream import gumbel

# settings of token selection alone, at what they are for others
_UNUSED = {"tau": 1.0, "draws": 1, "restarts": 1, "start": "random", "stay_penalty": 0.0}


# of a recipe made for others, what would change the result and does not; its rates and temperature go without saying
_UNUSED_BY_DRAWS = {"draws": 1, "restarts": 1, "patience": None, "start": "random", "stay_penalty": 0.0}
_OF_DRAWS = ("steps", "judge_every")
Frequency = checks.Integers | Sequence[float]


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
    **settings: Any,
) -> TokenSelection:
    """Gradient steps on E [P,d,h,w] in the region, then each position's nearest code: the baseline of eq. 10.

    Arguments and result as in `select_tokens`; the start is the image's own embedding, so there is no randomness, and
    the recipe's tau, draws, restarts, start and stay_penalty have no meaning: ValueError for others than the default.
    """
    recipe = recipe_of(recipe, settings)
    _refuse(recipe, _UNUSED, "embeddings")
    problems = check_problems(extractor, codebook, target, tokens, region, grid, None)

    def start(problems: Problems) -> Tensor:
        embedding = gather(problems.start, problems.codebook).flatten(2).transpose(1, 2)[:, problems.free]
        # at least float32, as the logits of token selection are: Adam's epsilon is 0 in float16
        return embedding.to(torch.promote_types(embedding.dtype, torch.float32), copy=True).contiguous()

    def learn(
        embedding: Tensor,
        moments: Moments | None,
        problems: Problems,
        schedule: Tensor,
        kept: Sequence[Tensor],
        gradient: Tensor,
    ) -> None:
        _, _, lr, step_count = scheduled_values(schedule[0])
        gradient = gradient.to(embedding.dtype)
        descend(embedding, moments, gradient, lr=lr, betas=BETAS, eps=EPS, step_count=step_count)

    method = Method(
        start,
        lambda embedding, problems, schedule: (embedding.to(problems.codebook.dtype), ()),
        learn,
        lambda embedding, problems: ops.nearest_code(embedding, problems.codebook),
    )
    path = None if checkpoint is None else Path(checkpoint)
    found = optimise(
        problems,
        method,
        recipe,
        bytes_of_row=12 * problems.codebook.shape[1],
        memory=memory,
        judge=judge,
        checkpoint=path,
        progress=progress,
        fingerprint=fingerprint_of("embedding optimisation", recipe, problems),
    )
    if path is not None:
        path.unlink(missing_ok=True)
    return found


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
    **settings: Any,
) -> TokenSelection:
    """Tokens drawn anew in every step, the best of them kept: what as many looks at the extractor find by chance.

    frequency: [K] or [P,K], not negative: tokens are drawn in proportion to it, as often as they occur in the target's
    images for instance; default all alike. Arguments and result as in `select_tokens`, of whose recipe steps and
    judge_every count here: a step's draw replaces the one kept where its logit of the target is larger. TypeError for
    other settings by name; ValueError for a recipe of several draws or restarts, of patience, start or stay_penalty.
    """
    for name in settings:
        if name not in _OF_DRAWS:
            raise TypeError(
                f"{name}: expected {' or '.join(_OF_DRAWS)} for drawn tokens, got a setting without meaning"
            )
    recipe = recipe_of(recipe, settings)
    _refuse(recipe, _UNUSED_BY_DRAWS, "drawn tokens")
    problems = check_problems(extractor, codebook, target, tokens, region, grid, item_ids)
    seed = checks.seed(seed)
    weights = _log_weights(frequency, problems)
    times = judged_at(recipe)
    records = blank(problems, times, recipe)
    noise = 24 * len(problems.codebook)  # with what it takes to make it, for each row
    groups = grouped(problems, bytes_of_row=noise, copies=1, passes=0, memory=memory, judge=judge)
    with tqdm(total=recipe.steps * len(groups), desc=progress or "", unit="step", disable=progress is None) as bar:
        for group in groups:
            _draw(problems, group, weights, recipe, seed, times, records, bar)
    drawn_by = (
        {} if frequency is None else {"frequency": digests.of_parts([checks.reals("frequency", frequency).double()])}
    )
    name = "random tokens" if frequency is None else "frequent tokens"
    made = fingerprint_of(name, recipe, problems, seed=seed, **drawn_by)
    return result_of(problems, records, times, Recipe(), made)


def _refuse(recipe: Recipe, unused: Mapping[str, object], what: str) -> None:
    for name, value in unused.items():
        if getattr(recipe, name) != value:
            raise ValueError(f"{name}: expected {value!r} for {what}, got {getattr(recipe, name)!r}")


def _draw(
    problems: Problems,
    group: Group,
    weights: Tensor | None,
    recipe: Recipe,
    seed: int,
    times: list[int],
    records: Records,
    bar: Any,
) -> None:
    """One group's draws, into its rows of the records."""
    own, rows = problems.take(group.rows), group.rows
    record(records, rows, 0, own.start, group.judge(own.start, own.target))
    kept, lowest = own.start, torch.full((len(own),), torch.inf, dtype=torch.float32, device=rows.device)
    for step in range(recipe.steps):
        draw = torch.tensor([step], device=rows.device)
        g = gumbel(seed, own.item_ids, draw, len(own.free), len(own.codebook))[:, 0]
        found = own.filled((g if weights is None else g + weights[rows][:, None]).argmax(dim=2))
        with torch.no_grad():
            loss = -group.prepared.value(gather(found, own.codebook), own.target).float()
        records.loss[step, rows] = loss
        better = loss < lowest
        kept, lowest = found.where(better[:, None, None], kept), loss.where(better, lowest)
        if step + 1 in times:
            record(records, rows, times.index(step + 1), kept, group.judge(kept, own.target))
        bar.update()
    records.taken[rows] = recipe.steps


def _log_weights(frequency: Frequency | None, problems: Problems) -> Tensor | None:
    """[P,K]: what is added to Gumbel noise, so that the largest is drawn in proportion to the frequency."""
    if frequency is None:
        return None
    frequency = checks.reals("frequency", frequency, problems.codebook.device)
    shape = (len(problems), len(problems.codebook))
    if tuple(frequency.shape) not in (shape, shape[1:]):
        raise ValueError(f"frequency: expected shape {list(shape[1:])} or {list(shape)}, got {list(frequency.shape)}")
    checks.same_device(frequency=frequency, codebook=problems.codebook)
    weights = frequency.double()
    if not bool(((weights >= 0) & weights.isfinite()).all()) or not bool((weights > 0).any(dim=-1).all()):
        raise ValueError("frequency: expected numbers from 0 on, and one above 0 for each problem")
    return weights.log().float().expand(shape)
