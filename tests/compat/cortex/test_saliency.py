"""The published code's SmoothGrad against formulas and plain autograd."""

import copy

import pytest
import torch
from torch import nn

from cortex_fast.compat.cortex import AverageSaliency, SingleSaliency
from tests.known_extractors import Cubic, Linear, tiny


def embedding(batch=3, channels=5, grid=8):
    return torch.randn(batch, channels, grid, grid, generator=torch.Generator().manual_seed(0))


def by_autograd(model, x, targets):
    x = x.clone().requires_grad_(True)
    rows = [torch.autograd.grad(model(x)[i, t], x)[0][i] for i, t in enumerate(targets)]
    return torch.stack(rows)


def test_the_mean_over_noise_is_the_analytic_one_with_the_batchs_range():
    model, x = Cubic(2, 3).eval(), embedding(2, 2, 4) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    got = SingleSaliency(model).get_average_grad(x, torch.tensor([1, 2]), stdev_spread=0.3, nsamples=1000)
    s = 0.3 * (x.max() - x.min())
    a = model.a.detach()[1:3].view(2, 2, 1, 1)
    bound = 5 * a * s * (4 * x**2 + 2 * s**2).sqrt() / 1000**0.5
    assert got.dtype == torch.float64 and got.shape == x.shape and not got.requires_grad
    assert ((got - a * (x**2 + s**2)).abs() <= bound).all()


def test_images_have_different_noise():
    x = embedding(1, 2, 4).repeat(2, 1, 1, 1)
    first, second = AverageSaliency(Cubic(2, 3).eval()).get_average_grad(x, [1, 1])
    assert (first - second).abs().max() > 0.1


@pytest.mark.parametrize("name", ["ce", "te"])
def test_gradients_without_noise_are_autograds(name):
    model, x, targets = tiny(name), embedding(), torch.tensor([2, 0, 3])
    saliency, expected = AverageSaliency(model, output_index=1), by_autograd(model, x, [2, 0, 3])
    torch.testing.assert_close(saliency.get_grad(x, targets), expected, rtol=1e-3, atol=1e-5)
    calm = saliency.get_average_grad(x, targets, stdev_spread=0.0, nsamples=2)
    torch.testing.assert_close(calm.float(), expected, rtol=1e-3, atol=1e-5)


def test_torchs_seed_decides_the_noise_and_calls_differ():
    saliency, x = AverageSaliency(tiny("ce")), embedding()
    maps = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        maps.append(saliency.get_average_grad(x, [0, 1, 2]))
    assert maps[0].equal(maps[1]) and not maps[0].equal(maps[2])
    assert not maps[2].equal(saliency.get_average_grad(x, [0, 1, 2]))


def test_a_model_is_prepared_again_when_its_weights_change_and_so_are_copies():
    model, x = tiny("ce"), embedding()
    saliency = AverageSaliency(model)
    before = saliency.get_grad(x, [0, 1, 2])
    other = copy.deepcopy(model)
    with torch.no_grad():
        model.fc3.weight.mul_(2)
        other.fc3.weight.mul_(3)
    torch.testing.assert_close(saliency.get_grad(x, [0, 1, 2]), 2 * before, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(AverageSaliency(other).get_grad(x, [0, 1, 2]), 3 * before, rtol=1e-3, atol=1e-6)


class Mixing(nn.Module):
    """BatchNorm in training mode: each image's logit depends on all of them."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(5, track_running_stats=False)

    def forward(self, x):
        return self.norm(x).square().mul(torch.linspace(1, 2, 64).view(8, 8)).sum(dim=(2, 3))


def test_any_module_works_also_in_training_mode_where_images_see_each_other():
    model, x = Mixing().train(), embedding()
    with pytest.warns(UserWarning, match="training mode"):
        got = AverageSaliency(model).get_average_grad(x, [2, 0, 3], stdev_spread=0.0, nsamples=2)
    torch.testing.assert_close(got.float(), by_autograd(model, x, [2, 0, 3]))


def test_a_subclass_may_override_the_gradient():
    class Doubled(SingleSaliency):
        def get_grad(self, input_images, target_indices):
            return 2 * super().get_grad(input_images, target_indices)

    model, x = Linear(5, 8, 6).eval(), embedding()
    expected = 2 * model.weight.detach()[[5, 0, 3]].view_as(x)
    torch.testing.assert_close(Doubled(model).get_average_grad(x, [5, 0, 3]).float(), expected)


def test_another_number_of_targets_than_images_is_refused():
    with pytest.raises(ValueError, match="target_indices: expected one for each of 3 images"):
        AverageSaliency(tiny("ce")).get_average_grad(embedding(), [0, 1])
