"""Memory that a trial took, given back to the system."""

import ctypes
import sys


def give_back() -> None:
    """Where the C library is glibc: it keeps what was freed beneath anything that was allocated later, here the float64
    copies of a whole extractor beneath its prepared parts."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
