"""Sampling token grids from a class-conditional autoregressive prior."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from typing_extensions import TypedDict

from cortex_fast import checks
from cortex_fast.ops.random_stream import sampling_gumbel
from cortex_fast.vqgm.decoding import Decoder, new_cache, step


class SamplingSettings(TypedDict, total=False):
    """The settings with which a model samples, all optional.

    temperature: the logits are divided by it.
    top_k: only the k largest logits are considered.
    top_p: of these, only the smallest set of at least this probability is considered.
    dtype: that of the prior's weights.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    dtype: torch.dtype | None


_FIRST_LOOK = 256  # logits looked at first: they usually hold the probability asked for, so that no sort is needed


def check_sampling(settings: Mapping[str, object]) -> None:
    """Raise ValueError or TypeError for a name that is not of SamplingSettings and for a value out of range."""
    for name in settings:
        checks.one_of("sampling", name, tuple(SamplingSettings.__annotations__))
    checks.positive("temperature", settings.get("temperature", 1.0))
    if settings.get("top_k") is not None:
        checks.whole("top_k", settings["top_k"], 1)
    if settings.get("top_p") is not None:
        checks.positive("top_p", settings["top_p"])
    dtype = settings.get("dtype")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype: expected a floating-point torch.dtype, got {dtype!r}")


def _keep_top(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """The logits float [B,K], with -inf outside the top k and outside their smallest set of probability >= top_p.

    Logits equal to the smallest remaining one remain too, so that nothing depends on their order.
    """
    size = logits.shape[1]
    if top_k is not None and top_k < size:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=1).values[:, -1:], -torch.inf)
    if top_p is None or top_p >= 1:
        return logits
    probability = logits.softmax(dim=1)
    first = min(top_k or _FIRST_LOOK, size)
    for look in (size,) if logits.is_cuda else (first, size):  # on a GPU the host would have to wait for the answer
        ordered = (probability.topk(look, dim=1) if look < size else probability.sort(dim=1, descending=True)).values
        sums = ordered.cumsum(dim=1)
        if look < size and bool((sums[:, -1] >= top_p).all()):
            break
    last = (sums[:, :-1] < top_p).sum(dim=1, keepdim=True)  # a token remains while those before it do not suffice
    return logits.masked_fill(probability < ordered.gather(1, last), -torch.inf)


@torch.no_grad()
def decode_tokens(
    decoder: Decoder,
    labels: Tensor,
    length: int,
    *,
    seed: int,
    item_ids: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    tick: Callable[[], object] | None = None,
) -> Tensor:
    """Sample token sequences: each token is argmax(logits / temperature + Gumbel noise).

    The noise depends on (seed, item id, position) alone, so an image does not depend on the others of its batch. The
    exception is a lead so small that the rounding of products of another shape reverses it.

    Args:
        decoder: the prior, prepared by `prepare_decoder`.
        labels: int [B], the tokens before the sequences; they are not in the result.
        length: tokens of a sequence, at most the decoder's positions.
        seed: of the noise.
        item_ids: int64 [B], the images' numbers.
        temperature: the logits are divided by it. Default 1.
        top_k: only the k largest logits are considered. Default None: all.
        top_p: of these, only the smallest set of at least this probability is considered. Default None: all.
        tick: called after each position. Default None.

    Returns:
        int64 [B,length].

    Raises:
        TypeError or ValueError: a setting is out of range; the message names it.
    """
    check_sampling({"temperature": temperature, "top_k": top_k, "top_p": top_p})
    checks.whole("length", length, 0, len(decoder.positions))
    batch, device = len(labels), labels.device
    tokens = torch.empty(batch, length, dtype=torch.int64, device=device)
    if not batch:
        return tokens
    cache = new_cache(decoder, batch, length)
    position = torch.zeros(1, dtype=torch.int64, device=device)
    current = labels.long()
    for number in range(length):
        logits = step(decoder, cache, current, position, None if labels.is_cuda else number + 1)
        if temperature != 1:
            logits /= temperature
        gumbel = sampling_gumbel(seed, item_ids, position, logits.shape[1])[:, 0]
        current = gumbel.add_(_keep_top(logits, top_k, top_p)).argmax(dim=1)
        tokens[:, number] = current
        position += 1
        if tick is not None:
            tick()
    return tokens
