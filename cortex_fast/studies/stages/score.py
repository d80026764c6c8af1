"""TSVs of the training images for their own classes, by their top positions: scores/NAME/shard-*.safetensors."""

from functools import partial
from typing import Any

import torch

from cortex_fast.data.results import digest_of_contents, save_result
from cortex_fast.data.token_store import TokenStore
from cortex_fast.explain.scores import code_ranges, tsv_of_rows
from cortex_fast.ops.concept_counts import top_positions
from cortex_fast.studies.shards import Shard, shards_of
from cortex_fast.studies.study import SCORES, Study, plain
from cortex_fast.studies.tasks import ENTRY, Phase, Task


def phases(study: Study) -> list[Phase]:
    """Shards of consecutive images, of each extractor."""
    return [Phase("images", lambda: [task for name in study.settings.extractors for task in _tasks(study, name)])]


def _tasks(study: Study, name: str) -> list[Task]:
    images = study.on_device(study.split("train"))
    inputs = {
        "scoring": plain(study.settings.scoring),
        "top_n": study.settings.concepts.top_n,
        "precision": study.settings.run.precision,
        "images": digest_of_contents(study.path_of_split("train")),
        "extractor": digest_of_contents(study.path_of_extractor(name)),
    }
    if study.settings.scoring.sigma_range == "batch":
        inputs["batch_size"] = study.settings.run.batch_size
    tasks = []
    for shard in shards_of(study.folder / "scores" / name, len(images), study.settings.run.shard_images):
        of_shard = {**inputs, "rows": shard.span}
        tasks.append(Task((shard.path,), SCORES, of_shard, partial(_score, study, name, images, shard, of_shard)))
    return tasks


def _score(study: Study, name: str, images: TokenStore, shard: Shard, inputs: dict[str, Any]) -> None:
    """Positions uint16 [n,top_n] of largest TSV, their TSVs float32 [n,top_n], and where wanted whole maps [n,h,w]."""
    scoring, top_n = study.settings.scoring, study.settings.concepts.top_n
    prepared, settings = study.prepared(name, images), study.saliency_settings
    codes, positions, maps = code_ranges(images.codebook), [], []
    for rows in _batches(shard, study.settings.run.batch_size):
        maps.append(tsv_of_rows(prepared, images, rows, codes, settings))
        positions.append(top_positions(maps[-1], top_n))
    tsv, places = torch.cat(maps), torch.cat(positions)
    tensors = {"positions": places.to(torch.uint16), "values": tsv.flatten(1).gather(1, places)}
    if scoring.maps:
        tensors["tsv"] = tsv
    save_result(shard.path, SCORES, tensors, {"fingerprint": {ENTRY: inputs}})


def _batches(shard: Shard, size: int) -> list[slice]:
    return [slice(first, min(first + size, shard.stop)) for first in range(shard.first, shard.stop, size)]
