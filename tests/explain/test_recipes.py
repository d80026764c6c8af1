"""Schedules reach their start and their end; recipes refuse bad settings."""

import itertools

import pytest

from cortex_fast import PAPER, PUBLISHED, Recipe, Schedule
from cortex_fast.explain.recipes import KINDS

MIDDLE = {"linear": 5.5, "geometric": 10**0.5, "cosine": 5.5}  # halfway from 10 to 1


@pytest.mark.parametrize("kind", KINDS)
def test_schedules_go_from_their_start_to_their_end(kind):
    schedule = Schedule(10.0, 1.0, kind)
    values = [schedule.at(step, 11) for step in range(11)]
    assert (
        values[0] == pytest.approx(10) and values[-1] == pytest.approx(1) and values[5] == pytest.approx(MIDDLE[kind])
    )
    assert all(later < earlier for earlier, later in itertools.pairwise(values))
    assert schedule.at(0, 1) == 10


def test_a_cosine_is_flat_at_both_ends():
    schedule = Schedule(0.5, 1.0, "cosine")
    assert schedule.at(1, 101) - schedule.at(0, 101) < 0.1 * (schedule.at(51, 101) - schedule.at(50, 101))


def test_presets_are_the_published_and_the_papers():
    assert (PUBLISHED.steps, PUBLISHED.lr, PUBLISHED.tau, PUBLISHED.optimizer) == (5000, 0.01, 1.0, "adam")
    assert PUBLISHED.judge_every == 500 and PUBLISHED.regularisation == 0
    assert PAPER.optimizer == "sgd"


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"steps": 1.5},
        {"lr": 0.0},
        {"tau": float("nan")},
        {"draws": 0},
        {"restarts": 0},
        {"patience": 0},
        {"start": "zero"},
        {"stay_penalty": -1.0},
        {"regularisation": float("inf")},
        {"optimizer": "lion"},
        {"judge_every": 0},
    ],
)
def test_bad_settings_are_named(settings):
    (name,) = settings
    with pytest.raises((ValueError, TypeError), match=rf"^{name}:"):
        Recipe(**settings)


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_ends_at_its_end_to_the_bit(kind):
    assert Schedule(1.0, 1e-17, kind).at(3, 4) == 1e-17 and Schedule(3.0, 0.1, kind).at(6, 7) == 0.1


def test_a_rate_may_end_at_zero_and_a_temperature_may_not():
    assert Recipe(lr=Schedule(0.5, 0.0, "cosine")).lr.at(9, 10) == 0
    with pytest.raises(ValueError, match=r"^tau.end:"):
        Recipe(tau=Schedule(1.0, 0.0))


@pytest.mark.parametrize(
    "change", [{"start": 0.0}, {"end": -1.0}, {"kind": "steps"}, {"end": 0.0, "kind": "geometric"}]
)
def test_bad_schedules_are_named(change):
    name = next(iter(change))
    with pytest.raises((ValueError, TypeError), match=rf"^{name}:"):
        Schedule(**{"start": 1.0, "end": 0.1, **change})
