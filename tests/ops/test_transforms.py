"""The stated accuracy of csrc/include/cortex_fast/transforms.h, function by function, against float64.

No kernel takes words as an argument, so the header itself is compiled here, with each level's flags; a kernel of this
test calls Triton's functions, which repeat it.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ops.backends_under_test import NATIVE, TRITON
from tests.ops.compiled_headers import COMPILER, library_of
from tests.ops.exact_stream import UNIT, gumbel, normal, uniform

TWO32 = 2**32
PACK = 32  # floats: as many as the largest


Function = Callable[..., np.ndarray]


class Header:
    def __init__(self, level: str, folder: Path) -> None:
        self.library = library_of("transforms.cpp", level, folder)

    def __call__(self, name: str, *inputs: np.ndarray) -> np.ndarray:
        """The function's float32 results [inputs, n] by single numbers; by packs they are the same bits."""
        count = inputs[0].size
        room = -(-count // PACK) * PACK
        given = np.ascontiguousarray([np.pad(values, (0, room - count), mode="edge") for values in inputs])
        outs = []
        for way in ("each", "packs"):
            out = np.full(given.shape, np.nan, dtype=np.float32)
            function = self.library[f"{name}_of_{way}"]
            function(ctypes.c_void_p(given.ctypes.data), ctypes.c_int64(room), ctypes.c_void_p(out.ctypes.data))
            outs.append(out[:, :count])
        np.testing.assert_array_equal(*outs)
        return outs[0]


def by_triton(name: str, *inputs: np.ndarray) -> np.ndarray:
    """As `Header.__call__`."""
    from tests.ops import triton_functions

    return triton_functions.apply(name, *map(torch.from_numpy, inputs)).numpy()


@pytest.fixture(scope="module", params=[*NATIVE, TRITON])
def header(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Header | Function:
    if request.param == "triton":
        return by_triton
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    return Header(request.param, tmp_path_factory.mktemp("transforms"))


def around(*words: float) -> np.ndarray:
    """Each word with its neighbours, both next to it and as far as a float's last bits."""
    near = np.concatenate([np.arange(-40, 41), np.arange(-40, 41) * 256])
    return np.clip(np.array(words)[:, None] + near, 0, TWO32 - 1).astype(np.int64).ravel()


def words() -> np.ndarray:
    """Many at random, both ends, and all about the places where a formula's branch or its exponent changes."""
    powers = 2.0 ** np.arange(33)
    halves = np.sqrt(0.5) * powers  # where the logarithm's exponent changes, of u and of 1 - u
    eighths = np.arange(9) / 8 * TWO32  # where the quarter turn changes
    edges = around(*powers, *halves, *(TWO32 - powers), *(TWO32 - halves), *eighths)
    small = np.arange(5000)
    some = np.random.default_rng(0).integers(0, TWO32, 300_000)
    return np.unique(np.concatenate([small, TWO32 - 1 - small, edges, some])).astype(np.uint32)


def test_uniform_is_the_streams_definition(header: Header | Function) -> None:
    word = words()
    np.testing.assert_array_equal(header("uniform", word)[0], uniform(word))


def assert_within(units: float, got: np.ndarray, exact: np.ndarray, scale: np.ndarray) -> None:
    error = np.abs(got.astype(np.float64) - exact) / (UNIT * scale)
    assert error.max() <= units, f"{error.max():.3f} units, at number {error.argmax()}"


def test_logarithms_are_within_one_and_a_half_units_of_their_value(header: Header | Function) -> None:
    u = uniform(words())
    logarithm, complement = np.log(u.astype(np.float64)), -np.log1p(-u.astype(np.float64))
    assert_within(1.5, header("log", u)[0], logarithm, np.abs(logarithm))
    assert_within(1.5, header("minus_log_of_complement", u)[0], complement, complement)
    large = np.float32(2.0) ** np.random.default_rng(1).uniform(-126, 127.9, 100_000).astype(np.float32)
    exact = np.log(large.astype(np.float64))
    assert_within(1.5, header("log", large)[0], exact, np.abs(exact))


def test_exponentials_are_within_one_and_a_half_units_of_their_value(header: Header | Function) -> None:
    rng = np.random.default_rng(2)
    x = -np.concatenate([rng.uniform(0, 87, 200_000), 2.0 ** rng.uniform(-149, 6.4, 100_000), [0, 87]])
    x = x.astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert_within(1.5, header("exp", x)[0], exact, exact)
    special = np.array([0, -0.0, -87.00001, -88, -1e4, -3.4e38, -np.inf, np.nan], dtype=np.float32)
    np.testing.assert_array_equal(header("exp", special)[0], [1, 1, 0, 0, 0, 0, 0, np.nan])


def test_gumbels_are_within_three_units(header: Header | Function) -> None:
    word = words()
    exact = gumbel(word)
    assert_within(3, header("gumbel", word)[0], exact, np.maximum(1, np.abs(exact)))


def test_gumbels_fall_as_their_words_grow(header: Header | Function) -> None:
    # the hard selection passes over blocks of codes because of it
    assert (np.diff(header("gumbel", words())[0]) <= 0).all()


def test_normals_are_within_four_units_of_their_radius(header: Header | Function) -> None:
    rng, pool = np.random.default_rng(3), words()
    first, second = rng.permutation(pool), rng.permutation(pool)
    extreme = np.array([0, 1, 2, 100, TWO32 - 1, TWO32 - 2, 0x9A85F300, 0x9AC13D00], dtype=np.uint32)
    turns = around(*(np.arange(9) / 8 * TWO32)).astype(np.uint32)
    first = np.concatenate([first, np.repeat(extreme, turns.size)])
    second = np.concatenate([second, np.tile(turns, extreme.size)])
    exact_across, exact_up, radius = normal(first, second)
    across, up = header("normals", first, second)
    assert_within(4, across, exact_across, radius)
    assert_within(4, up, exact_up, radius)
