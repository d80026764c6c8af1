"""From arrays to pictures: heat, boxes and outlines on images, PNG bytes, and curves as SVG.

Images are uint8 [H,W,3], RGB. A grid of h x w cells covers an image whatever its size: cell (row, column) spans the
pixels [row H / h, (row + 1) H / h) x [column W / w, (column + 1) W / w). Every function returns a new array.
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
# An overlay's part of colour, at the lowest heat and added up to the highest, and the brightness left to the image: as
# much of the image as still lets the luminance grow with the heat on white.
_HEAT_LOW, _HEAT_MORE, _BRIGHTNESS = 0.35, 0.45, 0.65
_FEW_PIXELS = 32  # below this side an image is a mosaic: smoothing would only blur its pixels

_INK = "#24292f"
_GRID = "#d9dde2"
# Okabe and Ito's palette without its yellow (too pale on white); only its blue is too deep for a dark page.
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8f98")
_ON_DARK = {_INK: "#d5dae1", _GRID: "#3a414b", "#0072b2": "#3a9bdc"}
_DASHES = ("-", "--", ":", "-.")
_LABEL_GAP = 0.085  # between the labels at the lines' ends, as a part of the axes' height


def _checked(image: npt.NDArray[np.generic], name: str = "image") -> Pixels:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"{name}: expected uint8 [H,W,3], not empty, got {image.dtype} {list(image.shape)}")
    return image.astype(np.uint8, copy=True)


def enlarge(image: npt.NDArray[np.generic], side: int) -> Pixels:
    """`image` uint8 [H,W,3] times the largest whole factor (at least 1) that keeps its short side within `side` pixels.

    Below 32 pixels a side each pixel becomes a square; larger images are interpolated (Lanczos).
    """
    pixels = _checked(image)
    height, width = pixels.shape[:2]
    factor = max(1, side // min(height, width))
    method = Image.Resampling.NEAREST if min(height, width) < _FEW_PIXELS else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((width * factor, height * factor), method))


def heat_overlay(image: npt.NDArray[np.generic], tsv: npt.NDArray[np.generic]) -> Pixels:
    """The image uint8 [H,W,3] in dim grey under the heat of its TSV [h,w]: viridis, from the lowest value to the top.

    Each cell has one colour, so heat and boxes line up. At each pixel the luminance grows with the TSV. A TSV with one
    value throughout is all lowest heat. Raises ValueError for a TSV that is not [h,w] or not finite.
    """
    pixels = _checked(image)
    values = np.asarray(tsv, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"tsv: expected finite values [h,w], got shape {list(values.shape)} or values not finite")
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
    """The image uint8 [H,W,3] with a red box just inside each of the (row, column) `cells` of its grid.

    grid: m x m cells, or (h, w). A white hairline outside each box keeps it visible on red. Raises ValueError for
    a cell outside the grid.
    """
    boxes = [(row, column, row + 1, column + 1) for row, column in cells]
    return _outlined(image, boxes, grid, (_RED, _WHITE), hairline=True)


def outline_region(image: npt.NDArray[np.generic], region: Box, grid: Grid) -> Pixels:
    """The image uint8 [H,W,3] with a white line just inside `region` and a dark one just outside it.

    `region` is half-open (top, left, bottom, right) in cells of the grid, of m x m of them or (h, w). Raises ValueError
    if it is empty or leaves the grid.
    """
    return _outlined(image, [region], grid, (_WHITE, _BLACK), hairline=False)


def png_bytes(image: npt.NDArray[np.generic]) -> bytes:
    """`image` uint8 [H,W,3] as a PNG file; equal pixels give equal bytes."""
    file = io.BytesIO()
    Image.fromarray(_checked(image)).save(file, format="PNG")
    return file.getvalue()


def curves_svg(curves: Curves) -> bytes:
    """The curves as an SVG file, without their title and note; each line is labelled at its end.

    Equal curves give equal bytes, whatever the user's matplotlib settings. On a dark page the ink turns light. Raises
    ValueError for a series that is not as long as `x`.
    """
    for name, values in curves.series.items():
        if len(values) != len(curves.x):
            raise ValueError(f"series {name!r}: expected {len(curves.x)} values, one for each x, got {len(values)}")
    settings = {"svg.hashsalt": "cortex-fast", "svg.fonttype": "path", "font.size": 11.0, "path.simplify": False}
    file = io.BytesIO()
    # The SVG writer reads its salt from the settings alone, so they are set for these lines and put back.
    with style.context(["default", settings]):
        figure = Figure(figsize=(4.4, 3.1))
        axes = figure.add_subplot()
        _draw(axes, curves)
        unnamed = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", bbox_inches="tight", transparent=True, metadata=unnamed)
    return _for_dark_pages(file.getvalue())


def _edges(pixels: int, cells: int) -> npt.NDArray[np.intp]:
    """[cells + 1]: where the cells begin and end along a side of `pixels`."""
    edges: npt.NDArray[np.intp] = np.rint(np.arange(cells + 1) * (pixels / cells)).astype(np.intp)
    return edges


def _outlined(
    image: npt.NDArray[np.generic], boxes: Sequence[Box], grid: Grid, colours: tuple[Colour, Colour], *, hairline: bool
) -> Pixels:
    """Lines just inside the boxes in the first colour; just outside, equally thick or hairlines, in the second."""
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
    # All outer lines first: a neighbour's must not cut a box.
    for top, left, bottom, right in spans:
        _frame(pixels, (top - outer, left - outer, bottom + outer, right + outer), outer, colours[1])
    for span in spans:
        _frame(pixels, span, thickness, colours[0])
    return pixels


def _frame(pixels: Pixels, span: Box, thickness: int, colour: Colour) -> None:
    """Paints, in place, the band of `thickness` pixels inside `span`, clipped at the image's border."""
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
        seen = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        if len(seen):
            ends.append((float(x[seen[-1]]), float(y[seen[-1]]), name, colour))
    axes.set_xlabel(curves.x_label, color=_INK, parse_math=False)
    axes.set_ylabel(curves.y_label, color=_INK, parse_math=False)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes each line's name right of the axes, level with its end (x, y, name, colour) or as near as room allows."""
    low, high = axes.get_ylim()
    ranked = sorted(ends, key=lambda end: end[1])
    wanted = [(y - low) / (high - low) for _, y, _, _ in ranked]
    for (x, y, name, colour), height in zip(ranked, _spread(wanted, _LABEL_GAP), strict=True):
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
    """Rising heights moved as little as needed to lie `gap` apart: touching ones form a block about their mean."""
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
    """Adds a rule for dark pages to matplotlib's style sheet; programs that ignore it show the light version."""
    rules = "".join(
        f'[style*="{part}: {light}"] {{ {part}: {dark} !important }}'
        for light, dark in _ON_DARK.items()
        for part in ("fill", "stroke")
    )
    return svg.replace(b"</style>", f"@media (prefers-color-scheme: dark) {{ {rules} }}</style>".encode(), 1)
