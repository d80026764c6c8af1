"""Training an extractor on token grids: the published recipe, resumable, in mixed precision, by several processes."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cortex_fast import checks
from cortex_fast.data import digests
from cortex_fast.data.locks import held
from cortex_fast.extractors.build import check_grid
from cortex_fast.extractors.checkpoints import load_checkpoint, save_checkpoint
from cortex_fast.extractors.distributed import World
from cortex_fast.extractors.images import Images, batches, images_per_epoch
from cortex_fast.extractors.recipe import PRECISIONS, TrainingRecipe


def train_extractor(
    extractor: nn.Module,
    codebook: Tensor,
    tokens: checks.Integers,
    labels: checks.Integers,
    recipe: TrainingRecipe,
    *,
    seed: int = 0,
    precision: str = "float32",
    checkpoint: Path | None = None,
    every: int | None = None,
    about: Mapping[str, Any] | None = None,
    after_epoch: Callable[[int, float], object] | None = None,
    tick: Callable[[int], object] | None = None,
) -> float | None:
    """Train an extractor in place and leave it in eval mode.

    Torch's global random state is neither used nor changed. In a torch.distributed process group, every process trains
    on its part of each batch, and the gradients are those of the whole batch. BatchNorm is the exception: on GPUs it is
    converted to SyncBatchNorm; on CPUs each process normalises by its own part, and the running statistics are those of
    the first process.

    Args:
        extractor: module E [B,d,h,w] -> logits [B,classes], on the codebook's device.
        codebook: float [K,d], C. E is gathered on its device.
        tokens: int [n,h,w], the images' token grids.
        labels: int [n], the images' classes.
        recipe: epochs, batch size and the settings of Adam.
        seed: fixes the order of the images and the dropout. Default 0.
        precision: "float32", or "bfloat16" for autocast on GPUs. Default "float32".
        checkpoint: a file that is written after every epoch. If it exists, the run continues from it; on a CPU the
            result has the same bits as that of an uninterrupted run. Default None: no checkpoint.
        every: steps after which the checkpoint is written within an epoch too. Default None: only after epochs.
        about: further plain values that a checkpoint must agree with. Default None.
        after_epoch: called with the epoch's number, from 0, and its mean loss, before its checkpoint is written.
            Default None.
        tick: called after each step with the number of images in it. Default None.

    Returns:
        The mean loss of the last epoch, or None for a recipe of no epochs.

    Raises:
        TypeError or ValueError: an argument is of another type, shape or range; the message names it.
        FloatingPointError: the loss is no longer finite.
        ResultFileError: the checkpoint is damaged or belongs to another run.
        BlockingIOError: another run writes to the checkpoint.
    """
    tokens, labels = checks.integers("tokens", tokens), checks.integers("labels", labels)
    world = World.current()
    _check_images(extractor, codebook, tokens, labels)
    _check_counts(len(tokens), recipe, world)
    seed = checks.seed(seed)
    checks.one_of("precision", precision, PRECISIONS)
    if every is not None:
        checks.whole("every", every, 1)
    identity = {**asdict(recipe), "seed": seed, "precision": precision, "processes": world.size}
    identity |= {"data": digests.of_images(codebook, tokens, labels), **(about or {})}
    run = _Run(
        recipe=recipe,
        seed=seed,
        precision=precision,
        world=world,
        checkpoint=checkpoint,
        every=every,
        identity=identity,
        after_epoch=after_epoch,
        tick=tick,
    )
    with nullcontext() if checkpoint is None or world.rank > 0 else held(checkpoint):
        images = Images(codebook, tokens, labels)
        state = _start(extractor, images.device, run)
        with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
            for epoch in range(state.epoch, recipe.epochs):
                _train_epoch(state, images, run, epoch)
        state.extractor.eval()
    return state.mean_loss if recipe.epochs else None


def _check_images(extractor: nn.Module, codebook: Tensor, tokens: Tensor, labels: Tensor) -> None:
    checks.rank("tokens", tokens, "[n, h, w]")
    checks.in_range("tokens", tokens, codebook.shape[0])
    checks.same_shape("labels", labels, "tokens' first dimension", tokens.shape[:1])
    check_grid(extractor, tokens.shape)


def _check_counts(image_count: int, recipe: TrainingRecipe, world: World) -> None:
    for name, count in (("tokens", image_count), ("batch_size", recipe.batch_size)):
        if count < 2 * world.size:
            raise ValueError(f"{name}: expected at least two images for each process, got {count}")


@dataclass(frozen=True)
class _Run:
    """The checked settings of a run. identity: the plain values that its checkpoint must agree with."""

    recipe: TrainingRecipe
    seed: int
    precision: str
    world: World
    checkpoint: Path | None
    every: int | None
    identity: Mapping[str, Any]
    after_epoch: Callable[[int, float], object] | None
    tick: Callable[[int], object] | None


@dataclass
class _State:
    """What a run changes.

    parallel: the extractor, whose backward averages gradients over all processes. epoch, step: where training starts.
    loss_sum: float64 [], of this process's images in the epoch so far. mean_loss: of the epoch before.
    """

    extractor: nn.Module
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int
    step: int
    loss_sum: Tensor
    mean_loss: float


def _start(extractor: nn.Module, device: torch.device, run: _Run) -> _State:
    """The state at the beginning, or at the checkpoint."""
    recipe, world = run.recipe, run.world
    if world.size > 1 and device.type == "cuda":
        extractor = nn.SyncBatchNorm.convert_sync_batchnorm(extractor)
    optimizer = torch.optim.Adam(extractor.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    zero = torch.tensor(0.0, dtype=torch.float64)
    position = {"epoch": torch.tensor(0), "step": torch.tensor(0), "total": zero, "loss": zero}
    if run.checkpoint is not None and run.checkpoint.exists():
        position = load_checkpoint(run.checkpoint, run.identity, extractor, optimizer)
    loss_sum = position["total"].to(device)
    if world.rank > 0:
        loss_sum.zero_()  # the checkpoint has the sum over all processes, which the first one continues
    return _State(
        extractor=extractor,
        parallel=world.wrap(extractor, device),
        optimizer=optimizer,
        epoch=int(position["epoch"]),
        step=int(position["step"]),
        loss_sum=loss_sum,
        mean_loss=float(position["loss"]),
    )


def _train_epoch(state: _State, images: Images, run: _Run, epoch: int) -> None:
    """The rest of an epoch, its report and its checkpoint."""
    recipe, world = run.recipe, run.world
    state.extractor.train()
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.lr_of(epoch)
    for step, rows in batches(
        len(images), recipe.batch_size, seed=run.seed, epoch=epoch, world=world, first_step=state.step
    ):
        torch.manual_seed(digests.seed_of(run.seed, "dropout", epoch, step, world.rank))
        _train_step(state, images, run, rows)
        if run.tick is not None:
            run.tick(len(rows))
        if run.every is not None and (step + 1) % run.every == 0:
            loss_sum = world.total(state.loss_sum.clone())
            _check_finite(loss_sum, epoch)
            _save(state, run, epoch, step + 1, loss_sum)
    loss_sum = world.total(state.loss_sum)
    _check_finite(loss_sum, epoch)
    state.mean_loss = loss_sum.item() / images_per_epoch(len(images), recipe.batch_size, world)
    state.loss_sum.zero_()
    state.step = 0
    state.extractor.eval()
    if run.after_epoch is not None:
        run.after_epoch(epoch, state.mean_loss)
    _save(state, run, epoch + 1, 0, state.loss_sum)


def _train_step(state: _State, images: Images, run: _Run, rows: Tensor) -> None:
    """One step of Adam on the global batch `rows` int64 [B]."""
    embedding, labels = images.take(run.world.part(rows))
    with torch.autocast(images.device.type, torch.bfloat16, enabled=run.precision == "bfloat16"):
        loss = F.cross_entropy(state.parallel(embedding), labels, reduction="sum") / len(rows)
    state.optimizer.zero_grad(set_to_none=True)
    (loss * run.world.size).backward()  # averaged over processes, these are the gradients of the whole batch's mean
    state.optimizer.step()
    state.loss_sum += loss.detach() * len(rows)


def _save(state: _State, run: _Run, epoch: int, step: int, loss_sum: Tensor) -> None:
    """Write the checkpoint, from which `step` of `epoch` is next; loss_sum float64 [] is that of all processes."""
    if run.checkpoint is None or run.world.rank > 0:
        return
    position = {"epoch": torch.tensor(epoch), "step": torch.tensor(step), "total": loss_sum.cpu()}
    position["loss"] = torch.tensor(state.mean_loss, dtype=torch.float64)
    save_checkpoint(run.checkpoint, run.identity, state.extractor, state.optimizer, position)


def _check_finite(loss_sum: Tensor, epoch: int) -> None:
    loss = loss_sum.item()
    if not abs(loss) < float("inf"):
        raise FloatingPointError(f"the loss of epoch {epoch + 1} is {loss}: a lower learning rate may help")
