"""The bundled demo model: a small VQGAN with its prior, two extractors and four judges, trained on sprite composites.

MODEL_CARD.md beside this file has its measured figures, NOTICE the sources and licences of the pictures.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cortex_fast.data.classes import name_classes
from cortex_fast.data.digests import of_files
from cortex_fast.extractors import build
from cortex_fast.vqgm import GPT, Model, VQModel, taming_model
from cortex_fast.zoo.composites import class_names
from cortex_fast.zoo.judges import JUDGES, build_judge
from cortex_fast.zoo.weight_files import load_weights, read_config

FOLDER = Path(__file__).parent / "weights"
EXTRACTORS = ("ce", "re")


@dataclass(frozen=True)
class Zoo:
    """`vqgm`: 64 x 64 px, a 16 x 16 grid, of the modules `tokenizer` and `prior`. `extractors`: "ce" and "re".

    `judges`: four image classifiers of pixels in [0,1]. `names`: the classes', which the extractors have too, for
    targets by name. `fingerprint`: of all weight files.
    """

    vqgm: Model
    tokenizer: VQModel
    prior: GPT
    extractors: dict[str, nn.Module]
    judges: dict[str, nn.Module]
    names: tuple[str, ...]
    fingerprint: str


def load(folder: Path = FOLDER) -> Zoo:
    """The bundled model, in float32 on the CPU, eval mode. Raises FileNotFoundError where a weight file is missing."""
    names = class_names()
    files = {name: folder / f"{name}.safetensors" for name in ("tokenizer", "prior", *EXTRACTORS, *JUDGES)}
    tokenizer = VQModel(**read_config(files["tokenizer"]))
    load_weights(files["tokenizer"], tokenizer)
    config = read_config(files["prior"])
    sampling = config.pop("sampling")
    prior = GPT(**config)
    load_weights(files["prior"], prior)
    vqgm = taming_model(
        tokenizer,
        prior,
        grid=16,
        cell=tokenizer.cell,
        fingerprint=of_files([files["tokenizer"], files["prior"]]),
        num_classes=len(names),
        sampling=sampling,
    )
    extractors = {}
    for name in EXTRACTORS:
        extractor = build(name, **read_config(files[name]))
        extractors[name] = name_classes(load_weights(files[name], extractor), names)
    judges = {name: load_weights(files[name], build_judge(name, len(names))) for name in JUDGES}
    return Zoo(vqgm, tokenizer, prior, extractors, judges, names, of_files(list(files.values())))


__all__ = ["EXTRACTORS", "FOLDER", "JUDGES", "Zoo", "class_names", "load"]
