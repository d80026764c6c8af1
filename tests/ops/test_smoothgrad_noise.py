"""smoothgrad_noise against x + sigma e in float64, and the promises of its stream."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cortex_fast.ops import smoothgrad_noise
from cortex_fast.ops.backends import BackendUnavailableError
from tests.ops.backends_under_test import (
    assert_same_for_any_threads,
    few,
    needs_native,
    random,
    same_bits,
    skip_in_interpreter,
)
from tests.ops.exact_stream import UNIT, normal_noise

OPS = torch.ops.cortex_fast
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def standard(
    batch: int,
    samples: int,
    *shape: int,
    seed: int = 3,
    dtype: torch.dtype = torch.float32,
    **options: bool | int | str | Tensor,
) -> Tensor:
    """e alone: the noisy copies of zeros with sigma 1. Float64 has its own backend, and floats of other last bits."""
    return smoothgrad_noise(torch.zeros(batch, *shape, dtype=dtype), torch.ones(batch), samples, seed=seed, **options)


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(0, 3),
    samples=st.integers(0, 4),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)),
    dtype=st.sampled_from(DTYPES[:3]),
    sigma_dtype=st.sampled_from(DTYPES),
    given_normals=st.booleans(),
)
def test_is_x_plus_sigma_e(
    impl: str,
    batch: int,
    samples: int,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    sigma_dtype: torch.dtype,
    given_normals: bool,
) -> None:
    x, sigma = random(batch, *shape, dtype=dtype), random(batch, seed=1).abs().to(sigma_dtype)
    drawn = standard(batch, samples, *shape, impl=impl)
    normals = random(batch, samples, *shape, seed=2, dtype=dtype) if given_normals else drawn
    out = smoothgrad_noise(x, sigma, samples, seed=3, normals=normals if given_normals else None, impl=impl)
    assert out.dtype == dtype
    assert out.shape == (batch, samples, *shape)
    shift = sigma.double()[:, None, None, None, None] * normals.double()
    exact = x.double()[:, None] + shift
    tiny = 2e-7 * (x.double().abs()[:, None] + shift.abs())
    assert bool(((out.double() - exact).abs() <= 2 * (exact.to(dtype).double() - exact).abs() + tiny).all())


SIZES = [  # samples, channels, grid: on both sides of the kernel's blocks of 256 positions, and of 32 channels a task
    (3, 1, (1, 1)), (2, 7, (1, 7)), (1, 16, (3, 85)), (2, 17, (1, 257)), (1, 1030, (1, 7)), (2, 33, (16, 16)),
    (5, 3, (2, 257)),
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_odd_sizes_with_the_streams_noise(
    impl: str, sizes: tuple[int, int, tuple[int, int]], dtype: torch.dtype
) -> None:
    if dtype != torch.float32:
        skip_in_interpreter(impl, "float32 goes the same way")
    samples, channels, grid = sizes
    samples = few(impl, samples, 1)
    ids, sigma = torch.tensor([6, 2**32 - 1, 6]), torch.tensor([0.5, 2.0, 1e-3])
    x = random(3, channels, *grid, dtype=dtype)
    out = smoothgrad_noise(x, sigma, samples, seed=2**63 - 1, item_ids=ids, impl=impl)
    e = torch.from_numpy(normal_noise(2**63 - 1, ids, samples, channels, grid))
    shift = sigma.double()[:, None, None, None, None] * e
    exact = x.double()[:, None] + shift
    # a normal is within a few units of its radius, below 6.8
    tiny = UNIT * (42 * sigma.double()[:, None, None, None, None] + 2 * x.double().abs()[:, None] + 2 * shift.abs())
    rounding = 0 if dtype == torch.float32 else 1.01 * (exact.to(dtype).double() - exact).abs()
    half_way = 0 if dtype == torch.float32 else torch.finfo(dtype).eps * tiny  # may round to the other neighbour
    assert out.dtype == dtype
    assert bool(((out.double() - exact).abs() <= tiny + half_way + rounding).all())


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_same_bits_for_any_threads_and_any_batch(impl: str, dtype: torch.dtype, antithetic: bool) -> None:
    skip_in_interpreter(impl)
    x, sigma, ids = random(4, 37, 5, 53, dtype=dtype), random(4, seed=1).abs(), torch.tensor([3, 9, 3, 0])

    def noisy(part: slice | list[int]) -> Tensor:
        options = {"seed": 4, "item_ids": ids[part], "antithetic": antithetic, "impl": impl}
        return smoothgrad_noise(x[part], sigma[part], 3, **options)

    assert_same_for_any_threads(lambda: [noisy(slice(None))])
    together = noisy(slice(None))
    for part in (slice(1), slice(2, 4), [3, 1], [2, 2]):
        assert same_bits([noisy(part)], [together[part]])


@pytest.mark.parametrize("antithetic", [False, True])
def test_samples_may_be_made_in_parts(impl: str, antithetic: bool) -> None:
    together = standard(2, 7, 3, 2, 3, antithetic=antithetic, impl=impl)
    for first, samples in ((0, 2), (2, 5), (4, 1), (6, 0)):
        part = standard(2, samples, 3, 2, 3, first_sample=first, antithetic=antithetic, impl=impl)
        assert same_bits([part], [together[:, first : first + samples]])
    last = standard(1, 2, 3, 2, 2, first_sample=2**32 - 2, impl=impl)
    e = normal_noise(3, torch.tensor([0]), 2, 3, (2, 2), first_sample=2**32 - 2)
    torch.testing.assert_close(last.double(), torch.from_numpy(e), rtol=0, atol=42 * UNIT)
    pairs = standard(1, 3, 3, 2, 2, first_sample=2**32 - 3 - 1, antithetic=True, impl=impl)[:, ::2]
    e = normal_noise(3, torch.tensor([0]), 2, 3, (2, 2), first_sample=2**31 - 2)
    torch.testing.assert_close(pairs.double(), torch.from_numpy(e), rtol=0, atol=42 * UNIT)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize(("first", "samples"), [(2**32 - 2, 3), (2**32, 1), (2, 2**32), (0, 2**32 + 1)])
def test_samples_whose_number_is_beyond_32_bits_are_refused(first: int, samples: int, antithetic: bool) -> None:
    """They would be the first ones again."""
    with pytest.raises(ValueError, match=r"^first_sample: expected first_sample \+ num_samples of at most 2\^32"):
        smoothgrad_noise(
            torch.zeros(0, 1, 1, 1), torch.zeros(0), samples, seed=0, first_sample=first, antithetic=antithetic
        )


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_nan_and_infinity_stay_where_they_are(impl: str, dtype: torch.dtype) -> None:
    x, sigma = random(2, 3, 2, 5, dtype=dtype), torch.ones(2)
    clean = smoothgrad_noise(x, sigma, 2, seed=0, impl=impl)
    special = [torch.nan, torch.inf, -torch.inf]
    x[0, 1, 1, :3] = torch.tensor(special, dtype=dtype)
    out = smoothgrad_noise(x, sigma, 2, seed=0, impl=impl)
    for sample in range(2):
        torch.testing.assert_close(out[0, sample, 1, 1, :3].tolist(), special, equal_nan=True)
    out[0, :, 1, 1, :3] = clean[0, :, 1, 1, :3]
    assert torch.equal(out, clean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_round_to_the_nearest_ties_to_even(impl: str, dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float()
    every = every[every.isfinite()].sort().values
    ties = (every[1:].double() / 2 + every[:-1].double() / 2).float()
    most = torch.tensor([torch.finfo(dtype).max], dtype=torch.float32)
    beyond = most * (1 + torch.finfo(dtype).eps / 4)  # half a step beyond the largest
    normals = torch.cat((every, ties, beyond, -beyond, torch.tensor([torch.inf, -torch.inf, torch.nan])))
    infinity = torch.full_like(normals, torch.inf)
    normals = torch.cat((normals, normals.nextafter(infinity), normals.nextafter(-infinity)))[None, None, None, None]
    x = torch.zeros(1, 1, 1, normals.shape[-1], dtype=dtype)
    out = smoothgrad_noise(x, torch.ones(1), 1, seed=0, normals=normals, impl=impl)
    torch.testing.assert_close(out, normals.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_lazily_negated_views(impl: str) -> None:
    x, sigma, normals = random(2, 3, 2, 2), random(2, seed=1), random(2, 4, 3, 2, 2, seed=2)
    lazy = (torch._neg_view(tensor) for tensor in (x, sigma, normals))
    negated_x, negated_sigma, negated_normals = lazy
    got = smoothgrad_noise(negated_x, negated_sigma, 4, seed=0, normals=negated_normals, impl=impl)
    assert torch.equal(got, smoothgrad_noise(-x, -sigma, 4, seed=0, normals=-normals, impl=impl))


def test_float64_is_not_narrowed() -> None:
    x = random(2, 3, 2, 2, dtype=torch.float64)
    out = smoothgrad_noise(x, torch.zeros(2), 2, seed=0)
    assert torch.equal(out, x[:, None].expand(2, 2, 3, 2, 2))


@pytest.mark.parametrize("antithetic", [False, True])
def test_noise_of_an_image_does_not_depend_on_its_batch_or_order(impl: str, antithetic: bool) -> None:
    ids = torch.tensor([8, 0, 2**32 - 1, 3])
    samples = few(impl, 5, 3)
    together = standard(4, samples, 3, 2, 3, item_ids=ids, antithetic=antithetic, impl=impl)
    for order in ([3, 1, 0, 2], [2], [0, 3]):
        assert torch.equal(
            standard(len(order), samples, 3, 2, 3, item_ids=ids[order], antithetic=antithetic, impl=impl),
            together[order],
        )


@pytest.mark.parametrize("antithetic", [False, True])
def test_fewer_samples_are_the_first_ones(impl: str, antithetic: bool) -> None:
    most = standard(2, 7, 3, 2, 3, antithetic=antithetic, impl=impl)
    for samples in range(0, 7, few(impl, 1, 3)):
        assert torch.equal(standard(2, samples, 3, 2, 3, antithetic=antithetic, impl=impl), most[:, :samples])


def test_fewer_channels_are_the_first_ones(impl: str) -> None:
    assert torch.equal(standard(2, 2, 5, 2, 3, impl=impl), standard(2, 2, 9, 2, 3, impl=impl)[:, :, :5])


def test_equal_ids_share_noise_and_others_do_not(impl: str) -> None:
    noise = standard(4, 3, 4, 2, 2, item_ids=torch.tensor([7, 2, 7, 2]), impl=impl)
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[1], noise[3])
    assert not (noise[0] == noise[1]).any()


def test_ids_default_to_0_1_2(impl: str) -> None:
    assert torch.equal(
        standard(3, 2, 3, 2, 2, impl=impl), standard(3, 2, 3, 2, 2, item_ids=torch.tensor([0, 1, 2]), impl=impl)
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.uint16, torch.uint32])
def test_ids_of_any_integer_type(dtype: torch.dtype) -> None:
    ids = torch.tensor([200, 3])
    assert torch.equal(standard(2, 2, 3, 2, 2, item_ids=ids.to(dtype)), standard(2, 2, 3, 2, 2, item_ids=ids))


def test_seeds_samples_positions_and_channels_differ(impl: str) -> None:
    first, second = standard(2, 3, 5, 2, 2, seed=0, impl=impl), standard(2, 3, 5, 2, 2, seed=1, impl=impl)
    assert not (first == second).any()
    assert len(first.unique()) == first.numel()


@pytest.mark.parametrize("samples", [0, 1, 2, 5, 6])
def test_antithetic_samples_are_pairs_of_the_plain_draws(impl: str, samples: int) -> None:
    plain, paired = standard(2, 3, 4, 3, 2, impl=impl), standard(2, samples, 4, 3, 2, antithetic=True, impl=impl)
    assert paired.shape[1] == samples
    for sample in range(samples):
        assert torch.equal(paired[:, sample], plain[:, sample // 2] * (-1) ** sample)
    for first in range(0, samples - 1, 2):
        assert not (paired[:, first] + paired[:, first + 1]).any()


def test_sigma_zero_leaves_the_image(impl: str) -> None:
    x = random(2, 3, 2, 2)
    out = smoothgrad_noise(x, torch.tensor([0.0, 1.0]), 3, seed=0, impl=impl)
    assert torch.equal(out[0], x[:1].expand(3, 3, 2, 2))
    assert not (out[1] == x[1]).any()


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 2, 2), (2, 0, 3, 2, 2), (0, 0, 3, 2, 2), (2, 2, 0, 2, 2), (2, 2, 3, 0, 0), (2, 3, 1, 1, 1)]
)
@pytest.mark.parametrize("antithetic", [False, True])
def test_empty_and_single(impl: str, shape: tuple[int, ...], antithetic: bool) -> None:
    batch, samples, *image = shape
    x = torch.zeros(batch, *image, requires_grad=True)
    out = smoothgrad_noise(x, torch.ones(batch), samples, seed=0, antithetic=antithetic, impl=impl)
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
def test_strided_views(impl: str, name: str) -> None:
    x, sigma, normals = views()[name], random(4).abs()[::2], random(2, 4, 5, 2, 3).permute(0, 3, 4, 1, 2)
    out = smoothgrad_noise(x, sigma, 2, seed=0, normals=normals, impl=impl)
    expected = x.double()[:, None] + sigma.double()[:, None, None, None, None] * normals.double()
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)
    drawn = smoothgrad_noise(x, sigma, 2, seed=5, impl=impl)
    assert torch.equal(drawn, smoothgrad_noise(x.contiguous(), sigma.contiguous(), 2, seed=5, impl=impl))


def test_gradients() -> None:
    shapes = (2, 2, 1, 3), (2,), (2, 3, 2, 1, 3)
    x, sigma, normals = (random(*shape, dtype=torch.float64).requires_grad_() for shape in shapes)

    def operator(x: Tensor, sigma: Tensor, normals: Tensor) -> Tensor:
        return smoothgrad_noise(x, sigma, 3, seed=0, normals=normals)

    assert torch.autograd.gradcheck(operator, (x, sigma, normals))
    assert torch.autograd.gradgradcheck(operator, (x, sigma, normals))
    for wanted in itertools.product([False, True], repeat=3):
        inputs = [
            tensor.detach().requires_grad_(wants) for tensor, wants in zip((x, sigma, normals), wanted, strict=True)
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


@pytest.mark.parametrize("antithetic", [False, True])
def test_gradient_in_sigma_of_later_samples_and_given_items(antithetic: bool) -> None:
    """That of copies that are linear in sigma: the difference that sigma makes, over sigma."""
    x, upstream = random(3, 2, 2, 3, dtype=torch.float64), random(3, 4, 2, 2, 3, seed=1, dtype=torch.float64)
    options = {"seed": 9, "first_sample": 6, "item_ids": torch.tensor([5, 0, 5]), "antithetic": antithetic}
    sigma = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64, requires_grad=True)
    noisy = smoothgrad_noise(x, sigma, 4, **options)
    (grad,) = torch.autograd.grad(noisy, sigma, upstream)
    slope = (noisy.detach() - x[:, None]) / sigma.detach().view(3, 1, 1, 1, 1)
    torch.testing.assert_close(grad, (upstream * slope).sum(dim=(1, 2, 3, 4)))
    first = smoothgrad_noise(x, sigma, 4, **{**options, "first_sample": 0})
    assert not torch.allclose(torch.autograd.grad(first, sigma, upstream)[0], grad)


def test_normals_are_not_saved_where_only_x_needs_a_gradient() -> None:
    saved = []
    x = random(2, 3, 2, 2).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda t: t):
        smoothgrad_noise(x, torch.ones(2), 4, seed=0)
    assert sum(saved) <= 2  # the item ids


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
        ({"normals": torch.zeros(2, 3, 3, 4, 4)}, ValueError, "normals"),
        ({"normals": torch.zeros(2, 2, 3, 4, 4, dtype=torch.int8)}, TypeError, "normals"),
        ({"sigma": torch.ones(2, device="meta")}, ValueError, "sigma"),
        ({"item_ids": torch.arange(2, device="meta")}, ValueError, "item_ids"),
        ({"normals": torch.zeros(2, 2, 3, 4, 4, device="meta")}, ValueError, "normals"),
        ({"first_sample": -1}, ValueError, "first_sample"),
        ({"first_sample": 2**32}, ValueError, "first_sample"),
        ({"first_sample": 1, "antithetic": True}, ValueError, "first_sample"),
        ({"impl": "fast"}, ValueError, "impl"),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, object], error: type[Exception], named: str) -> None:
    arguments = {"x": torch.zeros(2, 3, 4, 4), "sigma": torch.ones(2), "num_samples": 2, "seed": 0, **changed}
    with pytest.raises(error, match=rf"\b{named}\b.*expected"):
        smoothgrad_noise(**arguments)


@needs_native
def test_forced_native_says_why_it_cannot_serve() -> None:
    x = torch.zeros(1, 1, 1, 1)
    for wide in ({"x": x.double()}, {"x": x, "normals": torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64)}):
        with pytest.raises(BackendUnavailableError, match=r"smoothgrad_noise: impl='native' .* not torch.float64"):
            smoothgrad_noise(**wide, sigma=torch.ones(1), num_samples=1, seed=0, impl="native")


@pytest.mark.parametrize("drawn", [False, True])
def test_opcheck(drawn: bool) -> None:
    x, sigma, normals = (tensor.requires_grad_() for tensor in (random(2, 3, 4, 5), random(2), random(2, 2, 3, 4, 5)))
    ids = torch.tensor([4, 1])
    torch.library.opcheck(
        OPS.smoothgrad_noise.default, (x, sigma, 2, 7, ids, drawn, 0, None if drawn else normals, "auto")
    )


@pytest.mark.parametrize("name", views())
def test_the_fake_knows_the_strides(name: str) -> None:
    permuted = random(2, 4, 5, 2, 3).permute(0, 3, 4, 1, 2)
    for x in (views()[name], views()[name].half()):
        torch.library.opcheck(
            OPS.smoothgrad_noise.default,
            (x, torch.ones(2), 2, 0, torch.arange(2), False, 0, permuted, "auto"),
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
