"""Table 3 of the paper on the bundled model: token selection against its baselines, over all ordered pairs of classes.

    python -m benchmarks.edits [--steps 200] [--images 1] [--write]

Each pair's images are sampled from the model; each method has the same steps. Judges see the decoded pictures only.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import machine, report
from cortex_fast import TokenSelection, draw_tokens, optimise_embedding, select_tokens, zoo
from cortex_fast.demo.settings import Settings
from cortex_fast.evaluate import EditLead, edit_lead, edit_scores
from cortex_fast.explain.concepts import token_frequency

OURS = "token selection"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="of every method (default 200)")
    parser.add_argument("--images", type=int, default=1, help="of each pair (default 1)")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/<machine>-<date>-edits.json")
    arguments = parser.parse_args()
    about = machine.fingerprint()
    model, settings = zoo.load(), Settings()
    classes = len(model.names)
    pairs = [(a, b) for a in range(classes) for b in range(classes) if a != b] * arguments.images
    source, target = torch.tensor(pairs).T
    tokens = model.vqgm.sample(source, seed=1)
    frequency = token_frequency(tokens, source, classes, len(model.vqgm.codebook))
    shared: dict[str, Any] = {"tokens": tokens, "region": settings.region, "steps": arguments.steps}
    shared["judge_every"] = -(-arguments.steps // 6)
    methods: dict[str, Callable[..., TokenSelection]] = {
        OURS: partial(select_tokens, lr=settings.edit_lr),
        "embedding optimisation": partial(optimise_embedding, lr=settings.embedding_lr),
        "random tokens": draw_tokens,
        "frequent tokens": partial(draw_tokens, frequency=frequency[target].float()),
    }
    found, seconds = {}, {}
    for name, method in methods.items():
        began = time.perf_counter()
        found[name] = method(model.extractors["ce"], model.vqgm.codebook, target, progress=name, **shared).tokens
        seconds[name] = time.perf_counter() - began
    scores = edit_scores(model.judges, model.vqgm.decode, tokens, found, source, target)
    rows = []
    for number, name in enumerate(methods):
        print(f"{name}: {seconds[name]:.1f} s")
        lead = None if name == OURS else edit_lead(scores, OURS, name)
        for judge, title in enumerate(scores.judges):
            row = {"method": name, "judge": title, "seconds": seconds[name]}
            row["target_change"] = float(scores.target_change[number, judge])
            row["source_change"] = float(scores.source_change[number, judge])
            print(
                f"  {title:14s} target {row['target_change']:+.3f}  source {row['source_change']:+.3f}"
                + _told(lead, judge)
            )
            if lead is not None:
                row |= {"target_lead": lead.target[judge].tolist(), "source_lead": lead.source[judge].tolist()}
            rows.append(row)
    if arguments.write:
        path = report.RESULTS / report.file_name(about, ["edits"])
        results = {"fingerprint": about, "steps": arguments.steps, "problems": len(pairs), "rows": rows}
        report.write(results, path)
        print(f"written: {path}")


def _told(lead: EditLead | None, judge: int) -> str:
    if lead is None:
        return ""
    told = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*column[judge].tolist()) for column in (lead.target, lead.source)]
    return f"  lead of {OURS}: target {told[0]}, source {told[1]}"


if __name__ == "__main__":
    main()
