"""CUDA kernels under AddressSanitizer, in a process that has it loaded from its start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda import stand_in

ROOT = Path(__file__).parents[2]


def sanitizer() -> str | None:
    """The runtime, which must be loaded before all else; and C++'s, whose exceptions it watches."""
    if stand_in.missing() is not None:
        return None
    paths = []
    for name in ("libasan.so", "libstdc++.so"):
        named = [str(stand_in.COMPILER), f"-print-file-name={name}"]
        paths.append(Path(subprocess.run(named, capture_output=True, text=True, check=True).stdout.strip()))
    return " ".join(map(str, paths)) if all(path.is_absolute() for path in paths) else None


def under_sanitizer(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LD_PRELOAD": str(sanitizer()), "OMP_NUM_THREADS": "1"}
    environment["ASAN_OPTIONS"] = "detect_leaks=0:detect_stack_use_after_return=0"  # leaks are the interpreter's
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


needs_sanitizer = pytest.mark.skipif(
    sanitizer() is None, reason=stand_in.missing() or "the compiler has no AddressSanitizer"
)
if stand_in.SANITIZED:
    pytest.skip("this is that process", allow_module_level=True)


@needs_sanitizer
def test_odd_shapes() -> None:
    done = under_sanitizer("-m", "tests.cuda.odd_shapes")
    assert done.stdout == "all agree\n", f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@needs_sanitizer
@pytest.mark.slow
def test_the_operators_own_tests() -> None:
    names = "token_saliency concept_counts saliency_counts smoothgrad_noise gumbel_codebook gumbel_codebook_step"
    options = ["-q", "-p", "no:cacheprovider", "--capture=sys", "-k", "cuda and not compile and not opcheck", "-x"]
    done = under_sanitizer("-m", "pytest", *options, *(f"tests/ops/test_{name}.py" for name in names.split()))
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@needs_sanitizer
def test_a_read_beyond_shared_memory_is_noticed() -> None:
    code = (
        "import ctypes; from tests.cuda import stand_in; out = (ctypes.c_int * 1)();"
        "ctypes.CDLL(str(stand_in.file())).beyond_shared_of(out)"
    )
    done = under_sanitizer("-c", code)
    assert "heap-buffer-overflow" in done.stderr
    assert "in beyond_shared" in done.stderr
