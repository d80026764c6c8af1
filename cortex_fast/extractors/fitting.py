"""From a token store to an extractor file."""

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from cortex_fast.extractors.testing import accuracy, mean_loss
from cortex_fast.extractors.training import Recipe, train_extractor


def checkpoint_of(out: Path) -> Path:
    """Where an unfinished run stands."""
    return out.with_name(out.name + ".resume.pt")


def best_of(out: Path) -> Path:
    """The extractor of least validation loss so far; renamed to `out` at the end."""
    return out.with_name(out.name + ".best")


def fit(
    store: TokenStore,
    out: Path,
    name: str,
    recipe: Recipe,
    *,
    width: int = 512,
    validation: TokenStore | None = None,
    seed: int = 0,
    precision: str = "float32",
    device: torch.device | str = "cpu",
    every: int | None = None,
    resume: bool = False,
    report: Callable[[str], object] = lambda line: None,
    tick: Callable[[int], object] = lambda images: None,
) -> None:
    """Train the extractor `name` on a store and write it to `out`: that of the last epoch, or with `validation` that of
    the epoch with least validation loss, as the published code keeps it.

    Settings are `train_extractor`'s. validation may have a codebook of its own, as recovered ones are. resume: goes on
    from the checkpoint beside `out`, or begins; where `out` is there it only removes what a run that was killed left.
    Raises FileExistsError for a checkpoint or an `out` that is there without `resume`, ResultFileError for one of other
    settings or data with it, or damaged, ValueError for a validation store that does not fit, BlockingIOError while
    another run writes to `out`.
    """
    checks.seed(seed)
    world = World.current()
    with nullcontext() if world.rank > 0 or out.exists() else held(out):
        _fit(store, out, name, recipe, world, width, validation, seed, precision, device, every, resume, report, tick)


def _fit(
    store: TokenStore,
    out: Path,
    name: str,
    recipe: Recipe,
    world: World,
    width: int,
    validation: TokenStore | None,
    seed: int,
    precision: str,
    device: torch.device | str,
    every: int | None,
    resume: bool,
    report: Callable[[str], object],
    tick: Callable[[int], object],
) -> None:
    """`fit` as the only run that writes to `out`."""
    checkpoint, best = checkpoint_of(out), best_of(out)
    there = next((path for path in (out, checkpoint) if path.exists()), None)
    if there is not None and not resume:
        raise FileExistsError(f"{there}: is there already; resume goes on from it")
    codebook = store.codebook.float().to(device)
    sizes: dict[str, Any] = {"num_classes": len(store.names), "in_channels": codebook.shape[1]}
    sizes |= {"width": width, "grid": store.grid}
    if validation is not None:
        _check_validation(validation, sizes)
    made: dict[str, Any] = {**dataclasses.asdict(recipe), "seed": seed, "precision": precision, "processes": world.size}
    made["data"] = digests.of_images(codebook, store.tokens, store.labels)
    made["validation"] = None if validation is None else digests.of_images(*_parts(validation))
    if out.exists():
        _require_same(out, {"name": name, "sizes": sizes, **made})
        report(f"{out}: is trained already")
        if world.rank == 0:
            checkpoint.unlink(missing_ok=True)
            best.unlink(missing_ok=True)
            sweep(out.parent)
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        extractor = name_classes(build(name, **sizes), store.names).to(device, torch.float32)
    if codebook.shape[1] % 8 == 0:
        extractor.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    least = float("inf")
    if checkpoint.exists() and best.exists():
        least = _least(best, {"name": name, "sizes": sizes, **made})
    elif world.rank == 0:
        best.unlink(missing_ok=True)  # of a run whose checkpoint is gone

    def after_epoch(epoch: int, loss: float) -> None:
        nonlocal least
        if world.rank > 0:
            return
        line = f"epoch {epoch + 1}/{recipe.epochs}: loss {loss:.4f}"
        if validation is not None:
            own, tokens, labels = _parts(validation)
            judged = (extractor, own.float().to(device), tokens, labels)
            reached, top = mean_loss(*judged), accuracy(*judged)[1]
            line += f", validation loss {reached:.4f}, top 1 {top:.2%}"
            if reached < least:
                least = reached
                kept = {**made, "epoch": epoch + 1, "loss": loss, "validation_loss": reached, "validation_top1": top}
                save_extractor(best, extractor, name, sizes, kept)
        report(line)

    loss = train_extractor(
        extractor,
        codebook,
        store.tokens,
        store.labels,
        recipe,
        seed=seed,
        precision=precision,
        checkpoint=checkpoint,
        every=every,
        about={"extractor": name, "sizes": sizes, "validation": made["validation"]},
        after_epoch=after_epoch,
        tick=tick,
    )
    if world.rank > 0:
        return
    if best.exists():
        best.replace(out)
    else:
        save_extractor(out, extractor, name, sizes, made if loss is None else {**made, "loss": loss})
    checkpoint.unlink(missing_ok=True)


def _parts(store: TokenStore) -> tuple[Tensor, Tensor, Tensor]:
    return store.codebook, store.tokens, store.labels


def _check_validation(store: TokenStore, sizes: dict[str, Any]) -> None:
    if not len(store):
        raise ValueError("validation: expected at least one image, got none")
    got = {"in_channels": store.codebook.shape[1], "grid": store.grid}
    for size, value in got.items():
        if value != sizes[size]:
            raise ValueError(f"validation: expected {size} {sizes[size]} as in the training store, got {value}")
    checks.in_range("validation: labels", store.labels, sizes["num_classes"])


def _least(best: Path, wanted: dict[str, Any]) -> float:
    """The validation loss of the best epoch so far. Raises ResultFileError where that is no epoch of this run."""
    _require_same(best, wanted)
    load_extractor(best)  # it is what this run will leave, if no epoch is better
    least = extractor_header(best)["fingerprint"].get("validation_loss")
    if not isinstance(least, float):
        raise ResultFileError(f"{best}: expected its validation loss, got {least!r}")
    return least


def _require_same(out: Path, wanted: dict[str, Any]) -> None:
    header = extractor_header(out)
    got = {"name": header["name"], "sizes": header["sizes"], **header["fingerprint"]}
    off = [f"{key}: expected {value!r}, got {got.get(key)!r}" for key, value in wanted.items() if got.get(key) != value]
    if off:
        raise ResultFileError(f"{out}: is there already, of another run ({', '.join(off)})")
