"""Checks that every explanation shares."""

from torch import Tensor, nn

from cortex_fast import checks
from cortex_fast.engine import Prepared, logits_of, module_of
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


def check_classes(extractor: nn.Module | Prepared, sample: Tensor, target: Tensor) -> None:
    """The targets against the number of logits that the extractor gives for one image `sample` [1,d,h,w]."""
    module = module_of(extractor)
    check_grid(module, sample.shape)
    own = next((tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()), sample.dtype)
    try:
        logits = logits_of(extractor, sample)
    except RuntimeError as error:
        if own == sample.dtype or "type" not in str(error):
            raise
        raise TypeError(f"extractor: expected weights of the embedding's {sample.dtype}, got {own}") from error
    checks.in_range("target", target, logits.shape[1])
