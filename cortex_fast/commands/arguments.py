"""Arguments that several commands share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cortex_fast.explain import Recipe

_RECIPE = (("steps", int), ("lr", float), ("tau", float), ("judge-every", int))


def labels(text: str) -> list[int | str]:
    """Classes by number or name, with commas between."""
    return [int(label) if label.isdecimal() else label for label in text.split(",")]


def label(text: str) -> int | str:
    """One class by number or name."""
    return int(text) if text.isdecimal() else text


def box(text: str) -> tuple[int, int, int, int]:
    """A half-open box: top,left,bottom,right."""
    sides = text.split(",")
    if len(sides) != 4 or not all(side.strip().isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"expected top,left,bottom,right, got {text!r}")
    top, left, bottom, right = map(int, sides)
    return top, left, bottom, right


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """The settings of token selection; those that are left out have `Recipe`'s defaults."""
    for name, kind in _RECIPE:
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--optimizer", choices=("adam", "sgd"))
    parser.add_argument("--seed", type=int, default=0)


def recipe_of(parsed: argparse.Namespace) -> "Recipe":
    """The recipe of token selection that was given."""
    from cortex_fast.explain import Recipe

    names = (*(name.replace("-", "_") for name, _ in _RECIPE), "optimizer")
    return Recipe(**{name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None})


def new_file(path: Path) -> Path:
    """A file to write, which does not exist yet."""
    if path.is_dir():
        raise IsADirectoryError(f"--out: expected a file to write, got the folder {path}")
    if path.exists():
        raise FileExistsError(f"--out: {path} exists already; nothing is written over it")
    return path


def absolute_source(source: str) -> str:
    """A model's path as this folder has it, for settings that are read from another."""
    kind, colon, path = source.partition(":")
    return source if not colon or kind == "python" else f"{kind}:{Path(path).expanduser().resolve()}"
