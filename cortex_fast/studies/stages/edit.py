"""Test images of one class changed in a region to be seen as another: edits/SOURCE-to-TARGET.safetensors."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from cortex_fast.data.classes import class_numbers
from cortex_fast.data.results import digest_of_contents
from cortex_fast.data.token_store import TokenStore
from cortex_fast.explain import select_tokens
from cortex_fast.studies.selections import KIND, recipe_of, save
from cortex_fast.studies.study import Study, plain
from cortex_fast.studies.tasks import Phase, Task


def phases(study: Study) -> list[Phase]:
    """Ordered pairs of classes."""
    return [Phase("pairs of classes", lambda: _tasks(study))]


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
    pairs = class_numbers("edits.pairs", [label for pair in settings.pairs for label in pair], images.names)
    ways = [way for pair in pairs.view(-1, 2).tolist() for way in (pair, pair[::-1])[: 1 + settings.both_ways]]
    ordered = dict.fromkeys((source, target) for source, target in ways)
    return [_task(study, name, images, source, target, inputs) for source, target in ordered]


def _task(study: Study, name: str, images: TokenStore, source: int, target: int, shared: dict[str, Any]) -> Task:
    path = study.folder / "edits" / f"{source:04d}-to-{target:04d}.safetensors"
    inputs = {**shared, "source": source, "target": target}
    return Task((path,), KIND, inputs, partial(_edit, study, name, images, path, inputs))


def _edit(study: Study, name: str, images: TokenStore, path: Path, inputs: dict[str, Any]) -> None:
    settings = study.settings.edits
    rows = torch.nonzero(images.labels == inputs["source"]).flatten()[: settings.images]
    top, left, bottom, right = settings.region
    selection = select_tokens(
        study.extractor(name),
        images.codebook.float().to(study.device),
        torch.full((len(rows),), inputs["target"]),
        tokens=images.select(rows).tokens.int().to(study.device),
        region=(top, left, bottom, right),
        recipe=recipe_of(settings, stay_penalty=settings.stay_penalty),
        seed=settings.seed,
        item_ids=rows,
        memory=study.memory,
        checkpoint=path.with_name(f"unfinished-{path.name}"),
    )
    save(selection, path, inputs)
