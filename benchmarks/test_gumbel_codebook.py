"""gumbel_codebook at paper scale: one step of a token selection (forward, backward, Adam), and the forward alone.

The problem has 256 rows (16 x 16 tokens), all free or 16 of them. cortex_fast and F.gumbel_softmax step the free rows;
the published code steps all, with fixed rows at logits of +-300 and their gradients masked. The gradient dE that an
extractor would send is given.

Floor of a step: one matrix product of the free rows (dE C^T), and 28 bytes a logit: P read, then P, m, v read and
written.
Floor of the forward: P read once; it needs no product.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines import published
from benchmarks.harness import IMPLS, SEED, Case, Sibling, compiled, max_error, reason_against
from benchmarks.machine import Floor
from cortex_fast import ops
from cortex_fast.kernels.reference import philox

LR, TAU, BETAS, EPS = 0.01, 1.0, (0.9, 0.999), 1e-8
STEP = 3  # the first step, counted from 1: moments are those of a selection under way
FORWARD_TOLERANCE = 1e-5  # of sums of 16384 terms: the published code multiplies by the one-hot rows
CHECKED_ROWS = 256  # in float64
STEP_TOLERANCE = 1e-6  # of logits, which a step moves by up to 0.01


@dataclass(frozen=True)
class Rows:
    """logits P [R,K], upstream dE [R,d], Adam's moments [R,K], and mask [R,1]: 1 for free rows."""

    logits: Tensor
    upstream: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Selection:
    """codebook [K,d]; all rows, as the published code has them, and the free ones alone."""

    codebook: Tensor
    everything: Rows
    free: Rows


def selection(rows: int, free: int, codes: int, channels: int, device: torch.device) -> Selection:
    generator = torch.Generator().manual_seed(SEED)
    normal = partial(torch.randn, generator=generator)
    is_free = torch.zeros(rows, 1)
    is_free[torch.randperm(rows, generator=generator)[:free]] = 1
    fixed = torch.full((rows, codes), -300.0)
    fixed.scatter_(1, torch.randint(codes, (rows, 1), generator=generator), 300.0)
    size = 1e-4  # of most gradients
    everything = Rows(
        logits=torch.where(is_free.bool(), normal(rows, codes), fixed),
        upstream=normal(rows, channels) / channels**0.5,
        exp_avg=normal(rows, codes) * size * is_free,
        exp_avg_sq=(0.5 + torch.rand((rows, codes), generator=generator)) * size**2 * is_free,
        mask=is_free,
    )
    codebook = normal(codes, channels)
    free_rows = is_free.flatten().bool()
    tensors = {field.name: getattr(everything, field.name) for field in fields(Rows)}
    return Selection(
        codebook.to(device),
        Rows(**{name: tensor.to(device) for name, tensor in tensors.items()}),
        Rows(**{name: tensor[free_rows].to(device) for name, tensor in tensors.items()}),
    )


# What a step must give, in float64, and each sibling's own noise drawn again.

Noise = Callable[[torch.Size, torch.device], Tensor]  # logits' shape [R,K] and device -> Gumbel noise, float64
ChosenRows = Callable[[Selection], Rows]


def exact_embedding(rows: Rows, codebook: Tensor, noise: Tensor) -> Tensor:
    """E [R,d]: the codebook row of the largest P + g."""
    return codebook[(rows.logits.double() + noise).argmax(dim=1)].double()


def exact_logits(rows: Rows, codebook: Tensor, noise: Tensor) -> Tensor:
    """P [R,K] after a step: dP = y (D - <y, D>) / tau with D = dE C^T, on free rows; then Adam's formula."""
    y = ((rows.logits.double() + noise) / TAU).softmax(dim=1)
    d = rows.upstream.double() @ codebook.double().T
    gradient = y * (d - (y * d).sum(dim=1, keepdim=True)) / TAU * rows.mask.double()
    first = BETAS[0] * rows.exp_avg.double() + (1 - BETAS[0]) * gradient
    second = BETAS[1] * rows.exp_avg_sq.double() + (1 - BETAS[1]) * gradient.square()
    first_hat, second_hat = first / (1 - BETAS[0] ** STEP), second / (1 - BETAS[1] ** STEP)
    return rows.logits.double() - LR * first_hat / (second_hat.sqrt() + EPS)


def stream_noise(shape: torch.Size, device: torch.device) -> Tensor:
    rows = min(shape[0], CHECKED_ROWS)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    return philox.gumbel(SEED, zero, zero, rows, shape[1])[0, 0].double()


def published_noise(shape: torch.Size, device: torch.device) -> Tensor:
    torch.manual_seed(SEED)  # it draws on the CPU
    return published.gumbel(torch.rand(shape)[:CHECKED_ROWS].double()).to(device)


def noise_of_the_device(shape: torch.Size, device: torch.device) -> Tensor:
    torch.manual_seed(SEED)
    return published.gumbel(torch.rand(shape, device=device)[:CHECKED_ROWS].double())


def gumbel_softmax_noise(shape: torch.Size, device: torch.device) -> Tensor:
    torch.manual_seed(SEED)
    return -torch.empty(shape, device=device).exponential_()[:CHECKED_ROWS].double().log()


def first(rows: Rows) -> Rows:
    """Those that are checked."""
    return Rows(**{field.name: getattr(rows, field.name)[:CHECKED_ROWS] for field in fields(Rows)})


def forward_error(noise: Noise, chosen: ChosenRows) -> Callable[[Selection, Tensor], float]:
    def error(data: Selection, result: Tensor) -> float:
        rows = chosen(data)
        exact = exact_embedding(first(rows), data.codebook, noise(rows.logits.shape, result.device))
        return max_error(result.flatten(0, -2)[:CHECKED_ROWS], exact)

    return error


def step_error(noise: Noise, chosen: ChosenRows) -> Callable[[Selection, Tensor], float]:
    def error(data: Selection, result: Tensor) -> float:
        rows = chosen(data)
        exact = exact_logits(first(rows), data.codebook, noise(rows.logits.shape, result.device))
        return max_error(result.detach().flatten(0, -2)[:CHECKED_ROWS], exact)

    return error


# What a step changes. A run of steps goes on from its own results, as a selection does.


@dataclass(frozen=True)
class Progress:
    """logits, which require gradients, and dE, codebook, mask; either Adam, or its moments and its step numbers."""

    logits: Tensor
    upstream: Tensor
    codebook: Tensor
    mask: Tensor
    adam: torch.optim.Optimizer
    moments: tuple[Tensor, Tensor]
    steps: Iterator[int]


def everything(data: Selection) -> Rows:
    return data.everything


def free(data: Selection) -> Rows:
    return data.free


def progress(chosen: ChosenRows, data: Selection, fused: bool = False) -> Progress:
    """A separate start. fused: torch's fused Adam instead of torch's default, which the published code uses."""
    rows = chosen(data)
    logits = rows.logits.clone().requires_grad_()
    moments = rows.exp_avg.clone(), rows.exp_avg_sq.clone()
    adam = torch.optim.Adam([logits], lr=LR, betas=BETAS, eps=EPS, fused=fused or None)
    adam.state[logits] = {"step": torch.tensor(STEP - 1.0), "exp_avg": moments[0], "exp_avg_sq": moments[1]}
    return Progress(logits, rows.upstream, data.codebook, rows.mask, adam, moments, itertools.count(STEP))


def operator(state: Progress, impl: str) -> Tensor:
    return ops.gumbel_codebook(state.logits, state.codebook, tau=TAU, seed=SEED, impl=impl)[0]


def fused_step(state: Progress, impl: str) -> Tensor:
    """Forward, then backward and Adam in one."""
    logits = state.logits.detach()
    _, _, row_stats = ops.gumbel_codebook_with_row_stats(logits, state.codebook, tau=TAU, seed=SEED, impl=impl)
    ops.gumbel_codebook_step(
        logits,
        state.codebook,
        state.upstream,
        lr=LR,
        tau=TAU,
        seed=SEED,
        moments=state.moments,
        step_count=next(state.steps),
        betas=BETAS,
        eps=EPS,
        row_stats=row_stats,
        impl=impl,
    )
    return logits


def eager_step(state: Progress, embed: Callable[[Progress], Tensor], masked: bool = False) -> Tensor:
    """Forward, autograd's backward and torch's Adam."""
    state.adam.zero_grad()
    embed(state).backward(state.upstream)
    if masked:
        state.logits.grad.mul_(state.mask)
    state.adam.step()
    return state.logits


def without_gradient(embed: Callable[[Progress], Tensor]) -> Callable[[Progress], Tensor]:
    return torch.no_grad()(embed)


def published_embedding(state: Progress) -> Tensor:
    uniform = torch.rand(state.logits.shape).to(state.logits.device)  # drawn on the CPU, as there
    return published.select(state.logits, state.codebook, uniform, TAU)


def compiled_embedding(state: Progress, select: Callable[..., Tensor]) -> Tensor:
    return select(state.logits, state.codebook, torch.rand_like(state.logits), TAU)


def gumbel_softmax(state: Progress) -> Tensor:
    return F.gumbel_softmax(state.logits, TAU, hard=True) @ state.codebook


def no_step_operator(data: Selection, impl: str) -> str | None:
    return no_operator(data, impl) or reason_against(ops.gumbel_codebook_step, impl, data.free.logits)


def no_operator(data: Selection, impl: str) -> str | None:
    return reason_against(ops.gumbel_codebook, impl, data.free.logits)


def step_siblings() -> tuple[Sibling, ...]:
    fast = compiled(published.select)  # torch.rand stays before it: inside, it is slower
    error = step_error(stream_noise, free)
    measurements = []
    for impl in IMPLS:
        fused = partial(fused_step, impl=impl)
        unfused = partial(eager_step, embed=partial(operator, impl=impl))
        start = partial(progress, free)
        measurements += [
            Sibling(impl, fused, error, STEP_TOLERANCE, start, partial(no_step_operator, impl=impl)),
            Sibling(f"{impl}, unfused", unfused, error, STEP_TOLERANCE, start, partial(no_operator, impl=impl)),
        ]
    return (
        *measurements,
        Sibling(
            "published",
            partial(eager_step, embed=published_embedding, masked=True),
            step_error(published_noise, everything),
            STEP_TOLERANCE,
            partial(progress, everything),
        ),
        Sibling(
            "F.gumbel_softmax",
            partial(eager_step, embed=gumbel_softmax),
            step_error(gumbel_softmax_noise, free),
            STEP_TOLERANCE,
            partial(progress, free),
        ),
        Sibling(
            "torch.compile",
            partial(eager_step, embed=partial(compiled_embedding, select=fast), masked=True),
            step_error(noise_of_the_device, everything),
            STEP_TOLERANCE,
            partial(progress, everything, fused=True),
        ),
    )


def forward_siblings() -> tuple[Sibling, ...]:
    fast = compiled(published.select)
    return (
        *(
            Sibling(
                impl,
                without_gradient(partial(operator, impl=impl)),
                forward_error(stream_noise, free),
                FORWARD_TOLERANCE,
                partial(progress, free),
                partial(no_operator, impl=impl),
            )
            for impl in IMPLS
        ),
        Sibling(
            "published",
            without_gradient(published_embedding),
            forward_error(published_noise, everything),
            FORWARD_TOLERANCE,
            partial(progress, everything),
        ),
        Sibling(
            "F.gumbel_softmax",
            without_gradient(gumbel_softmax),
            forward_error(gumbel_softmax_noise, free),
            FORWARD_TOLERANCE,
            partial(progress, free),
        ),
        Sibling(
            "torch.compile",
            without_gradient(partial(compiled_embedding, select=fast)),
            forward_error(noise_of_the_device, everything),
            FORWARD_TOLERANCE,
            partial(progress, everything),
        ),
    )


def cases(quick: bool) -> list[Case]:
    codes, channels = (64, 16) if quick else (16384, 256)
    chosen = [(8, 2), (8, 8)] if quick else [(256, 256), (256, 16)]
    if torch.cuda.is_available() and not quick:
        chosen.append((16000, 16000))  # whole grids of 62 problems; too much for a CPU's patience
    measurements = []
    for rows, free_rows in chosen:
        name = f"{free_rows} of {rows} rows free"
        sizes = f"{free_rows} free of {rows} rows, K {codes}, d {channels}, float32"
        data = partial(selection, rows, free_rows, codes, channels)
        step = Floor(28 * free_rows * codes, 2 * free_rows * codes * channels, "copy")
        forward = Floor(4 * free_rows * codes)
        measurements += [
            Case("gumbel_codebook step", name, sizes, step, data, step_siblings()),
            Case("gumbel_codebook forward", name, sizes, forward, data, forward_siblings()),
        ]
    return measurements


def test_gumbel_codebook(measure):
    measure()
