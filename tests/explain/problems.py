"""The problems that tests of token selection share."""

import torch

from cortex_fast import TokenSelection, optimise_embedding, select_tokens

CODES, CHANNELS, GRID, CLASSES = 12, 5, 8, 4
BOTH = [select_tokens, optimise_embedding]
REGION = (2, 2, 5, 5)


def codebook():
    return torch.randn(CODES, CHANNELS, generator=torch.Generator().manual_seed(3))


def grids(count=3):
    return torch.randint(CODES, (count, GRID, GRID), generator=torch.Generator().manual_seed(4))


def targets(count=3):
    return torch.arange(count) % CLASSES


def assert_same(result: TokenSelection, expected: TokenSelection):
    for name, value in vars(result).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(nan=-9), getattr(expected, name).nan_to_num(nan=-9)), name


class StoppedError(Exception):
    """Raised by a judge to interrupt a run."""
