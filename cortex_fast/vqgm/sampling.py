"""Sampling token grids from a class-conditional autoregressive prior."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.ops.random_stream import sampling_gumbel
from cortex_fast.vqgm.decoding import Decoder, new_cache, prepare_decoder, step
from cortex_fast.vqgm.transformer import GPT

SETTINGS = ("temperature", "top_k", "top_p", "dtype")
_FIRST_LOOK = 256  # of so many largest logits the probability asked for is usually there, and no sort is needed


def check_sampling(settings: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for a name that is not of SETTINGS, and for a value outside its range."""
    for name in settings:
        checks.one_of("sampling", name, SETTINGS)
    checks.positive("temperature", settings.get("temperature", 1.0))
    if settings.get("top_k") is not None:
        checks.whole("top_k", settings["top_k"], 1)
    if settings.get("top_p") is not None:
        checks.positive("top_p", settings["top_p"])
    dtype = settings.get("dtype")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype: expected a floating-point torch.dtype, got {dtype!r}")


def _keep_top(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Set every logit outside the top k, and outside the smallest set of probability >= top_p of those, to -inf.

    Logits equal to the smallest one kept are kept too, so that nothing depends on their order.
    """
    size = logits.shape[1]
    if top_k is not None and top_k < size:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=1).values[:, -1:], -torch.inf)
    if top_p is None or top_p >= 1:
        return logits
    probability = logits.softmax(dim=1)
    first = min(top_k or _FIRST_LOOK, size)
    for look in (size,) if logits.is_cuda else (first, size):  # a GPU would have to wait for the answer
        ordered = (probability.topk(look, dim=1) if look < size else probability.sort(dim=1, descending=True)).values
        sums = ordered.cumsum(dim=1)
        if look < size and bool((sums[:, -1] >= top_p).all()):
            break
    last = (sums[:, :-1] < top_p).sum(dim=1, keepdim=True)  # a token stays while those before it do not suffice
    return logits.masked_fill(probability < ordered.gather(1, last), -torch.inf)


def sample_tokens(
    prior: GPT,
    labels: Tensor,
    length: int,
    *,
    seed: int,
    item_ids: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    codebook_size: int | None = None,
    dtype: torch.dtype | None = None,
    tick: Callable[[], object] = lambda: None,
) -> Tensor:
    """`decode_tokens` of a prior prepared for this one call: in `dtype`, for tokens below `codebook_size`."""
    decoder = prepare_decoder(prior, codebook_size=codebook_size, dtype=dtype)
    return decode_tokens(
        decoder,
        labels,
        length,
        seed=seed,
        item_ids=item_ids,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        tick=tick,
    )


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
    tick: Callable[[], object] = lambda: None,
) -> Tensor:
    """Token sequences int64 [B,length] for first tokens `labels` int [B], which are not in the result.

    Each token is argmax(logits / temperature + Gumbel), the logits limited to the `top_k` largest and the smallest set
    of probability `top_p`, with the noise fixed by (seed, item id, position), so an image does not depend on its batch
    mates, but for a lead so small that the rounding of products of another shape turns it over. `tick` is called after
    each position. Raises TypeError or ValueError for settings outside their range.
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
        noise = sampling_gumbel(seed, item_ids, position, logits.shape[1])[:, 0]
        current = noise.add_(_keep_top(logits, top_k, top_p)).argmax(dim=1)
        tokens[:, number] = current
        position += 1
        tick()
    return tokens
