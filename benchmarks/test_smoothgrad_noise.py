"""smoothgrad_noise at paper scale: 20 noisy copies of 25 embeddings, with independent and with shared noise.

Floor: one read of x and one write of the copies, at the speed of a copy. "copy_" copies a tensor of the result's size
into memory that exists; "clone" into fresh memory, whose pages the system must first clear, as for all others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.baselines import published
from benchmarks.harness import IMPLS, SEED, Case, Sibling, compiled, max_error, reason_against
from benchmarks.machine import Floor
from cortex_fast import ops
from cortex_fast.kernels.reference import philox

TOLERANCE = 5e-6  # of values up to sigma times 6, sigma about 2


@dataclass(frozen=True)
class Embeddings:
    """x [B,d,m,m]; sigma [B], the same for all, as in the published code; item_ids [B], all 0 where noise is shared."""

    x: Tensor
    sigma: Tensor
    item_ids: Tensor
    samples: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.x), self.samples, *self.x.shape[1:])

    @property
    def normals_shape(self) -> tuple[int, ...]:
        return (1, *self.shape[1:]) if self.shared else self.shape

    @property
    def shared(self) -> bool:
        return not self.item_ids.any()


def embeddings(shape: tuple[int, ...], samples: int, shared: bool, device: torch.device) -> Embeddings:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    sigma = (0.2 * (x.max() - x.min())).expand(shape[0]).contiguous()
    item_ids = torch.zeros(shape[0], dtype=torch.int64) if shared else torch.arange(shape[0])
    return Embeddings(x.to(device), sigma.to(device), item_ids.to(device), samples)


def stream_normals(data: Embeddings, image: int) -> Tensor:
    """Standard normals [N,d,m,m] of the shared stream in float64: only its integers and angles are rounded."""
    channels, *grid = data.x.shape[1:]
    draws = torch.arange(data.samples)
    item = data.item_ids[image].cpu()[None]
    words = philox.words(SEED, philox.NORMAL, item, draws, math.prod(grid), channels)  # [1, N, m*m, ceil(d / 4)]
    parts = []
    for first, second in (words[:2], words[2:]):
        radius = (-2 * philox.uniform(first).double().log()).sqrt()
        angle = (philox.uniform(second) * (2 * math.pi)).double()
        parts += [radius * angle.cos(), radius * angle.sin()]
    normals = torch.stack(parts, dim=-1).flatten(-2)[0, ..., :channels]
    return normals.transpose(1, 2).unflatten(2, grid)


def drawn_at_once(data: Embeddings) -> Tensor:
    torch.manual_seed(SEED)
    return torch.randn(data.normals_shape, device=data.x.device).cpu()


def drawn_in_turn(data: Embeddings) -> Tensor:
    torch.manual_seed(SEED)
    return torch.stack([torch.randn(data.x.shape) for _ in range(data.samples)], dim=1)


def largest_error(data: Embeddings, normals_of: Callable[[int], Tensor], result_of: Callable[[int], Tensor]) -> float:
    """Over the images, one at a time; both functions take an image's number."""
    errors = []
    for image, (x, sigma) in enumerate(zip(data.x.cpu().double(), data.sigma.cpu().double(), strict=True)):
        errors.append(max_error(result_of(image).cpu(), x + sigma * normals_of(image)))
    return float(torch.tensor(errors).max())  # of floats, max would lose a NaN


def stream_error(data: Embeddings, result: Tensor) -> float:
    return largest_error(data, partial(stream_normals, data), lambda image: result[image])


def drawn_error(data: Embeddings, result: Tensor) -> float:
    normals = drawn_at_once(data).expand(data.shape)
    return largest_error(data, lambda image: normals[image], lambda image: result[image])


def published_error(data: Embeddings, result: list[Tensor]) -> float:
    normals, copies = drawn_in_turn(data), torch.stack(result, dim=1)
    return largest_error(data, lambda image: normals[image], lambda image: copies[image])


def noisy(x: Tensor, sigma: Tensor, normals: Tensor) -> Tensor:
    return x[:, None] + sigma[:, None, None, None, None] * normals


def drawn(data: Embeddings) -> Tensor:
    return torch.randn(data.normals_shape, device=data.x.device)


def copied(data: Embeddings) -> tuple[Tensor, Tensor]:
    """A source and a target of the result's size."""
    return torch.ones(data.shape, device=data.x.device), torch.zeros(data.shape, device=data.x.device)


def siblings() -> tuple[Sibling, ...]:
    fast = compiled(noisy)  # torch.randn inside it is three times slower than before it
    return (
        *map(operator, IMPLS),
        Sibling(
            "published",  # without shared noise
            lambda data: list(published.noisy_copies(data.x, float(data.sigma[0]), data.samples)),
            published_error,
            TOLERANCE,
        ),
        Sibling("eager", lambda data: noisy(data.x, data.sigma, drawn(data)), drawn_error, TOLERANCE),
        Sibling("torch.compile", lambda data: fast(data.x, data.sigma, drawn(data)), drawn_error, TOLERANCE),
        Sibling(
            "copy_",
            lambda pair: pair[1].copy_(pair[0]),
            lambda data, result: float((result - 1).abs().max()),
            tolerance=0,
            prepare=copied,
        ),
        Sibling(
            "clone",
            lambda pair: pair[0].clone(),
            lambda data, result: float((result - 1).abs().max()),
            tolerance=0,
            prepare=copied,
        ),
    )


def operator(impl: str) -> Sibling:
    return Sibling(
        impl,
        lambda data: ops.smoothgrad_noise(
            data.x, data.sigma, data.samples, seed=SEED, item_ids=data.item_ids, impl=impl
        ),
        stream_error,
        TOLERANCE,
        unavailable=lambda data: reason_against(ops.smoothgrad_noise, impl, data.x),
    )


def cases(quick: bool) -> list[Case]:
    shape, samples = ((2, 10, 4, 4), 3) if quick else ((25, 256, 16, 16), 20)
    elements = math.prod(shape)
    return [
        Case(
            operator="smoothgrad_noise",
            name=f"{shape[0]} images, {name} noise",
            sizes=f"{list(shape)} float32, N {samples}, {name} noise",
            floor=Floor(bytes=4 * elements * (1 + samples), traffic="copy"),
            data=partial(embeddings, shape, samples, name == "shared"),
            siblings=siblings(),
        )
        for name in ("independent", "shared")
    ]


def test_smoothgrad_noise(measure):
    measure()
