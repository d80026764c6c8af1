"""The content of a report as plain data, without models, files or pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cortex_fast.data.grids import Grid

Cell = str | int | float


@dataclass(frozen=True)
class TokenCard:
    """One token of a concept.

    Args:
        token: its id.
        count: how often it was among the top tokens.
        share: the count divided by the number of all top tokens, or of all images, in [0,1].
        patches: uint8 [h,w,3] each, cut from decoded images, with the token's cell in the middle third.
    """

    token: int
    count: int
    share: float
    patches: Sequence[np.ndarray]


@dataclass(frozen=True)
class ExampleImage:
    """An image of a concept.

    Args:
        image: uint8 [H,W,3], decoded.
        tsv: float [h,w].
        boxes: (row, column) cells of the top tokens.
        caption: a line below the image. Default "".
    """

    image: np.ndarray
    tsv: np.ndarray
    boxes: Sequence[tuple[int, int]]
    caption: str = ""


@dataclass(frozen=True)
class EditStep:
    """An edit after some steps.

    Args:
        step: number of steps so far.
        image: uint8 [H,W,3], decoded.
        source_probability: the judges' mean probability of the source class.
        target_probability: the judges' mean probability of the target class.
    """

    step: int
    image: np.ndarray
    source_probability: float
    target_probability: float


@dataclass(frozen=True)
class Edit:
    """Token selection in a region, from one class to another.

    Args:
        source: the class before.
        target: the class that was aimed at.
        region: (top, left, bottom, right) in cells, half-open.
        steps: the recorded steps; the first one is the image before.
        changes: (row, column, token before, token after) of each changed cell.
        note: a line of explanation. Default "".
    """

    source: str
    target: str
    region: tuple[int, int, int, int]
    steps: Sequence[EditStep]
    changes: Sequence[tuple[int, int, int, int]]
    note: str = ""


@dataclass(frozen=True)
class ConceptPage:
    """The page of a concept.

    Args:
        name: the concept's.
        num_images: number of images that it was explained from.
        grid: m or (h, w), the images' token grid.
        tokens: cards of its most frequent top tokens.
        examples: some of its images.
        edits: edits that start from the concept. Default ().
    """

    name: str
    num_images: int
    grid: Grid
    tokens: Sequence[TokenCard]
    examples: Sequence[ExampleImage]
    edits: Sequence[Edit] = ()


@dataclass(frozen=True)
class Table:
    """A titled table.

    Args:
        title: the heading.
        columns: names of the columns.
        rows: cells by row.
        note: how to read it: the better direction, and the baseline. Default "".
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Curves:
    """Curves over a common axis.

    Args:
        title: the heading.
        x_label: name of the x axis.
        y_label: name of the y axis.
        x: values of the x axis.
        series: each curve's values by its name, as many as of `x`.
        note: how to read it. Default "".
    """

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    series: Mapping[str, Sequence[float]]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """A whole report.

    Args:
        title: the heading.
        introduction: paragraphs, separated by empty lines.
        summary: the first table.
        concepts: a page each.
        evaluation: tables and curves.
        fingerprint: versions, seed, settings and model, printed at the foot. Default {}.
    """

    title: str
    introduction: str
    summary: Table
    concepts: Sequence[ConceptPage]
    evaluation: Sequence[Table | Curves]
    fingerprint: Mapping[str, str] = field(default_factory=dict)
