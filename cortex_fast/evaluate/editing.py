"""The paper's evaluation of token selection (eq. 10): do the judges see the target where the source was?"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cortex_fast.evaluate.judging import Judges, of_class, probabilities


@dataclass(frozen=True)
class EditScores:
    """Judges' probabilities [methods,judges,problems] of the source and of the target class, before and after an edit.

    `*_before` are [judges,problems]. Eq. 10's figures are `source_change` (down is better) and `target_change` (up is).
    """

    methods: tuple[str, ...]
    judges: tuple[str, ...]
    source_before: Tensor
    target_before: Tensor
    source_after: Tensor
    target_after: Tensor

    @property
    def source_change(self) -> Tensor:
        """Mean over the problems of the source's probability after - before: [methods,judges]."""
        return (self.source_after - self.source_before).mean(dim=2)

    @property
    def target_change(self) -> Tensor:
        """Mean over the problems of the target's probability after - before: [methods,judges]."""
        return (self.target_after - self.target_before).mean(dim=2)


def edit_scores(
    judges: Judges,
    decode: Callable[[Tensor], Tensor],
    before: Tensor,
    after: dict[str, Tensor],
    source: Tensor,
    target: Tensor,
) -> EditScores:
    """Score edits: tokens before [P,m,m], and after by each method's name; source and target classes int64 [P]."""
    start = probabilities(judges, decode(before))
    ends = [probabilities(judges, decode(tokens)) for tokens in after.values()]
    return EditScores(
        tuple(after),
        tuple(judges),
        of_class(start, source),
        of_class(start, target),
        torch.stack([of_class(end, source) for end in ends]),
        torch.stack([of_class(end, target) for end in ends]),
    )
