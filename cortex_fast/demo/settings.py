"""What a demo run does, and what made its files."""

import dataclasses
from dataclasses import dataclass

import torch

from cortex_fast import checks
from cortex_fast.version import __version__

MOST_IMAGES, MOST_STEPS = 1000, 1_000_000  # images of a class, which are sampled together: 12,000 take 30 GB


@dataclass(frozen=True)
class Settings:
    """Sizes of a demo run. The defaults take about a minute and a half on 2 cores."""

    seed: int = 0
    images_per_class: int = 16  # explained
    held_out_per_class: int = 8  # judged
    composites_per_class: int = 8  # with a known object mask
    num_samples: int = 20
    top_n: int = 20
    top_k: int = 50
    edits_per_class: int = 2
    edit_steps: int = 200
    edit_lr: float = 0.3  # these two: the best of a sweep of each, so that the baseline has its chance
    embedding_lr: float = 0.3
    region: tuple[int, int, int, int] = (4, 4, 12, 12)

    def __post_init__(self) -> None:
        checks.seed(self.seed)
        for name in ("images_per_class", "held_out_per_class", "composites_per_class"):
            checks.whole(name, getattr(self, name), 1, MOST_IMAGES)
        for name in ("num_samples", "edit_steps"):
            checks.whole(name, getattr(self, name), 1, MOST_STEPS)
        checks.whole("edits_per_class", self.edits_per_class, 1, self.held_out_per_class)


def fingerprint(settings: Settings, model: str) -> dict[str, str]:
    """Versions, seed, settings and model, as text."""
    made = {"cortex-fast": __version__, "torch": torch.__version__, "model": model}
    return made | {name: str(value) for name, value in dataclasses.asdict(settings).items()}
