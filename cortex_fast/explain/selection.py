"""The optimisation-based explanation: a token selection over the whole codebook (eq. 7-9)."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cortex_fast import checks, ops
from cortex_fast.data.results import ResultFileError
from cortex_fast.data.token_store import gather
from cortex_fast.engine import MEMORY, Prepared, module_of
from cortex_fast.explain.arguments import check_extractor
from cortex_fast.explain.optimisation import Judge, Method, digest, fingerprint_of, optimise
from cortex_fast.explain.problems import Box, Problems, check_problems
from cortex_fast.explain.recipes import BETAS, EPS, Recipe, value_at
from cortex_fast.explain.results import TokenSelection
from cortex_fast.kernels.reference.descent import descend
from cortex_fast.ops.random_stream import gumbel, normal

_START_DRAW = 2**32 - 1  # the draw that makes the first logits; steps use 0, 1, 2, ...
_RESTART_ITEMS = 2**26  # between the item ids of a problem's restarts
_LIKELY = 1.0  # above the logarithm of all codes: an image's own token at the start


@torch.inference_mode(False)
def select_tokens(
    extractor: nn.Module | Prepared,
    codebook: Tensor,
    target: int | Tensor,
    *,
    tokens: Tensor | None = None,
    region: Box | Tensor | None = None,
    grid: int | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    item_ids: Tensor | None = None,
    allowed: Tensor | None = None,
    judge: Judge | None = None,
    memory: int = MEMORY,
    checkpoint: Path | str | None = None,
    progress: str | None = None,
    **settings: Any,
) -> TokenSelection:
    """Choose tokens, from the whole codebook, that make the extractor see `target` (eq. 7-9), for P problems at once.

    Minimises -f_Y(E)[target] + regularisation |E|^2 over logits P [rows, K] of the free positions, where
    E = M gumbel_softmax(P; tau) C + (1 - M) E_tokens, with straight-through hard selection.

    codebook C: float [K,d]. target: a class, or int [P]. tokens: int [P,m,m] to start from and to keep outside the
    region; without it every position is free and `grid` is m (default 16). region: a half-open box (top, left, bottom,
    right) or a boolean [m,m] mask; default everything. recipe: the settings (default Recipe()), of which any can be
    given by name here: steps=200. The selection without noise is judged every `judge_every` steps and at the end, and
    the one of largest target probability is kept (the tokens given are a candidate too).
    Noise and start are fixed by seed and item_ids int [P] (default 0, 1, 2, ...).
    allowed: bool [K], [rows,K] or [P,rows,K], the tokens that a free position may take; an image that has others there
    is no candidate then. With a price `stay` the one kept is that of the largest log probability less the price.
    judge: (tokens int64 [P,m,m], target [P]) -> probability [P]; default the extractor's. memory: bytes that the
    problems stepping together may take; it cuts the set, and changes no result beyond rounding. checkpoint: a file that
    the run's state is kept in while it goes on, every `judge_every` steps; a run that finds one goes on from it, to the
    same bits. progress: a progress bar's title; None: no bar.
    Raises TypeError or ValueError naming the argument: shapes that do not fit, tokens outside [0, K), a target outside
    the classes, an empty region, tau <= 0, steps < 1. ResultFileError for a checkpoint of another run.
    """
    recipe = recipe_of(recipe, settings)
    problems = check_problems(extractor, codebook, target, tokens, region, grid, item_ids)
    checks.seed(seed)
    if not problems.given and (recipe.start == "image" or recipe.stay):
        raise ValueError("tokens: expected those of an image to start from or to stay with, got None")
    problems = repeated(problems, recipe)
    mask = _allowed(allowed, problems, recipe)
    startable = None
    if mask is not None and problems.given:
        startable = mask.gather(2, problems.own[..., None]).flatten(1).all(dim=1)
    kept = 3 if recipe.optimizer == "adam" else 1
    passing = 4 if recipe.draws > 1 else 0  # what the mean gradient of many draws takes on its way
    passing += 4 if recipe.draws > 1 and recipe.stay else 0
    method = token_method(recipe, seed, mask)
    return optimise(
        extractor,
        problems,
        method,
        recipe,
        bytes_of_problem=4 * len(problems.free) * len(problems.codebook) * (kept + passing),
        memory=memory,
        judge=judge,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        progress=progress,
        fingerprint=_fingerprint(recipe, extractor, problems.codebook, seed, allowed),
        startable=startable,
    )


def _fingerprint(
    recipe: Recipe, extractor: nn.Module | Prepared, codebook: Tensor, seed: int, allowed: Tensor | None
) -> dict[str, Any]:
    limits = {} if allowed is None else {"allowed": digest([allowed])}
    return fingerprint_of("token selection", recipe, extractor, codebook, seed=seed, **limits)


def recipe_of(recipe: Recipe | None, settings: dict[str, Any]) -> Recipe:
    """The recipe with the settings that were given by name."""
    if recipe is not None and not isinstance(recipe, Recipe):
        raise TypeError(f"recipe: expected a Recipe, such as PUBLISHED, got {recipe!r}")
    names = [one.name for one in dataclasses.fields(Recipe)]
    for name in settings:
        if name not in names:
            raise TypeError(f"{name}: expected a setting of Recipe ({', '.join(names)}), got an unknown one")
    return dataclasses.replace(recipe or Recipe(), **settings)


def repeated(problems: Problems, recipe: Recipe) -> Problems:
    """Each problem as often as it is restarted, with noise of its own each time."""
    if recipe.restarts == 1:
        return problems
    if len(problems):
        checks.in_range("item_ids", problems.item_ids, _RESTART_ITEMS)
    checks.whole("restarts", recipe.restarts, 1, 2**32 // _RESTART_ITEMS)
    each = torch.arange(len(problems), device=problems.target.device).repeat_interleave(recipe.restarts)
    number = torch.arange(recipe.restarts, device=each.device).repeat(len(problems))
    many = problems.take(each)
    return dataclasses.replace(
        many,
        item_ids=many.item_ids + number * _RESTART_ITEMS,
        numbers=torch.arange(len(many), device=each.device),
    )


def _allowed(allowed: Tensor | None, problems: Problems, recipe: Recipe) -> Tensor | None:
    """bool [P,rows,K], by problem as often as it is restarted."""
    if allowed is None:
        return None
    rows, codes = len(problems.free), len(problems.codebook)
    if not isinstance(allowed, Tensor) or allowed.dtype != torch.bool:
        raise TypeError(f"allowed: expected a boolean tensor, got {getattr(allowed, 'dtype', type(allowed).__name__)}")
    shapes: Sequence[tuple[int, ...]] = ((codes,), (rows, codes), (len(problems) // recipe.restarts, rows, codes))
    if tuple(allowed.shape) not in shapes:
        expected = ", ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"allowed: expected shape {expected}, got {list(allowed.shape)}")
    checks.same_device(allowed=allowed, codebook=problems.codebook)
    if not bool(allowed.any(dim=-1).all()):
        raise ValueError("allowed: expected at least one token for each position, got none for some")
    if allowed.ndim == 3:
        return allowed.repeat_interleave(recipe.restarts, dim=0)
    return allowed.expand(len(problems), rows, codes)


def token_method(recipe: Recipe, seed: int, mask: Tensor | None) -> Method:
    """Gumbel-Softmax over logits [P,rows,K], float32."""
    draws = recipe.draws

    def start(problems: Problems) -> Tensor:
        rows, codes = len(problems.free), len(problems.codebook)
        if recipe.start == "image":
            logits = torch.zeros(len(problems), rows, codes, device=problems.codebook.device)
            logits.scatter_(2, problems.own[..., None], math.log(codes) + _LIKELY)
        else:
            draw = torch.tensor([_START_DRAW], device=problems.codebook.device)
            logits = normal(seed, problems.item_ids, draw, rows, codes)[:, 0].contiguous()
        if mask is not None:
            logits.masked_fill_(~mask[problems.numbers], -math.inf)
        return logits

    def noise(problems: Problems, step: int) -> dict[str, Any]:
        tau = value_at(recipe.tau, step, recipe.steps)
        return {"tau": tau, "seed": seed, "item_ids": problems.item_ids}

    def propose(logits: Tensor, problems: Problems, step: int) -> Tensor:
        how = noise(problems, step)
        parts = [
            ops.gumbel_codebook(logits, problems.codebook, draw=step * draws + draw, **how)[0] for draw in range(draws)
        ]
        return torch.cat(parts)

    def learn(
        logits: Tensor, moments: tuple[Tensor, Tensor] | None, problems: Problems, step: int, gradient: Tensor
    ) -> None:
        how, lr = noise(problems, step), value_at(recipe.lr, step, recipe.steps)
        own = problems.own if recipe.stay else None
        if draws == 1:
            ops.gumbel_codebook_step(
                logits, problems.codebook, gradient, lr=lr, moments=moments, step=step + 1, draw=step,
                own=own, stay=recipe.stay, **how,
            )  # fmt: skip
            return
        mean = _mean_gradient(logits, problems, step, gradient, own, how)
        descend(logits, moments, mean, lr, BETAS, EPS, step + 1)

    def _mean_gradient(
        logits: Tensor, problems: Problems, step: int, gradient: Tensor, own: Tensor | None, how: dict[str, Any]
    ) -> Tensor:
        """dP over all draws, whose losses' mean the gradient is of."""
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_(True)
            for draw, part in enumerate(gradient.unflatten(0, (draws, -1))):
                number = step * draws + draw
                selected, _ = ops.gumbel_codebook(leaf, problems.codebook, draw=number, **how)
                selected.backward(part)
                if own is not None:
                    item = torch.tensor([number], device=leaf.device)
                    g = gumbel(seed, problems.item_ids, item, *logits.shape[1:])[:, 0]
                    kept = ((leaf + g) / how["tau"]).softmax(dim=2).gather(2, own[..., None])
                    (-recipe.stay / draws * kept.sum()).backward()
        assert leaf.grad is not None
        return leaf.grad

    return Method("token selection", start, propose, learn, lambda logits, problems: logits.argmax(dim=2))


@torch.no_grad()
def select_concepts(
    extractor: nn.Module | Prepared,
    codebook: Tensor,
    folder: Path | str,
    *,
    classes: Sequence[int] | None = None,
    grid: int = 16,
    together: int = 16,
    **settings: Any,
) -> list[Path]:
    """`select_tokens` over whole grids for every class, no image given: one file for each concept, whole or not at all.

    classes: default all that the extractor knows. together: how many step at once; no result depends on it beyond
    rounding, for a class is its own item. Concepts whose file is there already are left as they are, and a run that was
    cut off goes on where it was. settings: as `select_tokens` takes them. Returns the files,
    concept-<class>.safetensors.
    Raises ResultFileError for a file of other settings, another extractor or codebook; else as `select_tokens`.
    """
    folder = Path(folder)
    for name in ("tokens", "region", "item_ids", "checkpoint"):
        if name in settings:
            raise TypeError(f"{name}: expected none for whole concepts, got one")
    checks.whole("together", together, 1)
    checks.rank("codebook", codebook, "[K, d]")
    check_extractor(module_of(extractor), codebook=codebook)
    allowed = settings.get("allowed")
    if allowed is not None and (not isinstance(allowed, Tensor) or allowed.ndim == 3):
        raise TypeError("allowed: expected a boolean tensor [K] or [rows, K] for all concepts, got another")
    if classes is None:
        sample = gather(torch.zeros(1, grid, grid, dtype=torch.int64, device=codebook.device), codebook)
        classes = range(module_of(extractor)(sample).shape[1])
    paths = {label: folder / f"concept-{label:04d}.safetensors" for label in classes}
    names = [one.name for one in dataclasses.fields(Recipe)]
    recipe = recipe_of(settings.get("recipe"), {name: value for name, value in settings.items() if name in names})
    made = _fingerprint(recipe, extractor, codebook, settings.get("seed", 0), allowed)
    missing = [label for label, path in paths.items() if not _is_there(path, made, grid)]
    for first in range(0, len(missing), together):
        labels = missing[first : first + together]
        target = torch.tensor(labels, device=codebook.device)
        state = folder / f"unfinished-{labels[0]:04d}-{labels[-1]:04d}.safetensors"
        found = select_tokens(extractor, codebook, target, grid=grid, item_ids=target, checkpoint=state, **settings)
        for number, label in enumerate(labels):
            found.problem(number).save(paths[label])
    return list(paths.values())


def _is_there(path: Path, made: dict[str, Any], grid: int) -> bool:
    """Whether a concept's file holds what this run would write. Raises ResultFileError where it holds another."""
    if not path.exists():
        return False
    found = TokenSelection.load(path)
    if found.fingerprint != made or found.region.shape[0] != grid:
        raise ResultFileError(f"{path}: a concept of other settings, extractor, codebook or grid; move it away first")
    return True
