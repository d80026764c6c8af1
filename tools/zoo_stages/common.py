"""What every training stage shares: whole files or none, resuming, and a learning-rate schedule."""

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

CHUNK = 500  # composites made by one task


@dataclass(frozen=True)
class Work:
    """`folder` keeps every stage's product; `seconds` of a stage are written beside it. `quick` shrinks all sizes."""

    folder: Path
    quick: bool

    def size(self, full: int) -> int:
        return max(2, full // 100) if self.quick else full


def add_seconds(work: Work, stage: str, seconds: float) -> None:
    """Keep how long each stage took, over all runs that it needed."""
    path = work.folder / "seconds.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept[stage] = kept.get(stage, 0.0) + seconds
    replace_whole(path, lambda file: file.write_text(json.dumps(kept, indent=1), "utf-8"))


def _images_and_labels(task: tuple[str, int, int]) -> tuple[np.ndarray, np.ndarray]:
    made = make_composites(*task)
    return made.images, made.labels


def composites(work: Work, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` composites of a split (images uint8 [n,64,64,3], labels [n]), made on all cores and kept."""
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
    """Yield the step numbers still to do. `state` is restored first, and saved every so often and dropped at the end.

    Each step must draw its randomness from its own number, so that a resumed run equals an uninterrupted one.
    """
    path = work.folder / f"{stage}.resume.pt"
    first = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        first = saved.pop("step")
        for name, part in state.items():
            part.load_state_dict(saved[name])
    began = time.time()
    for step in range(first, steps):
        torch.manual_seed(step)
        yield step
        if (step + 1) % every == 0 and step + 1 < steps:
            parts = {name: part.state_dict() for name, part in state.items()}
            replace_whole(path, lambda file, at=step + 1, kept=parts: torch.save({"step": at, **kept}, file))
        if (step + 1) % 50 == 0:
            print(
                f"{stage}: step {step + 1}/{steps}, {(time.time() - began) / (step + 1 - first):.2f} s a step",
                flush=True,
            )
    path.unlink(missing_ok=True)
