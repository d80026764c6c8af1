"""study.toml: written and read back, and complaints that name the file, the line, the key, the expected and the got."""

from dataclasses import replace

import pytest

from cortex_fast.studies import PRESETS, SettingsError, read_settings, write_settings
from cortex_fast.studies.settings import ExtractorSettings, SampleSettings, StudySettings


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_written_and_read_back(tmp_path, preset):
    write_settings(tmp_path / "study.toml", PRESETS[preset])
    assert read_settings(tmp_path / "study.toml") == PRESETS[preset]


def test_texts_of_any_kind_are_read_back(tmp_path):
    settings = StudySettings(
        extractors={"my-extractor_2": ExtractorSettings(file='a "quoted" name\\ of a\nfile'), "b": ExtractorSettings()},
        samples=SampleSettings(files={"train": "päth.safetensors"}),
    )
    write_settings(tmp_path / "study.toml", settings)
    assert read_settings(tmp_path / "study.toml") == settings


def test_settings_that_are_left_out_have_their_defaults(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("scoring.alpha = 0.5\n")
    default = StudySettings()
    assert read_settings(path) == replace(default, scoring=replace(default.scoring, alpha=0.5))


def test_the_papers_numbers():
    paper = PRESETS["paper"]
    assert (paper.samples.train, paper.samples.validation, paper.samples.test) == (1000, 300, 50)
    assert (paper.scoring.num_samples, paper.scoring.alpha) == (20, 0.2)
    assert (paper.concepts.top_n, paper.concepts.top_k) == (20, 100)
    assert (paper.extractors["ce"].epochs, paper.extractors["ce"].batch_size) == (80, 256)
    assert len(paper.edits.pairs) == 5 and len({label for pair in paper.edits.pairs for label in pair}) == 10
    assert paper.edits.region == [6, 6, 10, 10]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[scoring]\nalpha = -1", "study.toml:2: scoring.alpha: expected a number of at least 0, got -1"),
        ("[scoring]\n\n# a comment\nalpah = 0.2", "study.toml:4: scoring.alpah: expected one of num_samples, alpha"),
        ("[scorning]\nalpha = 0.2", "study.toml:1: scorning: expected one of model, classes, samples"),
        ("scoring = 3", "study.toml:1: scoring: expected a table [scoring], got 3"),
        ("[samples]\ntrain = 2.5", "study.toml:2: samples.train: expected"),
        ('[samples]\nfiles = { trian = "a" }', "study.toml:2: samples.files: expected one of"),
        ('[samples]\nlabels = { train = "a.csv" }', "study.toml:2: samples.labels: expected a store for train"),
        ('[extractors.ce]\nkind = "cf"', "study.toml:2: extractors.ce.kind: expected one of"),
        ("[extractors]\nce = 3", "study.toml:2: extractors.ce: expected a table, got 3"),
        ("\n[extractors]", "study.toml:2: extractors: expected at least one table"),
        ('[extractors."../x"]', "study.toml:1: extractors: expected names of letters"),
        ("[edits]\npairs = [[1, 2, 3]]", "study.toml:2: edits.pairs: expected pairs of classes"),
        ("[edits]\nregion = [1, 2]", "study.toml:2: edits.region: expected"),
        ("[classes]\nchosen = [true]", "study.toml:2: classes.chosen: expected class numbers or names, got"),
        ("[scoring\nalpha = 0.2", "study.toml: not TOML"),
        ("a = " + "[" * 2000, "study.toml: not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_settings(path)
    assert message in str(caught.value)
