"""A study's stages, run in their order: whatever is missing, by this process and others beside it."""

from collections.abc import Collection, Sequence

from tqdm import tqdm

from cortex_fast import checks
from cortex_fast.studies.journal import noted
from cortex_fast.studies.stages import STAGES
from cortex_fast.studies.study import Study
from cortex_fast.studies.working import StaleError, complete


def run(
    study: Study, stages: Sequence[str] | None = None, *, again: Collection[str] = (), progress: bool = True
) -> None:
    """Compute whatever is missing.

    Args:
        study: an opened study.
        stages: which, in their order. Default: all.
        again: stages whose stale or damaged files are computed again. Default: none.
        progress: show a bar for each stage. Default True.
    Raises:
        StaleError: a file was computed from other settings or inputs, and its stage is not in `again`.
        ValueError: a setting that only the model can judge, such as a class that does not exist.
        OSError: a folder that cannot be written, or a full disk.
    """
    for name in (*(stages or ()), *again):
        checks.one_of("stage", name, STAGES)
    for name in stages or STAGES:
        with noted(study, name):
            _run_stage(study, name, name in again, progress and study.workers.rank == 0)


def _run_stage(study: Study, name: str, again: bool, progress: bool) -> None:
    for phase in STAGES[name](study):
        tasks = phase.plan()
        title = f"{name}: {phase.title}"
        with tqdm(total=len(tasks), desc=title, unit="file", disable=not progress or not tasks) as bar:
            try:
                complete(tasks, study.workers, again=again, tick=bar.update)
            except StaleError as error:
                raise StaleError(
                    f"{error}\nThe stage {name!r} is stale; --again {name} computes its files again."
                ) from error
