"""What a report shows, as plain data: nothing here knows a model, a file or a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cortex_fast.data.grids import Grid

Cell = str | int | float


@dataclass(frozen=True)
class TokenCard:
    """One token of a concept: how often it was among the top tokens (`count`, `share` in [0,1]), and where it was seen.

    `patches` are uint8 [h,w,3] cuts from decoded images, the token's own cell in the middle third of each.
    """

    token: int
    count: int
    share: float
    patches: Sequence[np.ndarray]


@dataclass(frozen=True)
class ExampleImage:
    """A decoded image uint8 [H,W,3], its TSV [h,w], and the (row, column) cells of its top tokens."""

    image: np.ndarray
    tsv: np.ndarray
    boxes: Sequence[tuple[int, int]]
    caption: str = ""


@dataclass(frozen=True)
class EditStep:
    """The decoded image uint8 [H,W,3] after `step` steps, and the judges' mean probabilities of source and target."""

    step: int
    image: np.ndarray
    source_probability: float
    target_probability: float


@dataclass(frozen=True)
class Edit:
    """Token selection in a region that turned `source` into `target`.

    `region` is a half-open box (top, left, bottom, right) in cells. `steps[0]` is the image before.
    `changes` lists (row, column, token before, token after).
    """

    source: str
    target: str
    region: tuple[int, int, int, int]
    steps: Sequence[EditStep]
    changes: Sequence[tuple[int, int, int, int]]
    note: str = ""


@dataclass(frozen=True)
class ConceptPage:
    """Everything about one concept. `grid` is the token grid: m cells on a side, or (h, w)."""

    name: str
    num_images: int
    grid: Grid
    tokens: Sequence[TokenCard]
    examples: Sequence[ExampleImage]
    edits: Sequence[Edit] = ()


@dataclass(frozen=True)
class Table:
    """A titled table. `note` says how to read it: which direction is better, and against which baseline."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Curves:
    """Lines over a common `x`. `series` maps a method's name to its values."""

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    series: Mapping[str, Sequence[float]]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """A whole report. `fingerprint` (versions, seed, settings, model) is printed at its foot."""

    title: str
    introduction: str
    summary: Table
    concepts: Sequence[ConceptPage]
    evaluation: Sequence[Table | Curves]
    fingerprint: Mapping[str, str] = field(default_factory=dict)
