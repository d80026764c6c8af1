"""The Triton kernels' random words, bit for bit, as test_words.py checks the native ones."""

import pytest
import torch

from cortex_fast.kernels.reference import philox
from tests.ops.backends_under_test import WHY_NO_TRITON
from tests.ops.test_philox import PUBLISHED

if WHY_NO_TRITON is not None:
    pytest.skip(WHY_NO_TRITON, allow_module_level=True)

from tests.ops import triton_functions

LARGEST = 2**32 - 1


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert triton_functions.philox(counter, key) == expected


@pytest.mark.parametrize("draw", [0, 1, 16, 2**31, LARGEST])  # 1 and 16 are what Triton likes to specialise
@pytest.mark.parametrize("item", [0, 2**31 - 1, LARGEST])
@pytest.mark.parametrize(("stream", "seed"), [(philox.GUMBEL, 0), (philox.NORMAL, 2**63 - 1)])
def test_a_tiles_words_are_the_definitions(stream: int, seed: int, draw: int, item: int) -> None:
    row, first, rows, block = 3, 40, 4, 32
    expected = philox.words(seed, stream, torch.tensor([item]), torch.tensor([draw]), row + rows, first + block)
    in_order = torch.stack(expected, dim=-1).flatten(-2)[0, 0, row:, first:]
    got = triton_functions.words(stream, seed, draw, item, row, first, rows, block)
    assert torch.equal(got, in_order)


def test_a_tile_may_be_one_quad() -> None:
    expected = philox.words(5, philox.GUMBEL, torch.tensor([2]), torch.tensor([9]), 1, 4)
    got = triton_functions.words(philox.GUMBEL, 5, 9, 2, 0, 0, 1, 4)
    assert torch.equal(got, torch.stack(expected, dim=-1).flatten(-2)[0, 0])
