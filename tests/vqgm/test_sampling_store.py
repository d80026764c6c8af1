"""Sampling into a token store: the model's samples, whole or absent, and the same after an interruption."""

import dataclasses
import errno
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from cortex_fast import TokenStore
from cortex_fast.vqgm import GPT, UnsupportedError, VQModel, sample_store, taming_model
from tests.killing import hidden
from tests.vqgm.test_autoencoder import SMALL

NAMES = ("a", "b", "c")
LABELS = torch.arange(11) % 3


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    prior = GPT(vocab_size=20, block_size=64, n_layer=1, n_head=2, n_embd=8)
    return taming_model(VQModel(**SMALL), prior, grid=8, fingerprint="test", num_classes=3)


class Stopping:
    """The model, interrupted in batch number `calls`."""

    def __init__(self, model, calls):
        self.model, self.calls = model, calls
        self.asked = []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def sample(self, labels, *, seed, item_ids):
        self.asked += item_ids.tolist()
        self.calls -= 1
        if self.calls == 0:
            raise KeyboardInterrupt
        return self.model.sample(labels, seed=seed, item_ids=item_ids)


def test_the_store_holds_the_models_samples(tmp_path, model):
    path = tmp_path / "deep" / "tokens.safetensors"
    store = sample_store(model, LABELS, path, names=NAMES, seed=3, batch_size=4)
    assert torch.equal(store.tokens.long(), model.sample(LABELS, seed=3))
    assert torch.equal(store.labels, LABELS) and store.names == NAMES and torch.equal(store.codebook, model.codebook)
    assert store.tokens.dtype == torch.uint16 and store.fingerprint["model"] == "test"
    assert [file.name for file in path.parent.iterdir()] == ["tokens.safetensors"]
    assert torch.equal(TokenStore.load(path).tokens.long(), store.tokens.long())
    again = Stopping(model, 1)
    assert len(sample_store(again, LABELS, path, names=NAMES, seed=3)) == 11 and again.asked == []


def test_a_resumed_run_gives_the_same_bytes(tmp_path, model):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    sample_store(model, LABELS, whole, names=NAMES, batch_size=11)
    working = stopped.with_name("stopped.tokens")
    with pytest.raises(KeyboardInterrupt):
        sample_store(Stopping(model, 3), LABELS, stopped, names=NAMES, batch_size=2)
    assert not stopped.exists() and working.stat().st_size == 11 * 64 * 2
    with working.open("r+b") as file:  # as after a kill during the write of the third batch
        file.seek(4 * 128)
        file.write(b"\xff" * 100)
    resumed = Stopping(model, 100)
    sample_store(resumed, LABELS, stopped, names=NAMES, batch_size=3)
    assert resumed.asked == list(range(4, 11))
    body = 11 * 64 * 2 + 11 * 8 + 20 * 6 * 4  # after the header, whose entries safetensors writes in any order
    assert stopped.read_bytes()[-body:] == whole.read_bytes()[-body:]
    assert TokenStore.load(stopped).fingerprint == TokenStore.load(whole).fingerprint
    assert sorted(file.name for file in tmp_path.iterdir()) == ["stopped", "whole"]


def test_grids_of_as_many_tokens_are_distinguished(tmp_path, model):
    """The file of a square grid does not name it, as in earlier versions."""
    wide = dataclasses.replace(model, grid=(4, 16))
    for first, second in ((model, wide), (wide, model), (wide, dataclasses.replace(model, grid=(16, 4)))):
        path = tmp_path / f"{first.grid}{second.grid}"
        with pytest.raises(KeyboardInterrupt):
            sample_store(Stopping(first, 2), LABELS, path, names=NAMES, batch_size=4)
        with pytest.raises(ValueError, match=r"\.done: written with other settings \(grid: expected .*, got "):
            sample_store(second, LABELS, path, names=NAMES)
        store = sample_store(first, LABELS, path, names=NAMES)
        assert store.grid == first.grid and ("grid" in store.fingerprint) == (first is wide)
        with pytest.raises(ValueError, match=r"written with other settings \(grid: expected .*, got "):
            sample_store(second, LABELS, path, names=NAMES)


def test_files_of_other_settings_are_refused(tmp_path, model):
    path = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        sample_store(Stopping(model, 2), LABELS, path, names=NAMES, seed=1, batch_size=4)
    tokens = path.with_name("store.tokens").read_bytes()
    with pytest.raises(ValueError, match=r"store\.done: .*seed: expected 2, got 1"):
        sample_store(model, LABELS, path, names=NAMES, seed=2)
    with pytest.raises(ValueError, match=r"store\.done: .*labels: "):
        sample_store(model, LABELS[:5], path, names=NAMES, seed=1)
    assert path.with_name("store.tokens").read_bytes() == tokens
    assert json.loads(path.with_name("store.done").read_text())["done"] == 4
    sample_store(model, LABELS, path, names=NAMES, seed=1)
    with pytest.raises(ValueError, match=r"store: .*seed: expected 2, got 1"):
        sample_store(model, LABELS, path, names=NAMES, seed=2)


def test_no_images_and_bad_arguments(tmp_path, model):
    assert len(sample_store(model, LABELS[:0], tmp_path / "none", names=NAMES)) == 0
    for labels, options, argument in (
        (LABELS + 1, {}, "labels"),
        (LABELS.float(), {}, "labels"),
        (LABELS, {"batch_size": 0}, "batch_size"),
        (LABELS, {"seed": -1}, "seed"),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"^{argument}:"):
            sample_store(model, labels, tmp_path / "bad", names=NAMES, **options)
    with pytest.raises(IsADirectoryError, match=r"^path: expected a file"):
        sample_store(model, LABELS, tmp_path, names=NAMES)
    assert [file.name for file in tmp_path.iterdir()] == ["none"]


def test_a_model_that_cannot_sample_is_refused_before_a_file_is_written(tmp_path, model):
    without = taming_model(VQModel(**SMALL), None, grid=8, fingerprint="test")
    with pytest.raises(UnsupportedError, match="no prior"):
        sample_store(without, LABELS, tmp_path / "store", names=NAMES)
    with pytest.raises(ValueError, match=r"^labels: expected values in \[0, 3\), got 0 to 3"):
        sample_store(model, torch.tensor([0, 3]), tmp_path / "store", names=(*NAMES, "d"))
    assert not list(tmp_path.iterdir())


def test_item_ids_beyond_32_bits_are_refused(model):
    for item in (-1, 2**32):
        with pytest.raises(ValueError, match=r"^item_ids: expected values in \[0, 4294967296\)"):
            model.sample(LABELS[:1], item_ids=torch.tensor([item]))


def test_foreign_files_stay_unchanged(tmp_path, model):
    path, working, counter = (tmp_path / name for name in ("store", "store.tokens", "store.done"))
    working.write_text("a user's own")
    with pytest.raises(FileExistsError, match=r"store\.tokens: already exists, without store\.done"):
        sample_store(model, LABELS, path, names=NAMES)
    counter.write_text('{"fing')
    with pytest.raises(ValueError, match=r"store\.done: not the state of a sampling run"):
        sample_store(model, LABELS, path, names=NAMES)
    assert working.read_text() == "a user's own" and counter.read_text() == '{"fing'


def test_a_run_stopped_while_it_created_its_files_resumes(tmp_path, model):
    path, working = tmp_path / "store", tmp_path / "store.tokens"
    with pytest.raises(KeyboardInterrupt):
        sample_store(Stopping(model, 1), LABELS, path, names=NAMES)
    for left in (b"", b"not yet its whole size"):
        working.write_bytes(left)
        with pytest.raises(KeyboardInterrupt):
            sample_store(Stopping(model, 1), LABELS, path, names=NAMES)
        assert working.stat().st_size == 11 * 64 * 2
    working.unlink()
    assert torch.equal(sample_store(model, LABELS, path, names=NAMES).tokens.long(), model.sample(LABELS))


def test_the_next_run_removes_the_files_of_one_stopped_at_its_end(tmp_path, model, monkeypatch):
    path, unlink = tmp_path / "store", Path.unlink

    def killed(file, missing_ok=False):
        if file.name == "store.tokens":
            raise KeyboardInterrupt
        unlink(file, missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        sample_store(model, LABELS, path, names=NAMES)
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 3
    assert len(sample_store(model, LABELS, path, names=NAMES)) == 11
    assert [file.name for file in tmp_path.iterdir()] == ["store"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space is reserved where the system can")
def test_a_full_disk_is_an_error_before_anything_is_sampled(tmp_path, model, monkeypatch):
    def full(descriptor, offset, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    asked = Stopping(model, 1)
    with pytest.raises(OSError, match=r"No space left on device \(1408 bytes for the tokens\): .*store\.tokens"):
        sample_store(asked, LABELS, tmp_path / "store", names=NAMES)
    assert asked.asked == [] and not list(tmp_path.iterdir())


def test_tokens_changed_while_the_run_was_stopped_are_refused(tmp_path, model):
    path, working, counter = (tmp_path / name for name in ("store", "store.tokens", "store.done"))
    with pytest.raises(KeyboardInterrupt):
        sample_store(Stopping(model, 3), LABELS, path, names=NAMES, batch_size=3)
    good, state = working.read_bytes(), json.loads(counter.read_text())
    assert state["done"] == 6
    for at in (0, 6 * 128 - 2):  # still tokens of the 20 codes
        working.write_bytes(good[:at] + bytes([(good[at] + 1) % 20]) + good[at + 1 :])
        with pytest.raises(ValueError, match=r"store\.tokens: its tokens were changed"):
            sample_store(model, LABELS, path, names=NAMES)
    working.write_bytes(good[: 6 * 128] + bytes([19]) * (5 * 128))  # tokens that are not counted yet may be anything
    assert torch.equal(sample_store(model, LABELS, path, names=NAMES).tokens.long(), model.sample(LABELS))


def test_a_damaged_counter_is_refused(tmp_path, model):
    path, counter = tmp_path / "store", tmp_path / "store.done"
    with pytest.raises(KeyboardInterrupt):
        sample_store(Stopping(model, 2), LABELS, path, names=NAMES, batch_size=3)
    good = json.loads(counter.read_text())
    for bad, message in (
        ([1], "not the state"),
        (5, "not the state"),
        (None, "not the state"),
        ({}, "not the state"),
        (good | {"done": "3"}, "not the state"),
        (good | {"done": 3.5}, "not the state"),
        (good | {"done": -3}, "not the state"),
        (good | {"fingerprint": [1]}, "not the state"),
        (good | {"fingerprint": None}, "not the state"),
        (good | {"tokens": None}, "not the state"),
        (good | {"done": 12}, "expected at most 11 images, got 12"),
        (good | {"done": 10**30}, "expected at most 11 images"),
        (good | {"fingerprint": good["fingerprint"] | {"seed": [0]}}, "seed: expected 0"),
    ):
        counter.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=rf"store\.done: .*{message}"):
            sample_store(model, LABELS, path, names=NAMES)
    for text in (b"[" * 100_000, b"\xff\xfe", b"", b"{"):
        counter.write_bytes(text)
        with pytest.raises(ValueError, match=r"store\.done: not the state"):
            sample_store(model, LABELS, path, names=NAMES)
    counter.write_text(json.dumps(good | {"done": 4}))  # a number whose tokens have another digest
    with pytest.raises(ValueError, match=r"store\.tokens: its tokens were changed"):
        sample_store(model, LABELS, path, names=NAMES)


def test_a_second_run_to_the_same_store_is_refused(tmp_path, model):
    path, messages = tmp_path / "store", []

    class Twice(Stopping):
        def sample(self, labels, **settings):
            def second():
                try:
                    sample_store(model, LABELS, path, names=NAMES)
                except BlockingIOError as error:
                    messages.append(str(error))

            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
            return super().sample(labels, **settings)

    store = sample_store(Twice(model, 9), LABELS, path, names=NAMES, batch_size=6)
    assert len(messages) == 2 and all(text.startswith(f"{path}: another run is writing it") for text in messages)
    assert torch.equal(store.tokens.long(), model.sample(LABELS))
    assert [file.name for file in tmp_path.iterdir()] == ["store"]


def test_tokens_are_on_the_disk_before_they_are_counted(tmp_path, model, monkeypatch):
    """Otherwise a power failure leaves a counter of tokens that do not exist."""
    order, sync, replace = [], os.fsync, Path.replace

    def syncing(descriptor):
        sync(descriptor)
        assert os.path.samestat(os.fstat(descriptor), (tmp_path / "store.tokens").stat())
        order.append("store.tokens")

    def counting(file, target):
        order.append(Path(target).name)
        return replace(file, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "replace", counting)
    sample_store(model, LABELS, tmp_path / "store", names=NAMES, batch_size=4)
    assert order == ["store.done", *["store.tokens", "store.done"] * 3, "store"]


class Counting:
    """A model whose tokens are the items' numbers. It computes nothing in threads, so that it may be forked."""

    codebook, grid, fingerprint = torch.zeros(1024, 2), 4, "counting"

    def sample(self, labels, *, seed, item_ids):
        return item_ids[:, None, None].expand(-1, 4, 4)


def test_a_run_killed_at_any_moment_resumes_to_the_same_tokens(tmp_path):
    """At random moments; tests/test_kills.py has more of them, and other runs."""
    path, labels, moments = tmp_path / "store", torch.arange(1000) % 3, random.Random(0)

    def run():
        sample_store(Counting(), labels, path, names=NAMES, batch_size=10)

    for _ in range(4):
        child = os.fork()
        if child == 0:
            run()
            os._exit(0)
        time.sleep(moments.uniform(0.005, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert len(hidden(tmp_path)) <= 2  # one temporary, one lock
    run()
    assert torch.equal(TokenStore.load(path).tokens[:, 0, 0].long(), torch.arange(1000))
    assert [file.name for file in tmp_path.iterdir()] == ["store"]
