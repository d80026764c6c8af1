"""How the package is built, installed and checked."""

import ast
import importlib.metadata
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cortex_fast.kernels import native
from cortex_fast.version import __version__

ROOT = Path(__file__).parents[1]
IGNORED = shutil.ignore_patterns(".venv", ".git", "build", "dist", "*.egg-info", "__pycache__", "*.so", ".*_cache")
PYPROJECT = (ROOT / "pyproject.toml").read_text()
BUILD = (ROOT / "CMakeLists.txt").read_text()
PINS = {
    re.sub(r"[-_.]+", "-", name).lower(): version
    for name, version in re.findall(
        r"^([\w.-]+)==([^\s;]+)(?:; .+)?$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
}


def requirements(key: str) -> list[str]:
    """The names in a list of pyproject.toml; without tomllib, which Python 3.10 lacks."""
    match = re.search(rf"^{key} = (\[.*?\])$", PYPROJECT, re.MULTILINE | re.DOTALL)
    assert match is not None, key
    return [re.split(r"[<>=\[ ]", name)[0] for name in ast.literal_eval(match[1])]


def package_files(root: Path) -> set[str]:
    folder = root / "cortex_fast"
    names = {path.relative_to(root).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if "__pycache__" not in name and not name.endswith((".so", ".pyd"))}


def test_ci_calls_make_test_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    shebang, *lines = script.read_text().splitlines()
    assert shebang == "#!/usr/bin/env bash"
    assert lines == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]


def test_make_test_lints_and_tests() -> None:
    plan = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for command in (
        "ruff check",
        "ruff format --check",
        "mypy cortex_fast",
        "clang-format --dry-run -Werror",
        "pytest",
    ):
        assert re.search(rf"^([A-Z_]+=\S+ )?\.venv/bin/{command}", plan, re.MULTILINE), command


def test_one_version() -> None:
    assert importlib.metadata.version("cortex-fast") == __version__
    if native.UNAVAILABLE is None:
        from cortex_fast import _native

        assert _native.build_info()["version"] == __version__


@pytest.mark.parametrize("key", ["requires", "dependencies", "pandas", "dev"])
def test_everything_required_is_pinned(key: str) -> None:
    assert {name.lower() for name in requirements(key)} <= PINS.keys()


def test_setup_imports_neither_the_package_nor_torch() -> None:
    imported = set()
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported - sys.stdlib_module_names == {"cmake", "ninja", "pybind11", "setuptools"}
    assert "torch" not in " ".join(requirements("requires"))


def test_core_knows_neither_python_nor_torch() -> None:
    for path in (ROOT / "csrc").rglob("*.*"):
        included = re.findall(r'#include [<"]([^>"]+)', path.read_text())
        assert not [name for name in included if name.lower().startswith(("python", "torch", "aten", "c10", "pybind"))]


def objects(level: str) -> list[Path]:
    """The object files of a level's vector code, from the last build."""
    folder = ROOT / "build" / "native" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    paths = sorted((folder / "CMakeFiles" / f"cortex_fast_{level}.dir" / "csrc" / "cpu").glob("*.cpp.o"))
    return [path for path in paths if (ROOT / "csrc" / "cpu" / path.stem).exists()]  # a build folder has old ones too


def listing(program: str, *arguments: str | Path) -> str:
    if shutil.which(program) is None:
        pytest.skip(f"no {program}")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_code_of_the_levels_cannot_be_mixed(level: str) -> None:
    """Of a weak symbol in several files the linker takes one, which may use instructions that the processor lacks."""
    files = objects(level)
    if not files:
        pytest.skip(f"no build of {level} in build/native")
    namespace = f"11cortex_fast{len(level)}{level}"  # cortex_fast::<level>, as names are mangled
    weak = re.findall(r" [WwVvu] (\S+)$", listing("nm", *files), re.MULTILINE)
    assert [name for name in weak if namespace not in name and name != "DW.ref.__gxx_personality_v0"] == []
    assert any(namespace in name for name in weak)  # the templates: nm was understood


@pytest.mark.parametrize(("level", "register"), [("avx2", "ymm"), ("avx512", "zmm")])
def test_the_products_inner_loop_is_fused_and_stays_in_registers(level: str, register: str) -> None:
    files = [path for path in objects(level) if path.name == "product.cpp.o"]
    if platform.machine().lower() not in ("x86_64", "amd64") or not files:
        pytest.skip(f"no build of {level} in build/native")
    code = listing("objdump", "--disassemble", "--no-show-raw-insn", files[0])
    lines = [(int(at, 16), text) for at, text in re.findall(r"^ *([0-9a-f]+):\s+(\S.*)$", code, re.MULTILINE)]
    loops = []
    for at, text in lines:
        target = re.match(r"j\w+ +([0-9a-f]+) <", text)
        if target is not None and int(target[1], 16) < at:
            loops.append([inside for where, inside in lines if int(target[1], 16) <= where <= at])
    fused = [loop for loop in loops if sum(f"%{register}" in text for text in loop if text.startswith("vfmadd")) >= 12]
    innermost = min(fused, key=len, default=[])
    assert innermost, f"no loop has twelve multiply-adds of {register} registers"
    assert not [text for text in innermost if text.startswith(("vmulps", "vaddps", "call"))]
    assert not [text for text in innermost if f"%{register}" in text and "(%rsp" in text]  # a sum that went to memory


def test_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    require_compiler = runpy.run_path(str(ROOT / "setup.py"))["require_compiler"]
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(Exception, match=r"needs a C\+\+17 compiler(.|\n)*apt install g\+\+"):
        require_compiler()
    monkeypatch.setenv("CXX", "ccache nowhere++")
    with pytest.raises(Exception, match="CXX is 'ccache nowhere"):
        require_compiler()


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def look_for_nvcc(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the part of CMakeLists.txt that looks for nvcc. before: the nvcc of the last build."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("no cmake")
    part = re.search(r"^ *set\(CORTEX_FAST_NVCC_BEFORE.*?PATH_SUFFIXES bin\)$", BUILD, re.MULTILINE | re.DOTALL)
    assert part is not None

    def look(before: object = "", **environment: object) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "look.cmake"
        script.write_text(
            f'set(CORTEX_FAST_NVCC "{before}" CACHE FILEPATH "")\n{part[0]}\nmessage("${{CORTEX_FAST_NVCC}}")'
        )
        given = {name: str(value) for name, value in ({"PATH": "/usr/bin:/bin"} | environment).items()}
        return subprocess.run([cmake, "-P", str(script)], env=given, capture_output=True, text=True)

    return look


def test_nvcc_is_the_first_of_cudacxx_cuda_home_and_path(look_for_nvcc, tmp_path: Path) -> None:
    """/usr/local/cuda comes last, if it exists, and so does the nvcc of an earlier build."""
    on_path, at_home = program(tmp_path / "conda" / "bin" / "nvcc"), program(tmp_path / "toolkit" / "bin" / "nvcc")
    named, earlier = program(tmp_path / "my tools" / "nvcc-12.4"), program(tmp_path / "old" / "nvcc")
    path = f"{on_path.parent}:/usr/bin:/bin"
    for expected, environment in (
        (on_path, {"PATH": path}),
        (on_path, {"PATH": path, "CUDACXX": "", "before": earlier}),
        (on_path, {"PATH": path, "CUDACXX": "nvcc"}),
        (at_home, {"PATH": path, "CUDA_HOME": tmp_path / "toolkit"}),
        (named, {"PATH": path, "CUDA_HOME": tmp_path / "toolkit", "CUDACXX": named, "before": earlier}),
    ):
        done = look_for_nvcc(**environment)
        assert (done.returncode, done.stderr.strip()) == (0, str(expected))


def test_a_cuda_home_without_nvcc_is_reported(look_for_nvcc, tmp_path: Path) -> None:
    on_path = program(tmp_path / "conda" / "bin" / "nvcc")
    done = look_for_nvcc(PATH=f"{on_path.parent}:/usr/bin:/bin", CUDA_HOME="/gone/cuda")
    assert done.returncode == 0 and done.stderr.strip().endswith(str(on_path))
    assert "CUDA_HOME: expected the folder of a CUDA toolkit" in done.stderr and "'/gone/cuda'" in done.stderr


@pytest.mark.parametrize("named", ["/gone/nvcc", "gone-nvcc", "/tmp", "/bin/sh -x", "ccache nvcc"])
def test_a_cudacxx_that_names_no_program_is_an_error(look_for_nvcc, tmp_path: Path, named: str) -> None:
    on_path = program(tmp_path / "conda" / "bin" / "nvcc")
    done = look_for_nvcc(PATH=f"{on_path.parent}:/usr/bin:/bin", CUDACXX=named)
    assert done.returncode != 0
    text = " ".join(done.stderr.split())
    assert f"CUDACXX: expected the path of nvcc and nothing else, got '{named}'" in text
    assert "CORTEX_FAST_CUDA=off" in text


@pytest.mark.parametrize(
    ("definitions", "message"),
    [
        ({"CORTEX_FAST_CUDA": "on"}, "CORTEX_FAST_CUDA is on, and no nvcc was found"),
        ({"CORTEX_FAST_CUDA": "on", "CORTEX_FAST_NVCC": "/gone/nvcc"}, "is on, and no nvcc was found"),
        ({"CORTEX_FAST_CUDA": "perhaps"}, "expected auto, on or off, got 'perhaps'"),
    ],
    ids=["no nvcc", "no nvcc any more", "misspelt"],
)
def test_cuda_kernels_that_cannot_be_built_are_reported(
    tmp_path: Path, definitions: dict[str, str], message: str
) -> None:
    cmake, make, compiler = (shutil.which(name) for name in ("cmake", "make", "c++"))
    if None in (cmake, make, compiler):
        pytest.skip("no cmake, make or c++")
    # programs are looked for in an empty folder
    given = {"CMAKE_FIND_ROOT_PATH": tmp_path, "CMAKE_FIND_ROOT_PATH_MODE_PROGRAM": "ONLY", **definitions}
    given |= {"CMAKE_MAKE_PROGRAM": make, "CMAKE_CXX_COMPILER": compiler}
    options = [f"-D{name}={value}" for name, value in given.items()]
    command = [str(cmake), "-S", str(ROOT), "-B", str(tmp_path), "-G", "Unix Makefiles", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert message in re.sub(r"\s+", " ", done.stderr)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist of a copy of the tree."""
    pytest.importorskip("setuptools")
    tree, out = tmp_path_factory.mktemp("tree") / "cortex-fast", tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, tree, ignore=IGNORED)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True)
    return out / f"cortex_fast-{__version__}.tar.gz"


def test_sdist_is_complete(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native_sources = [path for folder in ("csrc", "python") for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert {path.relative_to(ROOT).as_posix() for path in native_sources} <= names
    assert {"CMakeLists.txt", "setup.py", "pyproject.toml", "constraints.txt"} <= names
    assert package_files(ROOT) <= names
    assert not [name for name in names if name.endswith((".so", ".pyc")) or name.startswith(("build/", ".venv/"))]


@pytest.mark.slow
def test_wheel_builds_in_isolation_and_loads_without_torch(sdist: Path, tmp_path: Path) -> None:
    constraints = str(ROOT / "constraints.txt")
    environment = {**os.environ, "PIP_CONSTRAINT": constraints, "PIP_BUILD_CONSTRAINT": constraints}
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(sdist)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    assert package_files(ROOT) <= set(wheel.namelist())
    extension = next(
        name for name in wheel.namelist() if name.startswith("cortex_fast/_native.") and ".pyi" not in name
    )
    wheel.extract(extension, tmp_path)
    code = (
        "import importlib.util, json, sys\n"
        "spec = importlib.util.spec_from_file_location('_native', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(json.dumps([module.build_info(), 'torch' in sys.modules]))\n"
    )
    bare = [sys.executable, "-I", "-S", "-c", code, str(tmp_path / extension)]
    build, torch_loaded = json.loads(subprocess.run(bare, check=True, capture_output=True, text=True).stdout)
    assert build["build_type"] == "Release"
    assert not torch_loaded
