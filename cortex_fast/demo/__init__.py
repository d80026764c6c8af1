"""The demo: everything on the bundled model."""

from cortex_fast.demo.run import run_demo
from cortex_fast.demo.settings import Settings

__all__ = ["Settings", "run_demo"]
