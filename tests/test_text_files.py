"""Text files are UTF-8 whatever the locale: every call that reads or writes text says so."""

import ast
from pathlib import Path

import cortex_fast

SOURCES = sorted(Path(cortex_fast.__file__).parent.rglob("*.py"))
PLACES = {"read_text": 0, "write_text": 1, "open": 3}  # of the encoding among the arguments of the method


def without_encoding(tree: ast.AST) -> list[int]:
    """The lines of calls of these methods, or of open(), that leave the encoding to the locale."""
    lines = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        method = isinstance(call.func, ast.Attribute)
        name = call.func.attr if method else getattr(call.func, "id", "")
        if name not in PLACES or (not method and name != "open"):
            continue
        modes = [*(call.args[:1] if method else call.args[1:2]), *(k.value for k in call.keywords if k.arg == "mode")]
        texts = [mode.value for mode in modes if isinstance(mode, ast.Constant)]
        binary = any("b" in str(text) for text in texts)
        of_archive = method and bool(modes) and not texts  # a member's name, or os.open's path
        given = any(k.arg == "encoding" for k in call.keywords) or len(call.args) > PLACES[name]
        if not (name == "open" and (binary or of_archive)) and not given:
            lines.append(call.lineno)
    return lines


def test_the_rule_sees_what_leaves_it_to_the_locale():
    text = "p.read_text()\np.write_text(t)\np.open()\nopen(p)\nopen(p, 'w')\np.open('r')\n"
    good = "p.read_text('utf-8')\np.write_text(t, encoding='utf-8')\np.open('rb')\nopen(p, 'rb')\n"
    good += "os.open(p, f)\narchive.open(name)\n"
    assert without_encoding(ast.parse(text)) == [1, 2, 3, 4, 5, 6] and without_encoding(ast.parse(good)) == []


def test_every_text_file_has_its_encoding():
    assert len(SOURCES) > 100
    violations = {path.name: lines for path in SOURCES if (lines := without_encoding(ast.parse(path.read_bytes())))}
    assert violations == {}
