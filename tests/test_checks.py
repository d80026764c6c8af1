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
