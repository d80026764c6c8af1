"""Test images of one class changed in a region to be seen as another: edits/SOURCE-to-TARGET.safetensors."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cortex_fast.data.classes import class_numbers
from cortex_fast.data.results import digest_of_contents
from cortex_fast.data.token_store import TokenStore
from cortex_fast.explain import select_tokens
from cortex_fast.studies.selections import KIND, recipe_of, save
from cortex_fast.studies.settings import EditSettings
from cortex_fast.studies.study import Study, plain
from cortex_fast.studies.tasks import Phase, Task

TOGETHER = 64  # images that step together, of whole pairs: so that no result depends on the processes' number


def phases(study: Study) -> list[Phase]:
    """Groups of ordered pairs of classes."""
    return [Phase("groups of pairs", lambda: _tasks(study))]


def _tasks(study: Study) -> list[Task]:
    settings = study.settings.edits
    if not settings.pairs:
        return []
    images, name = study.split("test"), study.name_of_extractor(settings.extractor)
    inputs = {
        "edits": plain(settings, "extractor", "pairs", "both_ways"),
        "images": digest_of_contents(study.path_of_split("test")),
        "extractor": digest_of_contents(study.path_of_extractor(name)),
    }
    pairs = _pairs(settings, images)
    size = max(1, TOGETHER // settings.images)
    groups = [pairs[first : first + size] for first in range(0, len(pairs), size)]
    return [_task(study, name, images, {**inputs, "pairs": group}) for group in groups]


def _pairs(settings: EditSettings, images: TokenStore) -> list[list[int]]:
    """[source, target] of each edit, once."""
    labels = class_numbers("edits.pairs", [label for pair in settings.pairs for label in pair], images.names)
    ways = [way for pair in labels.view(-1, 2).tolist() for way in (pair, pair[::-1])[: 1 + settings.both_ways]]
    return [list(way) for way in dict.fromkeys(map(tuple, ways))]


def _task(study: Study, name: str, images: TokenStore, inputs: dict[str, Any]) -> Task:
    folder = study.folder / "edits"
    paths = tuple(folder / f"{source:04d}-to-{target:04d}.safetensors" for source, target in inputs["pairs"])
    return Task(paths, KIND, inputs, partial(_edit, study, name, images, paths, inputs))


def _edit(study: Study, name: str, images: TokenStore, paths: tuple[Path, ...], inputs: dict[str, Any]) -> None:
    settings = study.settings.edits
    sources = [torch.nonzero(images.labels == source).flatten()[: settings.images] for source, _ in inputs["pairs"]]
    counts = [len(rows) for rows in sources]
    rows = torch.cat(sources)
    top, left, bottom, right = settings.region
    selection = select_tokens(
        study.extractor(name),
        images.codebook.float().to(study.device),
        torch.tensor([target for _, target in inputs["pairs"]]).repeat_interleave(torch.tensor(counts)),
        tokens=images.select(rows).tokens.int().to(study.device),
        region=(top, left, bottom, right),
        recipe=recipe_of(settings, stay_penalty=settings.stay_penalty),
        seed=settings.seed,
        item_ids=rows,
        memory=study.memory,
        checkpoint=paths[0].with_name(f"unfinished-{paths[0].name}"),
    )
    for path, stop, count in zip(paths, itertools.accumulate(counts), counts, strict=True):
        save(selection.select(slice(stop - count, stop)), path, inputs)
