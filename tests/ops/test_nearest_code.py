"""nearest_code against distances taken one difference at a time in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cortex_fast.ops import nearest_code


def brute_force(z: Tensor, codebook: Tensor) -> np.ndarray:
    difference = z.double().numpy()[..., None, :] - codebook.double().numpy()
    return np.square(difference).sum(axis=-1).argmin(axis=-1)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@settings(deadline=None, max_examples=25)
@given(
    lead=st.lists(st.integers(0, 4), max_size=3),
    codes=st.integers(1, 40),
    channels=st.integers(1, 20),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_is_the_brute_force_minimum(lead: list[int], codes: int, channels: int, dtype: torch.dtype) -> None:
    z, codebook = random(*lead, channels, dtype=dtype), random(codes, channels, seed=1, dtype=dtype)
    index = nearest_code(z, codebook)
    assert index.dtype == torch.int64
    assert index.shape == tuple(lead)
    np.testing.assert_array_equal(index.numpy(), brute_force(z, codebook))


def test_more_rows_than_the_definition_takes_at_a_time() -> None:
    z, codebook = random(2100, 8), random(20, 8, seed=1)
    np.testing.assert_array_equal(nearest_code(z, codebook).numpy(), brute_force(z, codebook))


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1, 50), (1, 5000), (1e20, 0), (1e-25, 0), (1e-3, 100)])
def test_codebook_rows_map_to_themselves(scale: float, offset: float) -> None:
    codebook = random(300, 16, dtype=torch.float64).mul(scale).add(offset).float()
    assert nearest_code(codebook, codebook).tolist() == list(range(300))


def test_half_rows_beyond_the_range_of_their_squares() -> None:
    codebook = random(100, 16, dtype=torch.float64).mul(5000).half()
    assert nearest_code(codebook, codebook).tolist() == list(range(100))


def test_vectors_far_from_the_codebook() -> None:
    z, codebook = random(200, 16) * 1e6, random(64, 16, seed=1)
    np.testing.assert_array_equal(nearest_code(z, codebook).numpy(), brute_force(z, codebook))


@pytest.mark.parametrize("channels", [1, 3, 5, 8, 17, 256])
@pytest.mark.parametrize("codes", [2, 5, 17, 130])
def test_equal_codes_give_the_lowest_index(channels: int, codes: int) -> None:
    away = random(3, channels) + 1000
    codebook = torch.cat((away, random(1, channels, seed=1).expand(codes, channels), away))
    for rows in (1, 2, 33):
        assert nearest_code(random(rows, channels, seed=rows), codebook).tolist() == [3] * rows


def test_equidistant_codes_give_the_lowest_index() -> None:
    codebook = torch.tensor([[3.0, 3.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]])
    assert nearest_code(torch.zeros(2), codebook).item() == 1
    assert nearest_code(torch.zeros(4, 2), codebook.flip(0)).tolist() == [0] * 4


def test_a_row_does_not_depend_on_the_others() -> None:
    z, codebook = random(30, 24), random(1, 24, seed=1) + 1e-7 * random(200, 24, seed=2)
    together = nearest_code(z, codebook).tolist()
    assert together == [nearest_code(row, codebook).item() for row in z]
    assert together == brute_force(z, codebook).tolist()


def test_precisions_may_differ() -> None:
    wide = random(50, 8, dtype=torch.float64) * 1e-9 + 1
    assert nearest_code(wide, wide).tolist() == list(range(50))
    z = random(20, 8)
    np.testing.assert_array_equal(nearest_code(z, wide).numpy(), brute_force(z, wide))
    np.testing.assert_array_equal(nearest_code(wide, z).numpy(), brute_force(wide, z))


def test_strided_views() -> None:
    z, codebook = random(8, 5, 4).transpose(0, 2), random(8, 20, seed=1).T
    np.testing.assert_array_equal(nearest_code(z, codebook).numpy(), brute_force(z, codebook))
    expanded = random(1, 8).expand(6, 8)
    np.testing.assert_array_equal(nearest_code(expanded, codebook[::2]).numpy(), brute_force(expanded, codebook[::2]))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (0, 0, 4)])
def test_empty(shape: tuple[int, ...]) -> None:
    index = nearest_code(torch.zeros(shape), torch.zeros(5, 4))
    assert index.shape == shape[:-1]
    assert index.dtype == torch.int64


def test_vectors_without_channels_are_all_equally_near() -> None:
    assert nearest_code(torch.zeros(3, 0), torch.zeros(4, 0)).tolist() == [0] * 3
    assert nearest_code(torch.zeros(0, 0), torch.zeros(4, 0)).tolist() == []


def test_nan_gives_index_0_and_harms_no_other_row() -> None:
    z, codebook = random(3, 4), random(9, 4, seed=1)
    expected = brute_force(z, codebook)
    z[1, 2] = torch.nan
    assert nearest_code(z, codebook).tolist() == [expected[0], 0, expected[2]]


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
