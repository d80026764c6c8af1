"""A study: one folder with all that is known about one generative model's concepts, and the way there."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cortex_fast import checks
from cortex_fast.data import digests
from cortex_fast.data.token_store import TokenStore
from cortex_fast.engine import MEMORY, Prepared, prepare
from cortex_fast.extractors import load_extractor
from cortex_fast.studies.settings import StudySettings
from cortex_fast.studies.sources import Source, open_source
from cortex_fast.studies.toml_file import read_settings
from cortex_fast.studies.workers import Workers

FILE = "study.toml"
SCORES = "ScoreShard"  # the kind of a scores' file
_SAMPLES_OF_AUTO = 100  # about, where an image's number of samples is found out


@dataclass(frozen=True, eq=False)
class Study:
    """A study's folder and settings, and what a process opens of it once.

    Args:
        folder: the study's folder; `Study.open` reads its settings.
        settings: what study.toml holds.
        workers: which process this is of how many. Default: one alone.
    """

    folder: Path
    settings: StudySettings
    workers: Workers = field(default_factory=Workers)

    @classmethod
    def open(cls, folder: Path | str, workers: Workers | None = None) -> "Study":
        """The study in a folder.

        Args:
            folder: with a study.toml in it.
            workers: which process this is of how many. Default: one alone.
        Returns:
            The study.
        Raises:
            FileNotFoundError: the folder has no study.toml.
            SettingsError: study.toml does not hold a study's settings.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a study's settings; `cortex-fast init {folder}` writes them")
        return cls(Path(folder), read_settings(path), workers or Workers())

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        name = self.settings.run.device
        if name == "auto":
            name = f"cuda:{self.workers.local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
        checks.device("run.device", name)
        return torch.device(name)

    @property
    def memory(self) -> int:
        """Bytes that the activations of one pass may take."""
        return self.settings.run.memory or MEMORY

    @cached_property
    def source(self) -> Source:
        """The generative model, loaded at the first use."""
        return open_source(self.settings.model, self.settings.classes, self.folder, self.device)

    @cached_property
    def about_model(self) -> dict[str, Any]:
        """What every stage depends on: the model, its settings and the classes."""
        return {
            "model": self.source.model.fingerprint,
            "sampling": self.settings.model.sampling,
            "classes": digests.short(digests.of_parts([list(self.source.conditions), list(self.source.names)])),
        }

    def path_of_split(self, split: str) -> Path:
        """The token store of a split: the user's own file, or where samples are written."""
        samples = self.settings.samples
        if split in samples.files and split not in samples.labels:
            return self.folder / Path(samples.files[split]).expanduser()
        return self.folder / "samples" / f"{split}.safetensors"

    def path_of_extractor(self, name: str) -> Path:
        """Where an extractor of this study is written."""
        return self.folder / "extractors" / f"{name}.safetensors"

    def split(self, split: str) -> TokenStore:
        """A split's images, whose file exists."""
        return TokenStore.load(self.path_of_split(split))

    def extractor(self, name: str) -> nn.Module:
        """An extractor whose file exists, on this process's device."""
        return load_extractor(self.path_of_extractor(name)).to(self.device)

    @cached_property
    def _prepared(self) -> dict[str, Prepared]:
        return {}

    def prepared(self, name: str, sample: Tensor, images: int) -> Prepared:
        """An extractor made ready to score about so many images; once a process.

        Args:
            name: of [extractors].
            sample: float32 [1,d,h,w], an image to try it on.
            images: how many will be scored.
        Returns:
            The prepared extractor, whose graphs live as long as this study.
        """
        if name not in self._prepared:
            samples = self.settings.scoring.num_samples
            copies = images * (samples if isinstance(samples, int) else _SAMPLES_OF_AUTO)
            precision = self.settings.run.precision
            self._prepared[name] = prepare(self.extractor(name), sample, precision=precision, copies=copies)
        return self._prepared[name]

    def name_of_extractor(self, setting: str) -> str:
        """The extractor that [selection] or [edits] names; the first where it names none."""
        names = list(self.settings.extractors)
        if not setting:
            return names[0]
        checks.one_of("extractor", setting, names)
        return setting


def plain(settings: object, *left_out: str) -> dict[str, Any]:
    """A table of settings as JSON values, without those that no result depends on."""
    return {name: value for name, value in asdict(settings).items() if name not in left_out}  # type: ignore[call-overload]
