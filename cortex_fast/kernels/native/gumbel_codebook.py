"""Gumbel-Softmax selection of codebook rows and its backward pass, by csrc/cpu/gumbel_codebook*.cpp. In float32."""

from typing import Any

import torch
from torch import Tensor

from cortex_fast import _native
from cortex_fast.kernels import native


def _arguments(
    logits: Tensor, codebook: Tensor, item_ids: Tensor, gumbel: Tensor | None, tau: float, seed: int, draw: int
) -> tuple[Any, list[Tensor]]:
    """The core's arguments, and the tensors that must live as long as they do."""
    logits, codebook, item_ids = (tensor.contiguous() for tensor in (logits.float(), codebook.float(), item_ids))
    gumbel = None if gumbel is None else gumbel.float().contiguous()
    args = _native.GumbelCodebook(
        logits=logits.data_ptr(),
        codebook=codebook.data_ptr(),
        gumbel=0 if gumbel is None else gumbel.data_ptr(),
        item_ids=item_ids.data_ptr(),
        sizes=(*logits.shape, codebook.shape[1]),
        tau=tau,
        seed=seed,
        draw=draw,
    )
    return args, [tensor for tensor in (logits, codebook, item_ids, gumbel) if tensor is not None]


def forward(
    logits: Tensor,
    codebook: Tensor,
    item_ids: Tensor,
    gumbel: Tensor | None,
    tau: float,
    seed: int,
    draw: int,
    hard: bool,
) -> tuple[Tensor, Tensor]:
    """logits [P,R,K], codebook [K,d] -> embedding [P,R,d] in the codebook's dtype, index int64 [P,R]."""
    args, alive = _arguments(logits, codebook, item_ids, gumbel, tau, seed, draw)
    problems, rows, _ = logits.shape
    embedding = native.empty((problems, rows, codebook.shape[1]))
    index = native.empty((problems, rows), torch.int64)
    _native.gumbel_codebook(args, hard=hard, embedding=embedding.data_ptr(), index=index.data_ptr(), **native.run())
    del alive
    return embedding.to(codebook.dtype), index


def backward(
    upstream: Tensor,
    logits: Tensor,
    codebook: Tensor,
    item_ids: Tensor,
    gumbel: Tensor | None,
    index: Tensor,
    tau: float,
    seed: int,
    draw: int,
    hard: bool,
    codebook_needed: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits [P,R,K] and the codebook [K,d] ([0,d] where it is not needed) from dE [P,R,d]."""
    args, alive = _arguments(logits, codebook, item_ids, gumbel, tau, seed, draw)
    upstream, index = upstream.float().contiguous(), index.contiguous()
    codes, channels = codebook.shape
    grad_logits = native.empty(logits.shape)
    grad_codebook = native.empty((codes if codebook_needed else 0, channels))
    _native.gumbel_codebook_backward(
        args,
        upstream=upstream.data_ptr(),
        index=index.data_ptr(),
        hard=hard,
        grad_logits=grad_logits.data_ptr(),
        grad_codebook=grad_codebook.data_ptr() if codebook_needed else 0,
        **native.run(),
    )
    del alive
    return grad_logits.to(logits.dtype), grad_codebook.to(codebook.dtype)


def step(
    logits: Tensor,
    codebook: Tensor,
    upstream: Tensor,
    item_ids: Tensor,
    gumbel: Tensor | None,
    tau: float,
    seed: int,
    draw: int,
    moments: tuple[Tensor, Tensor] | None,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    count: int,
    anchor: Tensor | None = None,
    stay_penalty: float = 0.0,
) -> None:
    """One step of Adam (moments) or gradient descent (None) on contiguous logits [P,R,K], in place."""
    args, alive = _arguments(logits, codebook, item_ids, gumbel, tau, seed, draw)
    upstream = upstream.float().contiguous()
    anchor = None if anchor is None else anchor.contiguous()
    _native.gumbel_codebook_step(
        args,
        upstream=upstream.data_ptr(),
        logits=logits.data_ptr(),
        moments=(0, 0) if moments is None else tuple(moment.data_ptr() for moment in moments),
        lr=lr,
        betas=betas,
        eps=eps,
        step=count,
        anchor=0 if anchor is None else anchor.data_ptr(),
        stay_penalty=stay_penalty,
        **native.run(),
    )
    del alive
