"""SmoothGrad by a prepared extractor: the mean gradient over N noisy copies, chunk by chunk (eq. 5)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cortex_fast import ops
from cortex_fast.engine.gradients import frozen, ordinary
from cortex_fast.engine.prepared import Prepared, target_value
from cortex_fast.engine.splitting import tensors

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
    prepared: Prepared, embedding: Tensor, target: Tensor, noise: Noise, samples: range, *, memory: int
) -> Iterator[tuple[slice, Tensor]]:
    """(slice of images, the mean over the samples of d logit[target] / dE, [b,d,m,m]) over all images.

    memory: bytes that the activations of one pass may take. The result does not depend on it: samples are added one
    after the other, in order.
    """
    copies = max(1, memory // bytes_of_copy(prepared, embedding[:1]))
    for start in range(0, len(embedding), _IMAGES):
        rows = slice(start, min(start + _IMAGES, len(embedding)))
        part = Noise(noise.sigma[rows], noise.item_ids[rows], noise.seed, noise.shared, noise.antithetic)
        yield rows, _mean_gradient(prepared, embedding[rows], target[rows], part, samples, copies)


def _mean_gradient(
    prepared: Prepared, embedding: Tensor, target: Tensor, noise: Noise, samples: range, copies: int
) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad(), frozen(prepared.extractor):
        x = ordinary(embedding).detach().requires_grad_(True)
        target = ordinary(target)
        clean = tensors(prepared.prefix(prepared.cast(x)))
        wide = torch.promote_types(prepared.dtype, torch.float32)
        sums = [torch.zeros_like(z, dtype=wide) for z in clean]
        images = min(len(x), copies)
        together = max(1, copies // images)  # samples of one pass
        together += together % 2 if noise.antithetic else 0
        for first in range(samples.start, samples.stop, together):
            chunk = range(first, min(first + together, samples.stop))
            shared = _shared_noise(prepared, x, noise, chunk) if noise.shared else None
            for start in range(0, len(x), images):
                rows = slice(start, min(start + images, len(x)))
                if shared is None:
                    noisy = _own_noise(prepared, x, noise, rows, chunk)
                else:
                    noisy = tuple(
                        _spread(z.detach()[rows], e, noise.sigma[rows]) for z, e in zip(clean, shared, strict=True)
                    )
                leaves = tuple(z.detach().requires_grad_(True) for z in noisy)
                value = target_value(prepared, leaves, target[rows].repeat(len(chunk)))
                # a result may be there for its shape alone
                gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True, materialize_grads=True)
                for total, gradient in zip(sums, gradients, strict=True):
                    for sample in gradient.unflatten(0, (len(chunk), -1)):
                        total[rows] += sample
        means = [(total / len(samples)).to(z.dtype) for total, z in zip(sums, clean, strict=True)]
        (gradient,) = torch.autograd.grad(clean, x, means)
    return gradient


@torch.no_grad()
def _shared_noise(prepared: Prepared, x: Tensor, noise: Noise, chunk: range) -> tuple[Tensor, ...]:
    """The linear part of the noise that all images share: [chunk, ...] of each result of the prefix."""
    drawn = ops.smoothgrad_noise(
        torch.zeros_like(x[:1], dtype=torch.float32),
        noise.sigma.new_ones(1),
        len(chunk),
        first_sample=chunk.start,
        seed=noise.seed,
        antithetic=noise.antithetic,
    )
    return tensors(prepared.linear(prepared.cast(drawn[0])))


@torch.no_grad()
def _own_noise(prepared: Prepared, x: Tensor, noise: Noise, rows: slice, chunk: range) -> tuple[Tensor, ...]:
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
    return tensors(prepared.prefix(prepared.cast(copies.transpose(0, 1).flatten(0, 1))))


@torch.no_grad()
def _spread(clean: Tensor, drawn: Tensor, sigma: Tensor) -> Tensor:
    """clean [b,...] + sigma [b] drawn [S,...] -> [S * b,...], in channels-last memory where the parts are."""
    if clean.ndim == 4:
        return _spread(clean.permute(0, 2, 3, 1).flatten(1), drawn.permute(0, 2, 3, 1).flatten(1), sigma).unflatten(
            1, (*clean.shape[2:], clean.shape[1])
        ).permute(0, 3, 1, 2)  # fmt: skip
    scale = sigma.to(clean.dtype).view(-1, *[1] * (clean.ndim - 1))
    return torch.addcmul(clean[None], drawn[:, None], scale).flatten(0, 1)


def bytes_of_copy(prepared: Prepared, sample: Tensor) -> int:
    """About what one more noisy copy of sample [1,d,m,m] takes while its gradient is computed: what autograd keeps,
    and three of the largest results on the way."""
    (one, _), (two, largest) = (_bytes_of_pass(prepared, sample.expand(count, -1, -1, -1)) for count in (1, 2))
    return max(1, two - one + 3 * largest // 2)


def _bytes_of_pass(prepared: Prepared, x: Tensor) -> tuple[int, int]:
    """Bytes kept for the backward pass of the body, and of the largest result of any of its layers."""
    kept: dict[int, int] = {}
    sizes = [0]

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def measure(_module: nn.Module, _inputs: object, result: object) -> None:
        sizes.append(result.nbytes if isinstance(result, Tensor) else 0)

    with torch.inference_mode(False), torch.enable_grad(), frozen(prepared.extractor):
        leaves = tuple(z.detach().requires_grad_(True) for z in tensors(prepared.prefix(prepared.cast(ordinary(x)))))
        hooks = [module.register_forward_hook(measure) for module in prepared.body.modules()]
        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                prepared.body(*leaves)
        finally:
            for hook in hooks:
                hook.remove()
    return sum(kept.values()), max(sizes + [leaf.nbytes for leaf in leaves])
