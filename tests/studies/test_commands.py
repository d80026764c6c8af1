"""The commands: a taming-transformers folder from `init` to selections, and single stages on plain files."""

import re

import pytest

import cortex_fast as cf
from cortex_fast.cli import main
from cortex_fast.studies import Study, run
from tests.studies.small import begin, changed, results
from tests.vqgm import real_taming
from tests.vqgm.test_taming_folder import prior_config, scattered, write

SMALLER = {
    r"train = 32": "train = 2",
    r"validation = 8": "validation = 1",
    r"test = 8": "test = 1",
    r"width = 128": "width = 16",
    r"epochs = 10": "epochs = 1",
    r"num_samples = 20": "num_samples = 2",
    r"steps = 200": "steps = 3",
    r"shard_images = 1000": "shard_images = 6",
    r"region = \[6, 6, 10, 10\]": "region = [2, 2, 6, 6]",
    r"pairs = \[\]": "pairs = [[1, 3]]",
}


@pytest.fixture(scope="module")
def taming_folder(tmp_path_factory):
    with real_taming.taming() as package:
        transformer = scattered(package.Net2NetTransformer(**prior_config()["params"]))
        return write(tmp_path_factory.mktemp("taming"), prior_config(), transformer.state_dict())


def test_a_taming_folder_from_init_to_selections(taming_folder, tmp_path, capsys):
    study = tmp_path / "study"
    assert main(["init", str(study), "--model", f"taming:{taming_folder}"]) == 0
    text = (study / "study.toml").read_text()
    for pattern, value in SMALLER.items():
        text, replaced = re.subn(rf"^{pattern}\b|^{pattern}", value, text, flags=re.MULTILINE)
        assert replaced, pattern
    (study / "study.toml").write_text(text)
    assert main(["run", str(study), "--quiet"]) == 0
    assert main(["status", str(study)]) == 0
    shown = capsys.readouterr().out
    assert "missing" not in shown and "stale" not in shown
    assert len(cf.TokenStore.load(study / "samples" / "train.safetensors")) == 14  # 7 classes
    assert len(list((study / "selections").glob("concept-*.safetensors"))) == 7
    assert len(list((study / "edits").iterdir())) == 2
    header, *lines = (study / "concepts" / "ce.csv").read_text().splitlines()
    concepts = cf.ConceptExplanations.load(study / "concepts" / "ce.safetensors")
    assert header == "extractor,concept,rank,token,count,share"
    assert sum(int(line.split(",")[4]) for line in lines) == int(concepts.counts.sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init", "{0}"], "--model: expected the model of the preset 'quick', got none"),
        (["init", "{0}", "--preset", "papers"], "--preset: expected one of"),
        (["run", "{0}"], "study.toml: expected a study's settings; `cortex-fast init"),
        (["run", "{1}", "--stage", "scores"], "stage: expected one of"),
        (["run", "{1}", "--again", "all"], "stage: expected one of"),
        (["run", "{1}", "--shard", "5/4"], "--shard: expected I/N"),
        (["init", "{1}", "--preset", "demo"], "study.toml: exists already; nothing is written over it"),
    ],
)
def test_mistakes_are_reported_without_a_traceback(tmp_path, capsys, arguments, message):
    begin(tmp_path / "begun")
    filled = [argument.format(tmp_path / "new", tmp_path / "begun") for argument in arguments]
    assert main(filled) == 1
    error = capsys.readouterr().err
    assert error.startswith("cortex-fast: ") and message in error and error.count("\n") == 1


def test_single_stages_on_plain_files(tmp_path, capsys):
    """What the stages of a study compute, by the commands of the same names."""
    folder = begin(tmp_path / "study", changed(samples={"validation": 0}, edits={"pairs": []}))
    run(Study.open(folder), progress=False)
    extractor = str(folder / "extractors" / "ce.safetensors")
    store, scores, concepts, edits = (str(tmp_path / f"{name}.safetensors") for name in "abcd")
    source = "python:tests.studies.tiny_model:build"
    assert main(["sample", source, "--out", store, "--images", "8"]) == 0
    assert main(["score", store, extractor, "--out", scores, "--num-samples", "3"]) == 0
    explain = ["explain", store, extractor, scores, "--out", concepts, "--top-n", "5", "--top-k", "6"]
    assert main([*explain, "--csv", str(tmp_path / "concepts.csv")]) == 0
    of_study = cf.ConceptExplanations.load(folder / "concepts" / "ce.safetensors")
    assert cf.ConceptExplanations.load(concepts).tokens.tolist() == of_study.tokens.tolist()
    recipe = ["--steps", "6", "--lr", "0.3", "--judge-every", "3"]
    assert main(["select", extractor, store, "--out", str(tmp_path / "selections"), *recipe]) == 0
    selection = cf.TokenSelection.load(tmp_path / "selections" / "concept-0001.safetensors")
    of_study = cf.TokenSelection.load(folder / "selections" / "concept-0001.safetensors")
    assert selection.tokens.tolist() == of_study.tokens.tolist()
    edit = ["edit", extractor, store, "--source", "0", "--target", "class 1", "--region", "2,2,6,6", "--images", "2"]
    assert main([*edit, "--out", edits, *recipe]) == 0
    assert cf.TokenSelection.load(edits).target.tolist() == [1, 1]
    assert main([*edit, "--out", edits]) == 1
    assert "exists already" in capsys.readouterr().err
    assert "a.safetensors" not in results(folder)
