"""tools/duplicates.py: code written twice in a made-up package is reported, and a listed pair is not."""

from pathlib import Path

import pytest

from tools import duplicates

LONG = [f"    total = weigh(total, {number})" for number in range(13)]


def write(root: Path, **files: list[str]) -> Path:
    (root / "cortex_fast").mkdir(exist_ok=True)
    for name, lines in files.items():
        (root / "cortex_fast" / f"{name}.py").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def no_listed_pairs(monkeypatch):
    monkeypatch.setattr(duplicates, "ALIKE", {})


def test_runs_with_other_names_and_constants(tmp_path):
    renamed = [line.replace("total", "result").replace("weigh", "scale").replace("1", "7") for line in LONG]
    root = write(tmp_path, a=["def add(total):", *LONG], b=["", "def multiply(result):", "    start()", *renamed])
    (fault,) = duplicates.faults_of(root)
    places = "cortex_fast/a.py:2-14 (add) and cortex_fast/b.py:4-16 (multiply)"
    assert fault == f"{places} are alike for 13 lines; write it once, or state the reason in ALIKE"


def test_runs_of_one_function(tmp_path):
    root = write(tmp_path, a=["def add(total):", *LONG, "    return", *LONG])
    (fault,) = duplicates.faults_of(root)
    assert fault.startswith("cortex_fast/a.py:2-14 (add) and cortex_fast/a.py:16-28 (add) are alike")


def test_short_runs_docstrings_and_exports(tmp_path):
    docstring = ['    """A sentence.', *["    more"] * 9, '    """']
    exports = ["__all__ = [", *[f'    "name{number}",' for number in range(20)], "]"]
    function = ["def add(total):", *docstring, *LONG[:10]]
    root = write(tmp_path, a=[*exports, *function], b=[*exports, *function])
    assert duplicates.faults_of(root) == []


def signature(name: str, *arguments: str) -> list[str]:
    return [f"def {name}(", *[f"    {argument}," for argument in arguments], "):"]


def test_signatures(tmp_path):
    names = [f"argument{number}" for number in range(12)]
    root = write(tmp_path, a=[*signature("f", *names), "    pass"], b=[*signature("g", *names), "    return 0"])
    write(root, c=[*signature("f", *[f"other{name}" for name in names]), "    raise ValueError"])
    (fault,) = duplicates.faults_of(root)
    assert fault.startswith("cortex_fast/a.py:1-14 (f(...)) and cortex_fast/b.py:1-14 (g(...)) are alike for 14 lines")


def test_calls(tmp_path):
    keywords = [f"    argument{number}={number}," for number in range(12)]
    root = write(tmp_path, a=["x = f(", *keywords, ")"], b=["def h():", "  return g(", *keywords, "  )"])
    write(root, c=["x = f(", *[line.replace("argument", "other") for line in keywords], ")"])
    (fault,) = duplicates.faults_of(root)
    assert fault.startswith("cortex_fast/a.py:1-14 () and cortex_fast/b.py:2-15 (h) are alike for 14 lines")


def test_listed_pairs(tmp_path, monkeypatch):
    root = write(tmp_path, a=["def add(total):", *LONG], b=["def add(total):", *LONG])
    pairs = {("*/b.py:add", "*/a.py:add"): "a reason", ("*/c.py:*", "*/a.py:*"): "another"}
    monkeypatch.setattr(duplicates, "ALIKE", pairs)
    assert duplicates.faults_of(root) == ["*/c.py:* and */a.py:* are not alike; remove them from ALIKE"]
