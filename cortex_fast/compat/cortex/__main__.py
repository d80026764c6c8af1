"""`python -m cortex_fast.compat.cortex run SCRIPT.py ARGS...`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the command line's words. Default those of this process.
    Returns:
        The script's exit status; 2, with a message on standard error, where there is no such script.
    """
    parser = argparse.ArgumentParser(
        prog="python -m cortex_fast.compat.cortex", description="The published CORTEX code's scripts, unedited, faster."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="run a script with this package in place of its slow definitions")
    runner.add_argument("script", metavar="SCRIPT.py", type=Path)
    runner.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="the script's own")
    parsed = parser.parse_args(arguments)
    from cortex_fast.compat.cortex.running import (
        run,  # torch takes seconds to import, which a mistaken command must not wait for
    )

    try:
        return run(parsed.script, parsed.arguments)
    except OSError as error:
        print(f"cortex-fast: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
