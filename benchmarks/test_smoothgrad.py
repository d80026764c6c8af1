"""SmoothGrad's mean gradient by the engine: CE and RE at paper scale (256 x 16 x 16, width 512, 1000 classes), N 20.

Floor: the products that are left: a quarter of the convolutions' operations behind the first layer (Winograd's 36 for
144), forward and back, and the linear layers'. The published procedure does N draws, one forward pass of the batch and
one backward pass of the batch for each image in each; one draw is timed, a 20th.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.baselines import published
from benchmarks.harness import SEED, Case, Sibling, compiled
from benchmarks.machine import Floor
from cortex_fast import ops
from cortex_fast.engine import Noise, Prepared, mean_gradients, prepare
from cortex_fast.engine.folding import fold
from cortex_fast.extractors import build

BATCH = 5  # `make bench` has minutes; docs/performance.md has 25
SAMPLES = 20
ALPHA = 0.2
CHUNK = 100  # noisy copies of one pass of the vectorised siblings: more is no faster, and takes its memory
MULTIPLY_ADDS = {"ce": 0.302e9 * 4 + 0.0755e9 * 4 + 50.3e6, "re": 0.0755e9 * 1.25 * 5 + 1.1e6}  # a copy, Winograd's
TOLERANCE = 2e-2  # of the largest: a ReLU that rounding turns over moves a gradient by its whole share


@dataclass(frozen=True)
class Images:
    """An extractor and what is asked of it: x [B,d,m,m], target [B], sigma [B]; exact: float64 gradients of image 0."""

    extractor: nn.Module
    x: Tensor
    target: Tensor
    sigma: Tensor
    exact: Tensor


def images(name: str, batch: int, width: int, device: torch.device) -> Images:
    torch.manual_seed(SEED)
    extractor = build(name, width=width).eval()
    for module in extractor.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    x = torch.randn((batch, 256, 16, 16))
    sigma = ALPHA * (x.flatten(1).amax(dim=1) - x.flatten(1).amin(dim=1))
    target = torch.arange(batch) * 7 % 1000
    data = Images(extractor, x, target, sigma, torch.empty(0))
    exact = by_definition(data)
    return Images(*(part.to(device) for part in (extractor, x, target, sigma, exact)))


def noisy_copies(data: Images, images: int) -> Tensor:
    items = torch.zeros(images, dtype=torch.int64)
    return ops.smoothgrad_noise(data.x[:images], data.sigma[:images], SAMPLES, seed=SEED, item_ids=items)


def by_definition(data: Images) -> Tensor:
    """Image 0's mean gradient [d,m,m] through the extractor itself, in float64."""
    extractor = copy.deepcopy(data.extractor).double()
    copies = noisy_copies(data, 1)[0].double().requires_grad_(True)
    logits = torch.cat([extractor(part) for part in copies.split(5)])
    (gradient,) = torch.autograd.grad(logits[:, data.target[0]].sum(), copies)
    return gradient.mean(dim=0)


def error(data: Images, result: Tensor) -> float:
    return float((result[0].double() - data.exact).abs().max() / data.exact.abs().max())


def by_engine(pair: tuple[Images, Prepared]) -> Tensor:
    data, prepared = pair
    noise = Noise(data.sigma, torch.arange(len(data.x)), SEED, shared=True, antithetic=False)
    parts = mean_gradients(prepared, data.x, data.target, noise, range(SAMPLES), memory=1 << 30)
    return torch.cat([part for _, part in parts])


def vectorised(pair: tuple[Images, Callable[[Tensor], Tensor]]) -> Tensor:
    """One backward pass for many copies, BatchNorm folded, channels-last, gradients of the input only."""
    data, function = pair
    copies = noisy_copies(data, len(data.x)).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    targets = data.target.repeat_interleave(SAMPLES)
    parts = []
    for x, target in zip(copies.split(CHUNK), targets.split(CHUNK), strict=True):
        leaf = x.detach().requires_grad_(True)
        value = function(leaf).gather(1, target[:, None]).sum()
        parts += torch.autograd.grad(value, leaf)
    return torch.cat(parts).unflatten(0, (len(data.x), SAMPLES)).mean(dim=1)


def folded(data: Images) -> nn.Module:
    return fold(data.extractor).to(memory_format=torch.channels_last).requires_grad_(False)


def published_draw(data: Images) -> Tensor:
    return published.one_draw(data.extractor, data.x, data.target, float(data.sigma[0]))


def finite(_data: Images, result: Tensor) -> float:
    return 0.0 if bool(result.isfinite().all()) else float("inf")


def siblings() -> tuple[Sibling, ...]:
    return (
        Sibling(
            "native",
            by_engine,
            error,
            TOLERANCE,
            prepare=lambda data: (data, prepare(data.extractor, data.x[:1])),
        ),
        Sibling("vectorised", vectorised, error, TOLERANCE, prepare=lambda data: (data, folded(data))),
        Sibling("torch.compile", vectorised, error, TOLERANCE, prepare=lambda data: (data, compiled(folded(data)))),
        Sibling(f"published / {SAMPLES}", published_draw, finite, 0.0),
    )


def cases(quick: bool) -> list[Case]:
    batch, width = (2, 16) if quick else (BATCH, 512)
    scale = batch * SAMPLES * (width / 512) ** 2
    return [
        Case(
            operator="smoothgrad",
            name=f"{name.upper()} {batch} images",
            sizes=f"{name}, width {width}, E [{batch}, 256, 16, 16], N {SAMPLES}, float32",
            floor=Floor(bytes=0, operations=int(4 * MULTIPLY_ADDS[name] * scale)),
            data=partial(images, name, batch, width),
            siblings=siblings(),
        )
        for name in ("ce", "re")
    ]


def test_smoothgrad(measure):
    measure()
