"""The demo's computations. Each result is a file in the output folder, reused if its fingerprint is the same."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from cortex_fast.data import TokenStore
from cortex_fast.data.grids import sides
from cortex_fast.data.results import load_result, save_result
from cortex_fast.demo.settings import Settings
from cortex_fast.explain import (
    ConceptExplanations,
    Scores,
    TokenSelection,
    explain_concepts,
    optimise_embedding,
    score_tokens,
    select_tokens,
)
from cortex_fast.zoo import Zoo

Result = TypeVar("Result", TokenStore, ConceptExplanations, TokenSelection)
PICTURES_OF_AN_EDIT = 6  # steps at which the judges look at it


@dataclass(frozen=True)
class Run:
    """A demo run. fingerprint: of all its files. progress: whether bars are shown."""

    zoo: Zoo
    settings: Settings
    folder: Path
    fingerprint: dict[str, str]
    progress: bool


@dataclass(frozen=True)
class Results:
    """The results of all stages.

    explained, held_out: images that the explanations are computed from, and other ones that judge them.
    tsv: [n,h,w] of the explained images, by the extractor's name; concepts too. selections: by the method's name.
    """

    explained: TokenStore
    held_out: TokenStore
    tsv: dict[str, Tensor]
    concepts: dict[str, ConceptExplanations]
    selections: dict[str, TokenSelection]


def compute(run: Run) -> Results:
    """Sample, score tokens, explain concepts and edit."""
    images = sample(run)
    explained_count = run.settings.images_per_class * len(run.zoo.names)
    explained, held_out = images.select(slice(0, explained_count)), images.select(slice(explained_count, None))
    tsv = {name: saliency(run, name, explained) for name in run.zoo.extractors}
    return Results(
        explained=explained,
        held_out=held_out,
        tsv=tsv,
        concepts={name: concepts(run, name, explained, tsv[name]) for name in run.zoo.extractors},
        selections=edits(run, held_out),
    )


def sample(run: Run) -> TokenStore:
    """Sampled images: first those to explain, then the held-out ones; the classes take turns."""
    zoo, settings = run.zoo, run.settings
    per_class = settings.images_per_class + settings.held_out_per_class
    labels = torch.arange(per_class * len(zoo.names)) % len(zoo.names)

    def compute_samples() -> TokenStore:
        height, width = sides(zoo.vqgm.grid)
        with tqdm(total=height * width, desc="sampling images", unit="token", disable=not run.progress) as bar:
            tokens = zoo.vqgm.sample(labels, seed=settings.seed, tick=bar.update)
        return TokenStore(tokens, labels, zoo.vqgm.codebook, zoo.names)

    return _loaded_or_computed(run, "samples", TokenStore, compute_samples)


def saliency(run: Run, name: str, images: TokenStore) -> Tensor:
    """TSV [n,h,w] of the images by the extractor `name`."""
    path = run.folder / f"saliency-{name}.safetensors"
    if path.exists():
        tensors, header = load_result(path, "Saliency")
        if header.get("demo") == run.fingerprint and "tsv" in tensors and "fingerprint" in header:
            return Scores(tensors["tsv"], header["fingerprint"])
    tsv = score_tokens(
        run.zoo.extractors[name],
        images,
        num_samples=run.settings.num_samples,
        seed=run.settings.seed,
        progress=run.progress,
        description=f"scoring tokens ({name.upper()})",
    )
    save_result(path, "Saliency", {"tsv": tsv}, {"demo": run.fingerprint, "fingerprint": tsv.fingerprint})
    return tsv


def concepts(run: Run, name: str, images: TokenStore, tsv: Tensor) -> ConceptExplanations:
    """The concepts' tokens by the extractor `name`."""

    def compute_concepts() -> ConceptExplanations:
        return explain_concepts(
            run.zoo.extractors[name],
            images,
            top_n=run.settings.top_n,
            top_k=run.settings.top_k,
            tsv=tsv,
            examples=6,
        )

    return _loaded_or_computed(run, f"concepts-{name}", ConceptExplanations, compute_concepts)


def edit_problems(run: Run, held_out: TokenStore) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [P,h,w], source and target classes [P]: held-out images of each class, to become the next class."""
    class_count = len(run.zoo.names)
    count = run.settings.edits_per_class * class_count
    source = held_out.labels[:count]
    return held_out.tokens[:count].long(), source, (source + 1) % class_count


def edits(run: Run, held_out: TokenStore) -> dict[str, TokenSelection]:
    """Token selection and its baseline on the same problems, with the same number of steps, by CE."""
    settings = run.settings
    tokens, _, target = edit_problems(run, held_out)
    extractor, codebook = run.zoo.extractors["ce"], run.zoo.vqgm.codebook
    shared: dict[str, Any] = {
        "tokens": tokens,
        "region": settings.region,
        "steps": settings.edit_steps,
        "judge_every": -(-settings.edit_steps // PICTURES_OF_AN_EDIT),
    }

    def by_tokens() -> TokenSelection:
        title = "selecting tokens" if run.progress else None
        return select_tokens(
            extractor, codebook, target, lr=settings.edit_lr, seed=settings.seed, progress=title, **shared
        )

    def by_embedding() -> TokenSelection:
        title = "optimising embeddings" if run.progress else None
        return optimise_embedding(extractor, codebook, target, lr=settings.embedding_lr, progress=title, **shared)

    return {
        "token selection": _loaded_or_computed(run, "edits-tokens", TokenSelection, by_tokens),
        "embedding optimisation": _loaded_or_computed(run, "edits-embedding", TokenSelection, by_embedding),
    }


def _loaded_or_computed(run: Run, name: str, kind: type[Result], compute_result: Callable[[], Result]) -> Result:
    """The result in the file `name`, if it has the run's fingerprint, or a computed one, which is written there.

    Raises ResultFileError for a foreign or damaged file instead of replacing it.
    """
    path = run.folder / f"{name}.safetensors"
    if path.exists():
        saved = kind.load(path)
        if saved.fingerprint.get("demo") == run.fingerprint:
            return saved
    result = compute_result()
    result = replace(result, fingerprint={**result.fingerprint, "demo": run.fingerprint})
    result.save(path)
    return result
