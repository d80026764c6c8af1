"""Runs killed with SIGKILL at random moments, each followed by the next: the files in the end are those of an
undisturbed run, no half file stands under its final name, and leftovers of killed runs do not pile up."""

import multiprocessing
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cortex_fast import TokenStore, select_concepts
from cortex_fast.compat.published_data import import_embeddings
from cortex_fast.demo import run_demo
from cortex_fast.extractors import TrainingRecipe, build
from cortex_fast.extractors.fitting import fit
from cortex_fast.vqgm import GPT, VQModel, sample_store, taming_model
from tests.compat.published_files import codebook, files, write_data
from tests.demo.settings import TINY
from tests.killing import hidden
from tests.vqgm.test_autoencoder import SMALL

KILLS = 20
UNFINISHED = (".tokens", ".done", ".resume.pt", ".best", ".bad.txt")  # suffixes in runs that are under way
UNFINISHED_FOLDER = "unfinished-"


def _images(count: int) -> TokenStore:
    generator = torch.Generator().manual_seed(count)
    tokens = torch.randint(40, (count, 4, 4), generator=generator)
    return TokenStore(tokens, torch.arange(count) % 3, torch.from_numpy(codebook()), ("a", "b", "c"))


def demo(folder: Path, inputs: Path) -> None:
    run_demo(folder, replace(TINY, edit_steps=6), progress=False)


def training(folder: Path, inputs: Path) -> None:
    recipe = TrainingRecipe(epochs=8, batch_size=8, lr=0.02)
    fit(_images(40), folder / "e", "re", recipe, width=16, validation=_images(30), resume=True, every=2)


def training_without_validation(folder: Path, inputs: Path) -> None:
    fit(_images(40), folder / "e", "ce", TrainingRecipe(epochs=6, batch_size=8), width=16, resume=True, every=1)


def importing(folder: Path, inputs: Path) -> None:
    if not (folder / "s").exists():
        import_embeddings(inputs, folder / "s", codebook=torch.from_numpy(codebook()), threads=2)


def sampling(folder: Path, inputs: Path) -> None:
    torch.manual_seed(0)
    prior = GPT(vocab_size=20, block_size=64, n_layer=1, n_head=2, n_embd=8)
    model = taming_model(VQModel(**SMALL), prior, grid=8, fingerprint="test", num_classes=3)
    sample_store(model, torch.arange(90) % 3, folder / "s", names=("a", "b", "c"), batch_size=3)


def selecting(folder: Path, inputs: Path) -> None:
    torch.manual_seed(0)
    extractor = build("re", num_classes=4, in_channels=6, width=16, grid=4).eval()
    settings = {"grid": 4, "steps": 30, "lr": 0.3, "judge_every": 5, "together": 2}
    select_concepts(extractor, torch.from_numpy(codebook()), folder, **settings)


def _call(run, folder: Path, inputs: Path) -> None:
    torch.set_num_threads(1)
    run(folder, inputs)


def _whole(folder: Path, expected: dict[str, bytes]) -> bool:
    """Whether every file under a final name is that of the undisturbed run."""
    finished = {
        name: content
        for name, content in files(folder).items()
        if not name.startswith((".", UNFINISHED_FOLDER)) and not name.endswith(UNFINISHED)
    }
    return all(expected.get(name) == content for name, content in finished.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "run", [demo, training, training_without_validation, importing, sampling, selecting], ids=lambda run: run.__name__
)
def test_killed_at_random_moments(run, tmp_path):
    processes = multiprocessing.get_context("forkserver")  # from a process that has only imported
    processes.set_forkserver_preload(["tests.test_kills", "torch._dynamo"])  # which torch.optim imports
    inputs, undisturbed, folder = tmp_path / "inputs", tmp_path / "undisturbed", tmp_path / "killed"
    if run is importing:
        write_data(inputs, images=20_000)
    for path in (undisturbed, folder):
        path.mkdir()

    def start(into: Path):
        process = processes.Process(target=_call, args=(run, into, inputs))
        process.start()
        return process

    start(tmp_path / "warm").join() if run is not importing else None  # the server, and the disk
    began = time.perf_counter()
    process = start(undisturbed)
    process.join()
    lasted = time.perf_counter() - began
    assert process.exitcode == 0
    expected, moments, kills = files(undisturbed), random.Random(0), 0
    while kills < KILLS:
        process = start(folder)
        process.join(moments.uniform(0.02, 0.6 * lasted))
        process.kill()
        process.join()
        assert process.exitcode in (0, -9)
        assert _whole(folder, expected)
        if process.exitcode == 0:
            assert files(folder) == expected  # and again, from an empty folder
            shutil.rmtree(folder)
            folder.mkdir()
            continue
        kills += 1
        assert len(hidden(folder)) <= 3, hidden(folder)  # a temporary and two locks: those of one run
    process = start(folder)
    process.join()
    assert process.exitcode == 0
    assert files(folder) == expected and not hidden(folder)
