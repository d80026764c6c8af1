"""The engine on a GPU against the CPU. Skipped without a GPU; tools/gpu_check.sh runs them on one."""

import pytest
import torch

from cortex_fast import Schedule, ops
from cortex_fast.engine import NoiseStream, prepare
from cortex_fast.explain import select_tokens, smoothgrad, token_saliency
from cortex_fast.extractors import NAMES, build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def problem(kind: str) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    extractor = build(kind, num_classes=7, in_channels=16, width=32, grid=8).eval()
    return extractor, torch.randn(5, 16, 8, 8), torch.arange(5)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("noise", ["shared", "independent"])
def test_smoothgrad_equals_the_cpus(kind, noise):
    extractor, x, target = problem(kind)
    expected = smoothgrad(extractor, x, target, num_samples=6, noise=noise)
    got = smoothgrad(extractor.cuda(), x.cuda(), target.cuda(), num_samples=6, noise=noise)
    # convolutions on a GPU may round to tf32, which switches single ReLUs
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", NAMES)
def test_replayed_passes_do_not_depend_on_their_number(kind):
    """Small passes are replayed from one CUDA graph, one large pass is captured and launched once."""
    extractor, x, target = problem(kind)
    extractor, x, target = extractor.cuda(), x.cuda(), target.cuda()
    whole = token_saliency(extractor, x, target, num_samples=8)
    torch.testing.assert_close(
        token_saliency(extractor, x, target, num_samples=8, memory=1), whole, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_keeps_the_top_tokens(precision):
    extractor, x, target = problem("ce")
    extractor, x, target = extractor.cuda(), x.cuda(), target.cuda()
    stream = NoiseStream(torch.full((5,), 0.5, device="cuda"), torch.arange(5, device="cuda"), 0, True, False)
    exact = prepare(extractor, x).token_saliency(x, target, stream)
    rough = prepare(extractor, x, precision=precision).token_saliency(x, target, stream)
    pairs = zip(exact.flatten(1).topk(16).indices, rough.flatten(1).topk(16).indices, strict=True)
    shared = [len(set(a.tolist()) & set(b.tolist())) for a, b in pairs]
    assert min(shared) >= 12


@pytest.mark.parametrize(
    "settings",
    [{}, {"draws": 2, "stay_penalty": 0.1}, {"patience": 3}, {"optimizer": "sgd", "tau": Schedule(2.0, 0.5)}],
)
def test_token_selection_equals_the_cpus(settings):
    """Twelve steps: from the fifth on they are one CUDA graph, captured again where a problem stops."""
    extractor, _, target = problem("ce")
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(50, 16, generator=generator)
    arguments = {"region": (2, 2, 5, 5), "steps": 12, "lr": 0.2, "judge_every": 4} | settings
    tokens = torch.randint(50, (5, 8, 8), generator=generator)
    expected = select_tokens(extractor, codebook, target, tokens=tokens, **arguments)
    got = select_tokens(extractor.cuda(), codebook.cuda(), target.cuda(), tokens=tokens.cuda(), **arguments)
    # a last bit may change a selection, and convolutions on a GPU may round to tf32
    torch.testing.assert_close(got.loss.cpu(), expected.loss, rtol=1e-2, atol=1e-2, equal_nan=True)


def test_operators_equal_the_cpus():
    x, sigma = torch.randn(3, 6, 4, 4), torch.rand(3)
    noisy = ops.smoothgrad_noise(x, sigma, 4, seed=1)
    torch.testing.assert_close(
        ops.smoothgrad_noise(x.cuda(), sigma.cuda(), 4, seed=1).cpu(), noisy, rtol=1e-5, atol=1e-5
    )
    logits, codebook = torch.randn(2, 5, 301), torch.randn(301, 8)
    embedding, index = ops.gumbel_codebook(logits, codebook, seed=2)
    on_gpu, index_on_gpu = ops.gumbel_codebook(logits.cuda(), codebook.cuda(), seed=2)
    assert torch.equal(index_on_gpu.cpu(), index)
    assert torch.equal(on_gpu.cpu(), embedding)
