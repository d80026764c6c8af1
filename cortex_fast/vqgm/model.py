"""A VQGM as the explanations see it: codebook, grid, embed, encode, decode, sample."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.data.token_store import embed
from cortex_fast.ops import nearest_code
from cortex_fast.vqgm.autoencoder import VQModel
from cortex_fast.vqgm.sampling import sample_tokens
from cortex_fast.vqgm.transformer import GPT


class TamingVQGM:
    """A VQGAN autoencoder and, where there is one, its class-conditional transformer, both in taming's names.

    `codebook` float [K,d]; `grid` m; `num_classes` that the prior knows; `fingerprint` says which weights these are;
    `sampling` are `sample_tokens`' settings (temperature, top_k, top_p).
    """

    def __init__(
        self,
        autoencoder: VQModel,
        prior: GPT | None,
        *,
        grid: int,
        fingerprint: str,
        num_classes: int = 0,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        if prior is not None and num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1 with a prior, got {num_classes}")
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.prior = prior.eval().requires_grad_(False) if prior is not None else None
        self.codebook = self.autoencoder.quantize.embedding.weight.detach()
        self.grid = grid
        self.fingerprint = fingerprint
        self.num_classes = num_classes
        self.sampling = sampling or {}

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens int [B,m,m] -> E [B,d,m,m]."""
        return embed(tokens, self.codebook)

    @torch.no_grad()
    def encode(self, images: Tensor, *, batch_size: int = 64) -> Tensor:
        """Images float [B,3,H,W] in [0,1] -> tokens int64 [B,m,m]."""
        checks.rank("images", images, "[B, 3, H, W]")
        checks.floating("images", images)
        parts = [torch.empty(0, self.grid, self.grid, dtype=torch.int64, device=images.device)]
        for part in images.split(batch_size) if len(images) else ():
            latents = self.autoencoder.latents(part * 2 - 1)
            if latents.shape[2:] != (self.grid, self.grid):
                got = f"{list(images.shape[2:])} (a grid of {list(latents.shape[2:])})"
                raise ValueError(f"images: expected the size that gives a grid of {self.grid}, got {got}")
            parts.append(nearest_code(latents.permute(0, 2, 3, 1), self.codebook))
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, source: Tensor, *, batch_size: int = 64) -> Tensor:
        """Tokens int [B,m,m], or E float [B,d,m,m], -> images float32 [B,3,H,W] in [0,1]."""
        embedding = source if source.is_floating_point() else self.embed(source)
        checks.rank("source", embedding, "[B, d, m, m]")
        parts = [self.autoencoder.decode(part) for part in embedding.split(max(1, batch_size))]
        return ((torch.cat(parts) + 1) / 2).clamp(0, 1)

    def sample(
        self,
        condition: int | Tensor,
        n: int | None = None,
        *,
        seed: int = 0,
        item_ids: Tensor | None = None,
        tick: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """Token grids int64 [n,m,m] of a class (with n) or of a label each, int [n].

        An image is fixed by seed and its item id (item_ids int [n], default 0, 1, 2, ...). tick is called after each
        position. Raises ValueError without a prior or for a class that it does not know.
        """
        if self.prior is None:
            raise ValueError("sample: this model has no prior, only an autoencoder")
        if isinstance(condition, Tensor):
            if n is not None:
                raise ValueError("n: expected None with a label for each image")
            labels = condition
        else:
            checks.whole("condition", condition, 0)
            checks.whole("n", n, 0)
            labels = torch.full((n or 0,), condition, dtype=torch.int64, device=self.codebook.device)
        checks.rank("condition", labels, "[n]")
        checks.integral("condition", labels)
        checks.in_range("condition", labels, self.num_classes)
        checks.seed(seed)
        if item_ids is not None:
            checks.integral("item_ids", item_ids)
            checks.same_shape("item_ids", item_ids, "condition", labels.shape)
        items = torch.arange(len(labels), device=labels.device) if item_ids is None else item_ids
        tokens = sample_tokens(
            self.prior,
            labels,
            self.grid**2,
            seed=seed,
            item_ids=items,
            codebook_size=len(self.codebook),
            tick=tick,
            **self.sampling,
        )
        return tokens.view(-1, self.grid, self.grid)
