"""SmoothGrad by an extractor's parts: the mean gradient over N noisy copies, chunk by chunk (eq. 5)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cortex_fast import ops
from cortex_fast.engine.gating import gated
from cortex_fast.engine.gradients import ordinary
from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.parts import Parts, target_value, total
from cortex_fast.engine.precision import without_tf32
from cortex_fast.engine.replay import Graphs, replayed
from cortex_fast.engine.splitting import tensors

MEMORY = 1 << 30  # bytes of activations in one pass
_IMAGES = 64  # at once: their shared noise passes the prefix once


@dataclass(frozen=True)
class Noise:
    """sigma float [B] and the stream's coordinates. shared: every image gets item 0's draws, else its own by
    item_ids int64 [B]. antithetic: samples 2j and 2j + 1 are +-e_j."""

    sigma: Tensor
    item_ids: Tensor
    seed: int
    shared: bool
    antithetic: bool


def mean_gradients(
    parts: Parts, embedding: Tensor, target: Tensor, noise: Noise, samples: range, *, memory: int
) -> Iterator[tuple[slice, Tensor]]:
    """(slice of images, the mean over the samples of d logit[target] / dE, at least float32 [b,d,h,w]) over all images.

    memory: bytes that the activations of one pass may take. The result does not depend on it: samples are added one
    after the other, in order.
    """
    copies = max(1, memory // parts.bytes_of_copy)
    for start in range(0, len(embedding), _IMAGES):
        rows = slice(start, min(start + _IMAGES, len(embedding)))
        part = Noise(noise.sigma[rows], noise.item_ids[rows], noise.seed, noise.shared, noise.antithetic)
        yield rows, _mean_gradient(parts, embedding[rows], target[rows], part, samples, copies)


def _mean_gradient(
    parts: Parts, embedding: Tensor, target: Tensor, noise: Noise, samples: range, copies: int
) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad(), without_tf32(parts.exact):
        # at least in float32: what is small fits a half only as long as it is scaled
        x = ordinary(embedding).detach().to(torch.promote_types(embedding.dtype, torch.float32)).requires_grad_(True)
        target = ordinary(target)
        clean = tensors(parts.prefix(parts.cast(x)))
        wide = torch.promote_types(parts.dtype, torch.float32)
        sums = [torch.zeros_like(z, dtype=wide) for z in clean]
        images = min(len(x), max(1, copies // (2 if noise.antithetic else 1)))
        together = min(len(samples), max(1, copies // images))  # samples of one pass
        if noise.antithetic:
            together = max(2, together - together % 2)
        gates = parts.gates or (False,) * len(clean)
        room = [_room(z, images * together) for z in clean] if noise.shared else []
        graphs: Graphs = {}
        fixed = isinstance(parts.body, Graph)  # a user's own forward may look at values, which no graph can

        def gradients_of(targets: Tensor, *noisy: Tensor) -> tuple[Tensor, ...]:
            leaves = tuple(z.detach().requires_grad_(True) for z in noisy)
            value = target_value(parts, leaves, targets)
            # a result of the prefix may be there for its shape alone
            return torch.autograd.grad(total(value) * parts.scale, leaves, allow_unused=True, materialize_grads=True)

        for first in range(samples.start, samples.stop, together):
            chunk = range(first, min(first + together, samples.stop))
            shared = _shared_noise(parts, x, noise, chunk) if noise.shared else None
            for start in range(0, len(x), images):
                rows = slice(start, min(start + images, len(x)))
                if shared is None:
                    noisy = _own_noise(parts, x, noise, rows, chunk)
                else:
                    noisy = tuple(
                        _spread(z.detach()[rows], e, noise.sigma[rows], to)
                        for z, e, to in zip(clean, shared, room, strict=True)
                    )
                # in place where the memory is one result's own: others of the prefix may be views of it
                own = shared is not None or len(noisy) == 1
                noisy = tuple(
                    (z.relu_() if own else z.relu()) if gate else z for z, gate in zip(noisy, gates, strict=True)
                )
                targets = target[rows].repeat(len(chunk))
                gradients = replayed(gradients_of, graphs, targets, *noisy) if fixed else gradients_of(targets, *noisy)
                for running, gradient, z, gate in zip(sums, gradients, noisy, gates, strict=True):
                    # the gradients of a sum's terms are one tensor
                    passed = gated(gradient, z, over=len(gradients) == 1) if gate else gradient
                    for sample in passed.unflatten(0, (len(chunk), -1)):
                        running[rows] += sample
        means = [(running / len(samples)).to(z.dtype) for running, z in zip(sums, clean, strict=True)]
        # as a sum: torch.autograd.grad imports sympy (2 s) where it is given gradients
        back = torch.stack([(z * mean).sum() for z, mean in zip(clean, means, strict=True)]).sum()
        (gradient,) = torch.autograd.grad(back, x)
    return gradient / parts.scale


@torch.no_grad()
def _shared_noise(parts: Parts, x: Tensor, noise: Noise, chunk: range) -> tuple[Tensor, ...]:
    """The linear part of the noise that all images share: [chunk, ...] of each result of the prefix."""
    drawn = ops.smoothgrad_noise(
        torch.zeros_like(x[:1], dtype=torch.float32),
        noise.sigma.new_ones(1),
        len(chunk),
        first_sample=chunk.start,
        seed=noise.seed,
        antithetic=noise.antithetic,
    )
    return tensors(parts.linear(parts.cast(drawn[0])))


@torch.no_grad()
def _own_noise(parts: Parts, x: Tensor, noise: Noise, rows: slice, chunk: range) -> tuple[Tensor, ...]:
    """The prefix's results for copies with each image's own draws: [chunk * images, ...], sample by sample."""
    copies = ops.smoothgrad_noise(
        x.detach()[rows],
        noise.sigma[rows],
        len(chunk),
        first_sample=chunk.start,
        seed=noise.seed,
        item_ids=noise.item_ids[rows],
        antithetic=noise.antithetic,
    )
    return tensors(parts.prefix(parts.cast(copies.transpose(0, 1).flatten(0, 1))))


def _room(z: Tensor, copies: int) -> Tensor:
    """Memory for so many copies of an image's z, laid out as z is: fresh memory for each chunk would cost its pages."""
    channels_last = z.ndim == 4 and not z.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((copies, *z.shape[1:]), dtype=z.dtype, device=z.device, memory_format=layout)


@torch.no_grad()
def _spread(clean: Tensor, drawn: Tensor, sigma: Tensor, room: Tensor) -> Tensor:
    """clean [b,...] + sigma [b] drawn [S,...] -> [S * b,...], in the first of room."""
    to = room[: len(drawn) * len(clean)]
    if clean.ndim == 4 and not clean.is_contiguous():
        clean, drawn, rows = (tensor.permute(0, 2, 3, 1) for tensor in (clean, drawn, to))
    else:
        rows = to
    scale = sigma.to(clean.dtype).view(-1, *[1] * (clean.ndim - 1))
    torch.addcmul(clean[None], drawn[:, None], scale, out=rows.unflatten(0, (len(drawn), -1)))
    return to
