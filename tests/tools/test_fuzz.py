"""tools/fuzz.py: random calls of every operator find nothing, and what there is to find is found."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.backends_under_test import needs_native

TOOL = Path(__file__).parents[2] / "tools" / "fuzz.py"
pytestmark = needs_native

FAULTS = f"""\
import ctypes, runpy
from cortex_fast.kernels.native import nearest_code, token_saliency
right = nearest_code.nearest_code
nearest_code.nearest_code = lambda *arguments, **named: right(*arguments, **named) // 2
token_saliency.token_saliency = lambda **_: ctypes.string_at(0)
runpy.run_path({str(TOOL)!r}, run_name="__main__")
"""


def fuzz(*options: str, tool: Path = TOOL) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(tool), *options], capture_output=True, text=True, check=False)


def test_some_calls_of_each_operator() -> None:
    done = fuzz("--calls", "12", "--processes", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"\d+ calls, 0 findings\n", done.stdout)


def test_wrong_results_and_crashes_are_found_and_can_be_repeated(tmp_path: Path) -> None:
    """Of a kernel that halves its result, and of one that reads at address 0."""
    tool = tmp_path / "faulty.py"
    tool.write_text(FAULTS)
    options = ("--operators", "nearest_code,token_saliency", "--kinds", "numbers", "--calls", "12")
    done = fuzz(*options, tool=tool)
    assert done.returncode == 1
    assert "ended with -11" in done.stdout
    match = re.search(r'--replay "(numbers nearest_code \d+)"(.|\n)*?WrongError: index', done.stdout)
    assert match is not None
    assert fuzz("--replay", match[1], tool=tool).returncode != 0


@pytest.mark.slow
def test_ten_thousand_calls_of_each_operator() -> None:
    done = fuzz("--calls", "10000")
    assert done.returncode == 0, done.stdout + done.stderr
