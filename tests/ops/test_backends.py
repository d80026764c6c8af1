"""The choice of a backend: by reasons, never silently."""

import pytest
import torch
from torch import Tensor

from cortex_fast.kernels import native
from cortex_fast.ops.backends import (
    IMPL_VARIABLE,
    NAMES,
    BackendUnavailableError,
    Verdict,
    choose,
    native_on_cpu,
    never,
    verdicts,
)
from cortex_fast.ops.token_saliency import token_saliency


def refuses_doubles(tensor: Tensor) -> str | None:
    return "doubles are too wide" if tensor.dtype == torch.float64 else None


BACKENDS = {"native": refuses_doubles, "reference": never}
SINGLE, DOUBLE = torch.zeros(1), torch.zeros(1, dtype=torch.float64)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(IMPL_VARIABLE, raising=False)


def test_auto_takes_the_best_that_can_serve() -> None:
    assert choose("op", BACKENDS, "auto", SINGLE) == "native"
    assert choose("op", BACKENDS, "auto", DOUBLE) == "reference"


def test_every_backend_answers_best_first() -> None:
    answers = verdicts(BACKENDS, DOUBLE)
    assert [answer.backend for answer in answers] == list(NAMES)
    assert answers[NAMES.index("native")] == Verdict("native", False, "doubles are too wide")
    assert answers[NAMES.index("reference")] == Verdict("reference", True, "yes")
    assert answers[NAMES.index("cuda")] == Verdict("cuda", False, "no cuda kernel of this operator in this version")


def test_forced_serves_or_raises_with_the_reason() -> None:
    assert choose("op", BACKENDS, "reference", SINGLE) == "reference"
    with pytest.raises(BackendUnavailableError, match="op: impl='native' cannot serve: doubles are too wide"):
        choose("op", BACKENDS, "native", DOUBLE)
    with pytest.raises(BackendUnavailableError, match="op: impl='triton' cannot serve: no triton kernel"):
        choose("op", BACKENDS, "triton", SINGLE)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"impl: expected 'auto' or one of 'cuda', .* got 'fpga'"):
        choose("op", BACKENDS, "fpga", SINGLE)


def test_the_variable_stands_for_auto_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IMPL_VARIABLE, "reference")
    assert choose("op", BACKENDS, "auto", SINGLE) == "reference"
    assert choose("op", BACKENDS, "native", SINGLE) == "native"
    monkeypatch.setenv(IMPL_VARIABLE, "native")
    with pytest.raises(BackendUnavailableError, match="doubles are too wide"):
        choose("op", BACKENDS, "auto", DOUBLE)
    monkeypatch.setenv(IMPL_VARIABLE, "fpga")
    with pytest.raises(ValueError, match=f"{IMPL_VARIABLE}: expected 'auto' or one of .* got 'fpga'"):
        choose("op", BACKENDS, "auto", SINGLE)


def test_the_variable_reaches_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    grads = torch.ones(1, 1, 1, 1, 1)
    monkeypatch.setenv(IMPL_VARIABLE, "fpga")
    with pytest.raises(ValueError, match=IMPL_VARIABLE):
        token_saliency(grads)
    assert token_saliency(grads, impl="reference").item() == 1


def test_native_states_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    against = native_on_cpu(torch.float32, torch.float16)
    monkeypatch.setattr(native, "UNAVAILABLE", None)
    assert against(SINGLE) is None
    assert against(DOUBLE) == "the native kernel takes torch.float32, torch.float16, not torch.float64"
    assert against(torch.zeros(1, device="meta")) == "the native kernel runs on the CPU, the tensor is on meta"
    monkeypatch.setattr(native, "UNAVAILABLE", "it was not built")
    assert against(SINGLE) == "it was not built"


def test_without_the_extension_auto_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "UNAVAILABLE", "it was not built")
    grads = torch.ones(1, 1, 1, 1, 1)
    assert token_saliency(grads).item() == 1
    with pytest.raises(BackendUnavailableError, match="it was not built"):
        token_saliency(grads, impl="native")
