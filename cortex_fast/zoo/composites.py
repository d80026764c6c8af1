"""Composites: a sprite on a generated background, with the exact mask of the object.

The bundled model is trained on them, and the evaluation uses their masks as ground truth. Composite `i` of a `split`
depends on (split, i) alone, so any part of a set can be computed again.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from PIL import Image

SIZE = 64  # pixels a side
SPLITS = ("train", "test", "demo")
_MAX_TURN = 15.0  # degrees
_SCALE = (0.7, 0.95)  # the sprite's side as a part of the picture's


@dataclass(frozen=True)
class Composites:
    """images: uint8 [n,64,64,3]. labels: int64 [n]. masks: float32 [n,64,64], 1 on the object. styles: int64 [n]."""

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    styles: np.ndarray


@cache
def _sprites() -> dict[str, np.ndarray]:
    with resources.files("cortex_fast.zoo").joinpath("data/sprites.npz").open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        return {name: archive[name] for name in archive.files}


def class_names() -> tuple[str, ...]:
    """The names of the classes.

    Returns:
        12 names, in the order of their labels.
    """
    return tuple(str(name) for name in _sprites()["class_names"])


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A random RGB colour in [0,1], from pale to dark, rarely garish."""
    hue, saturation, value = rng.random(), 0.6 * rng.random(), 0.25 + 0.75 * rng.random()
    wheel = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return value * (1 - saturation + saturation * wheel)


def _background(rng: np.random.Generator) -> np.ndarray:
    """[64,64,3] in [0,1]: one colour, a linear gradient, or low-frequency noise between two colours."""
    kind = rng.integers(3)
    first = _colour(rng)
    if kind == 0:
        return np.broadcast_to(first, (SIZE, SIZE, 3))
    second = np.clip(first + rng.uniform(-0.35, 0.35, 3), 0, 1)
    if kind == 1:
        angle = rng.uniform(0, 2 * np.pi)
        axis = np.linspace(-0.5, 0.5, SIZE)
        ramp = 0.5 + (np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]) / np.sqrt(2)
    else:
        coarse = rng.random((5, 5)).astype(np.float32)
        ramp = np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    ramp = np.clip(ramp, 0, 1)[..., None]
    return first + ramp * (second - first)


def _composite(sprite: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The sprite, flipped, turned, scaled and placed at random: image uint8 [64,64,3] and mask float32 [64,64]."""
    picture = Image.fromarray(sprite)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(rng.uniform(-_MAX_TURN, _MAX_TURN), Image.Resampling.BICUBIC)
    side = round(SIZE * rng.uniform(*_SCALE))
    picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    top, left = rng.integers(0, SIZE - side + 1, 2)
    layer = np.zeros((SIZE, SIZE, 4), np.float64)
    layer[top : top + side, left : left + side] = np.asarray(picture, np.float64) / 255
    alpha = layer[..., 3:]
    image = layer[..., :3] * alpha + _background(rng) * (1 - alpha)
    return np.round(image * 255).astype(np.uint8), alpha[..., 0].astype(np.float32)


def make_composites(split: str, start: int, count: int) -> Composites:
    """Compute composites `start` to `start + count - 1` of a split.

    Args:
        split: "train", "test" or "demo".
        start: number of the first one.
        count: how many.

    Returns:
        The composites, whose labels run 0, 1, ..., 11, 0, 1, ...

    Raises:
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {SPLITS}, got {split!r}")
    sprites = _sprites()
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    masks = np.empty((count, SIZE, SIZE), np.float32)
    labels = (np.arange(start, start + count) % len(sprites["class_names"])).astype(np.int64)
    styles = np.empty(count, np.int64)
    for row, label in enumerate(labels):
        rng = np.random.default_rng([SPLITS.index(split), start + row])
        choice = rng.choice(np.flatnonzero(sprites["labels"] == label))
        images[row], masks[row] = _composite(sprites["images"][choice], rng)
        styles[row] = sprites["styles"][choice]
    return Composites(images, labels, masks, styles)
