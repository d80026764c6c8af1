"""A VQGM as the explanations see it: codebook, grid, embed, encode, decode, sample."""

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

_OVERSHOOT = 1e-3  # of pixels, by rounding


class VQGM(Protocol):
    """What a vector-quantised generative model offers. `Model` is one; any object with these members is another.

    codebook: float [K,d] as the model looks codes up (normalised where it normalises). grid: m or (h, w), of what it
    samples. fingerprint: which weights these are. What a model cannot do raises UnsupportedError with the reason.
    """

    @property
    def codebook(self) -> Tensor: ...
    @property
    def grid(self) -> Grid: ...
    @property
    def fingerprint(self) -> str: ...
    def embed(self, tokens: Tensor) -> Tensor: ...
    def encode(self, images: Tensor) -> Tensor: ...
    def decode(self, source: Tensor) -> Tensor: ...
    def sample(
        self, condition: int | Tensor, n: int | None = None, *, seed: int = 0, item_ids: Tensor | None = None
    ) -> Tensor: ...


class UnsupportedError(RuntimeError):
    """The model has no such part; the message says which and why."""


@dataclass(frozen=True)
class Sampler:
    """A model's prior. draw: (condition int64 [n], item_ids int64 [n], seed, tick) -> tokens int64 [n,h,w], each image
    fixed by its condition, item and the seed; tick is called after each position. conditions: how many there are,
    0 to conditions - 1."""

    draw: Callable[[Tensor, Tensor, int, Callable[[], object]], Tensor]
    conditions: int


@dataclass(frozen=True, eq=False)
class Model:
    """A VQGM made of functions, as the adapters build it.

    codebook C float [K,d]; grid m or (h, w); fingerprint. latents: images [B,3,H,W] in [-1,1] -> [B,d,h,w] in the
    codebook's space. quantise: latents [B,d,h,w] -> tokens int64 [B,h,w], of a model whose token is not the nearest
    code's. pixels: E [B,d,h,w] -> images [B,3,H,W], nominally in [-1,1]. sampler: of the prior. Each is None where the
    model has none, and `reasons` says why ("latents", "pixels", "sampler").
    cell: a token's pixels along either side, of a model that encodes images of any size made of whole cells; `grid` is
    then that of its configuration. None: it encodes images of `grid` alone.
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
        """How many conditions `sample` knows. Raises UnsupportedError without a prior."""
        return self._part("sample", "sampler", self.sampler).conditions

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens int [B,h,w] -> E [B,d,h,w]."""
        return embed(tokens, self.codebook)

    @torch.no_grad()
    def encode(self, images: Tensor, *, batch_size: int = 64) -> Tensor:
        """Images float [B,3,H,W] in [0,1], of any float dtype, -> tokens int64 [B,h,w].

        Of any H and W made of whole cells where the model's `cell` says how large they are; else of the size that
        gives `grid`. Raises TypeError or ValueError for others, UnsupportedError without an encoder.
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
        """Tokens int [B,h,w], or E float [B,d,h,w] of any float dtype, -> images float32 [B,3,H,W] in [0,1].

        h and w are the caller's: the model's functions say which grids they decode.
        """
        pixels_of = self._part("decode", "pixels", self.pixels)
        given = isinstance(source, Tensor) and source.is_floating_point()
        embedding = source if given else self.embed(source)
        checks.rank("source", embedding, "[B, d, h, w]")
        if embedding.shape[1] != self.codebook.shape[1]:
            raise ValueError(f"source: expected {self.codebook.shape[1]} channels, got {list(embedding.shape)}")
        count = len(embedding)
        if not count:  # the image's size is the model's to say, and some cannot take an empty batch
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
        tick: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """Token grids int64 [n,h,w] of a class (with n) or of a label each, int [n].

        An image is fixed by seed and its item id (item_ids int [n], default 0, 1, 2, ...). tick is called after each
        position. Raises UnsupportedError without a prior, ValueError for a class that it does not know.
        """
        sampler = self._part("sample", "sampler", self.sampler)
        if n is None and not is_single(condition):
            labels = checks.integers("condition", condition, self.codebook.device)
        elif not is_single(condition):
            raise ValueError("n: expected None with a label for each image")
        else:
            label, count = checks.whole("condition", condition, 0), checks.whole("n", n, 0)
            labels = torch.full((count,), label, dtype=torch.int64, device=self.codebook.device)
        checks.rank("condition", labels, "[n]")
        checks.in_range("condition", labels, sampler.conditions)
        seed = checks.seed(seed)
        if item_ids is not None:
            item_ids = checks.integers("item_ids", item_ids, labels.device)
            checks.same_shape("item_ids", item_ids, "condition", labels.shape)
            checks.in_range("item_ids", item_ids, 2**32)  # beyond it they would be others again
        items = torch.arange(len(labels), device=labels.device) if item_ids is None else item_ids
        return sampler.draw(labels.long(), items.long(), seed, tick).view(-1, *sides(self.grid))

    def _grid_of(self, images: Tensor) -> tuple[int, int]:
        """(h, w) of the tokens of images, which have any size that the model's cells fill."""
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
