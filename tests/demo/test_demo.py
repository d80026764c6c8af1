"""The demo at its smallest: its files, resuming, errors, and the command line."""

import csv
import dataclasses
import json
import shutil

import pytest
import torch

from cortex_fast import ConceptExplanations, ResultFileError, TokenSelection, TokenStore
from cortex_fast.cli import main
from cortex_fast.data.locks import held
from cortex_fast.demo import measures, run, run_demo
from cortex_fast.demo import results as demo_results
from cortex_fast.demo.pages import patch
from tests.demo.settings import TINY


@pytest.fixture(scope="module", autouse=True)
def few_points():
    """Curves of one and two points instead of three and ten, because the judges take time for each."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(measures, "NS", (20, 50))
        changed.setattr(measures, "INTERVENTION_NS", (30,))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, TINY, progress=False)


def test_every_result_exists_and_loads(finished):
    folder, summary = finished
    for split in ("train", "test"):
        store = TokenStore.load(folder / "samples" / f"{split}.safetensors")
        assert len(store) == 12 and store.tokens.dtype == torch.uint16
    for name in ("ce", "re"):
        concepts = ConceptExplanations.load(folder / "concepts" / f"{name}.safetensors")
        assert concepts.counts.sum(dim=1).max() <= 20 and concepts.names == store.names
    for source in range(12):
        target = (source + 1) % 12
        edits = TokenSelection.load(folder / "edits" / f"{source:04d}-to-{target:04d}.safetensors")
        assert edits.loss.shape == (3, 1) and not edits.changed[:, :4].any() and edits.target.tolist() == [target]
        assert torch.equal(edits.initial[0], store.tokens[store.labels == source][0].long())
    baseline = TokenSelection.load(folder / "baselines" / "embedding.safetensors")
    assert baseline.loss.shape == (3, 12) and baseline.target.tolist() == [*range(1, 12), 0]
    assert len(summary.rows) == 6
    assert not [path for path in folder.rglob("*") if "partial" in path.name]


def test_numbers_for_programs(finished):
    folder, _ = finished
    numbers = json.loads((folder / "evaluation.json").read_text())
    assert numbers["fingerprint"]["seed"] == "0" and len(numbers["fingerprint"]["model"]) == 16
    measures = numbers["measures"]
    assert len(measures["image_level"]["ce"]["ours"]) == 4 and measures["image_level"]["re"]["ns"][-1] == 50
    assert 0 <= measures["grounding"]["ce"]["ours"][0] <= 1
    with (folder / "concepts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    concepts = ConceptExplanations.load(folder / "concepts" / "ce.safetensors")
    total = sum(int(row["count"]) for row in rows if row["extractor"] == "ce")
    assert total == int(concepts.counts.sum())


def test_report_has_a_page_for_each_concept(finished):
    folder, _ = finished
    assert (folder / "report" / "index.html").is_file()
    assert len(list((folder / "report" / "concepts").glob("*.html"))) == 12


def test_a_second_run_reuses_the_files(finished, monkeypatch):
    folder, first = finished
    monkeypatch.setattr(run, "write_report", lambda *_: None)  # tests/report replaces a report
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert run_demo(folder, TINY, progress=False).rows == first.rows
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == times and len(times) == 23


def test_a_damaged_file_is_refused_by_name(finished, tmp_path):
    folder, _ = finished
    whole = (folder / "samples" / "train.safetensors").read_bytes()
    damaged = tmp_path / "samples" / "train.safetensors"
    damaged.parent.mkdir()
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ResultFileError, match=r"train\.safetensors"):
        run_demo(tmp_path, TINY, progress=False)
    assert damaged.stat().st_size == len(whole) // 2


class StoppedError(Exception):
    pass


def test_a_file_of_other_settings_is_computed_again(finished, tmp_path, monkeypatch):
    folder, _ = finished

    def stop(*_):
        raise StoppedError

    monkeypatch.setattr(demo_results, "_tsv", stop)  # after the study
    shutil.copytree(folder / "samples", tmp_path / "samples")
    with pytest.raises(StoppedError):
        run_demo(tmp_path, dataclasses.replace(TINY, seed=1), progress=False)
    first, second = (TokenStore.load(path / "samples" / "train.safetensors") for path in (folder, tmp_path))
    assert second.fingerprint["study"]["seed"] == 1
    assert not torch.equal(first.tokens.int(), second.tokens.int())


def test_patches_at_the_border_repeat_the_edge():
    picture = torch.arange(8 * 8 * 3, dtype=torch.uint8).view(8, 8, 3).numpy()
    corner = patch(picture, 0, 4)
    assert corner.shape == (6, 6, 3) and (corner[2:4, 2:4] == picture[:2, :2]).all()
    assert (corner[0, 0] == picture[0, 0]).all()
    inner = patch(picture, 5, 4)
    assert (inner == picture[0:6, 0:6]).all()


def test_a_foreign_report_folder_is_refused_before_the_work(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="report"):
        run_demo(tmp_path, TINY, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_second_demo_in_the_same_folder_is_refused(tmp_path):
    with held(tmp_path / "report"), pytest.raises(BlockingIOError, match=r"/report: another run is writing it"):
        run_demo(tmp_path, TINY, progress=False)
    assert not list(tmp_path.iterdir())


def test_forcing_an_unavailable_backend_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CORTEX_FAST_IMPL", "cuda")
    assert main(["demo", "--out", str(tmp_path), "--quiet"]) == 1
    assert "impl='cuda' cannot serve" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--out", "{file}"], "--out"),
        (["demo", "--out", "{new}", "--images", "0"], "images_per_class"),
        (["demo", "--out", "{new}", "--steps", "-3"], "edit_steps"),
        (["demo", "--out", "{new}", "--seed", "-1"], "seed"),
        (["demo", "--out", "{new}", "--seed", str(2**63)], "seed"),
        (["demo", "--out", "{new}", "--images", "99999999999"], "images_per_class: expected a whole number from 1 to"),
        (["demo", "--out", "{new}", "--steps", "99999999999"], "edit_steps: expected a whole number from 1 to"),
        (["tune", "--codes", "0"], "codes"),
    ],
)
def test_commands_with_bad_arguments_fail_with_a_message(arguments, message, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    places = {"file": tmp_path / "file", "new": tmp_path / "new"}
    assert main([argument.format(**places) for argument in arguments]) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "new").exists()


def test_unknown_commands_and_help(capsys):
    for arguments, status in ((["nonsense"], 2), ([], 2), (["--help"], 0), (["--version"], 0)):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == status
    assert "demo" in capsys.readouterr().out


def test_info(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "native", "reference", "token_saliency", "gumbel_codebook"):
        assert word in text
