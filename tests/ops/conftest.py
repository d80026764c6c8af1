"""The backends as fixtures: a test that takes `impl` runs once for each, one that takes `level` for the native ones.

Meanwhile fresh memory is full of NaN, so that unwritten elements show. Triton kernels run compiled on a GPU, else in
Triton's interpreter at some ten milliseconds a program, with few examples and small sizes. CUDA kernels run on a GPU,
else on the tests' stand-in for one (tests/cuda/host).
"""

import functools
import importlib
import itertools
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cortex_fast import kernels
from cortex_fast.kernels import cuda, native, triton
from cortex_fast.ops.backends import REASONS, Reason
from tests.cuda import stand_in
from tests.ops.backends_under_test import CUDA, LEVELS, NATIVE, TRITON

EXAMPLES = 5  # of hypothesis, in the interpreter


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`impl`: the reference, each native instruction set, and CUDA and Triton if the module's operator has them."""
    parametrized = any("impl" in str(mark.args[:1]) for mark in metafunc.definition.iter_markers("parametrize"))
    if "impl" in metafunc.fixturenames and not parametrized:
        backends = kernels.OPERATORS[metafunc.module.__name__.split(".test_")[-1]]
        others = [param for param in (CUDA, TRITON) if param.values[0] in backends]
        params = ["reference", *NATIVE, *others]
        metafunc.parametrize("impl", params, indirect=True, scope="module")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """In the interpreter bfloat16 is skipped, and all but the first examples pass unseen, unless one of those fails."""
    if not triton.INTERPRETED or pyfuncitem.funcargs.get("impl") != "triton":
        return (yield)
    if torch.bfloat16 in pyfuncitem.funcargs.values():
        pytest.skip("Triton's interpreter cuts bfloat16 off instead of rounding")
    handle = getattr(pyfuncitem.obj, "hypothesis", None)
    if handle is None:
        return (yield)
    inner, number, failed = handle.inner_test, itertools.count(), []

    @functools.wraps(inner)
    def few(*arguments: object, **options: object) -> None:
        if torch.bfloat16 not in options.values() and (next(number) < EXAMPLES or failed):
            try:
                inner(*arguments, **options)
            except Exception:
                failed.append(True)
                raise

    handle.inner_test = few
    try:
        return (yield)
    finally:
        handle.inner_test = inner


@contextmanager
def running(level: str | None) -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    assert torch.empty(5).isnan().all()
    with pytest.MonkeyPatch.context() as patch:
        if level is not None:
            patch.setattr(native, "LEVEL", level)
        yield
    torch.use_deterministic_algorithms(False)


@contextmanager
def accepting_cpu_tensors(backend: str) -> Iterator[pytest.MonkeyPatch]:
    """A GPU's backend treats tensors on the CPU as if they were on a GPU."""

    def answers(against: Reason) -> Reason:
        return lambda tensor: against(SimpleNamespace(device=torch.device("cuda"), dtype=tensor.dtype))

    with pytest.MonkeyPatch.context() as patch:
        for backends in REASONS.values():
            if backend in backends:
                patch.setitem(backends, backend, answers(backends[backend]))
        yield patch


@contextmanager
def triton_on_cpu_tensors() -> Iterator[None]:
    """With a GPU: Triton kernels also take tensors on the CPU."""
    from tests.ops.on_gpu import launch_on, launching

    with accepting_cpu_tensors("triton") as patch:
        patch.setattr(launching, "launch", functools.partial(launch_on, "cuda"))
        yield


@contextmanager
def cuda_on_cpu_tensors() -> Iterator[None]:
    """CUDA kernels take tensors on the CPU, and run on the GPU, or without one on the stand-in for it."""
    with accepting_cpu_tensors("cuda") as patch:
        if torch.cuda.is_available():
            from tests.ops.on_gpu import adaptors, run_on

            for module, name in adaptors():
                patch.setattr(module, name, functools.partial(run_on, "cuda", getattr(module, name)))
        else:
            patch.setattr(cuda, "LIBRARY", stand_in.library())
            patch.setattr(cuda, "unavailable", lambda: None)
            patch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
        yield


@pytest.fixture(scope="session", autouse=True)
def faster_interpreter() -> Iterator[None]:
    """Triton's interpreter in half its time.

    It patches triton.language at each call of a device function; once for each module and launch is enough, since the
    patch stays until the launch ends. It also builds a table of types at each lookup.
    """
    if not triton.INTERPRETED or triton.unavailable() is not None:
        yield
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch_language, numpy_type = interpreter._patch_lang, interpreter._get_np_dtype
    ready: set[int] = set()
    types: dict[str, Any] = {}

    def patched(function: Any) -> Any:
        module = id(function.__globals__)
        if module in ready:
            return None
        ready.add(module)
        scope = patch_language(function)
        restore = scope.restore

        def restored() -> None:  # only a launch calls it; a device function discards its scope
            ready.clear()
            restore()

        scope.restore = restored
        return scope

    def cached(dtype: Any) -> Any:
        if dtype.name not in types:
            types[dtype.name] = numpy_type(dtype)
        return types[dtype.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", patched)
        patch.setattr(interpreter, "_get_np_dtype", cached)
        yield


@contextmanager
def interpreted_triton() -> Iterator[None]:
    """In the interpreter a program takes as long for large blocks as for small ones."""
    from cortex_fast.kernels.triton import gumbel_codebook, gumbel_codebook_backward, gumbel_gradient

    large = {"ROWS": 64, "CODES": 1024}

    def enlarged(block: dict[str, int]) -> dict[str, int]:
        return block | {name: size for name, size in large.items() if name in block}

    with pytest.MonkeyPatch.context() as patch:
        for module in (gumbel_codebook, gumbel_codebook_backward, gumbel_gradient):
            patch.setattr(module, "block_of", lambda _device, choice: enlarged(choice.default))
        yield


# Once for a module and not for each test, since hypothesis refuses fixtures of a function.
@pytest.fixture(scope="module")
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name to give an operator: a backend's, "native" with each instruction set of this processor."""
    name = request.param if request.param not in LEVELS else "native"
    with running(request.param if request.param in LEVELS else None):
        if name == "triton":
            with interpreted_triton() if triton.INTERPRETED else triton_on_cpu_tensors():
                yield name
        elif name == "cuda":
            with cuda_on_cpu_tensors():
                yield name
        else:
            yield name


@pytest.fixture(scope="module", params=NATIVE)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """The native kernels' instruction set, each of this processor's in turn."""
    with running(request.param):
        yield request.param
