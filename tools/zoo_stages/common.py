"""Shared by the training stages: files that are whole or absent, resuming, and a learning-rate schedule."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cortex_fast.data.results import replace_whole
from cortex_fast.zoo.composites import make_composites

CHUNK = 500  # composites computed by one task


@dataclass(frozen=True)
class Work:
    """folder: where every stage writes its results. quick: whether all sizes are divided by 100."""

    folder: Path
    quick: bool

    def size(self, full: int) -> int:
        return max(2, full // 100) if self.quick else full


def add_seconds(work: Work, stage: str, seconds: float) -> None:
    """Add to the time that a stage has taken, over all its runs."""
    path = work.folder / "seconds.json"
    times = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    times[stage] = times.get(stage, 0.0) + seconds
    replace_whole(path, lambda file: file.write_text(json.dumps(times, indent=1), "utf-8"))


def _images_and_labels(task: tuple[str, int, int]) -> tuple[np.ndarray, np.ndarray]:
    composites = make_composites(*task)
    return composites.images, composites.labels


def composites(work: Work, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` composites of a split (images uint8 [n,64,64,3], labels [n]), computed on all cores, saved."""
    path = work.folder / f"composites-{split}-{count}.npz"
    if not path.exists():
        tasks = [(split, start, min(CHUNK, count - start)) for start in range(0, count, CHUNK)]
        with get_context("spawn").Pool() as pool:
            parts = pool.map(_images_and_labels, tasks)
        images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        replace_whole(path, lambda file: np.savez(file, images=images, labels=labels))
    with np.load(path, allow_pickle=False) as archive:
        return archive["images"], archive["labels"]


def pixels(images: np.ndarray) -> Tensor:
    """uint8 [B,64,64,3] -> float32 [B,3,64,64] in [-1, 1], channels last."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def cosine(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up to `peak`, then a cosine down to a twentieth of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    part = (step - warmup) / max(1, steps - warmup)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * part)))


def resumable_steps(
    work: Work, stage: str, steps: int, state: dict[str, nn.Module | torch.optim.Optimizer], every: int = 200
) -> Iterator[int]:
    """Yield the numbers of the remaining steps.

    `state` is restored first, saved after each `every` steps and removed at the end. Torch's seed is
    the step's number, so that a resumed run equals an uninterrupted one.
    """
    path = work.folder / f"{stage}.resume.pt"
    first = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        first = saved.pop("step")
        for name, part in state.items():
            part.load_state_dict(saved[name])
    start = time.time()
    for step in range(first, steps):
        torch.manual_seed(step)
        yield step
        if (step + 1) % every == 0 and step + 1 < steps:
            parts = {name: part.state_dict() for name, part in state.items()}
            replace_whole(path, lambda file, at=step + 1, parts=parts: torch.save({"step": at, **parts}, file))
        if (step + 1) % 50 == 0:
            print(
                f"{stage}: step {step + 1}/{steps}, {(time.time() - start) / (step + 1 - first):.2f} s a step",
                flush=True,
            )
    path.unlink(missing_ok=True)
