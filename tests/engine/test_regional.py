"""regional: where a box of the input changes, the result and gradient of the whole computation, from a part of it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cortex_fast.engine import Prepared, prepare
from cortex_fast.engine.regional import regional
from cortex_fast.engine.windows import Box, Window
from tests.engine.user_modules import CHANNELS, GRID, Of, conv, embedding, ended, linear, norm, relative
from tests.known_extractors import tiny

TARGET = torch.tensor([2, 0, 3])
FEW, MANY = 1, 10_000  # copies: convolutions by torch, and by ops.conv3x3

EXTRACTORS = {
    "ce": lambda: tiny("ce"),
    "re": lambda: tiny("re"),
    "strides and sizes": lambda: ended(
        lambda self, x: self.b(F.gelu(self.a(x))),
        8 * 2 * 2,
        a=conv(size=5, stride=2, padding=1),
        b=conv(8, 8, seed=5, stride=2),
    ),
    "nothing but windows": lambda: Of(
        lambda self, x: self.head(self.pool(self.norm(self.a(x))).flatten(1)),
        a=conv(padding=0, size=4),
        norm=norm(),
        pool=nn.AvgPool2d(2),
        head=linear(8 * 2 * 2),
    ),
    "a function's pooling": lambda: Of(
        lambda self, x: self.head(F.max_pool2d(torch.relu(self.a(x)), 2).flatten(1)), a=conv(), head=linear(8 * 4 * 4)
    ),
    "no window at all": lambda: Of(lambda self, x: self.head(torch.tanh(x).flatten(1)), head=linear(CHANNELS * 64)),
    "two ways to the end": lambda: ended(lambda self, x: self.a(x).relu() + self.b(x), a=conv(), b=conv(seed=6)),
    "an operation in place": lambda: ended(
        lambda self, x: self.b(F.leaky_relu(self.c(self.a(x).tanh()), 0.2, inplace=True)),
        a=conv(),
        b=conv(8, 8, seed=5),
        c=conv(8, 8, seed=6),
    ),
    "a shape that is read": lambda: Of(
        lambda self, x: self.head(F.relu(self.a(x)).reshape(x.size(0), -1)), a=conv(), head=linear(8 * 64)
    ),
    "parts": lambda: ended(lambda self, x: torch.cat(self.a(x).chunk(2, 1)[::-1], 1), a=conv()),
    "dilation": lambda: ended(lambda self, x: self.a(x), a=conv(dilation=2, padding=2)),
}


def box_of(top: int, left: int, height: int, width: int, grid: int = GRID) -> Box:
    top, left = min(top, grid - 1), min(left, grid - 1)
    return Box(top, left, min(grid, top + height), min(grid, left + width))


def assert_equals_the_whole(prepared: Prepared, box: Box, x: Tensor, fresh: Tensor) -> None:
    """x with `fresh` in the box: the value, and the gradient in the box, against the whole extractor's."""
    window = fresh[:, :, box.top : box.bottom, box.left : box.right].clone().requires_grad_(True)
    reached = regional(prepared, x, box)
    assert reached is not None
    value = prepared.head_value(reached(window), TARGET)
    (gradient,) = torch.autograd.grad(value.sum(), window)
    changed = x.clone()
    changed[:, :, box.top : box.bottom, box.left : box.right] = window.detach()
    changed.requires_grad_(True)
    wanted = prepared.extractor(changed).gather(1, TARGET[:, None])[:, 0]
    (everywhere,) = torch.autograd.grad(wanted.sum(), changed)
    assert relative(value.detach(), wanted.detach()) < 1e-5
    wanted_gradient = everywhere[:, :, box.top : box.bottom, box.left : box.right]
    assert torch.allclose(gradient, wanted_gradient, rtol=0, atol=1e-4 * float(everywhere.abs().max()))


@pytest.mark.parametrize("copies", [FEW, MANY])
@pytest.mark.parametrize("name", EXTRACTORS)
def test_corners_borders_and_the_middle(name: str, copies: int) -> None:
    prepared = prepare(EXTRACTORS[name](), embedding(), copies=copies)
    for sides in [(0, 0, 1, 1), (7, 7, 1, 1), (0, 3, 2, 5), (6, 0, 2, 2), (3, 3, 2, 2), (2, 5, 3, 3), (0, 0, 8, 8)]:
        assert_equals_the_whole(prepared, box_of(*sides), embedding(seed=1), embedding(seed=2))


@pytest.fixture(scope="module")
def ce() -> Prepared:
    return prepare(tiny("ce", grid=16), embedding(grid=16), copies=MANY)


@settings(max_examples=25, deadline=None)
@given(*[st.integers(0, 15)] * 2, *[st.integers(1, 16)] * 2, st.integers(0, 5))
def test_any_box_of_ce(ce: Prepared, top: int, left: int, height: int, width: int, seed: int) -> None:
    box = box_of(top, left, height, width, grid=16)
    x, fresh = embedding(grid=16, seed=seed), embedding(grid=16, seed=seed + 9)
    assume(is_steady(ce, box, x, fresh))
    assert_equals_the_whole(ce, box, x, fresh)


@pytest.mark.parametrize(("name", "grid"), [("ce", (8, 12)), ("re", (6, 10))])
def test_boxes_of_a_grid_of_rows_and_columns(name: str, grid: tuple[int, int]) -> None:
    x, fresh = torch.randn(2, 3, CHANNELS, *grid, generator=torch.Generator().manual_seed(0))
    for copies in (FEW, MANY):
        prepared = prepare(tiny(name, grid=grid), x, copies=copies)
        rows, columns = grid
        for box in (
            Box(1, columns - 3, 3, columns),
            Box(rows - 2, 0, rows, 2),
            Box(0, 4, rows, 5),
            Box(2, 0, 3, columns),
        ):
            assert_equals_the_whole(prepared, box, x, fresh)


def is_steady(prepared: Prepared, box: Box, x: Tensor, fresh: Tensor) -> bool:
    """Whether no ReLU of the extractor is within rounding of its kink, where a gradient jumps: in float64, changing x
    by float32's last bits changes the gradient by less than the tolerance."""
    changed = x.double()
    changed[:, :, box.top : box.bottom, box.left : box.right] = fresh[:, :, box.top : box.bottom, box.left : box.right]
    extractor = copy.deepcopy(prepared.extractor).double()

    def gradient(at: Tensor) -> Tensor:
        leaf = at.clone().requires_grad_(True)
        return torch.autograd.grad(extractor(leaf).gather(1, TARGET[:, None]).sum(), leaf)[0]

    exact, generator = gradient(changed), torch.Generator().manual_seed(0)
    near = (torch.randn(changed.shape, generator=generator, dtype=torch.float64) * 2e-6 for _ in range(3))
    moved = [gradient(changed * (1 + sign * step)) for step in near for sign in (1, -1)]
    return max(float((gradients - exact).abs().max()) for gradients in moved) < 1e-5 * float(exact.abs().max())


def test_only_the_reached_cells_are_computed(ce: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 4 x 4 box in the middle: convolutions of 6, 8, 10 and 14 squared (pooling takes pairs of rows), then all."""
    from cortex_fast import ops

    sizes: list[tuple[int, int]] = []
    convolve = ops.conv3x3

    def recording(x: Tensor, *arguments, padding: int = 1, **options) -> Tensor:
        sizes.append((x.shape[2] + 2 * padding - 2, padding))
        return convolve(x, *arguments, padding=padding, **options)

    reached = regional(ce, embedding(grid=16), Box(7, 7, 11, 11))
    monkeypatch.setattr(ops, "conv3x3", recording)
    assert reached is not None
    reached(embedding(grid=16)[:, :, 7:11, 7:11])
    assert sizes[:4] == [(6, 0), (8, 0), (10, 0), (14, 0)] and sizes[4:] == [(8, 1)] * 4


def test_an_unsplit_extractor_has_no_region() -> None:
    branching = lambda self, x: self.head(x.flatten(1) if x.sum() > 0 else -x.flatten(1))  # noqa: E731
    prepared = prepare(Of(branching, head=linear(CHANNELS * 64)), embedding())
    assert regional(prepared, embedding(), Box(0, 0, 2, 2)) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2), st.integers(5, 9), st.integers(0, 8), st.integers(1, 9))
def test_a_windows_reach_is_the_cells_that_a_change_moves(
    size: int, stride: int, padding: int, grid: int, low: int, length: int
) -> None:
    low = min(low, grid - 1)
    high = min(grid, low + length)
    if size > grid + 2 * padding:
        return
    line = torch.zeros(1, 1, grid, 1)
    line[:, :, low:high] = 1
    moved = F.conv2d(line, torch.ones(1, 1, size, 1), stride=(stride, 1), padding=(padding, 0))[0, 0, :, 0]
    box = Window((size, 1), (stride, 1), (padding, 0)).reach(Box(low, 0, high, 1), (len(moved), 1))
    assert [row for row in range(len(moved)) if moved[row] > 0] == list(range(box.top, box.bottom))
