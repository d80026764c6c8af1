"""The result of an optimisation of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.data.results import read_result, save_result

_KIND = "TokenSelection"


class Change(NamedTuple):
    """One position of an edit.

    Args:
        row: of the grid, from 0.
        column: of the grid, from 0.
        before: the initial token.
        after: the selected token.
    """

    row: int
    column: int
    before: int
    after: int


@dataclass(frozen=True, eq=False)
class TokenSelection:
    """P selections, one for each problem.

    Args:
        tokens: int64 [P,h,w], the selection of largest target probability among those judged.
        initial: int64 [P,h,w], the start.
        region: bool [P,h,w], the free positions.
        target: int64 [P], the classes.
        steps: int64 [T], the numbers of steps after which the selection was judged, 0 first.
        history: int64 [T,P,h,w], the tokens at these steps.
        probability: float32 [T,P], the judge's probability of the target at these steps.
        loss: float32 [steps,P], eq. 9 at every step, with that step's noise; NaN after a problem stopped.
        taken: int64 [P], the number of steps until a problem stopped.
        best: int64 [P], the row of `steps` at which `tokens` was selected.
        fingerprint: what the selections were computed from, in plain values. Default {}.

    Raises:
        ValueError: a region of another shape than tokens.
    """

    tokens: Tensor
    initial: Tensor
    region: Tensor
    target: Tensor
    steps: Tensor
    history: Tensor
    probability: Tensor
    loss: Tensor
    taken: Tensor
    best: Tensor
    fingerprint: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.same_shape("region", self.region, "tokens", self.tokens.shape)

    @property
    def changed(self) -> Tensor:
        """Where `tokens` differs from `initial`: bool [P,h,w]."""
        return self.tokens != self.initial

    def changes(self, problem: int = 0) -> list[Change]:
        """One problem's edit, position by position.

        Args:
            problem: its index. Default 0.

        Returns:
            The changed positions, row by row.

        Raises:
            TypeError, ValueError: no such problem.
        """
        problem = checks.whole("problem", problem, 0, len(self.tokens) - 1)
        before, after = self.initial[problem], self.tokens[problem]
        positions = self.changed[problem].nonzero().tolist()
        return [Change(row, column, int(before[row, column]), int(after[row, column])) for row, column in positions]

    def strip(self, decode: Callable[[Tensor], Tensor], problem: int = 0) -> Tensor:
        """One problem's images at the judged steps.

        Args:
            decode: tokens int64 [n,h,w] -> images [n,3,H,W].
            problem: its index. Default 0.

        Returns:
            Images [T,3,H,W].

        Raises:
            TypeError, ValueError: no such problem.
        """
        problem = checks.whole("problem", problem, 0, len(self.tokens) - 1)
        return decode(self.history[:, problem])

    def problem(self, problem: int) -> "TokenSelection":
        """The selection of one problem alone, with P = 1.

        Args:
            problem: its index.

        Returns:
            The selection, with every tensor's dimension P cut to that problem.

        Raises:
            TypeError, ValueError: no such problem.
        """
        problem = checks.whole("problem", problem, 0, len(self.tokens) - 1)
        return self.select(slice(problem, problem + 1))

    def select(self, rows: slice) -> "TokenSelection":
        """The selections of some of the problems, in their order, with the same fingerprint."""
        return TokenSelection(
            tokens=self.tokens[rows],
            initial=self.initial[rows],
            region=self.region[rows],
            target=self.target[rows],
            steps=self.steps,
            history=self.history[:, rows],
            probability=self.probability[:, rows],
            loss=self.loss[:, rows],
            taken=self.taken[rows],
            best=self.best[rows],
            fingerprint=self.fingerprint,
        )

    @classmethod
    def joined(cls, selections: Sequence["TokenSelection"]) -> "TokenSelection":
        """The problems of several selections of the same steps, one after the other, without a fingerprint.

        Args:
            selections: at least one.

        Returns:
            Their problems, in order.

        Raises:
            ValueError: they were judged at different steps.
        """
        if any(not torch.equal(selection.steps, selections[0].steps) for selection in selections):
            raise ValueError("selections: expected the same judged steps, got different ones")
        by_problem = dict.fromkeys(("history", "probability", "loss"), 1)  # the other tensors' first dimension
        tensors: dict[str, Any] = {
            name: torch.cat([getattr(selection, name) for selection in selections], dim=by_problem.get(name, 0))
            for name, value in vars(selections[0]).items()
            if isinstance(value, Tensor) and name != "steps"
        }
        return cls(**tensors, steps=selections[0].steps)

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all.

        Args:
            path: the file.

        Raises:
            OSError: the file cannot be written.
        """
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        save_result(path, _KIND, tensors, {"fingerprint": self.fingerprint})

    @classmethod
    def load(cls, path: Path | str) -> "TokenSelection":
        """Read a file that `save` wrote.

        Args:
            path: the file.

        Returns:
            The selections.

        Raises:
            FileNotFoundError: the file does not exist.
            ResultFileError: the file is damaged or of another kind; the message names it.
        """
        return read_result(path, _KIND, cls)
