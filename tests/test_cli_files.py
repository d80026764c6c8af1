"""The commands for the published code's files and for extractors, end to end on small files."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cortex_fast import TokenStore, cli
from cortex_fast.extractors import build, load_extractor
from tests.compat.published_files import CODES, codebook, files, write_data

ROOT = Path(__file__).parents[1]


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = cli.main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return status, out, err


def test_import_and_export_of_data(tmp_path, capsys):
    data, store, back = tmp_path / "data", tmp_path / "s.safetensors", tmp_path / "back"
    write_data(data)
    np.save(tmp_path / "c.npy", codebook())
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    common = ("import-published", data, "--codebook", tmp_path / "c.npy", "--out", store)
    status, out, _ = run(capsys, *common, "--names", tmp_path / "names.txt")
    assert status == 0 and "7 of 7 images, 7 embeddings read" in out
    assert TokenStore.load(store).names == ("ant", "bee", "cat")
    assert run(capsys, "export-published", store, "--out", back)[0] == 0
    assert files(back) == files(data)
    status, _, err = run(capsys, "export-published", store, "--out", back)
    assert status == 1 and "is there already" in err
    before = files(tmp_path)
    for out in (store, data):
        status, _, err = run(capsys, *common[:-1], out)
        assert status == 1 and f"cortex-fast: --out: {'expected a file' if out == data else store}" in err
    assert files(tmp_path) == before
    (data / "train" / "1_4.npy").unlink()
    common = (*common[:-1], tmp_path / "less")
    status, _, err = run(capsys, *common)
    assert status == 1 and "train_embeddings.csv:6: 1_4.npy" in err and "Traceback" not in err
    status, out, _ = run(capsys, *common, "--skip-bad")
    assert status == 0 and "6 of 7 images" in out and "skipped" in out and "1_4.npy" in out
    status, out, _ = run(capsys, "import-published", back, "--codes", CODES, "--out", tmp_path / "r")
    assert status == 0 and "codes that no row uses" in out


def test_import_and_export_of_scores_and_checkpoints(tmp_path, capsys):
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "label_7.csv").write_bytes(b'filename,label,contribution\r\n7_0.npy,7,"[0.1, -2e-07, 3.0, 4.25]"\r\n')
    assert run(capsys, "import-published", scores, "--out", tmp_path / "t")[:2] == (
        0,
        f"{tmp_path / 't'}: scores of 1 images of 1 labels\n",
    )
    assert run(capsys, "export-published", tmp_path / "t", "--out", tmp_path / "again")[0] == 0
    assert files(tmp_path / "again") == files(scores)
    extractor = build("re", num_classes=3, in_channels=6, width=16, grid=16)
    torch.save(extractor.state_dict(), tmp_path / "best_model.pth")
    assert run(capsys, "import-published", tmp_path / "best_model.pth", "--out", tmp_path / "e")[0] == 0
    assert run(capsys, "export-published", tmp_path / "e", "--out", tmp_path / "back.pth")[0] == 0
    status, _, err = run(capsys, "export-published", tmp_path / "e", "--out", tmp_path / "back.pth")
    assert status == 1 and "back.pth is there already" in err
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    torch.save({"state_dict": extractor.state_dict(), "made_on": Path("/data")}, tmp_path / "objects.pth")
    command = ("import-published", tmp_path / "objects.pth", "--out", tmp_path / "e2")
    status, _, err = run(capsys, *command)
    assert status == 1 and "pickled objects" in err and "pathlib" in err
    assert run(capsys, *command, "--tensors-only")[0] == 0
    assert (tmp_path / "e2").stat().st_size > 1000
    assert all(torch.equal(back[name], value) for name, value in extractor.state_dict().items())


def _store(path: Path, images: int, seed: int) -> Path:
    """The class is the one of three tokens that is frequent."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, CODES, (images, 4, 4), generator=generator)
    labels = torch.arange(images) % 3
    chosen = torch.rand(images, 4, 4, generator=generator) < 0.4
    tokens = torch.where(chosen, labels[:, None, None], tokens)
    TokenStore(tokens, labels, torch.from_numpy(codebook()), ("a", "b", "c")).save(path)
    return path


def test_train_and_test_an_extractor(tmp_path, capsys):
    train, held_out = _store(tmp_path / "train", 150, 0), _store(tmp_path / "test", 60, 1)
    command = ("train-extractor", train, "--extractor", "re", "--width", 16, "--epochs", 6, "--batch-size", 16)
    command += ("--lr", 0.005, "--out", tmp_path / "e", "--validation", held_out)
    assert run(capsys, *command)[0] == 0
    status, out, _ = run(capsys, "test-extractor", held_out, tmp_path / "e")
    assert status == 0 and [line.split()[1] for line in out.splitlines()[1:]] == ["1", "3", "5", "10"]
    top1, top3, *_ = (float(line.split()[2].rstrip("%")) for line in out.splitlines()[1:])
    assert top1 > 70 and top3 == 100
    status, _, err = run(capsys, *command)
    assert status == 1 and "is there already" in err
    assert run(capsys, *command, "--resume")[0] == 0


def test_an_extractor_of_other_sizes_is_named(tmp_path, capsys):
    store = _store(tmp_path / "s", 6, 0)
    torch.save(build("ce", num_classes=3, in_channels=4, width=16, grid=4).state_dict(), tmp_path / "x.pth")
    assert run(capsys, "import-published", tmp_path / "x.pth", "--out", tmp_path / "e")[0] == 0
    status, _, err = run(capsys, "test-extractor", store, tmp_path / "e")
    assert status == 1 and "expected in_channels 6" in err
    torch.save(build("ce", num_classes=2, in_channels=6, width=16, grid=4).state_dict(), tmp_path / "y.pth")
    assert run(capsys, "import-published", tmp_path / "y.pth", "--out", tmp_path / "two")[0] == 0
    status, _, err = run(capsys, "test-extractor", store, tmp_path / "two")
    assert status == 1 and "expected labels below 2" in err and "got 2" in err


def test_a_loss_that_is_no_number_is_told_without_a_traceback(tmp_path, capsys):
    command = ("train-extractor", _store(tmp_path / "s", 40, 0), "--extractor", "re", "--width", 16, "--lr", 1e30)
    status, _, err = run(capsys, *command, "--epochs", 2, "--batch-size", 8, "--out", tmp_path / "e")
    assert status == 1 and "cortex-fast: the loss of epoch 1 is nan" in err and not (tmp_path / "e").exists()


@pytest.mark.slow
def test_torchrun_trains_with_two_processes(tmp_path):
    train = _store(tmp_path / "train", 150, 0)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "cortex_fast.cli"]
    command += ["train-extractor", str(train), "--extractor", "re", "--width", "16", "--epochs", "2"]
    command += ["--batch-size", "16", "--out", str(tmp_path / "e")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("epoch 2/2: loss") == 1
    assert not load_extractor(tmp_path / "e").training
