"""Every CUDA kernel on a few odd shapes, strides, both half types, NaN and empty batches, against the reference in
float64; a program of its own, for AddressSanitizer (test_sanitized.py)."""

import itertools

import torch
from torch import Tensor

from cortex_fast import ops
from cortex_fast.kernels.cuda.saliency_counts import saliency_counts
from cortex_fast.ops.token_saliency import REDUCTIONS
from tests.ops.backends_under_test import random
from tests.ops.conftest import cuda_on_cpu_tensors, running

HALVES = (torch.float16, torch.bfloat16)


def layouts(grads: Tensor) -> list[Tensor]:
    """Contiguous, channels inside, and neither."""
    wide = torch.cat([grads, grads], dim=-1)[..., ::2] if grads.shape[-1] > 1 else grads
    return [grads, grads.movedim(2, -1).contiguous().movedim(-1, 2), wide, grads.transpose(3, 4)]


def saliency() -> None:
    shapes = [(1, 1, 1, 1, 1), (2, 3, 5, 3, 7), (1, 2, 40, 4, 8), (2, 1, 260, 2, 4), (0, 2, 3, 4, 4), (1, 2, 3, 17, 17)]
    for shape, dtype in itertools.product(shapes, (torch.float32, *HALVES)):
        for grads in layouts(random(*shape, dtype=dtype)):
            for reduction in REDUCTIONS:
                got = ops.token_saliency(grads, reduction=reduction, impl="cuda")
                expected = ops.token_saliency(grads.double(), reduction=reduction, impl="reference")
                torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-7)
    grads = random(2, 3, 9, 2, 3)
    grads[1, 2, 8, 1, 2] = torch.nan
    assert ops.token_saliency(grads, impl="cuda").isnan().nonzero().tolist() == [[1, 1, 2]]


def counts() -> None:
    for shape, dtype in itertools.product(
        [(3, 3, 7), (2, 17, 17), (0, 2, 2)], (torch.uint16, torch.uint8, torch.int64)
    ):
        tsv, tokens = random(*shape).round(decimals=1), (random(*shape, seed=1).abs() * 3).to(dtype)
        labels = torch.arange(shape[0]) % 2
        for per, top_n in itertools.product(("occurrence", "image"), (1, 5)):
            options = {"top_n": min(top_n, tsv[0].numel()) if shape[0] else 1, "num_concepts": 2, "codebook_size": 20}
            got, expected = (
                ops.concept_counts(tsv, tokens, labels, per=per, impl=impl, **options) for impl in ("cuda", "reference")
            )
            assert torch.equal(got, expected)
    for grads in layouts(random(2, 3, 40, 17, 19)):
        tokens, labels = (random(2, *grads.shape[3:], seed=1).abs() * 5).to(torch.uint16), torch.tensor([1, 0])
        options = {"top_n": 30, "num_concepts": 2, "codebook_size": 40}
        got, expected = (
            ops.saliency_counts(grads, tokens, labels, impl=impl, **options)[1] for impl in ("cuda", "reference")
        )
        assert torch.equal(got, expected)
    grads, tokens, labels = torch.ones(3, 1, 1, 1, 4), torch.tensor([[[0, 9, -1, 2]]]), torch.tensor([0, 5, -1])
    _, got = saliency_counts(
        grads=grads,
        tokens=tokens.expand(3, 1, 4),
        labels=labels,
        top_n=4,
        num_concepts=1,
        codebook_size=3,
        reduction="absmax",
        per="occurrence",
    )
    assert got.tolist() == [[1, 0, 1]]  # the kernel itself leaves out what is out of range


def noise() -> None:
    for shape, dtype in itertools.product(
        [(1, 1, 1, 1), (3, 5, 3, 7), (9, 6, 4, 4), (0, 3, 2, 2)], (torch.float32, *HALVES)
    ):
        x, sigma, ids = random(*shape, dtype=dtype), torch.full(shape[:1], 0.5), torch.arange(shape[0]) // 2
        for antithetic in (False, True):
            options = {"seed": 3, "item_ids": ids, "antithetic": antithetic}
            got = ops.smoothgrad_noise(x, sigma, 3, impl="cuda", **options)
            expected = ops.smoothgrad_noise(x.double(), sigma.double(), 3, impl="reference", **options)
            torch.testing.assert_close(got.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)
        given = random(shape[0], 3, *shape[1:])
        got = ops.smoothgrad_noise(x, sigma, 3, seed=0, normals=given, impl="cuda")
        torch.testing.assert_close(
            got.float(), x[:, None].float() + 0.5 * given, rtol=torch.finfo(dtype).eps, atol=1e-5
        )


def selection() -> None:
    for (problems, rows, codes, channels), hard in itertools.product(
        [(1, 1, 1, 1), (2, 17, 70, 33), (1, 3, 1100, 17)], (True, False)
    ):
        results = []
        for impl, dtype in (("cuda", torch.float32), ("reference", torch.float64)):
            logits = random(problems, rows, codes, dtype=dtype).requires_grad_()
            codebook = random(codes, channels, seed=1, dtype=dtype).requires_grad_()
            embedding, index = ops.gumbel_codebook(logits, codebook, seed=5, tau=0.7, hard=hard, impl=impl)
            upstream = random(*embedding.shape, seed=2, dtype=dtype)
            grads = torch.autograd.grad(embedding, (logits, codebook), upstream)
            stepped, moments = logits.detach().clone(), (torch.zeros_like(logits), torch.zeros_like(logits))
            options = {
                "anchor": index,
                "stay_penalty": 0.5,
                "lr": 0.1,
                "eps": 0.05,
                "seed": 5,
                "tau": 0.7,
                "impl": impl,
            }
            ops.gumbel_codebook_step(stepped, codebook.detach(), upstream, moments=moments, **options)
            results.append([embedding.detach(), index, *grads, stepped, *moments])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(
                got.double(), expected.double(), rtol=1e-4, atol=1e-5 * max(1.0, float(expected.abs().max()))
            )


if __name__ == "__main__":
    with running(None), cuda_on_cpu_tensors():
        for check in (saliency, counts, noise, selection):
            check()
    print("all agree")
