"""torch.set_default_dtype(torch.float64), with which many scripts begin, changes neither bits nor dtype of a result."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cortex_fast as cf
from cortex_fast import evaluate, info, zoo
from cortex_fast.compat import cortex
from cortex_fast.compat.cortex.replacing import Replacer
from cortex_fast.engine import prepare
from cortex_fast.extractors import build, load_extractor, save_extractor
from cortex_fast.extractors.fitting import fit
from cortex_fast.extractors.training import TrainingRecipe
from cortex_fast.kernels import native
from cortex_fast.vqgm import GPT, VQModel, load, sample_store, taming_model
from tests.known_extractors import tiny
from tests.vqgm.test_autoencoder import SMALL

FLOAT = torch.float32
GENERATOR = torch.Generator().manual_seed(0)
CODEBOOK = torch.randn(12, 5, generator=GENERATOR, dtype=FLOAT)
TOKENS = torch.randint(12, (6, 8, 8), generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
STORE = cf.TokenStore(TOKENS, LABELS, CODEBOOK, ("a", "b", "c", "d"))
EMBEDDING = cf.embed(TOKENS, CODEBOOK)
CE = tiny("ce")
IMAGES = torch.rand(6, 3, 16, 16, generator=GENERATOR, dtype=FLOAT)
TSV = torch.rand(6, 8, 8, generator=GENERATOR, dtype=FLOAT)
EDIT = {"tokens": TOKENS[:2], "region": (1, 1, 4, 5), "steps": 4, "judge_every": 2, "lr": 0.3}


class Brightness(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        seen = images.mean(dim=(2, 3))
        return torch.cat((seen, -seen[:, :1]), dim=1)


JUDGES = {"one": Brightness(), "two": Brightness()}


def decode(tokens: Tensor) -> Tensor:
    return (tokens.to(FLOAT) / 12)[:, None].repeat(1, 3, 1, 1)


def with_seed(function: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return function()


RUNS: dict[str, Callable[[Path], Any]] = {
    "smoothgrad": lambda _: cf.smoothgrad(CE, EMBEDDING, LABELS, num_samples=3),
    "smoothgrad, auto": lambda _: cf.smoothgrad(CE, EMBEDDING[:2], 1, num_samples="auto"),
    "token_saliency": lambda _: cf.token_saliency(CE, EMBEDDING, 2, num_samples=3, noise="independent"),
    "explain_concepts": lambda _: _fields(
        cf.explain_concepts(CE, STORE, top_n=9, num_samples=2, progress=False), ("counts", "examples", "shares")
    ),
    "select_tokens": lambda _: cf.select_tokens(CE, CODEBOOK, [1, 2], **EDIT),
    "select_tokens, from the image": lambda _: cf.select_tokens(
        CE, CODEBOOK, 1, start="image", stay_penalty=0.1, draws=2, tau=cf.Schedule(1.0, 0.5), optimizer="sgd", **EDIT
    ),
    "select_concepts": lambda folder: [
        cf.TokenSelection.load(path)
        for path in cf.select_concepts(CE, CODEBOOK, folder, grid=8, classes=[1, 2], steps=2, restarts=2)
    ],
    "optimise_embedding": lambda _: cf.optimise_embedding(CE, CODEBOOK, 1, **EDIT),
    "draw_tokens": lambda _: cf.draw_tokens(CE, CODEBOOK, 1, tokens=TOKENS[:2], steps=3, frequency=torch.arange(12)),
    "top_tokens": lambda _: cf.top_tokens(TSV, TOKENS, 7),
    "prepare": lambda _: prepare(CE, EMBEDDING, copies=1000).value_and_grad(EMBEDDING, LABELS),
    "prepare, bfloat16": lambda _: prepare(CE, EMBEDDING, precision="bfloat16").value_and_grad(EMBEDDING, LABELS),
    "image_level": lambda _: evaluate.image_level(JUDGES, IMAGES, TOKENS, TSV, LABELS, ns=(3, 9)),
    "concept_level": lambda _: evaluate.concept_level(
        JUDGES, IMAGES, TOKENS, LABELS, TOKENS[:4, 0, :3], TOKENS[:4, 1, :3]
    ),
    "edit_scores": lambda _: _scores(),
    "edit_lead": lambda _: evaluate.edit_lead(_scores(), "one", "two", resamples=50),
    "intervention": lambda _: evaluate.intervention(JUDGES, decode, TOKENS, TSV, LABELS, ns=(2, 5)),
    "grounding": lambda _: evaluate.grounding(TSV, TOKENS, LABELS, TSV > 0.5, torch.arange(48).view(4, 12), 9),
    "object_cells": lambda _: evaluate.object_cells(IMAGES[:, 0], 8),
    "a model's images": lambda _: _model().decode(TOKENS[:2]),
    "a model's tokens": lambda _: _model().encode(torch.rand(2, 3, 16, 16, generator=_generator(), dtype=FLOAT)),
    "sample_store": lambda folder: _fields(
        sample_store(_model(), LABELS[:3] % 3, folder / "s", names="abc", batch_size=2), ("tokens", "codebook")
    ),
    "extractor files": lambda folder: _file(folder),
    "fit": lambda folder: _fitted(folder),
    "the bundled model": lambda _: _bundled(),
    "a taming folder": lambda folder: _taming(folder),
    "compat.captum": lambda _: _captum(),
}
RUNS |= {
    f"{name}, {impl}": lambda _, name=name, impl=impl: info._trials()[name](impl)
    for name in info._trials()
    for impl in (("native", "reference") if native.UNAVAILABLE is None else ("reference",))
}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _scores() -> evaluate.EditScores:
    after = {"one": TOKENS.flip(0), "two": TOKENS.flip(1)}
    return evaluate.edit_scores(JUDGES, decode, TOKENS, after, LABELS, (LABELS + 1) % 4)


def _fields(result: Any, names: tuple[str, ...]) -> list[Tensor]:
    return [getattr(result, name) for name in names]


MODULES: list[Any] = []


def _model() -> Any:
    return taming_model(*MODULES, grid=8, fingerprint="test", num_classes=3)


def _file(folder: Path) -> dict[str, Tensor]:
    sizes = {"num_classes": 4, "in_channels": 5, "width": 16, "grid": 8}
    save_extractor(folder / "ce", CE, "ce", sizes, {})
    loaded = load_extractor(folder / "ce")
    return {"logits": loaded(EMBEDDING), **loaded.state_dict()}


def _fitted(folder: Path) -> list[torch.dtype]:
    """The dtypes alone: torch draws other weights in float64."""
    fit(STORE, folder / "ce", "ce", TrainingRecipe(epochs=1, batch_size=6), width=16, validation=STORE)
    return [tensor.dtype for tensor in load_extractor(folder / "ce").state_dict().values()]


def _bundled() -> list[Tensor]:
    model = zoo.load()
    tokens = torch.arange(256).view(1, 16, 16)
    embedding = cf.embed(tokens, model.vqgm.codebook)
    logits = [extractor(embedding) for extractor in model.extractors.values()]
    images = model.vqgm.decode(tokens)
    return [*logits, images, *(judge(images) for judge in model.judges.values())]


def _taming(folder: Path) -> list[Tensor]:
    (folder / "configs").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    params = {"ddconfig": SMALL["ddconfig"], "n_embed": SMALL["n_embed"], "embed_dim": SMALL["embed_dim"]}
    config = {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}
    (folder / "configs" / "model.yaml").write_text(json.dumps(config))
    torch.save({"state_dict": MODULES[0].state_dict()}, folder / "checkpoints" / "last.ckpt")
    model = load("taming", folder)
    return [model.codebook, model.decode(TOKENS[:1])]


def _captum() -> Tensor:
    module = pytest.importorskip("cortex_fast.compat.captum")
    tunnel = module.NoiseTunnel(module.Saliency(CE))
    return with_seed(lambda: tunnel.attribute(EMBEDDING[:2], target=1, nt_type="vargrad", stdevs=0.5))


def leaves(result: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(result):
        result = vars(result)
    if isinstance(result, dict):
        result = [result[name] for name in sorted(result)]
    if isinstance(result, list | tuple):
        for value in result:
            yield from leaves(value)
    else:
        yield result


@pytest.fixture
def float64_by_default() -> Iterator[Callable[[], None]]:
    before = torch.get_default_dtype()
    yield lambda: torch.set_default_dtype(torch.float64)
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", list(RUNS))
def test_the_default_dtype_changes_nothing(name: str, tmp_path: Path, float64_by_default: Callable[[], None]) -> None:
    if not MODULES:
        prior = {"vocab_size": 20, "block_size": 64, "n_layer": 1, "n_head": 2, "n_embd": 8}
        MODULES.extend(with_seed(lambda: (VQModel(**SMALL), GPT(**prior))))
    wanted = list(leaves(RUNS[name](tmp_path / "one")))
    float64_by_default()
    got = list(leaves(RUNS[name](tmp_path / "two")))
    assert len(got) == len(wanted) > 0
    for value, expected in zip(got, wanted, strict=True):
        if isinstance(value, Tensor):
            assert value.dtype == expected.dtype
            assert torch.equal(value.nan_to_num(nan=-1.0), expected.nan_to_num(nan=-1.0))
        else:
            assert value == expected


@pytest.mark.parametrize("name", ["SingleSaliency", "sample_gumbel", "gumbel_softmax", "decode_input_embedding"])
def test_published_definitions_are_replaced_with_it_too(name: str, float64_by_default: Callable[[], None]) -> None:
    float64_by_default()
    replacer = Replacer()
    assert replacer(name, getattr(cortex, name)) is getattr(cortex, name)
    assert not replacer.left


def test_extractors_built_with_it_are_float64(float64_by_default: Callable[[], None]) -> None:
    float64_by_default()
    extractor, codebook = build("ce", num_classes=4, in_channels=5, width=16, grid=8).eval(), CODEBOOK.double()
    assert {tensor.dtype for tensor in extractor.parameters()} == {torch.float64}
    wide = cf.TokenStore(TOKENS, LABELS, codebook, ("a", "b", "c", "d"))
    assert cf.score_tokens(extractor, wide, num_samples=2, progress=False).dtype == torch.float64
    selection = cf.select_tokens(extractor, codebook, 1, **EDIT)
    assert selection.loss.dtype == torch.float32 and bool(selection.loss.isfinite().all())
