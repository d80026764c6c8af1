"""The stages of a study, in their order. Each reads files and writes files, and imports no other."""

from collections.abc import Callable, Mapping

from cortex_fast.studies.stages import edit, explain, sample, score, select, train
from cortex_fast.studies.study import Study
from cortex_fast.studies.tasks import Phase

# of each stage its phases, one after the other; a phase's tasks can be planned once the phases before are done
STAGES: Mapping[str, Callable[[Study], list[Phase]]] = {
    "sample": sample.phases,
    "train": train.phases,
    "score": score.phases,
    "explain": explain.phases,
    "select": select.phases,
    "edit": edit.phases,
}
