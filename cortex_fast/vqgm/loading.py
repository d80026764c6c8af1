"""Models by the name of what wrote them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cortex_fast import checks
from cortex_fast.vqgm.adapters import load_ibq, load_llamagen
from cortex_fast.vqgm.model import Model
from cortex_fast.vqgm.taming_folder import load_taming

LOADERS: dict[str, Callable[..., Model]] = {"taming": load_taming, "llamagen": load_llamagen, "ibq": load_ibq}


def load(name: str, path: Path | str, **options: Any) -> Model:
    """The model at `path`, of the kind `name` (a key of LOADERS), in eval mode, without gradients of its parameters.

    options: the loader's own, see its documentation. Raises ValueError for another name or a device that is
    not there, and what the loader raises.
    """
    checks.one_of("name", name, LOADERS)
    checks.device("device", options.get("device", "cpu"))
    return LOADERS[name](path, **options)
