"""Any extractor, prepared for input gradients: the least arithmetic that gives the same answer."""

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from cortex_fast import checks, ops
from cortex_fast.engine.folding import UntraceableError, fold
from cortex_fast.engine.fusing import fuse
from cortex_fast.engine.gating import take_gates
from cortex_fast.engine.gradients import frozen, ordinary
from cortex_fast.engine.parts import Parts, target_value, total
from cortex_fast.engine.smoothing import MEMORY, Noise, mean_gradients
from cortex_fast.engine.splitting import cut
from cortex_fast.ops.backends import verdicts
from cortex_fast.ops.conv3x3 import BACKENDS as CONV_BACKENDS

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ON_THE_WAY = 5  # tensors of the largest size that are there at once, beside what autograd keeps
_WORTH_FUSING = 64  # copies: below it the filters' transform costs more than it saves


class Prepared(Parts):
    """What `prepare` makes of an extractor: its parts, and the gradients that they give."""

    def value(self, x: Tensor, target: Tensor) -> Tensor:
        """The logit of each image's target [B], differentiable in x [B,d,m,m]."""
        self._check(x, target)
        return target_value(self, self.start(x), target)

    def value_and_grad(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The logit of each image's target [B], and its gradient in x [B,d,m,m], both at least float32."""
        with torch.inference_mode(False), torch.enable_grad(), frozen(self.extractor):
            x, target = _wide(ordinary(x).detach()).requires_grad_(True), ordinary(target)
            value = self.value(x, target)
            (gradient,) = torch.autograd.grad(total(value) * self.scale, x)
        return value.detach().to(x.dtype), gradient / self.scale

    def smoothgrad(
        self, x: Tensor, target: Tensor, noise: Noise, *, num_samples: int = 20, memory: int = MEMORY
    ) -> Tensor:
        """Mean over N noisy copies of d logit[target] / dE (eq. 5): x [B,d,m,m], target int64 [B] -> [B,d,m,m], at
        least float32. memory: bytes that the activations of one pass may take; the result does not depend on it.
        """
        self._check(x, target)
        checks.whole("num_samples", num_samples, 1)
        parts = mean_gradients(self, x, target, noise, range(num_samples), memory=memory)
        return torch.cat([gradient for _, gradient in parts]) if len(x) else _wide(x)

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

    def _check(self, x: Tensor, target: Tensor) -> None:
        checks.rank("x", x, "[B, d, m, m]")
        checks.floating("x", x)
        checks.integral("target", target)
        checks.same_shape("target", target, "x's first dimension", x.shape[:1])
        checks.same_device(x=x, target=target)
        if target.device.type == "cpu":  # on a GPU the look would wait for it
            if self.classes is not None:
                checks.in_range("target", target, self.classes)
            elif bool((target < 0).any()):
                raise ValueError(f"target: expected classes from 0 on, got {int(target.min())}")
        self.check_weights()

    def check_weights(self) -> None:
        """Raise ValueError where the extractor's weights are no longer those that were prepared."""
        if self.state and self.state != _state_of(self.extractor):
            raise ValueError("extractor: its weights changed since it was prepared; call prepare() again")


def module_of(extractor: nn.Module | Prepared) -> nn.Module:
    """The extractor itself, of one that may be prepared."""
    return extractor.extractor if isinstance(extractor, Prepared) else extractor


def prepare(
    extractor: nn.Module | Prepared, sample: Tensor, *, precision: str = "float32", copies: int | None = None
) -> Prepared:
    """Prepare an eval-mode extractor for many input gradients; a prepared one is returned as it is.

    sample: embeddings [B,d,m,m], of which the first is tried: where the prepared function differs from the extractor,
    or torch.fx cannot trace it, gradients go through autograd over the extractor itself, with the reason in `notes`.
    precision: "float32" (the extractor's own dtype, whatever it is), "bfloat16" or "float16" for weights and
    activations. copies: about how many noisy copies will be scored; with few, convolutions are not transformed.
    Raises ValueError for an unknown precision, or an extractor in training mode.
    """
    if isinstance(extractor, Prepared):
        extractor.check_weights()
        return extractor
    checks.one_of("precision", precision, PRECISIONS)
    if any(module.training for module in extractor.modules()):
        raise ValueError("extractor: expected eval mode, got training mode; call extractor.eval() first")
    dtype = _own_dtype(extractor, sample) if precision == "float32" else PRECISIONS[precision]
    with torch.inference_mode(False), torch.no_grad():
        if not len(sample):
            return _plain(extractor, dtype, "there was no sample to try it on")
        sample = ordinary(sample[:1])
        plain = _plain(extractor, dtype, "")
        own = _own_dtype(extractor, sample)
        basis = torch.float32 if dtype == own == torch.float16 else own  # unscaled gradients may not fit float16
        logits, gradient = _trial(_plain(extractor, basis, ""), sample)
        plain = replace(plain, scale=_scale(gradient, dtype))
        try:
            prepared = replace(_fast(extractor, dtype, copies, sample), scale=plain.scale)
            _compare(prepared, sample, logits, gradient)
        except Exception as error:  # the user's forward runs in it, and may raise anything
            reason = str(error) if isinstance(error, UntraceableError) else f"{type(error).__name__}: {error}"
            prepared = replace(plain, notes=(f"autograd over the extractor as it is: {reason}",))
    size, state = _bytes_of_copy(prepared, sample), _state_of(extractor)
    return replace(prepared, bytes_of_copy=size, state=state, classes=logits.shape[1])


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _state_of(extractor: nn.Module) -> tuple[int, ...]:
    """Changes whenever a parameter or buffer does."""
    tensors = (*extractor.parameters(), *extractor.buffers())
    return tuple(number for t in tensors if not t.is_inference() for number in (t.data_ptr(), t._version))


def _fast(extractor: nn.Module, dtype: torch.dtype, copies: int | None, sample: Tensor) -> Prepared:
    parts = cut(fold(extractor))
    notes = ["BatchNorm folded, dropout gone, gradients of the input only"]
    hoisted = len(parts.prefix.graph.find_nodes(op="call_module"))
    if hoisted:
        notes.append(f"{hoisted} affine layers at the beginning hoisted")
    if parts.head is not None:
        notes.append("of the last linear layer only the targets' rows")
    gates = take_gates(parts.body)
    modules: list[nn.Module] = [parts.prefix, parts.linear, parts.body]
    modules += [] if parts.head is None else [parts.head]
    if dtype != _own_dtype(extractor, sample):
        modules = [copy.deepcopy(module).to(dtype).requires_grad_(False) for module in modules]
        notes.append(f"in {dtype}")
    notes.append(_fuse_all(modules[:3], extractor, dtype, copies))
    head = modules[3] if parts.head is not None else None
    assert head is None or isinstance(head, nn.Linear)
    return Prepared(extractor, modules[0], modules[1], modules[2], head, dtype, tuple(notes), gates=gates)


def _fuse_all(modules: list[nn.Module], extractor: nn.Module, dtype: torch.dtype, copies: int | None) -> str:
    """Convolutions by ops.conv3x3, in place, where that is faster; says what was done."""
    device = next((p.device for p in extractor.parameters()), torch.device("cpu"))
    answers = {answer.backend: answer for answer in verdicts(CONV_BACKENDS, torch.empty(0, dtype=dtype, device=device))}
    if not answers["native"].usable:
        return f"convolutions by torch: {answers['native'].reason}"
    if copies is not None and copies < _WORTH_FUSING:
        return f"convolutions by torch: {copies} copies are fewer than transforming the filters is worth"
    known: dict[int, ops.Filters] = {}  # the prefix and its linear part have the same filters
    replaced = sum(fuse(module, known) for module in modules if isinstance(module, fx.GraphModule))
    return f"{replaced} convolutions with their ReLU and pooling by ops.conv3x3 (Winograd)"


class _Own(nn.Module):
    """An own copy of its input, for a forward that writes into it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def _plain(extractor: nn.Module, dtype: torch.dtype, reason: str) -> Prepared:
    """Autograd over the extractor itself, one backward pass for a batch."""
    own = next((p.dtype for p in extractor.parameters() if p.is_floating_point()), dtype)
    module = extractor if dtype == own else copy.deepcopy(extractor).to(dtype).requires_grad_(False)
    notes = (f"autograd over the extractor as it is: {reason}",)
    body = nn.Sequential(_Own(), module)
    return Prepared(extractor, nn.Identity(), nn.Identity(), body, None, dtype, notes, layout=torch.contiguous_format)


def _own_dtype(extractor: nn.Module, sample: Tensor) -> torch.dtype:
    """Of its parameters, or its buffers, or of what it is given."""
    named = (*extractor.parameters(), *extractor.buffers(), sample)
    return next(tensor.dtype for tensor in named if tensor.is_floating_point())


def _trial(prepared: Prepared, sample: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of three images made of the sample, and their mean gradients over two noiseless copies."""
    x = torch.cat([sample, sample.roll(1, dims=-1), sample.flip(-1)])
    h = prepared.body(*prepared.start(x))
    logits = h if prepared.head is None else prepared.head(h)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 3:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UntraceableError(f"extractor: expected logits [B, classes] for B = 3, got {got}")
    target = torch.arange(3, device=x.device) * (logits.shape[1] - 1) // 2
    noise = Noise(torch.zeros(3, device=x.device), torch.arange(3, device=x.device), 0, shared=True, antithetic=False)
    return logits, prepared.smoothgrad(x, target, noise, num_samples=2, memory=MEMORY)


def _compare(prepared: Prepared, sample: Tensor, logits: Tensor, gradient: Tensor) -> None:
    """Raise UntraceableError where the parts are not the extractor: tracing may miss what depends on values, hooks and
    backward passes of the user's own."""
    got, got_gradient = _trial(prepared, sample)
    half = prepared.dtype in (torch.float16, torch.bfloat16)
    if got.shape != logits.shape or not _near(got, logits, 0.1 if half else 1e-3):
        raise UntraceableError(
            "the traced graph gives other logits: its forward depends on values or keeps state, or hooks change it"
        )
    # a ReLU that rounding turns over moves a gradient by its whole share
    if not _near(got_gradient, gradient, 0.5 if half else 0.05):
        raise UntraceableError("the traced graph gives other gradients: hooks or a backward of its own change them")


def _near(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    got, expected = got.double(), expected.double()
    alike = got == expected  # infinities, as of masked classes, have no difference
    got, expected = got.masked_fill(alike, 0), expected.masked_fill(alike & expected.isinf(), 0)
    return bool((got - expected.masked_fill(alike, 0)).norm() <= tolerance * expected.norm() + 1e-30)


def _scale(gradient: Tensor, dtype: torch.dtype) -> float:
    """A power of two that lifts gradients into float16's range: 1 for every other dtype."""
    largest = float(gradient.abs().max())
    if dtype != torch.float16 or not 0 < largest < float("inf"):
        return 1.0
    return 2.0 ** max(-14, min(15, math.floor(math.log2(16 / largest))))  # itself a float16


def _bytes_of_copy(prepared: Prepared, sample: Tensor) -> int:
    """About what one more noisy copy of sample [1,d,m,m] takes while its gradient is computed: what autograd keeps,
    and a few of the largest tensors on the way."""
    (one, _), (two, largest) = (_bytes_of_pass(prepared, sample.expand(count, -1, -1, -1)) for count in (1, 2))
    return max(1, two - one + _ON_THE_WAY * largest // 2)


def _bytes_of_pass(prepared: Prepared, x: Tensor) -> tuple[int, int]:
    """Bytes kept for the backward pass of the body, and of the largest of those that grow with the batch."""
    kept: dict[int, int] = {}
    sizes = [x.nbytes]

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        if tensor.ndim and len(tensor) == len(x):
            sizes.append(tensor.nbytes)
        return tensor

    with torch.enable_grad(), frozen(prepared.extractor):
        leaves = tuple(z.detach().requires_grad_(True) for z in prepared.start(x))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            prepared.body(*leaves)
    return sum(kept.values()), max(sizes + [leaf.nbytes for leaf in leaves])
