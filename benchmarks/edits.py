"""Table 3 of the paper on the bundled model: token selection against its baselines, over all ordered pairs of classes.

    python -m benchmarks.edits [--steps 200] [--images 1] [--write]

Each pair's images are sampled from the model. All methods take equally many steps. Judges see decoded pictures only.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, report
from cortex_fast import TokenSelection, draw_tokens, optimise_embedding, select_tokens, zoo
from cortex_fast.demo.settings import Settings
from cortex_fast.evaluate import EditLead, EditScores, edit_lead, edit_scores
from cortex_fast.explain.concepts import token_frequency
from cortex_fast.zoo import Zoo

OURS = "token selection"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="of every method (default 200)")
    parser.add_argument("--images", type=int, default=1, help="of each pair (default 1)")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/<machine>-<date>-edits.json")
    arguments = parser.parse_args()
    about = machine.fingerprint()
    model = zoo.load()
    classes = len(model.names)
    pairs = [(a, b) for a in range(classes) for b in range(classes) if a != b] * arguments.images
    source, target = torch.tensor(pairs).T
    tokens = model.vqgm.sample(source, seed=1)
    edits, seconds = edited(model, tokens, source, target, arguments.steps)
    scores = edit_scores(model.judges, model.vqgm.decode, tokens, edits, source, target)
    rows = [row for name in edits for row in rows_of(scores, name, seconds[name])]
    if arguments.write:
        path = report.RESULTS / report.file_name(about, ["edits"])
        results = {"fingerprint": about, "steps": arguments.steps, "problems": len(pairs), "rows": rows}
        report.write(results, path)
        print(f"written: {path}")


def edited(
    model: Zoo, tokens: Tensor, source: Tensor, target: Tensor, steps: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Each method's tokens int64 [P,h,w] and its seconds. tokens int64 [P,h,w]; source, target int64 [P]."""
    settings = Settings()
    frequency = token_frequency(tokens, source, len(model.names), len(model.vqgm.codebook))
    methods: dict[str, Callable[..., TokenSelection]] = {
        OURS: partial(select_tokens, lr=settings.edit_lr),
        "embedding optimisation": partial(optimise_embedding, lr=settings.embedding_lr),
        "random tokens": draw_tokens,
        "frequent tokens": partial(draw_tokens, frequency=frequency[target].float()),
    }
    shared: dict[str, Any] = {
        "tokens": tokens,
        "region": settings.region,
        "steps": steps,
        "judge_every": -(-steps // 6),
    }
    edits, seconds = {}, {}
    for name, method in methods.items():
        began = time.perf_counter()
        edits[name] = method(model.extractors["ce"], model.vqgm.codebook, target, progress=name, **shared).tokens
        seconds[name] = time.perf_counter() - began
    return edits, seconds


def rows_of(scores: EditScores, name: str, seconds: float) -> list[dict[str, Any]]:
    """Print one method's scores by each judge, and return them for the results' file."""
    print(f"{name}: {seconds:.1f} s")
    method, rows = scores.methods.index(name), []
    lead = None if name == OURS else edit_lead(scores, OURS, name)
    for judge, title in enumerate(scores.judges):
        row: dict[str, Any] = {"method": name, "judge": title, "seconds": seconds}
        row["target_change"] = float(scores.target_change[method, judge])
        row["source_change"] = float(scores.source_change[method, judge])
        changes = f"target {row['target_change']:+.3f}  source {row['source_change']:+.3f}"
        print(f"  {title:14s} {changes}{_lead_text(lead, judge)}")
        if lead is not None:
            row |= {"target_lead": lead.target[judge].tolist(), "source_lead": lead.source[judge].tolist()}
        rows.append(row)
    return rows


def _lead_text(lead: EditLead | None, judge: int) -> str:
    """The lead of token selection over a method by one judge, with its interval."""
    if lead is None:
        return ""
    texts = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*column[judge].tolist()) for column in (lead.target, lead.source)]
    return f"  lead of {OURS}: target {texts[0]}, source {texts[1]}"


if __name__ == "__main__":
    main()
