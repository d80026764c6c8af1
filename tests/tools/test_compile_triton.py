"""Every Triton kernel compiles for GPUs that are not here, without spills and within their shared memory."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cortex_fast import kernels
from cortex_fast.kernels import triton

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "compile_triton.py"
pytestmark = pytest.mark.skipif(triton.unavailable() is not None, reason=str(triton.unavailable()))

LOAD = f"""\
import dataclasses, functools, importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("tool", {str(TOOL)!r})
tool = sys.modules["tool"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
"""
CHANGING = """\
def call(_dtype):
    for seed, item, rows, length in ((0, 0, 3, 64), (1, 1, 1, 1), (16, 2**31, 16, 999), (2**63 - 1, 2**32 - 1, 2, 160)):
        ids = torch.tensor([item])
        tool.random_stream.random_stream(stream="gumbel", seed=seed, items=ids, draws=ids, rows=rows, length=length)
        x = torch.zeros(rows, 4 + seed % 7, 16, 16)
        ids, first = torch.arange(rows), min(seed, 2**32 - 9)
        tool.smoothgrad_noise.smoothgrad_noise(
            x=x,
            sigma=torch.ones(rows),
            num_samples=rows,
            seed=seed,
            item_ids=ids,
            antithetic=False,
            first_sample=first,
            normals=None,
        )
tool.CALLS["random_stream"] = call
print(*tool.compile_for("sm_90", ["random_stream"], ["float32"]), sep="\\n")
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process without the interpreter, which has nothing to compile."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables["PYTHONPATH"] = str(ROOT)
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True)


def operators() -> list[str]:
    return [name for name, backends in kernels.OPERATORS.items() if "triton" in backends]


def compile_all(dtypes: dict[str, str]) -> None:
    """For each target, at the same time: compiling takes a processor a second a kernel."""
    names = ",".join(operators())

    def compile_for(target: str) -> subprocess.CompletedProcess[str]:
        return python(str(TOOL), "--targets", target, "--dtypes", dtypes[target], "--operators", names)

    with ThreadPoolExecutor(len(dtypes)) as pool:
        for target, done in zip(dtypes, pool.map(compile_for, dtypes), strict=True):
            assert done.returncode == 0, done.stdout + done.stderr
            assert f"{target}: " in done.stdout


def test_kernels_compile_and_fit() -> None:
    """For the NVIDIA GPU with the least shared memory, and in bfloat16, which runs nowhere else in these tests."""
    compile_all({"sm_80": "bfloat16"})


@pytest.mark.slow
def test_kernels_compile_and_fit_in_every_variant() -> None:
    compile_all(dict.fromkeys(("sm_80", "sm_90", "gfx942"), "float32,float16,bfloat16"))


@pytest.mark.parametrize(
    "spoil",
    [
        "tool.TARGETS['sm_90'] = dataclasses.replace(tool.TARGETS['sm_90'], shared=100)",
        "launch = tool.Compiling.launch; tool.Compiling.launch = functools.partialmethod(launch, maxnreg=16)",
    ],
    ids=["shared memory", "spills"],
)
def test_what_does_not_fit_fails(spoil: str) -> None:
    options = ["--targets", "sm_90", "--operators", "random_stream", "--dtypes", "float32"]
    done = python("-c", f"{LOAD}{spoil}\nsys.exit(tool.main({options}))")
    assert done.returncode == 1, done.stderr
    assert ": FAILED" in done.stdout


def test_another_seed_draw_or_number_of_rows_compiles_nothing() -> None:
    done = python("-c", LOAD + CHANGING)
    assert [line.split("(")[0] for line in done.stdout.splitlines()] == [
        "random_stream._write",
        "smoothgrad_noise._draw",
    ]
