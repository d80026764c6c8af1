"""Input gradients of an extractor: one batched backward pass, no gradient of any parameter."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def frozen(extractor: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient within; what did before does after."""
    learning = [parameter for parameter in extractor.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one made in inference mode: autograd refuses those."""
    return tensor.clone() if tensor.is_inference() else tensor


def target_logits(extractor: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The logit of each image's target: x [B,d,m,m], target int64 [B] -> [B]."""
    return extractor(x).gather(1, target[:, None])[:, 0]


def target_gradient(extractor: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """d logit[target] / d x, [B,d,m,m]. Images are independent in eval mode, so one backward of the sum serves all."""
    with torch.inference_mode(False), torch.enable_grad(), frozen(extractor):
        x, target = ordinary(x).detach().requires_grad_(True), ordinary(target)
        (gradient,) = torch.autograd.grad(target_logits(extractor, x, target).sum(), x)
    return gradient
