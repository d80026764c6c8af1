"""SmoothGrad as the published code offers it."""

import warnings

import torch
from torch import Tensor, nn

from cortex_fast import checks
from cortex_fast.compat.preparing import prepared_of
from cortex_fast.engine import NoiseStream


class AverageSaliency:
    """The published code's SmoothGrad of a model E [B,d,m,m] -> logits [B,classes].

    model: any nn.Module; output_index is stored, and read by nothing, as there.
    """

    def __init__(self, model: nn.Module, output_index: int = 0) -> None:
        self.model = model
        self.output_index = output_index

    def get_grad(self, input_images: Tensor, target_indices: checks.Integers) -> Tensor:
        """d logit[target] / dE of each image [B,d,m,m], in the images' dtype, without a graph of its own.

        input_images is left as it is; the published code turns its requires_grad on.
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
        """Mean of `get_grad` over noisy copies: float64 [B,d,m,m] on the images' device.

        Noise is N(0, sigma^2) with sigma = stdev_spread (max - min), both over the whole batch, drawn anew for each
        image and call; torch's generator, which torch.manual_seed seeds, gives the seed of a call's draws.
        Raises ValueError where there are not as many targets as images, or nsamples < 1.
        """
        targets = _targets(input_images, target_indices)
        images = input_images.detach()
        spread = stdev_spread * (images.max() - images.min())
        own = type(self).get_grad is not AverageSaliency.get_grad  # a subclass's, which then is what is averaged
        prepared = "" if own else prepared_of(self.model, images)
        if isinstance(prepared, str):
            return self._average(images, targets, spread, nsamples)
        noise = NoiseStream(
            sigma=spread.to(torch.promote_types(images.dtype, torch.float32)).expand(len(images)),
            item_ids=torch.arange(len(images), device=images.device),
            seed=int(torch.randint(2**63 - 1, ())),
            shared=False,
            antithetic=False,
        )
        return prepared.smoothgrad(images, targets, noise, num_samples=nsamples).double()

    def _average(self, images: Tensor, targets: Tensor, spread: Tensor, nsamples: int) -> Tensor:
        if nsamples < 1:
            raise ValueError(f"nsamples: expected at least 1, got {nsamples}")
        total = torch.zeros_like(images, dtype=torch.float64)
        for _ in range(nsamples):
            total += self.get_grad(images + torch.randn_like(images) * spread, targets).detach()
        return total / nsamples


class SingleSaliency(AverageSaliency):
    """The name that the published scripts use; the same."""


def gradients_of(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """d logit[target] / dx of each image of x [B,d,m,m], in its dtype."""
    prepared = prepared_of(model, x)
    if not isinstance(prepared, str):
        return prepared.value_and_grad(x, targets)[1].to(x.dtype)
    warnings.warn(f"a backward pass for each image, as in the published code: {prepared}", stacklevel=3)
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        outputs = model(x)
        gradients = []
        for image, target in enumerate(targets.tolist()):
            (gradient,) = torch.autograd.grad(outputs[image, target].sum(), x, retain_graph=True)
            gradients.append(gradient[image])
    return torch.stack(gradients)


def _targets(images: Tensor, target_indices: checks.Integers) -> Tensor:
    targets = checks.integers("target_indices", target_indices).to(images.device, torch.int64)
    if targets.shape != images.shape[:1]:
        raise ValueError(f"target_indices: expected one for each of {len(images)} images, got {list(targets.shape)}")
    return targets
