"""The bundled demo model: a small VQGAN with its prior, two extractors and four judges, trained on sprite composites.

MODEL_CARD.md beside this file lists measured figures, and NOTICE the sources and licences of the pictures.
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
    """The bundled model.

    Args:
        vqgm: the VQGM of 64 x 64 px images on a 16 x 16 grid; it consists of `tokenizer` and `prior`.
        tokenizer: the autoencoder with the codebook.
        prior: the transformer that samples tokens.
        extractors: "ce" and "re", E [B,d,16,16] -> logits [B,12], with the classes' names, so that a target may be a
            name.
        judges: four classifiers by name, pixels [B,3,64,64] in [0,1] -> logits [B,12].
        names: of the 12 classes, in the order of their labels.
        fingerprint: identifies all weight files.
    """

    vqgm: Model
    tokenizer: VQModel
    prior: GPT
    extractors: dict[str, nn.Module]
    judges: dict[str, nn.Module]
    names: tuple[str, ...]
    fingerprint: str


def load(folder: Path = FOLDER) -> Zoo:
    """Load the bundled model.

    Args:
        folder: of the weight files. Default: the package's own.

    Returns:
        Its modules, in float32 on the CPU, in eval mode, without parameter gradients.

    Raises:
        FileNotFoundError: a weight file is missing.
        ResultFileError: a weight file is damaged; the message names it.
    """
    names = class_names()
    files = {name: folder / f"{name}.safetensors" for name in ("tokenizer", "prior", *EXTRACTORS, *JUDGES)}
    tokenizer = VQModel(**read_config(files["tokenizer"]))
    load_weights(files["tokenizer"], tokenizer)
    prior_config = read_config(files["prior"])
    sampling = prior_config.pop("sampling")
    prior = GPT(**prior_config)
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
    return Zoo(
        vqgm=vqgm,
        tokenizer=tokenizer,
        prior=prior,
        extractors={name: _extractor(name, files[name], names) for name in EXTRACTORS},
        judges={name: load_weights(files[name], build_judge(name, len(names))) for name in JUDGES},
        names=names,
        fingerprint=of_files(list(files.values())),
    )


def _extractor(name: str, file: Path, names: tuple[str, ...]) -> nn.Module:
    return name_classes(load_weights(file, build(name, **read_config(file))), names)


__all__ = ["EXTRACTORS", "FOLDER", "JUDGES", "Zoo", "class_names", "load"]
