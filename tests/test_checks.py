"""What the public edge's checks refuse."""

import pytest
import torch

from cortex_fast import checks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found_anywhere(dtype: torch.dtype, value: float) -> None:
    for at in (0, 7, 99):
        tensor = torch.zeros(10, 20, dtype=dtype)[:, ::2]  # with gaps
        checks.finite("x", tensor)
        tensor[at // 10, at % 10] = value
        with pytest.raises(ValueError, match="x: expected finite values"):
            checks.finite("x", tensor)
    checks.finite("x", torch.full((3,), torch.finfo(dtype).max, dtype=dtype))
    checks.finite("x", torch.empty(0, 3, dtype=dtype))


@pytest.mark.parametrize("kind", [torch.uint16, torch.uint32])
def test_unsigned_values_are_all_looked_at(kind):
    """In parts: the one that is out of range may lie in any, of a tensor that lies in any way."""
    values = torch.zeros(2, 2**22 - 1, dtype=torch.int32)
    for place in (0, 2**22 - 2):
        values[1, place] = 40_000
        for tensor in (values.to(kind), values.to(kind).T):
            checks.in_range("tokens", tensor, 40_001)
            with pytest.raises(ValueError, match=r"^tokens: expected values in \[0, 40000\), got 0 to 40000"):
                checks.in_range("tokens", tensor, 40_000)
        values[1, place] = 0


def test_what_has_8_bits_is_no_floating_point_tensor_to_compute_with():
    for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        checks.floating("x", torch.zeros(1, dtype=kind))
    with pytest.raises(TypeError, match=r"^x: expected a floating-point tensor of at least 16 bits, got torch.float8"):
        checks.floating("x", torch.zeros(1).to(torch.float8_e5m2))
