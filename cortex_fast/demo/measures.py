"""The demo's evaluation: every measure on the judges, as plain results and as numbers for a JSON file."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cortex_fast import evaluate
from cortex_fast.data import TokenStore
from cortex_fast.demo.settings import Settings
from cortex_fast.demo.stages import edit_problems
from cortex_fast.explain import ConceptExplanations, TokenSelection, token_saliency
from cortex_fast.explain.concepts import token_frequency
from cortex_fast.extractors import accuracy
from cortex_fast.zoo import Zoo
from cortex_fast.zoo.composites import make_composites

NS = tuple(range(5, 51, 5))
INTERVENTION_NS = (10, 30, 50)


@dataclass(frozen=True)
class Measures:
    """All evaluation results. Dictionaries go by extractor name.

    extractor_accuracy: top 1 on the sampled images. judge_accuracy float32 [J]: top 1 of the judges on them, decoded.
    """

    extractor_accuracy: dict[str, float]
    judge_accuracy: Tensor
    image_level: dict[str, evaluate.MaskingCurves]
    concept_level: dict[str, evaluate.ConceptMasking]
    edits: evaluate.EditScores
    grounding: dict[str, evaluate.Grounding]
    intervention: dict[str, evaluate.Intervention]


def measure(
    zoo: Zoo,
    explained: TokenStore,
    held_out: TokenStore,
    tsv: dict[str, Tensor],
    concepts: dict[str, ConceptExplanations],
    selections: dict[str, TokenSelection],
    settings: Settings,
    progress: bool,
) -> Measures:
    """Run every measure. The images that made an explanation and those that judge it are disjoint at concept level."""
    names = list(tsv)
    held_images = zoo.vqgm.decode(held_out.tokens)
    some = slice(0, len(zoo.names) * 4)  # of the explained images: enough to judge single images
    some_tokens, some_labels = explained.tokens[some].long(), explained.labels[some]
    some_images = zoo.vqgm.decode(some_tokens)
    with tqdm(total=3 + 4 * len(names), desc="evaluating", unit="test", disable=not progress) as bar:

        def done(result: Any) -> Any:
            bar.update()
            return result

        correct = evaluate.correct(evaluate.probabilities(zoo.judges, held_images), held_out.labels)
        bar.update()
        tokens, source, target = edit_problems(zoo, held_out, settings)
        after = {method: selection.tokens for method, selection in selections.items()}
        edits = done(evaluate.edit_scores(zoo.judges, zoo.vqgm.decode, tokens, after, source, target))
        extractor_accuracy = {
            name: accuracy(zoo.extractors[name], explained.codebook, explained.tokens, explained.labels)[1]
            for name in names
        }
        bar.update()
        return Measures(
            extractor_accuracy=extractor_accuracy,
            judge_accuracy=correct.mean(dim=1),
            image_level={
                name: done(
                    evaluate.image_level(
                        zoo.judges, some_images, some_tokens, tsv[name][some], some_labels, ns=NS, seed=settings.seed
                    )
                )
                for name in names
            },
            concept_level={
                name: done(
                    evaluate.concept_level(
                        zoo.judges,
                        held_images,
                        held_out.tokens.long(),
                        held_out.labels,
                        concepts[name].tokens,
                        concepts[name].frequent_tokens,
                        seed=settings.seed,
                    )
                )
                for name in names
            },
            edits=edits,
            grounding={name: done(_grounding(zoo, name, explained, settings)) for name in names},
            intervention={
                name: done(
                    evaluate.intervention(
                        zoo.judges,
                        zoo.vqgm.decode,
                        some_tokens,
                        tsv[name][some],
                        some_labels,
                        ns=INTERVENTION_NS,
                        seed=settings.seed,
                    )
                )
                for name in names
            },
        )


def _grounding(zoo: Zoo, name: str, explained: TokenStore, settings: Settings) -> evaluate.Grounding:
    """On composites, whose object masks are known, pushed through the tokenizer."""
    made = make_composites("demo", 0, settings.composites_per_class * len(zoo.names))
    tokens = zoo.vqgm.encode(torch.from_numpy(made.images).permute(0, 3, 1, 2).float() / 255)
    labels = torch.from_numpy(made.labels)
    tsv = token_saliency(
        zoo.extractors[name], zoo.vqgm.embed(tokens), labels, num_samples=settings.num_samples, seed=settings.seed
    )
    cells = evaluate.object_cells(torch.from_numpy(made.masks), zoo.vqgm.grid)
    frequency = token_frequency(explained.tokens, explained.labels, len(zoo.names), len(zoo.vqgm.codebook))
    return evaluate.grounding(tsv, tokens, labels, cells, frequency, settings.top_n)


def as_numbers(value: Any) -> Any:
    """Results as what JSON holds: dataclasses to objects, tensors to lists of numbers rounded to 6 digits."""
    if isinstance(value, Tensor):
        return as_numbers(value.tolist())
    if dataclasses.is_dataclass(value):
        return {field.name: as_numbers(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: as_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_numbers(entry) for entry in value]
    return round(value, 6) if isinstance(value, float) else value
