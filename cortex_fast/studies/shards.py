"""Shards of consecutive images: the unit of work, of failure and of distribution."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shard:
    """Images `first` to `stop - 1` of a split, and the file of what is computed of them."""

    path: Path
    first: int
    stop: int

    @property
    def rows(self) -> slice:
        """The images, as an index."""
        return slice(self.first, self.stop)

    @property
    def span(self) -> list[int]:
        """The images, as a fingerprint has them."""
        return [self.first, self.stop]


def shards_of(folder: Path, images: int, size: int) -> list[Shard]:
    """All images in shards of `size`, the last of which may have fewer.

    Args:
        folder: where the shards' files are.
        images: how many images there are in all.
        size: images of a shard.
    Returns:
        The shards in order. A shard's file has the number of its first image, whatever `size` is.
    """
    return [
        Shard(folder / f"shard-{first:08d}.safetensors", first, min(first + size, images))
        for first in range(0, images, size)
    ]
