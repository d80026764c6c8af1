"""conv3x3: every backend against torch in float64, the mask between its two halves, and the operator's contract."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cortex_fast.kernels import native
from cortex_fast.ops import conv3x3, prepare_filters
from cortex_fast.ops.backends import IMPL_VARIABLE, BackendUnavailableError
from tests.ops.backends_under_test import assert_same_for_any_threads, needs_native, random, same_bits

SIZES = [(1, 1), (2, 3), (5, 5), (7, 9), (8, 8), (16, 16)]
CHANNELS = [(1, 1), (3, 15), (15, 16), (16, 17), (17, 33), (33, 70), (70, 3), (70, 1)]
TOLERANCE = 1e-5  # of the largest value, forward and backward: what the operator promises
EXACT = 576 * 225  # few small multiples of it stay exact in Winograd's transforms, with the points 1, 2 and 1/2

every_follower = pytest.mark.parametrize(
    ("relu", "pool"), list(itertools.product((False, True), repeat=2)), ids=lambda on: str(int(on))
)


@contextmanager
def saved_tensors() -> Iterator[list[Tensor]]:
    """The tensors that autograd saves for the backward pass."""
    tensors: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensors.append(tensor) or tensor, lambda t: t):
        yield tensors


def masks_among(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor.dtype == torch.uint8 and tensor.ndim == 4]


def filters_of(inputs: int, outputs: int, *, bias: bool = True, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    return random(outputs, inputs, 3, 3, seed=seed), random(outputs, seed=seed + 1) if bias else None


def results(x: Tensor, weight: Tensor, bias: Tensor | None, upstream_seed: int = 5, **how) -> list[Tensor]:
    """y, the gradient of x, the upstream gradient, and the mask if there is one."""
    filters = prepare_filters(weight, bias, impl=how.pop("impl"))
    x = x.detach().requires_grad_(True)
    with saved_tensors() as tensors:
        y = conv3x3(x, filters, **how)
    upstream = random(*y.shape, seed=upstream_seed)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    return [y.detach(), gradient, upstream, *masks_among(tensors)]


def largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def bits_of(mask: Tensor, channels: int) -> Tensor:
    """[n,h,w,bytes] -> bool [n,C,h,w], by NumPy."""
    bits = np.unpackbits(mask.numpy(), axis=3, bitorder="little")[..., :channels]
    return torch.from_numpy(bits).permute(0, 3, 1, 2).bool()


def certain_bits(before: Tensor, relu: bool, pool: bool) -> tuple[Tensor, Tensor]:
    """Whether a gradient passes each element of `before`, in float64, and where rounding cannot change that."""
    margin = 2 * TOLERANCE * largest(before)
    opens = (before > 0) if relu else torch.ones_like(before, dtype=torch.bool)
    sure = (before.abs() > margin) if relu else torch.ones_like(opens)
    if not pool:
        return opens, sure
    height, width = (size // 2 * 2 for size in before.shape[2:])
    values = F.relu(before) if relu else before
    windows = values[:, :, :height, :width].unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    first = torch.zeros_like(windows, dtype=torch.bool).scatter_(4, windows.argmax(dim=4, keepdim=True), True)
    two = windows.topk(2, dim=4).values
    clear = (two[..., 0] - two[..., 1] > margin) | ((two[..., 0] <= 0) & relu)
    passes, certain = torch.zeros_like(opens), torch.zeros_like(opens)  # the odd last row and column: of no window
    for i, (dy, dx) in enumerate(itertools.product((0, 1), repeat=2)):
        at = (slice(None), slice(None), slice(dy, height, 2), slice(dx, width, 2))
        passes[at] = first[..., i] & opens[at]
        certain[at] = clear & sure[at]
    return passes, certain


def assert_agrees(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool, pool: bool, impl: str, padding: int = 1
) -> None:
    """Forward against torch in float64; the mask where rounding cannot decide it; the gradient given the mask."""
    y, gradient, upstream, *masks = results(x, weight, bias, relu=relu, pool=pool, padding=padding, impl=impl)
    before = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=padding)
    exact = F.relu(before) if relu else before
    exact = F.max_pool2d(exact, 2) if pool else exact
    assert y.shape == exact.shape and y.is_contiguous(memory_format=torch.channels_last)
    assert largest(y - exact) <= TOLERANCE * largest(before)
    passing = upstream.double()
    if pool:
        wide = passing.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        passing = F.pad(wide, (0, before.shape[3] - wide.shape[3], 0, before.shape[2] - wide.shape[2]))
    assert len(masks) == int(relu or pool)
    for mask in masks:
        assert mask.shape == (len(x), *before.shape[2:], (len(weight) + 7) // 8)
        bits = bits_of(mask, len(weight))
        wanted, certain = certain_bits(before, relu, pool)
        assert torch.equal(bits & certain, wanted & certain)
        passing = passing * bits
    back = F.conv_transpose2d(passing, weight.double(), padding=padding)
    assert gradient.shape == x.shape
    assert largest(gradient - back) <= TOLERANCE * largest(back)


@every_follower
@pytest.mark.parametrize("bias", [False, True])
def test_agrees_with_float64(impl: str, relu: bool, pool: bool, bias: bool) -> None:
    sizes = SIZES[1:] if pool else SIZES
    for number, ((height, width), (inputs, outputs)) in enumerate(itertools.product(sizes, CHANNELS)):
        x = random(2, inputs, height, width, seed=number)
        assert_agrees(x, *filters_of(inputs, outputs, bias=bias, seed=number), relu=relu, pool=pool, impl=impl)


@every_follower
@pytest.mark.parametrize("padding", [0, 2])
def test_agrees_with_other_paddings(impl: str, relu: bool, pool: bool, padding: int) -> None:
    sizes = [(4, 4), (5, 8), (10, 7)] if padding == 0 else [(1, 2), (2, 1), (5, 8)]
    for number, ((height, width), (inputs, outputs)) in enumerate(itertools.product(sizes, CHANNELS)):
        x = random(2, inputs, height, width, seed=number)
        assert_agrees(x, *filters_of(inputs, outputs), relu=relu, pool=pool, impl=impl, padding=padding)


@pytest.mark.parametrize(("relu", "pool"), [(False, False), (True, False), (True, True)])
def test_agrees_across_blocks_of_tiles_and_groups_of_outputs(impl: str, relu: bool, pool: bool) -> None:
    x = random(7, 5, 16, 15, seed=3)  # 112 tiles, blocks have 96; 9 panels of outputs, groups have 8
    assert_agrees(x, *filters_of(5, 131), relu=relu, pool=pool, impl=impl)


def test_agrees_after_a_depth_of_many_parts(impl: str) -> None:
    """The bound is claimed for each layer of an extractor, of which the paper's have 512 channels."""
    for seed, size in enumerate((8, 16)):
        x = F.relu(random(4, 512, size, size, seed=seed))
        assert_agrees(x, *filters_of(512, 48, seed=seed), relu=True, pool=False, impl=impl)


def test_a_mean_of_the_input_far_from_zero_costs_no_accuracy(impl: str) -> None:
    x = 10 + random(2, 32, 16, 16, seed=4)
    weight, bias = filters_of(32, 16)
    assert_agrees(x, weight, bias, relu=False, pool=False, impl=impl)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_agrees_for_any_sizes_and_strides(impl: str, data: st.DataObject) -> None:
    sizes = [data.draw(st.integers(low, high)) for low, high in ((0, 3), (1, 40), (2, 11), (2, 11))]
    order = data.draw(st.permutations(range(4)))
    steps = [data.draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in sizes]
    expanded = data.draw(st.sampled_from([None, None, 1, 2, 3]))
    stored = [1 if axis == expanded else sizes[axis] * steps[axis] for axis in order]
    base = random(*stored, seed=data.draw(st.integers(0, 99))).permute([order.index(axis) for axis in range(4)])
    x = base[tuple(slice(None, None, 1 if axis == expanded else steps[axis]) for axis in range(4))].expand(sizes)
    weight, bias = filters_of(sizes[1], data.draw(st.integers(1, 40)), bias=data.draw(st.booleans()))
    assert_agrees(x, weight, bias, relu=data.draw(st.booleans()), pool=data.draw(st.booleans()), impl=impl)


@every_follower
def test_memory_formats_and_views_do_not_matter(level: str, relu: bool, pool: bool) -> None:
    weight, bias = filters_of(18, 9)
    x = random(3, 18, 7, 6, seed=6)
    wanted = results(x, weight, bias, relu=relu, pool=pool, impl="native")
    sliced = torch.cat((x, x), dim=1)[:, :18]
    last = x.contiguous(memory_format=torch.channels_last)
    for other in (last, sliced, torch._neg_view(-x), x.mT.contiguous().mT):
        assert same_bits(wanted, results(other, weight, bias, relu=relu, pool=pool, impl="native"))
    strided = torch.empty(9, 18, 3, 6)[..., ::2].copy_(weight)
    assert same_bits(wanted, results(x, strided, bias, relu=relu, pool=pool, impl="native"))


def test_an_expanded_upstream_gradient(impl: str) -> None:
    """As `y.sum().backward()` gives it: one number with strides of 0."""
    weight, bias = filters_of(5, 6)
    filters, x = prepare_filters(weight, bias, impl=impl), random(2, 5, 6, 7).requires_grad_(True)
    y = conv3x3(x, filters, relu=True, pool=True)
    (summed,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (given_in_full,) = torch.autograd.grad(y, x, torch.ones_like(y).contiguous())
    assert same_bits([summed], [given_in_full])


@every_follower
def test_ties_and_zeros_are_decided_as_torch_does(impl: str, relu: bool, pool: bool) -> None:
    """Small whole numbers, exact in every backend: of equal elements of a window the first passes, 0 does not."""
    generator = torch.Generator().manual_seed(7)
    for images, inputs, outputs, height, width in ((40, 1, 3, 4, 4), (5, 2, 20, 9, 7), (3, 4, 17, 16, 16)):
        x = torch.randint(-1, 2, (images, inputs, height, width), generator=generator).float()
        weight = torch.zeros(outputs, inputs, 3, 3)
        weight[:, :, 1, 1] = EXACT * torch.randint(-1, 2, (outputs, inputs), generator=generator)
        weight[:, :, 0, 2] = EXACT * torch.randint(-1, 2, (outputs, inputs), generator=generator)
        bias = EXACT * torch.randint(-1, 2, (outputs,), generator=generator).float()
        y, gradient, upstream, *_ = results(x, weight, bias, relu=relu, pool=pool, impl=impl)
        exact = x.double().requires_grad_(True)
        before = F.conv2d(exact, weight.double(), bias.double(), padding=1)
        wanted = F.relu(before) if relu else before
        wanted = F.max_pool2d(wanted, 2) if pool else wanted
        assert torch.equal(y.double(), wanted)
        (back,) = torch.autograd.grad(wanted, exact, upstream.double())
        assert largest(gradient - back) <= TOLERANCE * largest(back)
        if pool:
            windows = before.detach()[:, :, : height // 2 * 2, : width // 2 * 2].unfold(2, 2, 2).unfold(3, 2, 2)
            tied = (windows.flatten(4) == windows.flatten(4).amax(dim=4, keepdim=True)).sum(dim=4) > 1
            assert tied.float().mean() > 0.2
        if relu:
            assert (before == 0).float().mean() > 0.1


@every_follower
def test_same_bits_for_any_threads_and_again(impl: str, relu: bool, pool: bool) -> None:
    x = random(14, 9, 16, 16, seed=8)  # 224 tiles: three blocks, so two waves of one or two threads
    weight, bias = filters_of(9, 137)  # two groups
    assert_same_for_any_threads(lambda: results(x, weight, bias, relu=relu, pool=pool, impl=impl))


@every_follower
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 8), (5, 7)])
def test_an_images_result_has_the_same_bits_in_any_company(
    level: str, height: int, width: int, relu: bool, pool: bool
) -> None:
    filters = prepare_filters(*filters_of(19, 37), impl="native")
    x = random(11, 19, height, width, seed=9)

    def compute(images: list[int]) -> list[Tensor]:
        part = x[images].requires_grad_(True)
        with saved_tensors() as tensors:
            y = conv3x3(part, filters, relu=relu, pool=pool)
        upstream = torch.stack([random(*y.shape[1:], seed=image) for image in images])
        (gradient,) = torch.autograd.grad(y, part, upstream)
        return [y.detach(), gradient, *masks_among(tensors)]

    whole = compute(list(range(11)))
    for images in ([4], [10, 0, 4], list(range(10, -1, -1))):
        assert same_bits(compute(images), [tensor[images] for tensor in whole])


@needs_native
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 16), (33, 17), (16, 40)])
@pytest.mark.parametrize("strided", [False, True])
def test_transformed_filters_are_those_of_the_formula(inputs: int, outputs: int, strided: bool) -> None:
    """U = G w G^T in float64, zero past the last output."""
    g = (
        torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64)
        / 24
    )
    weight, _ = filters_of(outputs, inputs) if strided else filters_of(inputs, outputs)
    weight = weight.transpose(0, 1) if strided else weight
    filters = prepare_filters(weight, impl="native")
    turned = weight.transpose(0, 1).rot90(2, (2, 3))
    for w, got in ((weight, filters.winograd), (turned, filters.winograd_transposed)):
        expected = torch.einsum("py,oiyx,qx->pqoi", g, w.double(), g).flatten(0, 1)
        padded = F.pad(expected, (0, 0, 0, -len(w) % 16))
        torch.testing.assert_close(got, padded.unflatten(1, (-1, 16)).transpose(2, 3).float(), rtol=1e-6, atol=1e-7)


@every_follower
def test_empty_batch(impl: str, relu: bool, pool: bool) -> None:
    y, gradient, *_ = results(torch.empty(0, 5, 8, 6), *filters_of(5, 9), relu=relu, pool=pool, impl=impl)
    assert y.shape == ((0, 9, 4, 3) if pool else (0, 9, 8, 6)) and gradient.shape == (0, 5, 8, 6)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1)])
def test_a_grid_too_small_to_pool_is_refused(impl: str, size: tuple[int, int]) -> None:
    filters = prepare_filters(*filters_of(3, 4), impl=impl)
    with pytest.raises(ValueError, match=r"^x: expected a grid of at least 2 x 2"):
        conv3x3(random(2, 3, *size), filters, pool=True)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_nan_reaches_every_output_that_sees_it_and_no_other_image(impl: str, relu: bool, pool: bool) -> None:
    weight, bias = filters_of(3, 4)
    filters = prepare_filters(weight, bias, impl=impl)
    for y, x in itertools.product(range(8), range(8)):
        images = random(2, 3, 8, 8)
        images[1, 2, y, x] = torch.nan
        wanted = F.conv2d(images, weight, bias, padding=1)
        wanted = F.max_pool2d(wanted, 2) if pool else wanted
        got = conv3x3(images, filters, relu=relu, pool=pool)
        assert not got[0].isnan().any()
        assert got[1][wanted[1].isnan()].isnan().all()


def test_a_closed_relu_stops_nan_and_infinity(impl: str) -> None:
    x = random(2, 3, 6, 6).requires_grad_(True)
    y = conv3x3(x, prepare_filters(*filters_of(3, 9), impl=impl), relu=True)
    for value in (torch.nan, torch.inf):
        (gradient,) = torch.autograd.grad(y, x, torch.where(y > 0, 1.0, value), retain_graph=True)
        assert gradient.isfinite().all()


@every_follower
@pytest.mark.parametrize("channels", [1, 8, 9, 24])
def test_autograd_saves_one_bit_for_each_activation(impl: str, relu: bool, pool: bool, channels: int) -> None:
    filters = prepare_filters(*filters_of(6, channels), impl=impl)
    addresses = {tensor.data_ptr() for tensor in (filters.weight, filters.winograd, filters.winograd_transposed)}
    x = random(3, 6, 8, 10).requires_grad_(True)
    with saved_tensors() as tensors:
        y = conv3x3(x, filters, relu=relu, pool=pool)
    activations = [tensor for tensor in tensors if tensor.data_ptr() not in addresses and tensor.numel()]
    assert [tensor.nbytes for tensor in activations] == ([3 * 8 * 10 * ((channels + 7) // 8)] if relu or pool else [])
    assert y.requires_grad


def test_filters_get_no_gradient(impl: str) -> None:
    weight, bias = (tensor.requires_grad_(True) for tensor in filters_of(3, 4))
    filters = prepare_filters(weight, bias, impl=impl)
    assert not any(tensor.requires_grad for tensor in (filters.weight, filters.bias, filters.winograd))
    assert not conv3x3(random(1, 3, 4, 4), filters).requires_grad
    x = random(1, 3, 4, 4).requires_grad_(True)
    conv3x3(x, filters, relu=True).sum().backward()
    assert weight.grad is None and bias.grad is None and x.grad is not None


def test_a_second_derivative_is_refused(impl: str) -> None:
    x = random(1, 3, 5, 5).requires_grad_(True)
    y = conv3x3(x, prepare_filters(*filters_of(3, 4), impl=impl), relu=True)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="conv3x3_backward"):
        torch.autograd.grad(gradient.sum(), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_the_references(dtype: torch.dtype) -> None:
    weight, bias = (tensor.to(dtype) for tensor in filters_of(5, 6))
    filters = prepare_filters(weight, bias)
    assert filters.backend == "reference" and not filters.winograd.numel()
    x = random(2, 5, 6, 6, dtype=dtype).requires_grad_(True)
    y = conv3x3(x, filters, relu=True, pool=True)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.dtype == gradient.dtype == dtype
    exact = x.detach().double().requires_grad_(True)
    wanted = F.max_pool2d(F.relu(F.conv2d(exact, weight.double(), bias.double(), padding=1)), 2)
    tolerance = 32 * torch.finfo(dtype).eps
    assert largest(y.detach() - wanted.detach()) <= tolerance * largest(wanted.detach())
    if dtype == torch.float64:
        (back,) = torch.autograd.grad(wanted.sum(), exact)
        torch.testing.assert_close(gradient, back)


@needs_native
def test_the_variable_and_impl_choose_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = filters_of(2, 3)
    monkeypatch.delenv(IMPL_VARIABLE, raising=False)
    assert prepare_filters(weight, bias).backend == "native"
    assert prepare_filters(weight, bias, impl="reference").backend == "reference"
    monkeypatch.setenv(IMPL_VARIABLE, "reference")
    assert prepare_filters(weight, bias).backend == "reference"
    monkeypatch.delenv(IMPL_VARIABLE)
    with pytest.raises(BackendUnavailableError, match=r"conv3x3: impl='native' .* not torch.float64"):
        prepare_filters(weight.double(), impl="native")
    monkeypatch.setattr(native, "UNAVAILABLE", "it was not built")
    assert prepare_filters(weight, bias).backend == "reference"


@pytest.mark.parametrize("relu, pool, sizes", [(True, True, (3, 10, 5, 6)), (False, False, (1, 1, 4, 2))])
def test_opcheck(impl: str, relu: bool, pool: bool, sizes: tuple[int, ...]) -> None:
    inputs, outputs, height, width = sizes
    filters = prepare_filters(*filters_of(inputs, outputs), impl=impl)
    x = random(2, inputs, height, width).requires_grad_(True)
    parts = (filters.weight, filters.bias, filters.winograd, filters.winograd_transposed)
    torch.library.opcheck(torch.ops.cortex_fast.conv3x3.default, (x, *parts, relu, pool, 1, filters.backend))
    y, mask = torch.ops.cortex_fast.conv3x3(x.detach(), *parts, relu, pool, 1, filters.backend)
    torch.library.opcheck(
        torch.ops.cortex_fast.conv3x3_backward.default,
        (y, mask, filters.weight, filters.winograd_transposed, pool, [height, width], 1, filters.backend),
    )


def test_compiles_whole(impl: str) -> None:
    filters = prepare_filters(*filters_of(3, 4), impl=impl)

    def doubled(x: Tensor) -> Tensor:
        return 2 * conv3x3(x * 3, filters, relu=True, pool=True)

    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    x, plain_x = random(2, 3, 4, 6).requires_grad_(True), random(2, 3, 4, 6).requires_grad_(True)
    torch.testing.assert_close(compiled(x), doubled(plain_x))
    compiled(x).sum().backward()
    doubled(plain_x).sum().backward()
    torch.testing.assert_close(x.grad, plain_x.grad)


WEIGHT = torch.zeros(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("weight", "bias", "error", "message"),
    [
        (WEIGHT[0], None, ValueError, r"^weight: expected shape \[O, I, 3, 3\]"),
        (torch.zeros(4, 3, 1, 3), None, ValueError, r"^weight: expected shape \[O, I, 3, 3\]"),
        (torch.zeros(4, 3, 5, 5), None, ValueError, r"^weight: expected shape \[O, I, 3, 3\]"),
        (WEIGHT.int(), None, TypeError, "^weight: expected a floating-point tensor"),
        ("weight", None, TypeError, r"^weight: expected a torch.Tensor"),
        (WEIGHT, torch.zeros(3), ValueError, "^bias: expected the shape of"),
        (WEIGHT, torch.zeros(4, 1), ValueError, "^bias: expected the shape of"),
        (WEIGHT, torch.zeros(4, dtype=torch.int64), TypeError, "^bias: expected a floating-point tensor"),
        (WEIGHT, torch.zeros(4, dtype=torch.float64), TypeError, r"^bias: expected torch.float32"),
        (WEIGHT, torch.zeros(4, device="meta"), ValueError, r"expected one device"),
    ],
)
def test_bad_filters_are_named(weight: Tensor, bias: Tensor | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prepare_filters(weight, bias)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 4, 4), ValueError, r"^x: expected shape \[n, I, h, w\]"),
        (torch.zeros(2, 4, 4, 3), ValueError, "^x: expected 3 channels as in weight"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), TypeError, "^x: expected a floating-point tensor"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.float64), TypeError, "^x: expected torch.float32, the weight's dtype"),
        (torch.zeros(2, 3, 4, 4, device="meta"), ValueError, "^x, weight: expected one device"),
    ],
)
def test_bad_input_is_named(impl: str, x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        conv3x3(x, prepare_filters(WEIGHT, impl=impl))
