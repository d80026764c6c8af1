"""Scores and their fingerprint: it differs with everything that they depend on, and with nothing else."""

import copy
import json
import pickle
import re

import pytest
import torch
from torch import nn

from cortex_fast import ResultFileError, Scores, TokenStore, __version__, explain_concepts, score_tokens
from cortex_fast.engine import prepare
from cortex_fast.explain import scores
from tests.known_extractors import Convolutional

NAMES = ("red", "green", "blue")
SETTINGS = {"num_samples": 2, "progress": False}


def store(count=12, **changes):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(9, (count, 4, 4), generator=generator)
    labels, codebook = torch.arange(count) % 3, torch.randn(9, 5, generator=generator)
    given = {"tokens": tokens, "labels": labels, "codebook": codebook, "names": NAMES}
    return TokenStore(**(given | {name: change(given[name]) for name, change in changes.items()}))


def network(activation=nn.ReLU, classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(5, 8, 3, padding=1), activation(), nn.Flatten(), nn.Linear(128, classes)).eval()


def changed(extractor):
    other = copy.deepcopy(extractor)
    with torch.no_grad():
        other[0].bias[3] += 1e-3
    return other


def concepts_of(extractor=None, data=None, **settings):
    return explain_concepts(extractor or network(), data or store(), top_n=4, top_k=5, **(SETTINGS | settings))


def test_an_explanation_includes_its_scores_fingerprint():
    extractor, data = network(), store()
    saliency = concepts_of(extractor, data, seed=4).fingerprint["saliency"]
    assert [saliency[name] for name in ("seed", "num_samples", "alpha", "noise")] == ["4", "2", "0.2", "shared"]
    assert saliency["made_by"] == "score_tokens"
    assert saliency["extractor"]["class"] == "torch.nn.modules.container.Sequential"
    assert saliency["extractor"]["dtype"] == "torch.float32"
    assert saliency["versions"] == {"cortex-fast": __version__, "torch": torch.__version__}
    for digest in (saliency["images"], saliency["extractor"]["weights"], saliency["extractor"]["modules"]):
        assert re.fullmatch("[0-9a-f]{16}", digest)
    tsv = score_tokens(extractor, data, seed=4, **SETTINGS)
    assert explain_concepts(extractor, data, top_n=4, top_k=5, tsv=tsv).fingerprint["saliency"] == saliency
    assert json.loads(json.dumps(tsv.fingerprint)) == tsv.fingerprint == saliency


@pytest.mark.parametrize(
    "change",
    [
        lambda: concepts_of(changed(network())),
        lambda: concepts_of(network(nn.GELU)),
        lambda: concepts_of(Convolutional(5, 3).eval()),
        lambda: concepts_of(prepare(network(), store().embedding(slice(1)), precision="bfloat16")),
        lambda: concepts_of(seed=1),
        lambda: concepts_of(num_samples=3),
        lambda: concepts_of(num_samples="auto"),
        lambda: concepts_of(alpha=0.1),
        lambda: concepts_of(noise="independent"),
        lambda: concepts_of(antithetic=True),
        lambda: concepts_of(reduction="max"),
        lambda: concepts_of(data=store(tokens=lambda tokens: tokens.flip(0))),
        lambda: concepts_of(data=store(labels=lambda labels: labels.flip(0))),
        lambda: concepts_of(data=store(codebook=lambda codebook: codebook * 1.001)),
    ],
    ids=[
        *("weights", "activation", "class", "precision", "seed", "samples", "auto", "alpha", "noise", "antithetic"),
        *("reduction", "tokens", "labels", "codebook"),
    ],
)
def test_the_fingerprint_differs_with_what_the_scores_depend_on(change):
    assert change().fingerprint["saliency"] != concepts_of().fingerprint["saliency"]


def test_the_fingerprint_of_sigma_by_batch_has_its_size():
    two, three = (concepts_of(sigma_range="batch", batch_size=size).fingerprint for size in (2, 3))
    assert two["saliency"] != three["saliency"]


@pytest.mark.parametrize(
    "change",
    [
        lambda: concepts_of(copy.deepcopy(network())),
        lambda: concepts_of(network().to(memory_format=torch.channels_last)),
        lambda: concepts_of(prepare(network(), store().embedding(slice(1)))),
        lambda: concepts_of(memory=1),
        lambda: concepts_of(batch_size=5),
        lambda: concepts_of(description="scoring"),
        lambda: concepts_of(alpha=torch.tensor(0.2, dtype=torch.float64)),
        lambda: concepts_of(data=store(tokens=lambda tokens: tokens.int())),
    ],
    ids=["copy", "channels last", "prepared", "memory", "batch", "title", "scalar", "dtype"],
)
def test_what_changes_no_score_changes_no_fingerprint(change):
    assert change().fingerprint == concepts_of().fingerprint


def test_auto_compares_the_top_n_of_the_explanation(monkeypatch):
    asked = []

    def spy(*arguments, top_n, **settings):
        asked.append(top_n)
        return real(*arguments, top_n=top_n, **settings)

    real = scores.token_saliency
    monkeypatch.setattr(scores, "token_saliency", spy)
    got = concepts_of(num_samples="auto")  # 16 positions: the default of 20 would be refused
    assert asked == [4] and got.fingerprint["saliency"]["top_n"] == "4"
    assert "top_n" not in concepts_of().fingerprint["saliency"]


def test_given_tensors_are_named_as_such_with_their_digest():
    tsv, other = torch.rand(12, 4, 4), torch.rand(12, 4, 4)
    first, same, different = (
        explain_concepts(network(), store(), top_n=4, tsv=scores).fingerprint for scores in (tsv, tsv.clone(), other)
    )
    assert first == same != different
    assert first["saliency"]["made_by"] == "given as tsv" and "extractor" not in first["saliency"]


def test_results_computed_from_scores_and_changed_scores_count_as_given():
    tsv = score_tokens(network(), store(), **SETTINGS)
    assert type(tsv) is Scores and tsv.unchanged
    for plain in (tsv[:], tsv * 1, tsv.clone(), tsv.double(), tsv.detach(), torch.stack([tsv])[0]):
        assert type(plain) is torch.Tensor
    tsv[0, 0, 0] += 1
    assert not tsv.unchanged
    for changed_tsv in (tsv, tsv * 1):
        saliency = explain_concepts(network(), store(), top_n=4, tsv=changed_tsv).fingerprint["saliency"]
        assert saliency["made_by"] == "given as tsv"


def test_files_and_copies_of_scores(tmp_path):
    tsv = score_tokens(network(), store(), **SETTINGS)
    tsv.save(tmp_path / "tsv")
    for same in (Scores.load(tmp_path / "tsv"), copy.deepcopy(tsv)):
        assert type(same) is Scores and torch.equal(same, tsv) and same.fingerprint == tsv.fingerprint
    torch.save(tsv, tmp_path / "torchs")
    for plain in (torch.load(tmp_path / "torchs"), pickle.loads(pickle.dumps(tsv))):
        assert type(plain) is torch.Tensor and torch.equal(plain, tsv)
    store().save(tmp_path / "tokens")
    with pytest.raises(ResultFileError, match="tokens"):
        Scores.load(tmp_path / "tokens")


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"samples": 3},
        {"num_samples": 0},
        {"alpha": -1},
        {"top_n": 0},
        {"antithetic": 1},
        {"reduction": "s"},
        {"memory": 0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_are_checked_for_empty_data_sets_too(count, settings):
    (name,) = settings
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: expected"):
        score_tokens(network(), store(count), progress=False, **settings)


def test_an_empty_data_set_has_empty_scores():
    tsv = score_tokens(network(), store(0), **SETTINGS)
    assert tsv.shape == (0, 4, 4) and tsv.fingerprint["made_by"] == "score_tokens"
