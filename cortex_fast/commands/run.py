"""run: whatever of a study is missing."""

import argparse
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command, with `run` as what it does."""
    parser = commands.add_parser("run", help="compute whatever of a study is missing")
    parser.add_argument("study", type=Path, help="the study's folder")
    parser.add_argument("--stage", action="append", help="only this stage; may be given several times")
    parser.add_argument("--again", action="append", default=[], help="compute this stage's stale files again")
    parser.add_argument("--shard", help="I/N: this is process I of N, of a job array")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from cortex_fast.studies import Study, run, workers_of

    study = Study.open(parsed.study, workers_of(parsed.shard))
    run(study, parsed.stage, again=parsed.again, progress=not parsed.quiet)
    if study.workers.rank == 0:
        print(f"{parsed.study}: done")
    return 0
