"""The demo's computations, each kept in a file of the output folder and reused while its fingerprint is the same."""

from collections.abc import Callable
from dataclasses import replace
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

Kept = TypeVar("Kept", TokenStore, ConceptExplanations, TokenSelection)


def _keep(path: Path, kind: type[Kept], made: dict[str, Any], make: Callable[[], Kept]) -> Kept:
    """Load `path` if it holds this fingerprint, else make it and write it. A foreign file is refused, not replaced."""
    if path.exists():
        kept = kind.load(path)
        if kept.fingerprint.get("demo") == made:
            return kept
    result = make()
    result = replace(result, fingerprint={**result.fingerprint, "demo": made})
    result.save(path)
    return result


def sample(zoo: Zoo, settings: Settings, folder: Path, made: dict[str, Any], progress: bool) -> TokenStore:
    """Sampled token grids: first those to explain, then the held-out ones; the classes take turns."""
    per_class = settings.images_per_class + settings.held_out_per_class
    labels = torch.arange(per_class * len(zoo.names)) % len(zoo.names)

    def make() -> TokenStore:
        height, width = sides(zoo.vqgm.grid)
        with tqdm(total=height * width, desc="sampling images", unit="token", disable=not progress) as bar:
            tokens = zoo.vqgm.sample(labels, seed=settings.seed, tick=bar.update)
        return TokenStore(tokens, labels, zoo.vqgm.codebook, zoo.names)

    return _keep(folder / "samples.safetensors", TokenStore, made, make)


def saliency(
    zoo: Zoo, name: str, images: TokenStore, settings: Settings, folder: Path, made: dict[str, Any], progress: bool
) -> Tensor:
    """TSV [n,h,w] of the images by the extractor of this name."""
    path = folder / f"saliency-{name}.safetensors"
    if path.exists():
        tensors, header = load_result(path, "Saliency")
        if header.get("demo") == made and "tsv" in tensors and "fingerprint" in header:
            return Scores(tensors["tsv"], header["fingerprint"])
    tsv = score_tokens(
        zoo.extractors[name],
        images,
        num_samples=settings.num_samples,
        seed=settings.seed,
        progress=progress,
        description=f"scoring tokens ({name.upper()})",
    )
    save_result(path, "Saliency", {"tsv": tsv}, {"demo": made, "fingerprint": tsv.fingerprint})
    return tsv


def concepts(
    zoo: Zoo, name: str, images: TokenStore, tsv: Tensor, settings: Settings, folder: Path, made: dict[str, Any]
) -> ConceptExplanations:
    """The concepts' tokens by the extractor of this name."""

    def make() -> ConceptExplanations:
        return explain_concepts(
            zoo.extractors[name], images, top_n=settings.top_n, top_k=settings.top_k, tsv=tsv, examples=6
        )

    return _keep(folder / f"concepts-{name}.safetensors", ConceptExplanations, made, make)


def edit_problems(zoo: Zoo, held_out: TokenStore, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [P,h,w], source and target classes [P]: held-out images of each class, to become the next class."""
    count = settings.edits_per_class * len(zoo.names)
    source = held_out.labels[:count]
    return held_out.tokens[:count].long(), source, (source + 1) % len(zoo.names)


def edits(
    zoo: Zoo, held_out: TokenStore, settings: Settings, folder: Path, made: dict[str, Any], progress: bool
) -> dict[str, TokenSelection]:
    """Token selection and its baseline on the same problems, with the same steps, by CE."""
    tokens, _, target = edit_problems(zoo, held_out, settings)
    extractor, codebook = zoo.extractors["ce"], zoo.vqgm.codebook
    shared: dict[str, Any] = {
        "tokens": tokens,
        "region": settings.region,
        "steps": settings.edit_steps,
        "judge_every": -(-settings.edit_steps // 6),  # six pictures on the way
    }

    def by_tokens() -> TokenSelection:
        title = "selecting tokens" if progress else None
        return select_tokens(
            extractor, codebook, target, lr=settings.edit_lr, seed=settings.seed, progress=title, **shared
        )

    def by_embedding() -> TokenSelection:
        title = "optimising embeddings" if progress else None
        return optimise_embedding(extractor, codebook, target, lr=settings.embedding_lr, progress=title, **shared)

    return {
        "token selection": _keep(folder / "edits-tokens.safetensors", TokenSelection, made, by_tokens),
        "embedding optimisation": _keep(folder / "edits-embedding.safetensors", TokenSelection, made, by_embedding),
    }
