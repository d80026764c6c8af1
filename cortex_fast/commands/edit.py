"""edit: images of one class changed in a region to be seen as another."""

import argparse
from pathlib import Path

from cortex_fast.commands.arguments import add_recipe, box, label, new_file, recipe_of


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command, with `run` as what it does."""
    parser = commands.add_parser("edit", help="images of one class changed in a region to be seen as another")
    parser.add_argument("extractor", type=Path, help="extractor file (.safetensors)")
    parser.add_argument("store", type=Path, help="token store with the images (.safetensors)")
    parser.add_argument("--out", type=Path, required=True, help="the edits to write (.safetensors)")
    parser.add_argument("--source", type=label, required=True, help="class of the images, by number or name")
    parser.add_argument("--target", type=label, required=True, help="class that they are to be seen as")
    parser.add_argument("--images", type=int, default=50, help="how many at most (default 50)")
    parser.add_argument("--region", type=box, default=(6, 6, 10, 10), help="top,left,bottom,right (default 6,6,10,10)")
    add_recipe(parser)
    parser.set_defaults(run=_edit)


def _edit(parsed: argparse.Namespace) -> int:
    import torch

    from cortex_fast import checks
    from cortex_fast.data import TokenStore
    from cortex_fast.data.classes import class_number
    from cortex_fast.explain import select_tokens
    from cortex_fast.extractors import load_extractor

    out, store = new_file(parsed.out), TokenStore.load(parsed.store)
    source, target = (class_number(f"--{name}", getattr(parsed, name), store.names) for name in ("source", "target"))
    rows = torch.nonzero(store.labels == source).flatten()[: checks.whole("--images", parsed.images, 1)]
    if not len(rows):
        raise ValueError(f"--source: expected a class with images in {parsed.store}, got {parsed.source!r}")
    edits = select_tokens(
        load_extractor(parsed.extractor),
        store.codebook.float(),
        target,
        tokens=store.select(rows).tokens.int(),
        region=parsed.region,
        item_ids=rows,
        checkpoint=out.with_name(f"{out.name}.unfinished"),
        progress="editing images",
        recipe=recipe_of(parsed),
        seed=parsed.seed,
    )
    edits.save(out)
    print(f"{out}: {len(edits.tokens)} edits")
    return 0
