"""The paper's evaluation of token selection (eq. 10): do the judges see the target where the source was?"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.evaluate.judging import Judges, of_class, probabilities


@dataclass(frozen=True)
class EditScores:
    """The judges' probabilities of the source and the target class before and after edits (eq. 10).

    Args:
        methods: M names.
        judges: J names.
        source_before: float32 [J,P], of the source class before the edit.
        target_before: float32 [J,P], of the target class before the edit.
        source_after: float32 [M,J,P], of the source class after it.
        target_after: float32 [M,J,P], of the target class after it.
    """

    methods: tuple[str, ...]
    judges: tuple[str, ...]
    source_before: Tensor
    target_before: Tensor
    source_after: Tensor
    target_after: Tensor

    @property
    def source_change(self) -> Tensor:
        """Mean over the problems of the source's probability after - before, [M,J]: lower is better."""
        return (self.source_after - self.source_before).mean(dim=2)

    @property
    def target_change(self) -> Tensor:
        """Mean over the problems of the target's probability after - before, [M,J]: higher is better."""
        return (self.target_after - self.target_before).mean(dim=2)


def edit_scores(
    judges: Judges,
    decode: Callable[[Tensor], Tensor],
    before: Tensor,
    after: dict[str, Tensor],
    source: checks.Integers,
    target: checks.Integers,
) -> EditScores:
    """The judges' probabilities before and after the edits of several methods (eq. 10).

    Args:
        judges: J modules by name, images -> logits [P,classes].
        decode: tokens [P,h,w] -> images [P,3,H,W] in [0,1].
        before: int [P,h,w], the tokens before the edit.
        after: int [P,h,w] by each method's name, the tokens after its edit.
        source: int [P], the classes of the images.
        target: int [P], the classes that the edits aim at.

    Returns:
        The probabilities of both classes.

    Raises:
        TypeError, ValueError: classes of another type, number or range. The message names the argument.
    """
    start = probabilities(judges, decode(before))
    ends = [probabilities(judges, decode(tokens)) for tokens in after.values()]
    return EditScores(
        methods=tuple(after),
        judges=tuple(judges),
        source_before=of_class(start, source, name="source"),
        target_before=of_class(start, target, name="target"),
        source_after=torch.stack([of_class(end, source, name="source") for end in ends]),
        target_after=torch.stack([of_class(end, target, name="target") for end in ends]),
    )


@dataclass(frozen=True)
class EditLead:
    """By how much a method beats another, judge by judge.

    Args:
        judges: J names.
        target: float64 [J,3], how much higher the target's probability is: the mean over the problems, and the lower
            and upper end of its bootstrap interval.
        source: float64 [J,3], how much lower the source's probability is.
    """

    judges: tuple[str, ...]
    target: Tensor
    source: Tensor


def edit_lead(
    scores: EditScores, method: str, other: str, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> EditLead:
    """The lead of a method over another on the same problems, with a bootstrap interval.

    Args:
        scores: of both methods on P problems.
        method: its name among the scores' methods.
        other: the other's name.
        level: the interval's coverage, between 0 and 1. Default 0.95.
        resamples: number of times that the problems are drawn with replacement. Default 2000.
        seed: seed of these draws. Default 0.

    Returns:
        The lead in both classes' probabilities.

    Raises:
        TypeError, ValueError: an unknown method, or a number outside its bounds.
    """
    for name, value in (("method", method), ("other", other)):
        checks.one_of(name, value, scores.methods)
    resamples, seed = checks.whole("resamples", resamples, 1), checks.seed(seed)
    level = checks.positive("level", level)
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level!r}")
    ours, theirs = scores.methods.index(method), scores.methods.index(other)
    problems = scores.source_before.shape[1]
    drawn = torch.randint(problems, (resamples, problems), generator=torch.Generator().manual_seed(seed))

    def interval(difference: Tensor) -> Tensor:
        """[J,P] -> the mean and the interval's ends [J,3]."""
        difference = difference.cpu().double()
        means = torch.stack([row[drawn].mean(dim=1) for row in difference])
        ends = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64), dim=1)
        return torch.stack((difference.mean(dim=1), ends[0], ends[1]), dim=1)

    return EditLead(
        judges=scores.judges,
        target=interval(scores.target_after[ours] - scores.target_after[theirs]),
        source=interval(scores.source_after[theirs] - scores.source_after[ours]),
    )
