"""Labels, ids, counts and rates from numpy, torch, lists and tuples mean what Python's own numbers do, everywhere."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cortex_fast as cf
from cortex_fast import evaluate
from cortex_fast.data.classes import names_of
from cortex_fast.engine import prepare
from cortex_fast.extractors import TrainingRecipe, load_extractor, save_extractor, train_extractor
from cortex_fast.extractors.fitting import fit
from cortex_fast.vqgm import GPT, VQModel, sample_store, taming_model
from tests.known_extractors import tiny
from tests.test_default_dtype import CODEBOOK, EMBEDDING, IMAGES, JUDGES, LABELS, TOKENS, TSV, decode, leaves, with_seed
from tests.vqgm.test_autoencoder import SMALL

NAMES = ("golden retriever", "cat", "tabby cat", "fish")
CE = tiny("ce")
CE.names = NAMES
LISTED = LABELS.tolist()
VECTORS = {
    "list": lambda vector: vector.tolist(),
    "tuple": lambda vector: tuple(vector.tolist()),
    "int32 array": lambda vector: vector.numpy().astype(np.int32),
    "big-endian array": lambda vector: vector.numpy().astype(">i8"),
    "every other": lambda vector: np.repeat(vector.numpy(), 2, axis=0)[::2],
    "read-only": lambda vector: np.frombuffer(vector.numpy().tobytes(), np.int64).reshape(vector.shape),
    "numpy's scalars": lambda vector: list(vector.numpy()),
    "torch's scalars": lambda vector: list(vector),
    "uint8 tensor": lambda vector: vector.to(torch.uint8),
}
SCALARS = {
    "numpy": (np.int64, np.float64),
    "small numpy": (np.uint8, lambda value: np.float64(value)),
    "0-d arrays": (np.array, np.array),
    "0-d tensors": (torch.tensor, lambda value: torch.tensor(value, dtype=torch.float64)),
}


def same(got: Any, wanted: Any) -> None:
    got, wanted = list(leaves(got)), list(leaves(wanted))
    assert len(got) == len(wanted) > 0
    for value, expected in zip(got, wanted, strict=True):
        if isinstance(value, Tensor):
            assert torch.equal(value.nan_to_num(nan=-1.0), expected.nan_to_num(nan=-1.0))
        else:
            assert value == expected and type(value) is type(expected)


BY_LABELS: dict[str, Callable[[Any], Any]] = {
    "smoothgrad": lambda labels: cf.smoothgrad(CE, EMBEDDING, labels, num_samples=2),
    "token_saliency": lambda labels: cf.token_saliency(
        CE, EMBEDDING, LABELS, num_samples=2, noise="independent", item_ids=labels
    ),
    "select_tokens": lambda labels: cf.select_tokens(
        CE, CODEBOOK, labels, tokens=TOKENS, region=(1, 1, 4, 5), steps=2, item_ids=labels
    ),
    "select_tokens of no image": lambda labels: cf.select_tokens(CE, CODEBOOK, labels, grid=8, steps=1),
    "optimise_embedding": lambda labels: cf.optimise_embedding(CE, CODEBOOK, labels, tokens=TOKENS, steps=2),
    "draw_tokens": lambda labels: cf.draw_tokens(CE, CODEBOOK, labels, tokens=TOKENS, steps=2, item_ids=labels),
    "TokenStore": lambda labels: cf.TokenStore(TOKENS, labels, CODEBOOK, NAMES).labels,
    "of_class": lambda labels: evaluate.of_class(evaluate.probabilities(JUDGES, IMAGES), labels),
    "correct": lambda labels: evaluate.correct(evaluate.probabilities(JUDGES, IMAGES), labels),
    "image_level": lambda labels: evaluate.image_level(JUDGES, IMAGES, TOKENS, TSV, labels, ns=(3, 9)),
    "concept_level": lambda labels: evaluate.concept_level(
        JUDGES, IMAGES, TOKENS, labels, TOKENS[:4, 0, :3], TOKENS[:4, 1, :3]
    ),
    "intervention": lambda labels: evaluate.intervention(JUDGES, decode, TOKENS, TSV, labels, ns=(2, 5)),
    "grounding": lambda labels: evaluate.grounding(TSV, TOKENS, labels, TSV > 0.5, torch.arange(48).view(4, 12), 9),
    "edit_scores": lambda labels: evaluate.edit_scores(JUDGES, decode, TOKENS, {"new": TOKENS.flip(0)}, labels, labels),
    "captum": lambda labels: _captum(labels),
    "published": lambda labels: _published(labels),
}


def _captum(labels: Any) -> Tensor:
    module = pytest.importorskip("cortex_fast.compat.captum")
    return with_seed(lambda: module.TokenSaliency(CE).attribute(EMBEDDING, labels, nt_samples=2))


def _published(labels: Any) -> Tensor:
    from cortex_fast.compat.cortex import AverageSaliency

    return AverageSaliency(CE).get_grad(EMBEDDING, labels)


# the quick ones see every kind; all go through the same functions
QUICK = ("TokenStore", "of_class", "correct", "grounding")
PAIRS = [(name, kind) for name in BY_LABELS for kind in (VECTORS if name in QUICK else ("list", "big-endian array"))]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_labels_and_ids_of_every_kind(name: str, kind: str) -> None:
    same(BY_LABELS[name](VECTORS[kind](LABELS)), BY_LABELS[name](LABELS))


BAD = {
    "too few": (LISTED[:-1], ValueError),
    "floats": ([float(label) for label in LISTED], TypeError),
    "booleans": ([label > 0 for label in LISTED], TypeError),
    "negative": ([*LISTED[:-1], -1], ValueError),
    "too large": ([*LISTED[:-1], 4], ValueError),
    "float array": (np.array(LISTED, dtype=np.float32), TypeError),
    "None": ([*LISTED[:-1], None], TypeError),
    "too many": ([*LISTED, 0], ValueError),
    "none": ([], ValueError),
    "65 bits": ([*LISTED[:-1], 2**64], ValueError),
    "nested": ([LISTED], TypeError),
    "boolean array": (np.array(LISTED) > 0, TypeError),
    "matrix": (np.array(LISTED)[None], ValueError),
    "objects": (np.array(LISTED, dtype=object), TypeError),
    "masked": (np.ma.array(LISTED, mask=[True] * 6), TypeError),
    "float tensor": (LABELS.double(), TypeError),
    "boolean tensor": (LABELS > 0, TypeError),
    "set": (set(LISTED), TypeError),
}
OF_LABELS = [name for name in BY_LABELS if name not in ("token_saliency", "select_tokens of no image")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in OF_LABELS for kind in (BAD if name in (*QUICK, "smoothgrad") else list(BAD)[:6])],
)
def test_labels_that_fit_nothing_are_named(name: str, kind: str) -> None:
    labels, error = BAD[kind]
    with pytest.raises(error, match=r"^(target|labels|source|target_indices): expected"):
        BY_LABELS[name](labels)


@pytest.mark.parametrize("target", [np.int64(1), np.uint8(1), np.array(1), torch.tensor(1).short()], ids=repr)
def test_one_target_for_all(target: Any) -> None:
    same(cf.smoothgrad(CE, EMBEDDING, target, num_samples=2), cf.smoothgrad(CE, EMBEDDING, [1] * 6, num_samples=2))
    settings = {"tokens": TOKENS[:2], "steps": 2}
    same(cf.select_tokens(CE, CODEBOOK, target, **settings), cf.select_tokens(CE, CODEBOOK, [1, 1], **settings))


@pytest.mark.parametrize("kind", list(SCALARS))
def test_counts_and_rates_of_every_kind(kind: str, tmp_path: Path) -> None:
    whole, real = SCALARS[kind]
    same(
        cf.token_saliency(CE, EMBEDDING, 1, num_samples=whole(3), seed=whole(4), alpha=real(0.25), memory=whole(99)),
        cf.token_saliency(CE, EMBEDDING, 1, num_samples=3, seed=4, alpha=0.25, memory=99),
    )
    same(cf.top_tokens(TSV, TOKENS, whole(5)), cf.top_tokens(TSV, TOKENS, 5))
    store = cf.TokenStore(TOKENS, LABELS, CODEBOOK, NAMES)
    plain, given = (
        cf.explain_concepts(
            CE, store, top_n=n(9), top_k=n(4), examples=n(2), batch_size=n(4), num_samples=n(2), progress=False
        )
        for n in (int, whole)
    )
    given.save(tmp_path / "concepts")  # its header is JSON
    same(cf.ConceptExplanations.load(tmp_path / "concepts"), plain)
    selections = []
    for n, x in ((int, float), (whole, real)):
        recipe = cf.Recipe(
            steps=n(4), judge_every=n(2), lr=cf.Schedule(x(0.5), x(0.25)), tau=x(1.5), stay_penalty=x(0.125)
        )
        settings = {"tokens": TOKENS[:2], "seed": n(3), "restarts": n(2), "patience": n(3), "memory": n(100)}
        selected = cf.select_tokens(CE, CODEBOOK, 1, recipe=recipe, **settings)
        selected.save(tmp_path / "selection")
        selections.append(cf.TokenSelection.load(tmp_path / "selection"))
        assert selected.changes(n(1)) == selections[0].changes(1)
    same(*selections)
    assert evaluate.image_level(JUDGES, IMAGES, TOKENS, TSV, LABELS, ns=[whole(3)], seed=whole(1)).ns == (3,)
    assert type(TrainingRecipe(epochs=whole(3), lr=real(0.5)).lr) is float


@pytest.mark.parametrize(
    "change", [{"num_samples": 2.0}, {"seed": 1.5}, {"alpha": "0.2"}, {"alpha": True}, {"memory": [1]}]
)
def test_other_kinds_of_numbers_are_named(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(TypeError, match=rf"^{name}: expected a .*number"):
        cf.smoothgrad(CE, EMBEDDING, 1, **change)


def test_tokens_masks_boxes_and_frequencies_from_numpy() -> None:
    tokens, mask = TOKENS[:2], torch.zeros(8, 8, dtype=torch.bool).index_fill(0, torch.tensor([2]), True)
    banned, frequency = torch.arange(12) % 3 == 0, torch.arange(12)
    settings = {"steps": 2, "seed": 1}
    wanted = cf.select_tokens(CE, CODEBOOK, 1, tokens=tokens, region=mask, banned=banned, **settings)
    got = cf.select_tokens(
        CE, CODEBOOK, 1, tokens=tokens.numpy(), region=mask.numpy(), banned=banned.numpy(), **settings
    )
    same(got, wanted)
    box = np.array([1, 1, 4, 5])
    same(
        cf.draw_tokens(CE, CODEBOOK, 1, tokens=tokens, region=box, frequency=frequency.tolist(), steps=2),
        cf.draw_tokens(CE, CODEBOOK, 1, tokens=tokens, region=(1, 1, 4, 5), frequency=frequency, steps=2),
    )
    same(cf.embed(tokens.numpy().astype(np.uint16), CODEBOOK), cf.embed(tokens, CODEBOOK))
    same(cf.top_tokens(TSV, TOKENS.numpy(), 3), cf.top_tokens(TSV, TOKENS, 3))
    both = ((TOKENS.numpy(), LISTED), (TOKENS, LABELS))
    stores = [cf.TokenStore(given, labels, CODEBOOK, NAMES) for given, labels in both]
    assert torch.equal(*(store.tokens.int() for store in stores)) and torch.equal(*(store.labels for store in stores))
    with pytest.raises(TypeError, match=r"^banned: expected a boolean tensor, got "):
        cf.select_tokens(CE, CODEBOOK, 1, tokens=tokens, banned=banned.tolist(), **settings)


def test_classes_by_name(tmp_path: Path) -> None:
    named = [NAMES[label] for label in LISTED]
    for labels in (named, tuple(named), np.array(named), [*named[:3], *LISTED[3:]]):
        for name in ("smoothgrad", "select_tokens of no image", "TokenStore", "captum"):
            same(BY_LABELS[name](labels), BY_LABELS[name](LABELS))
    prepared = prepare(CE, EMBEDDING, copies=12)
    same(cf.smoothgrad(prepared, EMBEDDING, "cat", num_samples=2), cf.smoothgrad(CE, EMBEDDING, 1, num_samples=2))
    assert cf.TokenStore(TOKENS, LABELS, CODEBOOK, NAMES).label("fish") == 3
    paths = cf.select_concepts(CE, CODEBOOK, tmp_path, classes="fish", grid=8, steps=1)
    assert paths == [tmp_path / "concept-0003.safetensors"]
    assert cf.select_concepts(CE, CODEBOOK, tmp_path, classes=["fish", 0], grid=8, steps=1)[1].name[-16] == "0"


def test_an_unknown_name_is_reported_with_similar_names() -> None:
    for name, call in {"target": BY_LABELS["smoothgrad"], "labels": BY_LABELS["TokenStore"]}.items():
        message = rf"^{name}: expected one of 4 names, such as 'tabby cat', 'cat', got 'tabycat'"
        with pytest.raises(ValueError, match=message):
            call(["tabycat"] * 6)
    with pytest.raises(ValueError, match="'golden retriever', got 'golden retreiver'"):
        cf.select_tokens(CE, CODEBOOK, "golden retreiver", steps=1, grid=8)
    nameless = tiny("ce")
    with pytest.raises(ValueError, match=r"^target: expected a class number, got 'cat': there are no names"):
        cf.smoothgrad(nameless, EMBEDDING, "cat")
    twice = tiny("ce")
    twice.names = ("cat", "dog", "cat", "fish")
    with pytest.raises(ValueError, match=r"^target: expected the name of one class, got 'cat', .* \[0, 2\]"):
        cf.smoothgrad(twice, EMBEDDING, "cat")


def test_names_come_with_configurations_files_and_trainings(tmp_path: Path) -> None:
    configured = tiny("ce")
    configured.config = SimpleNamespace(id2label=dict(enumerate(NAMES)))
    wanted = cf.smoothgrad(CE, EMBEDDING, 2, num_samples=2)
    same(cf.smoothgrad(configured, EMBEDDING, "tabby cat", num_samples=2), wanted)
    assert names_of(SimpleNamespace(names=dict(enumerate(NAMES)))) == NAMES
    assert names_of(SimpleNamespace(names={1: "cat"})) == names_of(SimpleNamespace(names=["a", 3])) == ()
    sizes = {"num_classes": 4, "in_channels": 5, "width": 16, "grid": 8}
    save_extractor(tmp_path / "ce", CE, "ce", sizes, {})
    same(cf.smoothgrad(load_extractor(tmp_path / "ce"), EMBEDDING, "tabby cat", num_samples=2), wanted)
    save_extractor(tmp_path / "nameless", tiny("ce"), "ce", sizes, {})
    assert load_extractor(tmp_path / "nameless").names == ()
    store = cf.TokenStore(TOKENS, LABELS, CODEBOOK, NAMES)
    fit(store, tmp_path / "fitted", "ce", TrainingRecipe(epochs=0), width=16)
    assert load_extractor(tmp_path / "fitted").names == NAMES


def test_sampling_takes_labels_of_every_kind(tmp_path: Path) -> None:
    prior = {"vocab_size": 20, "block_size": 64, "n_layer": 1, "n_head": 2, "n_embd": 8}
    model = taming_model(*with_seed(lambda: (VQModel(**SMALL), GPT(**prior))), grid=8, fingerprint="x", num_classes=3)
    wanted = model.sample(torch.tensor([2, 1]), seed=1, item_ids=torch.tensor([4, 9]))
    for kind in (list, np.array, tuple):
        same(model.sample(kind([2, 1]), seed=np.int64(1), item_ids=kind([4, 9])), wanted)
    same(model.sample(np.int64(2), np.int64(1), seed=1), model.sample(2, 1, seed=1))
    for bad in ([0.5], [True], ["a"], [-1], [3], 1.5, None):
        with pytest.raises((TypeError, ValueError), match=r"^condition: expected|^n: expected"):
            model.sample(bad)
    stores = [sample_store(model, labels, tmp_path / str(number), names="abc", batch_size=np.int64(2))
              for number, labels in enumerate((torch.tensor([2, 1]), [2, 1], ["c", "b"]))]  # fmt: skip
    same([store.tokens.int() for store in stores[1:]], [stores[0].tokens.int()] * 2)
    assert stores[0].fingerprint == stores[1].fingerprint == stores[2].fingerprint


def test_training_takes_arrays() -> None:
    weights = []
    for tokens, labels in ((TOKENS, LABELS), (TOKENS.numpy().astype(np.uint16), LISTED)):
        extractor: nn.Module = tiny("ce")
        recipe = TrainingRecipe(epochs=np.int64(1), batch_size=np.int64(3))
        train_extractor(extractor, CODEBOOK, tokens, labels, recipe, seed=np.int64(2))
        weights.append(extractor.state_dict())
    same(*weights)
