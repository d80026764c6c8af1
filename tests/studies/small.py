"""A study of the tiny model, whose stages take seconds together."""

from dataclasses import replace
from pathlib import Path

from cortex_fast.studies import StudySettings, write_settings
from cortex_fast.studies.settings import (
    ConceptSettings,
    EditSettings,
    ExtractorSettings,
    ModelSettings,
    RunSettings,
    SampleSettings,
    ScoringSettings,
    SelectionSettings,
)

SETTINGS = StudySettings(
    model=ModelSettings(source="python:tests.studies.tiny_model:build"),
    samples=SampleSettings(train=8, validation=2, test=2),
    extractors={"ce": ExtractorSettings(width=16, epochs=4, batch_size=8, lr=0.01)},
    scoring=ScoringSettings(num_samples=3),
    concepts=ConceptSettings(top_n=5, top_k=6, examples=3),
    selection=SelectionSettings(steps=6, lr=0.3, judge_every=3),
    edits=EditSettings(steps=6, lr=0.3, judge_every=3, images=2, region=[2, 2, 6, 6], pairs=[[0, 1]]),
    run=RunSettings(device="cpu", shard_images=5, batch_size=4, sampling_batch_size=3),
)


def changed(
    extractors: dict[str, ExtractorSettings] = SETTINGS.extractors, **tables: dict[str, object]
) -> StudySettings:
    """The small study's settings with other extractors, or with some of a table's settings replaced."""
    others = {name: replace(getattr(SETTINGS, name), **values) for name, values in tables.items()}
    return replace(SETTINGS, extractors=extractors, **others)


def begin(folder: Path, settings: StudySettings = SETTINGS) -> Path:
    """A study's folder with its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    write_settings(folder / "study.toml", settings)
    return folder


def results(folder: Path) -> dict[str, bytes]:
    """Every result file's bytes by its path in the study."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}
