"""From timings to figures: ratios within a group, shares of the floor, the table, and the file of results.

A record is a benchmark in pytest-benchmark's JSON: its "group", its "stats" in seconds, and its "extra_info".
"""

import json
import math
import os
import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
WIDTH = 130
# title -> width
COLUMNS = {"median ms": 10, "ratio": 7, "GB/s": 6, "GFLOP/s": 8, "floor": 6, "peak MiB": 9, "error": 7, "agrees": 10}

Record = dict[str, Any]


def ratios(medians: Mapping[str, float], sibling: str) -> dict[str, float]:
    """Every sibling's time over this one's: above 1, this one is faster."""
    return {other: median / medians[sibling] for other, median in medians.items()}


def pooled(records: Sequence[Record]) -> list[Record]:
    """One record for each turn of a sibling -> one for each sibling, with all its timings and its group's best."""
    turns: dict[tuple[str, str], list[Record]] = {}
    floors: dict[str, float] = {}
    for record in records:
        group, extra = record["group"], record["extra_info"]
        turns.setdefault((group, extra["sibling"]), []).append(record)
        floors[group] = min(floors.get(group, math.inf), extra["floor_seconds"])
    pools = []
    for (group, _), records_of_turns in turns.items():
        seconds = [second for record in records_of_turns for second in record["stats"]["data"]]
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        stats = {"median": median, "iqr": high - low, "min": min(seconds), "rounds": len(seconds)}
        first = records_of_turns[0]
        extra = {**first["extra_info"], "floor_seconds": floors[group]}
        pools.append({**first, "stats": stats, "extra_info": extra})
    return pools


def complete(records: Sequence[Record]) -> None:
    """Add ratios, rates and shares of the floor to each extra_info, from the medians of a group.

    GB/s and GFLOP/s count the floor's bytes and operations, not what a sibling did beyond them.
    """
    medians: dict[str, dict[str, float]] = {}
    for record in records:
        medians.setdefault(record["group"], {})[record["extra_info"]["sibling"]] = record["stats"]["median"]
    for record in records:
        extra, median = record["extra_info"], record["stats"]["median"]
        extra["ratio"] = ratios(medians[record["group"]], extra["sibling"])
        extra["gb_per_s"] = extra["bytes"] / median / 1e9
        extra["gflop_per_s"] = extra["operations"] / median / 1e9
        extra["share_of_floor"] = extra["share"] * extra["floor_seconds"] / median


def rows(records: Sequence[Record]) -> list[Record]:
    """Completed records as the rows of results."""
    figures = (
        "ratio",
        "gb_per_s",
        "gflop_per_s",
        "floor_seconds",
        "share_of_floor",
        "peak_bytes",
        "max_error",
        "agreement",
    )
    results = []
    for record in records:
        stats, extra = record["stats"], record["extra_info"]
        about = {"group": record["group"], "sibling": extra["sibling"], "sizes": extra["sizes"]}
        times = {name: stats[name] for name in ("median", "iqr", "min", "rounds")}
        results.append({**about, **times, **{name: extra[name] for name in figures}})
    return results


def table(results: Mapping[str, Any]) -> str:
    """One line for each group and sibling, within WIDTH columns; `ratio` is its time over that of the group's first."""
    records = results["rows"]
    group_width = max(len(row["group"]) for row in records)
    sibling_width = max(len(row["sibling"]) for row in records)
    lines = [" " * (group_width + 2 + sibling_width) + "".join(f"{title:>{width}}" for title, width in COLUMNS.items())]
    first: dict[str, str] = {}
    for row in records:
        title = "" if row["group"] in first else row["group"]
        cells = zip(_cells(row, first.setdefault(row["group"], row["sibling"])), COLUMNS.values(), strict=True)
        text = "".join(f"{cell:>{width}}" for cell, width in cells)
        lines.append(f"{title:{group_width}}  {row['sibling']:{sibling_width}}{text}")
    return "\n".join([*lines, "", *_notes(results)])


def _cells(row: Record, first: str) -> tuple[str, ...]:
    """In the order of COLUMNS."""
    peak = row["peak_bytes"]
    return (
        f"{row['median'] * 1e3:.2f}",
        f"{1 / row['ratio'][first]:.2f}",
        f"{row['gb_per_s']:.1f}",
        f"{row['gflop_per_s']:.1f}" if row["gflop_per_s"] else "-",
        f"{row['share_of_floor']:.0%}",
        "-" if peak is None else f"{peak / 2**20:.0f}",
        "-" if row["max_error"] is None else f"{row['max_error']:.0e}",
        "" if row["agreement"] is None else "{:.2f} {:.0%}".format(*row["agreement"]),
    )


def _notes(results: Mapping[str, Any]) -> list[str]:
    """The columns' meaning, the machine's rates, and the reasons of siblings that could not run."""
    rates, about = results["rates"], results["fingerprint"]
    missing = Counter((entry["sibling"], entry["reason"]) for entry in results["unavailable"])
    notes = [
        "ratio: time over that of the group's first line. GB/s, GFLOP/s: the floor's bytes and operations over the "
        "median. floor: the time that torch alone took for those in this run, over the median. peak: extra memory of "
        "one call, its results included. error: the largest against float64, where the random numbers are known. "
        "agrees: an estimate's rank correlation with the truth, and its share of the top.",
        f"Beyond caches: read {rates['read'] / 1e9:.1f} GB/s, copy {rates['copy'] / 1e9:.1f} GB/s (read + written); "
        f"matrix {rates['matrix'] / 1e9:.0f} GFLOP/s. {about['machine']}, {about['threads']} threads, torch "
        f"{about['torch']}. Load when it began: {about['load']}.",
        *(
            f"Not timed in {count} of the groups: {sibling}, since {reason}"
            for (sibling, reason), count in missing.items()
        ),
    ]
    return [line for note in notes for line in textwrap.wrap(note, WIDTH)]


def file_name(fingerprint: Mapping[str, Any], parts: Sequence[str]) -> str:
    """<machine>-<date>.json, with the names of `parts` if only these were run."""
    machine = f"{fingerprint['machine']} {fingerprint['cores']} cores"
    words = [re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-"), fingerprint["date"][:10], *parts]
    return "-".join(words) + ".json"


def write(results: Mapping[str, Any], path: Path) -> None:
    """Write results, one line a row, numbers to 5 digits. An interrupted write leaves no file."""
    fields = []
    for name, value in results.items():
        text = json.dumps(_rounded(value))
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(_rounded(item)) for item in value) + "\n ]"
        fields.append(f" {json.dumps(name)}: {text}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("{\n" + ",\n".join(fields) + "\n}\n", "utf-8")
    temporary.replace(path)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value
