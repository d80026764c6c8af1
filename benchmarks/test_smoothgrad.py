"""SmoothGrad's mean gradient by the engine: CE and RE at paper scale (256 x 16 x 16, width 512, 1000 classes), N 20.

Floor: the remaining products: a quarter of the 3 x 3 convolutions' operations behind the first layer (Winograd's 36 for
144), forward and back, and the linear layers'. The published procedure does N draws, each with one forward pass of the
batch and one backward pass of the batch for each image; a single draw is timed, a 20th.

An estimate agrees with the truth, the engine's over 1000 draws of another seed, by Spearman's correlation over the
grid's TSVs and by its share of the top 20 tokens, averaged over the first images.
"""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, fx, nn

from benchmarks.baselines import published
from benchmarks.harness import SEED, Case, Sibling, compiled
from benchmarks.machine import Floor
from cortex_fast import ops
from cortex_fast.engine import NoiseStream, Prepared, mean_gradients, prepare
from cortex_fast.engine.assembling import assembled
from cortex_fast.engine.borrowing import borrowed
from cortex_fast.engine.folding import fold
from cortex_fast.engine.tracing import recorded
from cortex_fast.extractors import build

BATCH = 5  # for `make bench`, which takes minutes; test_smoothgrad_paper.py has 25
SAMPLES = 20
ALPHA = 0.2
CHUNK = 100  # noisy copies in a pass of the vectorised siblings: more is no faster, and takes more memory
# forward, of a copy: convolutions on 16, 8 and 4 squared by Winograd, RE's strided ones directly, linear layers
MULTIPLY_ADDS = {
    "ce": 3 * 151.0e6 + 4 * 37.7e6 + 50.3e6,
    "re": 5 * 37.7e6 + 5 * 9.4e6 + 37.7e6 + 4.2e6 + 1.1e6,
}
TRUTH_SAMPLES, TRUTH_SEED, TRUTH_IMAGES, TOP = 1000, 1, 3, 20
TOLERANCE = 2e-2  # of the largest: a ReLU that rounding switches changes a gradient by its whole share


@dataclass(frozen=True)
class Images:
    """An extractor and its inputs: x [B,d,m,m], target [B], sigma [B].

    exact: float64 gradients of the first and the last image; truth: TSV of the first images over many draws.
    """

    extractor: nn.Module
    x: Tensor
    target: Tensor
    sigma: Tensor
    exact: Tensor
    truth: Tensor


def paper_extractor(name: str, width: int) -> nn.Module:
    """Untrained, but with random running statistics, as after training."""
    torch.manual_seed(SEED)
    extractor = build(name, width=width).eval()
    for module in extractor.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return extractor


def images(name: str, batch: int, width: int, truth_samples: int, device: torch.device) -> Images:
    extractor = paper_extractor(name, width)
    x = torch.randn((batch, 256, 16, 16))
    sigma = ALPHA * (x.flatten(1).amax(dim=1) - x.flatten(1).amin(dim=1))
    target = torch.arange(batch) * 7 % 1000
    nothing = torch.empty(0)
    data = Images(extractor, x, target, sigma, nothing, nothing)
    parts = (extractor, x, target, sigma, by_definition(data), nothing)
    data = Images(*(part.to(device) for part in parts))
    few = slice(0, TRUTH_IMAGES)
    prepared = prepare(data.extractor, data.x[:1])
    stream = NoiseStream(
        data.sigma[few], torch.arange(len(data.x[few]), device=device), TRUTH_SEED, shared=False, antithetic=False
    )
    truth = prepared.token_saliency(data.x[few], data.target[few], stream, num_samples=truth_samples)
    return replace(data, truth=truth)


def noisy_copies(data: Images, images: int) -> Tensor:
    items = torch.zeros(images, dtype=torch.int64, device=data.x.device)
    return ops.smoothgrad_noise(data.x[:images], data.sigma[:images], SAMPLES, seed=SEED, item_ids=items)


def by_definition(data: Images) -> Tensor:
    """The first and the last image's mean gradients [2,d,m,m] through the extractor itself, in float64."""
    extractor = copy.deepcopy(data.extractor).double()
    noisy = noisy_copies(data, len(data.x))
    gradients = []
    for image in (0, -1):
        copies = noisy[image].double().requires_grad_(True)
        logits = torch.cat([extractor(part) for part in copies.split(5)])
        gradients += torch.autograd.grad(logits[:, data.target[image]].sum(), copies)
    return torch.stack([gradient.mean(dim=0) for gradient in gradients])


def error(data: Images, result: Tensor) -> float:
    return float((result[[0, -1]].double() - data.exact).abs().max() / data.exact.abs().max())


def agreement(data: Images, result: Tensor) -> tuple[float, float]:
    tsv = ops.token_saliency(result[: len(data.truth), None]).flatten(1)
    truth = data.truth.flatten(1)
    ranks, true_ranks = (values.argsort(dim=1).argsort(dim=1).double() for values in (tsv, truth))
    rho = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(ranks, true_ranks, strict=True)]
    tops = zip(tsv.topk(TOP).indices.tolist(), truth.topk(TOP).indices.tolist(), strict=True)
    overlap = [len(set(top) & set(true_top)) / TOP for top, true_top in tops]
    return sum(rho) / len(rho), sum(overlap) / len(overlap)


def agreement_of_draws(data: Images, _draw: Tensor) -> tuple[float, float]:
    """Agreement of the published procedure's mean over all draws, for the first images alone: each draw takes long."""
    few = slice(0, TRUTH_IMAGES)
    draws = [
        published.draw_gradients(data.extractor, data.x[few], data.target[few], float(data.sigma[0]))
        for _ in range(SAMPLES)
    ]
    return agreement(data, torch.stack(draws).mean(dim=0))


def by_captum(data: Images) -> Tensor:
    """NoiseTunnel(Saliency), in passes of CHUNK copies; its sigma is the first image's for all."""
    from captum.attr import NoiseTunnel, Saliency

    return NoiseTunnel(Saliency(data.extractor)).attribute(
        data.x.clone(),
        nt_type="smoothgrad",
        nt_samples=SAMPLES,
        nt_samples_batch_size=max(1, CHUNK // len(data.x)),
        stdevs=float(data.sigma[0]),
        target=data.target,
        abs=False,
    )


def captum_missing(_data: Images) -> str | None:
    return None if importlib.util.find_spec("captum") else "captum is not installed"


def by_engine(pair: tuple[Images, Prepared]) -> Tensor:
    data, prepared = pair
    items = torch.arange(len(data.x), device=data.x.device)
    stream = NoiseStream(data.sigma, items, SEED, shared=True, antithetic=False)
    parts = mean_gradients(prepared, data.x, data.target, stream, range(SAMPLES), memory=1 << 30)
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
    few, more = (data.x[:1].repeat(images, 1, 1, 1) for images in (2, 3))
    stand_in = borrowed(data.extractor)
    graph = fold(assembled(recorded(stand_in, few), recorded(stand_in, more)))
    return fx.GraphModule(graph, graph.graph).to(memory_format=torch.channels_last).requires_grad_(False)


def published_draw(data: Images) -> Tensor:
    return published.draw_gradients(data.extractor, data.x, data.target, float(data.sigma[0]))


def siblings() -> tuple[Sibling, ...]:
    checks = {"error": error, "tolerance": TOLERANCE, "agreement": agreement}
    drawn = {"error": None, "tolerance": 0.0}  # of other noise
    return (
        Sibling("engine", by_engine, **checks, prepare=lambda data: (data, prepare(data.extractor, data.x[:1]))),
        *(
            Sibling(
                f"engine, {precision}",
                by_engine,
                error=error,
                tolerance=0.5,
                agreement=agreement,
                prepare=lambda data, precision=precision: (
                    data,
                    prepare(data.extractor, data.x[:1], precision=precision),
                ),
                unavailable=lambda data: None if data.x.is_cuda else "half precision has no units on this CPU",
            )
            for precision in ("bfloat16", "float16")
        ),
        Sibling("folded, vectorised", vectorised, **checks, prepare=lambda data: (data, folded(data))),
        Sibling("torch.compile", vectorised, **checks, prepare=lambda data: (data, compiled(folded(data)))),
        Sibling("eager, vectorised", vectorised, **checks, prepare=lambda data: (data, data.extractor)),
        Sibling("captum NoiseTunnel", by_captum, **drawn, agreement=agreement, unavailable=captum_missing),
        Sibling(f"published / {SAMPLES}", published_draw, **drawn, agreement=agreement_of_draws, share=1 / SAMPLES),
    )


def cases(quick: bool, images_of: dict[str, int] | None = None) -> list[Case]:
    """A case for each extractor; images_of: the number of images of each."""
    width = 16 if quick else 512
    cases_of_extractors = []
    for name, count in (images_of or {"ce": BATCH, "re": BATCH}).items():
        batch, truth_samples = (2, SAMPLES) if quick else (count, TRUTH_SAMPLES)
        operations = 4 * MULTIPLY_ADDS[name] * batch * SAMPLES * (width / 512) ** 2
        cases_of_extractors.append(
            Case(
                operator="smoothgrad",
                name=f"{name.upper()} {batch} images",
                sizes=f"{name}, width {width}, E [{batch}, 256, 16, 16], N {SAMPLES}, float32",
                floor=Floor(bytes=0, operations=int(operations)),
                data=partial(images, name, batch, width, truth_samples),
                siblings=siblings(),
            )
        )
    return cases_of_extractors


def test_smoothgrad(measure):
    measure()
