"""The arguments that every optimisation of tokens shares, checked: what is to be optimised, where, and for what."""

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
    """Checked arguments of P problems: codebook [K,d], start [P,h,w], region bool [P,h,w], target [P], item ids [P].

    extractors: the different ones, of which problem p has number[p]. given: the start is the user's, so that it may
    itself be the best. places int64 [P]: where the problems stand among all.
    """

    extractors: tuple[Extractor, ...]
    number: Tensor
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
        each = ("number", "start", "region", "target", "item_ids", "places")
        return replace(self, **{name: getattr(self, name)[rows] for name in each})

    def alike(self) -> list[tuple[int, Tensor]]:
        """An extractor's number and int64 indices of problems that have it and one region: all problems, in such sets,
        which can step together."""
        sets: dict[tuple[int, bytes], list[int]] = {}
        numbers, regions = self.number.tolist(), self.region.cpu().numpy()
        for index, (number, region) in enumerate(zip(numbers, regions, strict=True)):
            sets.setdefault((number, region.tobytes()), []).append(index)
        return [(number, torch.tensor(rows, device=self.target.device)) for (number, _), rows in sets.items()]

    @cached_property
    def free(self) -> Tensor:
        """The free positions of problems that are alike, int64 [rows], counted row by row."""
        return self.region[0].flatten().nonzero().flatten()

    @cached_property
    def anchor(self) -> Tensor:
        """The start's tokens at the free positions, as many for each problem, int64 [P,rows]. Kept, since it looks at
        values: a CUDA graph that reads it is captured after steps that were not."""
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
    tokens: checks.Integers | None,
    region: Regions,
    grid: Grid | None,
    item_ids: checks.Integers | None,
) -> Problems:
    """The arguments that every optimisation shares, checked and made whole."""
    checks.rank("codebook", codebook, "[K, d]")
    checks.floating("codebook", codebook)
    checks.finite("codebook", codebook)
    extractors, numbers = _extractors(extractor)
    for one in extractors:
        check_extractor(module_of(one), codebook=codebook)
    codebook, device = ordinary(codebook.detach()), codebook.device
    given = tokens is not None
    if tokens is None:
        height, width = sides(16 if grid is None else grid)
        batch = len(numbers or (0,)) if is_single(target) else len(target)  # type: ignore[arg-type]
        tokens = torch.zeros(batch, height, width, dtype=torch.int64, device=device)
        if region is not None:
            raise ValueError("region: expected None without tokens, since nothing is kept outside it")
    elif grid is not None:
        raise ValueError("grid: expected None with tokens, whose shape gives it")
    tokens = checks.integers("tokens", tokens, device)
    checks.rank("tokens", tokens, "[P, h, w]")
    checks.same_device(codebook=codebook, tokens=tokens)
    checks.in_range("tokens", tokens, codebook.shape[0])
    tokens, count = ordinary(tokens.long()), len(tokens)
    if numbers is not None and len(numbers) != count:
        raise ValueError(f"extractor: expected one, or one for each of {count} problems, got {len(numbers)}")
    number = torch.tensor(numbers or [0] * count, dtype=torch.int64, device=device)
    targets = ordinary(target_vector(target, count, device, _names(extractors)))
    if count:
        for index, one in enumerate(extractors):
            check_classes(one, gather(tokens[:1], codebook), targets[number == index])
    item_ids = torch.arange(count) if item_ids is None else checks.integers("item_ids", item_ids)
    checks.same_shape("item_ids", item_ids, "tokens' first dimension", tokens.shape[:1])
    checks.in_range("item_ids", item_ids, 2**32)
    return Problems(
        extractors=extractors,
        number=number,
        codebook=codebook,
        start=tokens,
        region=region_masks(region, tokens.shape).to(device),
        target=targets,
        item_ids=item_ids.to(device, torch.int64),
        given=given,
        places=torch.arange(count, device=device),
    )


def _extractors(extractor: Extractor | Sequence[Extractor]) -> tuple[tuple[Extractor, ...], list[int] | None]:
    """The different extractors, and each problem's among them where one is named for each."""
    if not isinstance(extractor, list | tuple | nn.ModuleList):
        return (extractor,), None  # type: ignore[return-value]
    if not len(extractor):
        raise ValueError("extractor: expected one, or one for each problem, got an empty list")
    different = list({id(one): one for one in extractor}.values())
    places = {id(one): number for number, one in enumerate(different)}
    return tuple(different), [places[id(one)] for one in extractor]


def _names(extractors: Sequence[Extractor]) -> tuple[str, ...]:
    """The classes' names, where the extractors that have any have the same."""
    found = {names for names in (names_of(module_of(one)) for one in extractors) if names}
    return found.pop() if len(found) == 1 else ()


def region_masks(region: Regions, shape: torch.Size) -> Tensor:
    """A half-open box (top, left, bottom, right), a list of P of them, a boolean mask [h,w] or [P,h,w], or None
    (everything) as boolean masks [P,h,w].

    Raises TypeError or ValueError for anything else, a box outside the grid, or an empty region.
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
    return isinstance(side, SupportsIndex) and not isinstance(side, bool | Tensor)


def _box_mask(box: object, grid: torch.Size) -> Tensor:
    if not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_whole, box)):
        got = f"a {type(box).__name__}" if isinstance(box, Tensor) else repr(box)
        raise ValueError(f"region: expected whole numbers (top, left, bottom, right), got {got}")
    top, left, bottom, right = map(operator.index, box)
    if not (0 <= top <= bottom <= grid[0] and 0 <= left <= right <= grid[1]):
        raise ValueError(f"region: expected a box within the {grid[0]} x {grid[1]} grid, got {box!r}")
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask
