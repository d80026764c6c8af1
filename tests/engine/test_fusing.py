"""Fusing: which convolutions, ReLUs and poolings become a single operator; the function stays the same."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cortex_fast.engine.fusing import Convolution, fuse
from cortex_fast.extractors import NAMES
from cortex_fast.kernels import native
from tests.engine.user_modules import CHANNELS, conv, embedding, ended, folded, norm, relative
from tests.known_extractors import tiny

PLAIN, RELU, BOTH = (False, False), (True, False), (True, True)  # relu, pool of a fused convolution
HALF = 8 * 4 * 4  # features of eight channels after pooling


def pooled(**options):
    return ended(
        lambda self, x: self.pool(F.relu(self.conv(x))),
        8 * options.pop("size", 4) ** 2,
        conv=conv(),
        pool=nn.MaxPool2d(**options),
    )


def pooled_by(function, features=HALF):
    return ended(lambda self, x: function(F.relu(self.conv(x))), features, conv=conv())


def after_relu(relu, **modules):
    return ended(lambda self, x: relu(self, self.conv(x)) * 2, conv=conv(), **modules)


def reading_twice(self, x):
    h = F.relu(self.conv(x))
    return F.max_pool2d(h, 2) + F.avg_pool2d(h, 2)


def reading_before_relu(self, x):
    h = self.conv(x)
    return F.relu(h) + h


def padded_with(mode):
    return ended(lambda self, x: self.conv(x) * 2, conv=conv(padding_mode=mode))


CASES = {  # extractor, (relu, pool) of its fused convolutions
    "convolution alone": (ended(lambda self, x: self.conv(x) * 2, conv=conv()), [PLAIN]),
    "convolution without bias": (ended(lambda self, x: self.conv(x) * 2, conv=conv(bias=False)), [PLAIN]),
    "padding in words": (ended(lambda self, x: self.conv(x) * 2, conv=conv(padding="same")), [PLAIN]),
    "relu as a function": (after_relu(lambda self, h: F.relu(h)), [RELU]),
    "relu of torch": (after_relu(lambda self, h: torch.relu(h)), [RELU]),
    "relu as a method": (after_relu(lambda self, h: h.relu()), [RELU]),
    "relu as a module": (after_relu(lambda self, h: self.act(h), act=nn.ReLU()), [RELU]),
    "relu in place": (after_relu(lambda self, h: self.act(h), act=nn.ReLU(inplace=True)), [RELU]),
    "relu in place as a function": (after_relu(lambda self, h: F.relu(h, inplace=True)), [RELU]),
    "relu in place as a method": (after_relu(lambda self, h: h.relu_()), [RELU]),
    "other activations": (after_relu(lambda self, h: F.gelu(h) + F.relu6(self.second(h)), second=conv(8)), [PLAIN] * 2),
    "folded norm between": (
        ended(lambda self, x: F.relu(self.norm(self.conv(x))) * 2, conv=conv(), norm=norm()),
        [RELU],
    ),
    "norm that stays between": (
        ended(
            lambda self, x: F.relu(self.norm(self.conv(x))) * 2,
            conv=conv(),
            norm=norm(track_running_stats=False),
        ),
        [PLAIN],
    ),
    "pooling as a module": (pooled(kernel_size=2), [BOTH]),
    "pooling as a function": (pooled_by(lambda h: F.max_pool2d(h, 2)), [BOTH]),
    "pooling with its stride": (pooled_by(lambda h: F.max_pool2d(h, (2, 2), (2, 2))), [BOTH]),
    "pooling by keywords": (pooled_by(lambda h: F.max_pool2d(h, kernel_size=2, stride=None, padding=0)), [BOTH]),
    "pooling without relu": (
        ended(lambda self, x: F.max_pool2d(self.conv(x), 2), HALF, conv=conv()),
        [PLAIN],
    ),
    "overlapping pooling": (pooled(kernel_size=2, stride=1, size=7), [RELU]),
    "pooling of three": (pooled(kernel_size=3, stride=2, size=3), [RELU]),
    "padded pooling": (pooled(kernel_size=2, padding=1, size=5), [RELU]),
    "dilated pooling": (pooled(kernel_size=2, dilation=2, size=3), [RELU]),
    "pooling rounded up": (pooled(kernel_size=2, ceil_mode=True), [RELU]),
    "pooling by a function rounded up": (pooled_by(lambda h: F.max_pool2d(h, 2, ceil_mode=True)), [RELU]),
    "pooling by a function of another stride": (pooled_by(lambda h: F.max_pool2d(h, 2, 3), 8 * 9), [RELU]),
    "pooling by a function with positions": (pooled_by(lambda h: F.max_pool2d(h, 2, return_indices=True)[0]), [BOTH]),
    "mean pooling": (pooled_by(lambda h: F.avg_pool2d(h, 2)), [RELU]),
    "relu read twice": (ended(reading_twice, HALF, conv=conv()), [RELU]),
    "convolution read twice": (ended(reading_before_relu, conv=conv()), [PLAIN]),
    "a layer used twice": (
        ended(lambda self, x: F.relu(self.conv(F.relu(self.conv(x)))) * 2, CHANNELS * 64, conv=conv(outputs=CHANNELS)),
        [RELU, RELU],
    ),
    "two in a row": (
        ended(lambda self, x: self.second(F.relu(self.first(x))), first=conv(), second=conv(8)),
        [RELU, RELU],
    ),
    "stride": (ended(lambda self, x: self.conv(x) * 2, HALF, conv=conv(stride=2)), []),
    "dilation alone": (ended(lambda self, x: self.conv(x) * 2, 8 * 36, conv=conv(dilation=2, padding=1)), []),
    "dilation": (ended(lambda self, x: self.conv(x) * 2, conv=conv(dilation=2, padding=2)), []),
    "groups": (
        ended(lambda self, x: self.conv(x) * 2, CHANNELS * 64, conv=conv(outputs=CHANNELS, groups=CHANNELS)),
        [],
    ),
    "no padding": (ended(lambda self, x: self.conv(x) * 2, 8 * 36, conv=conv(padding=0)), []),
    "more padding": (ended(lambda self, x: self.conv(x) * 2, 8 * 100, conv=conv(padding=2)), []),
    "padding at two sides": (ended(lambda self, x: self.conv(x) * 2, 8 * 48, conv=conv(padding=(1, 0))), []),
    "padding 'valid'": (ended(lambda self, x: self.conv(x) * 2, 8 * 36, conv=conv(padding="valid")), []),
    "circular padding": (padded_with("circular"), []),
    "reflecting padding": (padded_with("reflect"), []),
    "filters of 1 x 1": (ended(lambda self, x: self.conv(x) * 2, conv=conv(size=1)), []),
    "filters of 5 x 5": (ended(lambda self, x: self.conv(x) * 2, conv=conv(size=5)), []),
    "filters of 3 x 1": (
        ended(lambda self, x: self.conv(x) * 2, conv=nn.Conv2d(CHANNELS, 8, (3, 1), padding=(1, 0))),
        [],
    ),
    "transposed convolution": (
        ended(lambda self, x: self.conv(x) * 2, conv=nn.ConvTranspose2d(CHANNELS, 8, 3, padding=1)),
        [],
    ),
    "convolution as a function": (
        ended(lambda self, x: F.conv2d(x, self.conv.weight, padding=1) * 2, conv=conv()),
        [PLAIN],
    ),
}
IN_EXTRACTORS = {
    "ce": [RELU] * 3 + [BOTH] + [RELU] * 3 + [BOTH],
    "ce_deep": ([RELU] * 3 + [BOTH]) * 2 + [RELU] * 2,
    "re": [PLAIN] + [RELU, PLAIN] * 2 + [PLAIN] + [RELU, PLAIN] * 2,  # strided convolutions stay
    "te": [],
}


def fused(module: nn.Module) -> list[tuple[bool, bool]]:
    """(relu, pool) in the graph's order."""
    steps = [module.get_submodule(node.target) for node in module.graph.find_nodes(op="call_module")]
    return [(step.relu, step.pool) for step in steps if isinstance(step, Convolution)]


def assert_same_function(extractor, replaced, x) -> None:
    """Logits and input gradients against the extractor in float64."""
    inputs = [x.clone().requires_grad_(True), x.double().requires_grad_(True)]
    outputs = [replaced(inputs[0]), copy.deepcopy(extractor).double()(inputs[1])]
    gradients = [torch.autograd.grad(y[:, 1].sum(), leaf)[0] for y, leaf in zip(outputs, inputs, strict=True)]
    assert relative(outputs[0].detach(), outputs[1].detach()) < 1e-5
    assert relative(*gradients) < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_replaced_layers(name):
    extractor, wanted = CASES[name]
    extractor.eval()
    replaced = folded(extractor)
    assert fuse(replaced) == len(wanted)
    assert fused(replaced) == wanted
    assert_same_function(extractor, replaced, embedding())


@pytest.mark.parametrize("kind", NAMES)
def test_replaced_layers_of_the_extractors(kind):
    extractor = tiny(kind)
    replaced = folded(extractor)
    assert fuse(replaced) == len(IN_EXTRACTORS[kind])
    assert fused(replaced) == IN_EXTRACTORS[kind]
    assert_same_function(extractor, replaced, embedding())


@pytest.mark.parametrize("grid", [5, 7])
def test_odd_grids_lose_their_last_row_and_column_to_pooling(grid):
    extractor = ended(lambda self, x: F.max_pool2d(F.relu(self.conv(x)), 2), 8 * (grid // 2) ** 2, conv=conv())
    replaced = folded(extractor, grid)
    assert fuse(replaced) == 1 and fused(replaced) == [BOTH]
    assert_same_function(extractor, replaced, embedding(grid=grid))


def test_the_extractors_layers_stay_in_the_extractor():
    extractor = ended(lambda self, x: self.act(self.conv(x)), conv=conv(), act=nn.ReLU())
    layers = dict(extractor.named_modules())
    replaced = folded(extractor)
    fuse(replaced)
    assert dict(extractor.named_modules()) == layers
    assert not any(isinstance(module, nn.Conv2d | nn.ReLU) for module in replaced.modules())


@pytest.mark.skipif(native.UNAVAILABLE is not None, reason=str(native.UNAVAILABLE))
def test_fused_convolutions_are_native_in_float32_and_keep_bits():
    replaced = folded(tiny("ce"))
    fuse(replaced)
    saved: list[torch.Tensor] = []
    x = embedding().requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        replaced(x)
    layers = [step.filters for step in replaced.modules() if isinstance(step, Convolution)]
    assert {filters.backend for filters in layers} == {"native"}
    weights = {t.data_ptr() for filters in layers for t in (filters.weight, filters.winograd_transposed)}
    images = [tensor for tensor in saved if tensor.ndim == 4 and tensor.data_ptr() not in weights]
    assert {tensor.dtype for tensor in images} == {torch.uint8}
