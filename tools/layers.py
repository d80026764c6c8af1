"""Check that imports inside cortex_fast run downwards only: `python tools/layers.py [FOLDER]`, part of `make lint`.

FLOORS lists the package's folders and top-level files from the top to the bottom. A file may import from its own folder
and from lower floors. Imports of a higher floor, of another folder on the same floor, and circles of files are faults.
So are imports of the folders in ONLY_FROM by others than those named there. Imports inside functions and under
TYPE_CHECKING count like any other.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "cortex_fast"

FLOORS = (
    ("__main__",),  # `python -m cortex_fast`, the command again
    ("__init__", "cli"),  # the public names, and the command: both only pass on what the floors below define
    ("commands",),
    ("demo", "compat"),
    ("studies", "report", "plot"),
    ("evaluate", "judges"),
    ("zoo",),  # the bundled model, built from vqgm and extractors; its judges are plain classifiers
    ("explain", "optimise"),
    ("engine", "vqgm", "extractors", "info", "tuning"),  # info and tuning ask ops and kernels, and only cli calls them
    ("ops",),
    ("data",),
    ("kernels",),
    ("_native", "checks", "version"),  # no imports at all: the compiled core, argument checks, the version's text
)
# Above ops, nothing depends on which kernel computes an operator; cli asks where tune writes its table.
ONLY_FROM = {"kernels": ("ops", "info", "tuning", "cli"), "_native": ("kernels", "info")}
FLOOR_OF = {folder: number for number, folders in enumerate(FLOORS) for folder in folders}


@dataclass(frozen=True)
class Import:
    """An import statement: the line in `file` that imports `module`, and the file that `module` is."""

    file: Path
    line: int
    module: str
    target: Path


def main() -> int:
    faults = faults_of(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
    sys.stderr.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


def faults_of(root: Path) -> list[str]:
    """A message for each fault of the package in a folder."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    unplaced = sorted({folder_of(file, root) for file in files} - FLOOR_OF.keys())
    if unplaced:
        return [f"{PACKAGE}/{folder}: tools/layers.py states no floor for it" for folder in unplaced]
    imports = [item for file in files for item in imports_of(file, root)]
    faults = [fault for item in imports for fault in floor_faults(item, root)]
    return faults + [circle_fault(circle, root) for circle in circles(imports)]


def imports_of(file: Path, root: Path) -> Iterator[Import]:
    """Every import of a part of the package in a file. `from package import submodule` counts as the submodule's."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = file.relative_to(root).parts[: -node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            modules = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            if module.split(".")[0] == PACKAGE:
                yield Import(file, node.lineno, module, file_of(module, root))


def file_of(module: str, root: Path) -> Path:
    """The file of a module, or of the module that a name belongs to."""
    path = root.joinpath(*module.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py"), path.with_suffix(".pyi")):
        if candidate.exists():
            return candidate
    return file_of(module.rpartition(".")[0], root) if "." in module else root / PACKAGE / "__init__.py"


def folder_of(file: Path, root: Path) -> str:
    """The part of the package that a file belongs to: its first folder, or a top-level file's name without ending."""
    return file.relative_to(root / PACKAGE).parts[0].partition(".")[0]


def floor_faults(item: Import, root: Path) -> Iterator[str]:
    """A message where an import is against FLOORS or ONLY_FROM."""
    folder, imported = folder_of(item.file, root), folder_of(item.target, root)
    if folder == imported:
        return
    importers = ONLY_FROM.get(imported, (folder,))
    if FLOOR_OF[imported] < FLOOR_OF[folder]:
        fault = "a higher floor"
    elif FLOOR_OF[imported] == FLOOR_OF[folder]:
        fault = "another folder on the same floor"
    elif folder not in importers:
        fault = f"which only {', '.join(importers)} may import"
    else:
        return
    yield (
        f"{item.file.relative_to(root)}:{item.line}: {folder} (floor {FLOOR_OF[folder]} from the top) imports "
        f"{item.module} of {imported} (floor {FLOOR_OF[imported]}), {fault}"
    )


def circles(imports: list[Import]) -> Iterator[list[Import]]:
    """A circle of imports through every import that closes one in a walk of the files, depth first."""
    edges: dict[Path, dict[Path, Import]] = {}
    for item in imports:
        edges.setdefault(item.file, {}).setdefault(item.target, item)
    finished: set[Path] = set()

    def walk(file: Path, way: list[Import]) -> Iterator[list[Import]]:
        for item in edges.get(file, {}).values():
            route = [*way, item]
            starts = [position for position, step in enumerate(route) if step.file == item.target]
            if starts:
                yield route[starts[0] :]
            elif item.target not in finished:
                yield from walk(item.target, route)
        finished.add(file)

    for file in edges:
        if file not in finished:
            yield from walk(file, [])


def circle_fault(circle: list[Import], root: Path) -> str:
    steps = [f"{item.file.relative_to(root)}:{item.line} imports {item.module}" for item in circle]
    return "circle: " + "; ".join(steps)


if __name__ == "__main__":
    sys.exit(main())
