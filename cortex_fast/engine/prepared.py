"""Any extractor, prepared for input gradients: the least arithmetic that gives the same answer."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from cortex_fast import checks, ops
from cortex_fast.engine.folding import UntraceableError, fold
from cortex_fast.engine.fusing import fuse
from cortex_fast.engine.gradients import frozen, ordinary
from cortex_fast.engine.parts import Parts, target_value
from cortex_fast.engine.smoothing import MEMORY, Noise, mean_gradients
from cortex_fast.engine.splitting import cut, tensors
from cortex_fast.ops.backends import verdicts
from cortex_fast.ops.conv3x3 import BACKENDS as CONV_BACKENDS

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WORTH_FUSING = 64  # copies: below it the filters' transform costs more than it saves
_TOLERANCE = (
    1e-3  # of the prepared logits, relative to the largest: far more than rounding, far less than a wrong graph
)


class Prepared(Parts):
    """What `prepare` makes of an extractor: its parts, and the gradients that they give."""

    def value(self, x: Tensor, target: Tensor) -> Tensor:
        """The logit of each image's target [B], differentiable in x [B,d,m,m]."""
        return target_value(self, tensors(self.prefix(self.cast(x))), target)

    def value_and_grad(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The logit of each image's target [B], float32, and its gradient in x [B,d,m,m], in x's dtype."""
        with torch.inference_mode(False), torch.enable_grad(), frozen(self.extractor):
            x, target = ordinary(x).detach().requires_grad_(True), ordinary(target)
            value = self.value(x, target)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach().float(), gradient

    def smoothgrad(
        self, x: Tensor, target: Tensor, noise: Noise, *, num_samples: int = 20, memory: int = MEMORY
    ) -> Tensor:
        """Mean over N noisy copies of d logit[target] / dE (eq. 5): x [B,d,m,m], target int64 [B] -> [B,d,m,m].

        memory: bytes that the activations of one pass may take; the result does not depend on it.
        """
        parts = mean_gradients(self, x, target, noise, range(num_samples), memory=memory)
        return torch.cat([gradient for _, gradient in parts]) if len(x) else torch.empty_like(x)

    def token_saliency(
        self,
        x: Tensor,
        target: Tensor,
        noise: Noise,
        *,
        num_samples: int = 20,
        reduction: str = "absmax",
        memory: int = MEMORY,
    ) -> Tensor:
        """TSV [B,m,m]: `smoothgrad` reduced over the channels as `ops.token_saliency` does."""
        gradient = self.smoothgrad(x, target, noise, num_samples=num_samples, memory=memory)
        return ops.token_saliency(gradient[:, None], reduction=reduction)


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
    return replace(prepared, bytes_of_copy=_bytes_of_copy(prepared, sample[:1])) if len(sample) else prepared


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


def _bytes_of_copy(prepared: Prepared, sample: Tensor) -> int:
    """About what one more noisy copy of sample [1,d,m,m] takes while its gradient is computed: what autograd keeps,
    and three of the largest results on the way."""
    (one, _), (two, largest) = (_bytes_of_pass(prepared, sample.expand(count, -1, -1, -1)) for count in (1, 2))
    return max(1, two - one + 3 * largest // 2)


def _bytes_of_pass(prepared: Prepared, x: Tensor) -> tuple[int, int]:
    """Bytes kept for the backward pass of the body, and of the largest result of any of its layers."""
    kept: dict[int, int] = {}
    sizes = [0]

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def measure(_module: nn.Module, _inputs: object, result: object) -> None:
        sizes.append(result.nbytes if isinstance(result, Tensor) else 0)

    with torch.inference_mode(False), torch.enable_grad(), frozen(prepared.extractor):
        leaves = tuple(z.detach().requires_grad_(True) for z in tensors(prepared.prefix(prepared.cast(ordinary(x)))))
        hooks = [module.register_forward_hook(measure) for module in prepared.body.modules()]
        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                prepared.body(*leaves)
        finally:
            for hook in hooks:
                hook.remove()
    return sum(kept.values()), max(sizes + [leaf.nbytes for leaf in leaves])
