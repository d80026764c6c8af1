"""Scores and the record of what made them: it differs with all that they depend on, and with nothing else."""

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


def test_an_explanation_names_what_made_its_scores():
    extractor, data = network(), store()
    made = concepts_of(extractor, data, seed=4).fingerprint["saliency"]
    assert (made["seed"], made["num_samples"], made["alpha"], made["noise"]) == ("4", "2", "0.2", "shared")
    assert made["made_by"] == "score_tokens" and made["extractor"]["class"] == "torch.nn.modules.container.Sequential"
    assert made["extractor"]["dtype"] == "torch.float32"
    assert made["versions"] == {"cortex-fast": __version__, "torch": torch.__version__}
    for digest in (made["images"], made["extractor"]["weights"], made["extractor"]["modules"]):
        assert re.fullmatch("[0-9a-f]{16}", digest)
    found = score_tokens(extractor, data, seed=4, **SETTINGS)
    assert explain_concepts(extractor, data, top_n=4, top_k=5, tsv=found).fingerprint["saliency"] == made
    assert json.loads(json.dumps(found.fingerprint)) == found.fingerprint == made


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
def test_what_the_scores_depend_on_tells_them_apart(change):
    assert change().fingerprint["saliency"] != concepts_of().fingerprint["saliency"]


def test_with_sigma_of_the_batch_its_size_counts():
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
def test_what_changes_no_score_changes_no_record(change):
    assert change().fingerprint == concepts_of().fingerprint


def test_auto_settles_on_the_top_n_that_is_explained(monkeypatch):
    asked = []

    def spy(*arguments, top_n, **settings):
        asked.append(top_n)
        return real(*arguments, top_n=top_n, **settings)

    real = scores.token_saliency
    monkeypatch.setattr(scores, "token_saliency", spy)
    got = concepts_of(num_samples="auto")  # 16 positions: the default of 20 would be refused
    assert asked == [4] and got.fingerprint["saliency"]["top_n"] == "4"
    assert "top_n" not in concepts_of().fingerprint["saliency"]


def test_scores_given_by_hand_say_so_and_which_they_are():
    one, two = torch.rand(12, 4, 4), torch.rand(12, 4, 4)
    found = [explain_concepts(network(), store(), top_n=4, tsv=tsv).fingerprint for tsv in (one, one.clone(), two)]
    assert found[0] == found[1] != found[2]
    assert found[0]["saliency"]["made_by"] == "given as tsv" and "extractor" not in found[0]["saliency"]


def test_what_is_computed_from_scores_or_written_into_them_is_given_by_hand():
    found = score_tokens(network(), store(), **SETTINGS)
    assert type(found) is Scores and found.unchanged
    for plain in (found[:], found * 1, found.clone(), found.double(), found.detach(), torch.stack([found])[0]):
        assert type(plain) is torch.Tensor
    found[0, 0, 0] += 1
    assert not found.unchanged
    for tsv in (found, found * 1):
        made = explain_concepts(network(), store(), top_n=4, tsv=tsv).fingerprint["saliency"]
        assert made["made_by"] == "given as tsv"


def test_files_and_copies_of_scores(tmp_path):
    found = score_tokens(network(), store(), **SETTINGS)
    found.save(tmp_path / "tsv")
    for same in (Scores.load(tmp_path / "tsv"), copy.deepcopy(found)):
        assert type(same) is Scores and torch.equal(same, found) and same.fingerprint == found.fingerprint
    torch.save(found, tmp_path / "torchs")
    for plain in (torch.load(tmp_path / "torchs"), pickle.loads(pickle.dumps(found))):
        assert type(plain) is torch.Tensor and torch.equal(plain, found)
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
def test_settings_are_looked_at_whether_they_are_needed_or_not(count, settings):
    (named,) = settings
    with pytest.raises((TypeError, ValueError), match=rf"^{named}: expected"):
        score_tokens(network(), store(count), progress=False, **settings)


def test_an_empty_data_set_has_empty_scores():
    found = score_tokens(network(), store(0), **SETTINGS)
    assert found.shape == (0, 4, 4) and found.fingerprint["made_by"] == "score_tokens"
