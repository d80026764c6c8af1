"""Allowed and banned tokens."""

import math

import pytest
import torch

from cortex_fast import select_tokens
from tests.explain.problems import (
    CHANNELS,
    CLASSES,
    CODES,
    GRID,
    REGION,
    assert_same,
    codebook,
    grids,
    targets,
)
from tests.known_extractors import Linear, tiny


def test_only_allowed_tokens_are_taken():
    rows = 9
    allowed = torch.zeros(3, rows, CODES, dtype=torch.bool)
    allowed[0, :, :3] = True
    allowed[1, :, 5:] = True
    allowed[2, range(rows), [position % CODES for position in range(rows)]] = True
    arguments = {"tokens": grids(), "region": REGION, "steps": 20, "lr": 0.5, "judge_every": 20}
    for optimizer in ("adam", "sgd"):
        got = select_tokens(tiny("ce"), codebook(), targets(), allowed=allowed, optimizer=optimizer, **arguments)
        last = got.history[-1, :, 2:5, 2:5].flatten(1)
        assert (last[0] < 3).all() and (last[1] >= 5).all() and last[2].tolist() == list(range(rows))
        assert got.loss.isfinite().all()
    many = select_tokens(tiny("ce"), codebook(), targets(), allowed=allowed, restarts=2, **arguments)
    last = many.history[-1, :, 2:5, 2:5].flatten(1)
    assert (last[0] < 3).all() and (last[1] >= 5).all() and last[2].tolist() == list(range(rows))
    drawn = select_tokens(tiny("ce"), codebook(), targets(), allowed=allowed[0, 0], restarts=2, draws=2, **arguments)
    assert (drawn.history[-1, :, 2:5, 2:5] < 3).all()


def test_banned_is_the_complement_of_allowed():
    banned = torch.rand(9, CODES, generator=torch.Generator().manual_seed(5)) < 0.4
    some = torch.arange(CODES) % 4 > 0
    arguments = {"tokens": grids(), "region": REGION, "steps": 8, "lr": 0.5}
    got = select_tokens(tiny("ce"), codebook(), targets(), banned=banned, **arguments)
    other = select_tokens(tiny("ce"), codebook(), targets(), allowed=~banned, **arguments)
    assert_same(got, other)
    assert got.fingerprint == other.fingerprint
    both = select_tokens(tiny("ce"), codebook(), targets(), banned=banned, allowed=some, **arguments)
    taken = both.history[-1, :, 2:5, 2:5].flatten(1)
    assert some[taken].all() and not banned.expand(3, -1, -1).gather(2, taken[..., None]).any()
    with pytest.raises(ValueError, match=r"^banned:"):
        select_tokens(tiny("ce"), codebook(), targets(), banned=torch.ones(CODES, dtype=torch.bool), **arguments)


@pytest.mark.parametrize(
    "allowed",
    [torch.ones(CODES + 1, dtype=torch.bool), torch.ones(CODES), torch.zeros(CODES, dtype=torch.bool), [True] * CODES],
)
def test_bad_allowed_is_named(allowed):
    with pytest.raises((ValueError, TypeError), match=r"^allowed:"):
        select_tokens(tiny("ce"), codebook(), targets(), tokens=grids(), allowed=allowed, steps=1)


def test_infinite_logits_of_forbidden_tokens_stay_out_of_the_moments():
    allowed = torch.ones(CODES, dtype=torch.bool)
    allowed[3] = False
    got = select_tokens(
        Linear(CHANNELS, GRID, CLASSES).eval(),
        codebook(),
        1,
        tokens=grids(1),
        allowed=allowed,
        steps=50,
        lr=0.3,
        tau=0.1,
    )
    assert not math.isnan(float(got.loss.sum())) and not (got.history[1:] == 3).any()


def test_an_image_with_forbidden_tokens_is_no_candidate():
    for token in range(CODES):
        allowed = torch.zeros(CODES, dtype=torch.bool)
        allowed[token] = True
        got = select_tokens(
            tiny("ce"), codebook(), targets(), tokens=grids(), region=REGION, steps=3, lr=0.2, allowed=allowed
        )
        assert (got.tokens[:, 2:5, 2:5] == token).all()


def test_an_image_with_forbidden_tokens_at_fixed_positions_is_a_candidate():
    tokens = torch.full((1, GRID, GRID), 7)
    tokens[:, 2:5, 2:5] = 1

    def judge(selected, _target):
        return (selected == tokens).flatten(1).float().mean(dim=1)

    got = select_tokens(
        tiny("ce"), codebook(), 0, tokens=tokens, region=REGION, steps=3, allowed=torch.arange(CODES) < 7, judge=judge
    )
    assert int(got.best) == 0 and not got.changed.any()
