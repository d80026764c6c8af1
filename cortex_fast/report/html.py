"""The report as a folder of plain HTML: an index, a page for each concept, pictures and one style sheet.

It needs neither JavaScript nor a network, and opens from disk. The folder is built beside its final place and then
renamed, so that an interrupted run leaves nothing half-written.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from cortex_fast.data.grids import Grid, sides
from cortex_fast.data.workspaces import put_in_place, workspace
from cortex_fast.report import pictures
from cortex_fast.report.content import Cell, ConceptPage, Curves, Edit, ExampleImage, Report, Table, TokenCard

_MARKER = ".cortex-fast-report"  # the file that marks a folder as a report, which the next report may replace
_IMAGE_SIDE = 320  # pixels: 64 x 64 images are enlarged five times, 256 x 256 images are not
_PATCH_SIDE = 144  # pixels: shown at a half and a third of it, so that 12 x 12 patches keep square pixels
_GALLERY_PATCHES = 5
_SLUG_LENGTH = 60
_NARROW_TABLE = 5  # columns that fit half a page's width
_DASH, _MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"

View = dict[str, Any]


def write_report(report: Report, folder: Path) -> Path:
    """Write a report as a folder of HTML pages. After an error, nothing is left behind.

    Args:
        report: the content.
        folder: the folder. An older report or an empty folder is replaced as a whole.

    Returns:
        The path of index.html.

    Raises:
        FileExistsError: `folder` holds anything else.
        ValueError: a picture, a TSV, a box or a curve has another shape than expected; the message names it.
    """
    target = Path(folder).resolve()
    check_replaceable(target)
    with workspace(target) as space:
        part = space / f"{target.name}.part"
        part.mkdir()
        _write_pages(report, part)
        put_in_place(part, target)
    return Path(folder) / "index.html"


def file_stems(names: Sequence[str]) -> list[str]:
    """File names for the pages, without a suffix.

    Args:
        names: of the concepts.

    Returns:
        For each name lower-case ASCII letters, digits and hyphens, and its number. The number makes the names differ,
        from each other and from those that a system reserves ("con", "nul").
    """
    digits = len(str(len(names)))
    return [f"{_slug(name)}-{number:0{digits}d}" for number, name in enumerate(names, start=1)]


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:_SLUG_LENGTH].strip("-") or "concept"


def check_replaceable(target: Path) -> None:
    """Raise FileExistsError if the folder holds anything but an older report."""
    if target.exists() and not (target.is_dir() and ((target / _MARKER).is_file() or not any(target.iterdir()))):
        raise FileExistsError(
            f"folder: expected a new or empty folder, or an older report, got other content at {target}"
        )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        # By default only templates with names in .html are escaped; these end in .j2.
        autoescape=select_autoescape(enabled_extensions=("j2",), default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": _count,
        "probability": _probability,
        "percent": _percent,
        "paragraphs": _paragraphs,
    }
    return environment


def _write_pages(report: Report, root: Path) -> None:
    environment = _environment()
    _write_text(root / _MARKER, "A report by cortex-fast. The next one written here replaces this whole folder.\n")
    _write_text(root / "style.css", environment.get_template("style.css").render())

    stems = file_stems([concept.name for concept in report.concepts])
    links = [{"name": c.name, "stem": stem} for c, stem in zip(report.concepts, stems, strict=True)]
    page = environment.get_template("concept.html.j2")
    cards = []
    for index, (concept, stem) in enumerate(zip(report.concepts, stems, strict=True)):
        view = _concept_view(concept, root, stem)
        before = links[index - 1] if index else None
        after = links[index + 1] if index + 1 < len(links) else None
        html = page.render(report=report, concept=view, before=before, after=after, root="../")
        _write_text(root / "concepts" / f"{stem}.html", html)
        cards.append(_card_view(concept, view, root))

    evaluation = [
        _table_view(item) if isinstance(item, Table) else _curves_view(item, root, f"images/evaluation/{number}.svg")
        for number, item in enumerate(report.evaluation, start=1)
    ]
    index_html = environment.get_template("index.html.j2").render(
        report=report, summary=_table_view(report.summary), cards=cards, evaluation=evaluation, root=""
    )
    _write_text(root / "index.html", index_html)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def _save(root: Path, name: str, content: bytes) -> str:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return name


def _concept_view(concept: ConceptPage, root: Path, stem: str) -> View:
    images = f"images/{stem}"
    most = max((card.share for card in concept.tokens if card.share > 0), default=1.0)
    return {
        "name": concept.name,
        "stem": stem,
        "num_images": concept.num_images,
        "sides": sides(concept.grid),
        "tokens": [_token_view(card, root, f"{images}/token{i}", most) for i, card in enumerate(concept.tokens, 1)],
        "examples": [
            _example_view(example, concept.grid, root, f"{images}/example{number}")
            for number, example in enumerate(concept.examples, 1)
        ],
        "edits": [_edit_view(e, concept.grid, root, f"{images}/edit{i}") for i, e in enumerate(concept.edits, 1)],
    }


def _token_view(card: TokenCard, root: Path, prefix: str, most: float) -> View:
    patches = []
    for number, patch in enumerate(card.patches, start=1):
        # The token's cell is the middle one of 3 x 3.
        framed = pictures.outline_region(pictures.enlarge(patch, _PATCH_SIDE), (1, 1, 2, 2), grid=3)
        patches.append(_save(root, f"{prefix}-{number}.png", pictures.png_bytes(framed)))
    width = 100 * card.share / most if card.share > 0 else 0.0
    return {"token": card.token, "count": card.count, "share": card.share, "bar": f"{width:.1f}", "patches": patches}


def _example_view(example: ExampleImage, grid: Grid, root: Path, prefix: str) -> View:
    if np.shape(example.tsv) != sides(grid):
        raise ValueError(f"tsv: expected the concept's grid, {list(sides(grid))}, got {list(np.shape(example.tsv))}")
    image = pictures.enlarge(example.image, _IMAGE_SIDE)
    heat = pictures.box_cells(pictures.heat_overlay(image, example.tsv), example.boxes, grid)
    return {
        "plain": _save(root, f"{prefix}.png", pictures.png_bytes(image)),
        "heat": _save(root, f"{prefix}-tsv.png", pictures.png_bytes(heat)),
        "boxes": len(example.boxes),
        "caption": example.caption,
    }


def _edit_view(edit: Edit, grid: Grid, root: Path, prefix: str) -> View:
    steps: list[View] = []
    for step in edit.steps:
        image = pictures.outline_region(pictures.enlarge(step.image, _IMAGE_SIDE), edit.region, grid)
        name = _save(root, f"{prefix}-step{len(steps)}.png", pictures.png_bytes(image))
        steps.append(
            {
                "step": step.step,
                "image": name,
                "judged": _judged(edit, step.source_probability, step.target_probability),
            }
        )
    top, left, bottom, right = edit.region
    return {
        "source": edit.source,
        "target": edit.target,
        "note": edit.note,
        "region": f"rows {top} to {bottom - 1}, columns {left} to {right - 1}",
        "tokens": (bottom - top) * (right - left),
        "steps": steps,
        "changes": edit.changes,
    }


def _judged(edit: Edit, source: float, target: float) -> list[View]:
    pairs = (("source", edit.source, source), ("target", edit.target, target))
    return [{"role": r, "name": n, "value": p, "bar": f"{100 * p if p > 0 else 0:.1f}"} for r, n, p in pairs]


def _card_view(concept: ConceptPage, view: View, root: Path) -> View:
    image = None
    if concept.examples:
        first = concept.examples[0]
        boxed = pictures.box_cells(pictures.enlarge(first.image, _IMAGE_SIDE), first.boxes, concept.grid)
        image = _save(root, f"images/{view['stem']}/card.png", pictures.png_bytes(boxed))
    tops = [(token["token"], token["patches"][0]) for token in view["tokens"] if token["patches"]][:_GALLERY_PATCHES]
    return {"name": concept.name, "stem": view["stem"], "num_images": concept.num_images, "image": image, "tops": tops}


def _table_view(table: Table) -> View:
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(f"table {table.title!r}: expected rows of {len(table.columns)} cells, got {len(row)}")
    columns = [[row[place] for row in table.rows] for place in range(len(table.columns))]
    numeric = [any(not isinstance(cell, str) for cell in column) for column in columns]
    texts = [_texts(column) for column in columns]
    return {
        "kind": "table",
        "wide": len(table.columns) > _NARROW_TABLE,
        "title": table.title,
        "note": table.note,
        "head": list(zip(table.columns, numeric, strict=True)),
        "rows": [list(zip(row, numeric, strict=True)) for row in zip(*texts, strict=True)],
    }


def _curves_view(curves: Curves, root: Path, name: str) -> View:
    values = zip(curves.x, *curves.series.values(), strict=True)
    table = Table(curves.title, [curves.x_label, *curves.series], list(values))
    picture = _save(root, name, pictures.curves_svg(curves))
    return _table_view(table) | {
        "kind": "curves",
        "wide": False,
        "image": picture,
        "curves": curves,
        "note": curves.note,
    }


def _is_whole(cell: Cell) -> bool:
    return isinstance(cell, int | np.integer)


def _texts(column: Iterable[Cell]) -> list[str]:
    """A table column as text. Its floats have the same number of decimals, which give the largest about four digits."""
    cells = list(column)
    sizes = [abs(c) for c in cells if not isinstance(c, str) and not _is_whole(c) and math.isfinite(c)]
    largest = max(sizes, default=0.0)
    decimals = 3 if largest < 10 else 2 if largest < 100 else 1 if largest < 1000 else 0
    return [_text(cell, decimals) for cell in cells]


def _text(cell: Cell, decimals: int) -> str:
    if isinstance(cell, str):
        return cell
    if _is_whole(cell):
        # without a thousands separator, because it may be a token's id
        return str(cell).replace("-", _MINUS)
    if math.isnan(cell):
        return _DASH
    if math.isinf(cell):
        return "∞" if cell > 0 else f"{_MINUS}∞"
    # A value too small for two digits within the column's decimals gets more decimals.
    number = f"{cell:.2g}" if 0 < abs(cell) < 10.0 ** (1 - decimals) else f"{cell:.{decimals}f}"
    return number.replace("-", _MINUS)


def _count(number: int) -> str:
    return f"{number:,}".replace("-", _MINUS)


def _probability(value: float) -> str:
    if math.isnan(value):
        return _DASH
    return "< 0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def _percent(share: float) -> str:
    return _DASH if math.isnan(share) else f"{100 * share:.1f} %"


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
