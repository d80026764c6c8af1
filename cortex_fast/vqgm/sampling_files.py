"""The files of an unfinished sampling run: the tokens so far, and a counter that says how many of them count."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cortex_fast.data import digests
from cortex_fast.data.results import parse_json, replace_whole


@dataclass(frozen=True)
class Unfinished:
    """The files beside the store that they become.

    fingerprint: the settings, with which the counter must agree. image_count: images of the whole store. image_bytes:
    the size of one image's tokens.
    """

    store: Path
    fingerprint: dict[str, Any]
    image_count: int
    image_bytes: int

    @property
    def tokens(self) -> Path:
        """The file of the whole store's size in which the tokens are collected."""
        return self.store.with_name(self.store.name + ".tokens")

    @property
    def counter(self) -> Path:
        """The file that says how many images are done."""
        return self.store.with_name(self.store.name + ".done")

    @property
    def size(self) -> int:
        """Bytes of the whole store's tokens."""
        return self.image_count * self.image_bytes


def open_unfinished(files: Unfinished) -> tuple[int, digests.Running]:
    """How many images are done, and the digest of their tokens. Creates the files if there are none.

    Raises ValueError for files that are damaged or of other settings, FileExistsError for a tokens file without a
    counter, OSError for a full disk.
    """
    if files.counter.exists():
        done, digest = _check_tokens(files)
        if digest is not None:
            return done, digest
    elif files.tokens.exists():
        raise FileExistsError(f"{files.tokens}: already exists, without {files.counter.name}; it is not overwritten")
    digest = digests.begun()
    files.tokens.parent.mkdir(parents=True, exist_ok=True)
    write_counter(files, 0, digest.hexdigest())  # first, so that an interrupted run leaves no tokens without a counter
    _reserve(files)
    return 0, digest


def _check_tokens(files: Unfinished) -> tuple[int, digests.Running | None]:
    """How many images are done, and the digest of their tokens, or None if the tokens file is not complete yet."""
    done, expected = read_counter(files)
    if done > files.image_count:
        raise ValueError(f"{files.counter}: expected at most {files.image_count} images, got {done}")
    size = files.tokens.stat().st_size if files.tokens.exists() else 0
    if size == files.size:
        digest = digests.begun(files.tokens, done * files.image_bytes)
        if digest.hexdigest() != expected:
            raise ValueError(
                f"{files.tokens}: its tokens were changed since they were sampled; remove it and {files.counter}"
            )
        return done, digest
    if done:
        raise ValueError(f"{files.tokens}: expected {files.size} bytes, got {size}")
    return 0, None


def _reserve(files: Unfinished) -> None:
    """Create the tokens file with its whole space on the disk, or remove both files if the disk is full."""
    with files.tokens.open("wb") as file:
        try:
            if files.size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, files.size)
            file.truncate(files.size)
        except OSError as error:
            remove(files)
            text = f"{error.strerror} ({files.size} bytes for the tokens)"
            raise OSError(error.errno, text, str(files.tokens)) from error


def read_counter(files: Unfinished) -> tuple[int, str]:
    """How many images are done, and their tokens' digest. Raises ValueError for a damaged counter or another run's."""
    try:
        state = parse_json(files.counter.read_bytes())
        fingerprint, done, digest = state["fingerprint"], state["done"], state["tokens"]
        if not isinstance(fingerprint, dict) or type(done) is not int or done < 0 or not isinstance(digest, str):
            raise ValueError("expected the number of images done, the digest of their tokens and the settings")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{files.counter}: not the state of a sampling run ({error})") from error
    require_same(files.counter, fingerprint, files.fingerprint)
    return done, digest


def write_counter(files: Unfinished, done: int, digest: str) -> None:
    """Record that the first `done` images are on the disk."""
    text = json.dumps({"fingerprint": files.fingerprint, "done": done, "tokens": digest})
    replace_whole(files.counter, lambda file: file.write_text(text, "utf-8"))


def remove(files: Unfinished) -> None:
    """Remove both files, the counter last."""
    files.tokens.unlink(missing_ok=True)
    files.counter.unlink()


def require_same(path: Path, got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise ValueError, naming the settings that differ, if a file has another fingerprint than the expected one."""
    different = [
        f"{name}: expected {expected.get(name)}, got {got.get(name)}"
        for name in dict.fromkeys((*expected, "grid"))  # None for a square grid, as in files of earlier versions
        if got.get(name) != expected.get(name)
    ]
    if different:
        raise ValueError(f"{path}: written with other settings ({'; '.join(different)})")
