"""init, run and status: a study from its settings to its results."""

import argparse
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The three commands, each with `run` as what it does."""
    started = commands.add_parser("init", help="start a study: write its settings, each with a comment")
    started.add_argument("study", type=Path, help="the study's folder")
    started.add_argument("--model", help="such as taming:FOLDER, bundled or python:module:function")
    started.add_argument("--preset", default="quick", help="paper, published, quick (default) or demo")
    started.set_defaults(run=_init)
    computed = commands.add_parser("run", help="compute whatever of a study is missing")
    computed.add_argument("study", type=Path, help="the study's folder")
    computed.add_argument("--stage", action="append", help="only this stage; may be given several times")
    computed.add_argument("--again", action="append", default=[], help="compute this stage's stale files again")
    computed.add_argument("--shard", help="I/N: this is process I of N, of a job array")
    computed.add_argument("--quiet", action="store_true", help="no progress bars")
    computed.set_defaults(run=_run)
    shown = commands.add_parser("status", help="what of a study is done, missing or stale, and why")
    shown.add_argument("study", type=Path, help="the study's folder")
    shown.set_defaults(run=_status)


def _init(parsed: argparse.Namespace) -> int:
    from dataclasses import replace

    from cortex_fast import checks
    from cortex_fast.studies import PRESETS, write_settings
    from cortex_fast.studies.study import FILE

    checks.one_of("--preset", parsed.preset, PRESETS)
    settings, path = PRESETS[parsed.preset], parsed.study / FILE
    if parsed.model is not None:
        settings = replace(settings, model=replace(settings.model, source=_absolute(parsed.model)))
    if not settings.model.source:
        raise ValueError(f"--model: expected the model of the preset {parsed.preset!r}, got none")
    if path.exists():
        raise FileExistsError(f"{path}: exists already; nothing is written over it")
    parsed.study.mkdir(parents=True, exist_ok=True)
    write_settings(path, settings)
    print(f"{path}: the settings; read them, change them, then: cortex-fast run {parsed.study}")
    return 0


def _absolute(source: str) -> str:
    """A model's path as the shell's folder has it: study.toml stands elsewhere."""
    kind, colon, path = source.partition(":")
    return source if not colon or kind == "python" else f"{kind}:{Path(path).expanduser().resolve()}"


def _run(parsed: argparse.Namespace) -> int:
    from cortex_fast.studies import Study, run, workers_of

    study = Study.open(parsed.study, workers_of(parsed.shard))
    run(study, parsed.stage, again=parsed.again, progress=not parsed.quiet)
    if study.workers.rank == 0:
        print(f"{parsed.study}: done")
    return 0


def _status(parsed: argparse.Namespace) -> int:
    from cortex_fast.studies import Study, status_of
    from cortex_fast.studies.status import as_text

    print(as_text(status_of(Study.open(parsed.study))))
    return 0
