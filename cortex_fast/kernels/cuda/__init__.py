"""CUDA kernels of csrc/cuda: tensors in, pointers and strides on to `cortex_fast._native.cuda`.

`NOT_BUILT` is None where the extension has them, else the reason; `unavailable()` also asks for a driver and a device.
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
    """Why no CUDA kernel can be used here; None where they were built, and the driver has a device for them."""
    if NOT_BUILT is not None:
        return NOT_BUILT
    count, why = LIBRARY.devices()
    return None if count else f"CUDA finds no GPU: {why}"


def call(name: str, device_of: Tensor, **arguments: Any) -> None:
    """A function of the library, with this tensor's device made the current one, on its current stream.

    Raises RuntimeError with the kernel's name where it was not launched.
    """
    stream = torch.cuda.current_stream(device_of.device).cuda_stream if device_of.is_cuda else 0
    with torch.cuda.device_of(device_of):
        getattr(LIBRARY, name)(**arguments, stream=stream)


def scratch(size: int, device_of: Tensor) -> Tensor:
    """Memory for a kernel's own use. torch keeps it for its stream, so that it may go once the kernel is launched."""
    return torch.empty(size, dtype=torch.uint8, device=device_of.device)
