"""A study's settings: what study.toml holds, one frozen dataclass a table."""

import re
from dataclasses import dataclass, field
from typing import Any

from cortex_fast import checks
from cortex_fast.engine.preparing import PRECISIONS as ENGINE_PRECISIONS
from cortex_fast.explain.recipes import OPTIMIZERS, STARTS
from cortex_fast.explain.saliency_settings import AUTO, NOISES, SIGMA_RANGES
from cortex_fast.extractors.build import NAMES
from cortex_fast.extractors.training import PRECISIONS
from cortex_fast.ops.concept_counts import PER
from cortex_fast.ops.token_saliency import REDUCTIONS

PASSES = tuple(ENGINE_PRECISIONS)
SPLITS = ("train", "validation", "test")


def setting(default: Any, comment: str) -> Any:
    """A field with its default and the comment that study.toml shows beside it."""
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata={"comment": comment})
    return field(default=default, metadata={"comment": comment})


def _set(settings: object, name: str, value: object) -> None:
    object.__setattr__(settings, name, value)


def _whole(settings: object, name: str, least: int) -> None:
    _set(settings, name, checks.whole(name, getattr(settings, name), least))


def _seed(settings: object) -> None:
    _set(settings, "seed", checks.seed(getattr(settings, "seed")))  # noqa: B009 (not every table has one)


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a text, got {checks.shown(value)}")


def _table(name: str, value: object) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"{name}: expected a table, got {checks.shown(value)}")


@dataclass(frozen=True)
class ModelSettings:
    """[model]: the generative model."""

    source: str = setting("", "taming:FOLDER, llamagen:FILE, ibq:FILE, bundled, or python:module:function for your own")
    sampling: dict[str, Any] = setting({}, "of the prior, such as { top_k = 250, top_p = 0.92, temperature = 1.0 }")

    def __post_init__(self) -> None:
        _text("source", self.source)
        _table("sampling", self.sampling)


@dataclass(frozen=True)
class ClassSettings:
    """[classes]: which conditions of the model are explained."""

    chosen: str | list[Any] = setting("all", '"all", or a list of class numbers or names')
    names: str = setting("", "text file of class names, a line each; empty: the model's, or their numbers")

    def __post_init__(self) -> None:
        if self.chosen != "all" and not (isinstance(self.chosen, list) and self.chosen):
            raise TypeError(f"chosen: expected 'all' or a list of classes, got {checks.shown(self.chosen)}")
        for label in self.chosen if isinstance(self.chosen, list) else ():
            if isinstance(label, bool) or not isinstance(label, int | str):
                raise TypeError(f"chosen: expected class numbers or names, got {checks.shown(label)}")
        _text("names", self.names)


@dataclass(frozen=True)
class SampleSettings:
    """[samples]: images a class, drawn from the model or taken from files."""

    train: int = setting(1000, "images a class that extractors learn from and that are explained, below 2^30 in all")
    validation: int = setting(300, "images a class that choose an extractor's epoch")
    test: int = setting(50, "images a class that edits start from and that judge explanations")
    seed: int = setting(0, "of all splits, whose images differ")
    files: dict[str, str] = setting({}, 'token stores instead of samples: { train = "train.safetensors", ... }')
    labels: dict[str, str] = setting({}, 'other labels of such a store: { train = "labels.csv" }, with image,label')

    def __post_init__(self) -> None:
        for split in SPLITS:
            _whole(self, split, 0)
        _seed(self)
        for name in ("files", "labels"):
            paths = getattr(self, name)
            _table(name, paths)
            for split, path in paths.items():
                checks.one_of(name, split, SPLITS)
                _text(f"{name}.{split}", path)
        for split in self.labels:
            if split not in self.files:
                raise ValueError(f"labels: expected a store for {split} in files, got none")


@dataclass(frozen=True)
class ExtractorSettings:
    """[extractors.NAME]: one information extractor, trained here or taken from a file."""

    kind: str = setting("ce", f"one of {', '.join(NAMES)}; trained here")
    file: str = setting("", "an extractor file to take instead of training one")
    width: int = setting(512, "hidden channels")
    epochs: int = setting(80, "")
    batch_size: int = setting(256, "images")
    lr: float = setting(1e-3, "of Adam")
    weight_decay: float = setting(1e-4, "")
    step_epochs: int = setting(20, "epochs between falls of the learning rate")
    gamma: float = setting(0.1, "factor of each fall")
    seed: int = setting(0, "of the weights, the order of images and dropout")
    precision: str = setting("float32", f"one of {', '.join(PRECISIONS)}")

    def __post_init__(self) -> None:
        checks.one_of("kind", self.kind, NAMES)
        _text("file", self.file)
        for name, least in (("width", 1), ("epochs", 1), ("batch_size", 2), ("step_epochs", 1)):
            _whole(self, name, least)
        if self.width % 16:
            raise ValueError(f"width: expected a multiple of 16, got {self.width}")
        for name in ("lr", "gamma"):
            _set(self, name, checks.positive(name, getattr(self, name)))
        _set(self, "weight_decay", checks.non_negative("weight_decay", self.weight_decay))
        _seed(self)
        checks.one_of("precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class ScoringSettings:
    """[scoring]: SmoothGrad and TSV (eq. 5)."""

    num_samples: int | str = setting(20, 'N noisy copies of an image, or "auto"')
    alpha: float = setting(0.2, "sigma as a part of an embedding's range")
    sigma_range: str = setting("sample", f"one of {', '.join(SIGMA_RANGES)}")
    noise: str = setting("shared", f"one of {', '.join(NOISES)}")
    reduction: str = setting("absmax", f"one of {', '.join(REDUCTIONS)}: of the channels")
    antithetic: bool = setting(False, "draws in pairs of opposite sign")
    seed: int = setting(0, "of the noise")
    maps: bool = setting(False, "keep whole TSV maps beside each image's top positions")

    def __post_init__(self) -> None:
        if self.num_samples != AUTO:
            _whole(self, "num_samples", 1)
        _set(self, "alpha", checks.non_negative("alpha", self.alpha))
        for name, values in (("sigma_range", SIGMA_RANGES), ("noise", NOISES), ("reduction", REDUCTIONS)):
            checks.one_of(name, getattr(self, name), values)
        for name in ("antithetic", "maps"):
            checks.flag(name, getattr(self, name))
        _seed(self)


@dataclass(frozen=True)
class ConceptSettings:
    """[concepts]: each class's tokens (eq. 6)."""

    top_n: int = setting(20, "positions of largest TSV taken from each image")
    top_k: int = setting(100, "tokens of each concept")
    per: str = setting("occurrence", f"one of {', '.join(PER)}: what is counted")
    examples: int = setting(8, "occurrences shown for each token")

    def __post_init__(self) -> None:
        _whole(self, "top_n", 1)
        _whole(self, "top_k", 1)
        _whole(self, "examples", 0)
        checks.one_of("per", self.per, PER)


@dataclass(frozen=True)
class OptimisationSettings:
    """What [selection] and [edits] share: a recipe of token selection (eq. 7-9)."""

    extractor: str = setting("", "a name of [extractors]; empty: the first")
    steps: int = setting(3000, "")
    lr: float = setting(0.01, "")
    tau: float = setting(1.0, "temperature of Gumbel-Softmax")
    optimizer: str = setting("adam", f"one of {', '.join(OPTIMIZERS)}")
    regularisation: float = setting(0.0, "weight of |E|^2")
    judge_every: int = setting(500, "steps between looks at the selection without noise")
    restarts: int = setting(1, "independent runs of a problem, of which the best counts")
    start: str = setting("random", f"one of {', '.join(STARTS)}")
    seed: int = setting(0, "of starts and noise")

    def __post_init__(self) -> None:
        _text("extractor", self.extractor)
        for name in ("steps", "judge_every", "restarts"):
            _whole(self, name, 1)
        for name in ("lr", "tau"):
            _set(self, name, checks.positive(name, getattr(self, name)))
        _set(self, "regularisation", checks.non_negative("regularisation", self.regularisation))
        checks.one_of("optimizer", self.optimizer, OPTIMIZERS)
        checks.one_of("start", self.start, STARTS)
        _seed(self)


@dataclass(frozen=True)
class SelectionSettings(OptimisationSettings):
    """[selection]: each class's tokens over the whole codebook, without an image."""

    classes: str | list[Any] = setting("all", '"all", "none", or a list of class numbers or names')

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes not in ("all", "none") and not isinstance(self.classes, list):
            raise TypeError(f"classes: expected 'all', 'none' or a list, got {checks.shown(self.classes)}")


@dataclass(frozen=True)
class EditSettings(OptimisationSettings):
    """[edits]: test images of one class, changed in a region to be seen as another."""

    pairs: list[Any] = setting([], "pairs of classes, by number or name, such as [[207, 208]]")
    both_ways: bool = setting(True, "edit the second class of a pair to the first, too")
    images: int = setting(50, "test images of each class that is edited")
    region: list[int] = setting([6, 6, 10, 10], "free box [top, left, bottom, right] of the token grid")
    stay_penalty: float = setting(0.0, "price of a changed position, in logits")

    def __post_init__(self) -> None:
        super().__post_init__()
        for pair in self.pairs:
            if not isinstance(pair, list) or len(pair) != 2 or any(not isinstance(label, int | str) for label in pair):
                raise TypeError(f"pairs: expected pairs of classes, got {checks.shown(pair)}")
        checks.flag("both_ways", self.both_ways)
        _whole(self, "images", 1)
        if not isinstance(self.region, list) or len(self.region) != 4:
            raise TypeError(f"region: expected [top, left, bottom, right], got {checks.shown(self.region)}")
        _set(self, "region", [checks.whole("region", side, 0) for side in self.region])
        _set(self, "stay_penalty", checks.non_negative("stay_penalty", self.stay_penalty))


@dataclass(frozen=True)
class RunSettings:
    """[run]: how the work is done. Nothing here but `precision` changes a result."""

    device: str = setting("auto", '"auto", "cpu", "cuda" or "cuda:1"')
    precision: str = setting("float32", f"of extractors' passes, one of {', '.join(PASSES)}")
    shard_images: int = setting(1000, "images of one file, the unit of work")
    batch_size: int = setting(64, "images that are scored together")
    sampling_batch_size: int = setting(32, "images that are sampled together")
    memory: int = setting(0, "bytes that the activations of one pass may take; 0: the package's default")

    def __post_init__(self) -> None:
        _text("device", self.device)
        checks.one_of("precision", self.precision, PASSES)
        for name in ("shard_images", "batch_size", "sampling_batch_size"):
            _whole(self, name, 1)
        _whole(self, "memory", 0)


@dataclass(frozen=True)
class StudySettings:
    """All of study.toml."""

    model: ModelSettings = field(default_factory=ModelSettings)
    classes: ClassSettings = field(default_factory=ClassSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)
    extractors: dict[str, ExtractorSettings] = field(default_factory=lambda: {"ce": ExtractorSettings()})
    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    concepts: ConceptSettings = field(default_factory=ConceptSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    edits: EditSettings = field(default_factory=EditSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        if not self.extractors:
            raise ValueError("extractors: expected at least one table [extractors.NAME], got none")
        for name in self.extractors:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"extractors: expected names of letters, digits, _ and -, got {name!r}")
