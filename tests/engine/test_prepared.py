"""prepare: values and input gradients equal plain autograd's, no parameter gets a gradient, and extractors that cannot
be sped up still work, with the reason in the notes."""

import copy
import dataclasses
import operator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from cortex_fast import zoo
from cortex_fast.engine import PRECISIONS, NoiseStream, Prepared, prepare
from cortex_fast.explain import token_saliency, top_tokens
from cortex_fast.extractors import NAMES
from cortex_fast.ops.backends import IMPL_VARIABLE
from tests.engine.user_modules import (
    CHANNELS,
    GRID,
    Of,
    autograd,
    conv,
    embedding,
    ended,
    linear,
    norm,
    relative,
)
from tests.known_extractors import Convolutional, Cubic, tiny

FEATURES = CHANNELS * GRID * GRID
TARGET = torch.tensor([2, 0, 3])
FEW, MANY = 1, 10_000  # copies: convolutions by torch, and by ops.conv3x3
AS_IT_IS = "autograd over the extractor as it is: "


def shared(sigma: float = 0.3, images: int = 3) -> NoiseStream:
    return NoiseStream(torch.full((images,), sigma), torch.arange(images), 4, True, False)


def assert_gradients_agree(extractor: nn.Module, prepared: Prepared, bound: float = 1e-4) -> None:
    """One pass, and SmoothGrad with shared noise, against plain autograd of the extractor."""
    from cortex_fast.ops import smoothgrad_noise

    x = embedding()
    value, gradient = prepared.value_and_grad(x, TARGET)
    wanted_value, wanted = autograd(extractor, x, TARGET)
    assert relative(value, wanted_value) < bound and relative(gradient, wanted) < bound
    stream = shared()
    copies = smoothgrad_noise(x, stream.sigma, 4, seed=stream.seed, item_ids=torch.zeros(3, dtype=torch.int64))
    mean = sum(autograd(extractor, copies[:, sample], TARGET)[1] for sample in range(4)) / 4
    assert relative(prepared.smoothgrad(x, TARGET, stream, num_samples=4), mean) < bound


class Weights(TorchDispatchMode):
    """Counts the operations whose result has the shape of a weight: a gradient of a weight would."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        shapes = {parameter.shape for parameter in extractor.parameters() if parameter.ndim > 1}
        self.shapes = shapes | {shape[::-1] for shape in shapes if len(shape) == 2}
        self.counted: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            if result.shape in self.shapes:
                self.counted.append(str(function))
        elif function.overloadpacket is torch.ops.aten.convolution_backward and any(args[-1][1:]):
            self.counted.append(str(function))
        return result


@contextmanager
def counting_weight_gradients(extractor: nn.Module):
    with Weights(extractor) as mode:
        yield mode.counted


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("copies", [FEW, MANY])
def test_values_and_gradients_of_the_extractors_equal_autograds(kind, copies):
    extractor, x = tiny(kind), embedding()
    value, gradient = prepare(extractor, x, copies=copies).value_and_grad(x, TARGET)
    wanted_value, wanted = autograd(copy.deepcopy(extractor).double(), x.double(), TARGET)
    assert value.dtype == gradient.dtype == torch.float32
    assert relative(value, wanted_value) < 1e-5 and relative(gradient, wanted) < 1e-4


@pytest.mark.parametrize("kind", NAMES)
def test_float64_extractors_keep_float64(kind):
    extractor, x = tiny(kind).double(), embedding(dtype=torch.float64)
    prepared = prepare(extractor, x)
    value, gradient = prepared.value_and_grad(x, TARGET)
    wanted_value, wanted = autograd(extractor, x, TARGET)
    assert prepared.dtype == gradient.dtype == torch.float64
    assert relative(gradient, wanted) < 1e-10 and relative(value, wanted_value) < 1e-6


@pytest.mark.parametrize("kind", NAMES)
def test_notes_state_what_was_sped_up(kind):
    prepared = prepare(tiny(kind), embedding(), copies=MANY)
    hoisted = {"ce": 1, "ce_deep": 1, "re": 2, "te": 1}[kind]
    assert any(note.startswith(f"{hoisted} affine layers") for note in prepared.notes)
    assert "of the last linear layer only the targets' rows" in prepared.notes
    assert not any(note.startswith(AS_IT_IS) for note in prepared.notes)


@pytest.mark.parametrize("name", ["view behind a convolution", "view of the embedding"])
def test_extractors_with_views_are_split(name):
    extractor = USER_MODULES[name][0]().eval()
    for copies in (FEW, MANY):
        assert not any(note.startswith(AS_IT_IS) for note in prepare(extractor, embedding(), copies=copies).notes)


def test_the_notes_state_the_convolutions_backend(monkeypatch):
    monkeypatch.delenv(IMPL_VARIABLE, raising=False)
    extractor, x = tiny("ce"), embedding()
    assert "convolutions by torch: 63 copies" in prepare(extractor, x, copies=63).notes[-1]
    assert "ops.conv3x3" in prepare(extractor, x, copies=64).notes[-1]
    assert "ops.conv3x3" in prepare(extractor, x).notes[-1]
    assert "not torch.float64" in prepare(extractor.double(), x.double()).notes[-1]


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_gradient_of_a_weight_is_computed(kind, precision):
    extractor, x = tiny(kind), embedding()
    prepared = prepare(extractor, x, precision=precision)
    with counting_weight_gradients(extractor) as counted:
        prepared.value_and_grad(x, TARGET)
        prepared.smoothgrad(x, TARGET, shared(), num_samples=2)
    assert not counted
    assert all(parameter.grad is None and parameter.requires_grad for parameter in extractor.parameters())
    with counting_weight_gradients(extractor) as counted:  # a gradient would have been counted
        extractor(x).sum().backward()
    assert len(counted) >= len([m for m in extractor.modules() if isinstance(m, nn.Conv2d | nn.Linear)])


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(
    "precision",
    ["float32", "bfloat16"],
)
def test_no_parameter_requires_a_gradient_within_a_pass(kind, precision):
    extractor, x = tiny(kind), embedding()
    prepared = prepare(extractor, x, precision=precision)
    seen = []
    for part in (prepared.prefix, prepared.body):
        part.register_forward_hook(
            lambda part, *_: seen.extend(p.requires_grad for p in (*part.parameters(), *prepared.head.parameters()))
        )
    prepared.smoothgrad(x, TARGET, shared(), num_samples=2)
    prepared.value_and_grad(x, TARGET)
    assert seen and not any(seen)


def test_flags_are_restored_after_an_exception():
    extractor, x = tiny("te"), embedding()
    extractor.fc.bias.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in extractor.named_parameters()}
    for prepared in (prepare(extractor, x), prepare(by_value(), x)):
        with pytest.raises(ValueError, match=r"^target: expected values in \[0, 4\), got 0 to 99"):
            prepared.value(x, torch.tensor([0, 1, 99]))
        prepared = dataclasses.replace(prepared, classes=None)  # as if unknown: the error comes later
        before = {name: parameter.requires_grad for name, parameter in prepared.extractor.named_parameters()}
        for bad in (torch.tensor([0, 1, 99]), "target"):
            with pytest.raises((RuntimeError, IndexError, TypeError, AttributeError, ValueError)):
                prepared.value_and_grad(x, bad)
            with pytest.raises((RuntimeError, IndexError, TypeError, AttributeError, ValueError)):
                prepared.smoothgrad(x, bad, shared())
        after = {name: parameter.requires_grad for name, parameter in prepared.extractor.named_parameters()}
        assert after == before and any(before.values())


def test_preparing_a_prepared_extractor_returns_it():
    prepared = prepare(tiny("ce"), embedding())
    assert prepare(prepared, embedding()) is prepared
    assert prepare(prepared, embedding(), precision="bfloat16", copies=1) is prepared
    assert prepared.extractor.fc1.weight.requires_grad


def test_an_empty_sample_is_not_tried():
    prepared = prepare(tiny("re"), embedding(0))
    x = embedding()
    assert relative(prepared.value_and_grad(x, TARGET)[1], autograd(tiny("re"), x, TARGET)[1]) < 1e-4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["re", "te"])
def test_works_under_no_grad_and_inference_mode(kind, mode):
    extractor, x = tiny(kind), embedding()
    value, gradient = prepare(extractor, x).value_and_grad(x, TARGET)
    with mode():
        prepared = prepare(extractor, x.clone())
        inside = prepared.value_and_grad(x.clone(), TARGET.clone())
        mean = prepared.smoothgrad(x.clone(), TARGET.clone(), shared(), num_samples=3)
    torch.testing.assert_close(inside, (value, gradient))
    outside = prepared.smoothgrad(x, TARGET, shared(), num_samples=3)  # an extractor prepared inside serves outside
    torch.testing.assert_close(mean, outside)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precisions_keep_the_direction_of_the_gradient(kind, precision):
    extractor, x = tiny(kind), embedding()
    prepared = prepare(extractor, x, precision=precision)
    value, gradient = prepared.value_and_grad(x, TARGET)
    wanted_value, wanted = autograd(extractor, x, TARGET)
    assert prepared.dtype == PRECISIONS[precision] and any(str(prepared.dtype) in note for note in prepared.notes)
    assert value.dtype == gradient.dtype == torch.float32
    assert relative(value, wanted_value) < 0.05
    assert F.cosine_similarity(gradient.flatten(1), wanted.flatten(1)).min() > 0.95
    assert next(extractor.parameters()).dtype == torch.float32


def test_float16_keeps_small_gradients():
    extractor, x = tiny("ce"), embedding()
    extractor.fc3.weight.data *= 1e-4
    gradient = prepare(extractor, x, precision="float16").value_and_grad(x, TARGET)[1]
    wanted = autograd(extractor, x, TARGET)[1]
    assert F.cosine_similarity(gradient.flatten(1), wanted.flatten(1)).min() > 0.95


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extractors_in_half_precision_stay_in_it(dtype):
    extractor, x = tiny("te").to(dtype), embedding(dtype=dtype)
    prepared = prepare(extractor, x)
    value, gradient = prepared.value_and_grad(x, TARGET)
    assert prepared.dtype == dtype and value.dtype == gradient.dtype == torch.float32


def test_weights_that_change_are_noticed():
    extractor, x = tiny("ce"), embedding()
    prepared = prepare(extractor, x)
    prepared.value_and_grad(x, TARGET)
    with torch.no_grad():
        extractor.fc3.weight.mul_(2)
    calls = (prepared.value, prepared.value_and_grad, lambda x, t: prepared.smoothgrad(x, t, shared()))
    for call in (*calls, lambda x, t: token_saliency(prepared, x, t)):
        with pytest.raises(ValueError, match=r"^extractor: its weights changed"):
            call(x, TARGET)


@pytest.mark.parametrize("target", [torch.tensor([1]), torch.tensor([0, -1, 2]), torch.tensor([0.0, 1.0, 2.0])])
def test_unfitting_targets_are_refused(target):
    prepared = prepare(tiny("ce"), embedding())
    for call in (prepared.value, prepared.value_and_grad, lambda x, t: prepared.smoothgrad(x, t, shared())):
        with pytest.raises((ValueError, TypeError), match=r"^target:"):
            call(embedding(), target)
    with pytest.raises(ValueError, match=r"^num_samples:"):
        prepared.smoothgrad(embedding(), TARGET, shared(), num_samples=0)


def test_masked_classes_keep_the_fast_path():
    masked = torch.tensor([0.0, 0.0, -torch.inf, 0.0])
    extractor = ended(lambda self, x: self.conv(x), conv=conv())
    whole = Of(lambda self, x: self.inner(x) + masked, inner=extractor)
    assert not any(note.startswith(AS_IT_IS) for note in prepare(whole, embedding()).notes)


def test_another_default_dtype_changes_nothing():
    extractor, x = tiny("ce"), embedding()
    wanted = prepare(extractor, x, copies=MANY).value_and_grad(x, TARGET)
    torch.set_default_dtype(torch.float64)
    try:
        prepared = prepare(extractor, x, copies=MANY)
        got = prepared.value_and_grad(x, TARGET)
    finally:
        torch.set_default_dtype(torch.float32)
    assert not any(note.startswith(AS_IT_IS) for note in prepared.notes)
    assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))


def test_small_gradients_of_float16_extractors_are_scaled():
    extractor = tiny("ce")
    with torch.no_grad():
        extractor.fc3.weight.mul_(1e-4)
        extractor.fc3.bias.zero_()
    x = embedding()
    _, wanted = autograd(extractor, x, TARGET)
    _, got = prepare(extractor.half(), x.half()).value_and_grad(x.half(), TARGET)
    cosine = F.cosine_similarity(got.flatten(1).double(), wanted.flatten(1).double())
    assert got.dtype == torch.float32 and (cosine > 0.98).all()


@pytest.mark.parametrize("precision", ["float64", "half", None])
def test_an_unknown_precision_is_refused(precision):
    with pytest.raises(ValueError, match=r"^precision: expected one of 'float32'"):
        prepare(tiny("ce"), embedding(), precision=precision)


def test_no_parameters_at_all():
    extractor = Of(lambda self, x: (x**3 / 3).sum(dim=(2, 3)))
    x = embedding()
    value, gradient = prepare(extractor, x).value_and_grad(x, TARGET)
    torch.testing.assert_close(value, (x**3 / 3).sum(dim=(2, 3))[[0, 1, 2], TARGET])
    wanted = torch.zeros_like(x)
    wanted[[0, 1, 2], TARGET] = x[[0, 1, 2], TARGET] ** 2
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_extractor_of_buffers_alone_has_their_dtype(dtype):
    extractor = Of(lambda self, x: torch.tanh(x.flatten(1)) @ self.rows)
    extractor.register_buffer("rows", torch.randn(FEATURES, 4, dtype=dtype))
    prepared = prepare(extractor, embedding(dtype=dtype))
    assert prepared.dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)
    assert prepared.value_and_grad(embedding(dtype=dtype), TARGET)[1].dtype == wide


def by_value() -> nn.Module:
    def forward(self, x):
        h = self.head(F.relu(self.conv(x)).flatten(1))
        return h if x.sum() < 1e9 else -h

    return Of(forward, conv=conv(), head=linear(8 * GRID * GRID))


class Counting(Convolutional):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


class Stochastic(Convolutional):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5))  # also in eval mode: `training` is True by default


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, result: result * 2)
    return layer


class Remembering(Convolutional):
    """Writes into one of its buffers at each call."""

    def __init__(self, *sizes) -> None:
        super().__init__(*sizes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


ALONE = "autograd over the extractor as it is, image by image"
FALL_BACK = {  # extractor, the note's beginning and the reason in it
    "a value decides": (by_value, (ALONE, "its forward depends on values")),
    "it keeps state": (lambda: Counting(CHANNELS, 4), (ALONE, "its forward depends on values or keeps state")),
    "it writes into a buffer": (lambda: Remembering(CHANNELS, 4), (ALONE, "it writes into a tensor of its own")),
    "it is random": (lambda: Stochastic(CHANNELS, 4), (ALONE, "it is random")),
    "statistics of the batch": (
        lambda: ended(lambda self, x: self.norm(self.conv(x)), conv=conv(), norm=norm(track_running_stats=False)),
        (ALONE, "the images of a batch change each other's results"),
    ),
    "images by their mean": (
        lambda: ended(lambda self, x: torch.tanh(self.conv(x * x.mean(0))), conv=conv()),
        (ALONE, "the images of a batch change each other's results"),
    ),
    "a logit that grows with the batch": (
        lambda: ended(lambda self, x: self.conv(x) * len(x), conv=conv()),
        (ALONE, "the number of images decides what it computes"),
    ),
    "a backward pass of its own": (
        lambda: ended(lambda self, x: Rounded.apply(4 * self.conv(x)), conv=conv()),
        (AS_IT_IS, "it has a backward pass of its own"),
    ),
    "hooks on the backward pass": (lambda: guided(), (AS_IT_IS, "it has hooks on a module's backward pass")),
    "a hook on a gradient": (
        lambda: ended(lambda self, x: doubling(self.conv(x)), conv=conv()),
        (AS_IT_IS, "it hangs a hook on a gradient"),
    ),
}


def doubling(h: Tensor) -> Tensor:
    h.register_hook(lambda gradient: 2 * gradient)
    return h


@pytest.mark.parametrize("name", FALL_BACK)
def test_an_extractor_that_cannot_be_split_falls_back_with_the_reason(name):
    make, (start, reason) = FALL_BACK[name]
    extractor, x = make().eval(), embedding()
    state = {name: value.clone() for name, value in extractor.state_dict().items()}
    prepared = prepare(extractor, x)
    (note,) = prepared.notes
    assert note.startswith(start) and reason in note and prepared.head is None
    half = prepare(extractor, x, precision="bfloat16")
    if name not in ("it keeps state", "it writes into a buffer", "it is random"):
        assert_gradients_agree(extractor, prepared)
        assert half.dtype == torch.bfloat16
    assert next(extractor.parameters()).dtype == torch.float32
    if isinstance(extractor, Remembering | Counting):
        assert extractor.calls == 0
    assert all(torch.equal(value, state[name]) for name, value in extractor.state_dict().items())


def gated_without_gradient(self, x):
    with torch.no_grad():
        gate = torch.sigmoid(self.second(x))
    return self.first(x) * gate


class Rounded(torch.autograd.Function):
    """The straight-through estimator: forward rounds, backward lets pass."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, upstream):
        return upstream


def guided() -> nn.Module:
    """Guided backpropagation in its usual form: hooks on the ReLUs."""
    extractor = ended(
        lambda self, x: self.act2(self.second(self.act1(self.first(x)))),
        first=conv(),
        act1=nn.ReLU(),
        second=conv(8),
        act2=nn.ReLU(),
    )
    for act in (extractor.act1, extractor.act2):
        act.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0].clamp(min=0),))
    return extractor


def hooked_head() -> nn.Module:
    extractor = ended(lambda self, x: self.conv(x), conv=conv())
    hooked(extractor.head)
    return extractor


def hooked_first() -> nn.Module:
    extractor = ended(lambda self, x: self.conv(x), conv=conv(size=1))
    extractor.conv.register_forward_hook(lambda module, inputs, result: F.relu(result))
    return extractor


class Magnitude(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def parametrized(part: str, *, normed: bool) -> nn.Module:
    extractor = ended(lambda self, x: self.norm(self.conv(x)), conv=conv(), norm=norm() if normed else nn.Identity())
    parametrize.register_parametrization(extractor.conv, part, Magnitude())
    return extractor


def unscripted() -> nn.Module:
    return nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), linear(8 * GRID * GRID)).eval()


# A factory, and what went wrong before prepare() checked gradients, if anything.
USER_MODULES = {
    "relu in place after the first layer": (
        lambda: ended(lambda self, x: self.act(self.conv(x)), conv=conv(), act=nn.ReLU(inplace=True)),
        "RuntimeError in smoothgrad: the body writes into a leaf",
    ),
    "relu in place after a folded norm": (
        lambda: nn.Sequential(conv(), norm(), nn.ReLU(inplace=True), nn.Flatten(), linear(8 * GRID * GRID)),
        "RuntimeError in smoothgrad: the body writes into a leaf",
    ),
    "relu in place as a method": (
        lambda: ended(lambda self, x: self.conv(x).relu_(), conv=conv()),
        "RuntimeError in smoothgrad: the body writes into a leaf",
    ),
    "view behind a convolution": (
        lambda: Of(
            lambda self, x: self.head(F.relu(self.conv(x)).view(x.size(0), -1)), conv=conv(), head=linear(8 * GRID**2)
        ),
        "left as it is, or an error: channels-last has no such view",
    ),
    "view of the embedding": (
        lambda: Of(lambda self, x: self.head(torch.tanh(x.view(x.size(0), -1))), head=linear(FEATURES)),
        "RuntimeError in prepare: the embedding is made channels-last, which view cannot flatten",
    ),
    "view where a value decides": (
        lambda: Of(
            lambda self, x: self.head((torch.tanh(x) if x.sum() < 1e9 else x).view(len(x), -1)), head=linear(FEATURES)
        ),
        "RuntimeError in prepare: the embedding is made channels-last, which view cannot flatten",
    ),
    "tokens first": (
        lambda: Of(
            lambda self, x: self.head(F.gelu(self.proj(x.flatten(2).permute(2, 0, 1))).mean(0)),
            proj=linear(CHANNELS, 8),
            head=linear(8),
        ),
        "RuntimeError in smoothgrad: hoisting beyond where the batch moved",
    ),
    "all images' tokens in one matrix": (
        lambda: Of(
            lambda self, x: self.head(
                F.gelu(self.proj(x.permute(0, 2, 3, 1).reshape(-1, CHANNELS))).view(-1, 64, 8).mean(1)
            ),
            proj=linear(CHANNELS, 8),
            head=linear(8),
        ),
        "RuntimeError in smoothgrad: hoisting beyond where the batch moved",
    ),
    "a part without gradient": (
        lambda: ended(gated_without_gradient, first=conv(), second=conv(seed=8)),
        "wrong: tracing loses torch.no_grad, and only logits are tried out",
    ),
    "a function with a backward of its own": (
        lambda: ended(lambda self, x: Rounded.apply(4 * self.conv(x)), conv=conv()),
        "wrong: tracing loses the backward, and only logits are tried out",
    ),
    "gradients changed by hooks": (guided, "wrong: the fused ReLUs' hooks are lost, and only logits are tried out"),
    "a folded layer changed by a hook": (
        lambda: ended(lambda self, x: self.norm(self.conv(x)), conv=conv(), norm=hooked(norm())),
        None,
    ),
    "a fused layer changed by a hook": (
        lambda: ended(lambda self, x: F.relu(self.first(x)) * 2, first=hooked(conv())),
        None,
    ),
    "logits changed by a hook": (hooked_head, "wrong: the head's hooks run when tried out, not for its rows"),
    "the first layer changed by a hook": (hooked_first, "wrong: it is taken for affine in spite of the hook"),
    "weight norm under BatchNorm": (
        lambda: ended(lambda self, x: self.norm(self.conv(x)), conv=parametrizations.weight_norm(conv()), norm=norm()),
        "KeyError in prepare: folding into a parametrized weight",
    ),
    "parametrized weight": (
        lambda: parametrized("weight", normed=False),
        "RuntimeError in prepare: a parametrized module cannot be copied",
    ),
    "parametrized bias": (
        lambda: parametrized("bias", normed=False),
        "RuntimeError in prepare: a parametrized module cannot be copied",
    ),
    "parametrized weight under BatchNorm": (
        lambda: parametrized("weight", normed=True),
        "KeyError in prepare: folding into a parametrized weight",
    ),
    "spectral norm on the head": (
        lambda: Of(
            lambda self, x: self.head(torch.tanh(x).flatten(1)), head=parametrizations.spectral_norm(linear(FEATURES))
        ),
        None,
    ),
    "weight norm by hooks": (
        lambda: ended(lambda self, x: self.norm(self.conv(x)), conv=nn.utils.weight_norm(conv()), norm=norm()),
        "RuntimeError in prepare: a weight that a hook computed cannot be copied",
    ),
    "a scripted module": (
        lambda: torch.jit.script(unscripted()),
        "RuntimeError in prepare: scripted modules take no hooks",
    ),
    "a traced module": (lambda: torch.jit.trace(unscripted(), embedding()), None),
    "a compiled module": (
        lambda: torch.compile(unscripted(), backend="eager"),
        "an error in prepare: the measuring hook cannot be compiled",
    ),
    "attention": (
        lambda: Of(
            lambda self, x: self.head(self.layer(self.proj(x.flatten(2).transpose(1, 2))).mean(1)),
            proj=linear(CHANNELS, 8),
            layer=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            head=linear(8),
        ),
        None,
    ),
    "an argument that has a default": (
        lambda: type(
            "Masked", (Convolutional,), {"forward": lambda self, x, mask=None: Convolutional.forward(self, x)}
        )(CHANNELS, 4),
        None,
    ),
    "halves of a layer": (
        lambda: ended(lambda self, x: F.glu(self.conv(x), dim=1), conv=conv(outputs=16)),
        None,
    ),
    "sums in place": (
        lambda: ended(
            lambda self, x: operator.iadd(self.second(torch.tanh(x)), self.first(x)), first=conv(), second=conv()
        ),
        None,
    ),
    "sums of affine layers in place": (
        lambda: ended(lambda self, x: operator.iadd(self.second(x), self.first(x)), first=conv(), second=conv(seed=8)),
        None,
    ),
    "a result of relu in place that nobody reads": (
        lambda: Of(
            lambda self, x: (lambda h: (self.act(h), self.head(h.flatten(1)))[1])(self.conv(x)),
            conv=conv(),
            act=nn.ReLU(inplace=True),
            head=linear(8 * GRID**2),
        ),
        None,
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("copies", [FEW, MANY])
@pytest.mark.parametrize("name", USER_MODULES)
def test_user_modules_work(name, copies):
    torch.manual_seed(3)
    extractor = USER_MODULES[name][0]().eval()
    assert_gradients_agree(extractor, prepare(extractor, embedding(), copies=copies))


@pytest.mark.parametrize("make", [lambda: Convolutional(CHANNELS, 4), lambda: nn.Sequential(nn.Flatten(), linear(320))])
def test_training_mode_is_refused_and_left_unchanged(make):
    extractor = make().train()
    state = copy.deepcopy(extractor.state_dict())
    with pytest.raises(ValueError, match=r"^extractor: expected eval mode"):
        prepare(extractor, embedding())
    assert all(module.training for module in extractor.modules())
    assert all(torch.equal(value, state[name]) for name, value in extractor.state_dict().items())


@pytest.mark.parametrize("output", [lambda y: (y,), lambda y: y[:, :, None], lambda y: y.sum()])
def test_outputs_other_than_logits_are_refused(output):
    extractor = Of(lambda self, x: output(self.head(x.flatten(1))), head=linear(FEATURES))
    try:
        notes = prepare(extractor, embedding()).notes
    except (TypeError, ValueError) as error:
        assert str(error).startswith("extractor: expected")
    else:
        assert "its output is not [B, classes]" in notes[0]


def test_the_prepared_smoothgrad_and_tsv_equal_the_public_ones():
    from cortex_fast import ops, smoothgrad

    extractor, x = tiny("ce"), embedding()
    spread = x.flatten(1).amax(1) - x.flatten(1).amin(1)
    stream = NoiseStream(0.2 * spread, torch.arange(3), 7, True, True)
    prepared = prepare(extractor, x, copies=3 * 24)
    options = {"num_samples": 24, "seed": 7, "antithetic": True}
    gradient = prepared.smoothgrad(x, TARGET, stream, num_samples=24)
    torch.testing.assert_close(gradient, smoothgrad(extractor, x, TARGET, **options))
    for reduction in ("absmax", "mean"):
        tsv = prepared.token_saliency(x, TARGET, stream, num_samples=24, reduction=reduction)
        torch.testing.assert_close(tsv, ops.token_saliency(gradient[:, None], reduction=reduction))
        torch.testing.assert_close(tsv, token_saliency(extractor, x, TARGET, reduction=reduction, **options))
    assert prepared.smoothgrad(x[:0], TARGET[:0], stream).shape == (0, CHANNELS, GRID, GRID)


def test_cubic_gradients_by_hand():
    extractor, x = Cubic(CHANNELS, 4).eval(), embedding()
    value, gradient = prepare(extractor, x).value_and_grad(x, TARGET)
    a = extractor.a.detach()[TARGET]
    torch.testing.assert_close(gradient, a[:, :, None, None] * x**2)
    torch.testing.assert_close(value, (a * (x**3 / 3).sum(dim=(2, 3))).sum(1))


@pytest.fixture(scope="module")
def model():
    return zoo.load()


@pytest.mark.parametrize("kind", ["ce", "re"])
def test_top_tokens_of_the_bundled_model_equal_those_of_torchs_convolutions(model, kind):
    """The 20 tokens of largest TSV, by Winograd's convolutions and by torch's."""
    labels = torch.arange(6) * 2
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(len(model.vqgm.codebook), (6, 16, 16), generator=generator)
    tokens = model.vqgm.sample(labels, seed=5) if kind == "ce" else tokens
    x = model.vqgm.codebook[tokens].permute(0, 3, 1, 2)
    extractor = model.extractors[kind]
    direct, fast = prepare(extractor, x, copies=FEW), prepare(extractor, x)
    assert "by torch" in direct.notes[-1] and "Winograd" in fast.notes[-1]
    by_torch, by_winograd = (token_saliency(p, x, labels, num_samples=20, seed=3) for p in (direct, fast))
    assert relative(by_winograd, by_torch) < 1e-3
    ranks = [torch.argsort(torch.argsort(tsv.flatten(1), dim=1), dim=1).double() for tsv in (by_torch, by_winograd)]
    for pair in zip(*ranks, strict=True):
        assert torch.corrcoef(torch.stack(pair))[0, 1] > 0.9999
    top = [top_tokens(tsv, tokens, 20)[1] for tsv in (by_torch, by_winograd)]
    same = [len(set(first.tolist()) & set(second.tolist())) for first, second in zip(*top, strict=True)]
    assert min(same) >= 19 and sum(same) >= 119  # the last token may change places with one that ties
