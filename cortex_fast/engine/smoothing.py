"""SmoothGrad of a split extractor: the mean gradient over N noisy copies, chunk by chunk (eq. 5)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cortex_fast import ops
from cortex_fast.engine.gating import gated
from cortex_fast.engine.gradients import at_least_float32, ordinary
from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.precision import without_tf32
from cortex_fast.engine.replay import Graphs, replayed
from cortex_fast.engine.split_model import SplitModel
from cortex_fast.engine.splitting import as_tuple

MEMORY = 1 << 30  # bytes of activations in one pass
_IMAGES = 64  # at once: their shared noise passes the prefix once


@dataclass(frozen=True)
class NoiseStream:
    """The noise of SmoothGrad's copies: sample n of image b is E_b + sigma_b e_n, e_n ~ N(0, I).

    Args:
        sigma: float [B], the noise's standard deviation for each image.
        item_ids: int64 [B], the images' numbers in the random stream.
        seed: of the random stream.
        shared: whether every image gets the draws of item 0; else each gets those of its item.
        antithetic: whether samples 2j and 2j + 1 are e_j and -e_j.
    """

    sigma: Tensor
    item_ids: Tensor
    seed: int
    shared: bool
    antithetic: bool

    def of_images(self, images: slice | Tensor) -> "NoiseStream":
        """The stream of some of the images.

        Args:
            images: a slice, int64 numbers, or a bool mask [B].
        Returns:
            The same stream with their sigma and item_ids.
        """
        return replace(self, sigma=self.sigma[images], item_ids=self.item_ids[images])


def mean_gradients(
    model: SplitModel, embedding: Tensor, target: Tensor, stream: NoiseStream, samples: range, *, memory: int
) -> Iterator[tuple[slice, Tensor]]:
    """The mean over noisy copies of d logit[target] / dE (eq. 5), for all images, some at a time.

    Args:
        model: the split extractor.
        embedding: float [B,d,h,w].
        target: int64 [B], the images' classes.
        stream: the noise.
        samples: the numbers of the copies.
        memory: bytes that the activations of one pass may take. The result does not depend on it: copies are added up
            one by one, in order.
    Returns:
        An iterator over (slice of images, their mean gradients [b,d,h,w] in float32 or wider).
    """
    copies = max(1, memory // model.bytes_of_copy)
    for start in range(0, len(embedding), _IMAGES):
        rows = slice(start, min(start + _IMAGES, len(embedding)))
        part = stream.of_images(rows)
        yield rows, _mean_gradient(model, embedding[rows], target[rows], part, samples, copies)


def _mean_gradient(
    model: SplitModel, embedding: Tensor, target: Tensor, stream: NoiseStream, samples: range, copies: int
) -> Tensor:
    """Mean gradients [b,d,h,w] of images that go through the prefix together; copies: at most in one pass."""
    with torch.inference_mode(False), torch.enable_grad(), without_tf32(model.exact):
        x = at_least_float32(ordinary(embedding).detach()).requires_grad_(True)
        clean = as_tuple(model.prefix(model.cast(x)))
        images, samples_of_pass = _pass_size(len(x), len(samples), copies, antithetic=stream.antithetic)
        source = _NoisySource.of(model, x, clean, stream, copies=images * samples_of_pass)
        backward = _backward_of(model)
        sums = [torch.zeros_like(z, dtype=torch.promote_types(model.dtype, torch.float32)) for z in clean]
        target = ordinary(target)
        for first in range(samples.start, samples.stop, samples_of_pass):
            chunk = range(first, min(first + samples_of_pass, samples.stop))
            normals = source.shared_normals(chunk)
            for start in range(0, len(x), images):
                rows = slice(start, min(start + images, len(x)))
                noisy = source.body_inputs(rows, chunk, normals)
                gradients = backward(target[rows].repeat(len(chunk)), noisy)
                _accumulate([total[rows] for total in sums], gradients, noisy, source.gates, len(chunk))
        return _through_prefix(x, clean, [total / len(samples) for total in sums]) / model.scale


def _pass_size(images: int, samples: int, copies: int, *, antithetic: bool) -> tuple[int, int]:
    """The images and samples of one pass of at most `copies` copies; antithetic samples come in pairs."""
    images_of_pass = min(images, max(1, copies // (2 if antithetic else 1)))
    samples_of_pass = min(samples, max(1, copies // images_of_pass))
    if antithetic:
        samples_of_pass = max(2, samples_of_pass - samples_of_pass % 2)
    return images_of_pass, samples_of_pass


@dataclass(frozen=True, eq=False)
class _NoisySource:
    """The body's inputs for noisy copies of x [b,d,h,w].

    clean: the prefix's results for x. buffers: memory for each result of the prefix, where the noise is shared: fresh
    memory for each chunk would cost its page faults.
    """

    model: SplitModel
    x: Tensor
    clean: tuple[Tensor, ...]
    stream: NoiseStream
    gates: tuple[bool, ...]
    buffers: list[Tensor]

    @classmethod
    def of(
        cls, model: SplitModel, x: Tensor, clean: tuple[Tensor, ...], stream: NoiseStream, *, copies: int
    ) -> "_NoisySource":
        """copies: at most in one pass."""
        gates = model.gates or (False,) * len(clean)
        buffers = [_buffer(z, copies) for z in clean] if stream.shared else []
        return cls(model, x.detach(), tuple(z.detach() for z in clean), stream, gates, buffers)

    @torch.no_grad()
    def shared_normals(self, chunk: range) -> tuple[Tensor, ...] | None:
        """The linear prefix of the draws that all images share, [samples,...]; None for independent draws."""
        if not self.stream.shared:
            return None
        draws = ops.smoothgrad_noise(
            torch.zeros_like(self.x[:1], dtype=torch.float32),
            self.stream.sigma.new_ones(1),
            len(chunk),
            first_sample=chunk.start,
            seed=self.stream.seed,
            antithetic=self.stream.antithetic,
        )
        return as_tuple(self.model.linear_prefix(self.model.cast(draws[0])))

    @torch.no_grad()
    def body_inputs(self, rows: slice, chunk: range, normals: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        """The inputs [samples * images,...] of the body for the images `rows`, sample by sample."""
        if normals is None:
            noisy = self._independent(rows, chunk)
        else:
            sigma = self.stream.sigma[rows]
            noisy = tuple(
                _spread(z[rows], shift, sigma, buffer)
                for z, shift, buffer in zip(self.clean, normals, self.buffers, strict=True)
            )
        # in place where no results share memory: several results of the prefix may be views of each other
        in_place = normals is not None or len(noisy) == 1
        return tuple(
            (z.relu_() if in_place else z.relu()) if gate else z for z, gate in zip(noisy, self.gates, strict=True)
        )

    def _independent(self, rows: slice, chunk: range) -> tuple[Tensor, ...]:
        """The prefix's results for copies with each image's draws."""
        copies = ops.smoothgrad_noise(
            self.x[rows],
            self.stream.sigma[rows],
            len(chunk),
            first_sample=chunk.start,
            seed=self.stream.seed,
            item_ids=self.stream.item_ids[rows],
            antithetic=self.stream.antithetic,
        )
        return as_tuple(self.model.prefix(self.model.cast(copies.transpose(0, 1).flatten(0, 1))))


def _backward_of(model: SplitModel) -> Callable[[Tensor, tuple[Tensor, ...]], Sequence[Tensor]]:
    """The function from targets [n] and the body's inputs, of n copies, to the target logits' scaled gradients in the
    inputs; a CUDA graph on a GPU, unless the body is the user's forward, which may read values."""

    def gradients_of(target: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = tuple(z.detach().requires_grad_(True) for z in inputs)
        value = at_least_float32(model.body_value(leaves, target)).sum() * model.scale
        # the body may read a result of the prefix for its shape alone
        return torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)

    if not isinstance(model.body, Graph):
        return lambda target, inputs: gradients_of(target, *inputs)
    graphs: Graphs = {}
    return lambda target, inputs: replayed(gradients_of, graphs, target, *inputs)


def _accumulate(
    sums: Sequence[Tensor], gradients: Sequence[Tensor], inputs: Sequence[Tensor], gates: Sequence[bool], samples: int
) -> None:
    """Add the gradients [samples * images,...] in the body's inputs to the images' sums, sample by sample."""
    for total, gradient, z, gate in zip(sums, gradients, inputs, gates, strict=True):
        # the gradients of a sum's terms are a single tensor
        passed = gated(gradient, z, over=len(gradients) == 1) if gate else gradient
        for sample in passed.unflatten(0, (samples, -1)):
            total += sample


def _through_prefix(x: Tensor, clean: tuple[Tensor, ...], gradients: Sequence[Tensor]) -> Tensor:
    """The gradient in x, from those in the prefix's results."""
    weighted = [(z * gradient.to(z.dtype)).sum() for z, gradient in zip(clean, gradients, strict=True)]
    # as a sum: torch.autograd.grad imports sympy (2 s) where it is given gradients
    (gradient,) = torch.autograd.grad(torch.stack(weighted).sum(), x)
    return gradient


def _buffer(z: Tensor, copies: int) -> Tensor:
    """Memory for copies of an image's z, laid out as z is."""
    channels_last = z.ndim == 4 and not z.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((copies, *z.shape[1:]), dtype=z.dtype, device=z.device, memory_format=layout)


def _spread(clean: Tensor, normals: Tensor, sigma: Tensor, buffer: Tensor) -> Tensor:
    """clean [b,...] + sigma [b] normals [S,...] -> [S * b,...], at the beginning of the buffer."""
    noisy = buffer[: len(normals) * len(clean)]
    if clean.ndim == 4 and not clean.is_contiguous():
        clean, normals, rows = (tensor.permute(0, 2, 3, 1) for tensor in (clean, normals, noisy))
    else:
        rows = noisy
    scale = sigma.to(clean.dtype).view(-1, *[1] * (clean.ndim - 1))
    torch.addcmul(clean[None], normals[:, None], scale, out=rows.unflatten(0, (len(normals), -1)))
    return noisy
