"""The stand-in for a GPU itself: kernels whose results are known, what it refuses, and what it notices."""

import ctypes
import subprocess
import sys

import numpy as np
import pytest

from tests.cuda import stand_in

if stand_in.missing() is not None:
    pytest.skip(str(stand_in.missing()), allow_module_level=True)

LANES = np.arange(32)


@pytest.fixture(params=[False, True], ids=["forwards", "backwards"])
def functions(request: pytest.FixtureRequest):
    library = ctypes.CDLL(str(stand_in.file()))
    library.run_like(request.param, True)
    yield library
    library.run_like(False, True)


def address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize(("blocks", "threads"), [(1, 32), (5, 64), (3, 1024)])
def test_barriers_and_shared_memory(functions: ctypes.CDLL, blocks: int, threads: int) -> None:
    values, sums = np.arange(blocks * threads, dtype=np.int32) ** 2, np.zeros(blocks, dtype=np.int32)
    assert functions.block_sums_of(address(values), address(sums), blocks, threads) == 0
    np.testing.assert_array_equal(sums, values.reshape(blocks, threads).sum(1, dtype=np.int32))


def test_shuffles_and_votes(functions: ctypes.CDLL) -> None:
    got = np.full((9, 32), -1, dtype=np.int32)
    assert functions.warp_functions_of(address(got)) == 0
    in_half = LANES % 16
    expected = [
        np.full(32, 3),
        LANES // 8 * 8 + (LANES + 1) % 8,
        np.where(LANES < 3, LANES, LANES - 3),
        np.where(in_half + 3 < 16, LANES + 3, LANES),
        LANES ^ 5,
        np.full(32, sum(1 << lane for lane in range(0, 32, 3))),
        np.ones(32),
        LANES ^ 1,
        np.where(LANES < 16, 120 + 15000, 376 + 31000),
    ]
    np.testing.assert_array_equal(got, expected)


def test_refuses_a_launch_that_no_gpu_takes(functions: ctypes.CDLL) -> None:
    assert functions.block_sums_of(None, None, 1, 2048) != 0
    assert functions.block_sums_of(None, None, 0, 32) != 0


def test_tells_of_threads_that_wait_for_ever() -> None:
    code = f"import ctypes; ctypes.CDLL({str(stand_in.file())!r}).stuck_of(None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "cuda_on_host: no thread can go on" in done.stderr
