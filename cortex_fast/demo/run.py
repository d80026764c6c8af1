"""`cortex-fast demo`: the whole of CORTEX on the bundled model, from sampling to a report."""

import csv
import json
from pathlib import Path

from cortex_fast import zoo as bundled
from cortex_fast.data.locks import held
from cortex_fast.data.results import replace_whole
from cortex_fast.demo import measures, pages, stages, tables
from cortex_fast.demo.settings import Settings, fingerprint
from cortex_fast.explain import ConceptExplanations
from cortex_fast.report import Report, Table, write_report
from cortex_fast.report.html import check_replaceable

INTRODUCTION = (
    "A small VQGAN with a class-conditional prior drew these images from 1,024 codebook tokens on a 16 x 16 grid. "
    "For every class this report shows the tokens that make its images look like the class, where they lie, and what "
    "happens when they are taken away or put in."
)


def run_demo(folder: Path, settings: Settings, *, progress: bool = True) -> Table:
    """Sample, explain, edit, evaluate; write results and `report/index.html` to `folder`; give back the summary table.

    Files: samples, concepts-* and edits-* (.safetensors, read by TokenStore, ConceptExplanations and TokenSelection),
    saliency-* (.safetensors, a tensor `tsv`), concepts.csv, evaluation.json. A file with the same fingerprint is
    reused. Raises ResultFileError for a file that is not ours, FileExistsError for a report folder that is not,
    BlockingIOError while another demo writes there.
    """
    check_replaceable(folder / "report")  # this and the next before the work, not after it
    with held(folder / "report"):
        return _run(folder, settings, progress)


def _run(folder: Path, settings: Settings, progress: bool) -> Table:
    zoo = bundled.load()
    made = fingerprint(settings, zoo.fingerprint)
    store = stages.sample(zoo, settings, folder, made, progress)
    cut = settings.images_per_class * len(zoo.names)
    explained, held_out = store.select(slice(0, cut)), store.select(slice(cut, None))
    names = list(zoo.extractors)
    tsv = {name: stages.saliency(zoo, name, explained, settings, folder, made, progress) for name in names}
    concepts = {name: stages.concepts(zoo, name, explained, tsv[name], settings, folder, made) for name in names}
    selections = stages.edits(zoo, held_out, settings, folder, made, progress)
    measured = measures.measure(zoo, explained, held_out, tsv, concepts, selections, settings, progress)
    summary = tables.summary(measured, settings.top_n)
    numbers = {"fingerprint": made, "measures": measures.as_numbers(measured)}
    replace_whole(folder / "evaluation.json", lambda file: file.write_text(json.dumps(numbers, indent=1), "utf-8"))
    replace_whole(folder / "concepts.csv", lambda file: _write_csv(file, concepts))
    content = pages.concept_pages(
        zoo, explained, held_out, tsv["ce"], concepts["ce"], selections["token selection"], settings
    )
    report = Report("CORTEX on the bundled model", INTRODUCTION, summary, content, tables.evaluation(measured), made)
    write_report(report, folder / "report")
    return summary


def _write_csv(path: Path, concepts: dict[str, ConceptExplanations]) -> None:
    """extractor, concept, rank, token, count, share: one line for each concept token."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("extractor", "concept", "rank", "token", "count", "share"))
        for extractor, result in concepts.items():
            for concept, rank in (result.counts > 0).nonzero().tolist():
                token, count = int(result.tokens[concept, rank]), int(result.counts[concept, rank])
                share = f"{float(result.shares[concept, rank]):.6f}"
                writer.writerow((extractor, result.names[concept], rank + 1, token, count, share))
