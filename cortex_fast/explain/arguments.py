"""Checks that every explanation shares."""

import torch
from torch import Tensor, nn

from cortex_fast import checks
from cortex_fast.extractors.build import check_grid


def check_extractor(extractor: nn.Module, **tensors: Tensor) -> None:
    """Eval mode: else BatchNorm would mix the images and dropout add noise of its own. And the tensors' device."""
    if not isinstance(extractor, nn.Module):
        raise TypeError(f"extractor: expected a torch.nn.Module, got {type(extractor).__name__}")
    training = [name or "the module itself" for name, module in extractor.named_modules() if module.training]
    if training:
        raise ValueError(
            f"extractor: expected eval mode, got training mode in {training[0]}; call extractor.eval() first"
        )
    checks.same_device(extractor=next(extractor.parameters(), None), **tensors)


def check_embedding(embedding: Tensor) -> None:
    checks.rank("embedding", embedding, "[B, d, h, w]")
    checks.floating("embedding", embedding)
    checks.finite("embedding", embedding)


def check_classes(extractor: nn.Module, sample: Tensor, target: Tensor) -> None:
    """The targets against the number of logits that the extractor gives for one image `sample` [1,d,h,w]."""
    check_grid(extractor, sample.shape)
    own = next((tensor.dtype for tensor in extractor.parameters() if tensor.is_floating_point()), sample.dtype)
    with torch.no_grad():
        try:
            logits = extractor(sample.contiguous())  # a user's forward may take views
        except RuntimeError as error:
            if own == sample.dtype or "type" not in str(error):
                raise
            raise TypeError(f"extractor: expected weights of the embedding's {sample.dtype}, got {own}") from error
    if not isinstance(logits, Tensor):
        raise TypeError(f"extractor: expected a tensor of logits, got {type(logits).__name__}")
    if logits.ndim != 2 or logits.shape[0] != 1:
        raise ValueError(f"extractor: expected logits [B, classes] for B = 1, got {list(logits.shape)}")
    checks.in_range("target", target, logits.shape[1])
