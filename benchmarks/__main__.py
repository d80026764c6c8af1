"""Run the suite, print one table of ratios, and write results/<machine>-<date>.json.

    python -m benchmarks [--quick] [--write] [operator ...]

A run of everything writes its results unless something failed; a quick or partial one only with --write, to a file that
says so in its name.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, report

FILES = {path.stem.removeprefix("test_"): path for path in sorted(Path(__file__).parent.glob("test_*.py"))}
HOURS = ("published_script", "smoothgrad_paper")  # run by name alone
TURNS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "operators", nargs="*", metavar="operator", help=f"of {', '.join(FILES)}; default: all but {', '.join(HOURS)}"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: try the benchmarks, measure nothing of use")
    parser.add_argument("--write", action="store_true", help="write results of a quick or partial run too")
    parser.add_argument("--device", default="cpu", help="where the tensors are (default: cpu)")
    arguments = parser.parse_args()
    for name in arguments.operators:
        if name not in FILES:
            parser.error(f"operator: expected one of {', '.join(FILES)}, got {name!r}")

    about = machine.fingerprint()  # before the run: the commit that it started from
    names = arguments.operators or [name for name in FILES if name not in HOURS]
    status, run = timings([FILES[name] for name in names], arguments.quick, arguments.device)
    if run is None:
        print("nothing was timed", file=sys.stderr)
        return status or 1
    results = {
        "fingerprint": about,
        "rates": run["rates"],
        "unavailable": run["unavailable"],
        "rows": report.rows(run["benchmarks"]),
    }
    print(report.table(results))
    if status != 0:
        print("something failed", file=sys.stderr)
        if not arguments.write:
            return status
    parts = [*arguments.operators, *(["quick"] if arguments.quick else []), *(["failed"] if status else [])]
    parts = [*([arguments.device] if arguments.device != "cpu" else []), *parts]
    if arguments.write or not parts:
        path = report.RESULTS / report.file_name(about, parts)
        report.write(results, path)
        print(f"written: {path}")
    return status


def timings(files: list[Path], quick: bool, device: str) -> tuple[int, dict[str, Any] | None]:
    """pytest's exit status over `files`, and what pytest-benchmark recorded, if anything."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "benchmarks.json"
        options = ["-q", "--no-header", "--benchmark-quiet", f"--benchmark-json={record}", f"--device={device}"]
        options += ["--quick"] if quick else [f"--turns={TURNS}"]
        status = pytest.main([*options, *map(str, files)])
        text = record.read_text(encoding="utf-8") if record.exists() else ""
    return int(status), json.loads(text) if text else None


if __name__ == "__main__":
    sys.exit(main())
