"""Beyond the paper: the causal test.

Replace tokens in the grid, decode, and let the judges say whether the concept went.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.evaluate.judging import Judges, of_class, probabilities
from cortex_fast.evaluate.masking import random_positions
from cortex_fast.explain.saliency import top_tokens

ARMS = ("top", "random", "low")


@dataclass(frozen=True)
class Intervention:
    """Mean probability of the image's class: `before` [J], and `after` [arms,J,L] for L numbers `ns` replaced."""

    judges: tuple[str, ...]
    ns: tuple[int, ...]
    before: Tensor
    after: Tensor


def replace_tokens(tokens: Tensor, positions: Tensor, donors: Tensor, order: Tensor) -> Tensor:
    """tokens int64 [B,h,w] with those at positions [B,n] replaced by other tokens, from donor positions [B,D].

    order float [B,n,D]: the donor of largest value whose token differs from the lost one is taken; where none differs,
    the token stays.
    """
    flat = tokens.flatten(1)
    lost, offered = flat.gather(1, positions), flat.gather(1, donors)
    other = offered[:, None, :] != lost[:, :, None]
    choice = order.masked_fill(~other, -1).argmax(dim=2)
    new = torch.where(other.any(dim=2), offered.gather(1, choice), lost)
    return flat.scatter(1, positions, new).view_as(tokens)


def intervention(
    judges: Judges,
    decode: Callable[[Tensor], Tensor],
    tokens: Tensor,
    tsv: Tensor,
    labels: checks.Integers,
    *,
    ns: Sequence[int] = (10, 20, 30, 40, 50),
    seed: int = 0,
) -> Intervention:
    """Replace the n tokens of highest TSV, n random ones, or the n lowest, each by another token of the same image.

    tokens int64 [B,h,w], tsv [B,h,w], labels int [B]. In all three arms the new tokens come from the same places, the
    positions that are neither among the top nor among the low max(ns), and every one differs from what it replaces, so
    the arms differ only in what is lost. Raises ValueError where 2 max(ns) leaves no such position.
    """
    batch, cells = len(tokens), tokens.shape[1:].numel()
    counts = [checks.whole("ns", n, 1) for n in ns]
    most, seed = max(counts, default=0), checks.seed(seed)
    if 2 * most >= cells:
        raise ValueError(f"ns: expected at most {(cells - 1) // 2} of {cells} tokens, got {most}")
    _, order = top_tokens(tsv, tokens, cells)
    chance = random_positions(batch, cells, cells, seed).to(tokens.device)
    middle = order[:, most : cells - most]
    generator = torch.Generator().manual_seed(seed)
    preference = torch.rand(batch, most, middle.shape[1], generator=generator, dtype=torch.float32).to(tokens.device)
    after = torch.empty(len(ARMS), len(judges), len(counts), dtype=torch.float32)
    for column, n in enumerate(counts):
        for arm, positions in enumerate((order[:, :n], chance[:, :n], order[:, cells - n :])):
            images = decode(replace_tokens(tokens, positions, middle, preference[:, :n]))
            after[arm, :, column] = of_class(probabilities(judges, images), labels).mean(dim=1)
    before = of_class(probabilities(judges, decode(tokens)), labels).mean(dim=1)
    return Intervention(tuple(judges), tuple(counts), before, after)
