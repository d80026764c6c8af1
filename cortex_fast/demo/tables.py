"""The tables and curves of the demo's report, with the baselines beside our results."""

from torch import Tensor

from cortex_fast import evaluate
from cortex_fast.demo.measures import Measures
from cortex_fast.report import Curves, Table


def summary(measures: Measures, top_n: int) -> Table:
    """The short table: one row for each question, by CE, averaged over the judges, beside the baselines.

    Args:
        measures: the results of the evaluation.
        top_n: number of top tokens, which selects the column of the masking curves.

    Returns:
        Six rows of the question, our result and the baselines'.
    """
    rows = [
        _masking_row(measures.image_level["ce"], top_n),
        _intervention_row(measures.intervention["ce"]),
        _concept_row(measures.concept_level["ce"]),
        _grounding_row(measures.grounding["ce"], top_n),
        *_edit_rows(measures.edits),
    ]
    note = (
        "Mean over four judges that see pixels only; tokens scored by the extractor CE. "
        "The word in brackets is the better direction."
    )
    return Table("Summary", ("Question", "cortex-fast", "Baselines"), rows, note)


Row = tuple[str, str, str]


def _masking_row(curves: evaluate.MaskingCurves, top_n: int) -> Row:
    column = curves.ns.index(top_n) if top_n in curves.ns else -1

    def change(after: Tensor) -> str:
        return f"{float((after - curves.before).mean()):+.3f}"

    question = f"Mask an image's top {curves.ns[column]} tokens: probability change (down)"
    return question, change(curves.ours[:, column]), f"random {change(curves.random[:, column])}"


def _intervention_row(result: evaluate.Intervention) -> Row:
    middle = len(result.ns) // 2

    def change(arm: int) -> str:
        return f"{float((result.after[arm, :, middle] - result.before).mean()):+.3f}"

    question = f"Replace its top {result.ns[middle]} tokens in the grid: probability change (down)"
    return question, change(0), f"random {change(1)}, lowest {change(2)}"


def _concept_row(result: evaluate.ConceptMasking) -> Row:
    def beyond_random(method: int) -> str:
        extra = float((result.probability[method] - result.probability[method + 1]).mean())
        return f"{extra:+.3f} ({float(result.masked[method]):.0f} cells)"

    question = "Mask a concept's tokens in held-out images: change beyond as many random cells (down)"
    return question, beyond_random(0), f"most frequent tokens {beyond_random(2)}"


def _grounding_row(result: evaluate.Grounding, top_n: int) -> Row:
    ours, random, frequency = (f"{float(hits.mean()):.3f}" for hits in (result.ours, result.random, result.frequency))
    return f"Top {top_n} saliency on the object (up)", ours, f"random {random}, frequency {frequency}"


def _edit_rows(scores: evaluate.EditScores) -> list[Row]:
    rows = []
    for name, change, direction in (("target", scores.target_change, "up"), ("source", scores.source_change, "down")):
        ours, baseline = (f"{float(change[method].mean()):+.3f}" for method in (0, 1))
        question = f"Edit: probability change of the {name} ({direction})"
        rows.append((question, ours, f"embedding optimisation {baseline}"))
    return rows


def evaluation(measures: Measures) -> list[Table | Curves]:
    """All measures in the order of the report: extractors and judges, each extractor's measures, edits."""
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
        "Mean over four judges. A lower curve means that more of the concept was removed.",
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
        "If the top tokens carry the concept, their curve is the lowest.",
    )


def _concept_tables(name: str, result: evaluate.ConceptMasking) -> list[Table]:
    accuracy, probability = result.accuracy.mean(dim=1).tolist(), result.probability.mean(dim=1).tolist()
    title = f"Concept level ({name.upper()}): mask the concept's tokens in held-out images"
    means = Table(
        title,
        ("Cells masked", "Number", "Accuracy change", "Probability change"),
        list(zip(result.methods, result.masked.tolist(), accuracy, probability, strict=True)),
        "Mean over the judges. More negative with fewer masked cells is better. Compare each method with its random "
        "control, because the methods may mask different numbers of cells.",
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
        f"The share of the top positions that lies on the object; higher is better. {len(result.ours)} composites, "
        "encoded by the tokenizer.",
    )


def _edit_table(scores: evaluate.EditScores) -> Table:
    def columns(method: int, judge: int | slice) -> list[float]:
        probabilities: list[Tensor] = [
            scores.source_before[judge],
            scores.source_after[method, judge],
            scores.target_before[judge],
            scores.target_after[method, judge],
        ]
        return [float(values.mean()) for values in probabilities]

    rows: list[tuple[str | float, ...]] = []
    for j, judge in enumerate((*scores.judges, "mean")):
        rows_of_judge = slice(None) if judge == "mean" else j
        for m, method in enumerate(scores.methods):
            source_before, source_after, target_before, target_after = columns(m, rows_of_judge)
            rows.append((judge, method, source_before, source_after, target_before, target_after))
    return Table(
        f"Edits (eq. 10): {scores.source_before.shape[1]} images, one class to the next",
        ("Judge", "Method", "Source before", "Source after", "Target before", "Target after"),
        rows,
        "Probabilities on the decoded image. A lower source after and a higher target after are better.",
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
        "Mean over the images, with its 95 % bootstrap interval. If the interval contains 0, these images do not show "
        "which method is better.",
    )
