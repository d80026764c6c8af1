"""The paper's evaluation of token selection (eq. 10): do the judges see the target where the source was?"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cortex_fast import checks
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
    source: checks.Integers,
    target: checks.Integers,
) -> EditScores:
    """Score edits: tokens before [P,h,w], and after by each method's name; source and target classes int [P]."""
    start = probabilities(judges, decode(before))
    ends = [probabilities(judges, decode(tokens)) for tokens in after.values()]
    return EditScores(
        tuple(after),
        tuple(judges),
        of_class(start, source, name="source"),
        of_class(start, target, name="target"),
        torch.stack([of_class(end, source, name="source") for end in ends]),
        torch.stack([of_class(end, target, name="target") for end in ends]),
    )


@dataclass(frozen=True)
class EditLead:
    """By how much one method beats another, judge by judge: [judges,3], the mean over the problems and its bootstrap
    interval's ends. target: of the target's probability; source: of the source's, how much lower it is."""

    judges: tuple[str, ...]
    target: Tensor
    source: Tensor


def edit_lead(
    scores: EditScores, method: str, other: str, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> EditLead:
    """The lead of `method` over `other` on the same problems, drawn again with replacement for the interval."""
    for name, value in (("method", method), ("other", other)):
        checks.one_of(name, value, scores.methods)
    resamples, seed = checks.whole("resamples", resamples, 1), checks.seed(seed)
    level = checks.positive("level", level)
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level!r}")
    one, two = scores.methods.index(method), scores.methods.index(other)
    count = scores.source_before.shape[1]
    drawn = torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(seed))

    def interval(difference: Tensor) -> Tensor:
        difference = difference.cpu().double()
        means = torch.stack([row[drawn].mean(dim=1) for row in difference])
        ends = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64), dim=1)
        return torch.stack((difference.mean(dim=1), ends[0], ends[1]), dim=1)

    return EditLead(
        scores.judges,
        interval(scores.target_after[one] - scores.target_after[two]),
        interval(scores.source_after[two] - scores.source_after[one]),
    )
