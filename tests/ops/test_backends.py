"""The choice of a backend: by reasons, never silently."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cortex_fast.kernels import cuda, native, triton
from cortex_fast.ops.backends import (
    IMPL_VARIABLE,
    NAMES,
    BackendUnavailableError,
    UnlessForced,
    Verdict,
    choose,
    cuda_on_gpu,
    native_on_cpu,
    never,
    triton_on_gpu,
    verdicts,
)
from cortex_fast.ops.token_saliency import token_saliency


def refuses_doubles(tensor: Tensor) -> str | None:
    return "doubles are too wide" if tensor.dtype == torch.float64 else None


ROOT = Path(__file__).parents[2]
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


def interpreting(monkeypatch: pytest.MonkeyPatch, interpreted: bool) -> None:
    monkeypatch.setattr(triton, "unavailable", lambda: None)
    monkeypatch.setattr(triton, "INTERPRETED", interpreted)


def test_a_reason_unless_forced_stands_for_auto_alone() -> None:
    backends = {"triton": lambda _: UnlessForced("it is slow"), "reference": never}
    assert choose("op", backends, "auto", SINGLE) == "reference"
    assert choose("op", backends, "triton", SINGLE) == "triton"
    assert verdicts(backends, SINGLE)[NAMES.index("triton")] == Verdict("triton", False, "it is slow")
    # another tensor's reason that stands in any case comes first
    backends["triton"] = lambda tensor: "too wide" if tensor.dtype == torch.float64 else UnlessForced("it is slow")
    with pytest.raises(BackendUnavailableError, match="too wide"):
        choose("op", backends, "triton", SINGLE, DOUBLE)


def test_auto_never_takes_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreting(monkeypatch, True)
    backends = {"triton": triton_on_gpu(torch.float32), "reference": never}
    assert choose("op", backends, "auto", SINGLE) == "reference"
    assert choose("op", backends, "triton", SINGLE) == "triton"
    monkeypatch.setenv(IMPL_VARIABLE, "triton")
    assert choose("op", backends, "auto", SINGLE) == "triton"


def test_triton_states_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    against = triton_on_gpu(torch.float32, torch.bfloat16)
    interpreting(monkeypatch, False)
    assert against(SINGLE) == "the Triton kernel runs on a GPU, the tensor is on cpu"
    interpreting(monkeypatch, True)
    assert against(torch.zeros(1, device="meta")) == "the Triton kernel runs on a GPU, the tensor is on meta"
    assert against(DOUBLE) == "the Triton kernel takes torch.float32, torch.bfloat16, not torch.float64"
    assert "does not round to torch.bfloat16" in str(against(SINGLE.bfloat16()))
    assert not isinstance(against(SINGLE.bfloat16()), UnlessForced)
    monkeypatch.setattr(triton, "unavailable", lambda: "it did not import")
    assert against(SINGLE) == "it did not import"


class OnGpu:
    """What a reason function asks of a tensor."""

    device = torch.device("cuda:0")

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


@pytest.mark.parametrize(
    ("capability", "dtype", "expected"),
    [
        ((9, 0), torch.bfloat16, None),
        ((8, 0), torch.bfloat16, None),
        ((7, 0), torch.float32, None),
        ((7, 5), torch.bfloat16, "the Triton kernel needs compute capability 8.0 for torch.bfloat16, this GPU has 7.5"),
        ((6, 1), torch.float32, "the Triton kernel needs compute capability 7.0 for torch.float32, this GPU has 6.1"),
    ],
)
def test_triton_needs_a_gpu_that_is_new_enough(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, expected: str | None
) -> None:
    interpreting(monkeypatch, False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert triton_on_gpu(torch.float32, torch.bfloat16)(OnGpu(dtype)) == expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [("3.6.0", None), ("3.10.1+git12", None), ("3.5.1", "need triton 3.6 or newer, this is 3.5.1"), ("x", "this is x")],
)
def test_triton_must_be_new_enough(monkeypatch: pytest.MonkeyPatch, version: str, expected: str | None) -> None:
    module = types.ModuleType("triton")
    module.__version__ = version
    monkeypatch.setitem(sys.modules, "triton", module)
    reason = triton.unavailable.__wrapped__()
    assert reason is None if expected is None else expected in reason


def test_without_triton_the_package_works_and_says_so() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, cortex_fast.ops as ops; from cortex_fast.kernels import triton\n"
        "print(triton.unavailable(), ops.token_saliency(torch.ones(1, 1, 1, 1, 1)).item())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("triton did not import: ")
    assert done.stdout.endswith(" 1.0\n")


def test_importing_the_package_does_not_import_triton() -> None:
    code = "import sys, cortex_fast, cortex_fast.ops, cortex_fast.info; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_cuda_states_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    against = cuda_on_gpu(torch.float32, torch.bfloat16)
    monkeypatch.setattr(cuda, "unavailable", lambda: "the CUDA kernels were not built: no nvcc was found")
    assert "no nvcc was found" in str(against(torch.zeros(1)))
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    assert against(torch.zeros(1)) == "the CUDA kernel runs on a GPU, the tensor is on cpu"
    assert "not torch.float64" in str(against(OnGpu(torch.float64)))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert "needs compute capability 8.0, this GPU has 7.5" in str(against(OnGpu(torch.float32)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    reason = against(OnGpu(torch.float32))
    assert isinstance(reason, UnlessForced)
    assert "not yet measured against Triton" in reason


def test_auto_prefers_triton_to_cuda_until_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    backends = {"cuda": cuda_on_gpu(torch.float32), "triton": never, "reference": never}
    assert choose("op", backends, "auto", OnGpu(torch.float32)) == "triton"
    assert choose("op", backends, "cuda", OnGpu(torch.float32)) == "cuda"
