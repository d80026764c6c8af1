"""A step of token selection at paper scale: CE of width 512, K 16384, the 4 x 4 region of 16 x 16, Adam.

Floor: the products of the extractor's layers, forward and to the input, for the activations that the region reaches, by
Winograd's counts, and D = dE C^T of the free rows. The published step applies the formula to all 256 rows of logits, an
image at a time, and also computes the gradients of the extractor's parameters, which its loop never uses; the step of a
single image is timed.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.baselines import published
from benchmarks.harness import SEED, Case, Sibling
from benchmarks.machine import Floor
from benchmarks.test_smoothgrad import paper_extractor
from cortex_fast.data.token_store import gather
from cortex_fast.engine import prepare
from cortex_fast.explain.problems import Problems, check_problems
from cortex_fast.explain.recipes import Recipe
from cortex_fast.explain.stepping import schedules_of, step_of
from cortex_fast.explain.token_method import token_method

REGION, ROWS = (7, 7, 11, 11), 16
RECIPE = Recipe()
# forward, of a problem: 4, 4, 9 and 16 tiles of the first block (its fourth layer reaches 14 x 14), then the rest
MULTIPLY_ADDS = 36 * 512 * (4 * 256 + (4 + 9 + 16) * 512) + 4 * 37.7e6 + 50.3e6
TOLERANCE = 2e-2  # of the largest: a ReLU that rounding switches changes a gradient by its whole share

Step = tuple[Tensor, Tensor]  # of the first problem: the proposed rows [16,d], and the loss's gradient in them


@dataclass(frozen=True)
class Selecting:
    """An extractor and the checked problems of one step."""

    extractor: nn.Module
    problems: Problems


def selecting(count: int, width: int, codes: int, device: torch.device) -> Selecting:
    extractor = paper_extractor("ce", width).to(device)
    generator = torch.Generator().manual_seed(SEED)
    codebook = torch.randn(codes, 256, generator=generator)
    tokens = torch.randint(codes, (count, 16, 16), generator=generator)
    target = torch.arange(count) * 7 % 1000
    codebook, tokens, target = (tensor.to(device) for tensor in (codebook, tokens, target))
    return Selecting(extractor, check_problems(extractor, codebook, target, tokens=tokens, region=REGION))


def error(data: Selecting, result: Step) -> float:
    """The largest error of the gradient, against float64 through the whole extractor."""
    proposed, gradient = (tensor.double().cpu() for tensor in result)
    problems = data.problems
    leaf = proposed[None].requires_grad_(True)
    fixed = gather(problems.start[:1], problems.codebook).double().cpu().flatten(2)
    embedding = fixed.index_copy(2, problems.free.cpu(), leaf.transpose(1, 2)).unflatten(2, (16, 16))
    extractor = copy.deepcopy(data.extractor).double().cpu()
    (exact,) = torch.autograd.grad(-extractor(embedding)[0, problems.target[0]], leaf)
    return float((gradient - exact[0]).abs().max() / exact.abs().max())


def engine_step(data: Selecting) -> Callable[[], Step]:
    problems, method = data.problems, token_method(RECIPE, SEED, None)
    prepared = prepare(data.extractor, gather(problems.start[:1], problems.codebook))
    logits = method.start(problems)
    moments = (torch.zeros_like(logits), torch.zeros_like(logits))
    schedule = schedules_of(RECIPE, logits.device)[0]
    whole = step_of(prepared, problems, method, RECIPE, logits, moments)

    def step() -> Step:
        _, proposed, gradient = whole(schedule)
        return proposed[0], gradient[0]

    return step


def published_step(data: Selecting) -> Callable[[], Step]:
    problems, codebook = data.problems, data.problems.codebook
    extractor = copy.deepcopy(data.extractor).requires_grad_(True)
    logits = torch.full((256, len(codebook)), -300.0, device=codebook.device)
    logits[torch.arange(256, device=codebook.device), problems.start[0].flatten()] = 300
    logits[problems.free] = torch.randn(ROWS, len(codebook), device=codebook.device)
    logits.requires_grad_(True)
    mask = problems.region[0].flatten()[:, None].float().expand_as(logits).contiguous()
    optimizer = torch.optim.Adam([logits], lr=0.01)

    def step() -> Step:
        optimizer.zero_grad()
        uniform = torch.rand(logits.shape).to(logits.device)
        selected = published.select(logits, codebook, uniform, 1.0)
        selected.retain_grad()
        embedding = selected.T.reshape(1, codebook.shape[1], 16, 16)
        loss = -extractor(embedding)[0, problems.target[0]] + 0.0 * embedding.square().mean()
        loss.backward()
        logits.grad *= mask
        optimizer.step()
        return selected.detach()[problems.free], selected.grad[problems.free]

    return step


def cases(quick: bool) -> list[Case]:
    width, codes = (16, 256) if quick else (512, 16384)
    selections = []
    for count in (2,) if quick else (1, 16):
        operations = count * (4 * MULTIPLY_ADDS * (width / 512) ** 2 + 2 * ROWS * codes * 256)
        selections.append(
            Case(
                operator="selection",
                name=f"step, {count} problem{'s' if count > 1 else ''}",
                sizes=f"CE width {width}, {count} x [16, {codes}] logits, C [{codes}, 256], float32",
                floor=Floor(bytes=0, operations=int(operations)),
                data=partial(selecting, count, width, codes),
                siblings=(
                    Sibling("engine", lambda step: step(), error, TOLERANCE, prepare=engine_step),
                    Sibling(
                        f"published / {count}",
                        lambda step: step(),
                        error,
                        TOLERANCE,
                        prepare=published_step,
                        share=1 / count,
                    ),
                ),
            )
        )
    return selections


def test_selection(measure):
    measure()
