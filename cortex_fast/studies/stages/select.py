"""Each class's tokens over the whole codebook, without an image (eq. 7-9): selections/concept-*.safetensors."""

from functools import partial
from pathlib import Path
from typing import Any

from cortex_fast.data import digests
from cortex_fast.data.classes import class_numbers
from cortex_fast.data.results import digest_of_contents
from cortex_fast.data.token_store import TokenStore
from cortex_fast.explain import select_tokens
from cortex_fast.studies.selections import KIND, recipe_of, save
from cortex_fast.studies.study import Study, plain
from cortex_fast.studies.tasks import Phase, Task

TOGETHER = 16  # concepts that step together: by their numbers, so that no result depends on the processes' number


def phases(study: Study) -> list[Phase]:
    """Groups of concepts."""
    return [Phase("groups of concepts", lambda: _tasks(study))]


def _tasks(study: Study) -> list[Task]:
    settings = study.settings.selection
    if settings.classes == "none":
        return []
    images, name = study.split("train"), study.name_of_extractor(settings.extractor)
    groups: dict[int, list[int]] = {}
    for concept in _concepts(settings.classes, images):
        groups.setdefault(concept // TOGETHER, []).append(concept)
    inputs = {
        "selection": plain(settings, "extractor", "classes"),
        "extractor": digest_of_contents(study.path_of_extractor(name)),
        "codebook": digests.of_values(images.codebook),
    }
    return [_task(study, name, images, concepts, {**inputs, "together": concepts}) for concepts in groups.values()]


def _concepts(classes: str | list[Any], images: TokenStore) -> list[int]:
    if isinstance(classes, str):
        return list(range(len(images.names)))
    return sorted(set(class_numbers("selection.classes", classes, images.names).tolist()))


def _task(study: Study, name: str, images: TokenStore, concepts: list[int], inputs: dict[str, Any]) -> Task:
    paths = tuple(study.folder / "selections" / f"concept-{concept:04d}.safetensors" for concept in concepts)
    return Task(paths, KIND, inputs, partial(_select, study, name, images, paths, inputs))


def _select(study: Study, name: str, images: TokenStore, paths: tuple[Path, ...], inputs: dict[str, Any]) -> None:
    settings, concepts = study.settings.selection, inputs["together"]
    selection = select_tokens(
        study.extractor(name),
        images.codebook.float().to(study.device),
        concepts,
        grid=images.grid,
        recipe=recipe_of(settings),
        seed=settings.seed,
        item_ids=concepts,
        memory=study.memory,
        checkpoint=paths[0].with_name(f"unfinished-{concepts[0]:04d}.safetensors"),
    )
    for problem, path in enumerate(paths):
        save(selection.problem(problem), path, inputs)
