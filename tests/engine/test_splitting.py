"""Splitting: the parts in a row compute the graph, the prefix is affine in each image, the head computes rows."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cortex_fast.engine.splitting import SplitGraph, as_tuple, split
from cortex_fast.extractors import NAMES
from tests.engine.user_modules import CHANNELS, GRID, Of, conv, embedding, ended, folded, linear, norm
from tests.known_extractors import tiny

FEATURES = CHANNELS * GRID * GRID
TOKENS = GRID * GRID


def gated(self, x):
    return self.conv(x) * torch.sigmoid(x.mean(dim=(1, 2, 3), keepdim=True))


def residual(self, x):
    h = self.first(x)
    return h + self.second(h)


def of_tokens(arranged, reduced) -> nn.Module:
    """A linear layer for each token, then something that is not affine, and the mean over the tokens."""
    return Of(
        lambda self, x: self.head(reduced(F.gelu(self.proj(arranged(x))))), proj=linear(CHANNELS, 8), head=linear(8)
    )


HANDWRITTEN = {  # extractor, results of the prefix, layers in it, whether the last layer is a head
    "one affine layer": (ended(lambda self, x: self.conv(x), conv=conv()), 1, 1, True),
    "two in a row": (ended(lambda self, x: self.second(self.first(x)), first=conv(), second=conv(8)), 1, 2, True),
    "a layer behind a ReLU": (
        ended(lambda self, x: self.second(self.act(self.first(x))), first=conv(), act=nn.ReLU(), second=conv(8)),
        1,
        1,
        True,
    ),
    "a residual sum": (ended(residual, first=conv(), second=conv(8)), 1, 2, True),
    "a sum with the embedding": (
        ended(lambda self, x: torch.add(self.conv(x), x), FEATURES, conv=conv(outputs=CHANNELS)),
        1,
        1,
        True,
    ),
    "the embedding read twice": (ended(lambda self, x: self.conv(x) * x[:, :1], conv=conv()), 2, 1, True),
    "a gate": (ended(gated, conv=conv()), 2, 1, True),
    "pooling and flattening": (
        Of(
            lambda self, x: self.head(torch.tanh(self.first(self.pool(x).flatten(1)))),
            pool=nn.AvgPool2d(2),
            first=linear(CHANNELS * 16, 8),
            head=linear(8),
        ),
        1,
        1,
        True,
    ),
    "nothing affine first": (Of(lambda self, x: self.head(x.relu().flatten(1)), head=linear(FEATURES)), 1, 0, True),
    "not a sum with a constant": (ended(lambda self, x: self.conv(x) + 1, conv=conv()), 1, 1, True),
    "not a weighted sum": (
        ended(lambda self, x: torch.add(self.first(x), self.second(x), alpha=3), first=conv(), second=conv(seed=7)),
        2,
        2,
        True,
    ),
    "not a product": (
        ended(lambda self, x: self.first(x) * self.second(x), first=conv(), second=conv(seed=7)),
        2,
        2,
        True,
    ),
    "a shape that is read": (ended(lambda self, x: self.conv(x).reshape(x.shape[0], -1), conv=conv()), 1, 1, True),
    "tokens as rows": (of_tokens(lambda x: x.flatten(2).transpose(1, 2), lambda h: h.mean(dim=1)), 1, 1, True),
    "logits through a softmax": (
        Of(lambda self, x: F.log_softmax(self.head(F.relu(self.conv(x)).flatten(1)), 1), conv=conv(), head=linear(512)),
        1,
        1,
        False,
    ),
    "logits of two heads": (
        Of(
            lambda self, x: self.first(F.relu(x).flatten(1)) + self.second(F.tanh(x).flatten(1)),
            first=linear(FEATURES),
            second=linear(FEATURES),
        ),
        1,
        0,
        False,
    ),
    "logits read by themselves": (
        Of(lambda self, x: (lambda y: y - y.mean(1, True))(self.head(F.relu(x).flatten(1))), head=linear(FEATURES)),
        1,
        0,
        False,
    ),
    "logits of a weighted product": (
        Of(
            lambda self, x: torch.addmm(self.layer.bias, F.relu(x).flatten(1), self.layer.weight.t(), beta=2, alpha=3),
            layer=linear(FEATURES),
        ),
        1,
        0,
        False,
    ),
    "all affine": (nn.Sequential(conv(), nn.Flatten(), linear(512)), 1, 0, False),
    "one linear layer": (nn.Sequential(nn.Flatten(), linear(FEATURES)), 1, 0, False),
    "without a linear layer": (Of(lambda self, x: (x**3).mean(dim=(2, 3))), 1, 0, False),
}
AT_EXTRACTORS = {"ce": (1, 1), "ce_deep": (1, 1), "re": (2, 2), "te": (1, 1)}  # results of the prefix, layers in it

MIXED = {  # the batch is not the first dimension, or images are no longer separate
    "tokens first": of_tokens(lambda x: x.flatten(2).permute(2, 0, 1), lambda h: h.mean(0)),
    "tokens first by transpose": of_tokens(lambda x: x.flatten(2).transpose(1, 2).transpose(0, 1), lambda h: h.mean(0)),
    "as many tokens as images first, counted from the end": of_tokens(
        lambda x: F.avg_pool2d(x, (GRID, GRID // 2)).flatten(2).transpose(1, 2).transpose(-3, -2), lambda h: h.mean(0)
    ),
    "all images' tokens by flatten": of_tokens(
        lambda x: x.flatten(2).transpose(1, 2).flatten(0, 1), lambda h: h.view(-1, TOKENS, 8).mean(1)
    ),
    "all images' tokens by reshape": of_tokens(
        lambda x: x.permute(0, 2, 3, 1).reshape(-1, CHANNELS), lambda h: h.view(-1, TOKENS, 8).mean(1)
    ),
    "all images' tokens by torch.reshape": of_tokens(
        lambda x: torch.reshape(x.permute(0, 2, 3, 1), (-1, CHANNELS)), lambda h: h.view(-1, TOKENS, 8).mean(1)
    ),
    "a flattening module": Of(
        lambda self, x: self.head(F.gelu(self.proj(self.flat(x))).view(-1, 8 * CHANNELS)),
        flat=nn.Flatten(0, 1),
        proj=nn.Sequential(nn.Flatten(1), linear(TOKENS, 8)),
        head=linear(8 * CHANNELS),
    ),
}


def composed(parts: SplitGraph, x: Tensor) -> Tensor:
    h = parts.body(*as_tuple(parts.prefix(x)))
    return h if parts.head is None else parts.head(h)


def assert_parts_fit(extractor: nn.Module) -> SplitGraph:
    """The parts compute the extractor; the prefix is affine in each image alone, `linear_prefix` is its linear part."""
    extractor = extractor.eval().double()
    parts = split(folded(extractor))
    x, e = embedding(3, dtype=torch.float64), embedding(3, seed=1, dtype=torch.float64)
    torch.testing.assert_close(composed(parts, x), extractor(x), rtol=1e-10, atol=1e-12)
    both, alone, shift = (
        as_tuple(result) for result in (parts.prefix(x + 2 * e), parts.prefix(x), parts.linear_prefix(e))
    )
    assert len(both) == len(alone) == len(shift)
    for sum_result, x_result, e_result in zip(both, alone, shift, strict=True):
        assert len(sum_result) == 3
        torch.testing.assert_close(sum_result, x_result + 2 * e_result, rtol=1e-9, atol=1e-11)
    for image in range(3):
        for single, batch in zip(as_tuple(parts.prefix(x[image : image + 1])), alone, strict=True):
            torch.testing.assert_close(single[0], batch[image], rtol=1e-9, atol=1e-11)
    assert not any(result.any() for result in as_tuple(parts.linear_prefix(torch.zeros_like(x))))
    return parts


def layers(module: nn.Module) -> int:
    return len([layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)])


@pytest.mark.parametrize("kind", NAMES)
def test_the_parts_of_the_extractors_compute_the_extractors(kind):
    parts = assert_parts_fit(tiny(kind))
    x = embedding(dtype=torch.float64)
    assert (len(as_tuple(parts.prefix(x))), layers(parts.prefix)) == AT_EXTRACTORS[kind]
    assert parts.head is not None and parts.head.out_features == 4
    whole = layers(folded(tiny(kind)))
    assert layers(parts.prefix) + layers(parts.body) + 1 == whole


@pytest.mark.parametrize("name", HANDWRITTEN)
def test_the_parts_of_handwritten_modules_compute_the_modules(name):
    extractor, results, hoisted, head = HANDWRITTEN[name]
    parts = assert_parts_fit(extractor)
    assert len(as_tuple(parts.prefix(embedding(dtype=torch.float64)))) == results
    assert layers(parts.prefix) == layers(parts.linear_prefix) == hoisted
    assert (parts.head is not None) == head


@pytest.mark.parametrize("name", MIXED)
def test_layers_behind_a_moved_batch_dimension_are_not_hoisted(name):
    assert_parts_fit(MIXED[name])


def test_a_mean_over_the_images_is_not_hoisted():
    """No extractor of independent images has one, but one that has must get the same noise."""
    assert_parts_fit(ended(lambda self, x: self.conv(x).mean(0, keepdim=True) * x[:, :1], conv=conv()))


def test_the_head_is_the_last_linear_layer_itself_and_gives_rows():
    extractor = ended(lambda self, x: self.norm(self.conv(x)), conv=conv(), norm=norm())
    parts = split(folded(extractor))
    weight, bias = extractor.head.weight, extractor.head.bias
    assert (parts.head.weight.data_ptr(), parts.head.bias.data_ptr()) == (weight.data_ptr(), bias.data_ptr())
    x, target = embedding(), torch.tensor([2, 0, 3])
    h = parts.body(*as_tuple(parts.prefix(x)))
    rows = (h * parts.head.weight[target]).sum(dim=1) + parts.head.bias[target]
    torch.testing.assert_close(rows, extractor(x)[[0, 1, 2], target])


def test_parts_share_the_graphs_parameters():
    extractor = ended(lambda self, x: self.second(F.relu(self.first(x))), first=conv(), second=conv(8))
    parts = split(folded(extractor))
    (linear_layer,) = [layer for layer in parts.linear_prefix.modules() if isinstance(layer, nn.Conv2d)]
    assert linear_layer.weight.data_ptr() == extractor.first.weight.data_ptr()
    assert linear_layer.bias is None and extractor.first.bias is not None
    assert {p.data_ptr() for p in parts.body.parameters()} == {p.data_ptr() for p in extractor.second.parameters()}


@pytest.mark.parametrize("output", [lambda y: (y,), lambda y: {"logits": y}, lambda y: None])
def test_outputs_other_than_a_tensor_are_refused(output):
    with pytest.raises(TypeError, match=r"^extractor: expected a tensor of logits"):
        split(folded(Of(lambda self, x: output(self.head(x.flatten(1))), head=linear(FEATURES))))
