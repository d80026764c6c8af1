"""Build cortex_fast._native with CMake and Ninja from the build environment; pyproject.toml holds everything else.

The build needs a C++17 compiler and no torch. The package itself is never imported here. The environment variable
CORTEX_FAST_CUDA is auto (build the CUDA kernels if nvcc is found, the default), on (fail without nvcc) or off. nvcc is
looked up in CUDACXX, CUDA_HOME, PATH and /usr/local/cuda, in this order.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
NO_COMPILER = """cortex-fast needs a C++17 compiler, and found none. Install one:
  Debian, Ubuntu: apt install g++        Fedora: dnf install gcc-c++
  conda:          conda install cxx-compiler
  macOS:          xcode-select --install
or name one in the environment variable CXX."""


def require_compiler() -> None:
    """Raise CompileError with install instructions without a C++ compiler. On Windows the search is left to CMake."""
    named = os.environ.get("CXX")
    candidates = [named.split()[0]] if named else ["c++", "g++", "clang++"]
    if sys.platform != "win32" and not any(map(shutil.which, candidates)):
        raise CompileError(NO_COMPILER if not named else f"{NO_COMPILER}\n(CXX is {named!r}, which does not exist.)")


def build_folder() -> Path:
    """The build folder of this interpreter, reused by later builds and emptied when the source tree has moved."""
    folder = ROOT / "build" / "native" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    cache = folder / "CMakeCache.txt"
    entries = cache.read_text(encoding="utf-8").splitlines() if cache.exists() else []
    if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT.as_posix()}" not in entries:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import cmake  # imported here, because an sdist needs none of the three
        import ninja
        import pybind11

        require_compiler()
        folder = build_folder()
        cuda = os.environ.get("CORTEX_FAST_CUDA", "auto")
        program = str(Path(cmake.CMAKE_BIN_DIR) / "cmake")
        # Set in each build: an isolated environment has a new path each time, and CMake would go on using the last one.
        definitions = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "CMAKE_MAKE_PROGRAM": Path(ninja.BIN_DIR) / "ninja",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": folder / "out",
            "CORTEX_FAST_CUDA": cuda,
            "CORTEX_FAST_VERSION": self.distribution.get_version(),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        configure = [program, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
        configure += [f"-D{name}={value}" for name, value in definitions.items()]
        build = [program, "--build", str(folder), "--target", "_native"]
        if self.parallel:  # else CMake reads CMAKE_BUILD_PARALLEL_LEVEL itself
            build += ["--parallel", str(self.parallel)]
        for command in (configure, build):
            try:
                subprocess.run(command, check=True)
            except subprocess.CalledProcessError as error:
                without = "" if cuda == "off" else "; CORTEX_FAST_CUDA=off builds it without CUDA"
                raise CompileError(
                    f"the native core did not build; see the messages above ({error}){without}"
                ) from error
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # another process may have the old file loaded
        shutil.copy2(folder / "out" / target.name, target)


setup(ext_modules=[Extension("cortex_fast._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
