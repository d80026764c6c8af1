"""Each class's tokens from the scores (eq. 6): concepts/NAME.safetensors and NAME.csv."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from cortex_fast.data import digests
from cortex_fast.data.results import digest_of_contents, load_result
from cortex_fast.data.token_store import TokenStore, taken
from cortex_fast.explain.concepts import concepts_of
from cortex_fast.explain.occurrences import Occurrences, add_counts
from cortex_fast.studies.shards import Shard, shards_of
from cortex_fast.studies.study import SCORES, Study, plain
from cortex_fast.studies.tables import write_csv
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
    concepts = study.settings.concepts
    shards = _scores_of(study, name, images)
    counts = torch.zeros(len(images.names), len(images.codebook), dtype=torch.int64)
    for shard in shards:
        occurrences = _occurrences(images, shard)
        add_counts(counts, occurrences.top_tokens, occurrences.labels, concepts.per)
    result = concepts_of(
        counts,
        lambda: (_occurrences(images, shard) for shard in shards),
        names=tuple(images.names),
        top_n=concepts.top_n,
        top_k=concepts.top_k,
        per=concepts.per,
        examples=concepts.examples,
        fingerprint={ENTRY: inputs},
    )
    write_csv(path.with_suffix(".csv"), {name: result})
    result.save(path)  # last: it stands for both


def _occurrences(images: TokenStore, shard: Shard) -> Occurrences:
    scores, _ = load_result(shard.path, SCORES)
    tokens = taken(images.tokens, shard.rows).flatten(1).long()
    return Occurrences(tokens, scores["positions"].long(), scores["values"], images.labels[shard.rows], shard.first)
