"""Training an extractor on token grids: the published recipe, resumable, in mixed precision, by several processes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cortex_fast import checks
from cortex_fast.data import digests
from cortex_fast.data.locks import held
from cortex_fast.data.token_store import gather
from cortex_fast.extractors.build import check_grid
from cortex_fast.extractors.checkpoints import load_checkpoint, save_checkpoint
from cortex_fast.extractors.distributed import World

MOST = 2**31 - 1  # epochs, and images a batch
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """Adam with weight decay, a step schedule and cross-entropy; the defaults are the published code's.

    batch_size: of all processes together. The learning rate is multiplied by gamma every step_epochs epochs.
    Raises TypeError or ValueError naming a setting out of range.
    """

    epochs: int = 80
    batch_size: int = 512
    lr: float = 1e-3
    weight_decay: float = 1e-4
    step_epochs: int = 20
    gamma: float = 0.1

    def __post_init__(self) -> None:
        plain = {
            "epochs": checks.whole("epochs", self.epochs, 0, MOST),
            "batch_size": checks.whole("batch_size", self.batch_size, 2, MOST),
            "step_epochs": checks.whole("step_epochs", self.step_epochs, 1),
            "lr": checks.positive("lr", self.lr),
            "gamma": checks.positive("gamma", self.gamma),
            "weight_decay": checks.non_negative("weight_decay", self.weight_decay),
        }
        for name, value in plain.items():  # Python's own: checkpoints hold them as JSON
            object.__setattr__(self, name, value)


def train_extractor(
    extractor: nn.Module,
    codebook: Tensor,
    tokens: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    seed: int = 0,
    precision: str = "float32",
    checkpoint: Path | None = None,
    every: int | None = None,
    about: Mapping[str, Any] | None = None,
    after_epoch: Callable[[int, float], object] = lambda epoch, loss: None,
    tick: Callable[[int], object] = lambda images: None,
) -> float | None:
    """Train in place on E gathered from `codebook` [K,d] at `tokens` int [n,h,w] with `labels` int [n].

    E is gathered on the codebook's device, where the extractor is and the tokens are brought at the beginning.
    precision: "bfloat16" is autocast, for GPUs. checkpoint: a file written after every epoch, and after every `every`
    steps; where it is there the run goes on from it, on a CPU to the same bits as one never interrupted. about: what
    else a checkpoint must be of to be gone on from, in plain values. `after_epoch` gets the epoch's number and mean
    loss, before that epoch's checkpoint; tick the number of images of each step.
    In a torch.distributed process group every process trains on its part of each global batch, and the gradients are
    those of the whole batch, but for BatchNorm: on GPUs it is made SyncBatchNorm; on CPUs each process normalises by
    its own part, and the running statistics are the first process's.
    The extractor is left in eval mode. Torch's global random state is neither used nor changed.
    Returns the mean loss of the last epoch, None where there was none.
    Raises TypeError or ValueError naming the argument, FloatingPointError where the loss is no longer finite,
    ResultFileError for a damaged checkpoint or another run's, BlockingIOError while another run writes to it.
    """
    tokens, labels = checks.integers("tokens", tokens), checks.integers("labels", labels)
    checks.rank("tokens", tokens, "[n, h, w]")
    checks.in_range("tokens", tokens, codebook.shape[0])
    seed = checks.seed(seed)
    checks.one_of("precision", precision, PRECISIONS)
    if every is not None:
        checks.whole("every", every, 1)
    checks.same_shape("labels", labels, "tokens' first dimension", tokens.shape[:1])
    check_grid(extractor, tokens.shape)
    world = World.current()
    if len(tokens) < 2 * world.size:
        raise ValueError(f"tokens: expected at least two images a process, got {len(tokens)}")
    if recipe.batch_size < 2 * world.size:
        raise ValueError(f"batch_size: expected at least two images a process, got {recipe.batch_size}")
    run = {**asdict(recipe), "seed": seed, "precision": precision, "processes": world.size}
    run |= {"data": digests.of_images(codebook, tokens, labels), **(about or {})}
    with nullcontext() if checkpoint is None or world.rank > 0 else held(checkpoint):
        return _train(
            extractor, _Images(codebook, tokens, labels), recipe, run, world, checkpoint, every, after_epoch, tick
        )


def _train(
    extractor: nn.Module,
    data: "_Images",
    recipe: Recipe,
    run: Mapping[str, Any],
    world: World,
    checkpoint: Path | None,
    every: int | None,
    after_epoch: Callable[[int, float], object],
    tick: Callable[[int], object],
) -> float | None:
    """`train_extractor` of checked arguments, whose checkpoint is ours alone."""
    seed, precision = run["seed"], run["precision"]
    if world.size > 1 and data.device.type == "cuda":
        extractor = nn.SyncBatchNorm.convert_sync_batchnorm(extractor)
    optimizer = torch.optim.Adam(extractor.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    nothing = torch.tensor(0.0, dtype=torch.float64)
    at = {"epoch": torch.tensor(0), "step": torch.tensor(0), "total": nothing, "loss": nothing}
    if checkpoint is not None and checkpoint.exists():
        at = load_checkpoint(checkpoint, run, extractor, optimizer)
    first_epoch, first_step, mean = int(at["epoch"]), int(at["step"]), float(at["loss"])
    parallel = world.wrap(extractor, data.device)
    total = at["total"].to(data.device)  # of this process; the checkpoint has all processes' sum
    if world.rank > 0:
        total.zero_()

    def keep(epoch: int, step: int, loss: Tensor) -> None:
        if checkpoint is not None and world.rank == 0:
            where = {"epoch": torch.tensor(epoch), "step": torch.tensor(step), "total": loss.cpu()}
            where["loss"] = torch.tensor(mean, dtype=torch.float64)
            save_checkpoint(checkpoint, run, extractor, optimizer, where)

    with torch.random.fork_rng([data.device] if data.device.type == "cuda" else []):
        for epoch in range(first_epoch, recipe.epochs):
            extractor.train()
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * recipe.gamma ** (epoch // recipe.step_epochs)
            for step, rows in _batches(len(data), recipe.batch_size, seed, epoch, world, first_step):
                torch.manual_seed(digests.seed_of(seed, "dropout", epoch, step, world.rank))
                part = world.part(rows)
                embedding, truth = data.take(part)
                with _autocast(data.device, precision):
                    loss = F.cross_entropy(parallel(embedding), truth, reduction="sum") / len(rows)
                optimizer.zero_grad(set_to_none=True)
                (loss * world.size).backward()  # the processes' gradients are averaged: so they are the batch's
                optimizer.step()
                total += loss.detach() * len(rows)
                tick(len(rows))
                if every is not None and (step + 1) % every == 0:
                    so_far = world.total(total.clone())
                    _finite(so_far, epoch)
                    keep(epoch, step + 1, so_far)
            first_step = 0
            mean = _finite(world.total(total), epoch) / _used(len(data), recipe.batch_size, world)
            total.zero_()
            extractor.eval()
            after_epoch(epoch, mean)
            keep(epoch + 1, 0, total)
    extractor.eval()
    return mean if recipe.epochs else None


def _used(images: int, size: int, world: World) -> int:
    """How many images an epoch sees: BatchNorm has no statistics of one, so a last batch that leaves a process fewer
    than two is left out."""
    rest = images % size
    return images - rest if rest < 2 * world.size else images


def _batches(images: int, size: int, seed: int, epoch: int, world: World, first: int) -> Iterator[tuple[int, Tensor]]:
    """The epoch's global batches of rows, from number `first` on."""
    order = torch.Generator().manual_seed(digests.seed_of(seed, "order", epoch))
    batches = torch.randperm(images, generator=order)[: _used(images, size, world)].split(size)
    yield from enumerate(batches[first:], start=first)


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _finite(total: Tensor, epoch: int) -> float:
    loss = total.item()
    if not abs(loss) < float("inf"):
        raise FloatingPointError(f"the loss of epoch {epoch + 1} is {loss}: a lower learning rate may help")
    return loss


class _Images:
    """Tokens and labels on the codebook's device; E is gathered there."""

    def __init__(self, codebook: Tensor, tokens: Tensor, labels: Tensor) -> None:
        self._codebook = codebook.detach()
        self.device = codebook.device
        self._small = tokens.dtype == torch.uint16
        stored = tokens.view(torch.int16) if self._small else tokens  # CUDA indexes no uint16
        self._tokens = stored.to(self.device)
        self._labels = labels.to(self.device, torch.int64)

    def __len__(self) -> int:
        return len(self._tokens)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """E [B,d,h,w] and labels int64 [B] of some rows."""
        rows = rows.to(self.device)
        ids = self._tokens[rows].long()
        embedding = gather(ids & 0xFFFF if self._small else ids, self._codebook)
        if self._codebook.shape[1] % 8:  # torch 2.13 on CPUs: a strided 1 x 1 convolution's weight gradient is wrong
            embedding = embedding.contiguous()  # in channels-last memory with such channel counts
        return embedding, self._labels[rows]
