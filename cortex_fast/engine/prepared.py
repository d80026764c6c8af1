"""Any extractor, prepared for input gradients: the least arithmetic that gives the same answer."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from cortex_fast import checks
from cortex_fast.engine.folding import UntraceableError, fold
from cortex_fast.engine.fusing import fuse
from cortex_fast.engine.gradients import frozen, ordinary
from cortex_fast.engine.splitting import cut, tensors
from cortex_fast.ops.backends import verdicts
from cortex_fast.ops.conv3x3 import BACKENDS as CONV_BACKENDS

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WORTH_FUSING = 64  # copies: below it the filters' transform costs more than it saves
_TOLERANCE = (
    1e-3  # of the prepared logits, relative to the largest: far more than rounding, far less than a wrong graph
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """An eval-mode extractor f_Y: E [B,d,m,m] -> logits [B,classes], in parts: prefix, then body, then head.

    prefix (x -> z, ...) is affine and linear is the same without its constants; body (z, ... -> h); head the last
    linear layer, or None where h are the logits. notes: what was done, and what was not and why.
    extractor: the module itself, which stays as it is.
    """

    extractor: nn.Module
    prefix: nn.Module
    linear: nn.Module
    body: nn.Module
    head: nn.Linear | None
    dtype: torch.dtype
    notes: tuple[str, ...]

    def value_and_grad(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The logit of each image's target [B], float32, and its gradient in x [B,d,m,m], in x's dtype."""
        with torch.inference_mode(False), torch.enable_grad(), frozen(self.extractor):
            x, target = ordinary(x).detach().requires_grad_(True), ordinary(target)
            value = target_value(self, tensors(self.prefix(self.cast(x))), target)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach().float(), gradient

    def cast(self, x: Tensor) -> Tensor:
        return x.to(self.dtype, memory_format=torch.channels_last) if x.ndim == 4 else x.to(self.dtype)


def target_value(prepared: Prepared, z: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """The logit of each target [B], of the prefix's results. A head gives only the rows that are asked for."""
    h = prepared.body(*z)
    assert isinstance(h, Tensor)
    if prepared.head is None:
        return h.gather(1, target[:, None])[:, 0]
    value = (h * prepared.head.weight[target]).sum(dim=1)
    return value if prepared.head.bias is None else value + prepared.head.bias[target]


def prepare(
    extractor: nn.Module | Prepared, sample: Tensor, *, precision: str = "float32", copies: int | None = None
) -> Prepared:
    """Prepare an eval-mode extractor for many input gradients; a prepared one is returned as it is.

    sample: embeddings [B,d,m,m], of which the first is tried: where the prepared function differs from the extractor,
    or torch.fx cannot trace it, gradients go through autograd over the extractor itself, with the reason in `notes`.
    precision: "float32" (the extractor's own dtype, whatever it is), "bfloat16" or "float16" for weights and
    activations. copies: about how many noisy copies will be scored; with few, convolutions are not transformed.
    Raises ValueError for an unknown precision.
    """
    if isinstance(extractor, Prepared):
        return extractor
    checks.one_of("precision", precision, PRECISIONS)
    dtype = _own_dtype(extractor) if precision == "float32" else PRECISIONS[precision]
    with torch.inference_mode(False), torch.no_grad():
        try:
            prepared = _fast(extractor, dtype, copies)
            if len(sample):
                _try_out(prepared, ordinary(sample[:1]))
        except UntraceableError as error:
            prepared = _plain(extractor, dtype, str(error))
    return prepared


def _fast(extractor: nn.Module, dtype: torch.dtype, copies: int | None) -> Prepared:
    parts = cut(fold(extractor))
    notes = ["BatchNorm folded, dropout gone, gradients of the input only"]
    hoisted = len(parts.prefix.graph.find_nodes(op="call_module"))
    if hoisted:
        notes.append(f"{hoisted} affine layers at the beginning hoisted")
    if parts.head is not None:
        notes.append("of the last linear layer only the targets' rows")
    modules: list[nn.Module] = [parts.prefix, parts.linear, parts.body]
    modules += [] if parts.head is None else [parts.head]
    if dtype != _own_dtype(extractor):
        modules = [copy.deepcopy(module).to(dtype) for module in modules]
        notes.append(f"in {dtype}")
    notes.append(_fuse_all(modules[:3], extractor, dtype, copies))
    head = modules[3] if parts.head is not None else None
    assert head is None or isinstance(head, nn.Linear)
    return Prepared(extractor, modules[0], modules[1], modules[2], head, dtype, tuple(notes))


def _fuse_all(modules: list[nn.Module], extractor: nn.Module, dtype: torch.dtype, copies: int | None) -> str:
    """Convolutions by ops.conv3x3, in place, where that is faster; says what was done."""
    device = next((p.device for p in extractor.parameters()), torch.device("cpu"))
    answers = {answer.backend: answer for answer in verdicts(CONV_BACKENDS, torch.empty(0, dtype=dtype, device=device))}
    if not answers["native"].usable:
        return f"convolutions by torch: {answers['native'].reason}"
    if copies is not None and copies < _WORTH_FUSING:
        return f"convolutions by torch: {copies} copies are fewer than transforming the filters is worth"
    replaced = sum(fuse(module) for module in modules if isinstance(module, fx.GraphModule))
    return f"{replaced} convolutions with their ReLU and pooling by ops.conv3x3 (Winograd)"


def _plain(extractor: nn.Module, dtype: torch.dtype, reason: str) -> Prepared:
    """Autograd over the extractor itself, one backward pass for a batch."""
    body = extractor if dtype == _own_dtype(extractor) else copy.deepcopy(extractor).to(dtype)
    notes = (f"autograd over the extractor as it is: {reason}",)
    return Prepared(extractor, nn.Identity(), nn.Identity(), body, None, dtype, notes)


def _own_dtype(extractor: nn.Module) -> torch.dtype:
    return next((p.dtype for p in extractor.parameters() if p.is_floating_point()), torch.float32)


def _try_out(prepared: Prepared, sample: Tensor) -> None:
    """Raise UntraceableError where the parts are not the extractor: tracing may miss what depends on values."""
    twice = torch.cat([sample, sample.roll(1, dims=-1)])
    expected = prepared.extractor(twice)
    if not isinstance(expected, Tensor) or expected.ndim != 2:
        raise UntraceableError("its output is not [B, classes]")
    h = prepared.body(*tensors(prepared.prefix(prepared.cast(twice))))
    got = h if prepared.head is None else prepared.head(h)
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        raise UntraceableError("the traced graph gives another shape")
    # float16 has 11 bits, bfloat16 8
    allowed = max(_TOLERANCE, 64 * torch.finfo(prepared.dtype).eps) * float(expected.abs().max())
    if not bool((got - expected).abs().max() <= allowed):
        raise UntraceableError("the traced graph gives other logits: its forward depends on values or keeps state")
