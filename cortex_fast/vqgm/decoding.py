"""One token after another through a GPT: its weights prepared for that, a static cache, and one step.

A step has the shapes of every other one, its position lies on the device, and nothing is looked at on the host, so that
it can be captured into a CUDA graph. On the CPU, where shapes cost nothing, attention takes only the positions filled.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cortex_fast.vqgm.transformer import GPT

Affine = tuple[Tensor, Tensor]  # weight, bias


@dataclass(frozen=True)
class Layer:
    """A block's weights; query, key and value in one product."""

    ln1: Affine
    qkv: Affine
    proj: Affine
    ln2: Affine
    up: Affine
    down: Affine


@dataclass(frozen=True, eq=False)
class Decoder:
    """A GPT's weights in one dtype, with the head's rows of the tokens that may come. Gradients are never needed."""

    tokens: Tensor  # [V,c]
    positions: Tensor  # [T,c]
    layers: tuple[Layer, ...]
    norm: Affine
    head: Tensor  # [K,c]
    heads: int


@dataclass(frozen=True, eq=False)
class Cache:
    """Keys and values of every position: [layers,B,heads,T,c/heads] each."""

    keys: Tensor
    values: Tensor


def prepare_decoder(prior: GPT, *, codebook_size: int | None = None, dtype: torch.dtype | None = None) -> Decoder:
    """The prior's weights in `dtype` (default: their own), shared where nothing changes; logits below codebook_size."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.detach().to(dtype or tensor.dtype)

    def affine(block: nn.Module, *names: str) -> Affine:
        modules = [block.get_submodule(name) for name in names]
        weights, biases = ([cast(getattr(module, part)) for module in modules] for part in ("weight", "bias"))
        return (weights[0], biases[0]) if len(names) == 1 else (torch.cat(weights), torch.cat(biases))

    layers = [
        Layer(
            ln1=affine(block, "ln1"),
            qkv=affine(block, "attn.query", "attn.key", "attn.value"),
            proj=affine(block, "attn.proj"),
            ln2=affine(block, "ln2"),
            up=affine(block, "mlp.0"),
            down=affine(block, "mlp.2"),
        )
        for block in prior.blocks
    ]
    return Decoder(
        cast(prior.tok_emb.weight),
        cast(prior.pos_emb)[0],
        tuple(layers),
        affine(prior, "ln_f"),
        cast(prior.head.weight)[:codebook_size],
        prior.n_head,
    )


def new_cache(decoder: Decoder, batch: int, length: int) -> Cache:
    """For `batch` sequences of at most `length` tokens; zeros, for what is masked must still be finite."""
    width = decoder.tokens.shape[1]
    shape = (len(decoder.layers), batch, decoder.heads, length, width // decoder.heads)
    return Cache(decoder.tokens.new_zeros(shape), decoder.tokens.new_zeros(shape))


def step(decoder: Decoder, cache: Cache, tokens: Tensor, position: Tensor, filled: int | None = None) -> Tensor:
    """The logits float32 [B,K] of what follows `tokens` int64 [B], which stand at `position`, int64 [1].

    The cache is extended in place. filled: position + 1 on the host, where attention may have another shape at each
    step; None: over the whole cache, with what lies ahead masked.
    """
    batch, width = len(tokens), decoder.tokens.shape[1]
    mask = None
    if filled is None:
        mask = (torch.arange(cache.keys.shape[3], device=tokens.device) <= position)[None]
    x = decoder.tokens[tokens] + decoder.positions[position]
    for number, layer in enumerate(decoder.layers):
        qkv = F.linear(F.layer_norm(x, (width,), *layer.ln1), *layer.qkv)
        q, k, v = qkv.view(batch, 3, decoder.heads, 1, -1).unbind(dim=1)
        keys, values = cache.keys[number], cache.values[number]
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        if filled is not None:
            keys, values = keys[:, :, :filled], values[:, :, :filled]
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        x = x + F.linear(y.view(batch, width), *layer.proj)
        x = x + F.linear(F.gelu(F.linear(F.layer_norm(x, (width,), *layer.ln2), *layer.up)), *layer.down)
    return F.linear(F.layer_norm(x, (width,), *decoder.norm), decoder.head).float()
