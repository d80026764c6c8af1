"""The optimisation-based explanation: a token selection over the whole codebook (eq. 7-9)."""

import dataclasses
import math
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cortex_fast import checks, ops
from cortex_fast.data import digests
from cortex_fast.data.classes import Target, class_numbers, is_single, names_of
from cortex_fast.data.grids import Grid, sides
from cortex_fast.data.locks import held
from cortex_fast.data.results import ResultFileError
from cortex_fast.data.token_store import gather
from cortex_fast.data.workspaces import sweep
from cortex_fast.engine import MEMORY, Prepared, logits_of, module_of
from cortex_fast.explain.arguments import check_extractor
from cortex_fast.explain.groups import Judge
from cortex_fast.explain.optimisation import fingerprint_of, optimise, targets_of
from cortex_fast.explain.problems import Extractor, Problems, Regions, check_problems
from cortex_fast.explain.recipes import BETAS, EPS, Recipe
from cortex_fast.explain.results import TokenSelection
from cortex_fast.explain.stepping import Method, Moments
from cortex_fast.kernels.reference.descent import descend
from cortex_fast.ops.gumbel_codebook import RowStats, scheduled_values
from cortex_fast.ops.random_stream import gumbel, normal

Mask = Tensor | np.ndarray
_START_DRAW = 2**32 - 1  # the draw that makes the first logits; steps use 0, 1, 2, ...
_RESTART_ITEMS = 2**26  # between the item ids of a problem's restarts
_LIKELY = 1.0  # above the logarithm of all codes: an image's own token at the start


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
    **settings: Any,
) -> TokenSelection:
    """Choose tokens, from the whole codebook, that make the extractor see `target` (eq. 7-9), for P problems at once.

    Minimises -f_Y(E)[target] + regularisation |E|^2 over logits P [rows, K] of the free positions, where
    E = M gumbel_softmax(P; tau) C + (1 - M) E_tokens, with straight-through hard selection.

    extractor: one, or a list of one for each problem. codebook C: float [K,d]. target: a class, or one for
    each problem, int [P]: numbers, or names where the extractor has them. tokens: int
    [P,h,w] to start from and to keep outside the region; without it every position is free and `grid` is m or (h, w)
    (default 16). region: a half-open box (top, left, bottom, right) or a boolean [h,w] mask for all, or a list of P
    boxes or a mask [P,h,w]; default everything. Problems of one extractor and one region step together. recipe: the
    settings (default Recipe()), of which any can be given by name here: steps=200. The selection without noise is
    judged every `judge_every` steps and at the end, and the one of largest target probability is kept (the tokens given
    are a candidate too).
    Noise and start are fixed by seed and item_ids int [P] (default 0, 1, 2, ...).
    allowed, banned: bool [K], [rows,K] or [P,rows,K], the tokens that a free position may or may not take, by rows
    where every region has as many positions; an image that has others there is no candidate then. With a
    price `stay_penalty` the one kept is that of the largest log probability less the price.
    judge: (tokens int64 [P,h,w], target [P]) -> probability [P]; default the extractor's. memory: bytes that the
    problems stepping together may take; it cuts the set, and changes no result beyond rounding. checkpoint: a file that
    the run's state is kept in while it goes on, every `judge_every` steps; a run that finds one goes on from it, to the
    same bits. progress: a progress bar's title; None: no bar.
    Raises TypeError or ValueError naming the argument: shapes that do not fit, tokens outside [0, K), a target outside
    the classes, an empty region, tau <= 0, steps < 1. ResultFileError for a damaged checkpoint or another run's,
    BlockingIOError while another run writes to it.
    """
    path, recipe = None if checkpoint is None else Path(checkpoint), recipe_of(recipe, settings)
    problems = check_problems(extractor, codebook, target, tokens, region, grid, item_ids)
    mask = allowed_tokens(problems, allowed, banned)
    found = _select(
        problems, recipe, seed=seed, mask=mask, judge=judge, memory=memory, checkpoint=path, progress=progress
    )
    if path is not None:
        path.unlink(missing_ok=True)
    return found


def _select(
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
    """`select_tokens` of checked problems, that leaves the checkpoint where it is."""
    seed = checks.seed(seed)
    if not problems.given and (recipe.start == "image" or recipe.stay_penalty):
        raise ValueError("tokens: expected those of an image to start from or to stay with, got None")
    made = _fingerprint(problems, recipe, seed, mask)
    problems = repeated(problems, recipe)
    if mask is not None and mask.ndim == 3:
        mask = mask.repeat_interleave(recipe.restarts, dim=0)
    kept = 3 if recipe.optimizer == "adam" else 1
    passing = 4 if recipe.draws > 1 else 0  # what the mean gradient of many draws takes on its way
    passing += 4 if recipe.draws > 1 and recipe.stay_penalty else 0
    return optimise(
        problems,
        token_method(recipe, seed, mask),
        recipe,
        bytes_of_row=4 * len(problems.codebook) * (kept + passing),
        memory=memory,
        judge=judge,
        checkpoint=checkpoint,
        progress=progress,
        fingerprint=made,
        startable=None if mask is None or not problems.given else startable(problems, mask),
    )


def _fingerprint(problems: Problems, recipe: Recipe, seed: int, mask: Tensor | None) -> dict[str, Any]:
    limits = {} if mask is None else {"allowed": digests.of_parts([mask])}
    return fingerprint_of("token selection", recipe, problems, seed=seed, **limits)


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
        places=torch.arange(len(many), device=each.device),
    )


def allowed_tokens(problems: Problems, allowed: Mask | None, banned: Mask | None) -> Tensor | None:
    """bool [K], [rows,K] or [P,rows,K]: the tokens that may be taken; None: all."""
    counts = problems.region.flatten(1).sum(dim=1)
    codes = len(problems.codebook)
    shapes: list[tuple[int, ...]] = [(codes,)]
    if len(problems) and bool((counts == counts[0]).all()):
        rows = int(counts[0])
        shapes += [(rows, codes), (len(problems), rows, codes)]
    masks = []
    for name, tensor in (("allowed", allowed), ("banned", banned)):
        if tensor is None:
            continue
        tensor = checks.mask(name, tensor, problems.codebook.device)
        if len(problems) and tuple(tensor.shape) not in shapes:
            expected = ", ".join(str(list(shape)) for shape in shapes)
            raise ValueError(f"{name}: expected shape {expected}, got {list(tensor.shape)}")
        checks.same_device(**{name: tensor}, codebook=problems.codebook)
        masks.append(tensor if name == "allowed" else ~tensor)
    if not masks or not len(problems):
        return None
    mask = masks[0] if len(masks) == 1 else masks[0] & masks[1]
    if not bool(mask.any(dim=-1).all()):
        name = "banned" if allowed is None else "allowed"
        raise ValueError(f"{name}: expected at least one token for each position, got none for some")
    return mask


def startable(problems: Problems, mask: Tensor) -> Tensor:
    """bool [P]: whether every free position's own token may be taken. mask as `allowed_tokens` gives it."""
    if mask.ndim == 1:
        return (mask[problems.start] | ~problems.region).flatten(1).all(dim=1)
    anchor = problems.anchor[..., None]
    return mask.expand(*anchor.shape[:2], -1).gather(2, anchor).flatten(1).all(dim=1)


def token_method(recipe: Recipe, seed: int, mask: Tensor | None) -> Method:
    """Gumbel-Softmax over logits [P,rows,K], float32. mask as `allowed_tokens` gives it."""
    draws = recipe.draws

    def start(problems: Problems) -> Tensor:
        rows, codes = len(problems.free), len(problems.codebook)
        if recipe.start == "image":
            logits = torch.zeros(len(problems), rows, codes, dtype=torch.float32, device=problems.codebook.device)
            logits.scatter_(2, problems.anchor[..., None], math.log(codes) + _LIKELY)
        else:
            draw = torch.tensor([_START_DRAW], device=problems.codebook.device)
            logits = normal(seed, problems.item_ids, draw, rows, codes)[:, 0].contiguous()
        if mask is not None:
            logits.masked_fill_(~(mask[problems.places] if mask.ndim == 3 else mask), -math.inf)
        return logits

    def propose(logits: Tensor, problems: Problems, schedule: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        noise: dict[str, Any] = {"seed": seed, "item_ids": problems.item_ids}
        if draws > 1:  # row statistics of one draw are of no use to the mean gradient of all
            embeddings = [ops.gumbel_codebook(logits, problems.codebook, schedule=now, **noise)[0] for now in schedule]
            return torch.cat(embeddings), ()
        embedding, _, row_stats = ops.gumbel_codebook_with_row_stats(
            logits, problems.codebook, schedule=schedule[0], **noise
        )
        return embedding, row_stats or ()

    def learn(
        logits: Tensor,
        moments: Moments | None,
        problems: Problems,
        schedule: Tensor,
        row_stats: Sequence[Tensor],
        gradient: Tensor,
    ) -> None:
        if draws > 1:
            mean = _mean_gradient(logits, problems, schedule, gradient)
            _, _, lr, step_count = scheduled_values(schedule[0])
            descend(logits, moments, mean, lr=lr, betas=BETAS, eps=EPS, step_count=step_count)
            return
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
            row_stats=RowStats(*row_stats) if row_stats else None,
        )

    def _mean_gradient(logits: Tensor, problems: Problems, schedule: Tensor, gradient: Tensor) -> Tensor:
        """dP over all draws, whose losses' mean the gradient is of."""
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_(True)
            for now, part in zip(schedule, gradient.unflatten(0, (draws, -1)), strict=True):
                selected, _ = ops.gumbel_codebook(
                    leaf, problems.codebook, schedule=now, seed=seed, item_ids=problems.item_ids
                )
                selected.backward(part)
                if recipe.stay_penalty:
                    tau, draw, _, _ = scheduled_values(now)
                    draw = torch.as_tensor(draw, device=leaf.device).view(1)
                    g = gumbel(seed, problems.item_ids, draw, *logits.shape[1:])[:, 0]
                    taken = ((leaf + g) / tau).softmax(dim=2).gather(2, problems.anchor[..., None])
                    (-recipe.stay_penalty / draws * taken.sum()).backward()
        assert leaf.grad is not None
        return leaf.grad

    return Method(start, propose, learn, lambda logits, problems: logits.argmax(dim=2))


@torch.inference_mode(False)
@torch.no_grad()
def select_concepts(
    extractor: Extractor,
    codebook: Tensor,
    folder: Path | str,
    *,
    classes: Target | None = None,
    grid: Grid = 16,
    together: int = 16,
    recipe: Recipe | None = None,
    seed: int = 0,
    allowed: Mask | None = None,
    banned: Mask | None = None,
    judge: Judge | None = None,
    memory: int = MEMORY,
    progress: str | None = None,
    **settings: Any,
) -> list[Path]:
    """`select_tokens` over whole grids for every class, no image given: one file for each concept, whole or not at all.

    classes: by number, or by name where the extractor has names; default all that it knows. together: how many step at
    once; no result depends on it beyond rounding, for a class is its own item. Concepts whose file is there already are
    left as they are, and a run that was cut off goes on where it was. allowed, banned: bool [K] or [rows,K] for all.
    The rest as `select_tokens` takes it.
    Returns the files, concept-<class>.safetensors.
    Raises ResultFileError for a file of other settings, another extractor or codebook, BlockingIOError while another
    run is at the same classes there; else as `select_tokens`.
    """
    for name in ("tokens", "region", "item_ids", "checkpoint"):
        if name in settings:
            raise TypeError(f"{name}: expected none for whole concepts, got one")
    folder, recipe = Path(folder), recipe_of(recipe, settings)
    together, seed = checks.whole("together", together, 1), checks.seed(seed)
    height, width = sides(grid)
    if isinstance(extractor, list | tuple):
        raise TypeError("extractor: expected one for all concepts, got several")
    for name, tensor in (("allowed", allowed), ("banned", banned)):
        if isinstance(tensor, Tensor | np.ndarray) and tensor.ndim > 2:
            raise ValueError(f"{name}: expected shape [K] or [rows, K] for all concepts, got {list(tensor.shape)}")
    if classes is None:
        checks.rank("codebook", codebook, "[K, d]")
        check_extractor(module_of(extractor), codebook=codebook)
        sample = gather(torch.zeros(1, height, width, dtype=torch.int64, device=codebook.device), codebook)
        classes = range(logits_of(extractor, sample).shape[1])
    names = names_of(module_of(extractor)) if isinstance(extractor, nn.Module | Prepared) else ()
    target = class_numbers("classes", [classes] if is_single(classes) else classes, names).to(codebook.device)
    problems = check_problems(extractor, codebook, target, None, None, grid, target)
    mask = allowed_tokens(problems, allowed, banned)
    paths = {label: folder / f"concept-{label:04d}.safetensors" for label in target.tolist()}
    made = _fingerprint(problems, recipe, seed, mask)
    run = folder / f"concepts-{min(paths, default=0):04d}-{max(paths, default=0):04d}-{len(paths)}"
    with nullcontext() if all(path.exists() for path in paths.values()) else held(run):
        missing = [label for label, path in paths.items() if not _is_there(path, made, (height, width))]
        groups = _begun(folder, paths.keys())
        anew = [label for label in missing if not any(label in labels for labels, _ in groups)]
        for first in range(0, len(anew), together):
            labels = anew[first : first + together]
            groups.append((labels, folder / f"unfinished-{labels[0]:04d}-{labels[-1]:04d}-{len(labels)}.safetensors"))
        places = {label: place for place, label in enumerate(paths)}
        for labels, state in groups:
            rows = torch.tensor([places[label] for label in labels], device=codebook.device)
            found = _select(
                problems.take(rows), recipe, seed=seed, mask=mask, judge=judge, memory=memory, checkpoint=state,
                progress=progress,
            )  # fmt: skip
            for problem, label in enumerate(labels):
                if label in missing:
                    found.problem(problem).save(paths[label])
            state.unlink(missing_ok=True)
    sweep(folder)
    return list(paths.values())


def _begun(folder: Path, wanted: Collection[int]) -> list[tuple[list[int], Path]]:
    """The groups of concepts, all of them wanted, whose state was left by a run that was cut off; first to last."""
    groups = []
    for state in sorted(folder.glob("unfinished-*.safetensors")):
        labels = list(dict.fromkeys(targets_of(state)))  # each as often as it was restarted
        if all(label in wanted for label in labels):
            groups.append((labels, state))
    return groups


def _is_there(path: Path, made: dict[str, Any], grid: tuple[int, int]) -> bool:
    """Whether a concept's file holds what this run would write. Raises ResultFileError where it holds another."""
    if not path.exists():
        return False
    found = TokenSelection.load(path)
    if found.fingerprint != made or found.region.shape[1:] != grid:
        raise ResultFileError(f"{path}: a concept of other settings, extractor, codebook or grid; move it away first")
    return True
