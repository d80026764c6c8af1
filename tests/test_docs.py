"""README and docs: links lead to files, and the developers' page names files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_files_on_the_developers_page():
    names = re.findall(r"`([\w./]+(?:/|\.\w+))`", (ROOT / "docs" / "house.md").read_text(encoding="utf-8"))
    paths = [name for name in names if "/" in name or name.endswith((".py", ".pyi", ".toml"))]
    assert len(paths) > 30
    assert [
        path for path in paths if not any((folder / path).exists() for folder in (ROOT, ROOT / "cortex_fast"))
    ] == []
