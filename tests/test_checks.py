"""What the public edge's checks refuse."""

import enum
from collections.abc import Callable

import numpy as np
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


class Level(enum.IntEnum):
    THREE = 3


THREES = [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint16), Level.THREE]
FIFTHS = [0.2, np.float64(0.2), np.array(0.2), torch.tensor(0.2, dtype=torch.float64)]
NO_NUMBERS = [
    *(None, "3", [3], (3,), {}, 3j, True, np.True_, torch.tensor(True), np.array([3]), torch.tensor([3]), len),
    *(np.complex64(3), np.array(3, dtype=object), np.timedelta64(3, "s"), np.ma.masked, np.str_("3"), np.longdouble(3)),
    *(torch.tensor(3j), torch.tensor(3.0, requires_grad=True), torch.tensor(3, device="meta"), torch.int64),
    torch.tensor(3).to_sparse(),
]


@pytest.mark.parametrize("value", THREES, ids=repr)
def test_a_whole_number_may_come_from_numpy_and_torch_and_leaves_as_pythons(value: object) -> None:
    for number in (checks.whole("n", value, 0, 9), checks.seed(value)):
        assert type(number) is int
        assert number == 3
    for real in (checks.positive("x", value), checks.non_negative("x", value)):
        assert type(real) is float
        assert real == 3.0


@pytest.mark.parametrize("value", [*FIFTHS, np.float32(0.2), np.float16(0.2), torch.tensor(0.2)], ids=repr)
def test_a_number_may_come_from_numpy_and_torch_and_leaves_as_pythons(value: object) -> None:
    for number in (checks.positive("x", value), checks.non_negative("x", value)):
        assert type(number) is float
        assert number == float(value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="n: expected a whole number at least 0, got"):
        checks.whole("n", value, 0)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_single_number_is_refused_by_name(value: object) -> None:
    for check in (checks.whole, checks.positive, checks.non_negative):
        with pytest.raises(TypeError, match=r"^n: expected a .*number.*, got "):
            check("n", value, *((0,) if check is checks.whole else ()))
    with pytest.raises(TypeError, match=r"^seed: expected a whole number from 0 to 9223372036854775807, got "):
        checks.seed(value)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -1, -1e-300, np.float32("nan"), 10**400, torch.tensor(-1)]
)
def test_numbers_out_of_bounds_are_refused_by_name(value: float) -> None:
    for check in (checks.positive, checks.non_negative):
        with pytest.raises(ValueError, match=r"^x: expected a .*number.*, got "):
            check("x", value)


def test_seeds_end_at_63_bits() -> None:
    assert checks.seed(np.uint64(2**63 - 1)) == 2**63 - 1
    for value in (-1, 2**63, 2**64, np.uint64(2**63), np.int64(-1)):
        with pytest.raises(ValueError, match=rf"^seed: expected a whole number from 0 to .*, got {value}"):
            checks.seed(value)


def test_flags_are_true_or_false() -> None:
    assert checks.flag("hard", True) is checks.flag("hard", np.True_) is True
    assert checks.flag("hard", False) is False
    for value in (None, 1, 0, "x", 1.0, torch.tensor(True), np.array([True]), []):
        with pytest.raises(TypeError, match=r"^hard: expected True or False, got "):
            checks.flag("hard", value)


def test_choices_are_texts() -> None:
    checks.one_of("per", "image", ("image", "occurrence"))
    for value in (None, 3, [], {}, torch.zeros(3), np.zeros(3), "imag", b"image"):
        with pytest.raises(ValueError, match=r"^per: expected one of 'image', 'occurrence', got "):
            checks.one_of("per", value, ("image", "occurrence"))


@pytest.mark.parametrize(
    "form",
    [
        torch.Tensor.to_sparse,
        torch.Tensor.to_sparse_csr,
        lambda dense: torch.nested.nested_tensor([dense, dense[:1]]),
        lambda dense: torch.nested.nested_tensor([dense, dense[:1]], layout=torch.jagged),
        lambda dense: dense.to(torch.float8_e4m3fn),
        lambda dense: torch.quantize_per_tensor(dense, 1.0, 0, torch.quint8),
        lambda dense: dense.to(torch.complex64),
        torch.Tensor.numpy,
        torch.Tensor.tolist,
    ],
    ids=["sparse", "csr", "nested", "jagged", "float8", "quantised", "complex", "numpy", "list"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of forms that torch calls prototypes, or will remove
def test_tensors_of_other_forms_are_refused_by_name(form: Callable[[torch.Tensor], object]) -> None:
    value = form(torch.zeros(2, 2))
    for check in (checks.floating, checks.integral):
        with pytest.raises(TypeError, match=r"^x: expected a.* tensor|^x: expected a torch.Tensor"):
            check("x", value)  # type: ignore[arg-type]


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
