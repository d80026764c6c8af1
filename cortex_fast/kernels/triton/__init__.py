"""Triton kernels: for GPUs, compiled when first used, with the Triton that torch brings.

This package imports without triton, and does not import it (0.3 s): its modules do, and `ops/` imports those where it
has chosen them. INTERPRETED is whether kernels run in Triton's interpreter: on any device, and very slowly.
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
    """Why no Triton kernel can be used here; None where triton imports and is new enough. Imports it."""
    try:
        version = importlib.import_module("triton").__version__
    except ImportError as error:
        return f"triton did not import: {error}"
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        return f"the Triton kernels need triton {'.'.join(map(str, OLDEST))} or newer, this is {version}"
    return None
