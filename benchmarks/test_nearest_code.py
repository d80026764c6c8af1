"""nearest_code of 256 vectors among 16384 codes.

Floor: one matrix product, and one read of the codebook.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.baselines import published
from benchmarks.harness import IMPLS, SEED, Case, Sibling, compiled, reason_against
from benchmarks.machine import Floor
from cortex_fast import ops


@dataclass(frozen=True)
class Vectors:
    """z [R,d] and codebook [K,d]."""

    z: Tensor
    codebook: Tensor


def vectors(rows: int, codes: int, channels: int, device: torch.device) -> Vectors:
    generator = torch.Generator().manual_seed(SEED)
    z = torch.randn((rows, channels), generator=generator)
    return Vectors(z.to(device), torch.randn((codes, channels), generator=generator).to(device))


def excess(data: Vectors, index: Tensor) -> float:
    """By what part the chosen codes' squared distances exceed the smallest ones, in float64; at most, over the rows."""
    z, codebook = data.z.double(), data.codebook.double()
    squares = z.square().sum(dim=1, keepdim=True) + codebook.square().sum(dim=1)
    distances = torch.addmm(squares, z, codebook.T, alpha=-2)
    return float((distances.gather(1, index[:, None]) / distances.amin(dim=1, keepdim=True) - 1).max())


def operator(impl: str) -> Sibling:
    return Sibling(
        impl,
        lambda data: ops.nearest_code(data.z, data.codebook, impl=impl),
        excess,
        tolerance=1e-12,  # its distances are float64
        unavailable=lambda data: reason_against(ops.nearest_code, impl, data.z),
    )


def siblings() -> tuple[Sibling, ...]:
    fast = compiled(published.nearest_code)
    return (
        *map(operator, IMPLS),
        Sibling("published", lambda data: published.nearest_code(data.z, data.codebook), excess, 1e-5),
        Sibling("torch.compile", lambda data: fast(data.z, data.codebook), excess, 1e-5),
        Sibling("cdist", lambda data: torch.cdist(data.z, data.codebook).argmin(dim=1), excess, 1e-5),
    )


def cases(quick: bool) -> list[Case]:
    rows, codes, channels = (5, 64, 8) if quick else (256, 16384, 256)
    return [
        Case(
            operator="nearest_code",
            name=f"{rows} x {codes} x {channels}",
            sizes=f"R {rows}, K {codes}, d {channels}, float32",
            floor=Floor(bytes=4 * codes * channels, operations=2 * rows * codes * channels),
            data=partial(vectors, rows, codes, channels),
            siblings=siblings(),
        )
    ]


def test_nearest_code(measure):
    measure()
