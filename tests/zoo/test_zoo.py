"""The bundled model reaches the figures of its card, on small samples and with much lower bounds."""

import re

import pytest
import torch

from cortex_fast import evaluate, zoo
from cortex_fast.extractors import accuracy
from cortex_fast.zoo.composites import make_composites
from cortex_fast.zoo.weight_files import load_weights, save_weights


@pytest.fixture(scope="module")
def model():
    return zoo.load()


@pytest.fixture(scope="module")
def composites():
    result = make_composites("test", 5000, 60)
    return torch.from_numpy(result.images).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(result.labels)


@pytest.fixture(scope="module")
def samples(model):
    labels = torch.arange(24) % 12
    return model.vqgm.sample(labels, seed=77), labels


def test_weights_are_small_and_licences_exist():
    assert sum(file.stat().st_size for file in zoo.FOLDER.glob("*.safetensors")) <= 15e6
    folder = zoo.FOLDER.parent
    notice = (folder / "NOTICE").read_text()
    for package in ("noto", "noto-v1", "fxemoji", "fluent-emoji-flat", "fluent-emoji-3d"):
        assert f"/{package} " in notice
    assert "Apache License" in (folder / "LICENSE-APACHE-2.0").read_text()
    assert "MIT License" in (folder / "LICENSE-MIT").read_text()
    assert re.search(r"\| ce: top 1 on held-out samples \| 0\.\d{3} \|", (folder / "MODEL_CARD.md").read_text())


def test_tokenizer_reconstructs(model, composites):
    images, _ = composites
    tokens = model.vqgm.encode(images)
    assert tokens.shape == (60, 16, 16) and len(tokens.unique()) > 256
    error = (model.vqgm.decode(tokens) - images).square().mean(dim=(1, 2, 3))
    assert float((-10 * error.log10()).mean()) > 25  # dB


def test_judges_know_composites(model, composites):
    images, labels = composites
    correct = evaluate.correct(evaluate.probabilities(model.judges, images), labels).mean(dim=1)
    assert len(model.judges) == 4 and correct.min() > 0.8


def test_extractors_and_judges_know_samples(model, samples):
    tokens, labels = samples
    for extractor in model.extractors.values():
        assert accuracy(extractor, model.vqgm.codebook, tokens, labels)[1] > 0.53  # the paper's figure on 1000 classes
    correct = evaluate.correct(evaluate.probabilities(model.judges, model.vqgm.decode(tokens)), labels)
    assert correct.mean() > 0.5  # pixels only, independent of tokens: chance is 0.083


def test_samples_are_the_same_in_any_batch(model, samples):
    tokens, labels = samples
    part = model.vqgm.sample(labels[20:], seed=77, item_ids=torch.arange(20, 24))
    assert (part == tokens[20:]).float().mean() > 0.98  # products of another batch size may round a tie differently


@pytest.mark.parametrize("condition", [12, -1, torch.tensor([0, 12]), 1.5])
def test_unknown_classes_are_refused(model, condition):
    with pytest.raises((ValueError, TypeError), match=r"^condition:"):
        model.vqgm.sample(condition, None if isinstance(condition, torch.Tensor) else 2)


def test_judges_of_different_size(model):
    sizes = [sum(p.numel() for p in judge.parameters()) for judge in model.judges.values()]
    assert len(set(sizes)) == 4
    assert {type(judge).__name__ for judge in model.judges.values()} == {"ResidualJudge", "TransformerJudge"}


def test_everything_is_in_eval_mode_without_parameter_gradients(model):
    for module in (*model.extractors.values(), *model.judges.values(), model.tokenizer, model.prior):
        assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())


def test_weight_files_round_trip(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    save_weights(tmp_path / "m.safetensors", module, {"a": [1, 2]})
    again = load_weights(
        tmp_path / "m.safetensors", torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    )
    for key, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.half().float() if value.is_floating_point() else value)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.safetensors"):
        zoo.load(tmp_path)
