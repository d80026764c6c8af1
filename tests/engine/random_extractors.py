"""Random extractors, [B,d,h,w] -> logits [B,classes], as hypothesis draws (and shrinks) them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from tests.engine import random_layers as layers
from tests.engine.random_layers import Step

PLAIN, GATE, MIXING, DECIDING = "plain", "gate", "mixing", "deciding"
CLASSES = 3
Shape = tuple[int, int, int]  # channels, rows, columns


@dataclass(frozen=True)
class Case:
    """An extractor in eval mode, its inputs and settings.

    kind: PLAIN, or the reason why no fixed graph is the same function of each image. x float32 [B,d,h,w]: images of
    different scales; target int64 [B]. copies: `prepare`'s; at_once: the copies of a pass, None for all. samples,
    alpha, shared, antithetic, seed: the noise. output: the part of the extractor's result that holds the logits.
    """

    kind: str
    extractor: nn.Module
    x: Tensor
    target: Tensor
    copies: int
    at_once: int | None
    samples: int
    alpha: float
    shared: bool
    antithetic: bool
    seed: int
    output: str | int | None

    def __repr__(self) -> str:
        how = {name: value for name, value in vars(self).items() if name not in ("extractor", "x", "target")}
        return f"{how}, x {list(self.x.shape)}, target {self.target.tolist()}, {self.extractor}"

    def _repr_pretty_(self, printer, cycle: bool) -> None:
        """For hypothesis, which would print every tensor."""
        printer.text(repr(self))


@st.composite
def cases(draw, wrapped: bool = False) -> Case:
    """wrapped: the extractor returns its logits as a part of its result."""
    kind = draw(st.sampled_from([PLAIN] * 7 + [GATE, MIXING, DECIDING]))
    channels = draw(st.sampled_from([4, 6, 8]))
    shape = (channels, draw(st.integers(5, 8)), draw(st.integers(5, 8)))
    seed = draw(st.integers(0, 999))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        extractor = _network(draw, shape, kind)
        output = None
        if wrapped:
            function, output = draw(
                st.sampled_from([(layers.as_object, None), (layers.as_dict, "scores"), (layers.as_tuple, 1)])
            )
            extractor = Step(function, inner=extractor)
        _randomise(extractor)
        scales = draw(st.sampled_from([(0.1, 8.0), (8.0, 0.1), (0.1, 1.0, 8.0), (1.0, 8.0, 0.1), (8.0, 1.0, 0.1)]))
        x = torch.randn(len(scales), *shape) * torch.tensor(scales)[:, None, None, None]
    antithetic = draw(st.booleans())
    return Case(
        kind=kind,
        extractor=extractor.eval(),
        x=x,
        target=torch.tensor([draw(st.integers(0, CLASSES - 2)) for _ in scales]),
        copies=draw(st.sampled_from([1, 10_000])),
        at_once=draw(st.sampled_from([None, 1, 2, 3])),
        samples=2 if antithetic else draw(st.integers(1, 3)),
        alpha=draw(st.sampled_from([0.2, 0.0])),
        shared=draw(st.booleans()),
        antithetic=antithetic,
        seed=seed,
        output=output,
    )


def _randomise(extractor: nn.Module) -> None:
    """Statistics and affine parts as training would leave them."""
    with torch.no_grad():
        for module in extractor.modules():
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if getattr(module, "running_var", None) is not None:
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.3, 2)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm | nn.InstanceNorm2d):
                if weight is not None:
                    weight.normal_(1, 0.4)
                if bias is not None:
                    bias.normal_(0, 0.3)


class _Builder:
    """The layers so far. writable: whether the next layer may write into their result."""

    def __init__(self, draw, shape: Shape, writable: bool) -> None:
        self.draw, self.shape, self.writable = draw, shape, writable
        self.layers: list[nn.Module] = []

    def one_of(self, *choices):
        return self.draw(st.sampled_from(choices))

    def add(self, layer: nn.Module, *, writable: bool = False, shape: Shape | None = None) -> None:
        self.layers.append(layer)
        self.writable, self.shape = writable, shape or self.shape

    def make_writable(self) -> None:
        """Writing into a tensor that autograd has saved, or that others read, is an error, or the user's concern."""
        if not self.writable:
            self.add(Step(layers.scaled), writable=True)

    def network(self) -> nn.Module:
        return self.layers[0] if len(self.layers) == 1 else nn.Sequential(*self.layers)


def _network(draw, shape: Shape, kind: str) -> nn.Module:
    builder = _Builder(draw, shape, writable=True)
    special = {GATE: _gate, MIXING: _mixing, DECIDING: _deciding}
    makers = [draw(st.sampled_from(_SPATIAL)) for _ in range(draw(st.integers(0, 5)))]
    if kind in special:
        makers.insert(draw(st.integers(0, len(makers))), special[kind])
    for maker in makers:
        maker(builder)
    features = _flatten(builder)
    for _ in range(draw(st.integers(0, 1))):
        features = _flat(builder, features)
    _head(builder, features)
    return nn.Sequential(*builder.layers)


# Layers [B,C,h,w] -> [B,C',h',w']


def _conv(b: _Builder) -> None:
    """A convolution; half of them are supported by ops.conv3x3."""
    channels, height, width = b.shape
    outputs = b.one_of(4, 6, 8)
    if b.draw(st.booleans()):
        options = {"kernel_size": 3, "padding": b.one_of(1, "same"), "bias": b.draw(st.booleans())}
    else:
        size = b.one_of(1, 3, 2, 5)
        dilation = b.one_of(1, 2) if size == 3 else 1
        reach = dilation * (size - 1)
        padding = b.one_of(reach // 2, "same", "valid", reach)
        groups = b.one_of(1, 2, channels)
        options = {
            "kernel_size": size,
            "dilation": dilation,
            "padding": padding,
            "groups": groups,
            "stride": b.one_of(1, 2) if padding != "same" else 1,
            "padding_mode": b.one_of("zeros", "reflect", "replicate", "circular"),
            "bias": b.draw(st.booleans()),
        }
        outputs = outputs if groups < 3 else channels
        taken = {"same": reach, "valid": 0}.get(padding, 2 * padding if isinstance(padding, int) else 0)
        if min(height, width) + taken - reach < 4 or reach >= min(height, width):
            options |= {"padding": "same", "stride": 1, "padding_mode": "zeros"}
    layer: nn.Module = nn.Conv2d(channels, outputs, **options)
    with torch.no_grad():
        size = layer(torch.zeros(1, channels, height, width)).shape[2:]
    if min(size) < 2:
        return
    b.add(_parametrized(b, layer), writable=True, shape=(outputs, *size))


def _parametrized(b: _Builder, layer: nn.Module) -> nn.Module:
    """The layer, in one of eight cases parametrized."""
    if b.draw(st.integers(0, 7)) < 7:
        return layer
    how = b.one_of("weight_norm", "spectral_norm", "custom", "old weight_norm", "old spectral_norm")
    if how == "custom":
        parametrize.register_parametrization(layer, "weight", layers.Halved())
        return layer
    if how.startswith("old"):
        with torch.no_grad():  # the weight is then no result of autograd's, and can be copied
            layer = getattr(nn.utils, how[4:])(layer).eval()
            hook = next(iter(layer._forward_pre_hooks.values()))
            hook(layer, ())  # spectral_norm sets it at the first call
            return layer
    return getattr(parametrizations, how)(layer.eval())


def _transposed(b: _Builder) -> None:
    channels, height, width = b.shape
    if max(height, width) > 6:
        return _conv(b)
    layer = nn.ConvTranspose2d(channels, 4, 3, padding=1, stride=b.one_of(1, 2))
    with torch.no_grad():
        size = layer(torch.zeros(1, channels, height, width)).shape[2:]
    return b.add(layer, writable=True, shape=(4, *size))


def _norm(b: _Builder) -> None:
    channels, height, width = b.shape
    affine = b.draw(st.booleans())
    makers: list[Callable[[], nn.Module]] = [
        lambda: nn.BatchNorm2d(channels, affine=affine),
        lambda: nn.BatchNorm2d(channels, affine=affine),
        lambda: nn.GroupNorm(2, channels, affine=affine),
        lambda: nn.GroupNorm(1, channels, affine=affine),
        lambda: nn.LayerNorm([channels, height, width], elementwise_affine=affine),
        lambda: nn.InstanceNorm2d(channels, affine=affine),
        lambda: nn.InstanceNorm2d(channels, affine=affine, track_running_stats=True),
        lambda: nn.LocalResponseNorm(2),
        lambda: Step(layers.channels_last_norm, norm=nn.LayerNorm(channels, elementwise_affine=affine)),
        lambda: Step(b.one_of(*layers.NORMS_BY_HAND)),
    ]
    b.add(b.one_of(*makers)(), writable=False)


_MODULES: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    lambda: nn.LeakyReLU(0.1),
    nn.ELU,
    nn.GELU,
    lambda: nn.GELU("tanh"),
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Tanh,
    nn.Sigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.PReLU,
    nn.RReLU,
    nn.Softsign,
)
_MODULES_IN_PLACE: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.ReLU(inplace=True),
    lambda: nn.ReLU6(inplace=True),
    lambda: nn.LeakyReLU(0.1, inplace=True),
    lambda: nn.SiLU(inplace=True),
    lambda: nn.ELU(inplace=True),
    lambda: nn.Hardtanh(inplace=True),
)


def _activation(b: _Builder) -> None:
    if b.draw(st.booleans()):
        b.add(b.one_of(*_MODULES)())
    else:
        b.add(Step(b.one_of(*layers.ACTIVATIONS)))


def _crelu(b: _Builder) -> None:
    channels, *size = b.shape
    if channels > 8:
        return _activation(b)
    return b.add(Step(layers.crelu), shape=(2 * channels, *size))


def _in_place(b: _Builder) -> None:
    b.make_writable()
    which = b.draw(st.integers(0, 4))
    if which == 0:
        b.add(b.one_of(*_MODULES_IN_PLACE)())
    elif which == 1:
        b.add(Step(layers.module_statement, act=b.one_of(*_MODULES_IN_PLACE)()))
    else:
        b.add(Step(b.one_of(*layers.IN_PLACE)))


def _pool(b: _Builder) -> None:
    channels, height, width = b.shape
    if min(height, width) < 4:
        return _activation(b)
    makers: list[Callable[[], nn.Module]] = [
        lambda: nn.MaxPool2d(2),
        lambda: nn.MaxPool2d(3, stride=2, padding=1),
        lambda: nn.MaxPool2d(2, stride=1),
        lambda: nn.MaxPool2d(3, stride=2, ceil_mode=True),
        lambda: nn.AvgPool2d(2),
        lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        lambda: nn.AdaptiveAvgPool2d(3),
        lambda: nn.AdaptiveMaxPool2d((2, 3)),
        lambda: nn.LPPool2d(2, 2),
        lambda: nn.Upsample(scale_factor=0.5, mode="bilinear"),
    ]
    layer = b.one_of(*makers)()
    size = layer(torch.zeros(1, channels, height, width)).shape[2:]
    return b.add(layer, writable=isinstance(layer, nn.AvgPool2d | nn.AdaptiveAvgPool2d), shape=(channels, *size))


def _residual(b: _Builder) -> None:
    channels = b.shape[0]
    function = b.one_of(*layers.RESIDUALS, layers.squeezed, layers.residual_overwritten, layers.checkpointed)
    if function is layers.squeezed:
        return b.add(Step(function, first=nn.Linear(channels, 4), second=nn.Linear(4, channels)))
    if function is layers.residual_overwritten:
        b.make_writable()
    inner = _Builder(b.draw, b.shape, writable=False)
    for maker in b.draw(st.lists(st.sampled_from([_norm, _activation, _constant, _reshape]), max_size=1)):
        maker(inner)
    if inner.shape[1:] != b.shape[1:]:  # a grid that was turned over
        inner.add(Step(layers.swapped), shape=b.shape)
    inner.add(_parametrized(b, nn.Conv2d(channels, channels, *b.one_of((3, 1, 1), (1,)), groups=b.one_of(1, 2))))
    inplace = {"act": nn.ReLU(inplace=True)} if function is layers.residual_overwritten else {}
    return b.add(Step(function, inner=inner.network(), **inplace), writable=function is layers.residual)


def _reshape(b: _Builder) -> None:
    channels, height, width = b.shape
    function = b.one_of(*layers.RESHAPES, layers.mixed, layers.channels_last_linear, layers.indexed, layers.shuffled)
    held: dict[str, object] = {}
    shape = b.shape
    if function in (layers.swapped, layers.permuted):
        shape = (channels, width, height)
    elif function is layers.mixed:
        held = {"weight": nn.Parameter(0.4 * torch.randn(channels, channels))}
    elif function is layers.channels_last_linear:
        function = b.one_of(layers.channels_last_linear, layers.every_position)
        held = {"linear": nn.Linear(channels, channels)}
    elif function is layers.indexed:
        held = {"order": torch.arange(channels).flip(0)}
    b.add(Step(function, **held), shape=shape)


def _resize(b: _Builder) -> None:
    channels, height, width = b.shape
    function = b.one_of(layers.padded, layers.cropped, layers.strided, layers.padded)
    if function is layers.padded:
        b.add(Step(function), shape=(channels, height + 1, width + 1))
    elif function is layers.cropped and min(height, width) > 3:
        b.add(Step(function), shape=(channels, height - 1, width - 1))
    elif min(height, width) > 4:
        b.add(Step(function), shape=(channels, (height + 1) // 2, (width + 1) // 2))


def _constant(b: _Builder) -> None:
    which = b.draw(st.integers(0, 6))
    if which == 0:
        step = Step(layers.with_buffer)
        step.register_buffer("scale", torch.rand(b.shape[0], 1, 1) + 0.5)
        step.register_buffer("shift", torch.randn(b.shape[0], 1, 1), persistent=False)
        b.add(step, writable=True)
    elif which == 1:
        b.add(Step(layers.with_attribute, factor=torch.rand(b.shape[0], 1, 1) + 0.5))
    elif which == 2:
        b.add(Step(layers.with_constant))
    elif which == 3:
        b.add(Step(layers.with_table, table=None))
    else:
        b.add(Step(b.one_of(*layers.CONSTANTS)))


def _watcher(b: _Builder) -> None:
    function = b.one_of(*layers.WATCHERS)
    held: dict[str, object] = {"channels": b.shape[0]} if function.__name__.startswith("shape") else {}
    held |= {layers.listed: {"seen": []}, layers.named: {"by_name": {}}, layers.stored: {"features": None}}.get(
        function, {}
    )
    b.add(Step(function, **held))


def _hooked(b: _Builder) -> None:
    layer = b.one_of(
        lambda: nn.Conv2d(b.shape[0], b.shape[0], 3, padding=1), nn.ReLU, lambda: nn.BatchNorm2d(b.shape[0])
    )()
    hook = b.one_of(layers.doubling, layers.watching, layers.shifting)
    if hook is layers.shifting:
        layer.register_forward_pre_hook(hook)
    else:
        layer.register_forward_hook(hook)
    b.add(layer)


def _dropout(b: _Builder) -> None:
    b.add(b.one_of(nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity)())


def _attention(b: _Builder) -> None:
    channels, height, width = b.shape
    if height * width > 36:
        return _pool(b)
    function = b.one_of(
        layers.attended, layers.attended_tokens_first, layers.mlp_mixer, nn.TransformerEncoderLayer, *layers.ATTENTIONS
    )
    if function is nn.TransformerEncoderLayer:
        activation = b.one_of("relu", "gelu")
        inner: nn.Module = function(
            channels, 2, 6, activation=activation, batch_first=True, norm_first=b.draw(st.booleans())
        )
    elif function is layers.attended:
        layer = nn.MultiheadAttention(channels, 2, batch_first=True, add_bias_kv=b.draw(st.booleans()))
        inner = Step(function, layer=layer, weights=b.draw(st.booleans()))
    elif function is layers.attended_tokens_first:
        inner = Step(function, layer=nn.MultiheadAttention(channels, 2))
    elif function is layers.mlp_mixer:
        inner = Step(function, across=nn.Linear(height * width, height * width), along=nn.Linear(channels, channels))
    else:
        inner = Step(function, qkv=nn.Linear(channels, 3 * channels), causal=b.draw(st.booleans()))
    return b.add(Step(layers.tokens, inner=inner))


_SPATIAL = (
    *[_conv] * 6,
    *[_norm] * 4,
    *[_activation] * 4,
    *[_in_place] * 4,
    *[_residual] * 3,
    *[_pool] * 2,
    *[_reshape] * 2,
    _resize,
    _attention,
    _constant,
    _watcher,
    _hooked,
    _dropout,
    _transposed,
    _crelu,
)


# Layers that are not the same fixed graph for each image


def _gate(b: _Builder) -> None:
    function = b.one_of(*layers.GATES)
    held = {"gate": nn.Conv2d(b.shape[0], 1, 1)} if function is layers.no_grad_gate else {}
    b.add(Step(function, **held))


def _mixing(b: _Builder) -> None:
    which = b.draw(st.integers(0, 4))
    if which == 0:
        b.add(nn.BatchNorm2d(b.shape[0], track_running_stats=False))
    elif which == 1:
        b.add(Step(layers.flattened_batch, layer=nn.MultiheadAttention(b.shape[0], 2)))
    else:
        b.add(Step(b.one_of(*layers.MIXING)))


def _deciding(b: _Builder) -> None:
    b.add(Step(b.one_of(*layers.DECIDING)))


# The end


def _flatten(b: _Builder) -> int:
    """Adds a layer to [B,F]; returns F."""
    channels, height, width = b.shape
    which = b.draw(st.integers(0, 5))
    if which < 2:
        b.add(nn.Flatten() if which else Step(b.one_of(*layers.FLATTENINGS)))
        return channels * height * width
    if which == 2:
        b.add(Step(layers.deviations))
        return 2 * channels
    if which == 3:
        b.add(Step(layers.weighed, score=nn.Conv2d(channels, 1, 1)))
        return channels
    if which == 4 and height * width <= 36:
        layer = nn.TransformerEncoderLayer(channels, 2, 6, batch_first=True)
        b.add(Step(layers.class_token, token=nn.Parameter(torch.randn(1, 1, channels)), layer=layer))
        return channels
    b.add(Step(b.one_of(*layers.POOLINGS)))
    return channels


def _flat(b: _Builder, features: int) -> int:
    b.add(_parametrized(b, nn.Linear(features, 8, bias=b.draw(st.booleans()))), writable=True)
    norm = b.one_of(None, lambda: nn.BatchNorm1d(8), lambda: nn.LayerNorm(8))
    if norm is not None:
        b.add(norm(), writable=True)
    if b.draw(st.booleans()):
        b.add(b.one_of(*_MODULES_IN_PLACE)())
    else:
        b.add(b.one_of(*_MODULES)())
    b.add(nn.Dropout(0.3))
    return 8


def _head(b: _Builder, features: int) -> None:
    function = b.one_of(*layers.HEADS)
    if function in (layers.head_function, layers.head_product, layers.head_cosine):
        held: dict[str, object] = {"weight": nn.Parameter(torch.randn(CLASSES, features) / features**0.5)}
        held |= {} if function is layers.head_cosine else {"bias": nn.Parameter(torch.randn(CLASSES))}
    else:
        held = {"fc": _parametrized(b, nn.Linear(features, CLASSES))}
        held |= {"fc2": nn.Linear(features, CLASSES)} if function is layers.head_of_two else {}
    b.add(held["fc"] if function is layers.head else Step(function, **held))
