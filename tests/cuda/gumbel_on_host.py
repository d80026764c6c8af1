"""The CUDA Gumbel kernels on the tests' stand-in for a GPU, called as cortex_fast/kernels/native calls the CPU's."""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor


class Problem(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("logits", "codebook", "gumbel", "item_ids", "schedule")],
        *[(name, ctypes.c_int64) for name in ("problems", "rows", "codes", "channels")],
        ("seed", ctypes.c_uint64),
        ("draw", ctypes.c_int64),
        ("tau", ctypes.c_float),
        ("products", ctypes.c_int32),
    ]  # fmt: skip


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    assert tensor is None or tensor.is_contiguous()
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@dataclass(frozen=True)
class Given:
    """The arguments that all calls share: logits [P,R,K], codebook [K,d], gumbel [P,R,K], item_ids int64 [P]."""

    logits: Tensor
    codebook: Tensor
    gumbel: Tensor | None = None
    item_ids: Tensor | None = None
    schedule: Tensor | None = None
    tau: float = 1.0
    seed: int = 0
    draw: int = 0
    exact: bool = True

    def ids(self) -> Tensor:
        return torch.arange(self.logits.shape[0]) if self.item_ids is None else self.item_ids

    def poisoned(self, *shape: int) -> Tensor:
        return torch.full(shape, torch.nan)


class Kernels:
    """The functions of tests/cuda/host/gumbel_codebook.cpp."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def _problem(self, given: Given, ids: Tensor) -> Problem:
        sizes = (*given.logits.shape, given.codebook.shape[1])
        addresses = map(_address, (given.logits, given.codebook, given.gumbel, ids, given.schedule))
        numbers = (given.seed, given.draw, given.tau, 0 if given.exact else 1)
        return Problem(*addresses, *sizes, *numbers)

    def _call(self, name: str, given: Given, *arguments: object) -> None:
        ids = given.ids()
        problem = self._problem(given, ids)
        passed = [_address(one) if one is None or isinstance(one, Tensor) else one for one in arguments]
        assert getattr(self.library, name)(ctypes.byref(problem), *passed) == 0

    def forward(self, given: Given, hard: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embedding [P,R,d], index [P,R] and kept [P,R,3+d], or None."""
        problems, rows, _ = given.logits.shape
        channels = given.codebook.shape[1]
        embedding = given.poisoned(problems, rows, channels)
        index = torch.full((problems, rows), -1)
        kept = given.poisoned(problems, rows, 3 + channels) if keep else None
        self._call("gumbel_forward", given, ctypes.c_int(hard), embedding, index, kept)
        return embedding, index, kept

    def backward(
        self, given: Given, upstream: Tensor, kept: Tensor, codebook_needed: bool = True
    ) -> tuple[Tensor, ...]:
        """The gradients of the logits, and where it is needed of a soft selection's codebook."""
        grads = [given.poisoned(*given.logits.shape)]
        grads += [given.poisoned(*given.codebook.shape)] if codebook_needed else []
        self._call("gumbel_backward", given, upstream, kept, grads[0], grads[1] if codebook_needed else None)
        return tuple(grads)

    def step(
        self,
        given: Given,
        upstream: Tensor,
        kept: Tensor,
        moments: tuple[Tensor, Tensor] | None,
        lr: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        number: int = 1,
        anchor: Tensor | None = None,
        stay_penalty: float = 0.0,
    ) -> None:
        """given.logits and the moments after one step, in place."""
        first, second = moments or (None, None)
        numbers = [ctypes.c_double(value) for value in (lr, *betas, eps)]
        self._call(
            "gumbel_step", given, upstream, kept, given.logits, first, second, *numbers, ctypes.c_int64(number), anchor,
            ctypes.c_float(stay_penalty),
        )  # fmt: skip
