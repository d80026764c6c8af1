"""The optimisation-based explanation: a token selection over the whole codebook (eq. 7-9)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from cortex_fast import checks
from cortex_fast.data import digests
from cortex_fast.data.classes import Target
from cortex_fast.data.grids import Grid
from cortex_fast.engine import MEMORY
from cortex_fast.explain.fingerprints import about_optimisation
from cortex_fast.explain.groups import Judge
from cortex_fast.explain.optimisation import optimise
from cortex_fast.explain.problems import Extractor, Problems, Regions, check_problems
from cortex_fast.explain.recipes import Recipe, RecipeSettings, recipe_with
from cortex_fast.explain.results import TokenSelection
from cortex_fast.explain.token_limits import Mask, allowed_mask, startable
from cortex_fast.explain.token_method import token_method

_RESTART_ITEMS = 2**26  # between the item ids of a problem's restarts


@torch.inference_mode(False)
def select_tokens(
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
    allowed: Mask | None = None,
    banned: Mask | None = None,
    judge: Judge | None = None,
    memory: int = MEMORY,
    checkpoint: Path | str | None = None,
    progress: str | None = None,
    **settings: Unpack[RecipeSettings],
) -> TokenSelection:
    """Select tokens, from the whole codebook, that make the extractor see `target` (eq. 7-9), for P problems at once.

    Minimises -f_Y(E)[target] + regularisation |E|^2 over logits [rows, K] of the free positions, where
    E = M gumbel_softmax(logits; tau) C + (1 - M) E_tokens, with straight-through hard selection. The noiseless
    selection is judged every `judge_every` steps and at the end; the one of largest target probability is the result
    (the given tokens are a candidate too), or with a stay_penalty the one of largest log probability less the price.

    Args:
        extractor: eval-mode module, E [P,d,h,w] -> logits [P,classes], prepared by `prepare` or not; or a list of P.
            Problems of one extractor and one region step together.
        codebook: C, finite float [K,d].
        target: a class for all problems, or int [P], one for each; by number, or by name where the extractor has names.
        tokens: int [P,h,w] in [0, K), the image to start from, which stays outside the region. Default None: every
            position is free.
        region: the positions that may change: a half-open box (top, left, bottom, right) or a boolean mask [h,w] for
            all problems, or a list of P boxes or a mask [P,h,w]. Default None: every position.
        grid: m or (h, w), only without tokens. Default None: 16.
        recipe: the settings. Default None: Recipe(). Any of its fields can be given by name here.
        seed: seed of the random stream, in [0, 2^63). Default 0.
        item_ids: int [P] in [0, 2^32), the problems' items in the random stream. Default None: 0, 1, 2, ....
        allowed: bool [K], [rows,K] or [P,rows,K], the tokens that a free position may take, by rows where every region
            has as many positions. An image with other tokens there is no candidate. Default None: all tokens.
        banned: bool [K], [rows,K] or [P,rows,K], the tokens that a free position may not take. Default None: no token.
        judge: (tokens int64 [P,h,w], target int64 [P]) -> probability [P]. Default None: the extractor.
        memory: bytes that the problems stepping together may take. Results depend on it within rounding only.
            Default 2^30.
        checkpoint: a file for the run's state, written every `judge_every` steps, from which an interrupted run is
            resumed to the same bits. Default None: no file.
        progress: the progress bar's title. Default None: no bar.
        steps: number of gradient steps. Default the recipe's, 3000.
        lr: learning rate, a number or a Schedule. Default the recipe's, 0.01.
        tau: temperature of Gumbel-Softmax, a number or a Schedule. Default the recipe's, 1.0.
        optimizer: "adam" or "sgd". Default the recipe's, "adam".
        regularisation: weight of |E|^2 in the loss. Default the recipe's, 0.0.
        judge_every: number of steps between two judgements. Default the recipe's, 100.
        draws: number of Gumbel samples in a step, which follows their mean gradient. Default the recipe's, 1.
        restarts: number of independent runs of a problem, of which the best counts. Default the recipe's, 1.
        patience: number of steps without a change of token after which a problem stops. Default the recipe's, None.
        start: "random" logits, or those of the "image". Default the recipe's, "random".
        stay_penalty: price of a changed position, in logits. Default the recipe's, 0.0.

    Returns:
        P selections, one for each problem.

    Raises:
        TypeError, ValueError: shapes that do not fit, tokens outside [0, K), a target outside the classes, an empty
            region, an unknown setting or one outside its values. The message names the argument.
        ResultFileError: a damaged checkpoint, or another run's.
        BlockingIOError: another run writes to the checkpoint.
    """
    path, recipe = None if checkpoint is None else Path(checkpoint), recipe_with(recipe, settings)
    problems = check_problems(extractor, codebook, target, tokens=tokens, region=region, grid=grid, item_ids=item_ids)
    mask = allowed_mask(problems, allowed, banned)
    selection = select_problems(
        problems, recipe, seed=seed, mask=mask, judge=judge, memory=memory, checkpoint=path, progress=progress
    )
    if path is not None:
        path.unlink(missing_ok=True)
    return selection


def select_problems(
    problems: Problems,
    recipe: Recipe,
    *,
    seed: int,
    mask: Tensor | None,
    judge: Judge | None,
    memory: int,
    checkpoint: Path | None,
    progress: str | None,
) -> TokenSelection:
    """`select_tokens` of checked problems. mask as `allowed_mask` returns it. The checkpoint stays where it is."""
    seed = checks.seed(seed)
    if not problems.given and (recipe.start == "image" or recipe.stay_penalty):
        raise ValueError("tokens: expected an image to start from or to stay with, got None")
    fingerprint = selection_fingerprint(problems, recipe, seed, mask)
    problems = repeated(problems, recipe)
    if mask is not None and mask.ndim == 3:
        mask = mask.repeat_interleave(recipe.restarts, dim=0)
    return optimise(
        problems,
        token_method(recipe, seed, mask),
        recipe,
        bytes_of_row=4 * len(problems.codebook) * _floats_of_logit(recipe),
        memory=memory,
        judge=judge,
        checkpoint=checkpoint,
        progress=progress,
        fingerprint=fingerprint,
        startable=None if mask is None or not problems.given else startable(problems, mask),
    )


def _floats_of_logit(recipe: Recipe) -> int:
    """How many floats a step holds for each logit: itself, its moments, and what the mean gradient of draws takes."""
    variables = 3 if recipe.optimizer == "adam" else 1
    if recipe.draws == 1:
        return variables
    return variables + (8 if recipe.stay_penalty else 4)


def selection_fingerprint(problems: Problems, recipe: Recipe, seed: int, mask: Tensor | None) -> dict[str, Any]:
    """What a token selection depends on, in plain values."""
    limits = {} if mask is None else {"allowed": digests.of_parts([mask])}
    return about_optimisation("token selection", recipe, problems, seed=seed, **limits)


def repeated(problems: Problems, recipe: Recipe) -> Problems:
    """Each problem repeated for its restarts, each restart with a separate item in the random stream."""
    if recipe.restarts == 1:
        return problems
    if len(problems):
        checks.in_range("item_ids", problems.item_ids, _RESTART_ITEMS)
    checks.whole("restarts", recipe.restarts, 1, 2**32 // _RESTART_ITEMS)
    device = problems.target.device
    restart = torch.arange(recipe.restarts, device=device).repeat(len(problems))
    repeats = problems.take(torch.arange(len(problems), device=device).repeat_interleave(recipe.restarts))
    return dataclasses.replace(
        repeats,
        item_ids=repeats.item_ids + restart * _RESTART_ITEMS,
        places=torch.arange(len(repeats), device=device),
    )
