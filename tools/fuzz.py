"""Calls each operator with random arguments, in separate processes, and compares the results with the definition.

    python tools/fuzz.py [--calls 1000] [--operators gumbel_codebook,...] [--kinds numbers,wrong] [--processes 2]
    python tools/fuzz.py --replay "numbers gumbel_codebook 123"

A call is named by three words: its kind, its operator and its seed, from which all that is random about it follows.
"numbers" are right calls (shapes, memory layouts, dtypes, infinities and NaN), judged in float64; "wrong" are calls
with arguments of other types, which must be refused by name. A finding is a wrong result, another exception, or the end
of the process. Each is printed with the command that repeats it. Exit status 1 where there is one.
"""

import argparse
import faulthandler
import multiprocessing
import resource
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch

sys.path[:0] = map(str, Path(__file__).parents[:2])

from fuzz_calls import numbers, wrong  # noqa: E402 (from beside this file)
from fuzz_calls.inputs import Draw  # noqa: E402

from cortex_fast import _native  # noqa: E402
from cortex_fast.kernels import native  # noqa: E402

OPERATORS = {"numbers": numbers.OPERATORS, "wrong": wrong.OPERATORS}
AT_ONCE = 500  # calls of one process
PATIENCE = 120  # seconds that a call may take


def run(call: str) -> None:
    """One call; raises where it is a finding."""
    kind, operator, _seed = call.split()
    draw = Draw(call)
    native.LEVEL = draw.among(_native.levels())
    torch.set_num_threads(draw.whole(1, 3))
    torch.set_deterministic_debug_mode("error")  # fresh memory is NaN: what a kernel leaves unwritten shows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "numbers":
            numbers.OPERATORS[operator](draw)
        else:
            wrong.wrong(operator, draw)


def work(calls: list[str], report: Connection) -> None:
    """The work of one process: reports None before each call, and the text of each finding."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for call in calls:
        report.send(None)
        try:
            run(call)
        except Exception:
            report.send(traceback.format_exc())


@dataclass
class Worker:
    """A process that works on these calls, of which it has begun some. It is forked, which is quick, and safe because
    this process starts no threads."""

    calls: list[str]
    process: ForkProcess
    reports: Connection
    begun: int = 0
    since: float = 0.0


def started(calls: list[str]) -> Worker:
    reports, report = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=work, args=(calls, report))
    process.start()
    report.close()
    return Worker(calls, process, reports, since=time.monotonic())


def report_finding(call: str, text: str) -> None:
    lines = text.strip().replace("\n", "\n  ")
    print(f'{call}: again by python tools/fuzz.py --replay "{call}"\n  {lines}\n', flush=True)


def findings(calls: list[str], processes: int) -> int:
    """Run the calls and print their findings; returns the number of findings."""
    parts = [calls[start : start + AT_ONCE] for start in range(0, len(calls), AT_ONCE)]
    count, workers = 0, []
    while parts or workers:
        while parts and len(workers) < processes:
            workers.append(started(parts.pop()))
        ready = wait([worker.reports for worker in workers], timeout=1)
        for worker in list(workers):
            if worker.reports in ready:
                worker.since = time.monotonic()
                try:
                    text = worker.reports.recv()
                except EOFError:
                    workers.remove(worker)
                    worker.process.join()
                    if worker.process.exitcode:
                        count += 1
                        report_finding(
                            worker.calls[worker.begun - 1], f"the process ended with {worker.process.exitcode}"
                        )
                        parts.append(worker.calls[worker.begun :])
                else:
                    worker.begun += text is None
                    if text is not None:
                        count += 1
                        report_finding(worker.calls[worker.begun - 1], text)
            elif time.monotonic() - worker.since > PATIENCE:
                worker.process.kill()
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000, help="of each operator and kind")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--operators", help="names, separated by commas")
    parser.add_argument("--kinds", default=",".join(OPERATORS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--replay", help='one call, as in "numbers gumbel_codebook 123"')
    options = parser.parse_args()
    if options.replay:
        run(options.replay)
        print("right")
        return 0
    wanted = options.operators.split(",") if options.operators else None
    calls = [
        f"{kind} {operator} {seed}"
        for kind in options.kinds.split(",")
        for operator in OPERATORS[kind]
        if wanted is None or operator in wanted
        for seed in range(options.first, options.first + options.calls)
    ]
    count = findings(calls, options.processes)
    print(f"{len(calls)} calls, {count} findings")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
