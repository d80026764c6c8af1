"""The nearest codebook row by squared Euclidean distance.

The expansion |c|^2 - 2 <z, c> costs one matrix product but cancels, and a product need not round equal columns alike.
So it only shortlists, within a bound on its own error; differences then decide within the shortlist, mostly one code.
"""

import torch
from torch import Tensor

_ROWS = 1024  # at a time: the distances of 16384 codes take 128 MiB


def nearest_code(*, z: Tensor, codebook: Tensor) -> Tensor:
    """z [R,d], codebook [K,d] -> int64 [R], in float64; the lowest index among equal distances.

    Codes that are not finite do not compete; the index is 0 where no other is left, or z is not finite.
    """
    codebook = codebook.double()
    finite = codebook.isfinite().all(dim=1)
    codebook = codebook.where(finite[:, None], 0)
    squares = codebook.square().sum(dim=1).where(finite, torch.inf)
    error = 4 * (codebook.shape[1] + 4) * torch.finfo(torch.float64).eps
    return torch.cat([_nearest(part.double(), codebook, squares, error) for part in z.split(_ROWS)])


def _nearest(z: Tensor, codebook: Tensor, squares: Tensor, error: float) -> Tensor:
    """The nearest codes int64 [R] of some rows z [R,d].

    squares [K]: |c|^2, infinite for codes that do not compete. error: relative to |z|^2 + |c|^2.
    """
    approximate = torch.addmm(squares, z, codebook.T, alpha=-2)  # |z - c|^2 - |z|^2, [R,K]
    margin = error * (z.square().sum(dim=1) + squares.where(squares < torch.inf, 0).max())
    near = (approximate <= (approximate.amin(dim=1) + margin)[:, None]) & (squares < torch.inf)
    row, code = near.nonzero(as_tuple=True)
    distance = torch.full_like(approximate, torch.inf)
    distance[row, code] = (z[row] - codebook[code]).square().sum(dim=1)
    return distance.argmin(dim=1)
