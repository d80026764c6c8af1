"""The shared stream against published vectors, and against the same algorithm written over with Python's integers."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cortex_fast.kernels.reference import philox
from cortex_fast.ops import gumbel_codebook, smoothgrad_noise

TWO32 = 2**32
HALF_ULP = 2.0**-24
WORD = st.integers(0, TWO32 - 1)
SEED = st.integers(0, 2**63 - 1)

PUBLISHED = [  # Random123's kat_vectors: counter, key, output
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def integer_philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, ...]:
    a, b, c, d = counter
    for step in range(10):
        left, right = (key[0] + step * 0x9E3779B9) % TWO32, (key[1] + step * 0xBB67AE85) % TWO32
        high_a, low_a = divmod(a * 0xD2511F53, TWO32)
        high_c, low_c = divmod(c * 0xCD9E8D57, TWO32)
        a, b, c, d = high_c ^ b ^ left, low_c, high_a ^ d ^ right, low_a
    return a, b, c, d


def splitmix64(seed: int, steps: int) -> int:
    """The generator's output number `steps`, counted from 1."""
    state = 0
    for _ in range(steps):
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        state = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state


def integer_word(seed: int, stream: int, item: int, draw: int, row: int, index: int) -> int:
    high, low = divmod(splitmix64(seed, stream), TWO32)
    return integer_philox((index // 4, row, item, draw), (low, high))[index % 4]


def exact_uniform(word: int) -> float:
    """Each step in float64, where it is exact, then rounded once to float32."""
    return min(float(np.float32(float(np.float32(word)) / TWO32 + 2.0**-33)), 1 - 2.0**-24)


def exact_normal(seed: int, item: int, draw: int, row: int, index: int, angle_dtype: type = np.float32) -> float:
    first = exact_uniform(integer_word(seed, 1, item, draw, row, index // 2 * 2))
    second = exact_uniform(integer_word(seed, 1, item, draw, row, index // 2 * 2 + 1))
    angle = float(angle_dtype(angle_dtype(second) * angle_dtype(2 * math.pi)))
    return math.sqrt(-2 * math.log(first)) * (math.sin(angle) if index % 2 else math.cos(angle))


def exact_gumbel(seed: int, item: int, draw: int, row: int, index: int) -> float:
    return -math.log(-math.log1p(-exact_uniform(integer_word(seed, 2, item, draw, row, index))))


def vector(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert integer_philox(counter, key) == expected
    c0, c1, c2, c3 = (vector(word) for word in counter)
    assert tuple(word.item() for word in philox.philox4x32((c0, c1, c2, c3), key)) == expected


def test_random_counters_match_integer_arithmetic() -> None:
    rng = np.random.default_rng(0)
    counters = rng.integers(0, TWO32, (4, 400))
    key = (0xDEADBEEF, 0x80000001)
    c0, c1, c2, c3 = torch.from_numpy(counters)
    got = torch.stack(philox.philox4x32((c0, c1, c2, c3), key), dim=1)
    assert got.tolist() == [list(integer_philox([int(word) for word in column], key)) for column in counters.T]


@pytest.mark.parametrize(
    ("seed", "stream", "published"),
    [
        (0, 1, 0xE220A8397B1DCDAF),
        (0, 2, 0x6E789E6AA1B965F4),
        (1234567, 1, 6457827717110365317),
        (1234567, 2, 3203168211198807973),
    ],
)
def test_the_key_is_splitmix64s_output_number_stream(seed: int, stream: int, published: int) -> None:
    low, high = philox.stream_key(seed, stream)
    assert splitmix64(seed, stream) == published == high * TWO32 + low


@settings(deadline=None, max_examples=25)
@given(
    seed=SEED,
    stream=st.sampled_from([philox.NORMAL, philox.GUMBEL]),
    items=st.lists(WORD, max_size=3),
    draws=st.lists(WORD, max_size=3),
    rows=st.integers(0, 3),
    length=st.integers(0, 9),
)
def test_words_are_laid_out_as_documented(
    seed: int, stream: int, items: list[int], draws: list[int], rows: int, length: int
) -> None:
    words = philox.words(seed, stream, vector(*items), vector(*draws), rows, length)
    quads = (length + 3) // 4
    for place, word in enumerate(words):
        assert word.shape == (len(items), len(draws), rows, quads)
        for (i, n, row, quad), value in np.ndenumerate(word.numpy()):
            assert value == integer_word(seed, stream, items[i], draws[n], row, 4 * quad + place)


def test_uniform_is_rounded_as_stated_and_keeps_its_end_points() -> None:
    edges = [0, 1, 2, 2**23 - 1, 2**23, 2**24 - 1, 2**24, 2**24 + 1, 2**24 + 3, 2**25 + 2, 2**25 + 6, 2**31 - 1, 2**31]
    edges += [TWO32 - step for step in (1, 127, 128, 129, 255, 256, 257, 384, 385)]
    words = edges + np.random.default_rng(1).integers(0, TWO32, 1000).tolist()
    got = philox.uniform(vector(*words))
    assert got.dtype == torch.float32
    assert got.tolist() == [exact_uniform(word) for word in words]
    assert got[0].item() == 2.0**-33
    assert philox.uniform(vector(TWO32 - 1)).item() == 1 - 2.0**-24
    in_order = philox.uniform(vector(*sorted(words)))
    assert bool((in_order.diff() >= 0).all())


@settings(deadline=None, max_examples=20)
@given(seed=SEED, item=WORD, draw=WORD, rows=st.integers(1, 3), length=st.integers(1, 11))
def test_normals_are_box_muller_of_their_words(seed: int, item: int, draw: int, rows: int, length: int) -> None:
    got = philox.normal(seed, vector(item), vector(draw), rows, length)
    assert got.shape == (1, 1, rows, length)
    assert got.dtype == torch.float32
    for row in range(rows):
        for index, value in enumerate(got[0, 0, row].tolist()):
            expected = exact_normal(seed, item, draw, row, index)
            assert abs(value - expected) <= 8 * HALF_ULP * abs(expected)
            assert abs(value - exact_normal(seed, item, draw, row, index, np.float64)) <= 2e-6


@settings(deadline=None, max_examples=20)
@given(seed=SEED, item=WORD, draw=WORD, rows=st.integers(1, 3), length=st.integers(1, 11))
def test_gumbels_are_logs_of_their_words(seed: int, item: int, draw: int, rows: int, length: int) -> None:
    got = philox.gumbel(seed, vector(item), vector(draw), rows, length)
    assert got.shape == (1, 1, rows, length)
    assert got.dtype == torch.float32
    for row in range(rows):
        for index, value in enumerate(got[0, 0, row].tolist()):
            expected = exact_gumbel(seed, item, draw, row, index)
            assert abs(value - expected) <= 6 * HALF_ULP * max(1, abs(expected))


def test_extreme_words_give_finite_noise_and_the_upper_tail_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    smallest, largest = (vector(word)[None, None, None] for word in (0, TWO32 - 1))
    monkeypatch.setattr(philox, "words", lambda *_: (smallest, largest, vector(1)[None, None, None], smallest))
    top, bottom, second, _ = philox.gumbel(0, vector(0), vector(0), 1, 4).flatten().tolist()
    assert top == pytest.approx(33 * math.log(2), abs=1e-5)
    assert second == pytest.approx(33 * math.log(2) - math.log(3), abs=1e-5)
    assert bottom == pytest.approx(-math.log(24 * math.log(2)), abs=1e-5)
    normal = philox.normal(0, vector(0), vector(0), 1, 4).flatten()
    assert bool(normal.isfinite().all())
    assert normal[0].item() == pytest.approx(math.sqrt(66 * math.log(2)), rel=1e-5)
    monkeypatch.setattr(philox, "words", lambda *_: (largest,) * 4)
    assert bool(philox.normal(0, vector(0), vector(0), 1, 4).isfinite().all())


def kolmogorov_smirnov(values: Tensor, cdf: Tensor) -> float:
    """sqrt(n) times the largest distance of the empirical from the given distribution function."""
    order = values.argsort()
    n = len(values)
    above = torch.arange(1, n + 1, dtype=torch.float64) / n - cdf[order]
    return math.sqrt(n) * max(above.max().item(), (1 / n - above).max().item())


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_normals_are_standard_normal(seed: int) -> None:
    values = philox.normal(seed, torch.arange(4), torch.arange(8), 16, 131).flatten().double()
    n = len(values)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(values.pow(power).mean().item() - mean) < 4.5 * math.sqrt(variance / n)
    assert kolmogorov_smirnov(values, (1 + torch.special.erf(values / math.sqrt(2))) / 2) < 1.95


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_gumbels_are_standard_gumbel(seed: int) -> None:
    values = philox.gumbel(seed, torch.arange(4), torch.arange(8), 16, 131).flatten().double()
    n = len(values)
    variance = math.pi**2 / 6
    assert abs(values.mean().item() - np.euler_gamma) < 4.5 * math.sqrt(variance / n)
    assert abs(values.var().item() - variance) < 4.5 * variance * math.sqrt(4.4 / n)  # excess kurtosis 12 / 5
    assert kolmogorov_smirnov(values, (-(-values).exp()).exp()) < 1.95


def test_streams_seeds_items_draws_rows_and_neighbours_are_independent() -> None:
    base = philox.normal(7, vector(0, 1), vector(0, 1), 2, 8192).double()
    first = base[0, 0, 0]
    others = {
        "next item": base[1, 0, 0],
        "next draw": base[0, 1, 0],
        "next row": base[0, 0, 1],
        "next seed": philox.normal(8, vector(0), vector(0), 1, 8192)[0, 0, 0].double(),
        "seed's high word": philox.normal(7 + 2**32, vector(0), vector(0), 1, 8192)[0, 0, 0].double(),
        "Gumbel": philox.gumbel(7, vector(0), vector(0), 1, 8192)[0, 0, 0].double(),
        **{f"{lag} further": first.roll(-lag) for lag in (1, 2, 3, 4)},
    }
    for name, other in others.items():
        assert (first == other).sum() <= 1, name
        for left, right in ((first, other), (first.square(), other), (first.square(), other.square())):
            correlation = torch.corrcoef(torch.stack((left, right)))[0, 1].item()
            assert abs(correlation) < 4.5 / math.sqrt(8192), name


def test_items_and_draws_are_not_interchangeable() -> None:
    square = philox.words(3, philox.NORMAL, torch.arange(4), torch.arange(4), 4, 16)
    assert len(torch.stack(square).unique()) == 4 * 4 * 4 * 16


def test_smoothgrad_noise_takes_row_position_index_channel_draw_sample() -> None:
    ids, channels, height, width = (5, 2**32 - 1), 5, 2, 3
    noise = smoothgrad_noise(torch.zeros(2, channels, height, width), torch.ones(2), 2, seed=11, item_ids=vector(*ids))
    assert noise.shape == (2, 2, channels, height, width)
    for (i, n, c, y, x), value in np.ndenumerate(noise.numpy()):
        assert value == pytest.approx(exact_normal(11, ids[i], n, y * width + x, c), rel=8 * HALF_ULP)


def test_gumbel_codebook_takes_row_index_code_and_its_draw() -> None:
    ids, rows, codes, seed, draw = (9, 2**32 - 1), 3, 6, 2**63 - 1, 2**32 - 1
    y, index = gumbel_codebook(
        torch.zeros(2, rows, codes), torch.eye(codes), seed=seed, draw=draw, item_ids=vector(*ids), hard=False
    )
    g = np.array([[[exact_gumbel(seed, i, draw, r, k) for k in range(codes)] for r in range(rows)] for i in ids])
    expected = np.exp(g) / np.exp(g).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(y.numpy(), expected, rtol=3e-6)
    np.testing.assert_array_equal(index.numpy(), g.argmax(axis=-1))
