"""Extractors on an easy task, and the published ones against the published code's shapes and figures."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cortex_fast.extractors import NAMES, TrainingRecipe, accuracy, build, train_extractor
from cortex_fast.extractors.te import SelfAttention

OFFICIAL = Path(__file__).parent.parent / "official"
PUBLISHED = {  # the names whose networks are the published code's
    "ce": "ClassificationNet1",
    "ce_deep": "ClassificationNet2",
    "re": "ClassificationNet3",
    "te": "ClassificationNet4",
}
EPOCHS = {"ce": 5, "ce_deep": 10, "re": 6, "te": 2}  # enough to learn the task below; an epoch of te takes long


def test_every_extractor_is_tested():
    assert set(PUBLISHED) <= set(NAMES) == set(EPOCHS)


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


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """The figures of all extractors, by the convolutions of the golden figures: other rounding flips ReLUs."""
    path = tmp_path_factory.mktemp("figures") / "figures.npz"
    script = Path(__file__).parent / "figures.py"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, script, OFFICIAL / "fill.py", path, *PUBLISHED], check=True, env=environment)
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_and_gradients_are_the_published_codes(name, figures):
    with np.load(OFFICIAL / "golden.npz") as golden:
        for key in ("logits", "grad_absmax", "grad_max", "grad_mean"):
            wanted = golden[f"{PUBLISHED[name]}.{key}"]
            assert np.abs(figures[f"{name}.{key}"] - wanted).max() <= 1e-4 * np.abs(wanted).max(), key


@pytest.mark.parametrize(("grid", "width"), [(8, 16), (16, 32), (20, 16), (4, 48), (4, 80), (4, 128)])
@pytest.mark.parametrize("name", NAMES)
def test_other_sizes(name, grid, width):
    extractor = build(name, num_classes=5, in_channels=7, width=width, grid=grid).eval()
    assert extractor(torch.randn(2, 7, grid, grid)).shape == (2, 5)


@pytest.mark.parametrize("name", ["re", "te"])
def test_odd_grids(name):
    assert build(name, num_classes=5, in_channels=7, width=16, grid=5).eval()(torch.randn(2, 7, 5, 5)).shape == (2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_symbolic_trace_serves_any_batch(name):
    extractor = build(name, num_classes=5, in_channels=7, width=16, grid=8).eval()
    traced = torch.fx.symbolic_trace(extractor)
    for batch in (1, 3):
        x = torch.randn(batch, 7, 8, 8)
        assert torch.equal(traced(x), extractor(x))


@pytest.mark.parametrize("name", NAMES)
def test_training_drops_out(name):
    extractor = build(name, num_classes=5, in_channels=7, width=16, grid=8).train()
    x = torch.randn(4, 7, 8, 8)
    assert not torch.equal(extractor(x), extractor(x))  # batch statistics alone would repeat
    extractor.eval()
    assert torch.equal(extractor(x), extractor(x))


@pytest.mark.parametrize(("width", "heads"), [(16, 1), (96, 3), (128, 2), (512, 8)])
def test_attention_is_torchs(width, heads):
    ours, theirs = SelfAttention(width).eval(), torch.nn.MultiheadAttention(width, heads, batch_first=True).eval()
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randn(2, 10, width)
    wanted = theirs(tokens[:, :3], tokens, tokens)[0]
    torch.testing.assert_close(ours(tokens[:, :3], tokens), wanted.flatten(0, 1))


def test_te_without_dropout_and_batch_statistics_trains_what_it_evaluates():
    extractor = _fill().fill_(build("te", num_classes=5, in_channels=7, width=16, grid=5))
    x = torch.randn(3, 7, 5, 5)
    evaluated = extractor(x)  # the last layer's class token only
    extractor.train()
    for module in extractor.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.BatchNorm1d | SelfAttention):
            module.eval()
    torch.testing.assert_close(extractor(x), evaluated)  # every token in every layer


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "vit"}, "name"),
        ({"name": "ce", "width": 40}, "width"),
        ({"name": "ce", "grid": 10}, "grid"),
        ({"name": "ce_deep", "width": 8}, "width"),
        ({"name": "ce_deep", "grid": 6}, "grid"),
        ({"name": "ce_deep", "in_channels": 0}, "in_channels"),
        ({"name": "re", "num_classes": 0}, "num_classes"),
        ({"name": "re", "in_channels": 2.5}, "in_channels"),
        ({"name": "te", "width": 24}, "width"),
        ({"name": "te", "grid": 0}, "grid"),
        ({"name": "te", "num_classes": True}, "num_classes"),
    ],
)
def test_bad_sizes_are_named(arguments, named):
    with pytest.raises((ValueError, TypeError), match=rf"^{named}:"):
        build(**arguments)


def _separable(count: int, seed: int):
    """Grids whose class is the only one of tokens 0 to 3 in their left half."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 20, (count, 8, 8), generator=generator)
    labels = torch.arange(count) % 4
    tokens[:, :, :4] = torch.where(
        torch.rand(count, 8, 4, generator=generator) < 0.3, labels[:, None, None], tokens[:, :, :4]
    )
    return tokens, labels


def _trained(name: str, epochs: int, images: int = 400):
    """An extractor trained on `_separable` grids, its codebook and the loss of each epoch."""
    codebook = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    extractor, losses = build(name, num_classes=4, in_channels=6, width=16, grid=8), []
    recipe = TrainingRecipe(epochs=epochs, batch_size=16, lr=3e-3)
    record = lambda epoch, loss: losses.append(loss)  # noqa: E731
    train_extractor(extractor, codebook, *_separable(images, 1), recipe, seed=3, after_epoch=record)
    return extractor, codebook, losses


@pytest.mark.parametrize("name", NAMES)
def test_training_learns(name):
    extractor, codebook, losses = _trained(name, EPOCHS[name])
    assert not extractor.training
    reached = accuracy(extractor, codebook, *_separable(80, 2), top=(1, 2))
    assert losses[-1] < losses[0] and reached[1] > 0.7 and reached[2] >= reached[1]


# te is slow, and test_training.py resumes it to the same bits.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "te"])
def test_training_repeats(name):
    (first, _, losses), (second, _, again) = (_trained(name, 2, 100) for _ in range(2))
    assert losses == again
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


def test_training_names_tokens_outside_the_codebook():
    extractor = build("re", num_classes=2, in_channels=3, width=16, grid=8)
    with pytest.raises(ValueError, match=r"^tokens:"):
        train_extractor(
            extractor,
            torch.randn(5, 3),
            torch.full((4, 8, 8), 5),
            torch.zeros(4, dtype=torch.int64),
            TrainingRecipe(epochs=1),
        )
