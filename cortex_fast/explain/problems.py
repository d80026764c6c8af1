"""The arguments that every optimisation of tokens shares, checked: extractors, tokens, regions and targets."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor, nn

from cortex_fast import checks
from cortex_fast.data.classes import Target, is_single, names_of, target_vector
from cortex_fast.data.grids import Grid, sides
from cortex_fast.data.token_store import gather
from cortex_fast.engine import Prepared, module_of, ordinary
from cortex_fast.explain.arguments import check_classes, check_extractor

Box = tuple[int, int, int, int]
Extractor = nn.Module | Prepared
Regions = Box | Tensor | np.ndarray | Sequence[Box] | None


@dataclass(frozen=True)
class Problems:
    """Checked arguments of P problems.

    Args:
        extractors: the distinct extractors.
        extractor_index: int64 [P], each problem's among them.
        codebook: float [K,d].
        start: int64 [P,h,w], the tokens to start from.
        region: bool [P,h,w], the free positions.
        target: int64 [P], the classes.
        item_ids: int64 [P], the problems' items in the random stream.
        given: whether the start is the user's, so that it may itself be the best selection.
        places: int64 [P], the problems' indices among all problems.
    """

    extractors: tuple[Extractor, ...]
    extractor_index: Tensor
    codebook: Tensor
    start: Tensor
    region: Tensor
    target: Tensor
    item_ids: Tensor
    given: bool
    places: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: Tensor) -> "Problems":
        """Some of the problems, by their indices."""
        names = ("extractor_index", "start", "region", "target", "item_ids", "places")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def alike(self) -> list[tuple[int, Tensor]]:
        """All problems in sets of one extractor and one region, which can step together: (extractor index, int64
        indices of the problems)."""
        sets: dict[tuple[int, bytes], list[int]] = {}
        extractors, regions = self.extractor_index.tolist(), self.region.cpu().numpy()
        for problem, (extractor, region) in enumerate(zip(extractors, regions, strict=True)):
            sets.setdefault((extractor, region.tobytes()), []).append(problem)
        return [(extractor, torch.tensor(rows, device=self.target.device)) for (extractor, _), rows in sets.items()]

    @cached_property
    def free(self) -> Tensor:
        """The free positions of problems that are alike, int64 [rows], counted row by row."""
        return self.region[0].flatten().nonzero().flatten()

    @cached_property
    def anchor(self) -> Tensor:
        """The start's tokens at the free positions, as many for each problem, int64 [P,rows].

        Cached because it reads values: a CUDA graph that uses it is captured after steps that were not captured.
        """
        rows = int(self.region[0].sum()) if len(self) else 0
        return self.start[self.region].view(len(self), rows)

    def filled(self, tokens: Tensor) -> Tensor:
        """The start with tokens [P,rows] at the free positions, [P,h,w]."""
        return self.start.masked_scatter(self.region, tokens)

    @property
    def box(self) -> Box:
        """The smallest half-open box (top, left, bottom, right) around the region of problems that are alike."""
        region = self.region[0]
        rows, columns = region.any(dim=1).nonzero(), region.any(dim=0).nonzero()
        return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def check_problems(
    extractor: Extractor | Sequence[Extractor],
    codebook: Tensor,
    target: Target,
    *,
    tokens: checks.Integers | None = None,
    region: Regions = None,
    grid: Grid | None = None,
    item_ids: checks.Integers | None = None,
) -> Problems:
    """Check the arguments that every optimisation shares, and fill in their defaults.

    Args:
        extractor: one for all problems, or a list of one for each problem.
        codebook: float [K,d].
        target: a class for all problems, or one for each, by number or name.
        tokens: int [P,h,w] to start from. Default None: every position is free.
        region: the free positions, as `region_masks` takes them. Default None: all.
        grid: m or (h, w), only without tokens. Default None: 16.
        item_ids: int [P]. Default None: 0, 1, 2, ....

    Returns:
        The P problems.

    Raises:
        TypeError, ValueError: an argument that does not fit, which the message names.
    """
    checks.rank("codebook", codebook, "[K, d]")
    checks.floating("codebook", codebook)
    checks.finite("codebook", codebook)
    extractors, indices = _distinct(extractor)
    for distinct in extractors:
        check_extractor(module_of(distinct), codebook=codebook)
    codebook, device = ordinary(codebook.detach()), codebook.device
    start = _start(tokens, region, grid, target, indices, codebook)
    count = len(start)
    if indices is not None and len(indices) != count:
        raise ValueError(f"extractor: expected one, or one for each of {count} problems, got {len(indices)}")
    extractor_index = torch.tensor(indices or [0] * count, dtype=torch.int64, device=device)
    targets = ordinary(target_vector(target, count, device, _names(extractors)))
    if count:
        for index, distinct in enumerate(extractors):
            check_classes(distinct, gather(start[:1], codebook), targets[extractor_index == index])
    item_ids = torch.arange(count) if item_ids is None else checks.integers("item_ids", item_ids)
    checks.same_shape("item_ids", item_ids, "tokens' first dimension", start.shape[:1])
    checks.in_range("item_ids", item_ids, 2**32)
    return Problems(
        extractors=extractors,
        extractor_index=extractor_index,
        codebook=codebook,
        start=start,
        region=region_masks(region, start.shape).to(device),
        target=targets,
        item_ids=item_ids.to(device, torch.int64),
        given=tokens is not None,
        places=torch.arange(count, device=device),
    )


def _distinct(extractor: Extractor | Sequence[Extractor]) -> tuple[tuple[Extractor, ...], list[int] | None]:
    """The distinct extractors, and each problem's index among them where a list names one for each problem."""
    if not isinstance(extractor, list | tuple | nn.ModuleList):
        return (extractor,), None  # type: ignore[return-value]
    if not len(extractor):
        raise ValueError("extractor: expected one, or one for each problem, got an empty list")
    distinct = list({id(member): member for member in extractor}.values())
    indices = {id(member): index for index, member in enumerate(distinct)}
    return tuple(distinct), [indices[id(member)] for member in extractor]


def _start(
    tokens: checks.Integers | None,
    region: Regions,
    grid: Grid | None,
    target: Target,
    indices: list[int] | None,
    codebook: Tensor,
) -> Tensor:
    """The tokens to start from, checked, int64 [P,h,w]; without any, as many grids of zeros as the target says."""
    if tokens is None:
        height, width = sides(16 if grid is None else grid)
        batch = len(indices or (0,)) if is_single(target) else len(target)  # type: ignore[arg-type]
        tokens = torch.zeros(batch, height, width, dtype=torch.int64, device=codebook.device)
        if region is not None:
            raise ValueError("region: expected None without tokens, since every position is free then")
    elif grid is not None:
        raise ValueError("grid: expected None with tokens, whose shape gives it")
    tokens = checks.integers("tokens", tokens, codebook.device)
    checks.rank("tokens", tokens, "[P, h, w]")
    checks.same_device(codebook=codebook, tokens=tokens)
    checks.in_range("tokens", tokens, codebook.shape[0])
    return ordinary(tokens.long())


def _names(extractors: Sequence[Extractor]) -> tuple[str, ...]:
    """The classes' names, where all extractors that have names have the same."""
    names = {names_of(module_of(extractor)) for extractor in extractors} - {()}
    return names.pop() if len(names) == 1 else ()


def region_masks(region: Regions, shape: torch.Size) -> Tensor:
    """Regions as boolean masks.

    Args:
        region: a half-open box (top, left, bottom, right), a list of P boxes, a boolean mask [h,w] or [P,h,w], or None
            (every position).
        shape: (P, h, w).

    Returns:
        bool [P,h,w].

    Raises:
        TypeError, ValueError: anything else, a box outside the grid, or an empty region.
    """
    grid = shape[1:]
    if isinstance(region, np.ndarray):
        region = checks.mask("region", region) if region.dtype == bool else region.tolist()
    if region is None or not shape[0]:
        return torch.ones(shape, dtype=torch.bool)
    if isinstance(region, Tensor):
        if region.dtype != torch.bool:
            raise TypeError(f"region: expected a boolean mask or a box, got a tensor of {region.dtype}")
        if region.shape not in (grid, shape):
            raise ValueError(
                f"region: expected a mask of shape {list(grid)} or {list(shape)}, got {list(region.shape)}"
            )
        masks = region.expand(shape)
    elif isinstance(region, list | tuple) and not all(_is_whole(side) for side in region):
        if len(region) != shape[0]:
            raise ValueError(f"region: expected one box, or one for each of {shape[0]} problems, got {len(region)}")
        masks = torch.stack([_box_mask(box, grid) for box in region])
    else:
        masks = _box_mask(region, grid).expand(shape)
    empty = (~masks.flatten(1).any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"region: expected at least one position, got none for problem {empty[0]}")
    return masks


def _is_whole(side: object) -> bool:
    """Whether a side of a box is an integer; booleans and tensors do not count."""
    return isinstance(side, SupportsIndex) and not isinstance(side, bool | Tensor)


def _box_mask(box: object, grid: torch.Size) -> Tensor:
    """A half-open box (top, left, bottom, right) as a boolean mask [h,w]."""
    if not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_whole, box)):
        got = f"a {type(box).__name__}" if isinstance(box, Tensor) else repr(box)
        raise ValueError(f"region: expected whole numbers (top, left, bottom, right), got {got}")
    top, left, bottom, right = map(operator.index, box)
    if not (0 <= top <= bottom <= grid[0] and 0 <= left <= right <= grid[1]):
        raise ValueError(f"region: expected a box within the {grid[0]} x {grid[1]} grid, got {box!r}")
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask
