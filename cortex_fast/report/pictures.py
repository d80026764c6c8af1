"""From arrays to pictures: heat, boxes and outlines on images, PNG bytes, and curves as SVG.

Images are uint8 [H,W,3], RGB. A grid of h x w cells covers an image of any size: cell (row, column) spans the pixels
[row H / h, (row + 1) H / h) x [column W / w, (column + 1) W / w). Every function returns a new array.
"""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cortex_fast.data.grids import Grid, sides
from cortex_fast.report.content import Curves

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]

_RED: Colour = (230, 0, 30)
_WHITE: Colour = (255, 255, 255)
_BLACK: Colour = (16, 18, 22)
# The weight of an overlay's colour at the lowest heat, what the highest heat adds to it, and the image's brightness:
# the largest at which the luminance still grows with the heat on a white image.
_HEAT_LOW, _HEAT_MORE, _BRIGHTNESS = 0.35, 0.45, 0.65
_FEW_PIXELS = 32  # below this side an image is shown as a mosaic, because smoothing would only blur its pixels

_INK = "#24292f"
_GRID = "#d9dde2"
# Okabe and Ito's palette without its yellow (too pale on white); only its blue is too deep for a dark page.
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8f98")
_ON_DARK = {_INK: "#d5dae1", _GRID: "#3a414b", "#0072b2": "#3a9bdc"}
_DASHES = ("-", "--", ":", "-.")
_LABEL_GAP = 0.085  # between the labels at the curves' ends, as a share of the axes' height


def _checked(image: npt.NDArray[np.generic], name: str = "image") -> Pixels:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"{name}: expected uint8 [H,W,3], not empty, got {image.dtype} {list(image.shape)}")
    return image.astype(np.uint8, copy=True)


def enlarge(image: npt.NDArray[np.generic], side: int) -> Pixels:
    """Enlarge an image by the largest whole factor that keeps its short side within `side` pixels, at least by 1.

    Pixels of images below 32 pixels a side become squares; larger images are interpolated (Lanczos).

    Args:
        image: uint8 [H,W,3].
        side: pixels.

    Returns:
        uint8 [f H, f W, 3].

    Raises:
        ValueError: another dtype or shape.
    """
    pixels = _checked(image)
    height, width = pixels.shape[:2]
    factor = max(1, side // min(height, width))
    method = Image.Resampling.NEAREST if min(height, width) < _FEW_PIXELS else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((width * factor, height * factor), method))


def heat_overlay(image: npt.NDArray[np.generic], tsv: npt.NDArray[np.generic]) -> Pixels:
    """Draw the TSV as heat over an image in dim grey: viridis, from the smallest value to the largest.

    A cell has one colour, so that heat and boxes line up. At each pixel the luminance grows with the TSV. A constant
    TSV is drawn as the lowest heat.

    Args:
        image: uint8 [H,W,3].
        tsv: float [h,w].

    Returns:
        uint8 [H,W,3].

    Raises:
        ValueError: another dtype or shape, or values that are not finite.
    """
    pixels = _checked(image)
    values = np.asarray(tsv, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"tsv: expected values [h,w], got shape {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError("tsv: expected finite values, got NaN or infinity")
    height, width = pixels.shape[:2]
    spread = values.max() - values.min()
    heat = (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
    colours = 255.0 * np.asarray(colormaps["viridis"](heat))[..., :3]
    weights = (_HEAT_LOW + _HEAT_MORE * heat)[..., None]
    rows, columns = (
        np.repeat(np.arange(cells), np.diff(_edges(pixels_along, cells)))
        for pixels_along, cells in zip((height, width), heat.shape, strict=True)
    )
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float64)[..., None]
    cells = rows[:, None], columns[None, :]
    mixed = (1 - weights[cells]) * _BRIGHTNESS * grey + (weights * colours)[cells]
    return np.rint(mixed).astype(np.uint8)


def box_cells(image: npt.NDArray[np.generic], cells: Sequence[tuple[int, int]], grid: Grid) -> Pixels:
    """Draw a red box just inside each cell, with a white hairline around it, which keeps it visible on red.

    Args:
        image: uint8 [H,W,3].
        cells: (row, column) of each cell.
        grid: m or (h, w).

    Returns:
        uint8 [H,W,3].

    Raises:
        ValueError: a cell outside the grid, or an image of another dtype or shape.
    """
    boxes = [(row, column, row + 1, column + 1) for row, column in cells]
    return _outlined(image, boxes, grid, (_RED, _WHITE), hairline=True)


def outline_region(image: npt.NDArray[np.generic], region: Box, grid: Grid) -> Pixels:
    """Draw a white line just inside a region and a dark one just outside it.

    Args:
        image: uint8 [H,W,3].
        region: (top, left, bottom, right) in cells, half-open.
        grid: m or (h, w).

    Returns:
        uint8 [H,W,3].

    Raises:
        ValueError: a region that is empty or leaves the grid, or an image of another dtype or shape.
    """
    return _outlined(image, [region], grid, (_WHITE, _BLACK), hairline=False)


def png_bytes(image: npt.NDArray[np.generic]) -> bytes:
    """Encode an image as PNG; equal pixels give equal bytes.

    Args:
        image: uint8 [H,W,3].

    Returns:
        The file's bytes.

    Raises:
        ValueError: another dtype or shape.
    """
    file = io.BytesIO()
    Image.fromarray(_checked(image)).save(file, format="PNG")
    return file.getvalue()


def curves_svg(curves: Curves) -> bytes:
    """Draw curves as SVG, each labelled at its end, without the title and the note.

    Equal curves give equal bytes, whatever the user's matplotlib settings. On a dark page the ink becomes light.

    Args:
        curves: the curves.

    Returns:
        The file's bytes.

    Raises:
        ValueError: a series that is not as long as `x`.
    """
    for name, values in curves.series.items():
        if len(values) != len(curves.x):
            raise ValueError(f"series {name!r}: expected {len(curves.x)} values, one for each x, got {len(values)}")
    settings = {"svg.hashsalt": "cortex-fast", "svg.fonttype": "path", "font.size": 11.0, "path.simplify": False}
    file = io.BytesIO()
    # The SVG writer reads its salt from matplotlib's global settings, which are restored afterwards.
    with style.context(["default", settings]):
        figure = Figure(figsize=(4.4, 3.1))
        axes = figure.add_subplot()
        _draw(axes, curves)
        unnamed = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", bbox_inches="tight", transparent=True, metadata=unnamed)
    return _for_dark_pages(file.getvalue())


def _edges(pixels: int, cells: int) -> npt.NDArray[np.intp]:
    """The cells' borders along a side of `pixels` pixels, int [cells + 1]."""
    edges: npt.NDArray[np.intp] = np.rint(np.arange(cells + 1) * (pixels / cells)).astype(np.intp)
    return edges


def _outlined(
    image: npt.NDArray[np.generic], boxes: Sequence[Box], grid: Grid, colours: tuple[Colour, Colour], *, hairline: bool
) -> Pixels:
    """Draw lines inside the boxes in the first colour, and outside, as thick or as hairlines, in the second."""
    pixels = _checked(image)
    rows, columns = sides(grid)
    for box in boxes:
        top, left, bottom, right = box
        if not (0 <= top < bottom <= rows and 0 <= left < right <= columns):
            expected = f"0 <= top < bottom <= {rows} and 0 <= left < right <= {columns}"
            raise ValueError(f"box: expected {expected}, got {box}")
    height, width = pixels.shape[:2]
    cell = min(height // rows, width // columns)
    thickness = max(1, min(max(2, min(height, width) // 128), cell // 4))
    ys, xs = _edges(height, rows), _edges(width, columns)
    spans = [(int(ys[t]), int(xs[left]), int(ys[b]), int(xs[right])) for t, left, b, right in boxes]
    outer = 1 if hairline else thickness
    # All outer lines come first, so that those of a neighbour do not cut a box.
    for top, left, bottom, right in spans:
        _frame(pixels, (top - outer, left - outer, bottom + outer, right + outer), outer, colours[1])
    for span in spans:
        _frame(pixels, span, thickness, colours[0])
    return pixels


def _frame(pixels: Pixels, span: Box, thickness: int, colour: Colour) -> None:
    """Paint, in place, a band of `thickness` pixels inside `span`, clipped at the image's border."""
    height, width = pixels.shape[:2]
    top, left, bottom, right = span
    rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    pixels[max(top, 0) : max(top + thickness, 0), columns] = colour
    pixels[max(bottom - thickness, 0) : min(bottom, height), columns] = colour
    pixels[rows, max(left, 0) : max(left + thickness, 0)] = colour
    pixels[rows, max(right - thickness, 0) : min(right, width)] = colour


def _draw(axes: Axes, curves: Curves) -> None:
    x = np.asarray(curves.x, dtype=np.float64)
    ends: list[tuple[float, float, str, str]] = []
    for index, (name, series) in enumerate(curves.series.items()):
        y = np.asarray(series, dtype=np.float64)
        colour, dashes = _PALETTE[index % len(_PALETTE)], _DASHES[index // len(_PALETTE) % len(_DASHES)]
        axes.plot(
            x, y, color=colour, linestyle=dashes, linewidth=2.0, marker="o" if len(x) <= 24 else "", markersize=3.5
        )
        finite = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        if len(finite):
            ends.append((float(x[finite[-1]]), float(y[finite[-1]]), name, colour))
    axes.set_xlabel(curves.x_label, color=_INK, parse_math=False)
    axes.set_ylabel(curves.y_label, color=_INK, parse_math=False)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write the curves' names right of the axes, near the height of their ends (x, y, name, colour)."""
    low, high = axes.get_ylim()
    ranked = sorted(ends, key=lambda end: end[1])
    heights = _spread([(y - low) / (high - low) for _, y, _, _ in ranked], _LABEL_GAP)
    for (x, y, name, colour), height in zip(ranked, heights, strict=True):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.06, height),
            textcoords="axes fraction",
            color=_INK,
            va="center",
            parse_math=False,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1.0, "shrinkA": 1.0, "shrinkB": 3.0},
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights moved as little as possible to be `gap` apart; those that touch form a block around their mean."""
    blocks: list[list[float]] = []
    for height in heights:
        blocks.append([height])
        while len(blocks) > 1 and _bottom(blocks[-1], gap) < _bottom(blocks[-2], gap) + gap * len(blocks[-2]):
            last = blocks.pop()
            blocks[-1] += last
    return [_bottom(block, gap) + gap * rank for block in blocks for rank in range(len(block))]


def _bottom(block: Sequence[float], gap: float) -> float:
    return sum(block) / len(block) - gap * (len(block) - 1) / 2


def _for_dark_pages(svg: bytes) -> bytes:
    """Add a rule for dark pages to matplotlib's style sheet; a program that ignores it shows the light version."""
    rules = "".join(
        f'[style*="{part}: {light}"] {{ {part}: {dark} !important }}'
        for light, dark in _ON_DARK.items()
        for part in ("fill", "stroke")
    )
    return svg.replace(b"</style>", f"@media (prefers-color-scheme: dark) {{ {rules} }}</style>".encode(), 1)
