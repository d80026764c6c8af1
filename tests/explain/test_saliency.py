"""SmoothGrad and TSV against formulas, one image at a time, and for every division of the work."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex_fast import smoothgrad, token_saliency, top_tokens
from cortex_fast.engine import prepare
from cortex_fast.extractors import NAMES
from cortex_fast.ops import smoothgrad_noise
from tests.known_extractors import Convolutional, Cubic, Linear, tiny


def embedding(batch=3, channels=5, grid=4, seed=0):
    return torch.randn(batch, channels, grid, grid, generator=torch.Generator().manual_seed(seed))


def test_the_gradient_of_a_linear_extractor_is_its_weight():
    extractor, x = Linear(5, 4, 6).eval(), embedding()
    target = torch.tensor([0, 5, 2])
    wanted = extractor.weight.detach()[target].view_as(x)
    torch.testing.assert_close(smoothgrad(extractor, x, target, num_samples=7), wanted)
    torch.testing.assert_close(token_saliency(extractor, x, target, num_samples=7), wanted.abs().amax(dim=1))
    torch.testing.assert_close(token_saliency(extractor, x, target, reduction="max"), wanted.amax(dim=1))
    torch.testing.assert_close(token_saliency(extractor, x, target, reduction="mean"), wanted.mean(dim=1))


@pytest.mark.parametrize("sigma_range", ["sample", "batch"])
@pytest.mark.parametrize("noise", ["shared", "independent"])
def test_the_mean_over_noise_is_the_analytic_one(sigma_range, noise):
    extractor, x = Cubic(2, 3).eval(), embedding(2, 2, 3) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    got = smoothgrad(extractor, x, 1, num_samples=4000, sigma_range=sigma_range, noise=noise, memory=1 << 16)
    spread = x.flatten(1).amax(1) - x.flatten(1).amin(1)
    sigma = 0.2 * (spread if sigma_range == "sample" else (x.max() - x.min()).expand(2))
    a = extractor.a.detach()[1].view(1, 2, 1, 1)
    wanted = a * (x**2 + sigma.view(2, 1, 1, 1) ** 2)
    # one draw's gradient a (x + s e)^2 has standard deviation a s sqrt(4 x^2 + 2 s^2); 5 standard errors of 4000
    s = sigma.view(2, 1, 1, 1)
    bound = 5 * a * s * (4 * x**2 + 2 * s**2).sqrt() / 4000**0.5
    assert ((got - wanted).abs() <= bound).all()


def test_equal_to_one_backward_pass_for_each_image_and_draw():
    """The published procedure, written out: one image, one noisy copy and one backward pass at a time."""
    extractor, x, target = Convolutional(5, 4).eval(), embedding(), torch.tensor([3, 0, 1])
    got = smoothgrad(extractor, x, target, num_samples=6, noise="independent", seed=9)
    spread = x.flatten(1).amax(1) - x.flatten(1).amin(1)
    noisy = smoothgrad_noise(x, 0.2 * spread, 6, seed=9)
    for image in range(3):
        total = torch.zeros(5, 4, 4, dtype=torch.float64)
        for sample in range(6):
            copy = noisy[image, sample][None].clone().requires_grad_(True)
            extractor(copy)[0, target[image]].backward()
            total += copy.grad[0].double()
        torch.testing.assert_close(got[image].double(), total / 6, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("noise", ["shared", "independent"])
def test_every_extractor_and_every_noise_by_the_published_procedure(kind, noise):
    """In float64, against gradients of the extractor itself, not of its prepared form."""
    extractor, x, target = tiny(kind).double(), embedding(grid=8).double(), torch.tensor([3, 0, 1])
    got = smoothgrad(extractor, x, target, num_samples=3, noise=noise, seed=9)
    spread = (x.flatten(1).amax(1) - x.flatten(1).amin(1)).float()
    items = torch.zeros(3, dtype=torch.int64) if noise == "shared" else torch.arange(3)
    noisy = smoothgrad_noise(x, 0.2 * spread, 3, seed=9, item_ids=items).requires_grad_(True)
    for image in range(3):
        for sample in range(3):
            extractor(noisy[image, sample][None])[0, target[image]].backward()
    wanted = noisy.grad.mean(dim=1)
    assert (got - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    tsv = token_saliency(extractor, x, target, num_samples=3, noise=noise, seed=9)
    assert (tsv - wanted.abs().amax(dim=1)).abs().max() <= 1e-6 * wanted.abs().max()


def test_antithetic_noise_cancels_odd_terms():
    """The gradient of Cubic is a (x + s e)^2: over a pair the term 2 x s e cancels and a (x^2 + s^2 e^2) stays."""
    extractor, x = Cubic(5, 3).eval(), embedding()
    got = smoothgrad(extractor, x, 1, num_samples=2, antithetic=True, seed=4)
    spread = (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(3, 1, 1, 1)
    drawn = smoothgrad_noise(torch.zeros_like(x[:1]), torch.ones(1), 1, seed=4)[:, 0]
    a = extractor.a.detach()[1].view(1, 5, 1, 1)
    torch.testing.assert_close(got, a * (x**2 + (0.2 * spread * drawn) ** 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_samples", [20, "auto"])
def test_a_prepared_extractor_gives_the_same_results(num_samples):
    extractor, x = tiny("re"), embedding(grid=8)
    options = {"num_samples": num_samples, "top_n": 5, "seed": 3}
    prepared = prepare(extractor, x)
    for function in (smoothgrad, token_saliency):
        wanted = function(extractor, x, 2, **options)
        torch.testing.assert_close(
            function(prepared, x, 2, **options), wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max()
        )
    with pytest.raises(ValueError, match=r"^target:"):
        smoothgrad(prepared, x, 4)
    extractor.fc1.train()
    with pytest.raises(ValueError, match=r"^extractor: expected eval mode"):
        smoothgrad(prepared, x, 2)


def test_auto_settles_and_names_bad_settings():
    extractor, x = Linear(5, 4, 6).eval(), embedding()
    wanted = extractor.weight.detach()[[2, 2, 2]].view_as(x)
    done = []
    torch.testing.assert_close(smoothgrad(extractor, x, 2, num_samples="auto", top_n=3, tick=done.append), wanted)
    assert sum(done) == 3
    with pytest.raises(ValueError, match=r"^top_n: expected a whole number from 1 to 16, got 20"):
        smoothgrad(extractor, x, 2, num_samples="auto")
    with pytest.raises(TypeError, match=r"^num_samples: .*'many'"):
        smoothgrad(extractor, x, 2, num_samples="many")


@settings(deadline=None, max_examples=15)
@given(
    st.integers(1, 5), st.integers(1, 6), st.integers(1, 40), st.sampled_from(["shared", "independent"]), st.booleans()
)
def test_results_do_not_depend_on_memory_and_batch(batch, samples, memory, noise, antithetic):
    extractor, x, target = Convolutional(5, 4).eval(), embedding(batch), torch.arange(batch) % 4
    arguments = {"num_samples": samples, "noise": noise, "antithetic": antithetic, "seed": 2}
    whole = token_saliency(extractor, x, target, **arguments)
    torch.testing.assert_close(token_saliency(extractor, x, target, memory=memory, **arguments), whole)
    last = batch - 1
    item_ids = torch.tensor([last])
    alone = token_saliency(extractor, x[last:], target[last:], item_ids=item_ids, memory=memory, **arguments)
    torch.testing.assert_close(alone[0], whole[last])


def test_seeds_repeat_and_differ():
    extractor, x = Convolutional(5, 4).eval(), embedding()
    first, again, other = (smoothgrad(extractor, x, 1, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_shared_noise_is_the_same_for_all_images():
    extractor, x = Convolutional(5, 4).eval(), embedding(1).expand(3, -1, -1, -1)
    shared = smoothgrad(extractor, x, 1, noise="shared")
    torch.testing.assert_close(shared[0], shared[2])
    independent = smoothgrad(extractor, x, 1, noise="independent")
    assert not torch.allclose(independent[0], independent[2])


def test_parameters_get_no_gradient_and_keep_their_flags():
    extractor = Convolutional(5, 4).eval()
    extractor.head.bias.requires_grad_(False)
    before = {name: p.requires_grad for name, p in extractor.named_parameters()}
    smoothgrad(extractor, embedding(), 0)
    assert all(p.grad is None for p in extractor.parameters())
    assert {name: p.requires_grad for name, p in extractor.named_parameters()} == before


def test_works_under_no_grad_and_inference_mode():
    extractor, x = Convolutional(5, 4).eval(), embedding()
    wanted = smoothgrad(extractor, x, 0)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(smoothgrad(extractor, x.clone(), torch.tensor([0, 0, 0])), wanted)


def test_constant_embedding_has_sigma_zero():
    extractor = Convolutional(5, 4).eval()
    x = torch.full((2, 5, 4, 4), 0.7)
    torch.testing.assert_close(
        smoothgrad(extractor, x, 1, num_samples=5), smoothgrad(extractor, x, 1, num_samples=1, alpha=0.0)
    )


def test_empty_batch():
    extractor, x = Convolutional(5, 4).eval(), torch.empty(0, 5, 4, 4)
    assert smoothgrad(extractor, x, 0).shape == (0, 5, 4, 4)
    assert token_saliency(extractor, x, torch.empty(0, dtype=torch.int64)).shape == (0, 4, 4)


def test_non_contiguous_and_half_precision():
    extractor, x = Convolutional(5, 4).eval(), embedding()
    strided = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.testing.assert_close(token_saliency(extractor, strided, 2), token_saliency(extractor, x, 2))
    for dtype in (torch.float16, torch.bfloat16):
        half = token_saliency(Convolutional(5, 4).eval().to(dtype), x.to(dtype), 2)
        assert half.dtype == torch.float32 and torch.isfinite(half).all()
    double = token_saliency(Convolutional(5, 4).eval().double(), x.double(), 2)
    assert double.dtype == torch.float64


GOOD = {"embedding": embedding(), "target": 1}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"embedding": torch.randn(5, 4, 4)}, "embedding"),
        ({"embedding": torch.ones(3, 5, 4, 4, dtype=torch.int64)}, "embedding"),
        ({"embedding": torch.full((3, 5, 4, 4), torch.inf)}, "embedding"),
        ({"embedding": torch.full((3, 5, 4, 4), torch.nan)}, "embedding"),
        ({"target": 4}, "target"),
        ({"target": -1}, "target"),
        ({"target": 1.0}, "target"),
        ({"target": torch.tensor([0, 1])}, "target"),
        ({"target": torch.tensor([0, 1, 4])}, "target"),
        ({"target": torch.tensor([0.0, 1.0, 2.0])}, "target"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": 2.5}, "num_samples"),
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"sigma_range": "image"}, "sigma_range"),
        ({"noise": "none"}, "noise"),
        ({"seed": -1}, "seed"),
        ({"item_ids": torch.tensor([0])}, "item_ids"),
        ({"memory": 0}, "memory"),
    ],
)
@pytest.mark.parametrize("function", [smoothgrad, token_saliency])
def test_bad_arguments_are_named(function, change, named):
    with pytest.raises((ValueError, TypeError), match=rf"^{named}:"):
        function(Convolutional(5, 4).eval(), **(GOOD | change))


def test_training_mode_is_refused():
    partly = Convolutional(5, 4).eval()
    partly.norm.train()
    for extractor in (Convolutional(5, 4).train(), partly):
        with pytest.raises(ValueError, match=r"^extractor: expected eval mode"):
            smoothgrad(extractor, embedding(), 0)


@pytest.mark.parametrize("output", [lambda y: (y,), lambda y: y[0], lambda y: y[:, :, None]])
def test_other_outputs_than_logits_are_named(output):
    class Odd(Convolutional):
        def forward(self, x):
            return output(super().forward(x))

    with pytest.raises((TypeError, ValueError), match=r"^extractor: expected"):
        smoothgrad(Odd(5, 4).eval(), embedding(), 0)
    with pytest.raises(TypeError, match=r"^extractor: expected a torch.nn.Module, got function"):
        smoothgrad(lambda x: x, embedding(), 0)


def test_top_tokens_by_hand():
    tsv = torch.tensor([[[1.0, 5.0], [5.0, 2.0]]])
    tokens = torch.tensor([[[10, 11], [12, 13]]], dtype=torch.int16)
    ids, positions = top_tokens(tsv, tokens, 3)
    assert ids.tolist() == [[11, 12, 13]] and positions.tolist() == [[1, 2, 3]]  # the tie goes to the lower position


def test_top_tokens_refuses_nan():
    with pytest.raises(ValueError, match=r"^tsv:"):
        top_tokens(torch.full((1, 4, 4), torch.nan), torch.zeros(1, 4, 4, dtype=torch.int64), 3)


@pytest.mark.parametrize("n", [0, 17, -1, True])
def test_top_tokens_refuses_other_n(n):
    with pytest.raises((ValueError, TypeError), match=r"^n:"):
        top_tokens(torch.rand(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64), n)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_a_half_precision_extractor(dtype):
    extractor = Linear(3, 4, 5).eval()
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    got = smoothgrad(extractor.to(dtype), x.to(dtype), torch.tensor([1, 3]), num_samples=4)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, extractor.weight.detach()[[1, 3]].float().view_as(got), rtol=1e-2, atol=1e-3)
