"""The demo's results: those of its study, and the baseline of its edits."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from cortex_fast.data import ResultFileError, TokenStore
from cortex_fast.data.results import digest_of_contents, load_result
from cortex_fast.demo.settings import Settings, study_settings
from cortex_fast.explain import ConceptExplanations, TokenSelection, optimise_embedding
from cortex_fast.studies import Study, status_of, write_settings
from cortex_fast.studies import run as run_study
from cortex_fast.studies.selections import KIND, save
from cortex_fast.studies.shards import shards_of
from cortex_fast.studies.stages import STAGES
from cortex_fast.studies.study import FILE, SCORES
from cortex_fast.studies.tasks import State, Task
from cortex_fast.studies.workers import Workers
from cortex_fast.studies.working import complete
from cortex_fast.zoo import Zoo


@dataclass(frozen=True)
class Run:
    """A demo run. fingerprint: of its evaluation and report. progress: whether bars are shown."""

    zoo: Zoo
    settings: Settings
    folder: Path
    fingerprint: dict[str, str]
    progress: bool


@dataclass(frozen=True)
class Results:
    """The results of all stages.

    explained, held_out: images that the explanations are computed from, and other ones that judge them.
    tsv: [n,h,w] of the explained images, by the extractor's name; concepts too. selections: of the same problems, by
    the method's name.
    """

    explained: TokenStore
    held_out: TokenStore
    tsv: dict[str, Tensor]
    concepts: dict[str, ConceptExplanations]
    selections: dict[str, TokenSelection]


def compute(run: Run) -> Results:
    """Run the demo's study, and the baseline of its edits; read what they wrote."""
    study = _study(run)
    run_study(study, again=STAGES, progress=run.progress)
    explained = study.split("train")
    names = list(study.settings.extractors)
    edits = _edits(study)
    return Results(
        explained=explained,
        held_out=study.split("test"),
        tsv={name: _tsv(study, name, len(explained)) for name in names},
        concepts={name: ConceptExplanations.load(study.folder / "concepts" / f"{name}.safetensors") for name in names},
        selections={"token selection": edits, "embedding optimisation": _baseline(run, study, edits)},
    )


def _study(run: Run) -> Study:
    """The demo's study, in whose folder no file is damaged."""
    run.folder.mkdir(parents=True, exist_ok=True)
    settings = study_settings(run.settings)
    write_settings(run.folder / FILE, settings)
    study = Study(run.folder, settings)
    for phase in status_of(study):
        if State.DAMAGED in phase.counts:
            raise ResultFileError(phase.reasons[0])
    return study


def _tsv(study: Study, name: str, images: int) -> Tensor:
    (shard,) = shards_of(study.folder / "scores" / name, images, study.settings.run.shard_images)
    return load_result(shard.path, SCORES)[0]["tsv"]


def _edits(study: Study) -> TokenSelection:
    """The edits of all pairs of classes, pair after pair."""
    pairs = [TokenSelection.load(study.folder / "edits" / _name(*pair)) for pair in study.settings.edits.pairs]
    return TokenSelection.joined(pairs)


def _name(source: int, target: int) -> str:
    return f"{source:04d}-to-{target:04d}.safetensors"


def _baseline(run: Run, study: Study, edits: TokenSelection) -> TokenSelection:
    """Embedding optimisation of the same problems, with the same number of steps."""
    path, settings = run.folder / "baselines" / "embedding.safetensors", run.settings
    inputs = {
        "steps": settings.edit_steps,
        "lr": settings.embedding_lr,
        "edits": [digest_of_contents(study.folder / "edits" / _name(*pair)) for pair in study.settings.edits.pairs],
    }
    task = Task((path,), KIND, inputs, partial(_optimise, run, study, edits, path, inputs))
    complete([task], Workers(), again=True)
    return TokenSelection.load(path)


def _optimise(run: Run, study: Study, edits: TokenSelection, path: Path, inputs: dict[str, Any]) -> None:
    selection = optimise_embedding(
        run.zoo.extractors["ce"],
        run.zoo.vqgm.codebook,
        edits.target,
        tokens=edits.initial,
        region=run.settings.region,
        steps=run.settings.edit_steps,
        lr=run.settings.embedding_lr,
        judge_every=study.settings.edits.judge_every,
        progress="optimising embeddings" if run.progress else None,
    )
    save(selection, path, inputs)


def edit_problems(run: Run, results: Results) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [P,h,w], source and target classes [P]: held-out images of each class, to become the next class."""
    edits = results.selections["token selection"]
    return edits.initial, (edits.target - 1) % len(run.zoo.names), edits.target
