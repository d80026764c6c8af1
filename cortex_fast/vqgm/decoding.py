"""One token after another through a GPT: its weights prepared for that, a static cache, and one step.

All steps have the same shapes, the position lies on the device, and the host reads no result, so that a step can be
captured into a CUDA graph. On the CPU, where another shape costs nothing, attention takes only the filled positions.
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
    """A GPT's weights in one dtype, with the head's rows of the codebook's tokens, without gradients."""

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
    """Prepare a prior for decoding.

    Args:
        prior: the transformer.
        codebook_size: K, the number of logits; tokens from K on are conditions. Default None: the whole vocabulary.
        dtype: that of the weights. Default None: theirs.

    Returns:
        The weights, which share the prior's memory if they do not change.
    """

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
    """A cache of zeros for `batch` sequences of at most `length` tokens: masked values must be finite too."""
    width = decoder.tokens.shape[1]
    shape = (len(decoder.layers), batch, decoder.heads, length, width // decoder.heads)
    return Cache(decoder.tokens.new_zeros(shape), decoder.tokens.new_zeros(shape))


def step(decoder: Decoder, cache: Cache, tokens: Tensor, position: Tensor, filled: int | None = None) -> Tensor:
    """The logits of the next token; the cache is extended in place.

    Args:
        decoder: the prior.
        cache: keys and values of the positions before.
        tokens: int64 [B], the current tokens.
        position: int64 [1], where they stand, on the device.
        filled: position + 1 as a number of the host, so that attention takes the filled positions alone. Default None:
            attention takes the whole cache, with the positions ahead masked.

    Returns:
        float32 [B,K].
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
