"""Triton kernels on tensors of a GPU, for what tests with tensors of the CPU cannot show; and how those reach one."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from cortex_fast.ops import (
    concept_counts,
    gumbel_codebook,
    gumbel_codebook_step,
    gumbel_codebook_with_row_stats,
    nearest_code,
    random_stream,
    smoothgrad_noise,
    token_saliency,
)
from tests.ops.backends_under_test import WHY_NO_TRITON, random

if WHY_NO_TRITON is not None:
    pytest.skip(WHY_NO_TRITON, allow_module_level=True)

from cortex_fast.kernels.triton import token_saliency as kernel
from tests.ops.on_gpu import launch_on

HERE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(HERE == "cpu", reason="no GPU here")


@triton.jit
def _double(x, out, stride, COUNT: tl.constexpr):
    index = tl.arange(0, COUNT)
    tl.store(out + index, 2 * tl.load(x + index * stride))


def test_memory_goes_there_and_back() -> None:
    x, out = torch.arange(40.0), torch.full((20,), -1.0)
    launch_on(HERE, _double, (1,), x, x[3::2], out[4:], 2, COUNT=8)
    assert out.tolist() == [-1.0] * 4 + [2.0 * i for i in range(3, 19, 2)] + [-1.0] * 8
    launch_on(HERE, _double, (1,), x, x, x[8:], 1, COUNT=8)  # one storage, read and written
    assert x[8:16].tolist() == [2.0 * i for i in range(8)]


def results(device: str, dtype: torch.dtype, impl: str) -> list[Tensor]:
    grads = random(3, 5, 40, 16, 16, dtype=dtype).to(device)
    x, ids = grads[:, 0], torch.tensor([4, 4, 9], device=device)
    tokens = torch.arange(256, device=device).view(1, 16, 16).expand(3, 16, 16)
    options = {"top_n": 20, "num_concepts": 10, "codebook_size": 256, "impl": impl}
    return [
        token_saliency(grads, impl=impl),
        token_saliency(grads.movedim(2, -1).contiguous().movedim(-1, 2), impl=impl),
        smoothgrad_noise(x, torch.ones(3, device=device), 4, seed=1, item_ids=ids, antithetic=True, impl=impl),
        concept_counts(grads[:, 0, 0].float(), tokens, ids, **options),
        nearest_code(x.flatten(2).movedim(1, 2), random(700, 40, seed=1, dtype=dtype).to(device), impl=impl),
        random_stream.gumbel(5, ids, ids, 3, 1000, impl=impl),
    ]


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_agrees_with_the_reference_on_the_cpu(dtype: torch.dtype) -> None:
    for got, expected in zip(results("cuda", dtype, "auto"), results("cpu", dtype, "reference"), strict=True):
        assert got.device.type == "cuda"
        torch.testing.assert_close(got.cpu(), expected)


@needs_gpu
def test_runs_in_a_cuda_graph_on_any_stream() -> None:
    grads = random(3, 5, 40, 16, 16).cuda()
    kernel.token_saliency(grads=grads, reduction="absmax")  # compiled before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernel.token_saliency(grads=grads, reduction="absmax")
    grads.mul_(2)
    graph.replay()
    assert torch.equal(out, kernel.token_saliency(grads=grads, reduction="absmax"))


def gumbel_results(device: str, impl: str) -> list[Tensor]:
    logits, codebook = random(2, 40, 3000).to(device), random(3000, 70, seed=1).to(device).requires_grad_()
    upstream, anchor = random(2, 40, 70, seed=2).to(device), torch.arange(80, device=device).view(2, 40)
    ids, moments = torch.tensor([3, 2**32 - 1], device=device), (torch.zeros_like(logits), torch.zeros_like(logits))
    noise = {"tau": 0.7, "seed": 5, "draw": 2**32 - 1, "item_ids": ids, "impl": impl}
    leaf = logits.clone().requires_grad_()
    tensors = []
    for hard in (True, False):
        embedding, index = gumbel_codebook(leaf, codebook, hard=hard, **noise)
        tensors += [embedding.detach(), index, *torch.autograd.grad(embedding, (leaf, codebook), upstream)]
    gumbel_codebook_step(
        logits, codebook.detach(), upstream, lr=0.1, eps=0.05, moments=moments, anchor=anchor, stay_penalty=0.5, **noise
    )
    return [*tensors, logits, *moments]


@needs_gpu
def test_gumbel_agrees_with_the_reference_on_the_cpu() -> None:
    for got, expected in zip(gumbel_results("cuda", "auto"), gumbel_results("cpu", "reference"), strict=True):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@needs_gpu
def test_a_graph_of_selection_steps_reads_its_schedule() -> None:
    """Every replay takes its temperature, draw, rate and step count, and steps as calls with these numbers do."""
    logits, codebook = random(1, 16, 3000).cuda(), random(3000, 64, seed=1).cuda()
    upstream = random(1, 16, 64, seed=2).cuda()
    schedules = torch.tensor([[2.0 / step, 7 * step, 0.1 / step, step] for step in range(1, 7)], dtype=torch.float64)

    def stepped(
        schedule: Tensor | None, numbers: dict[str, float], now: Tensor, moments: tuple[Tensor, Tensor]
    ) -> None:
        options = {name: numbers[name] for name in ("tau", "draw") if name in numbers}
        _, _, row_stats = gumbel_codebook_with_row_stats(now, codebook, schedule=schedule, **options)
        gumbel_codebook_step(
            now, codebook, upstream, schedule=schedule, row_stats=row_stats, moments=moments, **numbers
        )

    replayed, called = logits.clone(), logits.clone()
    replayed_moments, called_moments = ((torch.zeros_like(logits), torch.zeros_like(logits)) for _ in range(2))
    schedule = schedules[0].cuda()
    stepped(schedule, {}, replayed, replayed_moments)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stepped(schedule, {}, replayed, replayed_moments)
    for row in schedules[1:]:
        schedule.copy_(row)
        graph.replay()
    for tau, draw, lr, step in schedules.tolist():
        stepped(None, {"tau": tau, "draw": int(draw), "lr": lr, "step_count": int(step)}, called, called_moments)
    torch.testing.assert_close(replayed, called, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(replayed_moments, called_moments)
