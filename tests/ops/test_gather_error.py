"""gather_error against differences taken one position at a time in float64, of tensors and of files."""

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
    found = np.zeros(len(tokens))
    rows = codebook.double().numpy()
    for image, y, x in np.ndindex(*tokens.shape):
        difference = embedding[image, :, y, x].double().numpy() - rows[int(tokens[image, y, x])]
        found[image] = max(found[image], np.abs(difference).max(initial=0))
    return found


def near(images: int, size: tuple[int, int, int], codes: int = 19, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings within 1e-3 of the codebook at their tokens, where no two differences are alike."""
    channels, height, width = size
    codebook = random(codes, channels, seed=seed)
    tokens = torch.randint(codes, (images, height, width), generator=torch.Generator().manual_seed(seed))
    exact = codebook[tokens].permute(0, 3, 1, 2)
    return exact + 1e-3 * random(images, *size, seed=seed + 1), tokens, codebook


def save(folder: Path, embedding: Tensor) -> list[str]:
    paths = [str(folder / f"{image}.npy") for image in range(len(embedding))]
    for path, one in zip(paths, embedding, strict=True):
        np.save(path, one.contiguous().numpy())
    return paths


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
        ({"embedding": torch.rand(2, 3, 4, 4).double()}, TypeError, "embedding: expected torch.float32 as codebook"),
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


@pytest.mark.parametrize("size", [(1, 1, 1), (9, 4, 8), (256, 16, 16)])
def test_files_are_as_tensors(impl: str, size: tuple[int, int, int], tmp_path: Path) -> None:
    embedding, tokens, codebook = near(5, size)
    error, known = gather_error_of_files(save(tmp_path, embedding), tokens.to(torch.uint16), codebook, impl=impl)
    assert known.all() and known.dtype == torch.bool
    np.testing.assert_allclose(error.numpy(), formula(embedding, tokens, codebook), rtol=EPS)
    embedding[3, -1, -1, -1] = torch.nan
    error, known = gather_error_of_files(save(tmp_path, embedding), tokens, codebook, impl=impl)
    assert known.all() and error.isnan().nonzero().tolist() == [[3]]
    assert gather_error_of_files([], tokens[:0], codebook, impl=impl)[0].tolist() == []


def test_files_that_are_anything_else_are_not_known(impl: str, tmp_path: Path) -> None:
    embedding, tokens, codebook = near(9, (9, 4, 8))
    paths = save(tmp_path, embedding)
    whole = Path(paths[0]).read_bytes()
    Path(paths[1]).write_bytes(whole[:-1])
    Path(paths[2]).write_bytes(whole + b"\0")
    Path(paths[3]).write_bytes(whole.replace(b"<f4", b"<i4"))
    Path(paths[4]).write_bytes(b"")
    Path(paths[5]).unlink()
    Path(paths[6]).unlink()
    Path(paths[6]).mkdir()
    np.save(paths[7], np.asfortranarray(embedding[7].numpy()))
    error, known = gather_error_of_files(paths, tokens, codebook, impl=impl)
    assert known.tolist() == [True, *[False] * 7, True]
    assert error.isnan().tolist() == [not one for one in known]
    np.testing.assert_allclose(error[known].numpy(), formula(embedding, tokens, codebook)[known], rtol=EPS)


@pytest.mark.skipif(os.name == "nt", reason="POSIX has these")
def test_what_is_no_regular_file_is_not_known_and_nobody_waits_for_it(
    impl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding, tokens, codebook = near(5, (3, 4, 4))
    paths = save(tmp_path, embedding)
    Path(paths[0]).rename(tmp_path / "0")
    Path(paths[0]).symlink_to(tmp_path / "0")  # this is one
    for path in paths[1:4]:
        Path(path).unlink()
    os.mkfifo(paths[1])
    Path(paths[2]).symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("3.npy")  # the whole path may be longer than a socket's name
        assert gather_error_of_files(paths, tokens, codebook, impl=impl)[1].tolist() == [True, *[False] * 3, True]


def test_a_head_that_promises_more_than_the_file_has_is_not_known(impl: str, tmp_path: Path) -> None:
    embedding, tokens, codebook = near(2, (3, 4, 4))
    paths = save(tmp_path, embedding)
    whole = Path(paths[1]).read_bytes()
    for lie in (b"(3, 4, 5), }", b"(3, 4, 99999999), }", b"(3, 4, 10**99), }"):
        head, values = whole[:-192], whole[-192:]
        told = head.replace(b"(3, 4, 4), }" + b" " * (len(lie) - 12), lie)
        assert len(told) == len(head) and told != head
        Path(paths[1]).write_bytes(told + values)
        assert gather_error_of_files(paths, tokens, codebook, impl=impl)[1].tolist() == [True, False]


def test_reading_files_can_be_interrupted(impl: str, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    embedding, tokens, codebook = near(1, (3, 4, 4))
    paths = save(tmp_path, embedding) * 100_000
    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(StoppedError):
            gather_error_of_files(paths, tokens.expand(100_000, 4, 4), codebook, impl=impl)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_lazily_negated_views(impl: str, tmp_path: Path) -> None:
    """The dispatcher does not see the files' operator, and would else write the negation out."""
    embedding, tokens, codebook = near(2, (9, 4, 4))
    lazy = torch._neg_view(-codebook)
    expected = formula(embedding, tokens, codebook)
    found, known = gather_error_of_files(save(tmp_path, embedding), torch._neg_view(-tokens.int()), lazy, impl=impl)
    assert known.all()
    for error in (found, gather_error(torch._neg_view(-embedding), torch._neg_view(-tokens), lazy, impl=impl)):
        np.testing.assert_allclose(error.numpy(), expected, rtol=EPS)


def test_compile() -> None:
    embedding, tokens, codebook = near(2, (3, 4, 4))
    compiled = torch.compile(lambda *tensors: gather_error(*tensors) + 1, fullgraph=True, backend="aot_eager")
    np.testing.assert_allclose(
        compiled(embedding, tokens, codebook).numpy() - 1, formula(embedding, tokens, codebook), atol=1e-6
    )
    with pytest.raises(ValueError, match=r"tokens: expected values in \[0, 19\)"):
        compiled(embedding, tokens + 2**32, codebook)  # in 32 bits they would be in range


@pytest.mark.skipif(os.name == "nt", reason="names of files are Unicode there")
def test_names_of_any_bytes(impl: str, tmp_path: Path) -> None:
    embedding, tokens, codebook = near(2, (3, 4, 4))
    odd = os.fsdecode(os.fsencode(tmp_path) + "/\u00e9 \u6f22".encode() + b"\xff.npy")
    paths = save(tmp_path, embedding)
    Path(paths[1]).rename(odd)
    error, known = gather_error_of_files([paths[0], odd], tokens, codebook, impl=impl)
    assert known.all() and error[1] == gather_error(embedding, tokens, codebook)[1]
    with pytest.raises(ValueError, match="null"):
        gather_error_of_files([paths[0], paths[0] + "\0x"], tokens, codebook, impl=impl)


@needs_native
def test_files_are_read_into_memory_of_their_own(tmp_path: Path) -> None:
    """A short file must not be completed by the one before it."""
    embedding, tokens, codebook = near(2, (9, 4, 8))
    paths = save(tmp_path, embedding)
    Path(paths[1]).write_bytes(Path(paths[1]).read_bytes()[:-4])
    for folder in (paths, paths[::-1]):
        assert gather_error_of_files(folder, tokens, codebook)[1].sum() == 1


def test_bad_arguments_of_files_are_named(tmp_path: Path) -> None:
    embedding, tokens, codebook = near(2, (3, 4, 4))
    paths = save(tmp_path, embedding)
    for wrong in (3, None, paths[0], [3, 4], [None, None], [b"a", b"b"], torch.zeros(2)):
        with pytest.raises(TypeError, match=r"^paths: expected a list of paths, got"):
            gather_error_of_files(wrong, tokens, codebook)
    assert gather_error_of_files(list(map(Path, paths)), tokens, codebook)[1].all()
    with pytest.raises(ValueError, match="paths: expected one for each of the 2 images of tokens, got 1"):
        gather_error_of_files(paths[:1], tokens, codebook)
    with pytest.raises(TypeError, match=r"codebook: expected torch\.float32 on the CPU, got torch\.float64"):
        gather_error_of_files(paths, tokens, codebook.double())
    with pytest.raises(ValueError, match=r"tokens: expected values in \[0, 19\)"):
        gather_error_of_files(paths, tokens + 19, codebook)


@needs_native
@pytest.mark.parametrize("threads", [1, 4])
def test_files_from_several_threads_at_once(threads: int, tmp_path: Path) -> None:
    embedding, tokens, codebook = near(12, (40, 7, 7))
    paths = save(tmp_path, embedding)
    expected = gather_error(embedding, tokens, codebook, impl="native")
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda _: gather_error_of_files(paths, tokens, codebook, impl="native")[0], range(20)))
    assert all(same_bits([one], [expected]) for one in found)
