"""Token selections of whole concepts: one file for each class, from no image."""

from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from cortex_fast import checks
from cortex_fast.data.classes import Target, class_numbers, is_single, names_of
from cortex_fast.data.grids import Grid, sides
from cortex_fast.data.locks import held
from cortex_fast.data.results import ResultFileError
from cortex_fast.data.token_store import gather
from cortex_fast.data.workspaces import sweep
from cortex_fast.engine import MEMORY, Prepared, logits_of, module_of
from cortex_fast.explain.arguments import check_extractor
from cortex_fast.explain.checkpoints import checkpoint_targets
from cortex_fast.explain.groups import Judge
from cortex_fast.explain.problems import Extractor, check_problems
from cortex_fast.explain.recipes import Recipe, RecipeSettings, recipe_with
from cortex_fast.explain.results import TokenSelection
from cortex_fast.explain.selection import select_problems, selection_fingerprint
from cortex_fast.explain.token_limits import Mask, allowed_mask

_OF_IMAGES = ("tokens", "region", "item_ids", "checkpoint")  # arguments of select_tokens


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
    **settings: Unpack[RecipeSettings],
) -> list[Path]:
    """`select_tokens` over whole grids for every class, without an image: one file for each concept.

    Concepts whose file exists are skipped, and an interrupted run is resumed where it stopped.

    Args:
        extractor: eval-mode module, E [B,d,h,w] -> logits [B,classes], prepared by `prepare` or not.
        codebook: C, finite float [K,d].
        folder: where the files are written.
        classes: a class or several, by number, or by name where the extractor has names. Default None: all classes.
        grid: m or (h, w). Default 16.
        together: number of concepts that step together. Results depend on it within rounding only, since a class's
            number is its item in the random stream. Default 16.
        recipe: the settings. Default None: Recipe(). Any of its fields can be given by name here.
        seed: seed of the random stream, in [0, 2^63). Default 0.
        allowed: bool [K] or [rows,K], the tokens that a position may take. Default None: all tokens.
        banned: bool [K] or [rows,K], the tokens that a position may not take. Default None: no token.
        judge: (tokens int64 [P,h,w], target int64 [P]) -> probability [P]. Default None: the extractor.
        memory: bytes that the concepts stepping together may take. Results depend on it within rounding only.
            Default 2^30.
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
        start: only "random", since no image is given.
        stay_penalty: only 0.0, since no image is given.

    Returns:
        The files, concept-<class>.safetensors, each a TokenSelection with P = 1.

    Raises:
        TypeError, ValueError: as `select_tokens`. The message names the argument.
        ResultFileError: a file of other settings, another extractor, codebook or grid.
        BlockingIOError: another run is at the same classes in this folder.
    """
    for name in _OF_IMAGES:
        if name in settings:
            raise TypeError(f"{name}: cannot be set here: a whole concept has no image")
    folder, recipe = Path(folder), recipe_with(recipe, settings)
    together, seed = checks.whole("together", together, 1), checks.seed(seed)
    height, width = sides(grid)
    if isinstance(extractor, list | tuple):
        raise TypeError("extractor: expected one for all concepts, got several")
    for name, tensor in (("allowed", allowed), ("banned", banned)):
        if isinstance(tensor, Tensor | np.ndarray) and tensor.ndim > 2:
            raise ValueError(f"{name}: expected shape [K] or [rows, K] for all concepts, got {list(tensor.shape)}")
    target = _targets(extractor, codebook, classes, (height, width))
    problems = check_problems(extractor, codebook, target, grid=grid, item_ids=target)
    mask = allowed_mask(problems, allowed, banned)
    fingerprint = selection_fingerprint(problems, recipe, seed, mask)
    paths = {label: folder / f"concept-{label:04d}.safetensors" for label in target.tolist()}
    indices = {label: index for index, label in enumerate(paths)}
    run = folder / f"concepts-{min(paths, default=0):04d}-{max(paths, default=0):04d}-{len(paths)}"
    with nullcontext() if all(path.exists() for path in paths.values()) else held(run):
        missing = [label for label, path in paths.items() if not _is_written(path, fingerprint, (height, width))]
        for labels, checkpoint in _groups(folder, paths.keys(), missing, together):
            rows = torch.tensor([indices[label] for label in labels], device=codebook.device)
            selection = select_problems(
                problems.take(rows), recipe, seed=seed, mask=mask, judge=judge, memory=memory, checkpoint=checkpoint,
                progress=progress,
            )  # fmt: skip
            for problem, label in enumerate(labels):
                if label in missing:
                    selection.problem(problem).save(paths[label])
            checkpoint.unlink(missing_ok=True)
    sweep(folder)
    return list(paths.values())


def _targets(extractor: Extractor, codebook: Tensor, classes: Target | None, grid: tuple[int, int]) -> Tensor:
    """The classes' numbers int64 [P] on the codebook's device; without any, all that the extractor has."""
    if classes is None:
        checks.rank("codebook", codebook, "[K, d]")
        check_extractor(module_of(extractor), codebook=codebook)
        sample = gather(torch.zeros(1, *grid, dtype=torch.int64, device=codebook.device), codebook)
        classes = range(logits_of(extractor, sample).shape[1])
    names = names_of(module_of(extractor)) if isinstance(extractor, nn.Module | Prepared) else ()
    return class_numbers("classes", [classes] if is_single(classes) else classes, names).to(codebook.device)


def _groups(folder: Path, wanted: Collection[int], missing: list[int], together: int) -> list[tuple[list[int], Path]]:
    """Classes that step together, and their checkpoint: first the groups that an interrupted run left, then others."""
    groups = []
    for checkpoint in sorted(folder.glob("unfinished-*.safetensors")):
        labels = list(dict.fromkeys(checkpoint_targets(checkpoint)))  # a target is repeated for its restarts
        if all(label in wanted for label in labels):
            groups.append((labels, checkpoint))
    fresh = [label for label in missing if not any(label in labels for labels, _ in groups)]
    for first in range(0, len(fresh), together):
        labels = fresh[first : first + together]
        groups.append((labels, folder / f"unfinished-{labels[0]:04d}-{labels[-1]:04d}-{len(labels)}.safetensors"))
    return groups


def _is_written(path: Path, fingerprint: dict[str, Any], grid: tuple[int, int]) -> bool:
    """Whether a concept's file exists. Raises ResultFileError for a file that this run would not write."""
    if not path.exists():
        return False
    selection = TokenSelection.load(path)
    if selection.fingerprint != fingerprint or selection.region.shape[1:] != grid:
        raise ResultFileError(f"{path}: a concept of other settings, extractor, codebook or grid; move it away first")
    return True
