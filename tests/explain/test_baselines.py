"""Drawn tokens: the best draw, its settings and frequencies."""

import math

import pytest
import torch

from cortex_fast import Recipe, draw_tokens, embed
from tests.explain.problems import (
    CHANNELS,
    CLASSES,
    CODES,
    GRID,
    REGION,
    codebook,
    grids,
    targets,
)
from tests.known_extractors import Linear, tiny


@pytest.mark.parametrize("weighted", [False, True])
def test_drawn_tokens_are_the_best_draw(weighted):
    frequency = torch.zeros(3, CODES)
    frequency[:, 2], frequency[:, 9] = 3.0, 1.0
    weights = {"frequency": frequency} if weighted else {}
    extractor = Linear(CHANNELS, GRID, CLASSES).eval()
    got = draw_tokens(
        extractor, codebook(), targets(), tokens=grids(), region=REGION, steps=30, judge_every=10, **weights
    )
    logits = -got.loss
    for row, step in enumerate(got.steps.tolist()[1:], start=1):
        logit = extractor(embed(got.history[row], codebook())).detach().gather(1, targets()[:, None])[:, 0]
        torch.testing.assert_close(logit, logits[:step].amax(dim=0), rtol=1e-4, atol=1e-4)
    inside = got.history[1:, :, 2:5, 2:5]
    if weighted:
        assert set(inside.unique().tolist()) == {2, 9} and 0.5 < float((inside == 2).float().mean()) < 0.95
    else:
        assert len(inside.unique()) == CODES
    assert not got.changed[~got.region].any()


def test_only_a_better_draw_replaces_the_best():
    extractor = Linear(CHANNELS, GRID, CLASSES).eval()
    extractor.weight.data.zero_()
    got = draw_tokens(extractor, codebook(), targets(), tokens=grids(), steps=4, judge_every=1)
    assert (got.history[1:] == got.history[1]).all()


@pytest.mark.parametrize("setting", [{"lr": 0.01}, {"tau": 2.0}, {"restarts": 2}, {"draws": 3}, {"patience": 4}])
def test_drawn_tokens_refuse_settings_without_effect(setting):
    (name,) = setting
    with pytest.raises(TypeError, match=rf"^{name}: expected steps or judge_every for drawn tokens"):
        draw_tokens(tiny("ce"), codebook(), targets(), tokens=grids(), steps=1, **setting)


@pytest.mark.parametrize(
    "setting", [{"restarts": 2}, {"draws": 3}, {"patience": 4}, {"start": "image"}, {"stay_penalty": 0.1}]
)
def test_drawn_tokens_refuse_a_recipe_for_other_methods(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=rf"^{name}: expected .* for drawn tokens, got"):
        draw_tokens(tiny("ce"), codebook(), targets(), tokens=grids(), recipe=Recipe(steps=1, **setting))
    recipe = Recipe(steps=2, lr=0.3, tau=2.0, optimizer="sgd")  # settings of other methods, without effect here
    assert len(draw_tokens(tiny("ce"), codebook(), targets(), tokens=grids(), recipe=recipe).loss) == 2


@pytest.mark.parametrize(
    "frequency", [torch.ones(CODES + 1), -torch.ones(CODES), torch.zeros(CODES), torch.full((CODES,), math.inf), [1.0]]
)
def test_bad_frequencies_are_named(frequency):
    with pytest.raises((ValueError, TypeError), match=r"^frequency:"):
        draw_tokens(tiny("ce"), codebook(), targets(), tokens=grids(), frequency=frequency, steps=1)
