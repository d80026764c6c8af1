"""init: start a study."""

import argparse
from dataclasses import replace
from pathlib import Path

from cortex_fast.commands.arguments import absolute_source


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command, with `run` as what it does."""
    parser = commands.add_parser("init", help="start a study: write its settings, each with a comment")
    parser.add_argument("study", type=Path, help="the study's folder")
    parser.add_argument("--model", help="such as taming:FOLDER, bundled or python:module:function")
    parser.add_argument("--preset", default="quick", help="paper, published, quick (default) or demo")
    parser.set_defaults(run=_init)


def _init(parsed: argparse.Namespace) -> int:
    from cortex_fast import checks
    from cortex_fast.studies import PRESETS, write_settings
    from cortex_fast.studies.study import FILE

    checks.one_of("--preset", parsed.preset, PRESETS)
    settings, path = PRESETS[parsed.preset], parsed.study / FILE
    if parsed.model is not None:
        settings = replace(settings, model=replace(settings.model, source=absolute_source(parsed.model)))
    if not settings.model.source:
        raise ValueError(f"--model: expected the model of the preset {parsed.preset!r}, got none")
    if path.exists():
        raise FileExistsError(f"{path}: exists already; nothing is written over it")
    parsed.study.mkdir(parents=True, exist_ok=True)
    write_settings(path, settings)
    print(f"{path}: the settings; read them, change them, then: cortex-fast run {parsed.study}")
    return 0
