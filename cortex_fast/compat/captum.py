"""Captum's interface to this package: token saliency as an Attribution, and a NoiseTunnel on the engine."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cortex_fast import checks, ops
from cortex_fast.compat.preparing import UnservedError, prepared_of
from cortex_fast.data.classes import Target, names_of, target_vector
from cortex_fast.engine import MEMORY, NoiseStream, Prepared
from cortex_fast.ops.token_saliency import REDUCTIONS

try:
    from captum.attr import Attribution, Saliency
    from captum.attr import NoiseTunnel as CaptumNoiseTunnel
except ImportError as error:
    raise ImportError("cortex_fast.compat.captum: expected captum to be installed (pip install captum)") from error

_ALPHA = 0.2  # the paper's sigma, as a share of an image's range
_TYPES = ("smoothgrad", "smoothgrad_sq", "vargrad")
_SERVED = {"target", "abs", "additional_forward_args"}
_NO_TARGET = "target: expected a class, or one for each image"


class TokenSaliency(Attribution):
    """The paper's TSV (eq. 5) of an extractor: SmoothGrad's largest absolute value over the channels of each token.

    Args:
        forward_func: an extractor in evaluation mode, E [B, d, m, m] -> logits [B, classes].
    Raises:
        TypeError: forward_func is no torch.nn.Module.
    """

    def __init__(self, forward_func: nn.Module) -> None:
        if not isinstance(forward_func, nn.Module):
            raise TypeError(f"forward_func: expected a torch.nn.Module, got {type(forward_func).__name__}")
        super().__init__(forward_func)

    def attribute(
        self,
        inputs: Tensor,
        target: Target,
        nt_samples: int = 20,
        stdevs: float | None = None,
        nt_samples_batch_size: int | None = None,
        *,
        reduction: str = "absmax",
    ) -> Tensor:
        """TSV of each token. Noise is seeded by torch's generator.

        Args:
            inputs: E, floating-point [B, d, m, m].
            target: a class by number or name for all images, or [B], one for each.
            nt_samples: noisy copies of each image. Default 20.
            stdevs: standard deviation of the noise. Default the paper's, 0.2 (max - min) of each image.
            nt_samples_batch_size: samples of all images in one pass; it changes no result. Default as many as 1 GiB
                holds.
            reduction: over the channels: "absmax" (the paper's, default), or the published code's "max" or "mean".
        Returns:
            [B, m, m], float32 or wider.
        Raises:
            TypeError: an argument has another type; the message names it.
            ValueError: an argument has another value or shape, or the engine cannot serve the model.
        """
        checks.rank("inputs", inputs, "[B, d, m, m]")
        checks.floating("inputs", inputs)
        nt_samples = checks.whole("nt_samples", nt_samples, 1)
        checks.one_of("reduction", reduction, REDUCTIONS)
        if stdevs is not None:
            stdevs = checks.non_negative("stdevs", stdevs)
        if target is None:
            raise ValueError(f"{_NO_TARGET}, got None")
        targets = _targets(target, inputs)
        if targets is None:
            targets = target_vector(target, len(inputs), inputs.device, names_of(self.forward_func))
        try:
            prepared = prepared_of(self.forward_func, inputs)
        except UnservedError as error:
            raise ValueError(f"forward_func: {error}") from error
        x = inputs.detach()
        stream = _stream(x, _sigma(x, stdevs), shared=True)
        memory = _memory(prepared, x, nt_samples_batch_size)
        return prepared.token_saliency(x, targets, stream, num_samples=nt_samples, reduction=reduction, memory=memory)

    def attribute_future(self) -> None:
        """Raise NotImplementedError: Captum's asynchronous interface is not offered."""
        raise NotImplementedError("attribute_future is not implemented for TokenSaliency")


class NoiseTunnel(CaptumNoiseTunnel):
    """Captum's NoiseTunnel, on the engine where that can serve.

    The engine serves captum.attr.Saliency of an nn.Module in evaluation mode, with a target, on one tensor
    [B, d, m, m]. Every other attribution method, and what the engine cannot serve, is computed by Captum. After a call
    the attribute not_served is the reason why Captum computed it, or None.

    Args:
        attribution_method: the method of Captum that is averaged, such as captum.attr.Saliency.
    """

    not_served: str | None = None

    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        nt_type: str = "smoothgrad",
        nt_samples: int = 5,
        nt_samples_batch_size: int | None = None,
        stdevs: float | tuple[float, ...] = 1.0,
        draw_baseline_from_distrib: bool = False,
        *,
        noise: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Attributions averaged over noisy copies. Noise is seeded by torch's generator.

        Args:
            inputs: as Captum's; for the engine floating-point [B, d, m, m], or a tuple of one such tensor.
            nt_type: "smoothgrad", "smoothgrad_sq" or "vargrad". Default "smoothgrad".
            nt_samples: noisy copies of each image. Default 5.
            nt_samples_batch_size: samples of all images in one pass; it changes no result of the engine. Default as
                many as 1 GiB holds.
            stdevs: standard deviation of the noise. Default 1.
            draw_baseline_from_distrib: as Captum's; the engine has no baselines. Default False.
            noise: standard normals [B, nt_samples, d, m, m] in place of drawn ones, for the engine alone. Default
                None.
            kwargs: those of the attribution method, such as target and abs.
        Returns:
            As Captum's: the shape, the dtype and the tuple of inputs.
        Raises:
            TypeError: an argument has another type; the message names it.
            ValueError: an argument has another value or shape, or noise is given and the engine cannot serve.
        """
        kwargs |= {"target": _plain(kwargs["target"])} if "target" in kwargs else {}
        stdevs = _plain(stdevs)
        self.not_served = None
        try:
            prepared, targets = self._served(inputs, nt_type, stdevs, kwargs)
        except UnservedError as error:
            self.not_served = str(error)
        if self.not_served is not None:
            if noise is not None:
                raise ValueError(f"noise: expected None where Captum computes: {self.not_served}")
            return super().attribute(
                inputs, nt_type, nt_samples, nt_samples_batch_size, stdevs, draw_baseline_from_distrib, **kwargs
            )
        nt_samples = checks.whole("nt_samples", nt_samples, 1)
        x = (inputs[0] if isinstance(inputs, tuple) else inputs).detach()
        stdev = checks.non_negative("stdevs", stdevs[0] if isinstance(stdevs, tuple) else stdevs)
        if noise is not None:
            checks.floating("noise", noise)
            expected = torch.Size((len(x), nt_samples, *x.shape[1:]))
            checks.same_shape("noise", noise, "a sample of each image", expected)
        request = _Request(
            prepared=prepared,
            x=x,
            targets=targets,
            sigma=_sigma(x, stdev),
            nt_type=nt_type,
            nt_samples=nt_samples,
            absolute=kwargs.get("abs", True),
            normals=noise,
            memory=_memory(prepared, x, nt_samples_batch_size),
        )
        result = _computed(request).to(x.dtype)
        return (result,) if isinstance(inputs, tuple) else result

    def _served(self, inputs: Any, nt_type: str, stdevs: Any, kwargs: dict[str, Any]) -> tuple[Prepared, Tensor]:
        """The prepared model and the targets int64 [B]. Raises UnservedError where the engine cannot serve."""
        method = self.attribution_method
        if type(method) is not Saliency:
            raise UnservedError(f"the engine computes gradients, not {type(method).__name__}")
        x = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point() or not len(x):
            raise UnservedError("inputs: the engine takes one floating-point tensor [B, d, m, m]")
        if nt_type not in _TYPES:
            raise UnservedError(f"nt_type: {nt_type!r} is not supported")  # nor does Captum, which reports it
        stdev = stdevs[0] if isinstance(stdevs, tuple) and len(stdevs) == 1 else stdevs
        if not isinstance(stdev, float):
            raise UnservedError("stdevs: the engine takes one float")
        if set(kwargs) - _SERVED or kwargs.get("additional_forward_args") is not None:
            raise UnservedError("the engine takes no arguments of the forward function but its input")
        if not isinstance(method.forward_func, nn.Module):
            raise UnservedError("forward_func: the engine takes an nn.Module")
        targets = _targets(kwargs.get("target"), x)
        if targets is None:
            raise UnservedError(_NO_TARGET)
        return prepared_of(method.forward_func, x), targets


@dataclass(frozen=True, eq=False)
class _Request:
    """Attributions for the engine: of B images x [B,d,m,m] with targets int64 [B] and noise of sigma [B].

    absolute: of each sample's gradient. normals [B,nt_samples,d,m,m] replace drawn ones. memory: bytes of one pass.
    """

    prepared: Prepared
    x: Tensor
    targets: Tensor
    sigma: Tensor
    nt_type: str
    nt_samples: int
    absolute: bool
    normals: Tensor | None
    memory: int


def _computed(request: _Request) -> Tensor:
    """[B,d,m,m], float32 or wider."""
    if request.nt_type != "smoothgrad" or request.absolute or request.normals is not None:
        return _by_samples(request)
    stream = _stream(request.x, request.sigma, shared=False)
    return request.prepared.smoothgrad(
        request.x, request.targets, stream, num_samples=request.nt_samples, memory=request.memory
    )


def _by_samples(request: _Request) -> Tensor:
    """The mean of the samples' absolute gradients or of their squares, or their variance: [B,d,m,m].

    Sums run sample by sample, at least in float32, so that nothing depends on how many go together; the variance is
    taken about the mean so far (Welford), since the mean of squares less the square of the mean has no digits left in
    float32.
    """
    x, nt_type = request.x, request.nt_type
    seed = _seed()
    total, mean, spread = (torch.zeros_like(_wide(x)) for _ in range(3))
    together = max(1, request.memory // (request.prepared.bytes_of_copy * len(x)))
    for first in range(0, request.nt_samples, together):
        count = min(together, request.nt_samples - first)
        for sample, gradient in enumerate(_gradients(request, first, count, seed), start=first + 1):
            if nt_type == "vargrad":
                difference = gradient - mean
                mean += difference / sample
                spread += difference * (gradient - mean)
            else:
                total += gradient if nt_type == "smoothgrad" else gradient.square()
    return (spread if nt_type == "vargrad" else total) / request.nt_samples


def _gradients(request: _Request, first: int, count: int, seed: int) -> tuple[Tensor, ...]:
    """The gradients [B,d,m,m] of each sample from `first` on, `count` of them."""
    normals = None if request.normals is None else request.normals[:, first : first + count]
    copies = ops.smoothgrad_noise(request.x, request.sigma, count, seed=seed, first_sample=first, normals=normals)
    _, gradients = request.prepared.value_and_grad(copies.flatten(0, 1), request.targets.repeat_interleave(count))
    gradients = gradients.abs() if request.absolute else gradients
    return gradients.unflatten(0, (len(request.x), count)).unbind(dim=1)


def _plain(value: Any) -> Any:
    """Python's numbers for those of numpy, which Captum does not take."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _targets(target: Any, x: Tensor) -> Tensor | None:
    """A class for each image, int64 [B], from the forms of target that Captum takes; None for any other."""
    if isinstance(target, bool) or not isinstance(target, int | list | Tensor):
        return None
    try:
        targets = torch.as_tensor(target, device=x.device)
    except (TypeError, ValueError):
        return None
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool or targets.ndim > 1:
        return None
    if targets.numel() not in (1, len(x)) or bool((targets < 0).any()):
        return None
    return targets.reshape(-1).long().expand(len(x))


def _wide(x: Tensor) -> Tensor:
    """In float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sigma(x: Tensor, stdev: float | None) -> Tensor:
    """Sigma of each image [B], in float32 or wider; without a stdev the paper's."""
    if stdev is not None:
        return _wide(x).new_full((len(x),), stdev)
    low, high = _wide(x).flatten(1).aminmax(dim=1)
    return _ALPHA * (high - low)


def _stream(x: Tensor, sigma: Tensor, *, shared: bool) -> NoiseStream:
    return NoiseStream(sigma, torch.arange(len(x), device=x.device), _seed(), shared=shared, antithetic=False)


def _seed() -> int:
    return int(torch.randint(2**63 - 1, ()))


def _memory(prepared: Prepared, x: Tensor, samples: int | None) -> int:
    """Bytes of one pass of so many samples of every image; of None the default."""
    if samples is None:
        return MEMORY
    return prepared.bytes_of_copy * max(1, len(x)) * checks.whole("nt_samples_batch_size", samples, 1)
