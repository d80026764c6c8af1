"""The report: a run's results as a folder of plain HTML pages that opens from disk."""

from cortex_fast.report.content import (
    Cell,
    ConceptPage,
    Curves,
    Edit,
    EditStep,
    ExampleImage,
    Report,
    Table,
    TokenCard,
)
from cortex_fast.report.html import write_report

__all__ = [
    "Cell",
    "ConceptPage",
    "Curves",
    "Edit",
    "EditStep",
    "ExampleImage",
    "Report",
    "Table",
    "TokenCard",
    "write_report",
]
