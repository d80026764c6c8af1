"""Limits of token selection: the tokens that each free position may take."""

import numpy as np
from torch import Tensor

from cortex_fast import checks
from cortex_fast.explain.problems import Problems

Mask = Tensor | np.ndarray


def allowed_mask(problems: Problems, allowed: Mask | None, banned: Mask | None) -> Tensor | None:
    """The tokens that free positions may take, from those allowed and those banned.

    Args:
        problems: P problems.
        allowed: bool [K], [rows,K] or [P,rows,K], by rows where every region has as many positions. None: all tokens.
        banned: bool [K], [rows,K] or [P,rows,K]. None: no token.

    Returns:
        bool [K], [rows,K] or [P,rows,K]; None where nothing is limited.

    Raises:
        TypeError, ValueError: a mask of another dtype, shape or device, or a position without any token.
    """
    counts = problems.region.flatten(1).sum(dim=1)
    codes = len(problems.codebook)
    shapes: list[tuple[int, ...]] = [(codes,)]
    if len(problems) and bool((counts == counts[0]).all()):
        rows = int(counts[0])
        shapes += [(rows, codes), (len(problems), rows, codes)]
    masks = []
    for name, tensor in (("allowed", allowed), ("banned", banned)):
        if tensor is None:
            continue
        tensor = checks.mask(name, tensor, problems.codebook.device)
        if len(problems) and tuple(tensor.shape) not in shapes:
            expected = ", ".join(str(list(shape)) for shape in shapes)
            raise ValueError(f"{name}: expected shape {expected}, got {list(tensor.shape)}")
        checks.same_device(**{name: tensor}, codebook=problems.codebook)
        masks.append(tensor if name == "allowed" else ~tensor)
    if not masks or not len(problems):
        return None
    mask = masks[0] if len(masks) == 1 else masks[0] & masks[1]
    if not bool(mask.any(dim=-1).all()):
        name = "banned" if allowed is None else "allowed"
        raise ValueError(f"{name}: expected at least one token for each position, got none for some")
    return mask


def startable(problems: Problems, mask: Tensor) -> Tensor:
    """Whether each problem's start has allowed tokens alone at its free positions, bool [P]."""
    if mask.ndim == 1:
        return (mask[problems.start] | ~problems.region).flatten(1).all(dim=1)
    anchor = problems.anchor[..., None]
    return mask.expand(*anchor.shape[:2], -1).gather(2, anchor).flatten(1).all(dim=1)
