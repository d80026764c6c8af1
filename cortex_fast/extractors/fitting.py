"""From a token store to an extractor file."""

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cortex_fast import checks
from cortex_fast.data import digests
from cortex_fast.data.classes import name_classes
from cortex_fast.data.locks import held
from cortex_fast.data.results import ResultFileError
from cortex_fast.data.token_store import TokenStore
from cortex_fast.data.workspaces import sweep
from cortex_fast.extractors.build import build
from cortex_fast.extractors.distributed import World
from cortex_fast.extractors.files import extractor_header, load_extractor, save_extractor
from cortex_fast.extractors.recipe import TrainingRecipe
from cortex_fast.extractors.testing import accuracy, mean_loss
from cortex_fast.extractors.training import train_extractor


def checkpoint_of(out: Path) -> Path:
    """The file that holds the state of an unfinished run."""
    return out.with_name(out.name + ".resume.pt")


def best_of(out: Path) -> Path:
    """The file that holds the extractor of least validation loss so far. It is renamed to `out` at the end."""
    return out.with_name(out.name + ".best")


def fit(
    store: TokenStore,
    out: Path,
    name: str,
    recipe: TrainingRecipe,
    *,
    width: int = 512,
    validation: TokenStore | None = None,
    seed: int = 0,
    precision: str = "float32",
    device: torch.device | str = "cpu",
    every: int | None = None,
    resume: bool = False,
    report: Callable[[str], object] | None = None,
    tick: Callable[[int], object] | None = None,
) -> None:
    """Train an extractor on a token store and write it to a file.

    Args:
        store: the images.
        out: the extractor file. The state of an unfinished run lies beside it.
        name: the extractor's name, see `build`.
        recipe: epochs, batch size and the settings of Adam.
        width: channels of the hidden layers. Default 512.
        validation: images on which every epoch is judged. The extractor of the epoch with the least loss on them is
            written, as in the published code. Its codebook may be another than that of `store`. Default None: the
            extractor of the last epoch is written.
        seed: fixes the initial weights, the order of the images and the dropout. Default 0.
        precision: "float32", or "bfloat16" for autocast on GPUs. Default "float32".
        device: where the extractor is trained. Default "cpu".
        every: steps after which the checkpoint is written within an epoch too. Default None: only after epochs.
        resume: whether to continue from the checkpoint beside `out`, if it exists. If `out` exists, only the remains
            of a killed run are removed. Default False.
        report: called with a line of text after every epoch. Default None.
        tick: called after each step with the number of images in it. Default None.

    Raises:
        FileExistsError: `out` or its checkpoint exists, and `resume` is False.
        ResultFileError: one of them is damaged, or was written with other settings or data.
        ValueError: the validation store does not fit the training store.
        BlockingIOError: another run writes to `out`.
    """
    checks.seed(seed)
    run = _Run(
        store=store,
        out=out,
        name=name,
        recipe=recipe,
        width=width,
        validation=validation,
        seed=seed,
        precision=precision,
        device=device,
        every=every,
        report=report,
        tick=tick,
        world=World.current(),
    )
    with nullcontext() if run.world.rank > 0 or out.exists() else held(out):
        if not resume:
            _refuse_existing(out)
        if validation is not None:
            _check_validation(validation, run.sizes)
        if out.exists():
            _finish_earlier(run)
        else:
            _train(run)


@dataclass(frozen=True, eq=False)
class _Run:
    """The arguments of `fit` and what follows from them."""

    store: TokenStore
    out: Path
    name: str
    recipe: TrainingRecipe
    width: int
    validation: TokenStore | None
    seed: int
    precision: str
    device: torch.device | str
    every: int | None
    report: Callable[[str], object] | None
    tick: Callable[[int], object] | None
    world: World

    @cached_property
    def codebook(self) -> Tensor:
        """float32 [K,d] on the device."""
        return self.store.codebook.float().to(self.device)

    @cached_property
    def sizes(self) -> dict[str, Any]:
        """The arguments of `build`."""
        sizes = {"num_classes": len(self.store.names), "in_channels": self.store.codebook.shape[1]}
        return sizes | {"width": self.width, "grid": self.store.grid}

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The recipe and digests of the images."""
        fingerprint = {**dataclasses.asdict(self.recipe), "seed": self.seed, "precision": self.precision}
        fingerprint["processes"] = self.world.size
        fingerprint["data"] = digests.of_images(self.codebook, self.store.tokens, self.store.labels)
        fingerprint["validation"] = None if self.validation is None else digests.of_images(*_images(self.validation))
        return fingerprint

    @property
    def identity(self) -> dict[str, Any]:
        """The values with which the files of the run must agree."""
        return {"name": self.name, "sizes": self.sizes, **self.fingerprint}

    def report_line(self, line: str) -> None:
        """Call `report` with a line of text."""
        if self.report is not None:
            self.report(line)


def _train(run: _Run) -> None:
    """Train from the beginning or the checkpoint, and write the extractor."""
    checkpoint, best = checkpoint_of(run.out), best_of(run.out)
    extractor = _new_extractor(run)
    least = float("inf")
    if checkpoint.exists() and best.exists():
        least = _least_loss(best, run.identity)
    elif run.world.rank == 0:
        best.unlink(missing_ok=True)  # of an older run, whose checkpoint is gone
    loss = train_extractor(
        extractor,
        run.codebook,
        run.store.tokens,
        run.store.labels,
        run.recipe,
        seed=run.seed,
        precision=run.precision,
        checkpoint=checkpoint,
        every=run.every,
        about={"extractor": run.name, "sizes": run.sizes, "validation": run.fingerprint["validation"]},
        after_epoch=_judge(run, extractor, least) if run.world.rank == 0 else None,
        tick=run.tick,
    )
    if run.world.rank > 0:
        return
    if best.exists():
        best.replace(run.out)
    else:
        fingerprint = run.fingerprint if loss is None else {**run.fingerprint, "loss": loss}
        save_extractor(run.out, extractor, run.name, run.sizes, fingerprint)
    checkpoint.unlink(missing_ok=True)


def _new_extractor(run: _Run) -> nn.Module:
    """The untrained extractor, whose weights the seed fixes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        extractor = name_classes(build(run.name, **run.sizes), run.store.names).to(run.codebook.device, torch.float32)
    if run.codebook.shape[1] % 8 == 0:
        extractor.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return extractor


def _judge(run: _Run, extractor: nn.Module, least: float) -> Callable[[int, float], None]:
    """What follows an epoch: its report, and the file of the best epoch where its validation loss is below `least`."""

    def after_epoch(epoch: int, loss: float) -> None:
        nonlocal least
        line = f"epoch {epoch + 1}/{run.recipe.epochs}: loss {loss:.4f}"
        if run.validation is not None:
            codebook, tokens, labels = _images(run.validation)
            images = codebook.float().to(run.codebook.device), tokens, labels
            validation_loss, top1 = mean_loss(extractor, *images), accuracy(extractor, *images)[1]
            line += f", validation loss {validation_loss:.4f}, top 1 {top1:.2%}"
            if validation_loss < least:
                least = validation_loss
                figures = {"epoch": epoch + 1, "loss": loss, "validation_loss": validation_loss}
                fingerprint = {**run.fingerprint, **figures, "validation_top1": top1}
                save_extractor(best_of(run.out), extractor, run.name, run.sizes, fingerprint)
        run.report_line(line)

    return after_epoch


def _refuse_existing(out: Path) -> None:
    for path in (out, checkpoint_of(out)):
        if path.exists():
            raise FileExistsError(f"{path}: already exists; it is not overwritten, and resume continues from it")


def _finish_earlier(run: _Run) -> None:
    """Remove what a run leaves that is killed after it has written the extractor."""
    _require_same(run.out, run.identity)
    run.report_line(f"{run.out}: already trained")
    if run.world.rank == 0:
        checkpoint_of(run.out).unlink(missing_ok=True)
        best_of(run.out).unlink(missing_ok=True)
        sweep(run.out.parent)


def _images(store: TokenStore) -> tuple[Tensor, Tensor, Tensor]:
    return store.codebook, store.tokens, store.labels


def _check_validation(store: TokenStore, sizes: dict[str, Any]) -> None:
    if not len(store):
        raise ValueError("validation: expected at least one image, got none")
    got = {"in_channels": store.codebook.shape[1], "grid": store.grid}
    for size, value in got.items():
        if value != sizes[size]:
            raise ValueError(f"validation: expected {size} {sizes[size]} as in the training store, got {value}")
    checks.in_range("validation: labels", store.labels, sizes["num_classes"])


def _least_loss(best: Path, identity: dict[str, Any]) -> float:
    """The validation loss of the best epoch so far. Raises ResultFileError for the epoch of another run."""
    _require_same(best, identity)
    load_extractor(best)  # a damaged file would be the result if no epoch were better
    least = extractor_header(best)["fingerprint"].get("validation_loss")
    if not isinstance(least, float):
        raise ResultFileError(f"{best}: expected its validation loss, got {least!r}")
    return least


def _require_same(path: Path, identity: dict[str, Any]) -> None:
    header = extractor_header(path)
    got = {"name": header["name"], "sizes": header["sizes"], **header["fingerprint"]}
    different = [
        f"{key}: expected {value!r}, got {got.get(key)!r}" for key, value in identity.items() if got.get(key) != value
    ]
    if different:
        raise ResultFileError(f"{path}: already exists, of another run ({', '.join(different)})")
