"""Pictures against their expected pixels, computed in another way than by the code."""

import io
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from cortex_fast.report.content import Curves
from cortex_fast.report.pictures import box_cells, curves_svg, enlarge, heat_overlay, outline_region, png_bytes

GREY = np.full((64, 64, 3), 128, dtype=np.uint8)


def luminance(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float64) @ [0.2126, 0.7152, 0.0722]


def is_red(pixels: np.ndarray) -> np.ndarray:
    return (pixels[..., 0] > 200) & (pixels[..., 1] < 50) & (pixels[..., 2] < 50)


@pytest.mark.parametrize(("side", "grid"), [(320, 16), (256, 16), (64, 16), (250, 16), (100, 7)])
def test_a_box_borders_its_cell_and_nothing_else(side: int, grid: int) -> None:
    image = np.full((side, side, 3), 128, dtype=np.uint8)
    row, column = 3, 5
    drawn = box_cells(image, [(row, column)], grid)

    top, bottom = round(row * side / grid), round((row + 1) * side / grid)
    left, right = round(column * side / grid), round((column + 1) * side / grid)
    red = is_red(drawn)
    for line in (red[top, left:right], red[bottom - 1, left:right], red[top:bottom, left], red[top:bottom, right - 1]):
        assert line.all()
    inside = np.zeros((side, side), dtype=bool)
    inside[top:bottom, left:right] = True
    assert not red[~inside].any()
    assert (drawn[(top + bottom) // 2, (left + right) // 2] == 128).all()
    near = np.zeros((side, side), dtype=bool)
    near[top - 1 : bottom + 1, left - 1 : right + 1] = True
    assert (drawn[~near] == 128).all()
    assert (image == 128).all()


def test_neighbouring_boxes_are_all_whole() -> None:
    cells = [(0, 0), (0, 1), (1, 0), (15, 15)]
    red = is_red(box_cells(np.zeros((256, 256, 3), dtype=np.uint8), cells, 16))
    for row, column in cells:
        cell = red[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        assert cell[0].all()
        assert cell[-1].all()
        assert cell[:, 0].all()
        assert cell[:, -1].all()


def test_the_outline_follows_the_half_open_region() -> None:
    drawn = outline_region(np.full((320, 320, 3), 90, dtype=np.uint8), (2, 4, 6, 10), 16)
    white = (drawn == 255).all(axis=2)
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (40, 119, 80, 199)
    assert (drawn[44:116, 84:196] == 90).all()


def test_boxes_and_regions_of_a_grid_of_rows_and_columns() -> None:
    image = np.full((60, 200, 3), 90, dtype=np.uint8)  # cells of 10 x 20 pixels
    boxed = box_cells(image, [(5, 9), (0, 1)], (6, 10))
    rows, columns = np.nonzero((boxed == (230, 0, 30)).all(axis=2))
    assert {(int(y) // 10, int(x) // 20) for y, x in zip(rows, columns, strict=True)} == {(5, 9), (0, 1)}
    assert (rows.max(), columns.max()) == (59, 199)
    outlined = outline_region(image, (1, 6, 4, 9), (6, 10))
    rows, columns = np.nonzero((outlined == 255).all(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 39, 120, 179)
    for cell in ((6, 0), (0, 10)):
        with pytest.raises(ValueError, match=r"box: expected 0 <= top < bottom <= 6 and 0 <= left < right <= 10"):
            box_cells(image, [cell], (6, 10))


def test_heat_of_a_grid_of_rows_and_columns() -> None:
    tsv = np.random.default_rng(0).permutation(60).reshape(6, 10)
    cells = luminance(heat_overlay(np.full((60, 200, 3), 128, dtype=np.uint8), tsv)).reshape(6, 10, 10, 20)
    assert (np.ptp(cells, axis=(1, 3)) == 0).all()
    ranked = cells[:, 0, :, 0].ravel()[np.argsort(tsv.ravel())]
    assert (ranked[8:] > ranked[:-8]).all()


@pytest.mark.parametrize("region", [(0, 0, 17, 4), (-1, 0, 3, 4), (4, 0, 4, 4), (0, 5, 3, 2)])
def test_a_region_outside_the_grid_is_refused(region: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="box: expected"):
        outline_region(GREY, region, 16)


def test_a_cell_outside_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"box: expected .* got \(16, 0, 17, 1\)"):
        box_cells(GREY, [(16, 0)], 16)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_heat_grows_with_the_tsv(level: int) -> None:
    tsv = np.random.default_rng(0).permutation(np.linspace(0, 3, 256)).reshape(16, 16)
    heat = heat_overlay(np.full((256, 256, 3), level, dtype=np.uint8), tsv)
    cells = luminance(heat).reshape(16, 16, 16, 16)
    assert (np.ptp(cells, axis=(1, 3)) == 0).all()
    ranked = cells[:, 0, :, 0].ravel()[np.argsort(tsv.ravel())]
    assert (np.diff(ranked) > -1).all()  # half a level of rounding in each of two colours
    assert (ranked[16:] > ranked[:-16]).all()


def test_the_image_shows_through_the_heat() -> None:
    image = GREY.copy()
    image[:, 32:] = 230
    for value in (0.0, 1.0):
        tsv = np.full((16, 16), value)
        tsv[0, 0] = 1 - value
        seen = luminance(heat_overlay(image, tsv))
        assert (seen[8:, 32:] - seen[8:, :32]).min() > 10


def test_a_flat_tsv_is_lowest_heat() -> None:
    gradient = np.array([[0.0, 1.0], [0.5, 0.2]])
    assert (heat_overlay(GREY, np.full((2, 2), 7.0))[0, 0] == heat_overlay(GREY, gradient)[0, 0]).all()


@pytest.mark.parametrize("tsv", [np.zeros((3, 4, 1)), np.zeros(16), np.zeros((0, 0)), np.full((2, 2), np.nan)])
def test_a_tsv_of_another_shape_is_refused(tsv: np.ndarray) -> None:
    with pytest.raises(ValueError, match="tsv: expected"):
        heat_overlay(GREY, tsv)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_arrays_of_other_shapes_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="image: expected uint8"):
        png_bytes(image)


@pytest.mark.parametrize(("side", "wanted", "got"), [(64, 320, 320), (256, 320, 256), (12, 144, 144), (512, 320, 512)])
def test_enlarging_is_by_whole_factors(side: int, wanted: int, got: int) -> None:
    assert enlarge(np.zeros((side, side, 3), np.uint8), wanted).shape == (got, got, 3)


def test_few_pixels_become_squares() -> None:
    small = np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    assert (enlarge(small, 144) == small.repeat(12, axis=0).repeat(12, axis=1)).all()


def test_a_png_holds_the_image() -> None:
    image = np.random.default_rng(2).integers(0, 256, (9, 5, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(png_bytes(image))) as opened:
        assert opened.format == "PNG"
        assert (np.asarray(opened) == image).all()


def curves(**series: list[float]) -> Curves:
    return Curves("Deletion", "tokens", "$x <b>", [0.0, 1.0, 2.0], series)


def test_curves_are_svg_with_every_line_named() -> None:
    svg = curves_svg(curves(ours=[1.0, 0.5, 0.2], gradients=[1.0, float("nan"), float("nan")], random=[1.0, 0.9, 0.8]))
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    for word in (b"ours", b"gradients", b"random", b"tokens"):
        assert b"<!-- " + word + b" -->" in svg
    assert b"<metadata>" not in svg


def test_curves_do_not_depend_on_settings_and_leave_them_alone() -> None:
    plain = curves_svg(curves(ours=[1.0, 0.5, 0.2]))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "pink", "svg.hashsalt": None}):
        before = dict(matplotlib.rcParams)
        assert curves_svg(curves(ours=[1.0, 0.5, 0.2])) == plain
        assert dict(matplotlib.rcParams) == before


def test_curves_without_values_are_drawn() -> None:
    nothing = curves(ours=[float("nan")] * 3)
    for empty in (curves(), nothing, Curves("t", "x", "y", [], {"ours": []})):
        ElementTree.fromstring(curves_svg(empty))


def test_a_series_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="series 'ours': expected 3 values, one for each x, got 2"):
        curves_svg(curves(ours=[1.0, 0.5]))


def test_labels_at_one_height_are_spread() -> None:
    same = {f"method {i}": [1.0, 0.5, 0.5] for i in range(5)}
    svg = curves_svg(Curves("t", "x", "y", [0.0, 1.0, 2.0], same)).decode()
    heights = []
    for name in same:
        drawn = svg.split(f"<!-- {name} -->")[1]
        heights.append(float(drawn.split("translate(")[1].split(")")[0].split()[1]))
    assert (np.abs(np.diff(sorted(heights))) > 10).all()
