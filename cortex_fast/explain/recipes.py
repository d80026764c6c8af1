"""The settings of an optimisation of tokens: steps, rates, temperature, when it is judged and when it stops."""

import dataclasses
import math
from dataclasses import dataclass
from typing import TypedDict

from cortex_fast import checks

OPTIMIZERS = ("adam", "sgd")
BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam, as in torch
STARTS = ("random", "image")


def _linear(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _geometric(start: float, end: float, share: float) -> float:
    return float(start * (end / start) ** share)


def _cosine(start: float, end: float, share: float) -> float:
    return _linear(start, end, (1 - math.cos(math.pi * share)) / 2)


_VALUES = {"linear": _linear, "geometric": _geometric, "cosine": _cosine}  # share: of the steps, in [0, 1)
_MAY_END_AT_ZERO = ("linear", "cosine")
KINDS = tuple(_VALUES)


@dataclass(frozen=True)
class Schedule:
    """A setting that moves from `start` in the first step to `end` in the last.

    Args:
        start: the value in the first step, above 0.
        end: the value in the last step, above 0; with the kinds "linear" and "cosine" it may be 0.
        kind: "linear" (equal differences), "geometric" (equal factors) or "cosine" (half a cosine, flat at both ends).
            Default "linear".

    Raises:
        TypeError, ValueError: a value outside these.
    """

    start: float
    end: float
    kind: str = "linear"

    def __post_init__(self) -> None:
        checks.one_of("kind", self.kind, KINDS)
        check_end = checks.non_negative if self.kind in _MAY_END_AT_ZERO else checks.positive
        _set(self, start=checks.positive("start", self.start), end=check_end("end", self.end))

    def at(self, step: int, steps: int) -> float:
        """The value in one step.

        Args:
            step: the step, from 0 to steps - 1.
            steps: number of steps.

        Returns:
            The value, from `start` in the first step to `end` in the last; `start` if there is one step.
        """
        share = step / (steps - 1) if steps > 1 else 0.0
        if share == 1:
            return float(self.end)
        return _VALUES[self.kind](self.start, self.end, share)


def value_at(setting: "float | Schedule", step: int, steps: int) -> float:
    """The value of a number or a Schedule in step 0 .. steps - 1."""
    return setting.at(step, steps) if isinstance(setting, Schedule) else setting


@dataclass(frozen=True)
class Recipe:
    """Settings of `select_tokens` and its baselines.

    Args:
        steps: number of gradient steps. Default 3000.
        lr: learning rate, a number or a Schedule. Default 0.01.
        tau: temperature of Gumbel-Softmax, a number or a Schedule. Default 1.0.
        optimizer: "adam" or "sgd", as in torch.optim. Default "adam".
        regularisation: weight of |E|^2 in the loss, at least 0. Default 0.0.
        judge_every: number of steps between two judgements of the noiseless selection. Default 100.
        draws: number of Gumbel samples in a step, which follows their mean gradient. Default 1.
        restarts: number of independent runs of a problem, of which the best counts. Default 1.
        patience: number of steps without a change of the selected tokens after which a problem stops. Default None:
            never.
        start: "random" (standard normal logits) or "image" (an image's tokens have about even odds with all others
            together). Default "random".
        stay_penalty: price of a changed position, in logits: the higher, the fewer positions change.
            Default 0.0.

    Raises:
        TypeError, ValueError: a value outside these, naming the setting.
    """

    steps: int = 3000
    lr: float | Schedule = 0.01
    tau: float | Schedule = 1.0
    optimizer: str = "adam"
    regularisation: float = 0.0
    judge_every: int = 100
    draws: int = 1
    restarts: int = 1
    patience: int | None = None
    start: str = "random"
    stay_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "judge_every", "draws", "restarts"):
            _set(self, **{name: checks.whole(name, getattr(self, name), 1)})
        for name in ("lr", "tau"):
            if not isinstance(getattr(self, name), Schedule):
                _set(self, **{name: checks.positive(name, getattr(self, name))})
        if isinstance(self.tau, Schedule):
            checks.positive("tau.end", self.tau.end)
        if self.patience is not None:
            _set(self, patience=checks.whole("patience", self.patience, 1))
        checks.one_of("optimizer", self.optimizer, OPTIMIZERS)
        checks.one_of("start", self.start, STARTS)
        for name in ("regularisation", "stay_penalty"):
            _set(self, **{name: checks.non_negative(name, getattr(self, name))})


class DrawSettings(TypedDict, total=False):
    """The fields of Recipe that `draw_tokens` uses."""

    steps: int
    judge_every: int


class EmbeddingSettings(DrawSettings, total=False):
    """The fields of Recipe that `optimise_embedding` uses."""

    lr: float | Schedule
    optimizer: str
    regularisation: float
    patience: int | None


class RecipeSettings(EmbeddingSettings, total=False):
    """All fields of Recipe, which `select_tokens` uses."""

    tau: float | Schedule
    draws: int
    restarts: int
    start: str
    stay_penalty: float


def recipe_with(recipe: Recipe | None, settings: DrawSettings) -> Recipe:
    """The recipe, or the default one, with the settings given by name.

    Raises:
        TypeError: recipe is not a Recipe, or a setting is unknown.
    """
    if recipe is not None and not isinstance(recipe, Recipe):
        raise TypeError(f"recipe: expected a Recipe, such as PUBLISHED, got {recipe!r}")
    names = [field.name for field in dataclasses.fields(Recipe)]
    for name in settings:
        if name not in names:
            raise TypeError(f"{name}: expected a setting of Recipe ({', '.join(names)}), got an unknown one")
    return dataclasses.replace(recipe or Recipe(), **settings)


def _set(settings: "Schedule | Recipe", **values: float) -> None:
    """Replace numbers of numpy or torch by Python's: fingerprints hold them as JSON."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)


# The published code: Adam on logits that start standard normal, temperature 1, judged every 500 of 5,000 steps.
PUBLISHED = Recipe(steps=5000, lr=0.01, tau=1.0, optimizer="adam", judge_every=500)
# The paper's text has plain gradient descent (its alpha |E|^2 is `regularisation`). Where the paper gives no number,
# the published code's stands.
PAPER = Recipe(steps=5000, lr=0.01, tau=1.0, optimizer="sgd", judge_every=500)
