"""Reading .npy files into a batch: exact files alone, whatever stands under their names, without waiting."""

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from cortex_fast.data.npy_files import header_of, load_floats, read_npy_files

SIZES = [(1, 1, 1), (9, 4, 8), (256, 16, 16)]


def random(images: int, size: tuple[int, ...] = (3, 4, 4)) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((images, *size), np.float32)


def save(folder: Path, values: np.ndarray) -> list[str]:
    paths = [str(folder / f"{image}.npy") for image in range(len(values))]
    for path, image in zip(paths, values, strict=True):
        np.save(path, image)
    return paths


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_is_the_files_numbers(size, tmp_path):
    values = random(5, size)
    values[3, -1, -1, -1] = np.nan
    batch = np.full_like(values, 7)
    paths = save(tmp_path, values)
    assert read_npy_files(paths, batch) == [True] * 5
    assert batch.tobytes() == values.tobytes()
    assert Path(paths[0]).read_bytes() == header_of(size) + values[0].tobytes()
    assert read_npy_files([], batch[:0]) == []


def test_anything_else_is_not_read(tmp_path):
    values = random(9, (9, 4, 8))
    paths = save(tmp_path, values)
    whole = Path(paths[0]).read_bytes()
    Path(paths[1]).write_bytes(whole[:-1])
    Path(paths[2]).write_bytes(whole + b"\0")
    Path(paths[3]).write_bytes(whole.replace(b"<f4", b"<i4"))
    Path(paths[4]).write_bytes(b"")
    Path(paths[5]).unlink()
    Path(paths[6]).unlink()
    Path(paths[6]).mkdir()
    np.save(paths[7], np.asfortranarray(values[7]))
    batch = np.empty_like(values)
    assert read_npy_files(paths, batch) == [True, *[False] * 7, True]
    assert np.array_equal(batch[[0, 8]], values[[0, 8]])


@pytest.mark.skipif(os.name == "nt", reason="POSIX has these")
def test_only_regular_files_are_read_without_waiting_for_others(tmp_path, monkeypatch):
    values = random(5)
    paths = save(tmp_path, values)
    Path(paths[0]).rename(tmp_path / "0")
    Path(paths[0]).symlink_to(tmp_path / "0")  # this is one
    for path in paths[1:4]:
        Path(path).unlink()
    os.mkfifo(paths[1])
    Path(paths[2]).symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("3.npy")  # the whole path may be longer than a socket's name
        assert read_npy_files(paths, np.empty_like(values)) == [True, *[False] * 3, True]


@pytest.mark.skipif(os.name == "nt", reason="POSIX has these")
def test_a_pipe_with_just_the_right_bytes_is_not_read(tmp_path):
    values = random(1)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(tmp_path / "pipe", os.O_WRONLY)
    try:
        os.write(writer, header_of(values.shape[1:]) + values.tobytes())
        assert read_npy_files([tmp_path / "pipe"], np.empty_like(values)) == [False]
    finally:
        os.close(writer)
        os.close(reader)


def test_a_header_that_promises_more_than_the_file_has_is_not_read(tmp_path):
    values = random(2)
    paths = save(tmp_path, values)
    whole = Path(paths[1]).read_bytes()
    for lie in (b"(3, 4, 5), }", b"(3, 4, 99999999), }", b"(3, 4, 10**99), }"):
        header, numbers = whole[:-192], whole[-192:]
        lying = header.replace(b"(3, 4, 4), }" + b" " * (len(lie) - 12), lie)
        assert len(lying) == len(header) and lying != header
        Path(paths[1]).write_bytes(lying + numbers)
        assert read_npy_files(paths, np.empty_like(values)) == [True, False]


def test_reading_can_be_interrupted(tmp_path):
    class StoppedError(Exception):
        pass

    def stop(*_):
        raise StoppedError

    paths = save(tmp_path, random(1)) * 100_000
    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(StoppedError):
            read_npy_files(paths, np.empty((100_000, 3, 4, 4), np.float32))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(os.name == "nt", reason="names of files are Unicode there")
def test_names_of_any_bytes(tmp_path):
    values = random(2)
    paths = save(tmp_path, values)
    odd = os.fsdecode(os.fsencode(tmp_path) + "/\u00e9 \u6f22".encode() + b"\xff.npy")
    Path(paths[1]).rename(odd)
    batch = np.empty_like(values)
    assert read_npy_files([paths[0], odd], batch) == [True, True] and np.array_equal(batch, values)
    with pytest.raises(ValueError, match="null"):
        read_npy_files([paths[0], paths[0] + "\0x"], batch)


def test_a_short_file_is_not_completed_by_what_was_in_memory(tmp_path):
    values = random(2, (9, 4, 8))
    paths = save(tmp_path, values)
    Path(paths[1]).write_bytes(Path(paths[1]).read_bytes()[:-4])
    batch = np.empty_like(values[:1])
    for order in (paths, paths[::-1]):
        assert sum(read_npy_files([path], batch)[0] for path in order) == 1


def test_bad_arguments_are_named(tmp_path):
    values = random(2)
    paths = save(tmp_path, values)
    for wrong in (3, None, paths[0], [3, 4], [None, None], [b"a", b"b"], torch.zeros(2)):
        with pytest.raises(TypeError, match=r"^paths: expected a list of paths, got"):
            read_npy_files(wrong, values)
    assert read_npy_files(list(map(Path, paths)), values) == [True, True]
    with pytest.raises(ValueError, match="paths: expected one for each of the 2 rows of batch, got 1"):
        read_npy_files(paths[:1], values)
    for wrong in (None, values.astype(np.float64), values[:, :, ::2], np.asfortranarray(values), torch.zeros(2)):
        with pytest.raises(TypeError, match=r"^batch: expected a writable C-contiguous float32 array, got"):
            read_npy_files(paths, wrong)


@pytest.mark.parametrize("threads", [1, 4])
def test_several_threads_at_once(threads, tmp_path):
    values = random(12, (40, 7, 7))
    paths = save(tmp_path, values)

    def read(_):
        batch = np.empty_like(values)
        return read_npy_files(paths, batch) == [True] * 12 and np.array_equal(batch, values)

    with ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(read, range(20)))


def test_nothing_stays_open(tmp_path):
    values = random(2)
    paths = [*save(tmp_path, values), str(tmp_path)]
    lowest = os.dup(0)
    os.close(lowest)
    read_npy_files(paths, np.empty((3, 3, 4, 4), np.float32))
    again = os.dup(0)
    os.close(again)
    assert again == lowest


def test_any_floats_can_be_loaded(tmp_path):
    values = random(1)[0]
    np.save(tmp_path / "x.npy", np.asfortranarray(values.astype(">f8")))
    loaded = load_floats(tmp_path / "x.npy", values.shape)
    assert loaded.dtype == np.float32 and loaded.flags.c_contiguous and np.array_equal(loaded, values)
    with pytest.raises(ValueError, match=r"expected shape \[3, 4\], got \[3, 4, 4\]"):
        load_floats(tmp_path / "x.npy", (3, 4))
    np.save(tmp_path / "x.npy", values.astype(np.float16))
    with pytest.raises(ValueError, match="expected float32 or float64, got float16"):
        load_floats(tmp_path / "x.npy", values.shape)
    with pytest.raises(FileNotFoundError):
        load_floats(tmp_path / "nowhere.npy", values.shape)
