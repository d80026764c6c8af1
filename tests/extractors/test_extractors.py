"""Extractors against the published code's shapes and figures, and the training recipe on a task that can be learnt."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cortex_fast.extractors import Recipe, accuracy, build, train_extractor

OFFICIAL = Path(__file__).parent.parent / "official"
PUBLISHED = {"ce": "ClassificationNet1", "re": "ClassificationNet3"}


def _fill():
    spec = importlib.util.spec_from_file_location("official_fill", OFFICIAL / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PUBLISHED)
def test_state_dict_is_the_published_one(name):
    wanted = json.loads((OFFICIAL / "state_dict_shapes.json").read_text())[PUBLISHED[name]]
    with torch.device("meta"):
        got = {key: list(value.shape) for key, value in build(name).state_dict().items()}
    assert got == wanted


@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_and_gradients_are_the_published_codes(name):
    fill = _fill()
    extractor = fill.fill_(build(name))
    x, target = fill.inputs(3)
    x.requires_grad_(True)
    logits = extractor(x)
    logits.gather(1, target[:, None]).sum().backward()
    gradient = x.grad
    figures = {
        "logits": logits.detach(),
        "grad_absmax": gradient.abs().amax(dim=1),
        "grad_max": gradient.amax(dim=1),
        "grad_mean": gradient.mean(dim=1),
    }
    with np.load(OFFICIAL / "golden.npz") as golden:
        for key, value in figures.items():
            wanted = golden[f"{PUBLISHED[name]}.{key}"]
            assert np.abs(value.numpy() - wanted).max() <= 1e-4 * np.abs(wanted).max(), key


@pytest.mark.parametrize(("grid", "width"), [(8, 16), (16, 32), (20, 16)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_other_sizes(name, grid, width):
    extractor = build(name, num_classes=5, in_channels=7, width=width, grid=grid).eval()
    assert extractor(torch.randn(2, 7, grid, grid)).shape == (2, 5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "vit"}, "name"),
        ({"name": "ce", "width": 40}, "width"),
        ({"name": "ce", "grid": 10}, "grid"),
        ({"name": "re", "num_classes": 0}, "num_classes"),
        ({"name": "re", "in_channels": 2.5}, "in_channels"),
    ],
)
def test_bad_sizes_are_named(arguments, named):
    with pytest.raises((ValueError, TypeError), match=rf"^{named}:"):
        build(**arguments)


def _separable(count: int, seed: int):
    """Grids whose class is the only one of four tokens that occurs in their left half."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 20, (count, 8, 8), generator=generator)
    labels = torch.arange(count) % 4
    tokens[:, :, :4] = torch.where(
        torch.rand(count, 8, 4, generator=generator) < 0.3, labels[:, None, None], tokens[:, :, :4]
    )
    return tokens, labels


@pytest.mark.parametrize("name", PUBLISHED)
def test_training_learns_and_repeats(name):
    codebook = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    tokens, labels = _separable(400, 1)
    logits = []
    for _ in range(2):
        torch.manual_seed(0)
        extractor = build(name, num_classes=4, in_channels=6, width=16, grid=8)
        losses = []
        train_extractor(
            extractor,
            codebook,
            tokens,
            labels,
            Recipe(epochs=8, batch_size=16, lr=3e-3),
            seed=3,
            after_epoch=lambda epoch, loss, losses=losses: losses.append(loss),
        )
        assert not extractor.training
        held_out, truth = _separable(80, 2)
        reached = accuracy(extractor, codebook, held_out, truth, top=(1, 2))
        assert losses[-1] < losses[0] and reached[1] > 0.7 and reached[2] >= reached[1]
        logits.append(extractor(torch.nn.functional.embedding(held_out, codebook).permute(0, 3, 1, 2)))
    assert torch.equal(*logits)


def test_training_names_tokens_outside_the_codebook():
    extractor = build("re", num_classes=2, in_channels=3, width=16, grid=8)
    with pytest.raises(ValueError, match=r"^tokens:"):
        train_extractor(
            extractor, torch.randn(5, 3), torch.full((4, 8, 8), 5), torch.zeros(4, dtype=torch.int64), Recipe(epochs=1)
        )
