"""Sums and best examples of concepts' tokens, added shard by shard of images in memory of fixed size."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Occurrences:
    """Some images with their top positions.

    Args:
        tokens: int64 [n,p], each image's tokens.
        positions: int64 [n,top_n], each image's positions of largest TSV, by falling TSV.
        values: float [n,top_n], the TSVs there.
        labels: int64 [n], the images' concepts.
        first: the number of the first image among all.
    """

    tokens: Tensor
    positions: Tensor
    values: Tensor
    labels: Tensor
    first: int

    @property
    def top_tokens(self) -> Tensor:
        """int64 [n,top_n], the tokens at the top positions."""
        return self.tokens.gather(1, self.positions)


def add_counts(counts: Tensor, tokens: Tensor, labels: Tensor, per: str = "occurrence") -> None:
    """Add how often each token occurs to the counts of its image's concept, in place.

    Args:
        counts: int64 [C,K], contiguous.
        tokens: int64 [n,p], of each image.
        labels: int64 [n], the images' concepts.
        per: "occurrence" counts every one, "image" a token at most once an image. Default "occurrence".
    """
    cells = labels[:, None] * counts.shape[1] + tokens
    if per == "image":
        cells = cells.sort(dim=1).values
        first = torch.ones_like(cells, dtype=torch.bool)
        first[:, 1:] = cells[:, 1:] != cells[:, :-1]
        cells = cells[first]
    cells = cells.flatten()
    counts.view(-1).scatter_add_(0, cells, torch.ones_like(cells))


class Examples:
    """Of each concept token its occurrences of largest TSV, over all images that were added.

    Ties go to the earlier image, within one to the larger TSV's position.

    Args:
        best: int64 [C,k], the concepts' tokens; -1 where a concept has fewer.
        codes: K.
        count: occurrences of each token.
    """

    def __init__(self, best: Tensor, codes: int, count: int) -> None:
        self._shape, self._count = (*best.shape, count, 2), count
        self._rank = np.full((len(best), codes), -1, dtype=np.int32)  # of a token among its concept's
        concept, rank = (best >= 0).nonzero(as_tuple=True)
        self._rank[concept.numpy(), best[concept, rank].numpy()] = rank.numpy()
        self._ranks = best.shape[1]
        self._entries: list[tuple[Any, ...]] = []
        self._size = 0

    def add(self, occurrences: Occurrences) -> None:
        """Take in some images, in any order."""
        tokens, labels = occurrences.top_tokens.numpy(), occurrences.labels.numpy()
        rank = self._rank[labels[:, None], tokens]
        image, place = (rank >= 0).nonzero()
        group = labels[image].astype(np.int64) * self._ranks + rank[image, place]
        values, positions = occurrences.values.numpy()[image, place], occurrences.positions.numpy()[image, place]
        self._entries.append((group, values, image + occurrences.first, place, positions))
        self._size += len(group)
        if self._size > 4 * len(self._rank) * self._ranks * max(1, self._count):
            self._entries = [self._pruned()]
            self._size = len(self._entries[0][0])

    def result(self) -> Tensor:
        """int64 [C,k,count,2]: (image, flat position) of each occurrence, largest TSV first; -1 for none."""
        examples = np.full(self._shape, -1, dtype=np.int64)
        if self._entries and self._count:
            group, _, image, _, position = self._pruned()
            place = np.arange(len(group)) - np.searchsorted(group, group)
            flat = examples.reshape(-1, self._count, 2)
            flat[group, place, 0], flat[group, place, 1] = image, position
        return torch.from_numpy(examples)

    def _pruned(self) -> tuple[Any, ...]:
        """The entries that count, ordered by token, and by TSV within one."""
        group, values, image, place, position = (np.concatenate(parts) for parts in zip(*self._entries, strict=True))
        order = np.lexsort((place, image, -values, group))
        order = order[np.arange(len(order)) - np.searchsorted(group[order], group[order]) < self._count]
        return group[order], values[order], image[order], place[order], position[order]
