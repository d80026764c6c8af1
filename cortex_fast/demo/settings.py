"""The settings of a demo run, and the fingerprint of its files."""

import dataclasses
from dataclasses import dataclass, replace

import torch

from cortex_fast import checks
from cortex_fast.studies import PRESETS, StudySettings
from cortex_fast.version import __version__
from cortex_fast.zoo import class_names

PICTURES_OF_AN_EDIT = 6  # steps at which the judges look at it
MOST_IMAGES, MOST_STEPS = 1000, 1_000_000  # images of a class, which are sampled together: 12,000 take 30 GB


@dataclass(frozen=True)
class Settings:
    """Sizes of a demo run. The defaults take about a minute and a half on 2 cores.

    Args:
        seed: of everything random. Default 0.
        images_per_class: images that are explained. Default 16.
        held_out_per_class: images on which the explanations are judged. Default 8.
        composites_per_class: images with a known object mask. Default 8.
        num_samples: N of SmoothGrad. Default 20.
        top_n: top tokens of an image. Default 20.
        top_k: tokens of a concept. Default 50.
        edits_per_class: held-out images that are edited. Default 2.
        edit_steps: steps of token selection and of its baseline. Default 200.
        edit_lr: learning rate of token selection, the best of a sweep. Default 0.3.
        embedding_lr: learning rate of the baseline, the best of a sweep, so that the comparison is fair. Default 0.3.
        region: the cells that an edit may change, (top, left, bottom, right), half-open. Default (4, 4, 12, 12).

    Raises:
        TypeError or ValueError: a setting of another type or out of range; the message names it.
    """

    seed: int = 0
    images_per_class: int = 16
    held_out_per_class: int = 8
    composites_per_class: int = 8
    num_samples: int = 20
    top_n: int = 20
    top_k: int = 50
    edits_per_class: int = 2
    edit_steps: int = 200
    edit_lr: float = 0.3
    embedding_lr: float = 0.3
    region: tuple[int, int, int, int] = (4, 4, 12, 12)

    def __post_init__(self) -> None:
        checks.seed(self.seed)
        for name in ("images_per_class", "held_out_per_class", "composites_per_class"):
            checks.whole(name, getattr(self, name), 1, MOST_IMAGES)
        for name in ("num_samples", "edit_steps"):
            checks.whole(name, getattr(self, name), 1, MOST_STEPS)
        checks.whole("edits_per_class", self.edits_per_class, 1, self.held_out_per_class)


def study_settings(settings: Settings) -> StudySettings:
    """The preset `demo` with these sizes: each class is edited to the next one, and TSV maps are kept for the pages."""
    demo = PRESETS["demo"]
    return replace(
        demo,
        samples=replace(
            demo.samples, train=settings.images_per_class, test=settings.held_out_per_class, seed=settings.seed
        ),
        scoring=replace(demo.scoring, num_samples=settings.num_samples, seed=settings.seed, maps=True),
        concepts=replace(demo.concepts, top_n=settings.top_n, top_k=settings.top_k),
        edits=replace(
            demo.edits,
            images=settings.edits_per_class,
            steps=settings.edit_steps,
            lr=settings.edit_lr,
            judge_every=-(-settings.edit_steps // PICTURES_OF_AN_EDIT),
            region=list(settings.region),
            seed=settings.seed,
        ),
        run=replace(demo.run, shard_images=MOST_IMAGES * len(class_names())),
    )


def fingerprint(settings: Settings, model: str) -> dict[str, str]:
    """Versions, settings and the model's fingerprint, as text."""
    versions = {"cortex-fast": __version__, "torch": torch.__version__, "model": model}
    return versions | {name: str(value) for name, value in dataclasses.asdict(settings).items()}
