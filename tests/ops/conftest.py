"""The backends as fixtures: a test that takes `impl` runs once for each, one that takes `level` for the native ones.

While they do, fresh memory is full of NaN, so that whatever a kernel leaves unwritten shows.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from cortex_fast.kernels import native
from tests.ops.backends_under_test import NATIVE


@contextmanager
def running(level: str | None) -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    assert torch.empty(5).isnan().all()
    with pytest.MonkeyPatch.context() as patch:
        if level is not None:
            patch.setattr(native, "LEVEL", level)
        yield
    torch.use_deterministic_algorithms(False)


# Once for a module and not for each test, since hypothesis refuses a fixture that is not made anew for each example.
@pytest.fixture(scope="module", params=["reference", *NATIVE])
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name to give an operator: "reference", or "native" with each instruction set of this processor in turn."""
    with running(None if request.param == "reference" else request.param):
        yield "reference" if request.param == "reference" else "native"


@pytest.fixture(scope="module", params=NATIVE)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """The native kernels' instruction set, each of this processor's in turn."""
    with running(request.param):
        yield request.param
