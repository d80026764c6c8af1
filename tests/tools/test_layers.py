"""tools/layers.py: each kind of wrong import in a made-up package is reported, and right ones are not."""

from pathlib import Path

import pytest

from tools import layers


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / "cortex_fast" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root


def test_imports_of_lower_floors_and_of_the_own_folder(tmp_path):
    files = {
        "engine/graphs.py": "from cortex_fast.data import store\nfrom cortex_fast import checks\nimport torch",
        "engine/nodes.py": "from cortex_fast.engine.graphs import Graph\nimport cortex_fast.data.store",
        "data/files.py": "from . import store",
        "data/store.py": "from ..checks import whole",
        "checks.py": "",
    }
    assert layers.faults_of(write(tmp_path, files)) == []


@pytest.mark.parametrize(
    "statement",
    [
        "from cortex_fast.explain import saliency",
        "from cortex_fast.explain.saliency import smoothgrad",
        "import cortex_fast.explain.saliency",
        "from ..explain.saliency import smoothgrad",
        "def run():\n    from cortex_fast.explain import saliency",
        "if TYPE_CHECKING:\n    from cortex_fast.explain.saliency import Scores",
    ],
)
def test_import_of_a_higher_floor(tmp_path, statement):
    root = write(tmp_path, {"engine/graphs.py": statement, "explain/saliency.py": "", "explain/__init__.py": ""})
    (fault,) = layers.faults_of(root)
    line = statement.count("\n") + 1
    assert fault.startswith(
        f"cortex_fast/engine/graphs.py:{line}: engine (floor 8 from the top) imports cortex_fast.explain"
    )
    assert fault.endswith("of explain (floor 7), a higher floor")


def test_import_of_the_public_names_from_below(tmp_path):
    root = write(tmp_path, {"__init__.py": "", "engine/graphs.py": "from cortex_fast import smoothgrad"})
    assert [fault.endswith("of __init__ (floor 1), a higher floor") for fault in layers.faults_of(root)] == [True]


def test_import_of_another_folder_on_the_same_floor(tmp_path):
    root = write(tmp_path, {"engine/graphs.py": "from cortex_fast.vqgm import model", "vqgm/model.py": ""})
    (fault,) = layers.faults_of(root)
    assert fault.endswith("imports cortex_fast.vqgm.model of vqgm (floor 8), another folder on the same floor")


def test_import_of_kernels_past_the_operators(tmp_path):
    statement = "from cortex_fast.kernels import load"
    files = {"explain/selection.py": statement, "ops/conv.py": statement, "kernels/__init__.py": ""}
    (fault,) = layers.faults_of(write(tmp_path, files))
    assert fault.startswith("cortex_fast/explain/selection.py:1: explain") and "which only ops, " in fault


def test_circle_inside_a_folder(tmp_path):
    files = {
        "data/store.py": "import cortex_fast.data.files",
        "data/files.py": "\n\ndef read():\n    from cortex_fast.data.tables import Table",
        "data/tables.py": "import cortex_fast.data.store",
    }
    assert layers.faults_of(write(tmp_path, files)) == [
        "circle: cortex_fast/data/files.py:4 imports cortex_fast.data.tables.Table; "
        "cortex_fast/data/tables.py:1 imports cortex_fast.data.store; "
        "cortex_fast/data/store.py:1 imports cortex_fast.data.files"
    ]


def test_folder_without_a_floor(tmp_path):
    root = write(tmp_path, {"helpers/strings.py": ""})
    assert layers.faults_of(root) == ["cortex_fast/helpers: tools/layers.py states no floor for it"]
