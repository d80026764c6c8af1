"""float32 as it is: without the rounding of convolutions and products to tf32 that torch allows itself on a GPU."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.backends import cuda, cudnn

_lock = threading.Lock()
_within: list[Callable[[], None]] = []  # one for each thread that is within: the first puts the flags back


@contextmanager
def without_tf32(wanted: bool = True) -> Iterator[None]:
    """torch's flags for tf32 are off within, and as they were after the last thread has left."""
    if not wanted:
        yield
        return
    with _lock:
        _within.append((lambda: None) if _within else _switch_off())
    try:
        yield
    finally:
        with _lock:
            last = _within.pop()
            if not _within:
                last()


def _switch_off() -> Callable[[], None]:
    """Switch both flags off, by their old names and their new ones; returns what puts them back."""
    new = [(part, part.fp32_precision) for part in _parts()]
    convolutions, products = _read(lambda: cudnn.allow_tf32), _read(torch.get_float32_matmul_precision)

    def put_back() -> None:
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        if products is not None:
            torch.set_float32_matmul_precision(products)
        for part, precision in new:
            part.fp32_precision = precision

    cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    for part in _parts():
        part.fp32_precision = "ieee"
    return put_back


def _parts() -> list[Any]:
    """The newer flags, of torch from 2.9 on."""
    parts = (getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None), cuda.matmul)
    return [part for part in parts if hasattr(part, "fp32_precision")]


def _read(flag: Callable[[], Any]) -> Any:
    """A flag of the older names; None where torch refuses to tell, as the newer ones contradict it."""
    with contextlib.suppress(RuntimeError):
        return flag()
    return None
