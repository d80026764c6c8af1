"""How far embeddings are from the codebook gathered at their tokens: what an import of them checks."""

import io
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels import native
from cortex_fast.kernels.reference import gather_error as reference
from cortex_fast.ops.backends import REASONS, check_impl, choose
from cortex_fast.ops.registering import in_memory, operator

if native.UNAVAILABLE is None:
    from cortex_fast.kernels.native import gather_error as native_kernel


def gather_error(embedding: Tensor, tokens: Tensor, codebook: Tensor, *, impl: str = "auto") -> Tensor:
    """Largest |E - C[token]| of each image, [B]: embedding [B,d,m,m], tokens integer [B,m,m], codebook [K,d].

    A NaN of E, or of C at one of the tokens, gives NaN. Not differentiable.
    Raises TypeError for other dtypes, or E and C of different ones, ValueError for shapes that do not fit, tokens out
    of range or mixed devices.
    """
    checks.rank("embedding", embedding, "[B, d, m, m]")
    checks.floating("embedding", embedding)
    _check(tokens, codebook)
    check_impl(impl)
    expected = (len(tokens), codebook.shape[1], *tokens.shape[1:])
    checks.same_shape("embedding", embedding, "tokens' images with codebook's channels", torch.Size(expected))
    checks.same_device(embedding=embedding, tokens=tokens, codebook=codebook)
    if embedding.dtype != codebook.dtype:
        raise TypeError(f"embedding: expected {codebook.dtype} as codebook, got {embedding.dtype}")
    return _gather_error(embedding, tokens, codebook, impl)


def gather_error_of_files(
    paths: Sequence[str], tokens: Tensor, codebook: Tensor, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`gather_error` float32 [B] of embeddings in files, one an image, and bool [B]: which of them are known.

    Known are files that are to the byte what `np.save` writes of a float32 [d,m,m]; of all others, those that cannot be
    read too, the error is NaN. codebook float32 [K,d] on the CPU. It runs on the caller's thread, and lets others run.
    Raises as `gather_error`.
    """
    _check(tokens, codebook)
    check_impl(impl)
    checks.same_device(tokens=tokens, codebook=codebook)
    if codebook.dtype != torch.float32 or codebook.device.type != "cpu":
        raise TypeError(f"codebook: expected torch.float32 on the CPU, got {codebook.dtype} on {codebook.device}")
    names = _names(paths)
    if len(names) != len(tokens):
        raise ValueError(f"paths: expected one for each of the {len(tokens)} images of tokens, got {len(names)}")
    check_tokens(tokens, codebook)
    backend = choose("gather_error", REASONS["gather_error"], impl, codebook)
    header = header_of((codebook.shape[1], *tokens.shape[1:]))
    serve = native_kernel if backend == "native" else reference
    return serve.gather_error_of_files(names, header, in_memory(tokens).int(), in_memory(codebook.detach()))


def header_of(shape: tuple[int, ...]) -> bytes:
    """The head that numpy writes before float32 of this shape."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _check(tokens: Tensor, codebook: Tensor) -> None:
    checks.rank("codebook", codebook, "[K, d]")
    checks.floating("codebook", codebook)
    checks.rank("tokens", tokens, "[B, m, m]")
    checks.integral("tokens", tokens)


def check_tokens(tokens: Tensor, codebook: Tensor) -> None:
    """What reads the tensor's values, and so stands where no tracer looks."""
    checks.in_range("tokens", tokens, min(len(codebook), 2**31))


def _names(paths: Sequence[str]) -> list[bytes]:
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str | os.PathLike) for path in paths):
        raise TypeError(f"paths: expected a list of paths, got {checks.shown(paths)}")
    names = [os.fsencode(path) for path in paths]
    if any(0 in name for name in names):
        raise ValueError("paths: expected no null character")
    return names


@operator("gather_error")
def _gather_error(embedding: Tensor, tokens: Tensor, codebook: Tensor, impl: str) -> Tensor:
    check_tokens(tokens, codebook)
    backend = choose("gather_error", REASONS["gather_error"], impl, embedding, codebook)
    serve = native_kernel if backend == "native" else reference
    return serve.gather_error(embedding, tokens.int(), codebook)


@_gather_error.register_fake
def _(embedding: Tensor, tokens: Tensor, codebook: Tensor, impl: str) -> Tensor:
    return embedding.new_empty(embedding.shape[:1])


_gather_error.constant()
