"""The paper's image- and concept-level evaluation: the judges see images with the tokens' patches blackened."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.evaluate.judging import Judges, correct, image_labels, of_class, probabilities
from cortex_fast.explain.saliency import top_tokens

MASK_BY = ("position", "token")


@dataclass(frozen=True)
class MaskingCurves:
    """Mean probability of the image's class before and after masking.

    Args:
        judges: J names.
        ns: L numbers of masked tokens.
        before: float32 [J].
        ours: float32 [J,L], after masking the top n tokens.
        random: float32 [J,L], after masking as many random positions.
    """

    judges: tuple[str, ...]
    ns: tuple[int, ...]
    before: Tensor
    ours: Tensor
    random: Tensor


@dataclass(frozen=True)
class ConceptMasking:
    """The effect of masking a concept's tokens wherever they occur.

    Args:
        methods: M names.
        judges: J names.
        accuracy: float32 [M,J], mean change of the judge's accuracy; negative where the concept is lost.
        probability: float32 [M,J], mean change of the class's probability.
        masked: float32 [M], mean number of masked positions of an image.
    """

    methods: tuple[str, ...]
    judges: tuple[str, ...]
    accuracy: Tensor
    probability: Tensor
    masked: Tensor


def blacken(images: Tensor, mask: Tensor) -> Tensor:
    """Images with some cells of their token grid set to black.

    Args:
        images: float [B,3,H,W].
        mask: bool [B,h,w], where h divides H and w divides W.

    Returns:
        float [B,3,H,W].

    Raises:
        ValueError: a grid that does not divide the images' sides.
    """
    if images.shape[2] % mask.shape[1] or images.shape[3] % mask.shape[2]:
        got = f"{list(images.shape[2:])} and {list(mask.shape[1:])}"
        raise ValueError(f"images: expected height and width divisible by the grid's, got {got}")
    height, width = images.shape[2] // mask.shape[1], images.shape[3] // mask.shape[2]
    cells = mask.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2)
    return images.masked_fill(cells[:, None], 0.0)


def cells_at(positions: Tensor, grid: Sequence[int]) -> Tensor:
    """Flat positions int64 [B,n] as a mask bool [B,h,w] of a grid (h, w)."""
    mask = torch.zeros(len(positions), grid[0] * grid[1], dtype=torch.bool, device=positions.device)
    return mask.scatter_(1, positions, True).view(-1, *grid)


def cells_of_tokens(tokens: Tensor, chosen: Tensor) -> Tensor:
    """Where tokens int [B,h,w] are among their image's chosen ids int64 [B,n]: bool [B,h,w]."""
    return (tokens.long()[..., None] == chosen[:, None, None, :]).any(dim=3)


def random_positions(batch: int, cells: int, n: int, seed: int) -> Tensor:
    """n different positions of each image, int64 [B,n] on the CPU, so that every device and method has the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, cells, generator=generator, dtype=torch.float32).argsort(dim=1)[:, :n]


def image_level(
    judges: Judges,
    images: Tensor,
    tokens: Tensor,
    tsv: Tensor,
    labels: checks.Integers,
    *,
    ns: Sequence[int] = tuple(range(5, 51, 5)),
    by: str = "position",
    seed: int = 0,
) -> MaskingCurves:
    """Mask the top n tokens of each image, against n random positions, for every n in ns.

    Args:
        judges: J modules by name, images -> logits [B,classes].
        images: float [B,3,H,W] in [0,1], where the grid divides the sides.
        tokens: int [B,h,w].
        tsv: float [B,h,w].
        labels: int [B], the images' classes.
        ns: numbers of masked tokens, each from 1 to h * w. Default 5, 10, ..., 50.
        by: "position" masks the n positions (the paper), "token" every position whose token is among theirs (the
            published code). Default "position".
        seed: seed of the random positions. Default 0.

    Returns:
        Mean probabilities of the images' classes, before and after.

    Raises:
        TypeError, ValueError: an argument that does not fit. The message names it.
    """
    checks.one_of("by", by, MASK_BY)
    seed, counts = checks.seed(seed), [checks.whole("ns", n, 1) for n in ns]
    grid = tuple(tokens.shape[1:])
    before = of_class(probabilities(judges, images), labels).mean(dim=1)
    curves: dict[str, list[Tensor]] = {"ours": [], "random": []}
    for n in counts:
        _, top = top_tokens(tsv, tokens, n)
        chance = random_positions(len(images), grid[0] * grid[1], n, seed).to(tokens.device)
        for method, positions in (("ours", top), ("random", chance)):
            mask = cells_at(positions, grid)
            if by == "token":
                mask = cells_of_tokens(tokens, tokens.flatten(1).long().gather(1, positions))
            masked = blacken(images, mask)
            curves[method].append(of_class(probabilities(judges, masked), labels).mean(dim=1))
    after = {method: torch.stack(curve, dim=1) for method, curve in curves.items()}
    return MaskingCurves(
        judges=tuple(judges), ns=tuple(counts), before=before, ours=after["ours"], random=after["random"]
    )


def concept_level(
    judges: Judges,
    images: Tensor,
    tokens: Tensor,
    labels: checks.Integers,
    concept_tokens: Tensor,
    frequent_tokens: Tensor,
    *,
    seed: int = 0,
) -> ConceptMasking:
    """Mask a concept's tokens in images that the explanation was not computed from.

    Concept tokens and frequent tokens mask different amounts, so each is followed by its control: as many random
    positions in each image.

    Args:
        judges: J modules by name, images -> logits [B,classes].
        images: float [B,3,H,W] in [0,1], where the grid divides the sides.
        tokens: int [B,h,w].
        labels: int [B] in [0, C).
        concept_tokens: int64 [C,k], each class's concept tokens, -1 for none.
        frequent_tokens: int64 [C,k], each class's most frequent tokens, -1 for none.
        seed: seed of the random positions. Default 0.

    Returns:
        The mean changes by four methods: concept tokens, their control, most frequent tokens, their control.

    Raises:
        TypeError, ValueError: an argument that does not fit. The message names it.
    """
    seed, start = checks.seed(seed), probabilities(judges, images)
    labels = image_labels(labels, len(images), min(len(concept_tokens), len(frequent_tokens)), tokens.device)
    cells = tokens.shape[1:].numel()
    order = random_positions(len(images), cells, cells, seed).argsort(dim=1).to(tokens.device)
    masks = {}
    for method, chosen in (("concept tokens", concept_tokens), ("most frequent tokens", frequent_tokens)):
        mask = cells_of_tokens(tokens, chosen.to(tokens.device)[labels])
        masks[method] = mask
        masks[f"random, as many as {method}"] = (order < mask.flatten(1).sum(dim=1, keepdim=True)).view_as(mask)
    accuracy, probability, masked = [], [], []
    for mask in masks.values():
        after = probabilities(judges, blacken(images, mask))
        accuracy.append((correct(after, labels) - correct(start, labels)).mean(dim=1))
        probability.append((of_class(after, labels) - of_class(start, labels)).mean(dim=1))
        masked.append(mask.flatten(1).sum(dim=1).float().mean())
    return ConceptMasking(
        methods=tuple(masks),
        judges=tuple(judges),
        accuracy=torch.stack(accuracy),
        probability=torch.stack(probability),
        masked=torch.stack(masked),
    )
