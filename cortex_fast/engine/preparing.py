"""Any extractor, prepared for input gradients: the least arithmetic that gives the same answer."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from cortex_fast import checks
from cortex_fast.engine.borrowing import borrowed
from cortex_fast.engine.errors import CachingError, NoLogitsError, UntraceableError, WritesError
from cortex_fast.engine.gradients import ordinary
from cortex_fast.engine.measuring import with_measured_memory
from cortex_fast.engine.memory import give_back
from cortex_fast.engine.outputs import Logits, Output
from cortex_fast.engine.precision import without_tf32
from cortex_fast.engine.prepared import Prepared
from cortex_fast.engine.trial_images import TrialImages, trial_images
from cortex_fast.engine.trying import graph_of
from cortex_fast.engine.unsplit import ImageByImage, tried_unsplit, unsplit
from cortex_fast.engine.verified_split import verified_split
from cortex_fast.engine.watching import weights_of

PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def prepare(
    extractor: nn.Module | Prepared,
    sample: Tensor,
    *,
    precision: str = "float32",
    copies: int | None = None,
    output: Output = None,
) -> Prepared:
    """Prepare an eval-mode extractor for many input gradients; a prepared one is returned unchanged.

    The extractor is recorded and tried on images derived from the sample. Where its forward is no fixed graph of
    operators, or the graph gives other logits or gradients, autograd runs over the extractor itself, with the reason in
    `notes`: image by image where images change each other's results. The extractor is left unchanged: a copy of its
    structure runs, which shares its weights.

    Args:
        extractor: a module in eval mode from embeddings [B,d,h,w] to logits [B,classes].
        sample: float [B,d,h,w], embeddings of which the first and the last are used; with B = 0 the extractor is not
            tried, and autograd runs over it image by image.
        precision: of weights and activations. "float32" (default) is the extractor's dtype, whatever it is, without
            rounding to tf32; "tf32" the same under torch's flags; "bfloat16" and "float16" are those dtypes.
        copies: about how many noisy copies will be scored; below 64, convolutions are not transformed. Default None:
            many.
        output: the part of the forward's result that holds the logits: its key or attribute (str) or position (int).
            Default None: a tensor itself, else `.logits` or ["logits"].
    Returns:
        The prepared extractor; where it was split, for embeddings of the sample's shape [d,h,w] alone.
    Raises:
        TypeError: the extractor is no module, or the sample no floating-point tensor.
        ValueError: precision or output is unknown; the sample is not finite; the extractor is in training mode, gives
            no logits [B,classes], gives logits that are not differentiable in the embedding, or stores results of its
            first forward that later ones read. For a prepared extractor: its weights have changed, or it was prepared
            for another shape. Exceptions of a forward that fails even image by image pass through.
    """
    if isinstance(extractor, Prepared):
        extractor.check_shape("sample", sample)
        extractor.check_weights()
        return extractor
    _check_arguments(extractor, sample, precision)
    copies = None if copies is None else checks.whole("copies", copies, 0)
    extractor_dtype = _dtype_of(extractor, sample)
    dtype = extractor_dtype if precision in ("float32", "tf32") else PRECISIONS[precision]
    exact = precision != "tf32"
    no_autocast = torch.autocast(sample.device.type, enabled=False)  # else its casts would stay in the graph
    with torch.inference_mode(False), torch.no_grad(), without_tf32(exact), no_autocast:
        weights = weights_of(extractor)
        if len(sample):
            images = trial_images(ordinary(sample).detach().to(extractor_dtype))
            prepared = _tried(extractor, images, dtype=dtype, copies=copies, output=output)
            give_back()
        else:
            stand_in = Logits(borrowed(extractor, tensors_too=True), output)
            prepared = unsplit(extractor, ImageByImage(stand_in), dtype, ": there was no sample to try it on")
        return replace(prepared, weights=weights, exact=exact)


def _check_arguments(extractor: nn.Module, sample: Tensor, precision: str) -> None:
    if not isinstance(extractor, nn.Module):
        raise TypeError(f"extractor: expected a torch.nn.Module, got {type(extractor).__name__}")
    checks.rank("sample", sample, "[B, d, h, w]")
    checks.floating("sample", sample)
    checks.finite("sample", sample)
    checks.one_of("precision", precision, PRECISIONS)
    if any(module.training for module in extractor.modules()):
        raise ValueError("extractor: expected eval mode, got training mode; call extractor.eval() first")


def _dtype_of(extractor: nn.Module, sample: Tensor) -> torch.dtype:
    """The sample's dtype where a parameter or buffer has it, else that of the first floating-point one."""
    tensors = (*extractor.parameters(), *extractor.buffers(), sample)
    dtypes = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    return sample.dtype if sample.dtype in dtypes[:-1] else dtypes[0]


def _tried(
    extractor: nn.Module, images: TrialImages, *, dtype: torch.dtype, copies: int | None, output: Output
) -> Prepared:
    """The extractor split; or unsplit, with the reason, where it cannot be."""
    stand_in: nn.Module = Logits(borrowed(extractor), output)
    try:
        graph, expected = graph_of(stand_in, images)
        prepared = verified_split(extractor, stand_in, graph, expected, images, dtype=dtype, copies=copies)
        return with_measured_memory(prepared, images)
    except CachingError:
        raise
    except Exception as error:  # the user's forward may raise anything
        expected_error = isinstance(error, UntraceableError | WritesError)
        reason = str(error) if expected_error else f"{type(error).__name__}: {error}"
        by_value = isinstance(error, UntraceableError) and error.by_value
        if not isinstance(error, UntraceableError | NoLogitsError):  # it may write into its own tensors
            stand_in = Logits(borrowed(extractor, tensors_too=True), output)
        prepared = tried_unsplit(extractor, stand_in, images, dtype, reason, by_value=by_value)
        return with_measured_memory(prepared, images)
