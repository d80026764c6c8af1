"""The arguments that every optimisation of tokens shares, checked: what is to be optimised, where, and for what."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cortex_fast import checks
from cortex_fast.data.token_store import gather
from cortex_fast.engine import Prepared, module_of, ordinary
from cortex_fast.explain.arguments import check_classes, check_extractor, target_vector

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Problems:
    """Checked arguments of P problems: codebook [K,d], start [P,m,m], region bool [m,m], target [P], item ids [P].

    given: the start is the user's, so that it may itself be the best. numbers int64 [P]: their places among all.
    """

    codebook: Tensor
    start: Tensor
    region: Tensor
    target: Tensor
    item_ids: Tensor
    given: bool
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: slice | Tensor) -> "Problems":
        """Some of the problems."""
        return replace(
            self,
            start=self.start[rows],
            target=self.target[rows],
            item_ids=self.item_ids[rows],
            numbers=self.numbers[rows],
        )

    @property
    def free(self) -> Tensor:
        """The free positions, int64 [rows], counted row by row."""
        return self.region.flatten().nonzero().flatten()

    @property
    def own(self) -> Tensor:
        """The start's tokens at the free positions, int64 [P,rows]."""
        return self.start.flatten(1)[:, self.free]

    def filled(self, tokens: Tensor) -> Tensor:
        """The start with tokens [P,rows] at the free positions, [P,m,m]."""
        return self.start.flatten(1).index_copy(1, self.free, tokens).view_as(self.start)

    @property
    def box(self) -> Box:
        """The smallest half-open box (top, left, bottom, right) around the region."""
        rows, columns = self.region.any(dim=1).nonzero(), self.region.any(dim=0).nonzero()
        return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def check_problems(
    extractor: nn.Module | Prepared,
    codebook: Tensor,
    target: int | Tensor,
    tokens: Tensor | None,
    region: Box | Tensor | None,
    grid: int | None,
    item_ids: Tensor | None,
) -> Problems:
    """The arguments that every optimisation shares, checked and made whole."""
    extractor = module_of(extractor)
    checks.rank("codebook", codebook, "[K, d]")
    checks.floating("codebook", codebook)
    checks.finite("codebook", codebook)
    check_extractor(extractor, codebook=codebook)
    codebook, device = ordinary(codebook.detach()), codebook.device
    given = tokens is not None
    if tokens is None:
        size = 16 if grid is None else grid
        checks.whole("grid", size, 1)
        batch = len(target) if isinstance(target, Tensor) and target.ndim else 1
        tokens = torch.zeros(batch, size, size, dtype=torch.int64, device=device)
        if region is not None:
            raise ValueError("region: expected None without tokens, since nothing is kept outside it")
    elif grid is not None:
        raise ValueError("grid: expected None with tokens, whose shape gives it")
    checks.rank("tokens", tokens, "[P, m, m]")
    checks.integral("tokens", tokens)
    checks.same_device(codebook=codebook, tokens=tokens, item_ids=item_ids)
    checks.in_range("tokens", tokens, codebook.shape[0])
    tokens = ordinary(tokens.long())
    targets = ordinary(target_vector(target, len(tokens), device))
    if len(tokens):
        check_classes(extractor, gather(tokens[:1], codebook), targets)
    if item_ids is None:
        item_ids = torch.arange(len(tokens), device=device)
    checks.integral("item_ids", item_ids)
    checks.same_shape("item_ids", item_ids, "tokens' first dimension", tokens.shape[:1])
    checks.in_range("item_ids", item_ids, 2**32)
    mask = region_mask(region, tokens.shape[1:]).to(device)
    numbers = torch.arange(len(tokens), device=device)
    return Problems(codebook, tokens, mask, targets, item_ids.long(), given, numbers)


def region_mask(region: Box | Tensor | None, grid: torch.Size) -> Tensor:
    """A half-open box (top, left, bottom, right), a boolean [m,m] mask or None (everything) as a boolean [m,m] mask.

    Raises TypeError or ValueError for anything else, a box outside the grid, or an empty region.
    """
    if region is None:
        return torch.ones(grid, dtype=torch.bool)
    if isinstance(region, Tensor):
        if region.dtype != torch.bool:
            raise TypeError(f"region: expected a boolean mask or a box, got a tensor of {region.dtype}")
        checks.same_shape("region", region, "the grid", grid)
        mask = region
    else:
        if not isinstance(region, Sequence) or len(region) != 4 or not all(type(side) is int for side in region):
            raise ValueError(f"region: expected whole numbers (top, left, bottom, right), got {region!r}")
        top, left, bottom, right = region
        if not (0 <= top <= bottom <= grid[0] and 0 <= left <= right <= grid[1]):
            raise ValueError(f"region: expected a box within the {grid[0]} x {grid[1]} grid, got {region!r}")
        mask = torch.zeros(grid, dtype=torch.bool)
        mask[top:bottom, left:right] = True
    if not bool(mask.any()):
        raise ValueError(f"region: expected at least one position, got an empty region {region!r}")
    return mask
