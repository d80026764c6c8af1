"""Judging of results: by the definition in float64, within the rounding of a float32 result."""

import torch
from torch import Tensor

from fuzz_calls.inputs import plain


class WrongError(AssertionError):
    """A finding."""


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise WrongError(message)


def same(name: str, got: Tensor, expected: Tensor) -> None:
    expect(got.shape == expected.shape, f"{name}: shape {list(got.shape)}, expected {list(expected.shape)}")
    expect(got.dtype == expected.dtype, f"{name}: {got.dtype}, expected {expected.dtype}")
    differ = got != expected
    if bool(differ.any()):
        at = _first(differ)
        raise WrongError(f"{name} at {at}: {got[at].item()}, expected {expected[at].item()}")


def close(name: str, got: Tensor, exact: Tensor, rough: Tensor, allowed: Tensor | float) -> None:
    """got within `allowed` of `exact` float64, or within twice of where `rough`, float32's own result, is.

    What is not finite in `exact` is the same infinity or NaN, or what it is in `rough`, whose sums may overflow.
    """
    expect(got.shape == exact.shape, f"{name}: shape {list(got.shape)}, expected {list(exact.shape)}")
    got64, rough64 = plain(got).double(), plain(rough).double()
    rounded = exact.to(got.dtype).double()  # beyond the dtype's range: infinite
    finite = rounded.isfinite() & rough64.isfinite()
    limit = 2 * (rough64 - exact).abs() + allowed
    wrong = finite & ~((got64 - exact).abs() <= limit)
    class_of = ~finite & ~(_alike(got64, rounded) | _alike(got64, rough64) | ((got64 - exact).abs() <= limit))
    if bool((wrong | class_of).any()):
        at = _first(wrong | class_of)
        values = f"{got64[at].item()}, expected {exact[at].item()} (float32: {rough64[at].item()})"
        raise WrongError(f"{name} at {at}: {values}")


def _alike(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())


def _first(flags: Tensor) -> tuple[int, ...]:
    return tuple(flags.nonzero()[0].tolist())


class Unchanged:
    """Tensors that an operator must not change, compared with copies of them."""

    def __init__(self, **tensors: Tensor | None) -> None:
        self._before = {name: (tensor, plain(tensor)) for name, tensor in tensors.items() if tensor is not None}

    def check(self) -> None:
        for name, (tensor, before) in self._before.items():
            after = plain(tensor)
            equal = torch.equal(after.view(torch.uint8), before.view(torch.uint8)) if before.ndim else after == before
            expect(bool(equal), f"{name} was changed")
