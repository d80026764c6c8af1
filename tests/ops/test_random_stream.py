"""The stream written out: every backend's floats against float64 of the definition's words.

test_philox.py checks the definition's words against published ones, test_words.py and test_triton_stream.py the
kernels' words bit for bit, and test_transforms.py the transforms of any word.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cortex_fast import kernels
from cortex_fast.kernels import native
from cortex_fast.ops import gumbel_codebook, random_stream, smoothgrad_noise
from tests.ops.backends_under_test import assert_same_for_any_threads, few, random, same_bits, skip_in_interpreter
from tests.ops.exact_stream import STREAMS, UNIT, gumbel, normal, words

# of 2^-24: of a normal's radius, and of max(1, |g|); csrc/include/cortex_fast/transforms.h states the native ones
BOUNDS = {"native": (4, 3), "triton": (4, 3), "reference": (6, 6)}
WORD, SEED = st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1)


def vector(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def exact(stream: str, word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float64 of the words, and the scale of its error bound."""
    if stream != "normal":
        g = gumbel(word)
        return g, np.maximum(1, np.abs(g))
    first, second, radius = normal(word[..., ::2], word[..., 1::2])
    return np.stack((first, second), axis=-1).reshape(word.shape), np.repeat(radius, 2, axis=-1)


def draw(stream: str, seed: int, items: Tensor, draws: Tensor, rows: int, length: int, impl: str) -> Tensor:
    """[items, draws, rows, length]; the sampling stream has one row."""
    if stream == "normal":
        return random_stream.normal(seed, items, draws, rows, length, impl=impl)
    if stream == "gumbel":
        return random_stream.gumbel(seed, items, draws, rows, length, impl=impl)
    return random_stream.sampling_gumbel(seed, items, draws, length, impl=impl)[:, :, None]


every_stream = pytest.mark.parametrize("stream", STREAMS)


@every_stream
@settings(deadline=None, max_examples=15)
@given(
    seed=SEED,
    items=st.lists(WORD, max_size=3),
    draws=st.lists(WORD, max_size=3),
    rows=st.integers(0, 4),
    length=st.integers(0, 70),
)
def test_floats_are_those_of_their_words(
    impl: str, stream: str, seed: int, items: list[int], draws: list[int], rows: int, length: int
) -> None:
    if stream == "sampling":
        rows = 1
    out = draw(stream, seed, vector(*items), vector(*draws), rows, length, impl)
    assert out.shape == (len(items), len(draws), rows, length)
    assert out.dtype == torch.float32
    expected, scale = exact(stream, words(stream, seed, vector(*items), vector(*draws), rows, length))
    units = BOUNDS[impl][stream != "normal"]
    assert (np.abs(out.double().numpy() - expected[..., :length]) <= units * UNIT * scale[..., :length]).all()


@every_stream
def test_many_floats_are_those_of_their_words(impl: str, stream: str) -> None:
    items, draws, rows = vector(0, 2**32 - 1), vector(3, 5), 1 if stream == "sampling" else few(impl, 9, 3)
    for length in (1025, few(impl, 4099, 67)):
        out = draw(stream, 11, items, draws, rows, length, impl)
        expected, scale = exact(stream, words(stream, 11, items, draws, rows, length))
        worst = (np.abs(out.double().numpy() - expected[..., :length]) / (UNIT * scale[..., :length])).max()
        assert worst <= BOUNDS[impl][stream != "normal"]


@every_stream
def test_a_number_depends_on_its_place_alone(impl: str, stream: str) -> None:
    items, draws, rows = vector(7, 0, 2**32 - 1), vector(4, 2**32 - 1), 1 if stream == "sampling" else 5
    most = few(impl, 1030, 70)
    together = draw(stream, 3, items, draws, rows, most, impl)
    parts = ((slice(1, 2), slice(None)), (slice(None, None, 2), slice(1, 2)), (slice(0, 0), slice(None)))
    for part in parts:  # strided, too
        assert same_bits(
            [draw(stream, 3, items[part[0]], draws[part[1]], rows, most, impl)], [together[part[0], part[1]]]
        )
    for length in (0, 1, 2, 3, 5, 17, most - 6)[:: few(impl, 1, 2)]:
        assert same_bits([draw(stream, 3, items, draws, rows, length, impl)], [together[..., :length]])
    for fewer in range(0, rows, few(impl, 1, 3)):
        if stream != "sampling":
            assert same_bits([draw(stream, 3, items, draws, fewer, most, impl)], [together[:, :, :fewer]])


@every_stream
def test_same_bits_for_any_threads_and_again(impl: str, stream: str) -> None:
    skip_in_interpreter(impl)
    rows = 1 if stream == "sampling" else 7
    assert_same_for_any_threads(lambda: [draw(stream, 1, vector(0, 5), vector(0, 1), rows, 2051, impl)])


def test_smoothgrad_noise_draws_these_very_numbers(impl: str) -> None:
    ids, seed = vector(9, 2**32 - 1), 5
    noise = smoothgrad_noise(torch.zeros(2, 7, 3, 6), torch.ones(2), 3, seed=seed, item_ids=ids, impl=impl)
    stream = random_stream.normal(seed, ids, torch.arange(3), 18, 7, impl=impl).transpose(2, 3).view(2, 3, 7, 3, 6)
    assert torch.equal(noise, stream)


def test_gumbel_codebook_draws_these_very_numbers(impl: str) -> None:
    skip_in_interpreter(impl)
    if impl not in kernels.OPERATORS["gumbel_codebook"]:
        pytest.skip(f"gumbel_codebook has no {impl} kernel")
    ids, seed, number = vector(9, 2**32 - 1), 5, 2**32 - 1
    g = random_stream.gumbel(seed, ids, vector(number), 150, 2001, impl=impl)[:, 0]
    # at 1e4 a score is a multiple of 1 / 1024: many tie
    for logits in (random(2, 150, 2001), torch.zeros(2, 150, 2001), torch.full((2, 150, 2001), 1e4)):
        _, index = gumbel_codebook(logits, torch.zeros(2001, 1), seed=seed, draw=number, item_ids=ids, impl=impl)
        assert torch.equal(index, (logits + g).argmax(dim=-1))


def test_unknown_impl_is_named() -> None:
    for stream in STREAMS:
        with pytest.raises(ValueError, match="impl: expected 'auto' or one of"):
            draw(stream, 0, vector(0), vector(0), 1, 1, "fast")


def test_a_level_that_this_processor_lacks_is_refused(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LEVEL", "avx1024")
    with pytest.raises(ValueError, match="level: expected one that this processor has, got 'avx1024'"):
        draw("normal", 0, vector(0), vector(0), 1, 1, "native")


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"items": torch.tensor([0, 2**32])}, ValueError),
        ({"items": torch.tensor([-1])}, ValueError),
        ({"items": torch.zeros(2)}, TypeError),
        ({"draws": torch.tensor([2**32])}, ValueError),
        ({"draws": torch.tensor(3)}, ValueError),
        ({"draws": [3]}, TypeError),
        ({"rows": -1}, ValueError),
        ({"rows": 2**32 + 1}, ValueError),
        ({"length": 1.5}, TypeError),
        ({"seed": 2**63}, ValueError),
    ],
)
def test_numbers_that_the_stream_has_no_room_for_are_refused_by_name(changed: dict, error: type[Exception]) -> None:
    """Cut to 32 bits they would give the numbers of others."""
    arguments = {"seed": 0, "items": torch.arange(2), "draws": torch.arange(2), "rows": 2, "length": 3} | changed
    with pytest.raises(error, match=rf"^{next(iter(changed))}: expected .* got"):
        random_stream.normal(**arguments)
