"""tools/long_calls.py: calls of many positional arguments in a made-up package are reported."""

from pathlib import Path

from tools import long_calls


def faults(root: Path, text: str) -> list[str]:
    (root / "cortex_fast" / "ops").mkdir(parents=True)
    (root / "cortex_fast" / "ops" / "conv.py").write_text(text, encoding="utf-8")
    return long_calls.faults_of(root)


def test_seven_positional_arguments(tmp_path):
    message = "cortex_fast/ops/conv.py:2: native.conv has 7 positional arguments; name them"
    assert faults(tmp_path, "\nnative.conv(1, 2, 3, 4, 5, 6, 7)") == [message]


def test_six_arguments_keywords_stars_and_tensors_to_save(tmp_path):
    text = "f(1, 2, 3, 4, 5, 6, *rest, a=1, b=2)\nctx.save_for_backward(a, b, c, d, e, f, g)"
    assert faults(tmp_path, text) == []
