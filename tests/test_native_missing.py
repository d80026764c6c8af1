"""A package without its native core says so once, and what to do."""

import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import cortex_fast
from cortex_fast.kernels.native.missing import NAME, reason

# an editable install would lend the core of its own folder to another source folder
WITHOUT_EDITABLE = "sys.meta_path[:] = [f for f in sys.meta_path if not str(f.__module__).startswith('__editable__')]"
GONE = ModuleNotFoundError(f"No module named '{NAME}'", name=NAME)


@pytest.fixture
def source_folder(tmp_path: Path) -> Path:
    """A checkout that is not built."""
    package = tmp_path / "check out" / "cortex_fast"
    package.mkdir(parents=True)
    (package.parent / "csrc").mkdir()
    for path in Path(cortex_fast.__file__).parent.iterdir():
        if not path.name.startswith("_native."):
            (package / path.name).symlink_to(path)
    return package.parent


def test_python_started_in_an_unbuilt_source_folder_warns_once(source_folder: Path) -> None:
    code = (
        f"import sys; {WITHOUT_EDITABLE}; import cortex_fast; from cortex_fast import info, ops, zoo;"
        "print(info._native_core()['missing']); print(info._cuda_kernels()['missing'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=source_folder, env=environment | {"PYTHONPATH": "."}, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("RuntimeWarning: cortex_fast runs without its native core") == 1
    for text in (done.stderr, *done.stdout.splitlines()):
        assert f"took cortex_fast from the source folder {source_folder}, where it is not built" in text
        assert "start Python in another folder, where it finds the installed package" in text
        assert f"or run: pip install -e {source_folder}" in text
        assert "circular" not in text


def test_reasons(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "cortex_fast"
    package.mkdir(parents=True)
    assert reason(GONE, package).endswith(f"it is not in {package}; install cortex-fast again")
    (package / "_native.cpython-39-other.so").touch()
    assert "for this Python (there is _native.cpython-39-other.so); install" in reason(GONE, package)
    (package.parent / "csrc").mkdir()
    assert "where it is not built for this Python (there is _native.cpython-39-other.so)" in reason(GONE, package)


def test_a_core_that_is_there_and_does_not_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    for error in (
        ImportError("libgomp.so.1: cannot open shared object file", name=NAME),
        ModuleNotFoundError("import halted; None in sys.modules", name=NAME),
    ):
        package = tmp_path / type(error).__name__
        package.mkdir()
        (package / f"_native{EXTENSION_SUFFIXES[0]}").touch()
        assert reason(error, package) == f"{NAME} did not load: {error}"
    needed = ModuleNotFoundError("No module named 'other'", name="other")
    assert reason(needed, tmp_path) == f"{NAME} did not load: No module named 'other'"
