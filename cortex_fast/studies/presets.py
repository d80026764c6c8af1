"""Settings to start a study from."""

from collections.abc import Mapping
from dataclasses import replace

from cortex_fast.studies.settings import (
    ConceptSettings,
    EditSettings,
    ExtractorSettings,
    ModelSettings,
    RunSettings,
    SampleSettings,
    SelectionSettings,
    StudySettings,
)

# Ten bird classes of ImageNet in five pairs, the middle 4 x 4 of a 16 x 16 grid, 1,000 / 300 / 50 images a class, N 20,
# alpha 0.2, top 20, k 100, 80 epochs of batches of 256: the paper's, section 5. Where it gives no number (steps, lr,
# tau), the published code's stands.
_BIRDS = [[10, 20], [11, 19], [12, 18], [13, 17], [14, 16]]
_PAPER = StudySettings(
    selection=SelectionSettings(steps=5000, optimizer="sgd"),
    edits=EditSettings(steps=5000, optimizer="sgd", pairs=_BIRDS),
)
# The published code's: batches of 512, Adam, TSV as the signed maximum with one sigma a batch.
_PUBLISHED = replace(
    _PAPER,
    extractors={"ce": ExtractorSettings(batch_size=512)},
    scoring=replace(_PAPER.scoring, sigma_range="batch", noise="independent", reduction="max"),
    selection=SelectionSettings(steps=5000),
    edits=EditSettings(steps=5000, pairs=_BIRDS),
)
# A first look at a model of one's own: minutes on a laptop for a small model.
_QUICK = StudySettings(
    samples=SampleSettings(train=32, validation=8, test=8),
    extractors={"ce": ExtractorSettings(width=128, epochs=10, batch_size=64, step_epochs=5)},
    concepts=ConceptSettings(top_k=20),
    selection=SelectionSettings(steps=200, lr=0.3, judge_every=50),
    edits=EditSettings(steps=200, lr=0.3, judge_every=50, images=4),
)
# The bundled model's, with its own extractors; the learning rates are the best of a sweep.
_BUNDLED_CLASSES = 12
_DEMO = StudySettings(
    model=ModelSettings(source="bundled"),
    samples=SampleSettings(train=16, validation=0, test=8),
    extractors={"ce": ExtractorSettings(kind="ce", file="bundled"), "re": ExtractorSettings(kind="re", file="bundled")},
    concepts=ConceptSettings(top_k=50, examples=6),
    selection=SelectionSettings(classes="none"),
    edits=EditSettings(
        steps=200,
        lr=0.3,
        judge_every=34,
        images=2,
        region=[4, 4, 12, 12],
        pairs=[[label, (label + 1) % _BUNDLED_CLASSES] for label in range(_BUNDLED_CLASSES)],
        both_ways=False,
    ),
    run=RunSettings(sampling_batch_size=192),
)
PRESETS: Mapping[str, StudySettings] = {"paper": _PAPER, "published": _PUBLISHED, "quick": _QUICK, "demo": _DEMO}
