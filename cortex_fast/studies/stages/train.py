"""The information extractors, trained on the samples or taken from files: extractors/NAME.safetensors."""

from functools import partial
from pathlib import Path
from typing import Any

from cortex_fast.data.results import digest_of_contents
from cortex_fast.extractors import TrainingRecipe, load_extractor
from cortex_fast.extractors.files import KIND, extractor_header, save_extractor
from cortex_fast.extractors.fitting import fit
from cortex_fast.studies.settings import ExtractorSettings
from cortex_fast.studies.sources import BUNDLED
from cortex_fast.studies.study import Study, plain
from cortex_fast.studies.tasks import ENTRY, Phase, Task

_RECIPE = ("epochs", "batch_size", "lr", "weight_decay", "step_epochs", "gamma")


def phases(study: Study) -> list[Phase]:
    """One task an extractor: each is trained by one process, so that its bits do not depend on their number."""
    return [Phase("extractors", lambda: [_task(study, *entry) for entry in study.settings.extractors.items()])]


def _task(study: Study, name: str, settings: ExtractorSettings) -> Task:
    path = study.path_of_extractor(name)
    if settings.file == BUNDLED:
        inputs: dict[str, Any] = {"bundled": name, **study.about_model}
        return Task((path,), KIND, inputs, partial(_copy_bundled, study, name, settings.kind, path, inputs))
    if settings.file:
        source = study.folder / Path(settings.file).expanduser()
        inputs = {"file": digest_of_contents(source)}
        return Task((path,), KIND, inputs, partial(_copy, source, path, inputs))
    inputs = {**plain(settings, "file"), "train": digest_of_contents(study.path_of_split("train"))}
    if _has_validation(study):
        inputs["validation"] = digest_of_contents(study.path_of_split("validation"))
    return Task((path,), KIND, inputs, partial(_train, study, settings, path, inputs))


def _has_validation(study: Study) -> bool:
    return study.settings.samples.validation > 0 or "validation" in study.settings.samples.files


def _train(study: Study, settings: ExtractorSettings, path: Path, inputs: dict[str, Any]) -> None:
    fitted = path.with_name(f"{path.stem}.fitting.safetensors")
    fit(
        study.split("train"),
        fitted,
        settings.kind,
        TrainingRecipe(**{name: getattr(settings, name) for name in _RECIPE}),
        width=settings.width,
        validation=study.split("validation") if _has_validation(study) else None,
        seed=settings.seed,
        precision=settings.precision,
        device=study.device,
        resume=True,
    )
    _copy(fitted, path, inputs)
    fitted.unlink()


def _copy(source: Path, path: Path, inputs: dict[str, Any]) -> None:
    header = extractor_header(source)
    fingerprint = {**header["fingerprint"], ENTRY: inputs}
    save_extractor(path, load_extractor(source), header["name"], header["sizes"], fingerprint)


def _copy_bundled(study: Study, name: str, kind: str, path: Path, inputs: dict[str, Any]) -> None:
    extractor = study.source.extractors[name]
    save_extractor(path, extractor.module, kind, extractor.sizes, {ENTRY: inputs})
