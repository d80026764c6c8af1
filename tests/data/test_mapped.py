"""Token stores that are mapped into memory: what `load` gives and refuses, without reading the tokens into memory."""

import subprocess
import sys

import pytest
import torch

from cortex_fast.data import ResultFileError, TokenStore
from cortex_fast.data.results import save_result


def store(images: int = 7, codes: int = 50, side: int = 3) -> TokenStore:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, codes, (images, side, side), generator=generator)
    codebook = torch.randn(codes, 4, generator=generator)
    return TokenStore(tokens, torch.arange(images) % 3, codebook, ("a", "b", "c"), {"seed": 3})


@pytest.mark.parametrize("given", [store(), store(images=0), store(codes=70_000), store(images=1, side=1)])
def test_it_is_what_load_reads(tmp_path, given):
    given.save(tmp_path / "store.safetensors")
    opened, loaded = (read(tmp_path / "store.safetensors") for read in (TokenStore.open, TokenStore.load))
    assert opened.tokens.dtype == loaded.tokens.dtype
    for name in ("tokens", "labels", "codebook"):
        assert torch.equal(getattr(opened, name).long(), getattr(loaded, name).long())
    assert (opened.names, opened.fingerprint, opened.grid) == (loaded.names, loaded.fingerprint, loaded.grid)
    assert torch.equal(opened.embedding(slice(0, 2)), given.embedding(slice(0, 2)))


def test_writing_into_the_tokens_leaves_the_file(tmp_path):
    path = tmp_path / "store.safetensors"
    store().save(path)
    before = path.read_bytes()
    TokenStore.open(path).tokens.view(torch.int16).zero_()
    assert path.read_bytes() == before


def test_a_file_that_is_replaced_stays_open(tmp_path):
    path = tmp_path / "store.safetensors"
    store().save(path)
    opened = TokenStore.open(path)
    store(images=2).save(path)
    assert torch.equal(opened.tokens.long(), store().tokens.long())


def test_a_flipped_bit_anywhere_is_reported_by_name(tmp_path):
    path = tmp_path / "store.safetensors"
    store().save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(bytes(damaged))
        with pytest.raises(ResultFileError, match=r"store\.safetensors"):
            TokenStore.open(path)


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_truncated_file_is_reported(tmp_path, cut):
    path = tmp_path / "store.safetensors"
    store().save(path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ResultFileError, match=r"store\.safetensors: a truncated or damaged safetensors file"):
        TokenStore.open(path)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": torch.full((7, 3, 3), 50, dtype=torch.int32).to(torch.uint16)},
        {"tokens": torch.full((7, 3, 3), -1, dtype=torch.int32)},
        {"tokens": torch.zeros(7, 3, 3)},
        {"tokens": torch.zeros(7, 9, dtype=torch.int32)},
        {"labels": torch.zeros(6, dtype=torch.int64)},
        {"labels": torch.full((7,), 3)},
        {"codebook": torch.full((50, 4), torch.nan)},
    ],
)
def test_contents_that_do_not_fit_are_refused(tmp_path, change):
    """With a checksum that is right."""
    tensors = {name: getattr(store(), name) for name in ("tokens", "labels", "codebook")} | change
    header = {"names": ["a", "b", "c"], "fingerprint": {}}
    save_result(tmp_path / "store.safetensors", "TokenStore", tensors, header)
    with pytest.raises(ResultFileError, match=r"store\.safetensors"):
        TokenStore.open(tmp_path / "store.safetensors")


def test_another_kind_and_none_are_refused(tmp_path):
    save_result(tmp_path / "other.safetensors", "Scores", {"tokens": torch.zeros(1)}, {})
    with pytest.raises(ResultFileError, match=r"expected a result of kind 'TokenStore'"):
        TokenStore.open(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError):
        TokenStore.open(tmp_path / "none.safetensors")


def test_memory_does_not_grow_with_the_images(tmp_path):
    """Resident memory of a process that opens 64 MB of tokens and reads a batch of them."""
    TokenStore(
        torch.zeros(125_000, 16, 16, dtype=torch.int32).to(torch.uint16),
        torch.zeros(125_000, dtype=torch.int64),
        torch.zeros(4, 2),
        ("a",),
    ).save(tmp_path / "store.safetensors")
    code = (
        "import resource, sys\n"
        "from cortex_fast.data import TokenStore\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "store = TokenStore.open(sys.argv[1])\n"
        "store.embedding(slice(1000, 1064))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "store.safetensors")]
    grown = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert int(grown) < 24_000  # kB; the labels are 1 MB, a batch's E is small, the tokens 64 MB
