"""Why the native core cannot be imported, and what to do about it."""

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

NAME = "cortex_fast._native"
_PACKAGE = Path(__file__).parents[2]


def reason(error: ImportError, package: Path = _PACKAGE) -> str:
    """What a failed import of the core means.

    Args:
        error: the import's error.
        package: the folder that cortex_fast was imported from.

    Returns:
        The cause and the remedy, in one sentence.
    """
    files = sorted(path.name for pattern in ("_native.*so", "_native.*pyd") for path in package.glob(pattern))
    if error.name != NAME or any(f"_native{suffix}" in files for suffix in EXTENSION_SUFFIXES):
        return f"{NAME} did not load: {error}"  # the file exists, and something that it needs does not
    root = package.parent
    if not (root / "csrc").is_dir():
        missing, remedy = f"it is not in {package}", "install cortex-fast again"
    else:  # the folder that Python starts in comes before the installed packages
        missing = f"Python took cortex_fast from the source folder {root}, where it is not built"
        remedy = f"start Python in another folder, where it finds the installed package, or run: pip install -e {root}"
    if files:
        missing += f" for this Python (there is {', '.join(files)})"
    return f"{NAME} did not load: {missing}; {remedy}"
