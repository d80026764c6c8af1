"""Token grids: how many rows and columns of tokens an image has."""

from collections.abc import Sequence

from cortex_fast import checks

Grid = int | tuple[int, int]  # m for m x m tokens, (h, w) for h rows of w tokens


def sides(grid: Grid | Sequence[int], name: str = "grid") -> tuple[int, int]:
    """The sides of a grid.

    Args:
        grid: m or (h, w).
        name: the argument's, for messages. Default "grid".
    Returns:
        (h, w).
    Raises:
        TypeError: a side is no whole number.
        ValueError: a side is below 1, or there are not two.
    """
    both = grid if isinstance(grid, list | tuple) else (grid, grid)
    if len(both) != 2:
        raise ValueError(f"{name}: expected a whole number m, or rows and columns (h, w), got {grid!r}")
    for side in both:
        checks.whole(name, side, 1)
    return int(both[0]), int(both[1])


def grid_of(shape: Sequence[int]) -> Grid:
    """The grid of a shape [..., h, w]: m where the sides are equal, else (h, w)."""
    height, width = shape[-2:]
    return height if height == width else (height, width)
