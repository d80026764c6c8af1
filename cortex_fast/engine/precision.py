"""float32 without the rounding of convolutions and products to tf32 that torch's flags allow on a GPU."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.backends import cuda, cudnn

_lock = threading.Lock()
_restorers: list[Callable[[], None]] = []  # for each thread inside; the first restores the flags


@contextmanager
def without_tf32(enabled: bool = True) -> Iterator[None]:
    """Switch torch's flags for tf32 off inside the context; they are restored when the last thread leaves it.

    Args:
        enabled: False leaves the flags alone. Default True.
    """
    if not enabled:
        yield
        return
    with _lock:
        _restorers.append((lambda: None) if _restorers else _switch_off())
    try:
        yield
    finally:
        with _lock:
            last = _restorers.pop()
            if not _restorers:
                last()


def _switch_off() -> Callable[[], None]:
    """Switch both flags off, by their old and their new names; returns the function that restores them."""
    new = [(part, part.fp32_precision) for part in _parts()]
    convolutions, products = _read(lambda: cudnn.allow_tf32), _read(torch.get_float32_matmul_precision)

    def restore() -> None:
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
    return restore


def _parts() -> list[Any]:
    """The newer flags, of torch from 2.9 on."""
    parts = (getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None), cuda.matmul)
    return [part for part in parts if hasattr(part, "fp32_precision")]


def _read(flag: Callable[[], Any]) -> Any:
    """A flag of the older names; None where torch refuses to read it, as the newer ones contradict it."""
    with contextlib.suppress(RuntimeError):
        return flag()
    return None
