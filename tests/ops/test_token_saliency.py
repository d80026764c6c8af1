"""token_saliency: every backend against a float64 formula in NumPy loops, and the operator's contract."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cortex_fast.ops.backends import BackendUnavailableError
from cortex_fast.ops.token_saliency import REDUCTIONS, token_saliency
from tests.ops.backends_under_test import (
    CUDA,
    EPS,
    TRITON,
    assert_same_for_any_threads,
    needs_native,
    skip_in_interpreter,
)

# where the native kernel's instruction set does not matter
every_impl = pytest.mark.parametrize(
    "impl", ["reference", pytest.param("native", marks=needs_native), CUDA, TRITON], indirect=True
)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def formula(grads: Tensor, reduction: str) -> np.ndarray:
    """TSV [B,h,w] in float64, a position at a time."""
    array = grads.detach().double().numpy()
    batch, samples, _, height, width = array.shape
    out = np.empty((batch, height, width))
    for b, y, x in np.ndindex(batch, height, width):
        mean = array[b, :, :, y, x].sum(axis=0) / samples
        out[b, y, x] = {"absmax": np.abs(mean).max(), "max": mean.max(), "mean": mean.sum() / len(mean)}[reduction]
    return out


def assert_as_good_as_reference(grads: Tensor, reduction: str, impl: str) -> None:
    exact = formula(grads, reduction)
    out = token_saliency(grads, reduction=reduction, impl=impl).double().numpy()
    ref32 = token_saliency(grads, reduction=reduction, impl="reference").double().numpy()
    assert out.shape == exact.shape
    assert (np.abs(out - exact) <= 2 * np.abs(ref32 - exact) + EPS * np.abs(exact) + 1e-40).all()
    magnitude = np.abs(grads.double().numpy()).mean(axis=1).max(axis=1)
    assert (np.abs(out - exact) <= 20 * EPS * magnitude + 1e-40).all()


@st.composite
def strided(draw: st.DrawFn) -> Tensor:
    """Normal gradients of any sizes, stored in any order of dimensions, with gaps, and perhaps expanded."""
    sizes = [draw(st.integers(1, high)) for high in (3, 9, 70, 5, 19)]
    order = draw(st.permutations(range(5)))
    steps = [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in sizes]
    expanded = draw(st.sampled_from([None, None, 0, 1, 2, 3, 4]))
    stored = [1 if axis == expanded else sizes[axis] * steps[axis] for axis in order]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    base = torch.randn(stored, generator=generator).permute([order.index(axis) for axis in range(5)])
    view = base[tuple(slice(None, None, 1 if axis == expanded else steps[axis]) for axis in range(5))]
    return view.expand(sizes)


@every_reduction
@settings(max_examples=50, deadline=None)
@given(grads=strided())
def test_agrees_with_the_formula_for_any_strides(impl: str, reduction: str, grads: Tensor) -> None:
    assert_as_good_as_reference(grads, reduction, impl)


@every_reduction
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 1),
        (2, 20, 256, 4, 4),
        (1, 3, 2, 37, 41),
        (1, 2, 33, 1, 1),
        (3, 7, 2500, 1, 2),
        (1, 1, 5, 1, 2049),
        (1, 6, 1030, 1, 7),
        (2, 5, 17, 1, 255),
        (1, 4, 16, 1, 257),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_agrees_across_blocks(impl: str, reduction: str, shape: tuple[int, ...], channels_last: bool) -> None:
    if shape[2] > 2000 or reduction == "max":
        skip_in_interpreter(impl)
    grads = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if channels_last:
        grads = grads.movedim(2, -1).contiguous().movedim(-1, 2)
    assert_as_good_as_reference(grads, reduction, impl)


def test_many_samples_lose_no_precision(impl: str) -> None:
    grads = 1 + 1e-3 * torch.randn((1, 1000, 3, 2, 2), generator=torch.Generator().manual_seed(2))
    assert_as_good_as_reference(grads, "max", impl)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5, 5), (2, 3, 4, 0, 0)])
def test_empty(impl: str, shape: tuple[int, ...]) -> None:
    out = token_saliency(torch.zeros(shape), impl=impl)
    assert out.shape == (shape[0], *shape[3:])
    assert out.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_reduction
def test_narrow_dtypes_accumulate_in_float32(impl: str, dtype: torch.dtype, reduction: str) -> None:
    if reduction == "max":
        skip_in_interpreter(impl, "as absmax, but for the absolute value")
    for shape in ((2, 9, 5, 3, 3), (1, 5, 17, 1, 257), (1, 3, 1030, 1, 7)):
        grads = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
        for strided in (grads, grads.movedim(2, -1).contiguous().movedim(-1, 2), grads[..., ::2]):
            out = token_saliency(strided, reduction=reduction, impl=impl)
            assert out.dtype == torch.float32
            np.testing.assert_allclose(out.numpy(), formula(strided, reduction), rtol=1e-5, atol=1e-6)


def test_every_half_is_read_as_it_is(impl: str) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    skip_in_interpreter(impl)
    for dtype in (torch.float16, torch.bfloat16):
        grads = bits.view(dtype)[None, None, None, None]
        out = token_saliency(grads, reduction="max", impl=impl)
        torch.testing.assert_close(out[0, 0], bits.view(dtype).float(), rtol=0, atol=0, equal_nan=True)


def test_float64_stays_float64() -> None:
    grads = torch.randn((2, 9, 5, 3, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    out = token_saliency(grads)
    assert out.dtype == torch.float64
    np.testing.assert_allclose(out.numpy(), formula(grads, "absmax"), rtol=1e-14)


@every_reduction
@pytest.mark.parametrize("channels_last", [False, True])
def test_nan_propagates_to_its_position_alone(impl: str, reduction: str, channels_last: bool) -> None:
    for channel in (0, 63, 64, 99):
        grads = torch.randn((2, 3, 100, 3, 3), generator=torch.Generator().manual_seed(5))
        grads[1, 2, channel, 0, 1] = float("nan")
        if channels_last:
            grads = grads.movedim(2, -1).contiguous().movedim(-1, 2)
        out = token_saliency(grads, reduction=reduction, impl=impl)
        expected = torch.zeros(2, 3, 3, dtype=torch.bool)
        expected[1, 0, 1] = True
        assert torch.equal(out.isnan(), expected)


def test_infinities(impl: str) -> None:
    grads = torch.zeros(1, 2, 3, 1, 4)
    grads[0, 0, 1, 0, 0] = float("-inf")
    grads[0, 0, 1, 0, 1] = float("inf")
    grads[0, 0, :, 0, 2] = float("-inf")
    grads[0, :, 0, 0, 3] = torch.tensor([float("inf"), float("-inf")])  # their mean is NaN
    inf, nan = float("inf"), float("nan")
    out = {name: token_saliency(grads, reduction=name, impl=impl).flatten().tolist() for name in REDUCTIONS}
    assert out["absmax"] == pytest.approx([inf, inf, inf, nan], nan_ok=True)
    assert out["max"] == pytest.approx([0, inf, -inf, nan], nan_ok=True)
    assert out["mean"] == pytest.approx([-inf, inf, -inf, nan], nan_ok=True)


@every_reduction
def test_every_element_is_written(impl: str, reduction: str) -> None:
    if reduction == "max":
        skip_in_interpreter(impl, "as absmax, but for the absolute value")
    for shape in [(3, 2, 5, 7, 5), (1, 2, 70, 33, 33), (2, 1, 1, 1, 1)]:
        grads = torch.zeros(shape)
        assert torch.equal(token_saliency(grads, reduction=reduction, impl=impl), torch.zeros(shape[0], *shape[3:]))
        last = grads.movedim(2, -1).contiguous().movedim(-1, 2)
        assert not token_saliency(last, reduction=reduction, impl=impl).any()


@every_reduction
def test_same_bits_for_any_threads_and_again(impl: str, reduction: str) -> None:
    skip_in_interpreter(impl)
    contiguous = torch.randn((3, 6, 100, 7, 7), generator=torch.Generator().manual_seed(6))
    for grads in (contiguous, contiguous.movedim(2, -1).contiguous().movedim(-1, 2)):
        assert_same_for_any_threads(lambda grads=grads: [token_saliency(grads, reduction=reduction, impl=impl)])


def test_symmetries(impl: str) -> None:
    generator = torch.Generator().manual_seed(7)
    grads = torch.randn((3, 6, 40, 4, 4), generator=generator)
    tsv = token_saliency(grads, impl=impl)
    assert torch.equal(token_saliency(-grads, impl=impl), tsv)
    assert torch.equal(token_saliency(4 * grads, impl=impl), 4 * tsv)
    channels = torch.randperm(40, generator=generator)
    assert torch.equal(token_saliency(grads[:, :, channels], impl=impl), tsv)
    samples = torch.randperm(6, generator=generator)
    torch.testing.assert_close(token_saliency(grads[:, samples], impl=impl), tsv, rtol=1e-6, atol=1e-6)
    positions = torch.randperm(16, generator=generator)
    moved = grads.flatten(3)[..., positions].view_as(grads)
    assert torch.equal(token_saliency(moved, impl=impl), tsv.flatten(1)[:, positions].view_as(tsv))
    parts = [token_saliency(part, impl=impl) for part in grads.split([1, 2])]
    assert torch.equal(torch.cat(parts), tsv)


def test_lazily_negated_view(impl: str) -> None:
    grads = torch.randn((1, 2, 3, 2, 2), generator=torch.Generator().manual_seed(8))
    lazy = torch._neg_view(grads)
    assert torch.equal(
        token_saliency(lazy, reduction="max", impl=impl), token_saliency(-grads, reduction="max", impl=impl)
    )


@every_impl
@every_reduction
def test_opcheck(impl: str, reduction: str) -> None:
    grads = torch.randn((2, 3, 4, 3, 3), generator=torch.Generator().manual_seed(9), requires_grad=True)
    torch.library.opcheck(torch.ops.cortex_fast.token_saliency.default, (grads, reduction, impl))


@every_reduction
def test_gradcheck(reduction: str) -> None:
    generator = torch.Generator().manual_seed(10)
    grads = torch.randn((2, 3, 4, 2, 2), dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: token_saliency(g, reduction=reduction), (grads,))


@every_reduction
def test_gradient_is_autograds_of_the_formula(impl: str, reduction: str) -> None:
    grads = torch.randn((2, 3, 4, 2, 2), generator=torch.Generator().manual_seed(11), requires_grad=True)
    mean = grads.mean(dim=1)
    plain = {"absmax": mean.abs().amax(1), "max": mean.amax(1), "mean": mean.mean(1)}[reduction]
    weights = torch.randn(plain.shape, generator=torch.Generator().manual_seed(12))
    (expected,) = torch.autograd.grad((plain * weights).sum(), grads)
    (got,) = torch.autograd.grad((token_saliency(grads, reduction=reduction, impl=impl) * weights).sum(), grads)
    torch.testing.assert_close(got, expected)


def test_first_channel_gets_the_whole_gradient_of_a_tie() -> None:
    grads = torch.ones((1, 2, 3, 1, 1), requires_grad=True)
    token_saliency(grads).sum().backward()
    assert grads.grad is not None
    assert grads.grad.flatten(1).tolist() == [[0.5, 0, 0, 0.5, 0, 0]]


@every_impl
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_whole(impl: str, backend: str) -> None:
    def doubled(grads: Tensor) -> Tensor:
        return 2 * token_saliency(grads * 3, impl=impl)

    compiled = torch.compile(doubled, fullgraph=True, backend=backend)
    grads = torch.randn((2, 3, 4, 3, 3), generator=torch.Generator().manual_seed(13))
    torch.testing.assert_close(compiled(grads), doubled(grads))


@pytest.mark.parametrize(
    ("grads", "options", "error", "message"),
    [
        (torch.zeros(2, 3, 4, 5), {}, ValueError, r"grads: expected shape \[B, N, d, m, m\]"),
        (torch.zeros(2, 3, 4, 5, 5, dtype=torch.int64), {}, TypeError, "grads: expected a floating-point tensor"),
        (torch.zeros(2, 0, 4, 5, 5), {}, ValueError, "grads: expected at least one sample"),
        (torch.zeros(2, 3, 0, 5, 5), {}, ValueError, "grads: expected at least one sample and one channel"),
        (torch.zeros(1, 1, 1, 1, 1), {"reduction": "sum"}, ValueError, "reduction: expected one of 'absmax'"),
        (torch.zeros(1, 1, 1, 1, 1), {"impl": "fast"}, ValueError, "impl: expected 'auto' or one of"),
    ],
)
def test_bad_input_is_named(grads: Tensor, options: dict[str, str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        token_saliency(grads, **options)


@needs_native
def test_forced_native_says_why_it_cannot_serve() -> None:
    grads = torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64)
    with pytest.raises(BackendUnavailableError, match=r"token_saliency: impl='native' .* not torch.float64"):
        token_saliency(grads, impl="native")
