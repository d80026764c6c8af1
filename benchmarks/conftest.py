"""Options and fixtures of the benchmarks, and the figures that need a whole session's timings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from benchmarks import harness, machine, report
from benchmarks.harness import Case, Sibling, Validated

RATES = pytest.StashKey[dict[str, float]]()
UNAVAILABLE = pytest.StashKey[list[dict[str, str]]]()


@dataclass(frozen=True, eq=False)
class Turn:
    """One turn of a sibling, counted from 0. Compared by identity: pytest would group tests with equal parameters."""

    sibling: Sibling
    number: int


@dataclass(frozen=True)
class Findings:
    """Results of a case's tests: its validated siblings by name, and its floor in seconds by turn."""

    validated: dict[str, Validated]
    floors: dict[int, float]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="small sizes: try the benchmarks, measure nothing of use")
    parser.addoption("--turns", type=int, default=1, help="rounds through a case's siblings, whose timings are pooled")
    parser.addoption("--device", default="cpu", help="where the tensors are (default: cpu)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[UNAVAILABLE] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each turn of each sibling of each of its module's `cases(quick)`.

    A case's siblings take turns, so that a drift of the machine's speed meets them all.
    """
    if "turn" in metafunc.fixturenames:
        numbers = range(metafunc.config.getoption("turns"))
        cases = metafunc.module.cases(metafunc.config.getoption("quick"))
        turns = [(case, Turn(sibling, number)) for case in cases for number in numbers for sibling in case.siblings]
        names = [f"{case.group}-{turn.sibling.name}-{turn.number}" for case, turn in turns]
        metafunc.parametrize(("case", "turn"), turns, ids=names, scope="module")


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return torch.device(pytestconfig.getoption("device"))


@pytest.fixture(scope="session", autouse=True)
def _rates(pytestconfig: pytest.Config, device: torch.device) -> None:
    pytestconfig.stash[RATES] = machine.rates(device)


@pytest.fixture(scope="module")
def data(case: Case, device: torch.device) -> Any:
    """A case's data, shared by its siblings and freed before the next case."""
    return case.data(device)


@pytest.fixture(scope="module")
def findings(case: Case) -> Findings:
    """Filled by the case's tests."""
    return Findings({}, {})


@pytest.fixture
def measure(
    pytestconfig: pytest.Config,
    benchmark: Any,
    case: Case,
    turn: Turn,
    data: Any,
    findings: Findings,
    device: torch.device,
) -> Callable[[], None]:
    """Validates the sibling, and times one turn of it; or skips it with its reason."""

    def measure_or_skip() -> None:
        sibling = turn.sibling
        reason = sibling.unavailable(data)
        if reason is not None:
            if turn.number == 0:
                about = {"group": case.group, "sibling": sibling.name, "reason": reason}
                pytestconfig.stash[UNAVAILABLE].append(about)
            pytest.skip(reason)
        if sibling.name not in findings.validated:
            findings.validated[sibling.name] = harness.validate(case, sibling, data)
        if turn.number not in findings.floors:
            findings.floors[turn.number] = machine.floor_seconds(case.floor, device)
        valid, floor = findings.validated[sibling.name], findings.floors[turn.number]
        harness.time_turn(benchmark, case, sibling, valid, floor, pytestconfig.getoption("turns"))

    return measure_or_skip


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["benchmarks"] = report.pooled(output_json["benchmarks"])
    report.complete(output_json["benchmarks"])
    output_json["rates"] = config.stash[RATES]
    output_json["unavailable"] = config.stash[UNAVAILABLE]
