"""How an optimisation of tokens goes about it: steps, rates, temperature, when it looks and when it stops."""

import math
from dataclasses import dataclass

from cortex_fast import checks

OPTIMIZERS = ("adam", "sgd")
BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam: torch's own
KINDS = ("linear", "geometric", "cosine")
STARTS = ("random", "image")


@dataclass(frozen=True)
class Schedule:
    """A setting that goes from `start` in the first step to `end` in the last: evenly, by a constant factor, or along
    half a cosine. The end may be 0, but not by a constant factor."""

    start: float
    end: float
    kind: str = "linear"

    def __post_init__(self) -> None:
        checks.one_of("kind", self.kind, KINDS)
        check_end = checks.positive if self.kind == "geometric" else checks.non_negative
        _set(self, start=checks.positive("start", self.start), end=check_end("end", self.end))

    def at(self, step: int, steps: int) -> float:
        """The value in step 0 .. steps - 1."""
        share = step / (steps - 1) if steps > 1 else 0.0
        if share == 1:
            return float(self.end)
        if self.kind == "geometric":
            return float(self.start * (self.end / self.start) ** share)
        if self.kind == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.end - self.start) * share


def value_at(setting: "float | Schedule", step: int, steps: int) -> float:
    return setting.at(step, steps) if isinstance(setting, Schedule) else setting


@dataclass(frozen=True)
class Recipe:
    """Settings of `select_tokens` and its baselines.

    steps; lr, tau: a number or a Schedule; optimizer: "adam" or "sgd" as in torch. regularisation: weight of |E|^2.
    judge_every: how often the selection without noise is judged. draws: Gumbel samples of one step, whose mean gradient
    it follows. restarts: independent runs of a problem, of which the best is kept. patience: a problem stops when its
    selected tokens have not changed for so many steps; None: never. start: logits "random" (standard normal), or from
    the "image", whose tokens then have about even odds with all others together. stay_penalty: price of a
    changed position, in logits: with a price, as few change as are worth it.
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


def _set(settings: "Schedule | Recipe", **values: float) -> None:
    """Python's own numbers for those that came from numpy or torch: fingerprints hold them as JSON."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)


# The published code: Adam on logits that start standard normal, temperature 1, judged every 500 of 5,000 steps.
PUBLISHED = Recipe(steps=5000, lr=0.01, tau=1.0, optimizer="adam", judge_every=500)
# The paper's text has plain gradient descent (its alpha |E|^2 is `regularisation`); where it gives no number, the
# published code's stands.
PAPER = Recipe(steps=5000, lr=0.01, tau=1.0, optimizer="sgd", judge_every=500)
