"""Studies: one generative model's whole explanation in one folder, computed stage by stage, resumable."""

from cortex_fast.studies.presets import PRESETS
from cortex_fast.studies.running import run
from cortex_fast.studies.settings import StudySettings
from cortex_fast.studies.status import status_of
from cortex_fast.studies.study import Study
from cortex_fast.studies.toml_file import SettingsError, read_settings, write_settings
from cortex_fast.studies.workers import Workers, workers_of
from cortex_fast.studies.working import StaleError

__all__ = [
    "PRESETS",
    "SettingsError",
    "StaleError",
    "Study",
    "StudySettings",
    "Workers",
    "read_settings",
    "run",
    "status_of",
    "workers_of",
    "write_settings",
]
