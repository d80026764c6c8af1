"""nearest_code against distances taken one difference at a time in float64."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cortex_fast.ops import nearest_code
from cortex_fast.ops.backends import BackendUnavailableError
from tests.ops.backends_under_test import (
    assert_same_for_any_threads,
    few,
    needs_native,
    random,
    same_bits,
    skip_in_interpreter,
)


def brute_force(z: Tensor, codebook: Tensor) -> np.ndarray:
    difference = z.double().numpy()[..., None, :] - codebook.double().numpy()
    return np.square(difference).sum(axis=-1).argmin(axis=-1)


@settings(deadline=None, max_examples=25)
@given(
    lead=st.lists(st.integers(0, 4), max_size=3),
    codes=st.integers(1, 40),
    channels=st.integers(1, 20),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_is_the_brute_force_minimum(impl: str, lead: list[int], codes: int, channels: int, dtype: torch.dtype) -> None:
    z, codebook = random(*lead, channels, dtype=dtype), random(codes, channels, seed=1, dtype=dtype)
    index = nearest_code(z, codebook, impl=impl)
    assert index.dtype == torch.int64
    assert index.shape == tuple(lead)
    np.testing.assert_array_equal(index.numpy(), brute_force(z, codebook))


def test_more_rows_than_the_definition_takes_at_a_time(impl: str) -> None:
    skip_in_interpreter(impl)
    z, codebook = random(2100, 8), random(20, 8, seed=1)
    np.testing.assert_array_equal(nearest_code(z, codebook, impl=impl).numpy(), brute_force(z, codebook))


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1, 50), (1, 5000), (1e20, 0), (1e-25, 0), (1e-3, 100)])
def test_codebook_rows_map_to_themselves(impl: str, scale: float, offset: float) -> None:
    codebook = random(300, 16, dtype=torch.float64).mul(scale).add(offset).float()
    rows = list(range(0, 300, few(impl, 1, 29)))
    assert nearest_code(codebook[rows], codebook, impl=impl).tolist() == rows


def test_half_rows_beyond_the_range_of_their_squares(impl: str) -> None:
    codebook = random(100, 16, dtype=torch.float64).mul(5000).half()
    rows = list(range(0, 100, few(impl, 1, 11)))
    assert nearest_code(codebook[rows], codebook, impl=impl).tolist() == rows


def test_vectors_far_from_the_codebook(impl: str) -> None:
    z, codebook = random(few(impl, 200, 10), 16) * 1e6, random(64, 16, seed=1)
    np.testing.assert_array_equal(nearest_code(z, codebook, impl=impl).numpy(), brute_force(z, codebook))


@pytest.mark.parametrize("channels", [1, 3, 5, 8, 17, 256])
@pytest.mark.parametrize("codes", [2, 5, 17, 130])
def test_equal_codes_give_the_lowest_index(impl: str, channels: int, codes: int) -> None:
    away = random(3, channels) + 1000
    codebook = torch.cat((away, random(1, channels, seed=1).expand(codes, channels), away))
    for rows in (1, 2, few(impl, 33, 3)):
        assert nearest_code(random(rows, channels, seed=rows), codebook, impl=impl).tolist() == [3] * rows


def test_equidistant_codes_give_the_lowest_index(impl: str) -> None:
    codebook = torch.tensor([[3.0, 3.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]])
    assert nearest_code(torch.zeros(2), codebook, impl=impl).item() == 1
    assert nearest_code(torch.zeros(4, 2), codebook.flip(0), impl=impl).tolist() == [0] * 4


def test_a_row_does_not_depend_on_the_others(impl: str) -> None:
    z, codebook = random(few(impl, 30, 5), 24), random(1, 24, seed=1) + 1e-7 * random(200, 24, seed=2)
    together = nearest_code(z, codebook, impl=impl).tolist()
    assert together == [nearest_code(row, codebook, impl=impl).item() for row in z]
    assert together == brute_force(z, codebook).tolist()


def test_precisions_may_differ() -> None:
    wide = random(50, 8, dtype=torch.float64) * 1e-9 + 1
    assert nearest_code(wide, wide).tolist() == list(range(50))
    z = random(20, 8)
    np.testing.assert_array_equal(nearest_code(z, wide).numpy(), brute_force(z, wide))
    np.testing.assert_array_equal(nearest_code(wide, z).numpy(), brute_force(wide, z))


def test_strided_views(impl: str) -> None:
    z, codebook = random(8, 5, 4).transpose(0, 2), random(8, 20, seed=1).T
    np.testing.assert_array_equal(nearest_code(z, codebook, impl=impl).numpy(), brute_force(z, codebook))
    expanded = random(1, 8).expand(6, 8)
    np.testing.assert_array_equal(
        nearest_code(expanded, codebook[::2], impl=impl).numpy(), brute_force(expanded, codebook[::2])
    )


SIZES = [  # rows, codes, channels: on both sides of the kernel's tiles of 96 codes and panels of 16 rows
    (1, 1, 1), (15, 3, 17), (16, 95, 7), (17, 96, 16), (33, 97, 1), (17, 193, 16), (1, 767, 1030), (33, 769, 7),
    (16, 1537, 17), (513, 100, 3),
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES)
def test_odd_sizes(impl: str, sizes: tuple[int, int, int]) -> None:
    rows, codes, channels = sizes
    rows, channels = min(rows, few(impl, rows, 17)), min(channels, few(impl, channels, 70))
    z, codebook = random(rows, channels), random(codes, channels, seed=1)
    np.testing.assert_array_equal(nearest_code(z, codebook, impl=impl).numpy(), brute_force(z, codebook))
    repeated = codebook[torch.arange(codes) // 2]  # each code twice, also across tiles: the first of the two
    np.testing.assert_array_equal(nearest_code(z, repeated, impl=impl).numpy(), brute_force(z, repeated))


@pytest.mark.parametrize("scale", [1e-3, 1e-5, 1e-6, 1e-7])
def test_near_ties_that_float32_cannot_tell(impl: str, scale: float) -> None:
    z, codebook = random(1, 32), random(400, 32, seed=1) * 3
    step = random(1, 32, seed=2)
    codebook[20], codebook[350] = z[0] - step[0] * scale * 1.001, z[0] + step[0] * scale
    codebook[210] = z[0] + step[0] * scale * (1 - 1e-4)
    np.testing.assert_array_equal(nearest_code(z, codebook, impl=impl).numpy(), brute_force(z, codebook))


@pytest.mark.parametrize("offset", [10, 1e3, 1e5])
def test_codes_a_few_last_bits_apart(impl: str, offset: float) -> None:
    generator = torch.Generator().manual_seed(3)
    z, codebook = (offset * (1 + 2e-6 * torch.rand(rows, 16, generator=generator)) for rows in (few(impl, 50, 5), 400))
    np.testing.assert_array_equal(nearest_code(z, codebook, impl=impl).numpy(), brute_force(z, codebook))


@pytest.mark.parametrize("scales", [(1e-30, 1e-30), (1e25, 1e25), (1e-30, 1), (1, 1e-30), (1, 1e25), (1e10, 1), (0, 1)])
def test_tiny_and_huge_vectors(impl: str, scales: tuple[float, float]) -> None:
    z, codebook = random(few(impl, 20, 3), 16) * scales[0], random(500, 16, seed=1) * scales[1]
    np.testing.assert_array_equal(nearest_code(z, codebook, impl=impl).numpy(), brute_force(z, codebook))
    mixed = torch.cat((codebook, random(3, 16, seed=2) * 1e25, random(200, 16, seed=3)))
    np.testing.assert_array_equal(nearest_code(z, mixed, impl=impl).numpy(), brute_force(z, mixed))


@pytest.mark.parametrize("scale", [1e18, 1e25, 1e30])
def test_from_far_away_all_codes_are_equally_near(impl: str, scale: float) -> None:
    # in float64 z - c is z
    z, codebook = random(few(impl, 20, 3), 16).sign() * scale, random(500, 16, seed=1)
    assert nearest_code(z, codebook, impl=impl).tolist() == [0] * len(z)


def test_the_largest_floats(impl: str) -> None:
    largest = torch.finfo(torch.float32).max
    codebook = torch.full((200, 4), -largest)
    codebook[150] = largest
    codebook[160] = 0
    z = torch.tensor([[largest] * 4, [-largest] * 4, [1.0] * 4])
    assert nearest_code(z, codebook, impl=impl).tolist() == [150, 0, 160]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (0, 0, 4)])
def test_empty(impl: str, shape: tuple[int, ...]) -> None:
    index = nearest_code(torch.zeros(shape), torch.zeros(5, 4), impl=impl)
    assert index.shape == shape[:-1]
    assert index.dtype == torch.int64


def test_vectors_without_channels_are_all_equally_near(impl: str) -> None:
    assert nearest_code(torch.zeros(3, 0), torch.zeros(4, 0), impl=impl).tolist() == [0] * 3
    assert nearest_code(torch.zeros(0, 0), torch.zeros(4, 0), impl=impl).tolist() == []


def test_nan_gives_index_0_and_harms_no_other_row(impl: str) -> None:
    z, codebook = random(3, 4), random(9, 4, seed=1)
    expected = brute_force(z, codebook)
    z[1, 2] = torch.nan
    assert nearest_code(z, codebook, impl=impl).tolist() == [expected[0], 0, expected[2]]


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_infinity_in_z_gives_index_0_and_harms_no_other_row(impl: str, value: float) -> None:
    z, codebook = random(few(impl, 20, 5), 4), random(300, 4, seed=1)
    expected = brute_force(z, codebook)
    z[3, 2], expected[3] = value, 0
    np.testing.assert_array_equal(nearest_code(z, codebook, impl=impl).numpy(), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", [[0], [299], [150, 7], range(128), range(96, 300), [*range(299)]], ids=str)
def test_codes_that_are_not_finite_are_nearest_to_nothing(impl: str, value: float, where: Sequence[int]) -> None:
    """Also whole tiles of them; other codes are found as if they were alone."""
    z, codebook = random(few(impl, 40, 6), 5), random(300, 5, seed=1)
    finite = torch.tensor([code for code in range(300) if code not in where])
    expected = finite[torch.from_numpy(brute_force(z, codebook[finite]))]
    codebook[list(where), torch.arange(len(where)) % 5] = value
    assert nearest_code(z, codebook, impl=impl).tolist() == expected.tolist()
    z[1], expected[1] = value, 0  # such a vector is near to nothing either
    assert nearest_code(z, codebook, impl=impl).tolist() == expected.tolist()


def test_without_a_finite_code_the_index_is_0(impl: str) -> None:
    codebook = torch.full((200, 3), torch.inf)
    codebook[50:] = torch.nan
    assert nearest_code(random(5, 3), codebook, impl=impl).tolist() == [0] * 5
    codebook = torch.full((2, 3), torch.nan, dtype=torch.float64)
    assert nearest_code(random(5, 3), codebook).tolist() == [0] * 5


@pytest.mark.parametrize("scale", [2e-22, 6e-23, 3e-23, 1e-23])
def test_vectors_whose_products_are_below_the_normal_floats(impl: str, scale: float) -> None:
    """Few bits are left of |c|^2 - 2 <z, c>, or none, which no relative bound on the error knows of."""
    z, codebook = random(few(impl, 40, 4), 16) * scale, random(few(impl, 2000, 700), 16, seed=1) * scale
    np.testing.assert_array_equal(nearest_code(z, codebook, impl=impl).numpy(), brute_force(z, codebook))


def test_native_gives_the_same_bits_for_any_threads_and_any_company(level: str) -> None:
    z, codebook = random(530, 17), random(1, 17, seed=1) + 1e-6 * random(900, 17, seed=2)
    assert_same_for_any_threads(lambda: [nearest_code(z, codebook, impl="native")])
    together = nearest_code(z, codebook, impl="native")
    for part in (slice(1), slice(15, 17), slice(500, 530), slice(None, None, 7)):
        assert same_bits([nearest_code(z[part], codebook, impl="native")], [together[part]])


def test_lazily_negated_views(impl: str) -> None:
    z, codebook = random(9, 4), random(30, 4, seed=1)
    expected = brute_force(-z, -codebook)
    got = nearest_code(torch._neg_view(z), torch._neg_view(codebook), impl=impl)
    np.testing.assert_array_equal(got.numpy(), expected)


@needs_native
def test_forced_native_says_why_it_cannot_serve() -> None:
    with pytest.raises(BackendUnavailableError, match=r"nearest_code: impl='native' .* not torch.float64"):
        nearest_code(random(3, 4, dtype=torch.float64), random(5, 4), impl="native")


def test_is_not_differentiable() -> None:
    index = nearest_code(random(3, 4).requires_grad_(), random(5, 4).requires_grad_())
    assert not index.requires_grad


@pytest.mark.parametrize(
    ("z", "codebook", "error", "named"),
    [
        (torch.zeros(3, 4, dtype=torch.int64), torch.zeros(5, 4), TypeError, "z"),
        (torch.zeros(3, 4), torch.zeros(5, 4, dtype=torch.int32), TypeError, "codebook"),
        (torch.zeros(3, 4), torch.zeros(5, 3), ValueError, "z"),
        (torch.zeros(()), torch.zeros(5, 1), ValueError, "z"),
        (torch.zeros(3, 4), torch.zeros(4), ValueError, "codebook"),
        (torch.zeros(3, 4), torch.zeros(2, 5, 4), ValueError, "codebook"),
        (torch.zeros(3, 4), torch.zeros(0, 4), ValueError, "codebook"),
        (torch.zeros(3, 4), torch.zeros(5, 4, device="meta"), ValueError, "codebook"),
    ],
)
def test_bad_arguments_are_named(z: Tensor, codebook: Tensor, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=rf"\b{named}\b.*expected"):
        nearest_code(z, codebook)


def test_unknown_impl_is_named() -> None:
    with pytest.raises(ValueError, match="impl"):
        nearest_code(torch.zeros(3, 4), torch.zeros(5, 4), impl="fast")


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.cortex_fast.nearest_code.default, (random(4, 7).T, random(5, 4, seed=1), "auto"))


def test_meta_and_compile() -> None:
    z, codebook = random(2, 3, 4), random(5, 4, seed=1)
    assert nearest_code(z.to("meta"), codebook.to("meta")).shape == (2, 3)
    compiled = torch.compile(nearest_code, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 5):
        z = random(batch, 3, 4, seed=batch)
        np.testing.assert_array_equal(compiled(z, codebook).numpy(), brute_force(z, codebook))


def test_of_two_far_codes_as_near_the_reference_takes_the_first():
    """Codes z + t and z - t, exact in float32, whose squares float64 has to round."""
    generator = torch.Generator().manual_seed(6)
    for _ in range(50):
        small, large = (
            torch.randint(2**22, (2, 2), generator=generator).float().mul(torch.tensor([2.0**-20, 2.0**-3])).T
        )
        z, t = torch.stack((small[0], large[0] % 1)), torch.stack((small[1], large[1]))
        assert torch.equal(z + t - z, t) and torch.equal(z - t - z, -t)
        assert int(nearest_code(z[None], torch.stack((z + t, z - t)), impl="reference")) == 0
