"""The training script from end to end, with a hundredth of the work: every stage, its files, and a second run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cortex_fast import zoo

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_quick_training_makes_a_whole_model_and_keeps_it(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "train_zoo.py"), "--quick", "--work", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment, timeout=1200)
    model = zoo.load(tmp_path / "weights")
    assert set(model.judges) == set(zoo.JUDGES) and len(model.vqgm.codebook) == 1024
    assert "| tokenizer: PSNR" in (tmp_path / "MODEL_CARD.md").read_text()
    products = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    again = subprocess.run(command, check=True, env=environment, timeout=1200, capture_output=True, text=True)
    assert "step" not in again.stdout  # nothing is trained twice
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")} == products
