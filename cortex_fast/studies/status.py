"""How far a study is: of each stage its files that are done, missing, stale or damaged, and why."""

from collections import Counter
from dataclasses import dataclass

from cortex_fast.data.results import ResultFileError
from cortex_fast.studies.stages import STAGES
from cortex_fast.studies.study import Study
from cortex_fast.studies.tasks import Phase, State, state_of

SHOWN = 3  # reasons of a phase


@dataclass(frozen=True)
class PhaseStatus:
    """One phase of a stage.

    counts: how many tasks are in each state. reasons: of the first that are stale or damaged, why. waits_for: what must
    be computed before the phase can be planned; empty where it can.
    """

    stage: str
    title: str
    counts: dict[State, int]
    reasons: tuple[str, ...]
    waits_for: str = ""


def status_of(study: Study) -> list[PhaseStatus]:
    """Every phase of every stage, in their order.

    Args:
        study: an opened study; its model is loaded.
    Returns:
        Their states; nothing is computed or changed.
    """
    return [_status(stage, phase) for stage, phases in STAGES.items() for phase in phases(study)]


def _status(stage: str, phase: Phase) -> PhaseStatus:
    try:
        tasks = phase.plan()
    except (FileNotFoundError, ResultFileError) as error:
        return PhaseStatus(stage, phase.title, {}, (), waits_for=str(error))
    states = [state_of(task) for task in tasks]
    reasons = tuple(reason for state, reason in states if state in (State.STALE, State.DAMAGED))
    return PhaseStatus(stage, phase.title, dict(Counter(state for state, _ in states)), reasons[:SHOWN])


def as_text(phases: list[PhaseStatus]) -> str:
    """The status as lines: a stage, its files by state, and reasons beneath."""
    lines = []
    for phase in phases:
        total = sum(phase.counts.values())
        if phase.waits_for:
            summary = f"waits: {phase.waits_for}"
        elif not total:
            summary = "nothing to do"
        else:
            summary = ", ".join(f"{count} {state.value}" for state, count in phase.counts.items()) + f" of {total}"
        lines.append(f"{phase.stage:<8} {phase.title:<20} {summary}")
        lines += [f"{'':<9}{reason}" for reason in phase.reasons]
    return "\n".join(lines)
