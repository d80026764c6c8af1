"""The command `cortex-fast`."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cortex_fast.commands import extractors, published
from cortex_fast.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: those after the program's name. Default None: sys.argv's.

    Returns:
        The exit status: 0; 1 after an error, with a message on standard error; 130 after an interruption.
    """
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.run(parsed)
    except KeyboardInterrupt:
        print("cortex-fast: interrupted; finished parts are saved, and the same command continues", file=sys.stderr)
        return 130
    except Exception as error:
        if parsed.traceback:
            raise
        print(f"cortex-fast: {_message(error)}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    """The parser; each command sets `run`, the function that it calls."""
    parser = argparse.ArgumentParser(prog="cortex-fast", description="Concept explanations of VQ generative models.")
    parser.add_argument("--version", action="version", version=f"cortex-fast {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from, for a bug report")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="versions, devices, and which backend serves which operator, with reasons")
    info.set_defaults(run=_info)
    demo = commands.add_parser("demo", help="the whole of CORTEX on the bundled model, with a report")
    demo.add_argument("--out", type=Path, required=True, help="folder for the results and report/index.html")
    demo.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    demo.add_argument("--images", type=int, default=16, help="images explained for each class (default 16)")
    demo.add_argument("--steps", type=int, default=200, help="steps of token selection (default 200)")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    demo.set_defaults(run=_demo)
    tune = commands.add_parser("tune", help="find faster blocks for the Triton kernels on this GPU, and save them")
    tune.add_argument("--rows", type=int, default=256, help="rows of logits that step together (default 256)")
    tune.add_argument("--codes", type=int, default=16384, help="K (default 16384)")
    tune.add_argument("--channels", type=int, default=256, help="d (default 256)")
    tune.set_defaults(run=_tune)
    published.add(commands)
    extractors.add(commands)
    return parser


def _message(error: Exception) -> str:
    """The text of an error. An unexpected one becomes a line that says how to report it."""
    text = str(error)
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return "out of memory; smaller numbers, or a smaller file, need less"
    ours = type(error).__module__.startswith("cortex_fast.")
    if ours or isinstance(error, ValueError | OSError | FloatingPointError | ImportError):
        return text
    line = text.partition("\n")[0]
    return f"{type(error).__name__}: {line} (unexpected; for a bug report, cortex-fast --traceback COMMAND shows where)"


def _info(_parsed: argparse.Namespace) -> int:
    from cortex_fast.info import describe

    print(describe())
    return 0


def _tune(parsed: argparse.Namespace) -> int:
    from cortex_fast.ops.backends import BackendUnavailableError
    from cortex_fast.tuning import tune

    try:
        results = tune(parsed.rows, parsed.codes, parsed.channels)
    except BackendUnavailableError as error:
        raise ValueError(str(error)) from error
    from cortex_fast.kernels.triton.tiles import table_file  # imports triton, whose absence `tune` has reported

    rows = [
        (
            result.key,
            f"{result.default_time:.3f}",
            f"{result.time:.3f}",
            " ".join(f"{name}={size}" for name, size in result.block.items()),
        )
        for result in results
    ]
    print(_text_table(("kernel, sizes", "default, ms", "fastest, ms", "block"), rows))
    print(f"saved in {table_file()}")
    return 0


def _demo(parsed: argparse.Namespace) -> int:
    from cortex_fast.demo import Settings, run_demo
    from cortex_fast.ops.backends import BackendUnavailableError

    if parsed.out.exists() and not parsed.out.is_dir():
        raise NotADirectoryError(f"--out: expected a folder, got the file {parsed.out}")
    settings = Settings(seed=parsed.seed, images_per_class=parsed.images, edit_steps=parsed.steps)
    start = time.perf_counter()
    try:
        summary = run_demo(parsed.out, settings, progress=not parsed.quiet)
    except BackendUnavailableError as error:
        raise ValueError(str(error)) from error
    print(_text_table(summary.columns, summary.rows))
    print(summary.note)
    index = (parsed.out / "report" / "index.html").resolve()
    print(f"\n{time.perf_counter() - start:.0f} s. Report: {index}")
    return 0


def _text_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Left-aligned text columns with a rule below the head."""
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


if __name__ == "__main__":
    sys.exit(main())
