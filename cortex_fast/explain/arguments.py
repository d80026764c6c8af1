"""Checks that every explanation shares."""

from torch import Tensor, nn

from cortex_fast import checks
from cortex_fast.engine import Prepared, logits_of, module_of
from cortex_fast.extractors.build import check_grid


def check_extractor(extractor: nn.Module, **tensors: Tensor) -> None:
    """Check that the extractor is a module in eval mode, on the device of the named tensors.

    In training mode BatchNorm would mix the images and dropout would add noise.

    Raises:
        TypeError: not a module.
        ValueError: a part of it in training mode, or another device.
    """
    if not isinstance(extractor, nn.Module):
        raise TypeError(f"extractor: expected a torch.nn.Module, got {type(extractor).__name__}")
    training = [name or "the module itself" for name, module in extractor.named_modules() if module.training]
    if training:
        raise ValueError(
            f"extractor: expected eval mode, got training mode in {training[0]}; call extractor.eval() first"
        )
    checks.same_device(extractor=next(extractor.parameters(), None), **tensors)


def check_embedding(embedding: Tensor) -> None:
    """Check that the embedding is a finite float tensor [B,d,h,w]."""
    checks.rank("embedding", embedding, "[B, d, h, w]")
    checks.floating("embedding", embedding)
    checks.finite("embedding", embedding)


def check_classes(extractor: nn.Module | Prepared, sample: Tensor, target: Tensor) -> None:
    """Check the targets against the number of logits that the extractor computes for one image.

    Args:
        extractor: the extractor, E [B,d,h,w] -> logits [B,classes].
        sample: float [1,d,h,w], the embedding of one image.
        target: int64 [B], the classes to check.

    Raises:
        TypeError: weights of another dtype than the sample's.
        ValueError: a grid that the extractor does not take, or a target outside the classes.
    """
    module = module_of(extractor)
    check_grid(module, sample.shape)
    weights = (tensor for tensor in module.parameters() if tensor.is_floating_point())
    dtype = next((tensor.dtype for tensor in weights), sample.dtype)
    try:
        logits = logits_of(extractor, sample)
    except RuntimeError as error:
        if dtype == sample.dtype or "type" not in str(error):
            raise
        raise TypeError(f"extractor: expected weights of the embedding's {sample.dtype}, got {dtype}") from error
    checks.in_range("target", target, logits.shape[1])
