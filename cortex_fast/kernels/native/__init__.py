"""Kernels of csrc/: tensors in, pointers and strides on to `cortex_fast._native`.

`UNAVAILABLE` is None where the extension was built and loads, else the reason.
"""

import torch  # noqa: F401  first: the extension then finds torch's OpenMP library loaded, and shares its threads

UNAVAILABLE: str | None
try:
    from cortex_fast import _native
except ImportError as error:
    UNAVAILABLE = f"cortex_fast._native did not load: {error}"
else:
    UNAVAILABLE = None
    del _native
