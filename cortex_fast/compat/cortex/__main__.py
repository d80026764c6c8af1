"""`python -m cortex_fast.compat.cortex run SCRIPT.py ARGS...`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is the script's, or 2 with a message on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m cortex_fast.compat.cortex", description="The published CORTEX code's scripts, unedited, faster."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="run a script with this package in the place of its slow definitions")
    runner.add_argument("script", metavar="SCRIPT.py", type=Path)
    runner.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="the script's own")
    parsed = parser.parse_args(arguments)
    from cortex_fast.compat.cortex.running import run  # imports torch, which a mistaken command need not wait for

    try:
        return run(parsed.script, parsed.arguments)
    except OSError as error:
        print(f"cortex-fast: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
