"""Several processes at one study, by files alone: the same bytes from any number, and after they were killed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cortex_fast.extractors import build
from cortex_fast.extractors.files import save_extractor
from cortex_fast.studies import Study, run
from cortex_fast.studies.settings import ExtractorSettings
from tests.studies.small import begin, changed, results
from tests.studies.tiny_model import CHANNELS, CLASSES, SIDE

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 240


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The small study with an untrained extractor from a file: importing torch's optimisers takes seconds a process."""
    path = tmp_path_factory.mktemp("extractor") / "ce.safetensors"
    sizes = {"num_classes": CLASSES, "in_channels": CHANNELS, "width": 16, "grid": SIDE}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_extractor(path, build("ce", **sizes), "ce", sizes, {})
    return changed(extractors={"ce": ExtractorSettings(file=str(path))})


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    """The results of one process."""
    folder = begin(tmp_path_factory.mktemp("alone") / "tiny", settings)
    run(Study.open(folder), progress=False)
    return results(folder)


@pytest.fixture(scope="module")
def trained_alone(tmp_path_factory):
    """The results of one process that trains the extractor, too."""
    folder = begin(tmp_path_factory.mktemp("trained") / "tiny")
    run(Study.open(folder), progress=False)
    return results(folder)


def start(folder: Path, *options: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cortex_fast", "run", str(folder), "--quiet", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=MOST_SECONDS)
        assert process.returncode == 0, errors


def test_two_processes_write_what_one_writes(alone, settings, tmp_path):
    folder = begin(tmp_path / "tiny", settings)
    finish(start(folder, "--shard", "1/2"), start(folder, "--shard", "2/2"))
    assert results(folder) == alone


def test_a_process_of_a_job_array_does_the_others_work_in_the_end(alone, settings, tmp_path):
    folder = begin(tmp_path / "tiny", settings)
    finish(start(folder, SLURM_PROCID="3", SLURM_NTASKS="5"))
    assert results(folder) == alone


@pytest.mark.slow
def test_torchrun_with_a_process_killed_goes_on_with_three(trained_alone, tmp_path):
    folder = begin(tmp_path / "tiny")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29611"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*torchrun, "-m", "cortex_fast", "run", str(folder), "--quiet"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    wait_for(folder / "samples" / "train" / "shard-00000005.safetensors")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    command[3] = "--nproc_per_node=3"
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=MOST_SECONDS)
    assert results(folder) == trained_alone


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["samples", "extractors", "scores", "concepts", "selections", "edits"])
def test_a_stage_killed_ten_times_goes_on_to_the_same_bytes(trained_alone, tmp_path, stage):
    """Killed at some moment after the stage's folder appears, or before it does."""
    folder, moments = begin(tmp_path / "tiny"), random.Random(stage)
    for _ in range(10):
        process = start(folder)
        wait_for(folder / stage, process)
        time.sleep(moments.random() * 0.3)
        process.kill()
        process.communicate()
        finished = sorted((folder / stage).rglob("[!.]*.safetensors"))
        if finished:
            moments.choice(finished).unlink()  # so that something of the stage is left to do
    finish(start(folder))
    assert results(folder) == trained_alone
    assert not [path for path in folder.rglob("*") if "partial" in path.name or path.name.endswith(".lock")]


def wait_for(path: Path, process: subprocess.Popen[str] | None = None) -> None:
    limit = time.monotonic() + MOST_SECONDS
    while not path.exists() and (process is None or process.poll() is None):
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    folder = begin(tmp_path / "tiny")
    (folder / "samples").write_text("in the way")
    process = start(folder)
    _, errors = process.communicate(timeout=MOST_SECONDS)
    assert process.returncode == 1 and str(folder / "samples") in errors and "Traceback" not in errors
    shutil.rmtree(folder)
