"""An extractor that cannot be split: autograd over the module itself."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from cortex_fast.engine.borrowing import in_dtype, straighten_norms
from cortex_fast.engine.comparing import LogitGradients, gradients_of, mixes
from cortex_fast.engine.gradients import float16_scale
from cortex_fast.engine.prepared import Prepared
from cortex_fast.engine.trial_images import TrialImages
from cortex_fast.engine.verifying import verify


def tried_unsplit(
    extractor: nn.Module, stand_in: nn.Module, images: TrialImages, dtype: torch.dtype, reason: str, *, by_value: bool
) -> Prepared:
    """The extractor by autograd over its stand-in, tried on images; reason: why it cannot be split.

    It runs image by image where it reads values (by_value), or where images change each other's results; in its own
    dtype where `dtype` gives other results.
    """
    straighten_norms(stand_in)
    expected, by_value = _trial_gradients(stand_in, images, by_value=by_value)
    how = ", image by image" if by_value else ""
    if not by_value and mixes(stand_in, images):
        how = ", image by image (they change each other's results)"
    module = ImageByImage(stand_in) if how else stand_in
    extractor_dtype, gradient = images.more.dtype, expected.gradient
    if dtype == extractor_dtype == torch.float16:  # unscaled gradients may not fit it
        gradient = gradients_of(in_dtype(module, torch.float32), images.more.float()).gradient
    prepared = unsplit(extractor, module, dtype, f"{how}: {reason}")
    prepared = replace(prepared, scale=float16_scale(gradient, dtype))
    if dtype != extractor_dtype:
        try:
            verify(prepared, images.more, gradients_of(module, images.more), half=True)
        except Exception as error:  # the user's forward may raise anything
            how = f"{how}, in {extractor_dtype} since {dtype} does not serve ({error})"
            prepared = unsplit(extractor, module, extractor_dtype, f"{how}: {reason}")
    return replace(prepared, classes=expected.logits.shape[1])


def unsplit(extractor: nn.Module, stand_in: nn.Module, dtype: torch.dtype, note: str) -> Prepared:
    """Autograd over the stand-in, one backward pass for a batch; note: how, and why."""
    parameter_dtype = next((p.dtype for p in extractor.parameters() if p.is_floating_point()), dtype)
    return Prepared(
        extractor=extractor,
        stand_in=stand_in,
        prefix=nn.Identity(),
        linear_prefix=nn.Identity(),
        body=nn.Sequential(_Copy(), stand_in if dtype == parameter_dtype else in_dtype(stand_in, dtype)),
        head=None,
        dtype=dtype,
        notes=(f"autograd over the extractor as it is{note}",),
        layout=torch.contiguous_format,
    )


class ImageByImage(nn.Module):
    """A module whose images go through it one at a time."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        try:
            return torch.cat([self.module(x[image : image + 1].clone()) for image in range(len(x))])
        except ValueError as error:
            raise ValueError(
                f"extractor: its images change each other's results, and one alone fails: {error}"
            ) from error


class _Copy(nn.Module):
    """Copies its input, for a forward that writes into it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def _trial_gradients(stand_in: nn.Module, images: TrialImages, *, by_value: bool) -> tuple[LogitGradients, bool]:
    """Results for images.more; and whether images must go through one at a time, as where a batch of them fails."""
    try:
        return gradients_of(stand_in, images.more), by_value
    except Exception:  # the user's forward may raise anything
        try:
            return gradients_of(ImageByImage(stand_in), images.more), True
        except Exception:
            gradients_of(stand_in, images.more)  # raises the forward's own error
            raise
