"""A study: one folder with all that is known about one generative model's concepts, and the way there."""

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cortex_fast import checks
from cortex_fast.data import digests
from cortex_fast.data.results import digest_of_contents
from cortex_fast.data.token_store import TokenStore
from cortex_fast.engine import MEMORY, Prepared
from cortex_fast.explain.saliency_settings import Settings
from cortex_fast.explain.scores import prepared_for
from cortex_fast.extractors import load_extractor
from cortex_fast.studies.settings import StudySettings
from cortex_fast.studies.sources import Source, open_source
from cortex_fast.studies.toml_file import read_settings
from cortex_fast.studies.workers import Workers

FILE = "study.toml"
SCORES = "ScoreShard"  # the kind of a scores' file


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
        """A split's images, whose file exists; its tokens are checked once a process, unless the file changes."""
        path = self.path_of_split(split)
        digest = digest_of_contents(path)
        if digest not in self._stores:
            self._stores[digest] = TokenStore.open(path)
        return self._stores[digest]

    def extractor(self, name: str) -> nn.Module:
        """An extractor whose file exists, on this process's device."""
        return load_extractor(self.path_of_extractor(name)).to(self.device)

    @cached_property
    def _stores(self) -> dict[str, TokenStore]:
        return {}

    @cached_property
    def _prepared(self) -> dict[str, Prepared]:
        return {}

    def prepared(self, name: str, images: TokenStore) -> Prepared:
        """An extractor prepared to score a data set; once a process, with the graphs that it keeps.

        Args:
            name: of [extractors].
            images: the data set, on this process's device.
        Returns:
            The prepared extractor.
        """
        if name not in self._prepared:
            precision = self.settings.run.precision
            extractor = self.extractor(name)
            self._prepared[name] = prepared_for(extractor, images, self.saliency_settings, precision=precision)
        return self._prepared[name]

    @property
    def saliency_settings(self) -> Settings:
        """[scoring] as `token_saliency` takes it."""
        values = plain(self.settings.scoring, "maps")
        return Settings(**values, memory=self.memory, top_n=self.settings.concepts.top_n)

    def on_device(self, images: TokenStore) -> TokenStore:
        """The same images with the codebook in float32 on this process's device, where E is gathered."""
        codebook = images.codebook.to(self.device, torch.float32)
        return images if codebook is images.codebook else replace(images, codebook=codebook)

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
