"""The demo's evaluation: every measure on the judges, and its numbers for a JSON file."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cortex_fast import evaluate
from cortex_fast.data import TokenStore
from cortex_fast.demo.results import Results, Run, edit_problems
from cortex_fast.explain import token_saliency
from cortex_fast.explain.concepts import token_frequency
from cortex_fast.extractors import accuracy
from cortex_fast.zoo.composites import make_composites

NS = tuple(range(5, 51, 5))
INTERVENTION_NS = (10, 30, 50)
SINGLE_IMAGES_PER_CLASS = 4  # explained images at image level


@dataclass(frozen=True)
class Measures:
    """All results of the evaluation. Dictionaries are by the extractor's name.

    extractor_accuracy: top 1 on the explained images. judge_accuracy: float32 [J], top 1 of the judges on the held-out
    images, decoded.
    """

    extractor_accuracy: dict[str, float]
    judge_accuracy: Tensor
    image_level: dict[str, evaluate.MaskingCurves]
    concept_level: dict[str, evaluate.ConceptMasking]
    edits: evaluate.EditScores
    grounding: dict[str, evaluate.Grounding]
    intervention: dict[str, evaluate.Intervention]


def measure(run: Run, results: Results) -> Measures:
    """Run every measure. At concept level, the images that judge an explanation are not those it was computed from."""
    names = list(results.tsv)
    held_out_images = run.zoo.vqgm.decode(results.held_out.tokens)
    single = results.explained.select(slice(0, len(run.zoo.names) * SINGLE_IMAGES_PER_CLASS))
    image_level, concept_level, grounding, intervention = {}, {}, {}, {}
    with tqdm(total=3 + 4 * len(names), desc="evaluating", unit="test", disable=not run.progress) as bar:
        probabilities = evaluate.probabilities(run.zoo.judges, held_out_images)
        judge_accuracy = evaluate.correct(probabilities, results.held_out.labels).mean(dim=1)
        bar.update()
        edits = _edits(run, results)
        bar.update()
        extractor_accuracy = {name: _accuracy(run, name, results.explained) for name in names}
        bar.update()
        for name in names:
            image_level[name] = _image_level(run, single, results.tsv[name])
            bar.update()
            concept_level[name] = _concept_level(run, results, name, held_out_images)
            bar.update()
            grounding[name] = _grounding(run, name, results.explained)
            bar.update()
            intervention[name] = _intervention(run, single, results.tsv[name])
            bar.update()
    return Measures(
        extractor_accuracy=extractor_accuracy,
        judge_accuracy=judge_accuracy,
        image_level=image_level,
        concept_level=concept_level,
        edits=edits,
        grounding=grounding,
        intervention=intervention,
    )


def _accuracy(run: Run, name: str, images: TokenStore) -> float:
    return accuracy(run.zoo.extractors[name], images.codebook, images.tokens, images.labels)[1]


def _edits(run: Run, results: Results) -> evaluate.EditScores:
    before, source, target = edit_problems(run, results)
    after = {method: selection.tokens for method, selection in results.selections.items()}
    return evaluate.edit_scores(run.zoo.judges, run.zoo.vqgm.decode, before, after, source, target)


def _image_level(run: Run, single: TokenStore, tsv: Tensor) -> evaluate.MaskingCurves:
    """tsv: [n,h,w] of the explained images, of which `single` are the first."""
    tokens = single.tokens.long()
    images = run.zoo.vqgm.decode(tokens)
    return evaluate.image_level(
        run.zoo.judges, images, tokens, tsv[: len(single)], single.labels, ns=NS, seed=run.settings.seed
    )


def _concept_level(run: Run, results: Results, name: str, held_out_images: Tensor) -> evaluate.ConceptMasking:
    """held_out_images: float32 [B,3,H,W], decoded."""
    return evaluate.concept_level(
        run.zoo.judges,
        held_out_images,
        results.held_out.tokens.long(),
        results.held_out.labels,
        results.concepts[name].tokens,
        results.concepts[name].frequent_tokens,
        seed=run.settings.seed,
    )


def _intervention(run: Run, single: TokenStore, tsv: Tensor) -> evaluate.Intervention:
    """tsv: [n,h,w] of the explained images, of which `single` are the first."""
    return evaluate.intervention(
        run.zoo.judges,
        run.zoo.vqgm.decode,
        single.tokens.long(),
        tsv[: len(single)],
        single.labels,
        ns=INTERVENTION_NS,
        seed=run.settings.seed,
    )


def _grounding(run: Run, name: str, explained: TokenStore) -> evaluate.Grounding:
    """On composites, whose object masks are known, encoded by the tokenizer."""
    zoo, settings = run.zoo, run.settings
    composites = make_composites("demo", 0, settings.composites_per_class * len(zoo.names))
    tokens = zoo.vqgm.encode(torch.from_numpy(composites.images).permute(0, 3, 1, 2).float() / 255)
    labels = torch.from_numpy(composites.labels)
    tsv = token_saliency(
        zoo.extractors[name], zoo.vqgm.embed(tokens), labels, num_samples=settings.num_samples, seed=settings.seed
    )
    cells = evaluate.object_cells(torch.from_numpy(composites.masks), zoo.vqgm.grid)
    frequency = token_frequency(explained.tokens, explained.labels, len(zoo.names), len(zoo.vqgm.codebook))
    return evaluate.grounding(tsv, tokens, labels, cells, frequency, settings.top_n)


def as_numbers(value: Any) -> Any:
    """Convert results to what JSON holds.

    Args:
        value: dataclasses, dictionaries, lists, tuples, tensors and plain values, nested in any way.

    Returns:
        Dataclasses as dictionaries, tensors as nested lists, floats rounded to 6 digits.
    """
    if isinstance(value, Tensor):
        return as_numbers(value.tolist())
    if dataclasses.is_dataclass(value):
        return {field.name: as_numbers(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: as_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_numbers(entry) for entry in value]
    return round(value, 6) if isinstance(value, float) else value
