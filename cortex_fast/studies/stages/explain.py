"""Each class's tokens from the scores (eq. 6): concepts/NAME.safetensors and concepts.csv."""

import csv
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cortex_fast.data import digests
from cortex_fast.data.results import digest_of_contents, load_result, replace_whole
from cortex_fast.data.token_store import TokenStore, taken
from cortex_fast.explain import ConceptExplanations
from cortex_fast.explain.concepts import most_frequent
from cortex_fast.explain.tallies import Examples, Occurrences, add_counts
from cortex_fast.studies.shards import Shard, shards_of
from cortex_fast.studies.study import SCORES, Study, plain
from cortex_fast.studies.tasks import ENTRY, Phase, Task

_KIND = "ConceptExplanations"


def phases(study: Study) -> list[Phase]:
    """One task an extractor."""
    return [Phase("concepts", lambda: [_task(study, name) for name in study.settings.extractors])]


def _scores_of(study: Study, name: str, images: TokenStore) -> list[Shard]:
    return shards_of(study.folder / "scores" / name, len(images), study.settings.run.shard_images)


def _task(study: Study, name: str) -> Task:
    images, path = study.split("train"), study.folder / "concepts" / f"{name}.safetensors"
    scores = [digest_of_contents(shard.path) for shard in _scores_of(study, name, images)]
    inputs = {
        "concepts": plain(study.settings.concepts),
        "images": digest_of_contents(study.path_of_split("train")),
        "scores": digests.short(digests.of_parts([scores])),
    }
    return Task((path,), _KIND, inputs, partial(_explain, study, name, images, path, inputs))


def _explain(study: Study, name: str, images: TokenStore, path: Path, inputs: dict[str, Any]) -> None:
    concepts, (classes, codes) = study.settings.concepts, (len(images.names), len(images.codebook))
    counts = torch.zeros(classes, codes, dtype=torch.int64)
    frequency = torch.zeros_like(counts)
    for shard in _scores_of(study, name, images):
        occurrences = _occurrences(images, shard)
        add_counts(counts, occurrences.tokens, occurrences.labels, concepts.per)
        tokens = taken(images.tokens, shard.rows).flatten(1).long()
        add_counts(frequency, tokens, occurrences.labels)
    best, best_counts = most_frequent(counts, concepts.top_k)
    frequent, frequent_counts = most_frequent(frequency, concepts.top_k)
    examples = Examples(best, codes, concepts.examples)
    for shard in _scores_of(study, name, images):
        examples.add(_occurrences(images, shard))
    ConceptExplanations(
        names=tuple(images.names),
        tokens=best,
        counts=best_counts,
        frequent_tokens=frequent,
        frequent_counts=frequent_counts,
        num_images=torch.bincount(images.labels, minlength=classes),
        examples=examples.result(),
        top_n=concepts.top_n,
        per=concepts.per,
        fingerprint={ENTRY: inputs},
    ).save(path)


def _occurrences(images: TokenStore, shard: Shard) -> Occurrences:
    scores, _ = load_result(shard.path, SCORES)
    positions = scores["positions"].long()
    tokens = taken(images.tokens, shard.rows).flatten(1).long().gather(1, positions)
    return Occurrences(tokens, positions, scores["values"], images.labels[shard.rows], shard.first)


def write_csv(path: Path, results: Mapping[str, ConceptExplanations]) -> None:
    """One line a concept token: extractor, concept, rank, token, count, share.

    Args:
        path: the file, written whole or not at all.
        results: the concepts' tokens by the extractor's name.
    """
    replace_whole(path, lambda file: _write_csv(file, results))


def _write_csv(path: Path, results: Mapping[str, ConceptExplanations]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("extractor", "concept", "rank", "token", "count", "share"))
        for extractor, result in results.items():
            for concept, rank in (result.counts > 0).nonzero().tolist():
                token, count = int(result.tokens[concept, rank]), int(result.counts[concept, rank])
                share = f"{float(result.shares[concept, rank]):.6f}"
                writer.writerow((extractor, result.names[concept], rank + 1, token, count, share))
