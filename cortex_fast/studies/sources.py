"""The generative model that a study's settings name, with its classes and what comes bundled with it."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cortex_fast import vqgm
from cortex_fast.data.classes import class_numbers
from cortex_fast.data.foreign import refuse_foreign
from cortex_fast.studies.settings import ClassSettings, ModelSettings
from cortex_fast.vqgm.loading import LOADERS
from cortex_fast.vqgm.model import VQGM, Model

BUNDLED = "bundled"


@dataclass(frozen=True, eq=False)
class BundledExtractor:
    """An extractor that comes with the model: the module, and the sizes that `extractors.build` makes it of."""

    module: nn.Module
    sizes: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Source:
    """A study's model.

    Args:
        model: what samples, embeds and decodes.
        conditions: the model's condition of each explained class.
        names: of the explained classes, as many.
        all_names: of all conditions of the model.
        extractors: those that come with the model, by name.
    """

    model: VQGM
    conditions: tuple[int, ...]
    names: tuple[str, ...]
    all_names: tuple[str, ...]
    extractors: Mapping[str, BundledExtractor] = field(default_factory=dict)


def open_source(model: ModelSettings, classes: ClassSettings, folder: Path, device: torch.device) -> Source:
    """Load the model and choose its classes.

    Args:
        model: [model] of study.toml; relative paths count from `folder`.
        classes: [classes].
        folder: the study's.
        device: where the model is put.
    Returns:
        The model with its classes.
    Raises:
        ValueError: `source` has no such form, or a class does not exist.
        FileNotFoundError, CheckpointError, ImportError: as the loader raises them.
    """
    kind, _, rest = model.source.partition(":")
    extractors: Mapping[str, BundledExtractor] = {}
    names: tuple[str, ...] = ()
    if kind == BUNDLED:
        from cortex_fast import zoo
        from cortex_fast.zoo.weight_files import read_config

        bundle = zoo.load()
        loaded: VQGM = bundle.vqgm
        names = bundle.names
        extractors = {
            name: BundledExtractor(module, read_config(zoo.FOLDER / f"{name}.safetensors"))
            for name, module in bundle.extractors.items()
        }
    elif kind == "python":
        loaded = _from_function(rest)
    elif kind in LOADERS:
        options: dict[str, Any] = {"sampling": model.sampling} if model.sampling else {}
        loaded = vqgm.load(kind, (folder / Path(rest).expanduser()).resolve(), device=device, **options)
    else:
        sources = ", ".join([*(f"{name}:PATH" for name in LOADERS), BUNDLED, "python:module:function"])
        raise ValueError(f"model.source: expected one of {sources}, got {model.source!r}")
    if classes.names:
        names = _names_in(folder / Path(classes.names).expanduser())
    return _with_classes(loaded, classes, names, extractors)


def _with_classes(
    model: VQGM, classes: ClassSettings, names: tuple[str, ...], extractors: Mapping[str, BundledExtractor]
) -> Source:
    count = model.conditions if isinstance(model, Model) and model.sampler is not None else len(names)
    if names and len(names) != count:
        raise ValueError(f"classes.names: expected {count} names, one a class of the model, got {len(names)}")
    names = names or tuple(f"class {number}" for number in range(count))
    if isinstance(classes.chosen, str):
        conditions = tuple(range(count))
    else:
        conditions = tuple(class_numbers("classes.chosen", classes.chosen, names).tolist())
    for condition in conditions:
        if not 0 <= condition < count:
            raise ValueError(f"classes.chosen: expected classes below {count}, got {condition}")
    if len(set(conditions)) < len(conditions):
        raise ValueError("classes.chosen: expected each class once, got one of them twice")
    return Source(model, conditions, tuple(names[condition] for condition in conditions), names, extractors)


def _from_function(name: str) -> VQGM:
    """What a user's own function returns: a VQGM, or a model object of a library that `vqgm.adapt` takes."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"model.source: expected python:module:function, got 'python:{name}'")
    build: Callable[[], Any] = getattr(importlib.import_module(module), function)
    built = build()
    return built if hasattr(built, "codebook") and hasattr(built, "sample") else vqgm.adapt(built)


def _names_in(path: Path) -> tuple[str, ...]:
    refuse_foreign(path, ValueError)
    return tuple(path.read_text(encoding="utf-8").splitlines())
