"""Check that calls in cortex_fast name their arguments: `python tools/long_calls.py [FOLDER]`, part of `make lint`.

A swapped pair in a call of many positional arguments goes unnoticed, so calls of more than POSITIONAL are a fault.
"""

import ast
import sys
from pathlib import Path

POSITIONAL = 6
NAMELESS = ("save_for_backward",)  # takes any number of tensors and gives them no names


def main() -> int:
    faults = faults_of(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
    sys.stderr.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


def faults_of(root: Path) -> list[str]:
    """A message for each call of the package in a folder that should name its arguments."""
    faults = []
    for file in sorted((root / "cortex_fast").rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        for call in calls:
            count = sum(not isinstance(argument, ast.Starred) for argument in call.args)
            function = ast.unparse(call.func)
            if count > POSITIONAL and function.rpartition(".")[2] not in NAMELESS:
                place = f"{file.relative_to(root)}:{call.lineno}"
                faults.append(f"{place}: {function} has {count} positional arguments; name them")
    return faults


if __name__ == "__main__":
    sys.exit(main())
