"""`cortex-fast demo`: the whole of CORTEX on the bundled model, from sampling to a report."""

import json
from pathlib import Path

from cortex_fast import zoo
from cortex_fast.data.locks import held
from cortex_fast.data.results import replace_whole
from cortex_fast.demo import measures, pages, tables
from cortex_fast.demo.results import Results, Run, compute
from cortex_fast.demo.settings import Settings, fingerprint
from cortex_fast.report import Report, Table, write_report
from cortex_fast.report.html import check_replaceable
from cortex_fast.studies.tables import write_csv

INTRODUCTION = (
    "A small VQGAN with a class-conditional prior drew these images from 1,024 codebook tokens on a 16 x 16 grid. "
    "For every class, this report shows the tokens that make its images look like the class, where they lie, and what "
    "happens when they are removed or inserted."
)


def run_demo(folder: Path, settings: Settings, *, progress: bool = True) -> Table:
    """Sample, explain, edit and evaluate on the bundled model, and write the results and a report.

    Args:
        folder: where the files are written: a study (see docs/studies.md), baselines, concepts.csv, evaluation.json
            and report/index.html. What was computed with the same settings is reused.
        settings: sizes of the run.
        progress: whether to show progress bars. Default True.

    Returns:
        The summary table.

    Raises:
        ResultFileError: a file in the folder is damaged or not ours.
        FileExistsError: `folder`/report is not a report.
        BlockingIOError: another demo writes to the folder.
    """
    check_replaceable(folder / "report")  # before the work instead of after it, as is the lock
    with held(folder / "report"):
        model = zoo.load()
        run = Run(model, settings, folder, fingerprint(settings, model.fingerprint), progress)
        results = compute(run)
        measured = measures.measure(run, results)
        summary = tables.summary(measured, settings.top_n)
        _write_files(run, results, measured)
        report = Report(
            title="CORTEX on the bundled model",
            introduction=INTRODUCTION,
            summary=summary,
            concepts=pages.concept_pages(run, results),
            evaluation=tables.evaluation(measured),
            fingerprint=run.fingerprint,
        )
        write_report(report, folder / "report")
    return summary


def _write_files(run: Run, results: Results, measured: measures.Measures) -> None:
    """evaluation.json and concepts.csv."""
    text = json.dumps({"fingerprint": run.fingerprint, "measures": measures.as_numbers(measured)}, indent=1)
    replace_whole(run.folder / "evaluation.json", lambda file: file.write_text(text, "utf-8"))
    write_csv(run.folder / "concepts.csv", results.concepts)
