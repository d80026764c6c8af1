"""gather_error against differences taken one position at a time in float64."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cortex_fast.ops import gather_error, gather_error_of_files
from cortex_fast.ops.backends import BackendUnavailableError
from tests.ops.backends_under_test import EPS, assert_same_for_any_threads, needs_native, random, same_bits

SIZES = [(1, 1, 1), (3, 1, 7), (7, 5, 5), (8, 4, 4), (9, 4, 8), (16, 4, 4), (17, 3, 11), (40, 7, 7), (256, 16, 16)]


def formula(embedding: Tensor, tokens: Tensor, codebook: Tensor) -> np.ndarray:
    """float64 [B]"""
    errors = np.zeros(len(tokens))
    rows = codebook.double().numpy()
    for image, y, x in np.ndindex(*tokens.shape):
        difference = embedding[image, :, y, x].double().numpy() - rows[int(tokens[image, y, x])]
        errors[image] = max(errors[image], np.abs(difference).max(initial=0))
    return errors


def near(images: int, size: tuple[int, int, int], codes: int = 19, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings within 1e-3 of the codebook at their tokens, where no two differences are alike."""
    channels, height, width = size
    codebook = random(codes, channels, seed=seed)
    tokens = torch.randint(codes, (images, height, width), generator=torch.Generator().manual_seed(seed))
    exact = codebook[tokens].permute(0, 3, 1, 2)
    return exact + 1e-3 * random(images, *size, seed=seed + 1), tokens, codebook


@pytest.mark.parametrize("size", SIZES)
def test_is_the_largest_difference(impl: str, size: tuple[int, int, int]) -> None:
    embedding, tokens, codebook = near(3, size)
    error = gather_error(embedding, tokens, codebook, impl=impl)
    assert error.dtype == torch.float32 and error.shape == (3,)
    np.testing.assert_allclose(error.numpy(), formula(embedding, tokens, codebook), rtol=EPS)
    assert not gather_error(codebook[tokens].permute(0, 3, 1, 2), tokens, codebook, impl=impl).any()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_one_difference_anywhere_is_found(impl: str, data: st.DataObject) -> None:
    size = tuple(data.draw(st.integers(1, high)) for high in (40, 7, 7))
    embedding, tokens, codebook = near(data.draw(st.integers(1, 3)), size, seed=data.draw(st.integers(0, 99)))
    embedding = codebook[tokens].permute(0, 3, 1, 2)  # positions outside, as gathered: not contiguous
    at = tuple(data.draw(st.integers(0, length - 1)) for length in embedding.shape)
    expected = torch.zeros(len(tokens))
    value = data.draw(st.sampled_from([1e-3, -2.5, 1e-40, float("inf"), float("-inf"), float("nan")]))
    embedding[at] += value
    expected[at[0]] = abs(embedding[at] - codebook[tokens[at[0], at[2], at[3]], at[1]])
    for kind in (torch.int64, torch.int32, torch.uint16, torch.uint8):
        assert same_bits([gather_error(embedding, tokens.to(kind), codebook, impl=impl)], [expected.abs()])


@pytest.mark.parametrize("size", [(1, 1, 1), (9, 4, 8)])
def test_nan_of_either_wins_over_infinity(impl: str, size: tuple[int, int, int]) -> None:
    embedding, tokens, codebook = near(2, size)
    embedding[0, -1, -1, -1] = codebook[tokens[0, -1, -1], -1] = torch.inf  # their difference is no number
    embedding[1, 0, 0, 0] = torch.inf
    tokens[1] = (tokens[0, -1, -1] + 1) % len(codebook)
    error = gather_error(embedding, tokens, codebook, impl=impl)
    assert error[0].isnan() and error[1] == torch.inf
    codebook[tokens[1, 0, 0], 0] = torch.nan
    assert gather_error(embedding, tokens, codebook, impl=impl).isnan().all()


def test_a_code_that_no_token_names_may_be_nan(impl: str) -> None:
    embedding, tokens, codebook = near(2, (9, 4, 8), codes=5)
    expected = gather_error(embedding, tokens, codebook, impl=impl)
    around = torch.cat((torch.full((1, 9), torch.nan), codebook, torch.full((1, 9), torch.nan)))
    assert same_bits([gather_error(embedding, tokens + 1, around, impl=impl)], [expected])


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 0), (2, 0, 4, 4)])
def test_nothing_differs_by_nothing(impl: str, shape: tuple[int, ...]) -> None:
    tokens = torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
    error = gather_error(torch.zeros(shape), tokens, torch.ones(5, shape[1]), impl=impl)
    assert error.tolist() == [0] * shape[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_are_the_references(dtype: torch.dtype) -> None:
    embedding, tokens, codebook = (
        tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in near(2, SIZES[3])
    )
    error = gather_error(embedding, tokens, codebook)
    assert error.dtype == dtype
    np.testing.assert_allclose(error.double().numpy(), formula(embedding, tokens, codebook), rtol=2e-3)
    with pytest.raises(BackendUnavailableError, match="gather_error: impl='native'"):
        gather_error(embedding, tokens, codebook, impl="native")


@needs_native
def test_same_bits_for_any_threads_and_again() -> None:
    embedding, tokens, codebook = near(7, (40, 7, 7))
    assert_same_for_any_threads(lambda: [gather_error(embedding, tokens, codebook, impl="native")])


def test_opcheck(impl: str) -> None:
    embedding, tokens, codebook = near(2, (9, 4, 4))
    operator = torch.ops.cortex_fast.gather_error.default
    torch.library.opcheck(operator, (embedding, tokens.int(), codebook, impl))


def valid() -> dict[str, Tensor]:
    return dict(zip(("embedding", "tokens", "codebook"), near(2, (3, 4, 4)), strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"embedding": torch.rand(2, 3, 16)}, ValueError, r"embedding: expected shape \[B, d, m, m\]"),
        ({"embedding": torch.rand(2, 4, 4, 4)}, ValueError, r"embedding: .*codebook's channels, \[2, 3, 4, 4\], got"),
        ({"embedding": torch.ones(2, 3, 4, 4).int()}, TypeError, "embedding: expected a floating-point"),
        (
            {"embedding": torch.rand(2, 3, 4, 4).double()},
            TypeError,
            "embedding: expected torch.float32, the code",
        ),
        ({"tokens": torch.zeros(2, 4, 4)}, TypeError, "tokens: expected an integer tensor"),
        ({"tokens": torch.full((2, 4, 4), 19)}, ValueError, r"tokens: expected values in \[0, 19\), got 19 to 19"),
        ({"tokens": torch.full((2, 4, 4), -1)}, ValueError, r"tokens: expected values in \[0, 19\), got -1"),
        ({"tokens": torch.full((2, 4, 4), 2**32)}, ValueError, r"tokens: expected values in \[0, 19\), got 4294967296"),
        ({"codebook": torch.rand(3)}, ValueError, r"codebook: expected shape \[K, d\]"),
        ({"impl": "fast"}, ValueError, "impl: expected 'auto' or one of"),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gather_error(**{**valid(), **change})


def test_lazily_negated_views(impl: str) -> None:
    embedding, tokens, codebook = near(2, (9, 4, 4))
    expected = formula(embedding, tokens, codebook)
    error = gather_error(*(torch._neg_view(-tensor) for tensor in (embedding, tokens, codebook)), impl=impl)
    np.testing.assert_allclose(error.numpy(), expected, rtol=EPS)


def test_compile() -> None:
    embedding, tokens, codebook = near(2, (3, 4, 4))
    compiled = torch.compile(lambda *tensors: gather_error(*tensors) + 1, fullgraph=True, backend="aot_eager")
    np.testing.assert_allclose(
        compiled(embedding, tokens, codebook).numpy() - 1, formula(embedding, tokens, codebook), atol=1e-6
    )
    with pytest.raises(ValueError, match=r"tokens: expected values in \[0, 19\)"):
        compiled(embedding, tokens + 2**32, codebook)  # in 32 bits they would be in range


def test_embeddings_in_files_are_compared_file_by_file(tmp_path):
    """More files than are read together; one is missing and one is a named pipe, which nobody waits for."""
    codebook, tokens = random(9, 4), torch.randint(0, 9, (35, 3, 3), generator=torch.Generator().manual_seed(0))
    embedding = codebook[tokens].permute(0, 3, 1, 2).contiguous()
    embedding[20, 1, 2, 0] += 0.5
    paths = [tmp_path / f"{image}.npy" for image in range(35)]
    for path, values in zip(paths, embedding, strict=True):
        np.save(path, values.numpy())
    paths[3].unlink()
    paths[17].unlink()
    os.mkfifo(paths[17])
    errors, readable = gather_error_of_files(paths, tokens, codebook)
    assert [image for image in range(35) if not readable[image]] == [3, 17]
    assert errors[[3, 17]].isnan().all() and abs(float(errors[20]) - 0.5) < 1e-6
    others = readable.clone()
    others[20] = False
    assert (errors[others] == 0).all()


@pytest.mark.parametrize("count", [0, 1])
def test_files_and_images_must_be_as_many(count):
    with pytest.raises(ValueError, match=r"^paths: expected one for each of the 2 images"):
        gather_error_of_files(["a"] * count, torch.zeros(2, 3, 3, dtype=torch.int64), torch.zeros(4, 2))
