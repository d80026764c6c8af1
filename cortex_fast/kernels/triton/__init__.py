"""Triton kernels for GPUs, compiled when first used, by the Triton that comes with torch.

Importing this package does not import triton, which takes 0.3 s and may be missing: its modules do, and
`kernels.load` imports one where its operator is used. INTERPRETED is whether kernels run in Triton's interpreter, on
any device and very slowly.
"""

import importlib
import os
import re
import sys
from functools import cache

OLDEST = (3, 6)


def _interpreted() -> bool:
    loaded = sys.modules.get("triton")
    if loaded is not None:
        return bool(loaded.knobs.runtime.interpret)
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


INTERPRETED = _interpreted()


@cache
def unavailable() -> str | None:
    """Why no Triton kernel can run here; None where triton imports and is new enough. Imports it."""
    try:
        version = importlib.import_module("triton").__version__
    except ImportError as error:
        return f"triton did not import: {error}"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST:
        return f"the Triton kernels need triton {'.'.join(map(str, OLDEST))} or newer, this is {version}"
    return None
