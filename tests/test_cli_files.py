"""The commands for the published code's files and for extractors, end to end on small files."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cortex_fast import TokenStore, cli
from cortex_fast.extractors import build, load_extractor, save_extractor
from cortex_fast.ops.backends import BackendUnavailableError
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
    assert status == 1 and "already exists; it is not overwritten" in err
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
    assert status == 1 and "back.pth: already exists; it is not overwritten" in err
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    torch.save({"state_dict": extractor.state_dict(), "made_on": Path("/data")}, tmp_path / "objects.pth")
    command = ("import-published", tmp_path / "objects.pth", "--out", tmp_path / "e2")
    status, _, err = run(capsys, *command)
    assert status == 1 and "pickled objects" in err and "pathlib" in err
    assert run(capsys, *command, "--tensors-only")[0] == 0
    assert (tmp_path / "e2").stat().st_size > 1000
    assert all(torch.equal(back[name], value) for name, value in extractor.state_dict().items())


def _store(path: Path, images: int, seed: int) -> Path:
    """A store whose classes differ in which of three tokens is frequent."""
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
    assert status == 1 and "already exists" in err
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


def test_a_loss_that_is_nan_is_an_error_without_a_traceback(tmp_path, capsys):
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


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--epochs", 99999999999, "epochs"),
        ("--batch-size", 10**30, "batch_size"),
        ("--width", 99999999984, "width"),
        ("--width", 17, "width"),
        ("--every", 0, "every"),
        ("--seed", 2**64, "seed"),
        ("--lr", "nan", "lr"),
        ("--gamma", "inf", "gamma"),
        ("--step-epochs", 0, "step_epochs"),
    ],
)
def test_absurd_numbers_are_refused_by_name(option, value, named, tmp_path, capsys):
    store = _store(tmp_path / "s", 6, 0)
    status, _, err = run(capsys, "train-extractor", store, "--out", tmp_path / "e", option, value)
    assert status == 1 and err.splitlines()[-1].startswith(f"cortex-fast: {named}: expected ")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_an_unexpected_error_is_a_line_too(tmp_path, capsys, monkeypatch):
    store = _store(tmp_path / "s", 6, 0)
    command = ("test-extractor", store, tmp_path / "e")
    for error, message in (
        (KeyError("sizes"), "cortex-fast: KeyError: 'sizes' (unexpected; for a bug report, cortex-fast --traceback "),
        (RuntimeError("a\nlong\nstory"), "cortex-fast: RuntimeError: a (unexpected"),
        (MemoryError(), "cortex-fast: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "cortex-fast: out of memory"),
        (BackendUnavailableError("no GPU"), "cortex-fast: no GPU\n"),
    ):

        def broken(*_args, error=error):
            raise error

        monkeypatch.setattr(TokenStore, "load", broken)
        status, _, err = run(capsys, *command)
        assert status == 1 and err.startswith(message) and err.count("\n") == 1
        with pytest.raises(type(error)):
            cli.main(["--traceback", *map(str, command)])


def _damages(content: bytes, count: int) -> Iterator[bytes]:
    """Copies of a file with a flipped bit, cut off, with bytes inserted, removed or overwritten."""
    rng = random.Random(len(content))
    for number in range(count):
        at, size = rng.randrange(len(content)), rng.randrange(1, 60)
        yield (
            content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
            content[:at],
            content[:at] + rng.randbytes(size) + content[at:],
            content[:at] + content[at + size :],
            content[:at] + rng.choice((b"\0", b"\xff", b"[", b"9")) * size + content[at + size :],
        )[number % 5]


@pytest.mark.parametrize("kind", ["s.st", "e.st", "m.pth", "old.pth", "c.ckpt", "c.npy", "c.safetensors"])
def test_no_damaged_file_ends_in_a_traceback(kind, tmp_path, capsys):
    from safetensors.torch import save_file

    sizes = {"num_classes": 3, "in_channels": 6, "width": 16, "grid": 4}
    extractor, C = build("re", **sizes), torch.from_numpy(codebook())
    path = tmp_path / kind
    write_data(tmp_path / "data")
    imported = ("import-published", tmp_path / "data", "--codebook", path)
    if kind == "s.st":
        _store(path, 6, 0)
        save_extractor(tmp_path / "e", extractor, "re", sizes, {})
        command = ("test-extractor", path, tmp_path / "e")
    elif kind == "e.st":
        save_extractor(path, extractor, "re", sizes, {})
        command = ("test-extractor", _store(tmp_path / "s", 6, 0), path)
    elif kind.endswith(".pth"):
        torch.save(extractor.state_dict(), path, _use_new_zipfile_serialization=kind == "m.pth")
        command = ("import-published", path)
    elif kind == "c.npy":
        np.save(path, C.numpy())
        command = imported
    else:
        torch.save({"codebook": C}, path) if kind == "c.ckpt" else save_file({"codebook": C}, path)
        command = imported
    good = path.read_bytes()
    for damaged in _damages(good, 30):
        path.write_bytes(damaged)
        out = () if command[0] == "test-extractor" else ("--out", tmp_path / "out")
        status, _, err = run(capsys, *command, *out)
        (tmp_path / "out").unlink(missing_ok=True)
        assert status in (0, 1) and "(unexpected; for a bug report" not in err and "out of memory" not in err
        if kind in ("s.st", "e.st", "m.pth") and damaged != good:  # formats with sums of their own
            assert status == 1 or _same_tensors(path, extractor if kind == "m.pth" else None)


def _same_tensors(path: Path, extractor: torch.nn.Module | None) -> bool:
    """Whether the damage is in bytes that no reader uses."""
    if extractor is None:
        return False
    got = torch.load(path, weights_only=True)
    return all(torch.equal(got[name], value) for name, value in extractor.state_dict().items())
