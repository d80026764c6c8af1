"""The native kernels' random words (csrc/cpu/words.h), bit for bit. test_random_stream.py checks the floats of them."""

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.backends_under_test import NATIVE
from tests.ops.compiled_headers import COMPILER, library_of
from tests.ops.exact_stream import STREAMS, words

WORD, SEED = st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1)
LONG = {"stream": "gumbel", "seed": 2**63 - 1, "item": 2**32 - 1, "draw": 2**31}

every_stream = pytest.mark.parametrize("stream", STREAMS)


@pytest.fixture(scope="module", params=NATIVE)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    return library_of("words.cpp", request.param, tmp_path_factory.mktemp("words"))


def definition(stream: str, seed: int, item: int, draw: int, rows: int, length: int) -> np.ndarray:
    """[rows, length + up to 3]."""
    return words(stream, seed, torch.tensor([item]), torch.tensor([draw]), rows, length)[0, 0]


def along_row(library: ctypes.CDLL, stream: str, seed: int, item: int, draw: int, row: int, place: slice) -> np.ndarray:
    """The words of these indices of a row; the first is a multiple of 4."""
    out = np.zeros(place.stop - place.start, dtype=np.uint32)
    counter = map(ctypes.c_uint32, (row, item, draw))
    first = ctypes.c_uint64(place.start // 4)
    key = ctypes.c_uint64(seed), ctypes.c_uint64(STREAMS[stream])
    library.along_row(*key, first, *counter, ctypes.c_int64(out.size), ctypes.c_void_p(out.ctypes.data))
    return out


def across_rows(
    library: ctypes.CDLL, stream: str, seed: int, item: int, draw: int, quad: int, rows: slice
) -> np.ndarray:
    """The words [rows, 4] of one quad of these rows."""
    out = np.zeros((4, rows.stop - rows.start), dtype=np.uint32)
    place = ctypes.c_uint32(quad), ctypes.c_uint64(rows.start), ctypes.c_uint32(item), ctypes.c_uint32(draw)
    key = ctypes.c_uint64(seed), ctypes.c_uint64(STREAMS[stream])
    library.across_rows(*key, *place, ctypes.c_int64(out.shape[1]), ctypes.c_void_p(out.ctypes.data))
    return out.T


@every_stream
@settings(deadline=None, max_examples=15)
@given(seed=SEED, item=WORD, draw=WORD, rows=st.integers(0, 5), length=st.integers(0, 200))
def test_words_along_rows_are_the_definitions(
    library: ctypes.CDLL, stream: str, seed: int, item: int, draw: int, rows: int, length: int
) -> None:
    expected = definition(stream, seed, item, draw, rows, length)
    for row in range(rows):
        got = along_row(library, stream, seed, item, draw, row, slice(0, length))
        np.testing.assert_array_equal(got, expected[row, :length])


@every_stream
@settings(deadline=None, max_examples=15)
@given(seed=SEED, item=WORD, draw=WORD, first=st.integers(0, 5), rows=st.integers(0, 70), quad=st.integers(0, 50))
def test_words_across_rows_are_the_definitions(
    library: ctypes.CDLL, stream: str, seed: int, item: int, draw: int, first: int, rows: int, quad: int
) -> None:
    expected = definition(stream, seed, item, draw, first + rows, 4 * quad + 4)
    got = across_rows(library, stream, seed, item, draw, quad, slice(first, first + rows))
    np.testing.assert_array_equal(got, expected[first:, 4 * quad :])


@pytest.mark.parametrize("length", [1, 3, 1023, 1024, 1025, 1537, 4100])
@pytest.mark.parametrize("rows", [1, 17])
def test_long_rows_also_in_parts(library: ctypes.CDLL, rows: int, length: int) -> None:
    expected = definition(**LONG, rows=rows, length=length)
    for row in range(rows):
        for first in (0, *range(1024, length, 1024)):
            got = along_row(library, **LONG, row=row, place=slice(first, length))
            np.testing.assert_array_equal(got, expected[row, first:length])


def test_many_rows(library: ctypes.CDLL) -> None:
    expected = definition(**LONG, rows=300, length=8)
    np.testing.assert_array_equal(across_rows(library, **LONG, quad=1, rows=slice(0, 300)), expected[:, 4:])
