"""Any extractor, prepared for input gradients: the least arithmetic that gives the same answer."""

import math
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from cortex_fast import checks, ops
from cortex_fast.data.classes import Target, names_of, target_vector
from cortex_fast.engine.borrowing import borrowed, in_dtype, straighten_norms
from cortex_fast.engine.folding import fold
from cortex_fast.engine.fusing import Filters, fuse
from cortex_fast.engine.gating import take_gates
from cortex_fast.engine.gradients import ordinary
from cortex_fast.engine.graphs import Graph, discard, layers
from cortex_fast.engine.memory import give_back
from cortex_fast.engine.outputs import Logits, NoLogitsError, Output
from cortex_fast.engine.parts import Parts, target_value, total
from cortex_fast.engine.precision import without_tf32
from cortex_fast.engine.smoothing import MEMORY, Noise, mean_gradients
from cortex_fast.engine.splitting import cut
from cortex_fast.engine.tracing import UntraceableError, WritesError
from cortex_fast.engine.trying import (
    ALIKE,
    Gradients,
    Images,
    KeepsError,
    alone_in_float64,
    copied,
    gradients_of,
    graph_of,
    images_of,
    mixes,
    near,
    targets_of,
)
from cortex_fast.engine.watching import changed, identity_of, weights_of
from cortex_fast.ops.backends import REASONS, verdicts

PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_ON_THE_WAY = 5  # tensors of the largest size that are there at once, beside what autograd keeps
_WORTH_FUSING = 64  # copies: below it the filters' transform costs more than it saves
_CHANGED = "extractor: its weights changed since it was prepared; call prepare() again"
_OTHER_LOGITS = "its parts give other logits than the whole"
_OTHER_GRADIENTS = "its parts give other gradients than the whole"
_AS_IT_IS = "autograd over the extractor as it is"


class Prepared(Parts):
    """What `prepare` makes of an extractor: its parts, and the gradients that they give."""

    def value(self, x: Tensor, target: Target) -> Tensor:
        """The logit of each image's target, differentiable in x [B,d,h,w]: [B]. target: a class by its number, or by
        its name where the extractor has names, or one for each image."""
        target = self._targets(x, target)
        with without_tf32(self.exact):
            return target_value(self, self.start(x), target)

    def value_and_grad(self, x: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """The logit of each image's target [B], and its gradient in x [B,d,h,w], both at least float32."""
        target = self._targets(x, target)
        self.check_weights()
        with torch.inference_mode(False), torch.enable_grad(), without_tf32(self.exact):
            x, target = _wide(ordinary(x).detach()).requires_grad_(True), ordinary(target)
            value = self.value(x, target)
            (gradient,) = torch.autograd.grad(total(value) * self.scale, x)
        return value.detach().to(x.dtype), gradient / self.scale

    def smoothgrad(
        self, x: Tensor, target: Target, noise: Noise, *, num_samples: int = 20, memory: int = MEMORY
    ) -> Tensor:
        """Mean over N noisy copies of d logit[target] / dE (eq. 5): x [B,d,h,w], target as for `value` -> [B,d,h,w], at
        least float32. memory: bytes that the activations of one pass may take; the result does not depend on it.
        """
        target = self._targets(x, target)
        self.check_weights()
        num_samples, memory = checks.whole("num_samples", num_samples, 1), checks.whole("memory", memory, 1)
        parts = mean_gradients(self, x, target, noise, range(num_samples), memory=memory)
        return torch.cat([gradient for _, gradient in parts]) if len(x) else _wide(x)

    def token_saliency(
        self,
        x: Tensor,
        target: Target,
        noise: Noise,
        *,
        num_samples: int = 20,
        reduction: str = "absmax",
        memory: int = MEMORY,
    ) -> Tensor:
        """TSV [B,h,w]: `smoothgrad` reduced over the channels as `ops.token_saliency` does."""
        gradient = self.smoothgrad(x, target, noise, num_samples=num_samples, memory=memory)
        return ops.token_saliency(gradient[:, None], reduction=reduction)

    def check_shape(self, name: str, x: Tensor) -> None:
        """Raise ValueError where the extractor was prepared for embeddings of another shape."""
        if self.shape is not None and x.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"{name}: expected shape [B, {expected}], as the extractor was prepared for, got "
                             f"{list(x.shape)}; prepare it with a sample of that shape")  # fmt: skip

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """The extractor's own logits [B,classes] of x [B,d,h,w], without a gradient."""
        self.check_weights()
        return self.module(x.clone())

    def _targets(self, x: Tensor, target: Target) -> Tensor:
        """The targets as classes int64 [B] that the extractor has, of an extractor as it was."""
        checks.rank("x", x, "[B, d, h, w]")
        checks.floating("x", x)
        self.check_shape("x", x)
        if not isinstance(target, Tensor):
            target = target_vector(target, len(x), x.device, names_of(self.extractor))
        checks.integral("target", target)
        checks.same_shape("target", target, "x's first dimension", x.shape[:1])
        checks.same_device(x=x, target=target)
        if target.device.type == "cpu":  # on a GPU the look would wait for it
            if self.classes is not None:
                checks.in_range("target", target, self.classes)
            elif bool((target < 0).any()):
                raise ValueError(f"target: expected classes from 0 on, got {int(target.min())}")
        if self.weights is not None and self.weights.identity != identity_of(self.extractor):
            raise ValueError(_CHANGED)
        return target.long()

    def check_weights(self) -> None:
        """Raise ValueError where the extractor's weights are no longer those that were prepared.

        A change past autograd, as by weight.data.mul_(), is seen by a thousand elements of each parameter and buffer:
        one of a whole tensor, or of more than a thousandth of it in one piece. On a GPU this waits for it once.
        """
        if self.weights is not None and changed(self.weights, self.extractor):
            raise ValueError(_CHANGED)


def module_of(extractor: nn.Module | Prepared) -> nn.Module:
    """The extractor itself, of one that may be prepared."""
    return extractor.extractor if isinstance(extractor, Prepared) else extractor


@torch.no_grad()
def logits_of(extractor: nn.Module | Prepared, x: Tensor) -> Tensor:
    """An extractor's logits [B,classes] of x [B,d,h,w], without a gradient; the extractor is left as it is.

    Raises ValueError where it gives none, and whatever its forward raises.
    """
    if isinstance(extractor, Prepared):
        return extractor.logits(x)
    return Logits(borrowed(extractor, tensors_too=True))(ordinary(x).clone())


def prepare(
    extractor: nn.Module | Prepared,
    sample: Tensor,
    *,
    precision: str = "float32",
    copies: int | None = None,
    output: Output = None,
) -> Prepared:
    """Prepare an eval-mode extractor for many input gradients; a prepared one is returned as it is.

    sample: embeddings [B,d,h,w]. The extractor is recorded and tried on images made of the first and the last; where
    what it does is no fixed graph of operators, or the graph gives other logits or gradients, autograd runs over the
    extractor as it is, with the reason in `notes`: image by image where images change each other's results.
    precision: "float32" (the extractor's own dtype, whatever it is; float32 is never rounded to tf32), "tf32" (the same
    as torch's flags have it), "bfloat16" or "float16" for weights and activations. copies: about how many noisy copies
    will be scored; with few, convolutions are not transformed.
    output: which part of the forward's result holds the logits [B,classes]: the key or attribute (str) or the position
    (int); None takes a tensor as it is, else `.logits`.
    The extractor is not changed: what runs is a copy of its structure that shares its weights.
    Raises ValueError for an unknown precision or output, an extractor in training mode, one without logits
    [B,classes], or one whose logits are not differentiable in the embedding.
    """
    if isinstance(extractor, Prepared):
        extractor.check_shape("sample", sample)
        extractor.check_weights()
        return extractor
    if not isinstance(extractor, nn.Module):
        raise TypeError(f"extractor: expected a torch.nn.Module, got {type(extractor).__name__}")
    checks.rank("sample", sample, "[B, d, h, w]")
    checks.floating("sample", sample)
    checks.finite("sample", sample)
    checks.one_of("precision", precision, PRECISIONS)
    if any(module.training for module in extractor.modules()):
        raise ValueError("extractor: expected eval mode, got training mode; call extractor.eval() first")
    own = _own_dtype(extractor, sample)
    copies = None if copies is None else checks.whole("copies", copies, 0)
    dtype = own if precision in ("float32", "tf32") else PRECISIONS[precision]
    exact = precision != "tf32"
    plain = torch.autocast(sample.device.type, enabled=False)  # its casts would be the graph's for good
    with torch.inference_mode(False), torch.no_grad(), without_tf32(exact), plain:
        weights = weights_of(extractor)
        if not len(sample):
            module = _Alone(Logits(borrowed(extractor, tensors_too=True), output))
            prepared = _plain(extractor, module, dtype, ": there was no sample to try it on")
        else:
            images = images_of(ordinary(sample).detach().to(own))
            prepared = _tried(extractor, images, dtype, copies, output)
            give_back()
        return replace(prepared, weights=weights, exact=exact)


def _tried(extractor: nn.Module, images: Images, dtype: torch.dtype, copies: int | None, output: Output) -> Prepared:
    """By a graph, or as it is with the reason."""
    module: nn.Module = Logits(borrowed(extractor), output)
    by_value = False
    try:
        graph, expected = graph_of(module, images)
        prepared = _fast(extractor, module, graph, expected, images, dtype, copies)
        return _measured(prepared, images)
    except KeepsError:
        raise
    except Exception as error:  # the user's forward runs in it, and may raise anything
        known = isinstance(error, UntraceableError | WritesError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        by_value = isinstance(error, UntraceableError) and error.by_value
        if not isinstance(error, UntraceableError | NoLogitsError):  # it may write into its own tensors
            module = Logits(borrowed(extractor, tensors_too=True), output)
        return _measured(_as_it_is(extractor, module, images, dtype, reason, by_value=by_value), images)


def _fast(
    extractor: nn.Module,
    module: nn.Module,
    graph: Graph,
    expected: Gradients,
    images: Images,
    dtype: torch.dtype,
    copies: int | None,
) -> Prepared:
    """By the parts of a graph, which were held against it."""
    classes = expected[0].shape[1]
    pair = images.more[:2]
    target = targets_of(2, classes, pair.device)
    wide = alone_in_float64(graph, pair, target)
    if wide is not None:
        exact = _parts(extractor, module, wide[0], torch.float64)
        _hold_exactly(exact, pair, target, wide[1])
        discard(wide[0], *(part for part in (exact.prefix, exact.linear, exact.body) if isinstance(part, Graph)))
        del exact
    elif mixes(graph, images):
        raise UntraceableError(_OTHER_LOGITS)
    own = images.more.dtype
    prepared = replace(_parts(extractor, module, graph, own), classes=classes, shape=pair.shape[1:])
    discard(graph)
    gradient = expected[1] if wide is None else wide[1][1]
    modules: list[nn.Module] = [prepared.prefix, prepared.linear, prepared.body]
    modules += [] if prepared.head is None else [prepared.head]
    notes = list(prepared.notes)
    if dtype != own:
        modules = [in_dtype(part, dtype) for part in modules]
        notes.append(f"in {dtype}")
    notes.append(_fuse_all(modules[:3], images.more.device, dtype, copies))
    head = modules[3] if prepared.head is not None else None
    assert head is None or isinstance(head, nn.Linear)
    prepared = replace(
        prepared,
        prefix=modules[0],
        linear=modules[1],
        body=modules[2],
        head=head,
        dtype=dtype,
        notes=tuple(notes),
        scale=_scale(gradient, dtype),
    )
    half = dtype in (torch.float16, torch.bfloat16)
    # a ReLU that rounding turns over moves a gradient by its whole share
    _hold(prepared, images.more, expected, 0.1 if half else 1e-3, 0.5 if half else 0.05)
    return prepared


def _parts(extractor: nn.Module, module: nn.Module, graph: Graph, dtype: torch.dtype) -> Prepared:
    """A graph folded and cut."""
    folded = fold(copied(graph))
    parts = cut(folded)
    discard(folded)
    notes = ["BatchNorm folded, dropout gone, gradients of the input only"]
    hoisted = len(list(layers(parts.prefix)))
    if hoisted:
        notes.append(f"{hoisted} affine layers at the beginning hoisted")
    if parts.head is not None:
        notes.append("of the last linear layer only the targets' rows")
    gates = take_gates(parts.body)
    return Prepared(
        extractor, module, parts.prefix, parts.linear, parts.body, parts.head, dtype, tuple(notes), gates=gates
    )


def _hold_exactly(prepared: Prepared, x: Tensor, target: Tensor, alone: Gradients) -> None:
    """Raise UntraceableError where the parts, in float64, give the first image another logit or gradient than alone."""
    value, gradient = prepared.value_and_grad(x.double(), target)
    if not near(value[:1], alone[0].gather(1, target[:1, None])[:, 0], ALIKE):
        raise UntraceableError(_OTHER_LOGITS)
    if not near(gradient[:1], alone[1], ALIKE):
        raise UntraceableError(_OTHER_GRADIENTS)


def _hold(prepared: Prepared, x: Tensor, expected: Gradients, of_logits: float, of_gradients: float) -> None:
    """Raise UntraceableError where the parts give others than the expected logits and gradients of `targets_of` x."""
    with torch.enable_grad():  # as everywhere: what hangs hooks on its tensors fails without
        h = prepared.body(*prepared.start(x.clone().requires_grad_(True)))
    logits = h if prepared.head is None else prepared.head(h)
    if not near(logits, expected[0], of_logits):
        raise UntraceableError(_OTHER_LOGITS)
    target = targets_of(len(x), logits.shape[1], x.device)
    still = Noise(
        torch.zeros(len(x), dtype=torch.float32, device=x.device), torch.arange(len(x), device=x.device), 0, True, False
    )
    wide = x.to(torch.promote_types(x.dtype, prepared.dtype))
    gradient = prepared.smoothgrad(wide, target, still, num_samples=1, memory=MEMORY)
    if not near(gradient, expected[1], of_gradients):
        raise UntraceableError(_OTHER_GRADIENTS)


def _as_it_is(
    extractor: nn.Module, module: nn.Module, images: Images, dtype: torch.dtype, reason: str, *, by_value: bool
) -> Prepared:
    """By autograd over the extractor: image by image where it looks at values, or images change each other."""
    straighten_norms(module)
    try:
        logits, gradient = gradients_of(module, images.more)
    except Exception:  # as a forward for one image alone would
        by_value = True
        try:
            logits, gradient = gradients_of(_Alone(module), images.more)
        except Exception:
            gradients_of(module, images.more)  # its own words
            raise
    how = ", image by image" if by_value else ""
    if not by_value and mixes(module, images):
        how = ", image by image (they change each other's results)"
    module = _Alone(module) if how else module
    own = images.more.dtype
    if dtype == own == torch.float16:  # unscaled gradients may not fit it
        _, gradient = gradients_of(in_dtype(module, torch.float32), images.more.float())
    prepared = replace(_plain(extractor, module, dtype, f"{how}: {reason}"), scale=_scale(gradient, dtype))
    if dtype != own:
        try:
            _hold(prepared, images.more, gradients_of(module, images.more), 0.1, 0.5)
        except Exception as error:
            prepared = _plain(
                extractor, module, own, f"{how}, in {own} since {dtype} does not serve ({error}): {reason}"
            )
    return replace(prepared, classes=logits.shape[1])


def _plain(extractor: nn.Module, module: nn.Module, dtype: torch.dtype, reason: str) -> Prepared:
    """Autograd over the extractor itself, one backward pass for a batch."""
    own = next((p.dtype for p in extractor.parameters() if p.is_floating_point()), dtype)
    body = nn.Sequential(_Own(), module if dtype == own else in_dtype(module, dtype))
    notes, layout = (f"{_AS_IT_IS}{reason}",), torch.contiguous_format
    return Prepared(extractor, module, nn.Identity(), nn.Identity(), body, None, dtype, notes, layout=layout)


class _Own(nn.Module):
    """An own copy of its input, for a forward that writes into it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class _Alone(nn.Module):
    """A module that is given one image at a time."""

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


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _fuse_all(modules: list[nn.Module], device: torch.device, dtype: torch.dtype, copies: int | None) -> str:
    """Convolutions by ops.conv3x3, in place, where that is faster; says what was done."""
    sample = torch.empty(0, dtype=dtype, device=device)
    answers = {answer.backend: answer for answer in verdicts(REASONS["conv3x3"], sample)}
    if not answers["native"].usable:
        return f"convolutions by torch: {answers['native'].reason}"
    if copies is not None and copies < _WORTH_FUSING:
        return f"convolutions by torch: {copies} copies are fewer than transforming the filters is worth"
    known: Filters = {}  # the prefix and its linear part have the same filters
    replaced = sum(fuse(module, known) for module in modules if isinstance(module, Graph))
    return f"{replaced} convolutions with their ReLU and pooling by ops.conv3x3 (Winograd)"


def _own_dtype(extractor: nn.Module, sample: Tensor) -> torch.dtype:
    """That of the sample where a parameter has it, else of the first parameter or buffer that has one."""
    named = (*extractor.parameters(), *extractor.buffers(), sample)
    dtypes = [tensor.dtype for tensor in named if tensor.is_floating_point()]
    return sample.dtype if sample.dtype in dtypes[:-1] else dtypes[0]


def _scale(gradient: Tensor, dtype: torch.dtype) -> float:
    """A power of two that lifts gradients into float16's range: 1 for every other dtype."""
    largest = float(gradient.abs().max())
    if dtype != torch.float16 or not 0 < largest < float("inf"):
        return 1.0
    return 2.0 ** max(-14, min(15, math.floor(math.log2(16 / largest))))  # itself a float16


def _measured(prepared: Prepared, images: Images) -> Prepared:
    """With about what one more noisy copy of an image takes while its gradient is computed: what autograd keeps, and a
    few of the largest tensors on the way."""
    (one, _), (two, largest) = (_bytes_of_pass(prepared, images.more[:count]) for count in (1, 2))
    return replace(prepared, bytes_of_copy=max(1, two - one + _ON_THE_WAY * largest // 2))


def _bytes_of_pass(prepared: Prepared, x: Tensor) -> tuple[int, int]:
    """Bytes kept for the backward pass of the body, and of the largest of those that grow with the batch."""
    kept: dict[int, int] = {}
    sizes = [x.nbytes]

    def keep(tensor: Tensor) -> Tensor:
        with suppress(RuntimeError, NotImplementedError):  # a wrapper, or sparse: it has no storage
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            if tensor.ndim and len(tensor) == len(x):
                sizes.append(tensor.nbytes)
        return tensor.detach()  # not itself: its own node would hold it, and nothing ever free it

    with torch.enable_grad():
        leaves = tuple(z.detach().requires_grad_(True) for z in prepared.start(x))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            prepared.body(*leaves)
    return sum(kept.values()), max(sizes + [leaf.nbytes for leaf in leaves])
