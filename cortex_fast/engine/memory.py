"""Freed memory, returned to the system."""

import ctypes
import sys


def give_back() -> None:
    """Return freed memory to the system.

    glibc holds memory that was freed below any later allocation: here the float64 copies of a whole extractor, below
    its prepared parts.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
