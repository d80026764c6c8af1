"""SmoothGrad as the published code offers it."""

import warnings

import torch
from torch import Tensor, nn

from cortex_fast import checks
from cortex_fast.compat.preparing import UnservedError, prepared_of
from cortex_fast.engine import NoiseStream


class AverageSaliency:
    """The published code's SmoothGrad of a model.

    Args:
        model: any nn.Module, E [B, d, m, m] -> logits [B, classes].
        output_index: stored, and never read, as in the published code. Default 0.
    """

    def __init__(self, model: nn.Module, output_index: int = 0) -> None:
        self.model = model
        self.output_index = output_index

    def get_grad(self, input_images: Tensor, target_indices: checks.Integers) -> Tensor:
        """The gradient of each image's target logit in the image.

        Args:
            input_images: E, floating-point [B, d, m, m]; not changed, where the published code turns its requires_grad
                on.
            target_indices: a class for each image, integers [B].
        Returns:
            [B, d, m, m] in the images' dtype, without a graph.
        Raises:
            ValueError: there are not as many targets as images.
        """
        targets = _targets(input_images, target_indices)
        return gradients_of(self.model, input_images, targets)

    def get_average_grad(
        self,
        input_images: Tensor,
        target_indices: checks.Integers,
        stdev_spread: float = 0.2,
        nsamples: int = 20,
    ) -> Tensor:
        """The mean of `get_grad` over noisy copies.

        Noise is N(0, sigma^2) with sigma = stdev_spread (max - min), both over the whole batch, drawn anew for each
        image and call. torch's generator, which torch.manual_seed seeds, gives the seed of a call's draws.

        Args:
            input_images: E, floating-point [B, d, m, m].
            target_indices: a class for each image, integers [B].
            stdev_spread: sigma as a share of the batch's range. Default 0.2.
            nsamples: noisy copies of each image, at least 1. Default 20.
        Returns:
            float64 [B, d, m, m] on the images' device.
        Raises:
            ValueError: there are not as many targets as images, or nsamples < 1.
        """
        targets = _targets(input_images, target_indices)
        images = input_images.detach()
        spread = stdev_spread * (images.max() - images.min())
        if type(self).get_grad is not AverageSaliency.get_grad:  # a subclass's, whose result is averaged
            return self._average(images, targets, spread, nsamples)
        try:
            prepared = prepared_of(self.model, images)
        except UnservedError:
            return self._average(images, targets, spread, nsamples)
        stream = NoiseStream(
            sigma=spread.to(torch.promote_types(images.dtype, torch.float32)).expand(len(images)),
            item_ids=torch.arange(len(images), device=images.device),
            seed=int(torch.randint(2**63 - 1, ())),
            shared=False,
            antithetic=False,
        )
        return prepared.smoothgrad(images, targets, stream, num_samples=nsamples).double()

    def _average(self, images: Tensor, targets: Tensor, spread: Tensor, nsamples: int) -> Tensor:
        if nsamples < 1:
            raise ValueError(f"nsamples: expected at least 1, got {nsamples}")
        total = torch.zeros_like(images, dtype=torch.float64)
        for _ in range(nsamples):
            total += self.get_grad(images + torch.randn_like(images) * spread, targets).detach()
        return total / nsamples


class SingleSaliency(AverageSaliency):
    """The same as `AverageSaliency`, by the name that the published scripts use.

    Args:
        model: any nn.Module, E [B, d, m, m] -> logits [B, classes].
        output_index: stored, and never read, as in the published code. Default 0.
    """


def gradients_of(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """The gradient of each image's target logit in the image.

    By the engine; for a model that the engine does not serve, by a backward pass for each image, with a warning.

    Args:
        model: E [B, d, m, m] -> logits [B, classes].
        x: E, floating-point [B, d, m, m].
        targets: int64 [B].
    Returns:
        [B, d, m, m], in x's dtype.
    """
    try:
        prepared = prepared_of(model, x)
    except UnservedError as error:
        warnings.warn(f"a backward pass for each image, as in the published code: {error}", stacklevel=3)
    else:
        return prepared.value_and_grad(x, targets)[1].to(x.dtype)
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        outputs = model(x)
        gradients = []
        for image, target in enumerate(targets.tolist()):
            (gradient,) = torch.autograd.grad(outputs[image, target].sum(), x, retain_graph=True)
            gradients.append(gradient[image])
    return torch.stack(gradients)


def _targets(images: Tensor, target_indices: checks.Integers) -> Tensor:
    """int64 [B], on the images' device."""
    targets = checks.integers("target_indices", target_indices).to(images.device, torch.int64)
    if targets.shape != images.shape[:1]:
        raise ValueError(f"target_indices: expected one for each of {len(images)} images, got {list(targets.shape)}")
    return targets
