"""The token store and result files: what is written is read, and nothing else is."""

import os
import zlib
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cortex_fast import (
    ResultFileError,
    TokenStore,
    embed,
    explain_concepts,
    score_tokens,
    select_tokens,
    top_tokens,
)
from cortex_fast.data.results import load_result, replace_whole, save_result
from cortex_fast.extractors import TrainingRecipe, accuracy, build, train_extractor


def store(count: int = 5, codes: int = 30) -> TokenStore:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(codes, (count, 4, 4), generator=generator)
    return TokenStore(
        tokens, torch.arange(count) % 3, torch.randn(codes, 6, generator=generator), ("a", "b", "ü"), {"s": 1}
    )


def test_embed_is_the_codebook_at_the_tokens():
    codebook, tokens = torch.randn(9, 5), torch.randint(9, (2, 3, 4))
    embedding = embed(tokens, codebook)
    for image in range(2):
        for y in range(3):
            for x in range(4):
                assert torch.equal(embedding[image, :, y, x], codebook[tokens[image, y, x]])


def test_tokens_take_two_bytes_where_these_suffice():
    assert store().tokens.dtype == torch.uint16
    wide = TokenStore(torch.full((1, 2, 2), 70_000), torch.zeros(1, dtype=torch.int64), torch.zeros(70_001, 1), ("a",))
    assert wide.tokens.dtype == torch.int32 and int(wide.tokens.max()) == 70_000


def test_grids_of_rows_and_columns(tmp_path):
    tokens = torch.arange(30).view(1, 3, 10).repeat(4, 1, 1)
    images = TokenStore(tokens, torch.zeros(4).long(), torch.randn(30, 6), ("a",))
    images.save(tmp_path / "s")
    again = TokenStore.load(tmp_path / "s")
    assert images.grid == again.grid == (3, 10) and store().grid == 4
    assert torch.equal(again.tokens.long(), tokens)
    assert torch.equal(again.embedding(slice(0, 1))[0, :, 1, 4], images.codebook[14])


class Unindexed(TorchDispatchMode):
    """Lets through what torch 2.6 does with uint16: copies, conversions and views."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.dtype == torch.uint16 for tensor in tensors):
            name = func.overloadpacket.__name__
            assert name in ("view", "_unsafe_view", "detach", "_to_copy", "copy_", "clone", "slice", "split"), name
        return func(*args, **(kwargs or {}))


def test_no_operator_of_uint16_that_older_torch_lacks(tmp_path):
    """Indexing came with torch 2.10; a minimum, comparisons and where are not there for all devices yet."""
    tokens = torch.randint(2**16 - 300, 2**16, (6, 3, 5), generator=torch.Generator().manual_seed(0))
    codebook, mask = torch.randn(2**16, 8), torch.tensor([True, False, True, True, False, True])
    with Unindexed():
        images = TokenStore(tokens, torch.arange(6) % 2, codebook, ("a", "b"))
        for rows in (torch.tensor([5, 0, 5]), mask, slice(1, 4), slice(None, None, 2)):
            some, part = images.select(rows), images.embedding(rows)
            assert some.tokens.dtype == torch.uint16 and torch.equal(some.tokens.long(), tokens[rows])
            assert torch.equal(part, codebook[tokens[rows]].permute(0, 3, 1, 2))
        images.save(tmp_path / "s")
        images = TokenStore.load(tmp_path / "s")
        extractor = build("re", num_classes=2, in_channels=8, width=16).eval()
        tsv = score_tokens(extractor, images, num_samples=1, progress=False)
        explain_concepts(extractor, images, tsv=tsv, top_n=2)
        top_tokens(tsv, images.tokens, 3)
        accuracy(extractor, images.codebook, images.tokens, images.labels)
        train_extractor(
            extractor, images.codebook, images.tokens, images.labels, TrainingRecipe(epochs=1, batch_size=3)
        )
        embed(images.tokens, images.codebook)
        select_tokens(extractor, images.codebook, 1, tokens=images.tokens[:1], region=(0, 0, 1, 1), steps=1)


def test_save_and_load(tmp_path):
    images = store()
    images.save(tmp_path / "deep" / "tokens.safetensors")
    again = TokenStore.load(tmp_path / "deep" / "tokens.safetensors")
    assert again.names == ("a", "b", "ü") and again.fingerprint == {"s": 1}
    for name in ("tokens", "labels", "codebook"):
        assert torch.equal(getattr(again, name).int(), getattr(images, name).int())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["tokens.safetensors"]


def test_empty_store_and_batches(tmp_path):
    empty = store(0)
    empty.save(tmp_path / "e")
    assert len(TokenStore.load(tmp_path / "e")) == 0 and list(empty.batches(4)) == []
    assert list(store(5).batches(2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert store(5).embedding(slice(1, 3)).shape == (2, 6, 4, 4)
    assert torch.equal(store(5).select(torch.tensor([4, 0])).labels, torch.tensor([1, 0]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokens": torch.zeros(5, 16, dtype=torch.int64)}, "tokens"),
        ({"tokens": torch.zeros(5, 4, 4)}, "tokens"),
        ({"tokens": torch.zeros(5, 4, 4, 1, dtype=torch.int64)}, "tokens"),
        ({"tokens": [[[0]]]}, "tokens"),
        ({"labels": [0, 1]}, "labels"),
        ({"tokens": torch.full((5, 4, 4), 30)}, "tokens"),
        ({"tokens": torch.full((5, 4, 4), 2**32 + 5)}, "tokens"),
        ({"tokens": torch.full((5, 4, 4), -1)}, "tokens"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, "labels"),
        ({"labels": torch.full((5,), 3)}, "labels"),
        ({"codebook": torch.zeros(30)}, "codebook"),
        ({"codebook": torch.full((30, 6), torch.nan)}, "codebook"),
    ],
)
def test_bad_parts_are_named(change, named):
    whole = {name: getattr(store(), name) for name in ("tokens", "labels", "codebook", "names")} | change
    with pytest.raises((ValueError, TypeError), match=rf"^{named}:"):
        TokenStore(**whole)


def test_truncated_foreign_and_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "tokens.safetensors"
    store().save(path)
    whole = path.read_bytes()
    for damaged in (whole[:-10], whole[:4], b"", b"PK\x03\x04 something else entirely"):
        path.write_bytes(damaged)
        with pytest.raises(ResultFileError, match=r"tokens\.safetensors"):
            TokenStore.load(path)
    save_result(path, "Saliency", {"tsv": torch.zeros(1)}, {})
    with pytest.raises(ResultFileError, match="expected a result of kind 'TokenStore', got 'Saliency'"):
        TokenStore.load(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ResultFileError, match="not a result of cortex-fast"):
        load_result(path, "TokenStore")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TokenStore.load(tmp_path / "nowhere")


def test_a_file_of_another_version_is_refused_by_name(tmp_path):
    path = tmp_path / "next"
    header = {"names": ["a"], "fingerprint": {}}
    tensors = {"tokens": torch.zeros(1, 2, 2).int(), "labels": torch.zeros(1).long(), "codebook": torch.zeros(3, 2)}
    save_result(path, "TokenStore", tensors, header)
    assert len(TokenStore.load(path)) == 1
    for changed, entries in (
        (tensors | {"more": torch.zeros(1)}, header),
        (tensors, {"names": ["a"], "fingerprnt": {}}),
    ):
        save_result(path, "TokenStore", changed, entries)
        with pytest.raises(ResultFileError, match="next"):
            TokenStore.load(path)
    from safetensors.torch import save_file

    for text in ({}, {"header": "[1"}):
        save_file(tensors, path, {"format": "cortex_fast", "kind": "TokenStore", **text})
        with pytest.raises(ResultFileError, match="next"):
            TokenStore.load(path)


@pytest.mark.parametrize(
    ("tokens", "named"),
    [(torch.rand(1, 4, 4), "tokens"), (torch.zeros(4, 4).long(), "tokens"), (torch.full((1, 2, 2), 9), "tokens")],
)
def test_embed_names_bad_tokens(tokens, named):
    with pytest.raises((TypeError, ValueError), match=rf"^{named}:"):
        embed(tokens, torch.randn(9, 5))


def test_files_have_the_users_own_mode(tmp_path):
    (tmp_path / "plain").touch()
    store().save(tmp_path / "result")
    assert (tmp_path / "result").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "result"
    path.write_text("old")

    def break_off(file):
        file.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_whole(path, break_off)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["result"]  # noqa: PTH208 (names are enough)


def test_equal_results_are_equal_bytes(tmp_path):
    for name in ("one", "other", "third"):
        store().save(tmp_path / name)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_flipped_bit_anywhere_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "tokens.safetensors"
    store(2, 5).save(path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 2):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        if chr(whole[at]) == " " and at < int.from_bytes(whole[:8], "little") + 8:
            continue  # safetensors fills up its header
        with pytest.raises(ResultFileError, match=r"tokens\.safetensors: "):
            TokenStore.load(path)


def test_headers_of_other_forms_are_refused_by_name(tmp_path):
    path = tmp_path / "s.safetensors"
    tensors = {"tokens": torch.zeros(1, 2, 2).int(), "labels": torch.zeros(1).long(), "codebook": torch.zeros(3, 2)}
    for header in (
        {"names": [None], "fingerprint": {}},
        {"names": [1], "fingerprint": {}},
        {"names": 5, "fingerprint": {}},
        {"names": None, "fingerprint": {}},
        {"names": ["a"], "fingerprint": [1]},
        {"names": ["a"], "fingerprint": None},
        ["names"],
        None,
        5,
    ):
        save_result(path, "TokenStore", tensors, header)
        with pytest.raises(ResultFileError, match=r"s\.safetensors: "):
            TokenStore.load(path)
    from safetensors.torch import save_file

    deep = "[" * 100_000
    for metadata in ({"cortex_fast": f"{zlib.crc32(deep.encode()):08x} {deep}"}, {"cortex_fast": "00000000 {}"}):
        save_file(tensors, path, metadata)
        with pytest.raises(ResultFileError, match=r"s\.safetensors: .*damaged"):
            TokenStore.load(path)
    save_file(tensors, path, {"format": "cortex_fast", "kind": "TokenStore", "header": deep})  # as before sums
    with pytest.raises(ResultFileError, match=r"s\.safetensors: .*damaged .*nested too deeply"):
        TokenStore.load(path)
    old = {"format": "cortex_fast", "kind": "TokenStore", "header": '{"names": ["a"], "fingerprint": {"s": 1}}'}
    save_file(tensors, path, old)
    assert TokenStore.load(path).fingerprint == {"s": 1}


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_codebook_of_8_bits_is_refused_by_name(kind, tmp_path):
    tokens, labels, codebook = torch.zeros(1, 2, 2).int(), torch.zeros(1).long(), torch.zeros(3, 2).to(kind)
    with pytest.raises(TypeError, match=r"^codebook: expected a floating-point tensor of at least 16 bits, got"):
        TokenStore(tokens, labels, codebook, ("a",))
    header = {"names": ["a"], "fingerprint": {}}
    save_result(tmp_path / "s", "TokenStore", {"tokens": tokens, "labels": labels, "codebook": codebook}, header)
    with pytest.raises(ResultFileError, match=r"/s: .*codebook"):
        TokenStore.load(tmp_path / "s")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system tells no peak")
def test_the_peak_of_memory_is_little_beyond_the_tokens(tmp_path):
    tokens = torch.zeros(200_000, 16, 16, dtype=torch.int16).fill_(3).view(torch.uint16)  # 100 MB
    parts = torch.zeros(len(tokens), dtype=torch.int64), torch.zeros(16, 8), ("a",)

    def peak() -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024

    def grown(act) -> float:
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        act()
        return (peak() - before) / tokens.nbytes

    assert grown(lambda: TokenStore(tokens, *parts)) < 1
    TokenStore(tokens, *parts).save(tmp_path / "s")
    assert grown(lambda: TokenStore.load(tmp_path / "s")) < 2.5  # the file's pages, and the tensors
