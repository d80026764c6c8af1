"""What each kernel takes of a multiprocessor, as the compiler reports it: read out of the built library itself."""

import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from cortex_fast.kernels import cuda

if cuda.NOT_BUILT is not None:
    pytest.skip(cuda.NOT_BUILT, allow_module_level=True)

from cortex_fast import _native

SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"


@pytest.fixture(scope="module")
def usage() -> dict[str, dict[str, dict[str, int]]]:
    """Architecture -> mangled kernel -> resource -> amount."""
    triton = pytest.importorskip("triton")  # its wheel has NVIDIA's cuobjdump, which not every toolkit has
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", _native.__file__]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    architecture = kernel = ""
    for line in text.splitlines():
        if match := re.match(r"arch = (\S+)", line):
            architecture = match[1]
        elif match := re.match(r" *Function (\S+):", line):
            kernel = match[1]
        elif "REG:" in line:
            usage[architecture][kernel] = {name: int(amount) for name, amount in re.findall(r"([A-Z]+):(\d+)", line)}
    return usage


def test_every_kernel_is_there_for_every_architecture(usage: dict[str, dict[str, dict[str, int]]]) -> None:
    built = re.findall(r"sm_\w+", str(_native.build_info()["cuda"]))
    assert set(built) == set(usage)
    assert "sm_80" in built
    text = "".join(path.read_text() for path in SOURCES.glob("*.cu"))
    named = set(re.findall(r"__global__ (?:void )?(?:__launch_bounds__\([^;{]*?\)\s+)?(?:void )?(\w+)\(", text))
    assert {"noisy_copies", "positions_inside", "finish"} <= named
    for architecture, kernels in usage.items():
        absent = [name for name in named if not any(f"{len(name)}{name}" in kernel for kernel in kernels)]
        assert absent == [], architecture


def test_no_kernel_spills_or_uses_local_memory(usage: dict[str, dict[str, dict[str, int]]]) -> None:
    for architecture, kernels in usage.items():
        for kernel, amounts in kernels.items():
            assert (amounts["STACK"], amounts["LOCAL"]) == (0, 0), f"{architecture}: {kernel}: {amounts}"
            assert amounts["REG"] <= 255
