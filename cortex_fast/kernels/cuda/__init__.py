"""CUDA kernels of csrc/cuda: they hand the tensors' addresses and strides to `cortex_fast._native.cuda`.

`NOT_BUILT` is None where the extension has them, else the reason; `unavailable()` also needs a driver and a device.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from cortex_fast.kernels import native

OLDEST = (8, 0)  # compute capability
LIBRARY: Any = None
NOT_BUILT: str | None = native.UNAVAILABLE
if native.UNAVAILABLE is None:
    from cortex_fast import _native

    if (reason := _native.build_info()["why_no_cuda"]) is None:
        LIBRARY = _native.cuda
    else:
        NOT_BUILT = f"the CUDA kernels were not built: {reason}"


@cache
def unavailable() -> str | None:
    """Why no CUDA kernel can run here; None where they were built and the driver offers a device."""
    if NOT_BUILT is not None:
        return NOT_BUILT
    count, why = LIBRARY.devices()
    return None if count else f"CUDA finds no GPU: {why}"


def call(name: str, device_of: Tensor, **arguments: Any) -> None:
    """Call a function of the library on a tensor's device and its current stream.

    Args:
        name: the function's name in `LIBRARY`.
        device_of: a tensor on that device.
        **arguments: the function's, but for the stream.

    Raises:
        RuntimeError: with the kernel's name, if it was not launched.
    """
    stream = torch.cuda.current_stream(device_of.device).cuda_stream if device_of.is_cuda else 0
    with torch.cuda.device_of(device_of):
        getattr(LIBRARY, name)(**arguments, stream=stream)


def scratch(size: int, device_of: Tensor) -> Tensor:
    """Scratch memory of `size` bytes. torch reserves it for its stream, so it may be freed after the launch."""
    return torch.empty(size, dtype=torch.uint8, device=device_of.device)
