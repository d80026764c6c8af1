"""Gumbel-Softmax selection of codebook rows, its backward pass and its fused step, by csrc/cuda/gumbel_codebook*.cu."""

from typing import Any

import torch
from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import cuda
from cortex_fast.kernels.reference import gumbel_codebook as reference

__all__ = ["backward", "forward", "step"]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _arguments(
    logits: Tensor, codebook: Tensor, item_ids: Tensor, gumbel: Tensor | None, tau: float, seed: int, draw: int
) -> tuple[Any, list[Tensor]]:
    """The library's arguments, and the tensors that must outlive the call."""
    logits, codebook, item_ids = (tensor.contiguous() for tensor in (logits.float(), codebook.float(), item_ids))
    gumbel = None if gumbel is None else gumbel.float().contiguous()
    args = _native.GumbelCodebook(
        logits=logits.data_ptr(),
        codebook=codebook.data_ptr(),
        gumbel=_address(gumbel),
        item_ids=item_ids.data_ptr(),
        sizes=(*logits.shape, codebook.shape[1]),
        tau=tau,
        seed=seed,
        draw=draw,
    )
    return args, [tensor for tensor in (logits, codebook, item_ids, gumbel) if tensor is not None]


def _call(kind: str, logits: Tensor, codebook: Tensor, schedule: Tensor | None, /, **arguments: Any) -> None:
    """gumbel_codebook<kind> with its scratch memory; its products as exact as torch is set to make its own."""
    problems, rows, codes = logits.shape
    sizes = {"problems": problems, "rows": rows, "codes": codes, "channels": codebook.shape[1]}
    if kind == "":
        size = cuda.LIBRARY.gumbel_codebook_scratch(**sizes, keep=arguments["kept"] != 0)
    else:
        size = cuda.LIBRARY.gumbel_codebook_backward_scratch(**sizes)
    scratch = cuda.scratch(size, logits)
    cuda.call(
        f"gumbel_codebook{kind}",
        logits,
        schedule=_address(schedule),
        exact=torch.get_float32_matmul_precision() == "highest",
        scratch=scratch.data_ptr(),
        **arguments,
    )


def forward(
    logits: Tensor,
    codebook: Tensor,
    item_ids: Tensor,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    tau: float,
    seed: int,
    draw: int,
    hard: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """logits [P,R,K], codebook [K,d] -> embedding [P,R,d] in the codebook's dtype, index int64 [P,R], and where `keep`
    is true, or the selection soft, float32 [P,R,3+d], else [0]: what the Triton kernels keep."""
    args, alive = _arguments(logits, codebook, item_ids, gumbel, tau, seed, draw)
    embedding, index, kept = reference.empty_results(logits, codebook.float(), keep or not hard)
    _call(
        "",
        logits,
        codebook,
        schedule,
        args=args,
        hard=hard,
        embedding=embedding.data_ptr(),
        index=index.data_ptr(),
        kept=kept.data_ptr() if kept.ndim == 3 else 0,
    )
    del alive
    return embedding.to(codebook.dtype), index, kept


def backward(
    upstream: Tensor,
    logits: Tensor,
    codebook: Tensor,
    item_ids: Tensor,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    index: Tensor,
    kept: Tensor,
    tau: float,
    seed: int,
    draw: int,
    hard: bool,
    codebook_needed: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits [P,R,K] and the codebook [K,d] ([0,d] where it is not needed) from dE [P,R,d]. kept:
    what the forward pass kept."""
    args, alive = _arguments(logits, codebook, item_ids, gumbel, tau, seed, draw)
    upstream, kept = upstream.float().contiguous(), kept.contiguous()
    codes, channels = codebook.shape
    grad_logits = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    shape = (codes if codebook_needed else 0, channels)
    grad_codebook = torch.empty(shape, dtype=torch.float32, device=logits.device)
    _call(
        "_backward",
        logits,
        codebook,
        schedule,
        args=args,
        upstream=upstream.data_ptr(),
        kept=kept.data_ptr(),
        grad_logits=grad_logits.data_ptr(),
        grad_codebook=grad_codebook.data_ptr() if codebook_needed and not hard else 0,
    )
    del alive
    if codebook_needed and hard:  # sorted by code and added in order: torch has that
        grad_codebook.copy_(reference.sum_by_code(upstream.flatten(0, 1), index.flatten(), codes))
    return grad_logits.to(logits.dtype), grad_codebook.to(codebook.dtype)


def step(
    logits: Tensor,
    codebook: Tensor,
    upstream: Tensor,
    item_ids: Tensor,
    gumbel: Tensor | None,
    schedule: Tensor | None,
    kept: Tensor | None,
    tau: float,
    seed: int,
    draw: int,
    moments: tuple[Tensor, Tensor] | None,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    number: int,
    anchor: Tensor | None,
    stay_penalty: float,
) -> None:
    """One step of Adam (moments) or gradient descent (None) on contiguous logits [P,R,K], in place."""
    if kept is None or not kept.numel():
        _, _, kept = forward(logits, codebook, item_ids, gumbel, schedule, tau, seed, draw, hard=True, keep=True)
    args, alive = _arguments(logits, codebook, item_ids, gumbel, tau, seed, draw)
    upstream, kept = upstream.float().contiguous(), kept.contiguous()
    anchor = None if anchor is None else anchor.contiguous()
    _call(
        "_step",
        logits,
        codebook,
        schedule,
        args=args,
        upstream=upstream.data_ptr(),
        kept=kept.data_ptr(),
        logits=logits.data_ptr(),
        moments=(0, 0) if moments is None else tuple(map(_address, moments)),
        lr=lr,
        betas=betas,
        eps=eps,
        step=number,
        anchor=_address(anchor),
        stay_penalty=stay_penalty,
    )
    del alive
