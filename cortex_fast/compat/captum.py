"""Captum's interface to this package: token saliency as an Attribution, and a NoiseTunnel on the engine."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cortex_fast import checks, ops
from cortex_fast.compat.preparing import prepared_of
from cortex_fast.data.classes import Target, names_of, target_vector
from cortex_fast.engine import MEMORY, NoiseStream, Prepared
from cortex_fast.ops.token_saliency import REDUCTIONS

try:
    from captum.attr import Attribution, Saliency
    from captum.attr import NoiseTunnel as CaptumNoiseTunnel
except ImportError as error:
    raise ImportError("cortex_fast.compat.captum: expected captum to be installed (pip install captum)") from error

_ALPHA = 0.2  # the paper's: sigma in shares of an image's range
_SERVED = {"target", "abs", "additional_forward_args"}
_NO_TARGET = "target: expected a class, or one for each image"


class TokenSaliency(Attribution):
    """The paper's TSV (eq. 5) of an extractor: SmoothGrad's largest absolute value over the channels of each token.

    forward_func: an eval-mode nn.Module, E [B,d,m,m] -> logits [B,classes].
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
        """TSV [B,m,m] of inputs [B,d,m,m], from nt_samples noisy copies.

        target: a class, or one for each image. stdevs: of the noise; None: 0.2 (max - min) of each image, the paper's.
        nt_samples_batch_size: samples of all images in one pass; default as many as 1 GiB holds; it changes no result.
        reduction: "absmax", or the published code's "max" and "mean". Noise is seeded by torch's generator.
        Raises TypeError or ValueError naming the argument, also where the model cannot be served.
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
        prepared = prepared_of(self.forward_func, inputs)
        if isinstance(prepared, str):
            raise ValueError(f"forward_func: {prepared}")
        x = inputs.detach()
        if stdevs is None:
            low, high = _wide(x).flatten(1).aminmax(dim=1)
            sigma = _ALPHA * (high - low)
        else:
            sigma = _wide(x).new_full((len(x),), stdevs)
        memory = _memory(prepared, x, nt_samples_batch_size)
        return prepared.token_saliency(
            x, targets, _noise(x, sigma, shared=True), num_samples=nt_samples, reduction=reduction, memory=memory
        )

    def attribute_future(self) -> None:
        raise NotImplementedError("attribute_future is not implemented for TokenSaliency")


class NoiseTunnel(CaptumNoiseTunnel):
    """Captum's NoiseTunnel, on the engine where that can serve.

    It can for captum.attr.Saliency of an eval-mode nn.Module with a target, on one tensor [B,d,m,m]; every other
    attribution method, and what the engine cannot serve, is Captum's own. not_served: after a call, None, or why it was
    Captum's.
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
        """Captum's arguments and result. noise [B,nt_samples,d,m,m]: standard normals in the place of drawn ones, for
        the engine alone: ValueError where it cannot serve. Drawn noise is seeded by torch's generator.
        """
        kwargs |= {"target": _plain(kwargs["target"])} if "target" in kwargs else {}
        stdevs = _plain(stdevs)
        served = self._served(inputs, nt_type, stdevs, kwargs)
        self.not_served = served if isinstance(served, str) else None
        if isinstance(served, str):
            if noise is not None:
                raise ValueError(f"noise: expected None where Captum's own serves: {served}")
            return super().attribute(
                inputs, nt_type, nt_samples, nt_samples_batch_size, stdevs, draw_baseline_from_distrib, **kwargs
            )
        nt_samples = checks.whole("nt_samples", nt_samples, 1)
        prepared, targets = served
        single = inputs[0] if isinstance(inputs, tuple) else inputs
        x, stdev = single.detach(), stdevs[0] if isinstance(stdevs, tuple) else stdevs
        checks.non_negative("stdevs", stdev)
        if noise is not None:
            checks.floating("noise", noise)
            checks.same_shape("noise", noise, "a sample of each image", torch.Size((len(x), nt_samples, *x.shape[1:])))
        sigma = _wide(x).new_full((len(x),), stdev)
        memory = _memory(prepared, x, nt_samples_batch_size)
        absolute = kwargs.get("abs", True)
        if nt_type == "smoothgrad" and not absolute and noise is None:
            result = prepared.smoothgrad(
                x, targets, _noise(x, sigma, shared=False), num_samples=nt_samples, memory=memory
            )
        else:
            result = _by_samples(prepared, x, targets, sigma, nt_type, nt_samples, absolute, noise, memory)
        result = result.to(x.dtype)
        return (result,) if isinstance(inputs, tuple) else result

    def _served(self, inputs: Any, nt_type: str, stdevs: Any, kwargs: dict[str, Any]) -> tuple[Prepared, Tensor] | str:
        """The prepared model and the targets, or why the engine cannot serve."""
        method = self.attribution_method
        if type(method) is not Saliency:
            return f"the engine computes gradients, not {type(method).__name__}"
        x = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point() or not len(x):
            return "inputs: the engine takes one floating-point tensor [B, d, m, m]"
        if nt_type not in ("smoothgrad", "smoothgrad_sq", "vargrad"):
            return f"nt_type: the engine knows no {nt_type!r}"  # nor does Captum, which says so
        stdev = stdevs[0] if isinstance(stdevs, tuple) and len(stdevs) == 1 else stdevs
        if not isinstance(stdev, float):
            return "stdevs: the engine takes one float"
        if set(kwargs) - _SERVED or kwargs.get("additional_forward_args") is not None:
            return "the engine takes no arguments of the forward function but its input"
        if not isinstance(method.forward_func, nn.Module):
            return "forward_func: the engine takes an nn.Module"
        targets = _targets(kwargs.get("target"), x)
        if targets is None:
            return _NO_TARGET
        prepared = prepared_of(method.forward_func, x)
        return prepared if isinstance(prepared, str) else (prepared, targets)


def _by_samples(
    prepared: Prepared,
    x: Tensor,
    targets: Tensor,
    sigma: Tensor,
    nt_type: str,
    nt_samples: int,
    absolute: bool,
    noise: Tensor | None,
    memory: int,
) -> Tensor:
    """What needs each sample's gradient: the mean of their absolute values, of their squares, or their variance.

    Added up sample by sample, at least in float32, so that nothing depends on how many go together; the variance about
    the mean so far (Welford), since the mean of squares less the square of the mean has no digits left in float32.
    """
    seed = _seed()
    total, mean, spread = (torch.zeros_like(_wide(x)) for _ in range(3))
    together = max(1, memory // (prepared.bytes_of_copy * len(x)))
    for first in range(0, nt_samples, together):
        count = min(together, nt_samples - first)
        given = None if noise is None else noise[:, first : first + count]
        copies = ops.smoothgrad_noise(x, sigma, count, seed=seed, first_sample=first, normals=given)
        _, gradients = prepared.value_and_grad(copies.flatten(0, 1), targets.repeat_interleave(count))
        gradients = gradients.abs() if absolute else gradients
        for number, value in enumerate(gradients.unflatten(0, (len(x), count)).unbind(dim=1), start=first + 1):
            if nt_type == "vargrad":
                off = value - mean
                mean += off / number
                spread += off * (value - mean)
            else:
                total += value if nt_type == "smoothgrad" else value.square()
    return (spread if nt_type == "vargrad" else total) / nt_samples


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as Python's own, which Captum takes."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _targets(target: Any, x: Tensor) -> Tensor | None:
    """A class for each image, int64 [B], of the ways in which Captum takes them; None for any other."""
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
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _noise(x: Tensor, sigma: Tensor, *, shared: bool) -> NoiseStream:
    return NoiseStream(sigma, torch.arange(len(x), device=x.device), _seed(), shared=shared, antithetic=False)


def _seed() -> int:
    return int(torch.randint(2**63 - 1, ()))


def _memory(prepared: Prepared, x: Tensor, samples: int | None) -> int:
    """Bytes of one pass of so many samples of every image."""
    if samples is None:
        return MEMORY
    return prepared.bytes_of_copy * max(1, len(x)) * checks.whole("nt_samples_batch_size", samples, 1)
