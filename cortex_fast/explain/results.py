"""What an optimisation of tokens found."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from cortex_fast import checks
from cortex_fast.data.results import read_result, save_result

_KIND = "TokenSelection"


class Change(NamedTuple):
    """One position of an edit: its place on the grid, and its token before and after."""

    row: int
    column: int
    before: int
    after: int


@dataclass(frozen=True, eq=False)
class TokenSelection:
    """P selections, one for each problem.

    tokens int64 [P,h,w]: the selection of largest target probability among those judged. initial int64 [P,h,w]: the
    start. region bool [P,h,w]: the free positions. target int64 [P]. steps int64 [T]: when the selection was judged, 0
    first; history int64 [T,P,h,w] and probability float32 [T,P]: the tokens then, and the judge's probability of the
    target. loss float32 [steps,P]: eq. 9 at every step, with that step's noise; NaN after a problem stopped. taken
    int64 [P]: the steps until then. best int64 [P]: the row of `steps` that `tokens` is.
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
        """One problem's edit, position by position."""
        problem = checks.whole("problem", problem, 0, len(self.tokens) - 1)
        before, after = self.initial[problem], self.tokens[problem]
        places = self.changed[problem].nonzero().tolist()
        return [Change(row, column, int(before[row, column]), int(after[row, column])) for row, column in places]

    def strip(self, decode: Callable[[Tensor], Tensor], problem: int = 0) -> Tensor:
        """One problem's pictures [T,3,H,W] at the judged steps, of decode: tokens [n,h,w] -> images [n,3,H,W]."""
        problem = checks.whole("problem", problem, 0, len(self.tokens) - 1)
        return decode(self.history[:, problem])

    def problem(self, problem: int) -> "TokenSelection":
        """The selection of one problem alone, with P = 1."""
        problem = checks.whole("problem", problem, 0, len(self.tokens) - 1)
        one = slice(problem, problem + 1)
        return TokenSelection(
            tokens=self.tokens[one],
            initial=self.initial[one],
            region=self.region[one],
            target=self.target[one],
            steps=self.steps,
            history=self.history[:, one],
            probability=self.probability[:, one],
            loss=self.loss[:, one],
            taken=self.taken[one],
            best=self.best[one],
            fingerprint=self.fingerprint,
        )

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        save_result(path, _KIND, tensors, {"fingerprint": self.fingerprint})

    @classmethod
    def load(cls, path: Path | str) -> "TokenSelection":
        """Read what `save` wrote. Raises ResultFileError for anything else, naming the file."""
        return read_result(path, _KIND, cls)
