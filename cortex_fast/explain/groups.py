"""Problems in groups that step together, each with its extractor and its judge."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.data.token_store import gather
from cortex_fast.engine import Prepared, prepare
from cortex_fast.explain.problems import Problems

Judge = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Group:
    """Problems that step together: their rows int64 [G] among all, their extractor, and who judges them."""

    rows: Tensor
    prepared: Prepared
    judge: Judge


def grouped(
    problems: Problems, *, bytes_of_row: int, copies: int, passes: int, memory: int, judge: Judge | None
) -> list[Group]:
    """The problems in groups of those alike, whose variables, `bytes_of_row` for each free position, fit into `memory`
    bytes together with the activations of `copies` images. passes: how often a problem goes through its extractor.
    """
    memory = checks.whole("memory", memory, 1)
    sample, groups = gather(problems.start[:1], problems.codebook), []
    each = [
        prepare(extractor, sample, copies=passes * int((problems.number == number).sum()))
        for number, extractor in enumerate(problems.extractors)
    ]
    judges = [checked_judge(judge or by_extractor(one, problems.codebook)) for one in each]
    for number, rows in problems.alike():
        bytes_of_problem = bytes_of_row * int(problems.region[rows[0]].sum()) + copies * each[number].bytes_of_copy
        size = max(1, memory // bytes_of_problem)
        groups += [Group(part, each[number], judges[number]) for part in rows.split(size)]
    return groups


def recut(groups: list[Group], sizes: list[int]) -> list[Group]:
    """The same problems in groups of these sizes."""
    rows = torch.cat([group.rows for group in groups]).split(sizes)
    whose = {int(row): group for group in groups for row in group.rows}
    return [dataclasses.replace(whose[int(part[0])], rows=part) for part in rows]


def by_extractor(extractor: Prepared, codebook: Tensor) -> Judge:
    """The extractor's own probability of the target."""

    @torch.no_grad()
    def judge(tokens: Tensor, target: Tensor) -> Tensor:
        probability = extractor.logits(gather(tokens, codebook).contiguous()).softmax(dim=1)
        return probability.gather(1, target[:, None])[:, 0].float()

    return judge


def checked_judge(judge: Judge) -> Judge:
    """A judge whose answers are looked at, and that keeps no graph."""

    @torch.no_grad()
    def judged(tokens: Tensor, target: Tensor) -> Tensor:
        probability = judge(tokens, target)
        if not isinstance(probability, Tensor) or probability.shape != target.shape:
            got = list(probability.shape) if isinstance(probability, Tensor) else type(probability).__name__
            raise ValueError(f"judge: expected probabilities of shape {list(target.shape)}, got {got}")
        return probability.detach().float()

    return judged
