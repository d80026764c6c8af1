"""Beyond the paper: the causal test. Tokens are replaced in the grid, and the judges see the decoded images."""

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
    """Mean probability of the image's class before and after tokens are replaced.

    Args:
        judges: J names.
        ns: L numbers of replaced tokens.
        before: float32 [J].
        after: float32 [arms,J,L], by the arms of ARMS: the tokens of highest TSV, random ones, those of lowest.
    """

    judges: tuple[str, ...]
    ns: tuple[int, ...]
    before: Tensor
    after: Tensor


def replace_tokens(tokens: Tensor, positions: Tensor, donors: Tensor, order: Tensor) -> Tensor:
    """Tokens with some of them replaced by other tokens of the same image.

    Args:
        tokens: int64 [B,h,w].
        positions: int64 [B,n], flat, the tokens to replace.
        donors: int64 [B,D], flat, where the new tokens come from.
        order: float [B,n,D], at least 0: the donor of largest value among those whose token differs from the lost one
            is used; where none differs, the token stays.

    Returns:
        int64 [B,h,w].
    """
    flat = tokens.flatten(1)
    lost, offered = flat.gather(1, positions), flat.gather(1, donors)
    differs = offered[:, None, :] != lost[:, :, None]
    choice = order.masked_fill(~differs, -1).argmax(dim=2)
    new = torch.where(differs.any(dim=2), offered.gather(1, choice), lost)
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
    """Replace the n tokens of highest TSV, n random ones, or the n of lowest, each by another token of the same image.

    In all three arms the new tokens come from the same positions, those neither among the max(ns) highest nor among the
    max(ns) lowest, and each differs from the token it replaces. So the arms differ only in what is lost.

    Args:
        judges: J modules by name, images -> logits [B,classes].
        decode: tokens [B,h,w] -> images [B,3,H,W] in [0,1].
        tokens: int64 [B,h,w].
        tsv: float [B,h,w].
        labels: int [B], the images' classes.
        ns: numbers of replaced tokens. Default (10, 20, 30, 40, 50).
        seed: seed of the random positions and of the donors' order. Default 0.

    Returns:
        Mean probabilities of the images' classes, before and after.

    Raises:
        TypeError, ValueError: 2 max(ns) that leaves no position for new tokens, or an argument that does not fit.
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
