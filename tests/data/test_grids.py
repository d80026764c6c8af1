"""Grids as they are given, and as shapes have them."""

import pytest
import torch

from cortex_fast.data.grids import grid_of, sides


def test_a_number_is_a_square_and_a_pair_its_rows_and_columns():
    assert sides(16) == (16, 16) and sides((6, 10)) == (6, 10) and sides([6, 10]) == (6, 10)
    assert sides(torch.Size((6, 10))) == (6, 10)
    assert grid_of((3, 6, 10)) == (6, 10) and grid_of((5, 8, 8)) == 8
    for grid in (7, (6, 10), (10, 6)):
        assert grid_of(sides(grid)) == grid


@pytest.mark.parametrize("grid", [0, -1, 2.0, "16", True, None, (6,), (6, 10, 1), (0, 3), (3, 2.5), (6, "10"), {6, 10}])
def test_anything_else_is_named(grid):
    with pytest.raises((TypeError, ValueError), match=r"^size: expected"):
        sides(grid, "size")
