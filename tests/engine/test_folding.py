"""Folding: the extractor's function, in float64, with fewer layers; the extractor stays unchanged."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cortex_fast.engine.errors import UntraceableError
from cortex_fast.engine.folding import without_bias
from cortex_fast.engine.graphs import Graph
from cortex_fast.engine.norms import Norm, normalise_by_statistics
from cortex_fast.extractors import NAMES
from tests.engine.user_modules import CHANNELS, GRID, Of, conv, embedding, ended, folded, linear, norm
from tests.known_extractors import Convolutional, tiny

FEATURES = CHANNELS * GRID * GRID


def twice_normed() -> nn.Module:
    return ended(
        lambda self, x: self.first(self.conv(x)) + self.second(self.conv(x)), conv=conv(), first=norm(), second=norm()
    )


def read_elsewhere() -> nn.Module:
    def body(self, x):
        h = self.conv(x)
        return self.norm(h) * h

    return ended(body, conv=conv(), norm=norm())


def norm_used_twice() -> nn.Module:
    def body(self, x):
        return self.norm(self.first(x)) - self.norm(self.second(x))

    return ended(body, first=conv(seed=5), second=conv(seed=6), norm=norm())


def layer_and_weight() -> nn.Module:
    def body(self, x):
        return self.norm(self.conv(x)) * self.conv.weight.sum()

    return ended(body, conv=conv(), norm=norm())


def flat(**options) -> nn.Module:
    return Of(
        lambda self, x: self.head(F.relu(self.norm(self.first(x.flatten(1))))),
        first=linear(FEATURES, 8, **options),
        norm=norm(flat=True),
        head=linear(8),
    )


def over_time() -> nn.Module:
    """BatchNorm1d behind Conv1d is not folded, and must not be mistaken for a norm behind a linear layer."""
    return Of(
        lambda self, x: self.head(F.relu(self.norm(self.conv(x.flatten(2)))).mean(2)),
        conv=nn.Conv1d(CHANNELS, 8, 3),
        norm=norm(flat=True),
        head=linear(8),
    )


class Attentive(nn.Module):
    """Parameters and buffers that the forward reads itself, some of them nested."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.gate = nn.Parameter(torch.randn(1, CHANNELS, 1, 1))
        self.register_buffer("shift", torch.randn(1, CHANNELS, GRID, GRID))
        self.head = linear(FEATURES)

    def forward(self, x):
        return self.head(torch.tanh(x * self.inner.gate + self.shift).flatten(1))


HANDWRITTEN = {  # extractor, number of BatchNorms that stay
    "norm after a convolution": (Convolutional(CHANNELS, 4), 0),
    "without bias": (ended(lambda self, x: self.norm(self.conv(x)), conv=conv(bias=False), norm=norm()), 0),
    "norm without affine": (ended(lambda self, x: self.norm(self.conv(x)), conv=conv(), norm=norm(affine=False)), 0),
    "grouped and strided": (
        ended(
            lambda self, x: self.norm(self.conv(x)), 10 * 16, conv=conv(outputs=10, groups=5, stride=2), norm=norm(10)
        ),
        0,
    ),
    "other epsilon": (ended(lambda self, x: self.norm(self.conv(x)), conv=conv(), norm=norm(eps=0.5)), 0),
    "norm after a linear layer": (flat(), 0),
    "norm after a linear layer without bias": (flat(bias=False), 0),
    "norm after a one-dimensional convolution": (over_time(), 1),
    "norm before anything": (
        ended(lambda self, x: self.conv(self.norm(x)), conv=conv(), norm=norm(CHANNELS)),
        1,
    ),
    "two norms in a row": (
        ended(lambda self, x: self.second(self.first(self.conv(x))), conv=conv(), first=norm(), second=norm(seed=9)),
        0,
    ),
    "norm of the batch's own statistics": (
        ended(lambda self, x: self.norm(self.conv(x)), conv=conv(), norm=norm(track_running_stats=False)),
        1,
    ),
    "a layer used twice": (twice_normed(), 0),
    "a result read elsewhere": (read_elsewhere(), 1),
    "a norm used twice": (norm_used_twice(), 0),
    "a weight read elsewhere": (layer_and_weight(), 0),
    "functional norm": (
        ended(
            lambda self, x: F.batch_norm(self.conv(x), self.norm.running_mean, self.norm.running_var),
            conv=conv(),
            norm=norm(),
        ),
        0,
    ),
    "dropouts of all kinds": (
        ended(
            lambda self, x: F.alpha_dropout(
                F.dropout2d(F.dropout(self.second(self.first(self.conv(x))), 0.5, self.training), training=False),
                training=False,
            ),
            conv=conv(),
            first=nn.Dropout2d(),
            second=nn.Sequential(nn.AlphaDropout(), nn.Identity(), nn.FeatureAlphaDropout()),
        ),
        0,
    ),
    "nested sequences": (
        nn.Sequential(
            nn.Sequential(nn.Sequential(conv(), norm()), nn.Sequential()),
            nn.ModuleList([nn.ReLU()])[0],
            nn.Sequential(nn.Flatten(), nn.Dropout(), linear(8 * GRID * GRID)),
        ),
        0,
    ),
    "the shape read": (
        ended(lambda self, x: self.norm(self.conv(x)).reshape(x.shape[0], -1), conv=conv(), norm=norm()),
        0,
    ),
    "parameters and buffers read by the forward": (Attentive(), 0),
    "no parameters": (Of(lambda self, x: (x**3).mean(dim=(2, 3))), 0),
}


def norms_in(graph: Graph) -> int:
    """The number of BatchNorms that were not folded, by running statistics or by the batch's."""
    by_statistics = graph.graph.find_nodes(op="call_function", target=normalise_by_statistics)
    return len([module for module in graph.modules() if isinstance(module, Norm)]) + len(by_statistics)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("batch", [1, 3])
def test_folded_extractors_compute_the_same(kind, batch):
    extractor, x = tiny(kind).double(), embedding(batch, dtype=torch.float64)
    result = folded(extractor)
    torch.testing.assert_close(result(x), extractor(x), rtol=1e-10, atol=1e-12)
    assert norms_in(result) == 0 and not [node for node in result.graph.nodes if "dropout" in str(node.target)]


@pytest.mark.parametrize("name", HANDWRITTEN)
def test_folded_handwritten_modules_compute_the_same(name):
    extractor, norms = HANDWRITTEN[name]
    extractor = copy.deepcopy(extractor).eval().double()
    result = folded(extractor)
    for batch in (1, 4):
        x = embedding(batch, dtype=torch.float64)
        torch.testing.assert_close(result(x), extractor(x), rtol=1e-10, atol=1e-12)
    assert norms_in(result) == norms
    assert not [node for node in result.graph.nodes if "dropout" in str(node.target)]


def by_value(self, x):
    return self.head(x.flatten(1)) if x.sum() > 0 else -self.head(x.flatten(1))


def by_number(self, x):
    return self.head(torch.tanh(x * x.tolist()[0][0][0][0]).flatten(1))


def by_length(self, x):
    return torch.stack([self.head(image.flatten()) for image in x])


def failing(self, x):
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("function", "error", "reason"),
    [
        (by_value, UntraceableError, "depends on values"),
        (by_number, UntraceableError, "depends on values"),
        (by_length, UntraceableError, "number of images decides"),
        (failing, KeyError, "no such thing"),
    ],
)
def test_untraceable_forwards_raise_the_reason(function, error, reason):
    with pytest.raises(error, match=reason):
        folded(Of(function, head=linear(FEATURES)))


def test_an_argument_with_a_default_is_allowed():
    class Masked(Convolutional):
        def forward(self, x, mask=None):
            return super().forward(x)

    extractor, x = Masked(CHANNELS, 4).eval().double(), embedding(dtype=torch.float64)
    torch.testing.assert_close(folded(extractor)(x), extractor(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", NAMES)
def test_the_extractor_stays_unchanged(kind):
    extractor = tiny(kind)
    next(extractor.parameters()).requires_grad_(False)
    calls = []
    next(module for module in extractor.modules() if isinstance(module, nn.Linear)).register_forward_hook(
        lambda *_: calls.append(1)
    )
    state = {name: (value, value.clone()) for name, value in extractor.state_dict(keep_vars=True).items()}
    modules = dict(extractor.named_modules())
    flags = {name: (p.requires_grad, p.is_leaf) for name, p in extractor.named_parameters()}
    hooks = {name: len(module._forward_hooks) for name, module in modules.items()}
    wanted = extractor(embedding())
    before = len(calls)

    folded(extractor)(embedding())

    after = extractor.state_dict(keep_vars=True)
    assert list(after) == list(state)
    assert all(after[name] is tensor and torch.equal(tensor, copied) for name, (tensor, copied) in state.items())
    assert {name: (p.requires_grad, p.is_leaf) for name, p in extractor.named_parameters()} == flags
    assert dict(extractor.named_modules()) == modules
    assert {name: len(module._forward_hooks) for name, module in modules.items()} == hooks
    assert not any(module.training for module in modules.values())
    calls.clear()
    assert torch.equal(extractor(embedding()), wanted) and len(calls) == before


def test_unfolded_layers_share_their_weights():
    extractor = Convolutional(CHANNELS, 4).eval()
    result = folded(extractor)
    shared = {parameter.data_ptr() for parameter in result.parameters()}
    assert extractor.head.weight.data_ptr() in shared
    addresses = {parameter.data_ptr() for parameter in extractor.parameters()}
    merged = [parameter for name, parameter in result.named_parameters() if name.startswith("conv")]
    assert len(merged) == 2
    assert not any(parameter.requires_grad or parameter.data_ptr() in addresses for parameter in merged)


@pytest.mark.parametrize("layer", [conv(), conv(bias=False), linear(GRID), nn.AvgPool2d(2), nn.Flatten()])
def test_the_linear_part_of_a_layer_is_the_layer_less_its_value_at_zero(layer):
    part, x = without_bias(layer), embedding()
    torch.testing.assert_close(part(x), layer(x) - layer(torch.zeros_like(x)))
    assert not part(torch.zeros_like(x)).any()
    if isinstance(layer, nn.Conv2d):
        assert part.weight is layer.weight and len(list(layer.parameters())) in (1, 2)
