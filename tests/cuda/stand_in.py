"""Builds csrc/cuda with the C++ compiler and the stand-in for a GPU (tests/cuda/host), once for each state of the
sources, and under AddressSanitizer in a process that has that loaded."""

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
HOST = Path(__file__).parent / "host"
FOLDER = ROOT / "build" / "cuda_on_host"
COMPILER = shutil.which("g++") or shutil.which("clang++")
SANITIZED = hasattr(ctypes.CDLL(None), "__asan_init")
CHECKS = ["-Og", "-g1", "-fsanitize=address", "-fno-omit-frame-pointer"] if SANITIZED else []
SOURCES = ("csrc", "python", "tests/cuda/host")


def _headers() -> Path | None:
    """CUDA's."""
    nvcc = shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    folders = [Path(root) / "include" for root in roots if root]
    return next((folder for folder in folders if (folder / "cuda_runtime.h").exists()), None)


@cache
def missing() -> str | None:
    """Why the stand-in cannot be built here; None where it can."""
    if platform.machine().lower() not in ("x86_64", "amd64") or platform.system() != "Linux":
        return "the stand-in for a GPU is for Linux on x86-64"
    if COMPILER is None:
        return "no C++ compiler"
    if _headers() is None:
        return "no CUDA headers"
    return None if importlib.util.find_spec("pybind11") is not None else "no pybind11"


@cache
def file() -> Path:
    """The built library: a Python module, and the functions of stand_in.cpp."""
    import pybind11

    rules = (ROOT / "CMakeLists.txt").read_text()
    kernels = [ROOT / name for name in re.findall(r"\bcsrc/cuda/\w+\.cu\b", rules)]
    sources = [*sorted(HOST.glob("*.cpp")), *kernels]  # the longest among the first
    flags = ["-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-w"]
    flags += [f"-I{ROOT / folder}" for folder in ("csrc/include", "csrc/cuda", "python", "tests/cuda/host")]
    flags += [f"-isystem{_headers()}", f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]
    headers = [path for folder in SOURCES for path in (ROOT / folder).rglob("*") if path.suffix in (".h", ".cuh")]
    common = b"".join(path.read_bytes() for path in [*sorted(headers), ROOT / "python" / "cuda.cpp"])
    # The Python module looks at no tensor's memory: both builds have the same, which takes longest to compile.
    options = [[*flags, *(CHECKS if path.name != "module.cpp" else [])] for path in sources]
    objects = [
        FOLDER / f"{path.name}-{_digest(common, path.read_bytes(), ' '.join(chosen).encode())}.o"
        for path, chosen in zip(sources, options, strict=True)
    ]
    library = FOLDER / f"cuda_on_host-{_digest(*(path.name.encode() for path in objects))}.so"
    commands = [[*chosen, "-xc++", "-c", str(path)] for path, chosen in zip(sources, options, strict=True)]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test processes want the same
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(_compile, commands, objects))
        _compile(["-shared", *CHECKS, *map(str, objects)], library)
    return library


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _compile(command: list[str], to: Path) -> None:
    """Unless it is there."""
    if to.exists():
        return
    part = to.with_suffix(".part")
    outside = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # the sanitizer
    subprocess.run([str(COMPILER), *command, "-o", str(part)], check=True, env=outside)
    part.rename(to)


@cache
def library() -> ModuleType:
    """What stands for `cortex_fast._native.cuda`."""
    spec = importlib.util.spec_from_file_location("cuda_on_host", file())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
