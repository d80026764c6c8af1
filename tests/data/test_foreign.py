"""Git LFS pointers and web pages, under any name that a loader reads, are said to be such."""

import os

import numpy as np
import pytest
import torch

from cortex_fast import ConceptExplanations, TokenSelection, TokenStore
from cortex_fast.compat.published_data import (
    PublishedDataError,
    Scores,
    import_checkpoint,
    import_embeddings,
    read_codebook,
)
from cortex_fast.data.foreign import refuse_foreign
from cortex_fast.extractors import load_extractor
from cortex_fast.vqgm import load
from tests.compat.published_files import codebook, write_data

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGES = (
    b"<!DOCTYPE html><html><head><title>404</title>",
    b"\n\n  <html lang='en'>",
    b"\xef\xbb\xbf<!doctype HTML>",
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code></Error>',
)


def taming_checkpoint(path):
    folder = path.parent.parent
    (folder / "configs").mkdir()
    (folder / "configs" / "model.yaml").write_bytes(b"model: {target: taming.VQModel}")
    load("taming", folder)


LOADERS = {
    "store.safetensors": TokenStore.load,
    "concepts.safetensors": ConceptExplanations.load,
    "selection.safetensors": TokenSelection.load,
    "extractor.safetensors": load_extractor,
    "codebook.safetensors": read_codebook,
    "codebook.npy": read_codebook,
    "codebook.ckpt": read_codebook,
    "extractor.pth": lambda path: import_checkpoint(path, path.with_name("out")),
    "llamagen.pt": lambda path: load("llamagen", path),
    "ibq.ckpt": lambda path: load("ibq", path, tensors_only=True),
    "checkpoints/last.ckpt": taming_checkpoint,
    "configs/model.yaml": lambda path: load("taming", path.parent.parent),
    "scores/label_0.csv": lambda path: Scores.read(path.parent),
}


@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_refuses_pointers_and_pages(tmp_path, name):
    for number, (content, kind) in enumerate(((POINTER, "a Git LFS pointer"), (PAGES[0], "a web page"))):
        path = tmp_path / str(number) / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path.name}: {kind}") as caught:
            LOADERS[name](path)
        assert "weights_only" not in str(caught.value)


def test_an_embedding_that_is_a_pointer_is_a_bad_row(tmp_path):
    write_data(tmp_path)
    (tmp_path / "train" / "1_1.npy").write_bytes(POINTER)
    with pytest.raises(PublishedDataError, match=r"train_embeddings\.csv:3: .*a Git LFS pointer"):
        import_embeddings(tmp_path, tmp_path / "s", codebook=torch.from_numpy(codebook()))


def test_pages_of_every_kind_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    for page in PAGES:
        path.write_bytes(page)
        with pytest.raises(ValueError, match="a web page"):
            refuse_foreign(path, ValueError)
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", tmp_path, tmp_path / "nowhere"):  # each reader says itself what these are
        refuse_foreign(other, ValueError)
    np.save(tmp_path / "n.npy", np.zeros(3))
    whole = (tmp_path / "n.npy").read_bytes()
    for content in (whole, b"", b"PK\x03\x04", b"version: 1\nmodel: {}\n", b"# <html>\nmodel: {}", b"< 3"):
        path.write_bytes(content)
        refuse_foreign(path, ValueError)
