"""sample: a model's images as a token store."""

import argparse
from pathlib import Path

from cortex_fast.commands.arguments import absolute_source, labels


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command, with `run` as what it does."""
    parser = commands.add_parser("sample", help="a model's images as a token store")
    parser.add_argument("model", help="such as taming:FOLDER, bundled or python:module:function")
    parser.add_argument("--out", type=Path, required=True, help="the token store to write (.safetensors)")
    parser.add_argument("--images", type=int, required=True, help="images a class")
    parser.add_argument("--classes", type=labels, help="class numbers or names, with commas between; default all")
    parser.add_argument("--names", type=Path, help="text file of class names, a line each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.set_defaults(run=_sample)


def _sample(parsed: argparse.Namespace) -> int:
    import torch

    from cortex_fast import checks
    from cortex_fast.studies.settings import ClassSettings, ModelSettings
    from cortex_fast.studies.sources import open_source
    from cortex_fast.vqgm import sample_store

    images = checks.whole("--images", parsed.images, 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = "" if parsed.names is None else str(parsed.names.resolve())
    classes = ClassSettings(chosen=parsed.classes or "all", names=names)
    source = open_source(ModelSettings(source=absolute_source(parsed.model)), classes, Path.cwd(), device)
    store = sample_store(
        source.model,
        torch.tensor(source.conditions).repeat(images),
        parsed.out,
        names=source.all_names,
        seed=parsed.seed,
        batch_size=parsed.batch_size,
        progress="sampling images",
    )
    print(f"{parsed.out}: {len(store)} images of {len(source.conditions)} classes")
    return 0
