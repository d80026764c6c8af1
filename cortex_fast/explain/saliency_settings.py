"""The settings of `token_saliency`: their types for an editor, and their defaults and checks."""

from dataclasses import dataclass
from typing import TypedDict

from cortex_fast import checks
from cortex_fast.engine import MEMORY
from cortex_fast.ops.token_saliency import REDUCTIONS

SIGMA_RANGES = ("sample", "batch")
NOISES = ("shared", "independent")
AUTO = "auto"


class SaliencySettings(TypedDict, total=False):
    """The settings of `token_saliency` that functions over a whole data set hand on."""

    reduction: str
    num_samples: int | str
    alpha: float
    sigma_range: str
    noise: str
    seed: int
    antithetic: bool
    memory: int


class ScoreSettings(SaliencySettings, total=False):
    """The settings that `score_tokens` hands on to `token_saliency`."""

    top_n: int


class ConceptSettings(SaliencySettings, total=False):
    """The settings that `explain_concepts` hands on to `score_tokens`."""

    description: str


@dataclass(frozen=True)
class Settings:
    """`token_saliency`'s settings, checked, as numbers of Python.

    Raises:
        TypeError, ValueError: a value that the setting does not take, naming the setting.
    """

    num_samples: int | str = 20
    alpha: float = 0.2
    sigma_range: str = "sample"
    noise: str = "shared"
    seed: int = 0
    item_ids: checks.Integers | None = None
    antithetic: bool = False
    memory: int = MEMORY
    top_n: int = 20
    reduction: str = "absmax"

    def __post_init__(self) -> None:
        checks.one_of("sigma_range", self.sigma_range, SIGMA_RANGES)
        checks.one_of("noise", self.noise, NOISES)
        checks.one_of("reduction", self.reduction, REDUCTIONS)
        numbers = {
            "num_samples": AUTO if self.auto else checks.whole("num_samples", self.num_samples, 1),
            "alpha": checks.non_negative("alpha", self.alpha),
            "seed": checks.seed(self.seed),
            "antithetic": checks.flag("antithetic", self.antithetic),
            "memory": checks.whole("memory", self.memory, 1),
            "top_n": checks.whole("top_n", self.top_n, 1),
        }
        for name, value in numbers.items():
            object.__setattr__(self, name, value)

    @property
    def auto(self) -> bool:
        """Whether each image gets as many samples as its top positions need to settle."""
        return isinstance(self.num_samples, str) and self.num_samples == AUTO
