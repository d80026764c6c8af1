"""Headers of csrc/ compiled into a small library, with each level's flags, for tests that call their functions."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def library_of(source: str, level: str, folder: Path) -> ctypes.CDLL:
    """source: a file beside this one; level: as in CMakeLists.txt; folder: where the library is written."""
    library = folder / f"{source}_{level}.so"
    rules = (ROOT / "CMakeLists.txt").read_text()
    common = re.search(r"VECTOR_FLAGS ([^)]+)\)", rules)
    of_level = re.search(rf"add_level\({level} \S+?VECTOR_FLAGS}}([^)]*)\)", rules)
    assert common is not None
    assert of_level is not None
    flags = [*common[1].split(), *of_level[1].split(), "-O2", "-ffp-contract=off", "-std=c++17", "-shared", "-fPIC"]
    folders = [f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc' / 'cpu'}", f"-DCORTEX_FAST_LEVEL={level}"]
    path = Path(__file__).with_name(source)
    subprocess.run([str(COMPILER), *flags, *folders, str(path), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))
