"""The images of a training run: their order, their batches, and E gathered for a batch."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cortex_fast.data import digests
from cortex_fast.data.token_store import gather
from cortex_fast.extractors.distributed import World


class Images:
    """Tokens int [n,h,w] and labels int [n] on the device of the codebook [K,d], where E is gathered."""

    def __init__(self, codebook: Tensor, tokens: Tensor, labels: Tensor) -> None:
        self._codebook = codebook.detach()
        self.device = codebook.device
        self._uint16 = tokens.dtype == torch.uint16
        stored = tokens.view(torch.int16) if self._uint16 else tokens  # CUDA cannot index uint16
        self._tokens = stored.to(self.device)
        self._labels = labels.to(self.device, torch.int64)

    def __len__(self) -> int:
        return len(self._tokens)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """E [B,d,h,w] and labels int64 [B] of the images at `rows` int64 [B]."""
        rows = rows.to(self.device)
        ids = self._tokens[rows].long()
        embedding = gather(ids & 0xFFFF if self._uint16 else ids, self._codebook)
        if self._codebook.shape[1] % 8:
            # torch 2.13 on CPUs: with such channel counts in channels-last memory, the weight gradient of a strided
            # 1 x 1 convolution is wrong.
            embedding = embedding.contiguous()
        return embedding, self._labels[rows]


def images_per_epoch(image_count: int, batch_size: int, world: World) -> int:
    """The number of images in an epoch. A last batch with fewer than two images for each process is left out, because
    BatchNorm has no statistics of a single image."""
    rest = image_count % batch_size
    return image_count - rest if rest < 2 * world.size else image_count


def batches(
    image_count: int, batch_size: int, *, seed: int, epoch: int, world: World, first_step: int
) -> Iterator[tuple[int, Tensor]]:
    """The steps of an epoch from `first_step` on: their numbers, and the rows int64 [B] of all processes' images."""
    generator = torch.Generator().manual_seed(digests.seed_of(seed, "order", epoch))
    order = torch.randperm(image_count, generator=generator)[: images_per_epoch(image_count, batch_size, world)]
    yield from enumerate(order.split(batch_size)[first_step:], start=first_step)
