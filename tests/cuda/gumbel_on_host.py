"""The CUDA Gumbel kernels on the tests' stand-in for a GPU, called with tensors of the CPU."""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from cortex_fast.kernels.row_stats import RowStats


class Arguments(ctypes.Structure):
    """That of tests/cuda/host/gumbel_codebook.cpp."""

    _fields_ = [
        ("logits", ctypes.c_void_p),
        ("codebook", ctypes.c_void_p),
        ("tau", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        ("draw", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("item_ids", "gumbel", "schedule")],
        *[(name, ctypes.c_int64) for name in ("problems", "rows", "codes", "channels")],
        ("products", ctypes.c_int32),
    ]  # fmt: skip


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    assert tensor is None or tensor.is_contiguous()
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@dataclass(frozen=True)
class Problem:
    """The arguments that all calls share: logits [P,R,K], codebook [K,d], item_ids int64 [P], gumbel [P,R,K]."""

    logits: Tensor
    codebook: Tensor
    tau: float = 1.0
    seed: int = 0
    draw: int = 0
    item_ids: Tensor | None = None
    gumbel: Tensor | None = None
    schedule: Tensor | None = None
    exact: bool = True

    def ids(self) -> Tensor:
        return torch.arange(self.logits.shape[0]) if self.item_ids is None else self.item_ids

    def arguments(self, ids: Tensor) -> Arguments:
        return Arguments(
            logits=_address(self.logits),
            codebook=_address(self.codebook),
            tau=self.tau,
            seed=self.seed,
            draw=self.draw,
            item_ids=_address(ids),
            gumbel=_address(self.gumbel),
            schedule=_address(self.schedule),
            problems=self.logits.shape[0],
            rows=self.logits.shape[1],
            codes=self.logits.shape[2],
            channels=self.codebook.shape[1],
            products=0 if self.exact else 1,
        )


def poisoned(*shape: int) -> Tensor:
    return torch.full(shape, torch.nan)


class Kernels:
    """The functions of tests/cuda/host/gumbel_codebook.cpp."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def _call(self, name: str, problem: Problem, *arguments: object) -> None:
        def passed(argument: object) -> object:
            if isinstance(argument, tuple):
                return (ctypes.c_void_p * len(argument))(*(_address(tensor).value for tensor in argument))
            return _address(argument) if argument is None or isinstance(argument, Tensor) else argument

        ids = problem.ids()
        structure = problem.arguments(ids)
        assert getattr(self.library, name)(ctypes.byref(structure), *map(passed, arguments)) == 0

    def forward(self, problem: Problem, hard: bool, with_row_stats: bool) -> tuple[Tensor, Tensor, RowStats | None]:
        """Embedding [P,R,d], index [P,R] and the row statistics, or None."""
        problems, rows, _ = problem.logits.shape
        channels = problem.codebook.shape[1]
        embedding = poisoned(problems, rows, channels)
        index = torch.full((problems, rows), -1)
        if not with_row_stats:
            self._call("gumbel_forward", problem, ctypes.c_int(hard), embedding, (None, None, index, None))
            return embedding, index, None
        row_stats = RowStats(
            poisoned(problems, rows), poisoned(problems, rows), index, poisoned(problems, rows, channels)
        )
        self._call("gumbel_forward", problem, ctypes.c_int(hard), embedding, row_stats)
        return embedding, index, row_stats

    def backward(
        self, problem: Problem, upstream: Tensor, row_stats: RowStats, codebook_needed: bool = True
    ) -> tuple[Tensor, ...]:
        """The gradients of the logits, and where it is needed of a soft selection's codebook."""
        grads = [poisoned(*problem.logits.shape)]
        grads += [poisoned(*problem.codebook.shape)] if codebook_needed else []
        self._call("gumbel_backward", problem, upstream, row_stats, grads[0], grads[1] if codebook_needed else None)
        return tuple(grads)

    def step(
        self,
        problem: Problem,
        upstream: Tensor,
        row_stats: RowStats,
        *,
        lr: float = 0.0,
        moments: tuple[Tensor, Tensor] | None = None,
        step_count: int = 1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        anchor: Tensor | None = None,
        stay_penalty: float = 0.0,
    ) -> None:
        """problem.logits and the moments after one step, in place."""
        rates = [ctypes.c_double(value) for value in (*betas, eps)]
        first, second = moments or (None, None)
        self._call(
            "gumbel_step", problem, upstream, ctypes.c_double(lr), first, second, ctypes.c_int64(step_count), *rates,
            anchor, ctypes.c_float(stay_penalty), row_stats, problem.logits,
        )  # fmt: skip
