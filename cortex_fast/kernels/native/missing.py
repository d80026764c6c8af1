"""Why the native core is not there, and what to do about it."""

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

NAME = "cortex_fast._native"
_PACKAGE = Path(__file__).parents[2]


def reason(error: ImportError, package: Path = _PACKAGE) -> str:
    """What the failed import of the core means. package: the folder that cortex_fast was imported from."""
    found = sorted(path.name for pattern in ("_native.*so", "_native.*pyd") for path in package.glob(pattern))
    if error.name != NAME or any(f"_native{suffix}" in found for suffix in EXTENSION_SUFFIXES):
        return f"{NAME} did not load: {error}"  # it is there, and something that it needs is not
    root = package.parent
    if not (root / "csrc").is_dir():
        missing, then = f"it is not in {package}", "install cortex-fast again"
    else:  # the folder that Python starts in comes before the installed packages
        missing = f"Python took cortex_fast from the source folder {root}, where it is not built"
        then = f"start Python in another folder, where it finds the installed package, or run: pip install -e {root}"
    if found:
        missing += f" for this Python (there is {', '.join(found)})"
    return f"{NAME} did not load: {missing}; {then}"
