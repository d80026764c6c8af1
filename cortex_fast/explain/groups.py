"""Problems in groups that step together, each with its extractor and its judge."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cortex_fast import checks
from cortex_fast.data.token_store import gather
from cortex_fast.engine import Prepared, logits_of, prepare
from cortex_fast.explain.problems import Problems

Judge = Callable[[Tensor, Tensor], Tensor]  # (tokens int64 [P,h,w], target int64 [P]) -> probability [P]


@dataclass(frozen=True, eq=False)
class Group:
    """Problems that step together: their rows int64 [G] among all problems, their extractor and their judge."""

    rows: Tensor
    prepared: Prepared
    judge: Judge


def grouped(
    problems: Problems, *, bytes_of_row: int, copies: int, passes: int, memory: int, judge: Judge | None
) -> list[Group]:
    """Divide the problems into groups of one extractor and one region that fit into memory.

    Args:
        problems: all problems.
        bytes_of_row: bytes of the variables of one free position.
        copies: number of images of one problem whose activations are held at once.
        passes: number of passes of one problem through its extractor.
        memory: bytes for a group's variables and activations.
        judge: the judge of all problems. None: each problem's extractor.

    Returns:
        The groups, of at least one problem each.

    Raises:
        TypeError, ValueError: memory that is not a whole number of at least 1.
    """
    memory = checks.whole("memory", memory, 1)
    sample, groups = gather(problems.start[:1], problems.codebook), []
    prepared = [
        prepare(extractor, sample, copies=passes * int((problems.extractor_index == index).sum()))
        for index, extractor in enumerate(problems.extractors)
    ]
    judges = [checked_judge(judge or extractor_judge(extractor, problems.codebook)) for extractor in prepared]
    for index, rows in problems.alike():
        positions = int(problems.region[rows[0]].sum())
        bytes_of_problem = bytes_of_row * positions + copies * prepared[index].bytes_of_copy
        size = max(1, memory // bytes_of_problem)
        groups += [Group(part, prepared[index], judges[index]) for part in rows.split(size)]
    return groups


def regrouped(groups: list[Group], sizes: list[int]) -> list[Group]:
    """The same problems in groups of the given sizes."""
    rows = torch.cat([group.rows for group in groups]).split(sizes)
    group_of_row = {int(row): group for group in groups for row in group.rows}
    return [dataclasses.replace(group_of_row[int(part[0])], rows=part) for part in rows]


def extractor_judge(extractor: nn.Module | Prepared, codebook: Tensor) -> Judge:
    """A judge that answers with the extractor's probability of the target."""

    @torch.no_grad()
    def judge(tokens: Tensor, target: Tensor) -> Tensor:
        probability = logits_of(extractor, gather(tokens, codebook).contiguous()).softmax(dim=1)
        return probability.gather(1, target[:, None])[:, 0].float()

    return judge


def checked_judge(judge: Judge) -> Judge:
    """The judge with its answers checked, as float32 and without an autograd graph."""

    @torch.no_grad()
    def checked(tokens: Tensor, target: Tensor) -> Tensor:
        probability = judge(tokens, target)
        if not isinstance(probability, Tensor) or probability.shape != target.shape:
            got = list(probability.shape) if isinstance(probability, Tensor) else type(probability).__name__
            raise ValueError(f"judge: expected probabilities of shape {list(target.shape)}, got {got}")
        return probability.detach().float()

    return checked
