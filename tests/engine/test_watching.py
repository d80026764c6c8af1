"""Changes of the weights since an extractor was prepared are noticed, however they were written."""

import pytest
import torch
from torch import nn

from cortex_fast.engine import prepare
from tests.engine.test_prepared import TARGET, shared
from tests.engine.user_modules import embedding
from tests.known_extractors import tiny


def scaled(extractor):
    extractor.fc1.weight.data.mul_(-3)


def filter_zeroed(extractor):
    next(m for m in extractor.modules() if isinstance(m, nn.Conv2d)).weight.data[1] = 0


def copied(extractor):
    extractor.fc2.bias.data.copy_(torch.randn(len(extractor.fc2.bias)))


def buffer_swapped(extractor):
    norm = next(m for m in extractor.modules() if isinstance(m, nn.BatchNorm2d))
    norm.running_mean = norm.running_mean + 1


def buffer_written(extractor):
    next(m for m in extractor.modules() if isinstance(m, nn.BatchNorm2d)).running_var.data[0] = 9


def parameter_swapped(extractor):
    extractor.fc1.weight = nn.Parameter(extractor.fc1.weight.detach().clone())


def layer_swapped(extractor):
    extractor.add_module("extra", nn.Identity())


def loaded(extractor):
    extractor.load_state_dict({name: value + 1 for name, value in extractor.state_dict().items()})


@pytest.mark.parametrize(
    "change",
    [scaled, filter_zeroed, copied, buffer_swapped, buffer_written, parameter_swapped, layer_swapped, loaded],
)
def test_a_change_is_noticed(change):
    extractor, x = tiny("ce"), embedding()
    prepared = prepare(extractor, x)
    prepared.value_and_grad(x, TARGET)
    change(extractor)
    for call in (prepared.value_and_grad, lambda x, t: prepared.smoothgrad(x, t, shared())):
        with pytest.raises(ValueError, match=r"^extractor: its weights changed"):
            call(x, TARGET)


def test_unchanged_weights_are_accepted():
    extractor, x = tiny("ce"), embedding()
    with torch.no_grad():
        extractor.fc1.weight[0, 0] = torch.nan  # equal to itself, in this comparison
    extractor.register_buffer("strided", torch.arange(12.0).view(3, 4).T)
    extractor.register_buffer("expanded", torch.ones(1).expand(5))
    extractor.register_buffer("complex", torch.ones(2, dtype=torch.complex64))
    extractor.register_buffer("flags", torch.zeros(3, dtype=torch.bool))
    extractor.register_buffer("empty", torch.zeros(0))
    prepared = prepare(extractor, x)
    extractor.requires_grad_(False)
    prepared.check_weights()
