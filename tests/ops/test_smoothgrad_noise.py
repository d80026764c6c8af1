"""smoothgrad_noise against x + sigma e in float64, and the promises of its stream. test_philox.py checks e itself."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cortex_fast.ops import smoothgrad_noise

OPS = torch.ops.cortex_fast
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def standard(
    batch: int, samples: int, *shape: int, seed: int = 3, dtype: torch.dtype = torch.float32, **options: bool | Tensor
) -> Tensor:
    """e alone: the noisy copies of zeros with sigma 1. Float64 has its own backend, and floats of other last bits."""
    return smoothgrad_noise(torch.zeros(batch, *shape, dtype=dtype), torch.ones(batch), samples, seed=seed, **options)


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(0, 3),
    samples=st.integers(0, 4),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)),
    dtype=st.sampled_from(DTYPES),
    sigma_dtype=st.sampled_from(DTYPES),
    own_noise=st.booleans(),
)
def test_is_x_plus_sigma_noise(
    batch: int,
    samples: int,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    sigma_dtype: torch.dtype,
    own_noise: bool,
) -> None:
    x, sigma = random(batch, *shape, dtype=dtype), random(batch, seed=1).abs().to(sigma_dtype)
    wide = torch.promote_types(dtype, torch.float32)
    drawn = standard(batch, samples, *shape, dtype=wide)
    noise = random(batch, samples, *shape, seed=2, dtype=dtype) if own_noise else drawn
    out = smoothgrad_noise(x, sigma, samples, seed=3, noise=noise if own_noise else None)
    assert out.dtype == dtype
    assert out.shape == (batch, samples, *shape)
    shift = sigma.double()[:, None, None, None, None] * noise.double()
    exact = x.double()[:, None] + shift
    working = 2e-7 if dtype != torch.float64 else 4e-16
    tiny = working * (x.double().abs()[:, None] + shift.abs())
    assert bool(((out.double() - exact).abs() <= 2 * (exact.to(dtype).double() - exact).abs() + tiny).all())


def test_float64_is_not_narrowed() -> None:
    x = random(2, 3, 2, 2, dtype=torch.float64)
    out = smoothgrad_noise(x, torch.zeros(2), 2, seed=0)
    assert torch.equal(out, x[:, None].expand(2, 2, 3, 2, 2))


@pytest.mark.parametrize("antithetic", [False, True])
def test_noise_of_an_image_does_not_depend_on_its_batch_or_order(antithetic: bool) -> None:
    ids = torch.tensor([8, 0, 2**32 - 1, 3])
    together = standard(4, 5, 3, 2, 3, item_ids=ids, antithetic=antithetic)
    for order in ([3, 1, 0, 2], [2], [0, 3]):
        assert torch.equal(
            standard(len(order), 5, 3, 2, 3, item_ids=ids[order], antithetic=antithetic), together[order]
        )


@pytest.mark.parametrize("antithetic", [False, True])
def test_fewer_samples_are_the_first_ones(antithetic: bool) -> None:
    most = standard(2, 7, 3, 2, 3, antithetic=antithetic)
    for samples in range(7):
        assert torch.equal(standard(2, samples, 3, 2, 3, antithetic=antithetic), most[:, :samples])


def test_fewer_channels_are_the_first_ones() -> None:
    assert torch.equal(standard(2, 2, 5, 2, 3), standard(2, 2, 9, 2, 3)[:, :, :5])


def test_equal_ids_share_noise_and_others_do_not() -> None:
    noise = standard(4, 3, 4, 2, 2, item_ids=torch.tensor([7, 2, 7, 2]))
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[1], noise[3])
    assert not (noise[0] == noise[1]).any()


def test_ids_default_to_0_1_2() -> None:
    assert torch.equal(standard(3, 2, 3, 2, 2), standard(3, 2, 3, 2, 2, item_ids=torch.tensor([0, 1, 2])))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.uint16, torch.uint32])
def test_ids_of_any_integer_type(dtype: torch.dtype) -> None:
    ids = torch.tensor([200, 3])
    assert torch.equal(standard(2, 2, 3, 2, 2, item_ids=ids.to(dtype)), standard(2, 2, 3, 2, 2, item_ids=ids))


def test_seeds_samples_positions_and_channels_differ() -> None:
    first, second = standard(2, 3, 5, 2, 2, seed=0), standard(2, 3, 5, 2, 2, seed=1)
    assert not (first == second).any()
    assert len(first.unique()) == first.numel()


@pytest.mark.parametrize("samples", [0, 1, 2, 5, 6])
def test_antithetic_samples_are_pairs_of_the_plain_draws(samples: int) -> None:
    plain, paired = standard(2, 3, 4, 3, 2), standard(2, samples, 4, 3, 2, antithetic=True)
    assert paired.shape[1] == samples
    for sample in range(samples):
        assert torch.equal(paired[:, sample], plain[:, sample // 2] * (-1) ** sample)
    for first in range(0, samples - 1, 2):
        assert not (paired[:, first] + paired[:, first + 1]).any()


def test_sigma_zero_leaves_the_image() -> None:
    x = random(2, 3, 2, 2)
    out = smoothgrad_noise(x, torch.tensor([0.0, 1.0]), 3, seed=0)
    assert torch.equal(out[0], x[:1].expand(3, 3, 2, 2))
    assert not (out[1] == x[1]).any()


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 2, 2), (2, 0, 3, 2, 2), (0, 0, 3, 2, 2), (2, 2, 0, 2, 2), (2, 2, 3, 0, 0), (2, 3, 1, 1, 1)]
)
@pytest.mark.parametrize("antithetic", [False, True])
def test_empty_and_single(shape: tuple[int, ...], antithetic: bool) -> None:
    batch, samples, *image = shape
    x = torch.zeros(batch, *image, requires_grad=True)
    out = smoothgrad_noise(x, torch.ones(batch), samples, seed=0, antithetic=antithetic)
    assert out.shape == shape
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full_like(x, samples))


def views() -> dict[str, Tensor]:
    return {
        "channels last": random(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": random(2, 3, 5, 4).transpose(2, 3),
        "expanded": random(1, 3, 1, 5).expand(2, 3, 4, 5),
        "sliced": random(4, 6, 4, 10)[::2, 1::2, :, ::2],
    }


@pytest.mark.parametrize("name", views())
def test_strided_views(name: str) -> None:
    x, sigma, noise = views()[name], random(4).abs()[::2], random(2, 4, 5, 2, 3).permute(0, 3, 4, 1, 2)
    out = smoothgrad_noise(x, sigma, 2, seed=0, noise=noise)
    expected = x.double()[:, None] + sigma.double()[:, None, None, None, None] * noise.double()
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)
    drawn = smoothgrad_noise(x, sigma, 2, seed=5)
    assert torch.equal(drawn, smoothgrad_noise(x.contiguous(), sigma.contiguous(), 2, seed=5))


def test_gradients() -> None:
    x, sigma, noise = (random(*shape, dtype=torch.float64).requires_grad_() for shape in
                       ((2, 2, 1, 3), (2,), (2, 3, 2, 1, 3)))  # fmt: skip

    def operator(x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        return smoothgrad_noise(x, sigma, 3, seed=0, noise=noise)

    assert torch.autograd.gradcheck(operator, (x, sigma, noise))
    assert torch.autograd.gradgradcheck(operator, (x, sigma, noise))
    for wanted in itertools.product([False, True], repeat=3):
        inputs = [
            tensor.detach().requires_grad_(wants) for tensor, wants in zip((x, sigma, noise), wanted, strict=True)
        ]
        if any(wanted):
            assert torch.autograd.gradcheck(operator, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_through_the_drawn_noise_keep_the_dtypes(dtype: torch.dtype) -> None:
    x, sigma = random(2, 3, 2, 2, dtype=dtype).requires_grad_(), torch.ones(2, requires_grad=True)
    upstream = random(2, 4, 3, 2, 2, seed=1, dtype=dtype)
    smoothgrad_noise(x, sigma, 4, seed=3).backward(upstream)
    assert x.grad is not None
    assert sigma.grad is not None
    assert (x.grad.dtype, sigma.grad.dtype) == (dtype, torch.float32)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(x.grad.double(), upstream.double().sum(dim=1), rtol=eps, atol=4e-7)
    expected = (upstream.double() * standard(2, 4, 3, 2, 2).double()).sum(dim=(1, 2, 3, 4))
    torch.testing.assert_close(sigma.grad.double(), expected, rtol=1e-5, atol=1e-5)


def test_noise_is_not_kept_where_only_x_needs_a_gradient() -> None:
    kept = []
    x = random(2, 3, 2, 2).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        smoothgrad_noise(x, torch.ones(2), 4, seed=0)
    assert sum(kept) <= 2  # the item ids


def test_same_call_gives_the_same_bits() -> None:
    x, sigma = random(3, 5, 3, 3), random(3).abs()
    first = smoothgrad_noise(x, sigma, 4, seed=9)
    assert all(torch.equal(smoothgrad_noise(x, sigma, 4, seed=9), first) for _ in range(3))


@pytest.mark.parametrize(
    ("changed", "error", "named"),
    [
        ({"x": torch.zeros(3, 4, 4)}, ValueError, "x"),
        ({"x": torch.zeros(2, 1, 3, 4, 4)}, ValueError, "x"),
        ({"x": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, TypeError, "x"),
        ({"sigma": torch.ones(3)}, ValueError, "sigma"),
        ({"sigma": torch.ones(2, 1)}, ValueError, "sigma"),
        ({"sigma": torch.tensor(1.0)}, ValueError, "sigma"),
        ({"sigma": torch.ones(2, dtype=torch.int32)}, TypeError, "sigma"),
        ({"num_samples": -1}, ValueError, "num_samples"),
        ({"num_samples": 2.0}, TypeError, "num_samples"),
        ({"num_samples": True}, TypeError, "num_samples"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**63}, ValueError, "seed"),
        ({"seed": 1.0}, TypeError, "seed"),
        ({"seed": True}, TypeError, "seed"),
        ({"seed": None}, TypeError, "seed"),
        ({"item_ids": torch.tensor([0, -1])}, ValueError, "item_ids"),
        ({"item_ids": torch.tensor([0, 2**32])}, ValueError, "item_ids"),
        ({"item_ids": torch.tensor([0, 1, 2])}, ValueError, "item_ids"),
        ({"item_ids": torch.tensor([0.0, 1.0])}, TypeError, "item_ids"),
        ({"item_ids": torch.tensor([False, True])}, TypeError, "item_ids"),
        ({"noise": torch.zeros(2, 3, 3, 4, 4)}, ValueError, "noise"),
        ({"noise": torch.zeros(2, 2, 3, 4, 4, dtype=torch.int8)}, TypeError, "noise"),
        ({"sigma": torch.ones(2, device="meta")}, ValueError, "sigma"),
        ({"item_ids": torch.arange(2, device="meta")}, ValueError, "item_ids"),
        ({"noise": torch.zeros(2, 2, 3, 4, 4, device="meta")}, ValueError, "noise"),
        ({"impl": "fast"}, ValueError, "impl"),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, object], error: type[Exception], named: str) -> None:
    arguments = {"x": torch.zeros(2, 3, 4, 4), "sigma": torch.ones(2), "num_samples": 2, "seed": 0, **changed}
    with pytest.raises(error, match=rf"\b{named}\b.*expected"):
        smoothgrad_noise(**arguments)


@pytest.mark.parametrize("drawn", [False, True])
def test_opcheck(drawn: bool) -> None:
    x, sigma, noise = (tensor.requires_grad_() for tensor in (random(2, 3, 4, 5), random(2), random(2, 2, 3, 4, 5)))
    ids = torch.tensor([4, 1])
    torch.library.opcheck(OPS.smoothgrad_noise.default, (x, sigma, ids, None if drawn else noise, 2, 7, drawn, "auto"))


@pytest.mark.parametrize("name", views())
def test_the_fake_knows_the_strides(name: str) -> None:
    permuted = random(2, 4, 5, 2, 3).permute(0, 3, 4, 1, 2)
    for x in (views()[name], views()[name].half()):
        torch.library.opcheck(
            OPS.smoothgrad_noise.default,
            (x, torch.ones(2), torch.arange(2), permuted, 2, 0, False, "auto"),
            test_utils="test_faketensor",
        )


def test_meta() -> None:
    out = smoothgrad_noise(torch.zeros(2, 3, 4, 4, device="meta"), torch.ones(2, device="meta"), 5, seed=0)
    assert out.shape == (2, 5, 3, 4, 4)


def test_compile() -> None:
    compiled = torch.compile(smoothgrad_noise, fullgraph=True, backend="aot_eager")
    sigma = torch.tensor([0.5, 2.0])
    for samples, seed in ((2, 4), (3, 5), (5, 2**63 - 1)):
        x = random(2, 3, 2, 2, seed=samples).requires_grad_()
        out = compiled(x, sigma, samples, seed=seed, antithetic=True)
        expected = x.detach().double()[:, None] + sigma[:, None, None, None, None] * standard(
            2, samples, 3, 2, 2, seed=seed, antithetic=True
        )
        torch.testing.assert_close(out.detach().double(), expected, rtol=1e-6, atol=1e-6)
        out.sum().backward()
        assert torch.equal(x.grad, torch.full_like(x, samples))
