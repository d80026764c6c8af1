"""The paper's image- and concept-level evaluation: blacken the patches of the explaining tokens and ask the judges."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.evaluate.judging import Judges, class_of_each, correct, of_class, probabilities
from cortex_fast.explain.saliency import top_tokens

MASK_BY = ("position", "token")


@dataclass(frozen=True)
class MaskingCurves:
    """Mean probability of the image's class after masking. `judges` J names; `ns` L sizes; `before` float32 [J].

    `ours`, `random` float32 [J,L]: after masking the top n tokens, and as many random positions.
    """

    judges: tuple[str, ...]
    ns: tuple[int, ...]
    before: Tensor
    ours: Tensor
    random: Tensor


@dataclass(frozen=True)
class ConceptMasking:
    """Effect of masking a concept's tokens wherever they occur. `methods` M names.

    `accuracy`, `probability` float32 [M,J]: mean change of the judges' accuracy and of the class's probability
    (negative: the concept went). `masked` float32 [M]: mean number of positions masked in an image.
    """

    methods: tuple[str, ...]
    judges: tuple[str, ...]
    accuracy: Tensor
    probability: Tensor
    masked: Tensor


def blacken(images: Tensor, mask: Tensor) -> Tensor:
    """Images [B,3,H,W] with the cells of mask bool [B,h,w] set to black; h must divide H, and w W."""
    if images.shape[2] % mask.shape[1] or images.shape[3] % mask.shape[2]:
        got = f"{list(images.shape[2:])} and {list(mask.shape[1:])}"
        raise ValueError(f"images: expected sides that the grid divides, got {got}")
    height, width = images.shape[2] // mask.shape[1], images.shape[3] // mask.shape[2]
    cells = mask.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2)
    return images.masked_fill(cells[:, None], 0.0)


def cells_at(positions: Tensor, grid: Sequence[int]) -> Tensor:
    """Flat positions int64 [B,n] -> bool [B,h,w]."""
    mask = torch.zeros(len(positions), grid[0] * grid[1], dtype=torch.bool, device=positions.device)
    return mask.scatter_(1, positions, True).view(-1, *grid)


def cells_of_tokens(tokens: Tensor, chosen: Tensor) -> Tensor:
    """Where tokens int [B,h,w] holds one of the ids chosen int64 [B,n] of its image: bool [B,h,w]."""
    return (tokens.long()[..., None] == chosen[:, None, None, :]).any(dim=3)


def random_positions(batch: int, cells: int, n: int, seed: int) -> Tensor:
    """n different positions of each image, int64 [B,n] on the CPU: the same on every device, for every method."""
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

    images [B,3,H,W] in [0,1]; tokens, tsv [B,h,w]; labels int [B]. by: "position" masks the top n positions (the
    paper), "token" every position whose id is among them (the published code), for both methods.
    """
    checks.one_of("by", by, MASK_BY)
    seed, counts = checks.seed(seed), [checks.whole("ns", n, 1) for n in ns]
    grid = tuple(tokens.shape[1:])
    before = of_class(probabilities(judges, images), labels).mean(dim=1)
    curves: dict[str, list[Tensor]] = {"ours": [], "random": []}
    for n in counts:
        _, ours = top_tokens(tsv, tokens, n)
        chance = random_positions(len(images), grid[0] * grid[1], n, seed).to(tokens.device)
        for method, positions in (("ours", ours), ("random", chance)):
            mask = cells_at(positions, grid)
            if by == "token":
                mask = cells_of_tokens(tokens, tokens.flatten(1).long().gather(1, positions))
            masked = blacken(images, mask)
            curves[method].append(of_class(probabilities(judges, masked), labels).mean(dim=1))
    ours, chance = (torch.stack(curve, dim=1) for curve in curves.values())
    return MaskingCurves(tuple(judges), tuple(counts), before, ours, chance)


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
    """Mask a concept's tokens in images that did not make the explanation.

    concept_tokens, frequent_tokens int64 [C,k], -1 for none: ours, and the class's most frequent tokens. The two mask
    different amounts, so each is followed by its control: as many random positions in each image.
    """
    seed, start = checks.seed(seed), probabilities(judges, images)
    labels = class_of_each(labels, len(images), min(len(concept_tokens), len(frequent_tokens)), tokens.device)
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
        tuple(masks), tuple(judges), torch.stack(accuracy), torch.stack(probability), torch.stack(masked)
    )
