"""The taming-transformers package, with stand-ins for the modules that only its training needs."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest
from torch import nn


class Labelator:
    """A label is its own token. (The package's release lacks the class that the published configuration names.)"""

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes

    def eval(self) -> "Labelator":
        return self

    def encode(self, labels):
        tokens = labels[:, None]
        return tokens, None, [None, None, tokens]


def _instantiate(config):
    if config["target"] == "torch.nn.Identity":
        return nn.Identity()
    if config["target"].endswith(".Labelator"):
        return Labelator(**config["params"])
    module, name = config["target"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**config.get("params", {}))


@contextmanager
def taming() -> Iterator[SimpleNamespace]:
    """`VQModel`, `Net2NetTransformer` and `GPT`. Skips the test where the package is not installed."""
    pytest.importorskip("taming", reason="needs taming-transformers, installed with --no-deps")
    lightning, main = ModuleType("pytorch_lightning"), ModuleType("taming.main")
    lightning.LightningModule = nn.Module
    main.instantiate_from_config = _instantiate
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", lightning)
        patch.setitem(sys.modules, "taming.main", main)
        vqgan = importlib.import_module("taming.models.vqgan")
        transformer = importlib.import_module("taming.models.cond_transformer")
        gpt = importlib.import_module("taming.modules.transformer.mingpt").GPT
        yield SimpleNamespace(VQModel=vqgan.VQModel, Net2NetTransformer=transformer.Net2NetTransformer, GPT=gpt)
    for name in [name for name in sys.modules if name == "taming" or name.startswith("taming.")]:
        del sys.modules[name]  # imported with the stand-ins
