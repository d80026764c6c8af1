"""select: each class's tokens over the whole codebook, without an image."""

import argparse
from pathlib import Path

from cortex_fast.commands.arguments import add_recipe, labels, recipe_of


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command, with `run` as what it does."""
    parser = commands.add_parser("select", help="each class's tokens over the whole codebook, without an image")
    parser.add_argument("extractor", type=Path, help="extractor file (.safetensors)")
    parser.add_argument("store", type=Path, help="a token store, for its codebook and grid")
    parser.add_argument("--out", type=Path, required=True, help="folder for one file a class")
    parser.add_argument("--classes", type=labels, help="class numbers or names, with commas between; default all")
    add_recipe(parser)
    parser.set_defaults(run=_select)


def _select(parsed: argparse.Namespace) -> int:
    from cortex_fast.data import TokenStore
    from cortex_fast.explain import select_concepts
    from cortex_fast.extractors import load_extractor

    store = TokenStore.load(parsed.store)
    paths = select_concepts(
        load_extractor(parsed.extractor),
        store.codebook.float(),
        parsed.out,
        classes=parsed.classes,
        grid=store.grid,
        progress="selecting tokens",
        recipe=recipe_of(parsed),
        seed=parsed.seed,
    )
    print(f"{parsed.out}: selections of {len(paths)} classes")
    return 0
