"""info: says what is there, and why not where it is not."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cortex_fast import info as module
from cortex_fast.kernels import cuda, native, triton
from cortex_fast.ops.backends import IMPL_VARIABLE, NAMES

needs_native = pytest.mark.skipif(native.UNAVAILABLE is not None, reason=str(native.UNAVAILABLE))


def test_names_versions_devices_and_every_operator() -> None:
    facts = module.info()
    assert facts.versions["torch"] == torch.__version__
    assert facts.versions["cortex-fast"] != ""
    assert str(torch.get_num_threads()) in facts.devices["threads"]
    if not torch.cuda.is_available():
        assert facts.devices["CUDA"].startswith("none: ")
    assert {"token_saliency", "concept_counts"} <= facts.operators.keys()
    for devices in facts.operators.values():
        for answers in devices.values():
            assert [answer.backend for answer in answers] == list(NAMES)
            assert all(answer.reason for answer in answers)
            assert answers[-1].usable


@needs_native
def test_native_core_passes_its_self_test() -> None:
    facts = module.info()
    assert facts.native["self-test"].startswith("passed")
    assert facts.native["version"] == facts.versions["cortex-fast"]


@needs_native
@pytest.mark.parametrize("operator", ["token_saliency", "nearest_code"])
def test_self_test_notices_a_wrong_core(monkeypatch: pytest.MonkeyPatch, operator: str) -> None:
    kernel = importlib.import_module(f"cortex_fast.kernels.native.{operator}")
    right = getattr(kernel, operator)
    monkeypatch.setattr(kernel, operator, lambda *arguments, **named: right(*arguments, **named) + 1)
    assert module.info().native["self-test"].startswith(f"FAILED: {operator}")


@needs_native
def test_every_operator_is_served_natively_and_tested() -> None:
    facts = module.info()
    for operator, devices in facts.operators.items():
        assert [answer.usable for answer in devices["cpu"] if answer.backend == "native"] == [True], operator
    assert facts.operators.keys() - {"random_stream"} == module._trials().keys()


def test_describe_holds_it_all_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    text = module.describe()
    for part in (
        "versions",
        "devices",
        "native core",
        "CUDA kernels",
        "Triton kernels",
        "token_saliency (float32, cpu)",
        "reference",
        torch.__version__,
    ):
        assert part in text
    assert capsys.readouterr() == ("", "")


def test_describe_tells_of_a_forced_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(IMPL_VARIABLE, raising=False)
    assert IMPL_VARIABLE not in module.describe()
    monkeypatch.setenv(IMPL_VARIABLE, "reference")
    assert f"{IMPL_VARIABLE}  'reference' stands for" in module.describe()


def test_without_the_extension_says_why() -> None:
    code = "import sys; sys.modules['cortex_fast._native'] = None; import cortex_fast.info as i; print(i.describe())"
    root = Path(module.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "missing  cortex_fast._native did not load" in done.stdout
    assert "native     cortex_fast._native did not load" in done.stdout


def test_says_how_triton_kernels_run_or_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "unavailable", lambda: "triton did not import: it is not there")
    assert module.info().triton == {"missing": "triton did not import: it is not there"}
    monkeypatch.undo()
    if triton.unavailable() is None:
        assert module.info().versions["triton"] == sys.modules["triton"].__version__
        for interpreted, expected in ((True, "in Triton's interpreter"), (False, "compiled when first used")):
            monkeypatch.setattr(triton, "INTERPRETED", interpreted)
            assert module.info().triton["run"].startswith(expected)
            (answer,) = (a for a in module.info().operators["token_saliency"]["cpu"] if a.backend == "triton")
            assert not answer.usable
            assert ("only where it is forced" if interpreted else "runs on a GPU") in answer.reason


def test_says_whether_cuda_kernels_were_built_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    if cuda.NOT_BUILT is None:
        assert "sm_80" in module.info().cuda["built"]
        if not torch.cuda.is_available():
            assert module.info().cuda["run"].startswith("no: CUDA finds no GPU: ")
        monkeypatch.setattr(cuda, "unavailable", lambda: None)
        assert "where they are forced" in module.info().cuda["run"]
    monkeypatch.setattr(cuda, "NOT_BUILT", "the CUDA kernels were not built: no nvcc was found")
    assert module.info().cuda == {"missing": "the CUDA kernels were not built: no nvcc was found"}


MAPPED = "7f00-7f01 r-xp 00000000 08:01 {number}    {path}\n"


@pytest.mark.parametrize(
    ("libraries", "expected"),
    [
        (["/a/libgomp.so.1", "/a/libgomp.so.1", "/a/libtorch.so"], "yes, shared with torch: /a/libgomp.so.1"),
        (["/a/libgomp.so.1", "/my env/libgomp.so.1"], "2 OpenMP libraries are loaded"),
        ([], "this system does not tell"),
    ],
)
def test_openmp_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, libraries: list[str], expected: str) -> None:
    maps = tmp_path / "maps"
    maps.write_text("7f00-7f01 rw-p 00000000 00:00 0\n" + "".join(MAPPED.format(number=1, path=p) for p in libraries))
    monkeypatch.setattr(module, "MAPPED_FILES", maps)
    assert expected in module._openmp()
    monkeypatch.setattr(module, "MAPPED_FILES", tmp_path / "absent")
    assert "this system does not tell" in module._openmp()
