"""Results as tables for other programs."""

import csv
from collections.abc import Mapping
from pathlib import Path

from cortex_fast.data.results import replace_whole
from cortex_fast.explain import ConceptExplanations


def write_csv(path: Path, results: Mapping[str, ConceptExplanations]) -> None:
    """One line a concept token: extractor, concept, rank, token, count, share.

    Args:
        path: the file, written whole or not at all.
        results: the concepts' tokens by the extractor's name.
    """
    replace_whole(path, lambda file: _write_csv(file, results))


def _write_csv(path: Path, results: Mapping[str, ConceptExplanations]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("extractor", "concept", "rank", "token", "count", "share"))
        for extractor, result in results.items():
            for concept, rank in (result.counts > 0).nonzero().tolist():
                token, count = int(result.tokens[concept, rank]), int(result.counts[concept, rank])
                share = f"{float(result.shares[concept, rank]):.6f}"
                writer.writerow((extractor, result.names[concept], rank + 1, token, count, share))
