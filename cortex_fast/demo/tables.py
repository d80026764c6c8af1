"""The demo's results as the report's tables and curves, baselines beside ours."""

from torch import Tensor

from cortex_fast import evaluate
from cortex_fast.demo.measures import Measures
from cortex_fast.report import Curves, Table


def summary(measures: Measures, top_n: int) -> Table:
    """The short table: one row for each question, ours against the baselines, averaged over the judges (by CE)."""
    image, concept = measures.image_level["ce"], measures.concept_level["ce"]
    column = image.ns.index(top_n) if top_n in image.ns else -1
    edits, grounding, causal = measures.edits, measures.grounding["ce"], measures.intervention["ce"]
    middle = len(causal.ns) // 2

    def change(after: Tensor) -> str:
        return f"{float((after - image.before).mean()):+.3f}"

    def beyond_random(method: int) -> str:
        extra = float((concept.probability[method] - concept.probability[method + 1]).mean())
        return f"{extra:+.3f} ({float(concept.masked[method]):.0f} cells)"

    rows = [
        (
            f"Mask an image's top {image.ns[column]} tokens: probability change (down)",
            change(image.ours[:, column]),
            f"random {change(image.random[:, column])}",
        ),
        (
            f"Replace its top {causal.ns[middle]} tokens in the grid: probability change (down)",
            f"{float((causal.after[0, :, middle] - causal.before).mean()):+.3f}",
            f"random {float((causal.after[1, :, middle] - causal.before).mean()):+.3f}, "
            f"lowest {float((causal.after[2, :, middle] - causal.before).mean()):+.3f}",
        ),
        (
            "Mask a concept's tokens in held-out images: change beyond as many random cells (down)",
            beyond_random(0),
            f"most frequent tokens {beyond_random(2)}",
        ),
        (
            f"Top {top_n} saliency on the object (up)",
            f"{float(grounding.ours.mean()):.3f}",
            f"random {float(grounding.random.mean()):.3f}, frequency {float(grounding.frequency.mean()):.3f}",
        ),
        (
            "Edit: probability change of the target (up)",
            f"{float(edits.target_change[0].mean()):+.3f}",
            f"embedding optimisation {float(edits.target_change[1].mean()):+.3f}",
        ),
        (
            "Edit: probability change of the source (down)",
            f"{float(edits.source_change[0].mean()):+.3f}",
            f"embedding optimisation {float(edits.source_change[1].mean()):+.3f}",
        ),
    ]
    note = (
        "Mean over four judges that see pixels only; tokens scored by the extractor CE. "
        "The word in brackets says which way is better."
    )
    return Table("Summary", ("Question", "cortex-fast", "Baselines"), rows, note)


def evaluation(measures: Measures) -> list[Table | Curves]:
    """Everything measured, in the order: extractors and judges, single images, concepts, edits."""
    parts: list[Table | Curves] = [_accuracy(measures)]
    for name in measures.image_level:
        parts += [
            _image_curves(name, measures.image_level[name]),
            _intervention_curves(name, measures.intervention[name]),
            *_concept_tables(name, measures.concept_level[name]),
            _grounding_table(name, measures.grounding[name]),
        ]
    parts += [_edit_table(measures.edits), _lead_table(measures.edits)]
    return parts


def _accuracy(measures: Measures) -> Table:
    judges = measures.edits.judges
    rows = [(f"extractor {name.upper()} (tokens)", value) for name, value in measures.extractor_accuracy.items()]
    rows += [
        (f"judge {name} (pixels)", value) for name, value in zip(judges, measures.judge_accuracy.tolist(), strict=True)
    ]
    note = "Top 1 on images sampled from the model: extractors on the explained ones, judges on the held-out ones."
    return Table("Extractors and judges", ("Classifier", "Top 1"), rows, note)


def _image_curves(name: str, curves: evaluate.MaskingCurves) -> Curves:
    start = float(curves.before.mean())
    return Curves(
        f"Image level ({name.upper()}): mask the top n tokens",
        "positions masked (n)",
        "probability of the image's class",
        (0.0, *map(float, curves.ns)),
        {
            "top tokens": [start, *curves.ours.mean(dim=0).tolist()],
            "random positions": [start, *curves.random.mean(dim=0).tolist()],
        },
        "Mean over four judges. The lower curve took more of the concept away.",
    )


def _intervention_curves(name: str, result: evaluate.Intervention) -> Curves:
    start = float(result.before.mean())
    labels = {"top": "top tokens", "random": "random tokens", "low": "lowest tokens"}
    return Curves(
        f"Causal test ({name.upper()}): replace n tokens in the grid and decode",
        "tokens replaced (n)",
        "probability of the image's class",
        (0.0, *map(float, result.ns)),
        {labels[arm]: [start, *result.after[row].mean(dim=0).tolist()] for row, arm in enumerate(evaluate.ARMS)},
        "Every replacement is another token of the same image. "
        "If the top tokens carry the concept, their curve is lowest.",
    )


def _concept_tables(name: str, result: evaluate.ConceptMasking) -> list[Table]:
    accuracy, probability = result.accuracy.mean(dim=1).tolist(), result.probability.mean(dim=1).tolist()
    title = f"Concept level ({name.upper()}): mask the concept's tokens in held-out images"
    means = Table(
        title,
        ("Cells masked", "Number", "Accuracy change", "Probability change"),
        list(zip(result.methods, result.masked.tolist(), accuracy, probability, strict=True)),
        "Mean over the judges. More negative with fewer cells masked is better; compare each method with its random "
        "control, since the two may mask different amounts.",
    )
    by_judge = Table(
        f"{title}, by judge",
        ("Judge", "Concept tokens", "Random, as many", "Most frequent", "Random, as many"),
        [(judge, *result.probability[:, column].tolist()) for column, judge in enumerate(result.judges)],
        "Change of the class's probability.",
    )
    return [means, by_judge]


def _grounding_table(name: str, result: evaluate.Grounding) -> Table:
    def row(method: str, values: Tensor) -> tuple[str, float, float]:
        error = float(values.std(unbiased=True) / max(1, len(values)) ** 0.5) if len(values) > 1 else float("nan")
        return method, float(values.mean()), error

    rows = [row("top TSV", result.ours), row("random", result.random), row("class-frequent tokens", result.frequency)]
    return Table(
        f"On the object ({name.upper()}): composites with a known object mask",
        ("Positions", "Share on the object", "Standard error"),
        rows,
        f"The part of the top positions that lies on the object; higher is better. {len(result.ours)} composites, "
        "pushed through the tokenizer.",
    )


def _edit_table(scores: evaluate.EditScores) -> Table:
    def columns(method: int, judge: int | slice) -> list[float]:
        picked: list[Tensor] = [
            scores.source_before[judge],
            scores.source_after[method, judge],
            scores.target_before[judge],
            scores.target_after[method, judge],
        ]
        return [float(values.mean()) for values in picked]

    rows: list[tuple[str | float, ...]] = []
    for j, judge in enumerate((*scores.judges, "mean")):
        which = slice(None) if judge == "mean" else j
        for m, method in enumerate(scores.methods):
            source_before, source_after, target_before, target_after = columns(m, which)
            rows.append((judge, method, source_before, source_after, target_before, target_after))
    return Table(
        f"Edits (eq. 10): {scores.source_before.shape[1]} images, one class to the next",
        ("Judge", "Method", "Source before", "Source after", "Target before", "Target after"),
        rows,
        "Probabilities on the decoded image. Better: source after is lower, target after is higher.",
    )


def _lead_table(scores: evaluate.EditScores) -> Table:
    ours, baseline = scores.methods
    lead = evaluate.edit_lead(scores, ours, baseline)

    def cells(values: Tensor) -> list[str]:
        return ["{:+.3f} ({:+.3f} to {:+.3f})".format(*row) for row in values.tolist()]

    return Table(
        f"Edits: lead of {ours} over {baseline}",
        ("Judge", "Target's probability, higher by", "Source's probability, lower by"),
        list(zip(lead.judges, cells(lead.target), cells(lead.source), strict=True)),
        "Mean over the images, with its 95 % bootstrap interval: where that holds 0, these images do not tell.",
    )
