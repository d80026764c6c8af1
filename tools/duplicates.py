"""Check that cortex_fast holds no code twice without a reason: `python tools/duplicates.py [FOLDER]`, in `make lint`.

Two runs of statements are alike when their syntax trees are equal with names and constants masked; the keywords of
calls are compared. Signatures and single calls count by themselves, signatures with the names of their arguments. Runs
that are alike for more than LINES lines of code are a fault unless ALIKE states the reason. Docstrings, imports and
lists of public names do not count.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path

LINES = 12

# (place, place): why both stay. A place is file:function, of a signature file:function(...); * stands for any text.
ALIKE: dict[tuple[str, str], str] = {
    ("cortex_fast/kernels/*(...)", "cortex_fast/kernels/*(...)"): "each backend states its operator's signature",
    (
        "cortex_fast/kernels/*/saliency_counts.py:saliency_counts",
        "cortex_fast/kernels/*/saliency_counts.py:saliency_counts",
    ): "a backend without a kernel for both calls its own two kernels one after the other",
    (
        "cortex_fast/ops/*(...)",
        "cortex_fast/ops/*:_*(...)",
    ): "torch.library reads the schema off a signature",
    (
        "cortex_fast/ops/gumbel_codebook.py:gumbel_codebook*",
        "cortex_fast/ops/gumbel_codebook.py:gumbel_codebook_with_row_stats*",
    ): "two public functions of the same arguments, which an editor should complete in both",
}


@dataclass(frozen=True)
class Statement:
    """A statement, signature or call: where it is, its lines of code, and its shape."""

    file: Path
    function: str
    first: int
    last: int
    lines: int
    shape: Hashable


@dataclass(frozen=True)
class Pair:
    """Two runs of statements that are alike."""

    runs: tuple[tuple[Statement, ...], tuple[Statement, ...]]

    @property
    def lines(self) -> int:
        return min(sum(statement.lines for statement in run) for run in self.runs)

    @property
    def places(self) -> list[str]:
        return [f"{run[0].file}:{run[0].function}" for run in self.runs]

    def within(self, other: "Pair") -> bool:
        """Whether both runs are parts of another pair's."""
        return all(
            run[0].file == whole[0].file and whole[0].first <= run[0].first and run[-1].last <= whole[-1].last
            for run, whole in zip(self.runs, other.runs, strict=True)
        )

    def __str__(self) -> str:
        left, right = (f"{run[0].file}:{run[0].first}-{run[-1].last} ({run[0].function})" for run in self.runs)
        return f"{left} and {right} are alike for {self.lines} lines"


def main() -> int:
    faults = faults_of(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
    sys.stderr.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


def faults_of(root: Path) -> list[str]:
    """A message for each unexplained pair of the package in a folder, and for each entry of ALIKE without a pair."""
    files = sorted((root / "cortex_fast").rglob("*.py"))
    pairs = pairs_of([suite for file in files for suite in suites_of(file, root)])
    explained = {pair: [entry for entry in ALIKE if matches(entry, pair)] for pair in pairs}
    faults = [f"{pair}; write it once, or state the reason in ALIKE" for pair in pairs if not explained[pair]]
    needless = ALIKE.keys() - {entry for entries in explained.values() for entry in entries}
    return faults + [f"{left} and {right} are not alike; remove them from ALIKE" for left, right in sorted(needless)]


def matches(entry: tuple[str, str], pair: Pair) -> bool:
    """Whether an entry of ALIKE names a pair's two places, in either order."""
    return any(all(map(fnmatchcase, places, entry)) for places in (pair.places, pair.places[::-1]))


def suites_of(file: Path, root: Path) -> Iterator[list[Statement]]:
    """The sequences of statements in a file; each signature and each long call as a sequence of one."""

    def statement(node: ast.stmt | ast.expr, function: str) -> Statement:
        texts = sum(inner.end_lineno - inner.lineno + 1 for inner in ast.walk(node) if is_text(inner))
        lines = node.end_lineno - node.lineno + 1 - texts
        return Statement(file.relative_to(root), function, node.lineno, node.end_lineno, lines, shape(node))

    def signature(node: ast.FunctionDef, function: str) -> Statement:
        first, end = node.lineno, node.body[0].lineno
        names = tuple(argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg))
        return Statement(file.relative_to(root), f"{function}(...)", first, end - 1, end - first, names)

    def walk(node: ast.AST, function: str) -> Iterator[list[Statement]]:
        if isinstance(node, ast.FunctionDef):
            yield [signature(node, function)]
        elif isinstance(node, ast.Call) and node.end_lineno - node.lineno >= LINES:
            yield [statement(node, function)]
        for _, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                yield [statement(item, name_within(item, function)) for item in value if not is_passed_over(item)]
        for child in ast.iter_child_nodes(node):
            yield from walk(child, name_within(child, function))

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), "")


def name_within(node: ast.AST, function: str) -> str:
    """The dotted name of a function or class inside another; the other's own name for any other node."""
    return f"{function}.{node.name}".lstrip(".") if isinstance(node, ast.FunctionDef | ast.ClassDef) else function


def shape(node: ast.AST) -> int:
    """A number that is equal for nodes whose trees are equal with names and constants masked."""
    if isinstance(node, ast.Constant):
        return hash("constant")
    parts: list[Hashable] = [type(node).__name__, node.arg if isinstance(node, ast.keyword) else None]
    for _, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        parts += [shape(child) for child in children if isinstance(child, ast.AST) and not is_text(child)]
        parts.append("end of field")
    return hash(tuple(parts))


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_passed_over(node: ast.stmt) -> bool:
    """Whether a statement is a docstring, an import or a list of public names."""
    exports = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    return is_text(node) or isinstance(node, ast.Import | ast.ImportFrom) or exports


def pairs_of(suites: list[list[Statement]]) -> list[Pair]:
    """The pairs of runs that are alike for more than LINES lines, longest first; none that lies within another."""
    places = defaultdict(list)
    for suite in suites:
        for start, item in enumerate(suite):
            places[item.shape].append((suite, start))
    pairs = [
        pair for twins in places.values() for left, right in combinations(twins, 2) for pair in pair_at(left, right)
    ]
    longest: list[Pair] = []
    for pair in sorted(pairs, key=lambda pair: pair.lines, reverse=True):
        if not any(pair.within(other) for other in longest):
            longest.append(pair)
    return longest


def pair_at(left: tuple[list[Statement], int], right: tuple[list[Statement], int]) -> Iterator[Pair]:
    """The longest pair that begins at two statements, if it has more than LINES lines and begins nowhere earlier."""
    (suite, start), (twin, twin_start) = left, right
    if start and twin_start and suite[start - 1].shape == twin[twin_start - 1].shape:
        return
    end = twin_start if suite is twin else len(suite)  # runs of one suite do not overlap
    length = 0
    for item, counterpart in zip(suite[start:end], twin[twin_start:], strict=False):
        if item.shape != counterpart.shape:
            break
        length += 1
    pair = Pair((tuple(suite[start : start + length]), tuple(twin[twin_start : twin_start + length])))
    if pair.lines > LINES:
        yield pair


if __name__ == "__main__":
    sys.exit(main())
