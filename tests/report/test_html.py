"""The report as a reader and a browser see it: the pages are parsed, and every reference is followed."""

import dataclasses
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cortex_fast.report import (
    Cell,
    ConceptPage,
    Curves,
    Edit,
    EditStep,
    ExampleImage,
    Report,
    Table,
    TokenCard,
    html,
    write_report,
)
from tests.killing import die, hidden, killed

HOSTILE = "<script>alert(1)</script>"
NAN = float("nan")


class Page(HTMLParser):
    """A parsed page: its tags, the values of href and src, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "data", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def picture(seed: int, side: int = 64) -> np.ndarray:
    """A smooth one: noise would take long to compress."""
    ramp = np.linspace(0, 200, side).astype(np.uint8)
    return np.stack(
        [
            np.broadcast_to(ramp, (side, side)),
            np.broadcast_to(ramp[:, None], (side, side)),
            0 * ramp + ramp[:, None] + seed,
        ],
        axis=2,
    )


def concept(name: str, seed: int = 0) -> ConceptPage:
    tsv = np.random.default_rng(seed).random((16, 16))
    tokens = [TokenCard(16383, 1234, 0.25, [picture(seed, 12)] * 2), TokenCard(7, 5, 0.125, [])]
    steps = [EditStep(0, picture(3), 0.98765, 0.00001), EditStep(50, picture(4), NAN, 0.75)]
    edits = [
        Edit(name, "pear", (4, 4, 8, 8), steps, [(4, 5, 17, 8191)], "a note"),
        Edit(name, "x", (0, 0, 1, 1), [], []),
    ]
    return ConceptPage(name, 1300, 16, tokens, [ExampleImage(picture(seed), tsv, [(0, 0), (3, 4)], "seen")], edits)


def report(*names: str) -> Report:
    rows: list[list[Cell]] = [["ours", 0.912345, 12, 1234.5], [HOSTILE, NAN, 7, 0.00021]]
    table = Table("Masking & more", ["Method", "p", "n", "ms"], rows, "higher <b>is</b> better")
    curves = Curves("Deletion", "tokens", "p", [0.0, 1.0], {"ours": [1.0, 0.5], HOSTILE: [1.0, NAN]}, "lower is better")
    summary = Table("Summary", ["Concept", "Images"], [[name, 1300] for name in names])
    pages = [concept(name, seed) for seed, name in enumerate(names)]
    return Report("A report", "One.\n\nTwo.", summary, pages, [table, curves], {"seed": "0", HOSTILE: HOSTILE})


def pages_of(folder: Path) -> Iterator[tuple[Path, Page]]:
    for path in sorted(folder.rglob("*.html")):
        yield path, Page(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_text_is_escaped(tmp_path: Path) -> None:
    written = dataclasses.replace(report("apple", HOSTILE), title=HOSTILE, introduction=HOSTILE)
    edit = Edit(HOSTILE, HOSTILE, (0, 0, 2, 2), [EditStep(0, picture(0), 0.5, 0.5)], [], HOSTILE)
    example = ExampleImage(picture(0), np.eye(16), [], HOSTILE)
    page = dataclasses.replace(written.concepts[1], edits=[edit], examples=[example])
    write_report(dataclasses.replace(written, concepts=[page, *written.concepts]), tmp_path / "report")
    for path, parsed in pages_of(tmp_path / "report"):
        assert not {"script", "b", "iframe"} & set(parsed.tags), path
        assert HOSTILE in parsed.text, path
        assert "script" not in path.read_text(encoding="utf-8").replace("&lt;script&gt;", "").replace(
            "&lt;/script&gt;", ""
        ).replace("script-alert-1-script", "")


def test_every_reference_exists_and_is_local(tmp_path: Path) -> None:
    index = write_report(report("apple", "pear", "soccer ball"), tmp_path / "report")
    assert index == tmp_path / "report" / "index.html"
    reached = {index.resolve()}
    for path, parsed in pages_of(index.parent):
        for reference in parsed.references:
            assert not re.match(r"[a-z][a-z0-9+.-]*:|/", reference, re.IGNORECASE), reference
            if file := reference.partition("#")[0]:
                aim = (path.parent / file).resolve()
                assert aim.is_file(), reference
                assert aim.is_relative_to(index.parent.resolve())
                reached.add(aim)
        assert all(image["alt"] for image in parsed.images)
    stray = {path.resolve() for path in index.parent.rglob("*") if path.is_file()} - reached
    assert [path.name for path in stray] == [".cortex-fast-report"]
    sheet = (index.parent / "style.css").read_text(encoding="utf-8")
    assert "url(" not in sheet
    assert "@import" not in sheet
    for path in index.parent.rglob("*.html"):
        assert "http" not in path.read_text(encoding="utf-8").replace("http-equiv", "")


def test_every_picture_opens(tmp_path: Path) -> None:
    folder = write_report(report("apple"), tmp_path / "report").parent
    kinds = set()
    for path in (folder / "images").rglob("*.*"):
        kinds.add(path.suffix)
        if path.suffix == ".svg":
            ElementTree.parse(path)
        else:
            with Image.open(path) as opened:
                opened.load()
                assert opened.format == "PNG"
    assert kinds == {".png", ".svg"}


@pytest.mark.parametrize(
    "names",
    [
        ["apple", "apple", "Apple", "apple-1", "apple 1"],
        ["../x", "..\\x", "/etc/passwd", ".", "..", ""],
        ["\u82f9\u679c", "\u68a8", "cr\u00e8me br\u00fbl\u00e9e", "\U0001f427", "a\x00b", "a\nb"],
        ["con", "nul", "x" * 500, "x" * 501, HOSTILE, "%2e%2e", "a?b#c", "CON.html"],
        [f"n{i:04d}" for i in range(1000)],
    ],
)
def test_file_names_are_safe_and_differ(names: list[str]) -> None:
    stems = html.file_stems(names)
    assert len(set(stems)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*-[0-9]+", stem) and len(stem) < 80 for stem in stems)


def test_a_hostile_name_stays_inside_the_folder(tmp_path: Path) -> None:
    write_report(report("../x", "../x", "caf\u00e9"), tmp_path / "in" / "report")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["report"]
    assert sorted(path.name for path in (tmp_path / "in" / "report" / "concepts").iterdir()) == [
        "cafe-3.html",
        "x-1.html",
        "x-2.html",
    ]


def test_numbers_are_rounded_and_nan_is_a_dash(tmp_path: Path) -> None:
    folder = write_report(report("apple"), tmp_path / "report").parent
    index, page = Page(folder / "index.html"), Page(folder / "concepts" / "apple-1.html")
    cells = [text for text in index.texts if text.strip()]
    for expected in ("0.912", "12", "\u2013", "1234", "0.00021", "1,300 images"):
        assert expected in cells, expected
    for expected in ("0.988", "< 0.001", "0.750", "25.0 %", "1,234 \u00d7", "1 of 16 tokens changed", "8191"):
        assert expected in page.text, expected
    assert "nan" not in (index.text + page.text).lower()


def test_pages_lead_to_their_neighbours(tmp_path: Path) -> None:
    folder = write_report(report("a", "b", "c"), tmp_path / "report").parent / "concepts"
    links = {path.stem: {r for r in page.references if r.endswith(".html")} for path, page in pages_of(folder)}
    assert links == {"a-1": {"b-2.html"}, "b-2": {"a-1.html", "c-3.html"}, "c-3": {"b-2.html"}}


def test_an_empty_report_reads_well(tmp_path: Path) -> None:
    bare = ConceptPage("bare", 0, 16, [], [])
    empty = Report("Empty", "", Table("", [], []), [], [])
    for number, concepts in enumerate(([], [bare])):
        index = write_report(dataclasses.replace(empty, concepts=concepts), tmp_path / str(number))
        text = " ".join(page.text for _, page in pages_of(index.parent))
        assert "This report has no evaluation." in text
        assert not Page(index).images
    assert "No tokens were counted" in text
    assert "Edits" not in text


def test_a_foreign_folder_is_refused_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "index.html").write_text("mine")
    with pytest.raises(FileExistsError, match="thesis"):
        write_report(report("apple"), folder)
    assert contents(folder) == {"index.html": b"mine"}
    with pytest.raises(FileExistsError, match=r"index\.html"):
        write_report(report("apple"), folder / "index.html")


def test_an_empty_folder_and_an_old_report_are_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    write_report(report("apple"), folder)
    (folder / "left over").write_text("old")
    write_report(report("pear"), folder)
    assert [path.name for path in (folder / "concepts").iterdir()] == ["pear-1.html"]
    assert not (folder / "left over").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failure_midway_leaves_the_old_report_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    write_report(report("apple"), folder)
    before = contents(folder)
    good = report("pear", "plum")
    bad = dataclasses.replace(good.concepts[1], examples=[ExampleImage(picture(0), np.zeros((3, 4)), [])])
    with pytest.raises(ValueError, match="tsv: expected"):
        write_report(dataclasses.replace(good, concepts=[good.concepts[0], bad]), folder)
    assert list(tmp_path.iterdir()) == [folder]
    assert contents(folder) == before


def test_a_failed_exchange_puts_the_old_report_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "report"
    write_report(report("apple"), folder)
    before = contents(folder)
    rename = Path.rename

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OSError, match="no"):
        write_report(report("pear"), folder)
    assert list(tmp_path.iterdir()) == [folder]
    assert contents(folder) == before


@pytest.mark.parametrize("old", [False, True])
def test_the_next_run_restores_a_report_whose_replacement_was_killed(tmp_path: Path, old: bool) -> None:
    folder = tmp_path / "report"
    if old:
        write_report(report("apple"), folder)
    before = contents(folder) if old else {}

    def dead() -> None:
        rename = Path.rename
        Path.rename = lambda path, target: die() if path.suffix == ".part" else rename(path, target)  # type: ignore
        write_report(report("pear"), folder)

    killed(dead)
    assert not folder.exists() and len(hidden(tmp_path)) == 1
    write_report(report("plum"), tmp_path / "another")
    assert (contents(folder) if old else {}) == before and not hidden(tmp_path)
    write_report(report("pear"), folder)
    assert [path.name for path in (folder / "concepts").iterdir()] == ["pear-1.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "report"]


@pytest.mark.parametrize("cells", [["a"], ["a", 1, 2]])
def test_a_ragged_table_is_refused(tmp_path: Path, cells: list[Cell]) -> None:
    ragged = dataclasses.replace(report("apple"), summary=Table("Sums", ["a", "b"], [["a", 1], cells]))
    with pytest.raises(ValueError, match="table 'Sums'"):
        write_report(ragged, tmp_path / "report")


def test_equal_reports_are_equal_bytes(tmp_path: Path) -> None:
    first = write_report(report("apple", "pear"), tmp_path / "first").parent
    second = write_report(report("apple", "pear"), tmp_path / "second").parent
    assert contents(first) == contents(second)
