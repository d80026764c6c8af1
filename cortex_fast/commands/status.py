"""status: what of a study is done, missing or stale."""

import argparse
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command, with `run` as what it does."""
    parser = commands.add_parser("status", help="what of a study is done, missing or stale, and why")
    parser.add_argument("study", type=Path, help="the study's folder")
    parser.set_defaults(run=_status)


def _status(parsed: argparse.Namespace) -> int:
    from cortex_fast.studies import Study, status_of
    from cortex_fast.studies.status import as_text

    print(as_text(status_of(Study.open(parsed.study))))
    return 0
