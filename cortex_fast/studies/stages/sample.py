"""Token grids sampled from the model, or taken from the user's files: samples/<split>.safetensors."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cortex_fast.data import digests
from cortex_fast.data.labels import relabelled
from cortex_fast.data.results import digest_of_contents, load_result, save_result
from cortex_fast.data.token_store import TokenStore
from cortex_fast.studies.settings import SPLITS
from cortex_fast.studies.shards import Shard, shards_of
from cortex_fast.studies.study import Study
from cortex_fast.studies.tasks import ENTRY, Phase, Task

_KIND, _STORE = "SampleShard", "TokenStore"
_FIRST_ITEM = {"train": 0, "validation": 2**30, "test": 2**31}  # of the model's random stream: splits never meet


def phases(study: Study) -> list[Phase]:
    """Shards of consecutive images, then each split's shards as one store."""
    return [
        Phase("images", lambda: [task for split in _sampled(study) for task in _shards(study, split)]),
        Phase("stores", lambda: [_store(study, split) for split in _sampled(study)]),
        Phase("stores with other labels", lambda: [_relabel(study, split) for split in study.settings.samples.labels]),
    ]


def _sampled(study: Study) -> list[str]:
    """The splits that come from the model."""
    samples = study.settings.samples
    return [split for split in SPLITS if split not in samples.files and getattr(samples, split)]


def _inputs(study: Study, split: str) -> dict[str, Any]:
    return {**study.about_model, "split": split, "seed": study.settings.samples.seed}


def _shards(study: Study, split: str) -> list[Task]:
    """The classes take turns: image i is of class i mod C. More images a class leave whole shards as they are."""
    images = getattr(study.settings.samples, split) * len(study.source.names)
    tasks = []
    for shard in shards_of(study.folder / "samples" / split, images, study.settings.run.shard_images):
        inputs = {**_inputs(study, split), "rows": shard.span}
        tasks.append(Task((shard.path,), _KIND, inputs, partial(_sample, study, split, shard, inputs)))
    return tasks


def _sample(study: Study, split: str, shard: Shard, inputs: dict[str, Any]) -> None:
    model, conditions = study.source.model, torch.tensor(study.source.conditions)
    seed, parts = study.settings.samples.seed, []
    for images in torch.arange(shard.first, shard.stop).split(study.settings.run.sampling_batch_size):
        labels = conditions[images % len(conditions)].to(model.codebook.device)
        items = (images + _FIRST_ITEM[split]).to(labels.device)
        parts.append(model.sample(labels, seed=seed, item_ids=items).cpu())
    small = torch.uint16 if len(model.codebook) <= 2**16 else torch.int32
    tokens = torch.cat(parts).to(small)
    save_result(shard.path, _KIND, {"tokens": tokens}, {"fingerprint": {ENTRY: inputs}})


def _store(study: Study, split: str) -> Task:
    path, images = study.path_of_split(split), getattr(study.settings.samples, split)
    inputs = {**_inputs(study, split), "images_per_class": images}
    return Task((path,), _STORE, inputs, partial(_merge, study, split, path, inputs))


def _merge(study: Study, split: str, path: Path, inputs: dict[str, Any]) -> None:
    tokens = torch.cat([load_result(task.paths[0], _KIND)[0]["tokens"] for task in _shards(study, split)])
    names = study.source.names
    labels = torch.arange(len(tokens)) % len(names)
    codebook = study.source.model.codebook.cpu()
    TokenStore(tokens, labels, codebook, names, {ENTRY: inputs}).save(path)


def _relabel(study: Study, split: str) -> Task:
    samples, path = study.settings.samples, study.path_of_split(split)
    store, labels = (study.folder / Path(file[split]).expanduser() for file in (samples.files, samples.labels))
    inputs = {"store": digest_of_contents(store), "labels": digests.of_files([labels])}
    return Task((path,), _STORE, inputs, partial(_write_relabelled, store, labels, path, inputs))


def _write_relabelled(store: Path, labels: Path, path: Path, inputs: dict[str, Any]) -> None:
    images = relabelled(TokenStore.load(store), labels)
    replace(images, fingerprint={ENTRY: inputs}).save(path)
