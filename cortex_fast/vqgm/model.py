"""The interface of a VQGM: codebook, grid, embed, encode, decode, sample."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.data.classes import is_single
from cortex_fast.data.grids import Grid, grid_of, sides
from cortex_fast.data.token_store import embed
from cortex_fast.ops import nearest_code

_OVERSHOOT = 1e-3  # of pixels outside [0, 1], by rounding


class VQGM(Protocol):
    """A vector-quantised generative model: `Model`, or any other object with these members.

    A method that the model does not support raises UnsupportedError with the reason.
    """

    @property
    def codebook(self) -> Tensor:
        """C, float [K,d]: the codes as they are looked up, normalised if the model normalises them."""

    @property
    def grid(self) -> Grid:
        """m or (h, w), the grid of the model's samples."""

    @property
    def fingerprint(self) -> str:
        """Identifies the weights."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Look tokens up in the codebook.

        Args:
            tokens: int [B,h,w], in [0, K).

        Returns:
            E [B,d,h,w], in the codebook's dtype.
        """

    def encode(self, images: Tensor) -> Tensor:
        """Encode images as tokens.

        Args:
            images: float [B,3,H,W] in [0,1].

        Returns:
            Tokens int64 [B,h,w].
        """

    def decode(self, source: Tensor) -> Tensor:
        """Decode tokens or embeddings to images.

        Args:
            source: tokens int [B,h,w], or E float [B,d,h,w].

        Returns:
            Images float32 [B,3,H,W] in [0,1].
        """

    def sample(
        self, condition: int | Tensor, n: int | None = None, *, seed: int = 0, item_ids: Tensor | None = None
    ) -> Tensor:
        """Sample token grids. Seed, item id and condition fix an image.

        Args:
            condition: one class for `n` images, or a class for each image, int [n].
            n: number of images of one class. Default None, with a class for each image.
            seed: of the noise. Default 0.
            item_ids: int [n], the images' numbers, from 0 to 2^32 - 1. Default None: 0, 1, 2, ...

        Returns:
            Tokens int64 [n,h,w].
        """


class UnsupportedError(RuntimeError):
    """The model has no such part; the message names it and states the reason."""


@dataclass(frozen=True)
class Sampler:
    """A model's prior.

    Args:
        draw: (condition int64 [n], item_ids int64 [n], seed, tick) -> tokens int64 [n,h,w]. Condition, item id and seed
            fix an image. tick is called without arguments after each position.
        conditions: number of conditions, which are 0 to conditions - 1.
    """

    draw: Callable[[Tensor, Tensor, int, Callable[[], object]], Tensor]
    conditions: int


@dataclass(frozen=True, eq=False)
class Model:
    """A VQGM that consists of functions, as the adapters build it.

    Args:
        codebook: float [K,d], C.
        grid: m or (h, w), the grid of samples.
        fingerprint: identifies the weights.
        latents: images [B,3,H,W] in [-1,1] -> [B,d,h,w] in the codebook's space. Default None: there is no encoder.
        pixels: E [B,d,h,w] -> images [B,3,H,W], nominally in [-1,1]. Default None: there is no decoder.
        sampler: the prior. Default None: there is none.
        reasons: why "latents", "pixels" or "sampler" is None. Default {}.
        quantise: latents [B,d,h,w] -> tokens int64 [B,h,w]. Default None: the token is the nearest code.
        cell: height and width of a token in pixels. The model encodes images whose height and width are multiples of
            it. Default None: the model encodes images of `grid` alone.
    """

    codebook: Tensor
    grid: Grid
    fingerprint: str
    latents: Callable[[Tensor], Tensor] | None = None
    pixels: Callable[[Tensor], Tensor] | None = None
    sampler: Sampler | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    quantise: Callable[[Tensor], Tensor] | None = None
    cell: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", grid_of(sides(self.grid)))

    @property
    def conditions(self) -> int:
        """Number of conditions of `sample`. Raises UnsupportedError without a prior."""
        return self._part("sample", "sampler", self.sampler).conditions

    def embed(self, tokens: Tensor) -> Tensor:
        """Look tokens up in the codebook.

        Args:
            tokens: int [B,h,w].

        Returns:
            E [B,d,h,w], in the codebook's dtype.

        Raises:
            TypeError or ValueError: another dtype or shape, or tokens outside [0, K).
        """
        return embed(tokens, self.codebook)

    @torch.no_grad()
    def encode(self, images: Tensor, *, batch_size: int = 64) -> Tensor:
        """Encode images as tokens.

        Args:
            images: [B,3,H,W] in [0,1], of any float dtype. H and W are multiples of `cell` if the model has one, or the
                size that gives `grid`.
            batch_size: images encoded at a time. Default 64.

        Returns:
            Tokens int64 [B,h,w].

        Raises:
            TypeError or ValueError: another dtype, shape, size or range.
            UnsupportedError: the model has no encoder.
        """
        checks.rank("images", images, "[B, 3, H, W]")
        checks.floating("images", images)
        if images.numel():
            low, high = (float(edge) for edge in images.aminmax())
            if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):  # nor NaN
                raise ValueError(f"images: expected values in [0, 1], got {low:.3g} to {high:.3g}")
        latents_of = self._part("encode", "latents", self.latents)
        tokens_of = self.quantise or self._nearest
        grid = self._grid_of(images)
        parts = [torch.empty(0, *grid, dtype=torch.int64, device=images.device)]
        for part in images.split(max(1, batch_size)) if len(images) else ():
            latents = latents_of(part.to(self.codebook.dtype) * 2 - 1)
            if latents.shape[2:] != grid:
                got = f"{list(images.shape[2:])} (a grid of {list(latents.shape[2:])})"
                raise ValueError(f"images: expected the size that gives a grid of {grid_of(grid)}, got {got}")
            parts.append(tokens_of(latents))
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, source: Tensor, *, batch_size: int = 64) -> Tensor:
        """Decode tokens or embeddings to images.

        Args:
            source: tokens int [B,h,w], or E [B,d,h,w] of any float dtype. Any h and w that the model's decoder takes.
            batch_size: images decoded at a time. Default 64.

        Returns:
            Images float32 [B,3,H,W] in [0,1].

        Raises:
            TypeError or ValueError: another dtype or shape, or tokens outside [0, K).
            UnsupportedError: the model has no decoder.
        """
        pixels_of = self._part("decode", "pixels", self.pixels)
        is_embedding = isinstance(source, Tensor) and source.is_floating_point()
        embedding = source if is_embedding else self.embed(source)
        checks.rank("source", embedding, "[B, d, h, w]")
        if embedding.shape[1] != self.codebook.shape[1]:
            raise ValueError(f"source: expected {self.codebook.shape[1]} channels, got {list(embedding.shape)}")
        count = len(embedding)
        if not count:  # an image of zeros gives the images' size; some models refuse an empty batch
            embedding = embedding.new_zeros(1, *embedding.shape[1:])
        parts = [pixels_of(part.to(self.codebook.dtype)).float() for part in embedding.split(max(1, batch_size))]
        return ((torch.cat(parts)[:count] + 1) / 2).clamp(0, 1)

    def sample(
        self,
        condition: int | checks.Integers,
        n: int | None = None,
        *,
        seed: int = 0,
        item_ids: checks.Integers | None = None,
        tick: Callable[[], object] | None = None,
    ) -> Tensor:
        """Sample token grids. Seed, item id and condition fix an image.

        Args:
            condition: one class for `n` images, or a class for each image, int [n].
            n: number of images of one class. Default None, with a class for each image.
            seed: of the noise. Default 0.
            item_ids: int [n], the images' numbers, from 0 to 2^32 - 1. Default None: 0, 1, 2, ...
            tick: called after each position. Default None.

        Returns:
            Tokens int64 [n,h,w].

        Raises:
            TypeError or ValueError: an argument of another type, shape or range, or a class that the prior lacks.
            UnsupportedError: the model has no prior.
        """
        sampler = self._part("sample", "sampler", self.sampler)
        labels = self._labels(condition, n)
        checks.in_range("condition", labels, sampler.conditions)
        seed = checks.seed(seed)
        if item_ids is None:
            items = torch.arange(len(labels), device=labels.device)
        else:
            items = checks.integers("item_ids", item_ids, labels.device)
            checks.same_shape("item_ids", items, "condition", labels.shape)
            checks.in_range("item_ids", items, 2**32)  # the noise has 32 bits for them
        tokens = sampler.draw(labels.long(), items.long(), seed, tick or (lambda: None))
        return tokens.view(-1, *sides(self.grid))

    def _labels(self, condition: int | checks.Integers, n: int | None) -> Tensor:
        """The class of each image, int [n], of `sample`'s arguments."""
        if n is None and not is_single(condition):
            labels = checks.integers("condition", condition, self.codebook.device)
        elif not is_single(condition):
            raise ValueError("n: expected None with a label for each image")
        else:
            label, count = checks.whole("condition", condition, 0), checks.whole("n", n, 0)
            labels = torch.full((count,), label, dtype=torch.int64, device=self.codebook.device)
        checks.rank("condition", labels, "[n]")
        return labels

    def _grid_of(self, images: Tensor) -> tuple[int, int]:
        """(h, w) of the tokens of images. Raises ValueError if their sides are not multiples of the model's cell."""
        if self.cell is None:
            return sides(self.grid)
        height, width = images.shape[2:]
        if height % self.cell or width % self.cell or not height * width:
            raise ValueError(f"images: expected sides that are multiples of {self.cell}, got {[height, width]}")
        return height // self.cell, width // self.cell

    def _nearest(self, latents: Tensor) -> Tensor:
        return nearest_code(latents.permute(0, 2, 3, 1), self.codebook)

    def _part(self, method: str, name: str, part):  # type: ignore[no-untyped-def]
        if part is None:
            raise UnsupportedError(f"{method}: {self.reasons.get(name, 'this model has no such part')}")
        return part
