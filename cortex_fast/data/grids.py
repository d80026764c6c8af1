"""Token grids: how many rows and columns of tokens an image has."""

from collections.abc import Sequence

from cortex_fast import checks

Grid = int | tuple[int, int]  # m for m x m tokens, (h, w) for h rows of w tokens


def sides(grid: Grid | Sequence[int], name: str = "grid") -> tuple[int, int]:
    """(h, w) of a grid m or (h, w). Raises TypeError or ValueError, naming it, for anything else."""
    if not isinstance(grid, list | tuple):
        checks.whole(name, grid, 1)
        return int(grid), int(grid)  # type: ignore[call-overload]
    if len(grid) != 2:
        raise ValueError(f"{name}: expected a whole number m, or rows and columns (h, w), got {grid!r}")
    for side in grid:
        checks.whole(name, side, 1)
    return int(grid[0]), int(grid[1])


def grid_of(shape: Sequence[int]) -> Grid:
    """The grid of a shape [..., h, w]: m where the sides are equal, else (h, w)."""
    height, width = shape[-2:]
    return height if height == width else (height, width)
