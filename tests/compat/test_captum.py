"""Captum's interface against Captum itself, with the same noise."""

import pytest
import torch
from captum.attr import IntegratedGradients, Saliency
from captum.attr import NoiseTunnel as CaptumNoiseTunnel
from torch import nn

from cortex_fast.compat.captum import NoiseTunnel, TokenSaliency
from tests.known_extractors import Cubic, tiny

B, N = 3, 7


def embedding():
    return torch.randn(B, 5, 8, 8, generator=torch.Generator().manual_seed(0))


def normals():
    return torch.randn(B, N, 5, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def captums_normals(monkeypatch):
    """Captum draws all samples in order: of each pass, image by image."""

    def hand(batch_size):
        parts = iter(normals().split(batch_size, dim=1))
        monkeypatch.setattr(torch, "normal", lambda mean, stdev: mean + stdev * next(parts).flatten(0, 1))

    return hand


@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_equal_to_captums_own_with_the_same_noise(captums_normals, nt_type, absolute, batch_size):
    model, x, target = tiny("ce"), embedding(), torch.tensor([2, 0, 3])
    settings = {"nt_type": nt_type, "nt_samples": N, "nt_samples_batch_size": batch_size, "stdevs": 0.4}
    captums_normals(batch_size or N)
    expected = CaptumNoiseTunnel(Saliency(model)).attribute(x, target=target, abs=absolute, **settings)
    tunnel = NoiseTunnel(Saliency(model))
    got = tunnel.attribute(x, target=target, abs=absolute, noise=normals(), **settings)
    assert tunnel.not_served is None
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def of_cubics(x, z, stdev, nt_type):
    """Of gradients a (x + stdev z)^2, which are positive, in float64."""
    gradients = (x.double()[:, None] + stdev * z.double()).square()
    if nt_type == "vargrad":
        return gradients.var(dim=1, unbiased=False)
    return (gradients if nt_type == "smoothgrad" else gradients.square()).mean(dim=1)


@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize(
    ("dtype", "stdev", "tolerance"),
    [
        (torch.bfloat16, 0.5, 0.02),
        (torch.float16, 0.5, 0.005),
        (torch.float32, 1e-4, 5e-3),  # the variance is 1e-8 of the mean's square
        (torch.float64, 1e-6, 1e-6),
    ],
)
def test_sums_keep_their_digits_in_every_dtype_and_batch(nt_type, dtype, stdev, tolerance):
    generator = torch.Generator().manual_seed(0)
    x = (1 + torch.rand(2, 2, 4, 4, generator=generator, dtype=torch.float64)).to(dtype)
    z = torch.randn(2, 700, 2, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    model = Cubic(2, 3).eval()
    with torch.no_grad():
        model.a.fill_(1.0)
    settings = {"target": 1, "nt_type": nt_type, "nt_samples": 700, "stdevs": stdev, "noise": z}
    tunnel, expected = NoiseTunnel(Saliency(model.to(dtype))), of_cubics(x, z, stdev, nt_type)
    got = [tunnel.attribute(x, nt_samples_batch_size=size, **settings) for size in (1, 130, None)]
    assert tunnel.not_served is None and {attribution.dtype for attribution in got} == {dtype}
    assert got[0].equal(got[1]) and got[0].equal(got[2])
    assert float((got[0].double() - expected).norm() / expected.norm()) < tolerance
    assert bool((got[0] >= 0).all())


@pytest.mark.parametrize("target", [1, [1, 1, 1], torch.tensor([1]), torch.tensor(1)])
def test_targets_as_captum_takes_them_and_a_tuple_of_one(target):
    model, x = tiny("ce"), embedding()
    (expected,) = CaptumNoiseTunnel(Saliency(model)).attribute((x,), stdevs=0.0, target=target)
    tunnel = NoiseTunnel(Saliency(model))
    (got,) = tunnel.attribute((x,), stdevs=0.0, target=target)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
    assert tunnel.not_served is None


@pytest.mark.parametrize("absolute", [True, False])
def test_drawn_noise_has_the_requested_stdev(absolute):
    model, x = Cubic(2, 3).eval(), embedding()[:2, :2, :4, :4]
    got = NoiseTunnel(Saliency(model)).attribute(x, target=1, stdevs=0.5, nt_samples=600, abs=absolute)
    a, s = model.a.detach()[1].view(1, 2, 1, 1), 0.5
    bound = 5 * a * s * (4 * x**2 + 2 * s**2).sqrt() / 600**0.5
    assert ((got - a * (x**2 + s**2)).abs() <= bound).all()


def test_torchs_seed_decides():
    tunnel, x, got = NoiseTunnel(Saliency(tiny("ce"))), embedding(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        got.append(tunnel.attribute(x, target=1))
    assert got[0].equal(got[1]) and not got[0].equal(got[2])


def test_captum_computes_what_the_engine_cannot_serve():
    model, x = tiny("ce"), embedding()
    torch.manual_seed(0)
    expected = CaptumNoiseTunnel(IntegratedGradients(model)).attribute(x, target=1, nt_samples=2, n_steps=3)
    tunnel = NoiseTunnel(IntegratedGradients(model))
    torch.manual_seed(0)
    assert tunnel.attribute(x, target=1, nt_samples=2, n_steps=3).equal(expected)
    assert tunnel.not_served == "the engine computes gradients, not IntegratedGradients"
    function = NoiseTunnel(Saliency(lambda x: model(x)))
    assert function.attribute(x, target=1, nt_samples=2).shape == x.shape
    assert function.not_served == "forward_func: the engine takes an nn.Module"
    training = NoiseTunnel(Saliency(nn.Sequential(model, nn.Dropout(0.1)).train()))
    assert training.attribute(x, target=1, nt_samples=2).shape == x.shape
    assert training.not_served == "the model is in training mode"
    with pytest.raises(ValueError, match="noise: expected None where Captum computes"):
        tunnel.attribute(x, target=1, noise=normals())


def test_any_change_of_a_model_prepares_it_again():
    model, x = tiny("ce"), embedding()
    tunnel = NoiseTunnel(Saliency(model))

    def hook():
        model.conv1_2.register_forward_hook(lambda module, inputs, output: output.square())

    changes = (
        lambda: model.conv1_2.weight.data.mul_(2),
        lambda: model.bn1_1.running_var.data.mul_(3),
        lambda: setattr(model.bn1_2, "eps", 0.5),
        lambda: setattr(model, "fc3", nn.Linear(model.fc3.in_features, 4).eval()),
        hook,
        lambda: setattr(model, "forward", lambda z, forward=model.forward: 3 * forward(z)),
    )
    before = tunnel.attribute(x, target=1, stdevs=0.0)
    for change in changes:
        change()
        got = tunnel.attribute(x, target=1, stdevs=0.0)
        expected = Saliency(model).attribute(x.clone().requires_grad_(True), target=1)
        assert tunnel.not_served is None and not torch.allclose(got, before, rtol=1e-2)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.max()))
        before = got


@pytest.mark.parametrize("samples", [N - 1, N + 1])
def test_normals_for_other_samples_and_a_negative_stdev_are_refused(samples):
    tunnel = NoiseTunnel(Saliency(tiny("ce")))
    message = rf"^noise: expected the shape of .*\[3, {samples}, 5, 8, 8\], got \[3, 7, 5, 8, 8\]"
    with pytest.raises(ValueError, match=message):
        tunnel.attribute(embedding(), target=1, nt_samples=samples, noise=normals())
    with pytest.raises(TypeError, match=r"^noise: expected a torch\.Tensor, got list"):
        tunnel.attribute(embedding(), target=1, nt_samples=N, noise=[1.0])
    with pytest.raises(ValueError, match=r"^stdevs: expected a number of at least 0, got -1"):
        tunnel.attribute(embedding(), target=1, stdevs=-1.0)


@pytest.mark.parametrize("batch_size", [None, 50])
def test_token_saliency_is_the_channels_largest_absolute_mean(batch_size):
    model, x = Cubic(2, 3).eval(), embedding()[:2, :2, :4, :4]
    got = TokenSaliency(model).attribute(x, 1, nt_samples=600, stdevs=0.5, nt_samples_batch_size=batch_size)
    a = model.a.detach()[1].view(1, 2, 1, 1)
    expected = (a * (x**2 + 0.25)).amax(dim=1)
    assert got.shape == (2, 4, 4)
    torch.testing.assert_close(got, expected, rtol=0.3, atol=0.3)
    whole = TokenSaliency(model).attribute(x, 1, nt_samples=600)  # sigma of each image's range
    sigma = 0.2 * (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(2, 1, 1, 1)
    torch.testing.assert_close(whole, (a * (x**2 + sigma**2)).amax(dim=1), rtol=0.3, atol=0.3)


@pytest.mark.parametrize("target", [[1], torch.tensor([1]), torch.tensor(1), [1, 1, 1]])
def test_token_saliency_takes_targets_as_captum_does(target):
    maps = []
    for form in (target, 1):
        torch.manual_seed(0)
        maps.append(TokenSaliency(tiny("ce")).attribute(embedding(), form, nt_samples=2))
    assert maps[0].equal(maps[1])


def test_bad_arguments_of_token_saliency_are_named():
    with pytest.raises(TypeError, match=r"forward_func: expected a torch\.nn\.Module, got function"):
        TokenSaliency(lambda x: x)
    with pytest.raises(ValueError, match=r"target: expected a class, or one for each image"):
        TokenSaliency(tiny("ce")).attribute(embedding(), None)
    with pytest.raises(ValueError, match=r"^target: expected values in \[0, 4\), got 9 to 9"):
        TokenSaliency(tiny("ce")).attribute(embedding(), 9)
    with pytest.raises(ValueError, match="forward_func: the model is in training mode"):
        TokenSaliency(tiny("ce").train()).attribute(embedding(), 1)
