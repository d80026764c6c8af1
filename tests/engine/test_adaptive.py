"""num_samples='auto' stops by its rule, with the mean over the samples taken, whatever else is in the batch."""

import pytest
import torch
from torch import Tensor, nn

from cortex_fast import smoothgrad, token_saliency, top_tokens
from cortex_fast.engine import NoiseStream, prepare
from cortex_fast.engine import adaptive as engine
from cortex_fast.engine.adaptive import MAX_SAMPLES, ROUND_SAMPLES, SETTLED_ROUNDS, settled_gradients
from cortex_fast.ops.token_saliency import REDUCTIONS
from tests.engine.user_modules import CHANNELS, GRID, embedding, relative
from tests.known_extractors import Convolutional, Cubic, Linear, tiny

FIRST_STOP = ROUND_SAMPLES * (SETTLED_ROUNDS + 1)  # the first round has nothing to compare with


def stream_of(x: Tensor, *, shared: bool = True, antithetic: bool = False, sigma: float = 0.4) -> NoiseStream:
    return NoiseStream(torch.full((len(x),), sigma), torch.arange(len(x)), 3, shared, antithetic)


def settle(extractor, x: Tensor, target: Tensor, stream: NoiseStream, *, top_n: int = 5, memory: int = 1 << 30):
    """Mean gradients and samples of each image."""
    mean, samples = torch.full_like(x, torch.nan), torch.zeros(len(x), dtype=torch.int64)
    parts = settled_gradients(prepare(extractor, x), x, target, stream, top_n=top_n, reduction="absmax", memory=memory)
    for images, part, count in parts:
        assert not samples[images].any()  # each image once
        mean[images], samples[images] = part, count
    return mean, samples


def test_the_documented_rule_is_the_rule():
    assert (ROUND_SAMPLES, SETTLED_ROUNDS, MAX_SAMPLES) == (20, 3, 1000)
    for word in ("every 20 samples", "three comparisons in a row", "after 1000 samples"):
        assert word in " ".join(smoothgrad.__doc__.split())


def test_a_settled_image_stops_after_the_fourth_round():
    x, target = embedding(), torch.tensor([0, 1, 2])
    extractor = Linear(CHANNELS, GRID, 4).eval()
    mean, samples = settle(extractor, x, target, stream_of(x))
    assert samples.tolist() == [FIRST_STOP] * 3
    torch.testing.assert_close(mean, extractor.weight.detach()[target].view_as(x))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("antithetic", [True, False])
def test_the_mean_is_over_the_reported_samples(shared, antithetic):
    x, target = embedding(4), torch.arange(4)
    extractor, stream = Convolutional(CHANNELS, 4).eval(), stream_of(x, shared=shared, antithetic=antithetic)
    mean, samples = settle(extractor, x, target, stream)
    prepared = prepare(extractor, x)
    assert samples.min() >= FIRST_STOP and samples.max() <= MAX_SAMPLES and not (samples % ROUND_SAMPLES).any()
    for image, count in enumerate(samples.tolist()):
        plain = prepared.smoothgrad(x, target, stream, num_samples=count)[image]
        assert relative(mean[image], plain) < 1e-5


@pytest.mark.parametrize("shared", [True, False])
def test_it_stops_after_three_comparisons_without_change(shared):
    """The rule written out, round by round, from plain means over the samples so far."""
    x, target = embedding(6), torch.arange(6) % 4
    extractor, stream = Convolutional(CHANNELS, 4).eval(), stream_of(x, shared=shared, sigma=1.0)
    _, samples = settle(extractor, x, target, stream)
    prepared = prepare(extractor, x)
    rounds = []
    for count in range(ROUND_SAMPLES, int(samples.max()) + 1, ROUND_SAMPLES):
        tsv = prepared.token_saliency(x, target, stream, num_samples=count)
        rounds.append([set(top.tolist()) for top in tsv.flatten(1).topk(5).indices])
    for image, count in enumerate(samples.tolist()):
        same, stopped = 0, None
        for number in range(1, len(rounds)):
            same = same + 1 if rounds[number][image] == rounds[number - 1][image] else 0
            if same == SETTLED_ROUNDS:
                stopped = ROUND_SAMPLES * (number + 1)
                break
        assert count == stopped
    assert len(set(samples.tolist())) > 1  # the images differ, or this would show nothing


def test_an_image_that_never_settles_stops_at_the_last_sample(monkeypatch):
    monkeypatch.setattr(engine, "SETTLED_ROUNDS", 1 << 30)
    x, target = embedding(2), torch.tensor([0, 1])
    extractor = Cubic(CHANNELS, 3).eval()
    mean, samples = settle(extractor, x, target, stream_of(x))
    assert samples.tolist() == [MAX_SAMPLES] * 2
    assert relative(mean, prepare(extractor, x).smoothgrad(x, target, stream_of(x), num_samples=MAX_SAMPLES)) < 1e-5


@pytest.mark.parametrize("noise", ["shared", "independent"])
@pytest.mark.parametrize("kind", ["re", "convolutional"])
def test_the_rest_of_the_batch_does_not_matter(noise, kind):
    x, target = embedding(5), torch.arange(5) % 4
    extractor = tiny("re") if kind == "re" else Convolutional(CHANNELS, 4).eval()
    options = {"num_samples": "auto", "noise": noise, "top_n": 5}
    whole = smoothgrad(extractor, x, target, **options)
    for images in ([3], [4, 0]):
        part = smoothgrad(extractor, x[images], target[images], item_ids=torch.tensor(images), **options)
        assert relative(part, whole[images]) < 1e-5


def test_the_memory_does_not_change_the_result():
    x, target = embedding(), torch.arange(3)
    extractor = Convolutional(CHANNELS, 4).eval()
    means, samples = zip(*(settle(extractor, x, target, stream_of(x), memory=m) for m in (1, 1 << 30)), strict=True)
    assert torch.equal(*samples) and relative(*means) < 1e-5


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_top_tokens_of_a_cubic_extractor(antithetic):
    """The mean gradient of Cubic is a (x^2 + sigma^2), so its top tokens are those of the largest |x|."""
    generator = torch.Generator().manual_seed(1)
    largest = torch.stack([torch.randperm(GRID * GRID, generator=generator) for _ in range(4)]).double() / 32
    x = (largest.view(4, 1, GRID, GRID) * torch.ones(1, CHANNELS, 1, 1)).float()
    extractor = Cubic(CHANNELS, 3).eval()
    tsv = token_saliency(extractor, x, 1, num_samples="auto", top_n=10, alpha=0.05, antithetic=antithetic)
    tokens = torch.zeros(4, GRID, GRID, dtype=torch.int64)
    got = top_tokens(tsv, tokens, 10)[1]
    wanted = top_tokens((extractor.a.detach()[1].max() * x[:, 0] ** 2), tokens, 10)[1]
    for image_top, image_wanted in zip(got.tolist(), wanted.tolist(), strict=True):
        assert len(set(image_top) & set(image_wanted)) >= 9


def test_every_image_is_reported_once_and_no_parameter_gets_a_gradient():
    x, done = embedding(5), []
    extractor = tiny("ce_deep")
    gradient = smoothgrad(extractor, x, 1, num_samples="auto", top_n=8, tick=done.append)
    assert sum(done) == 5 and all(count >= 1 for count in done) and gradient.isfinite().all()
    assert all(p.grad is None and p.requires_grad for p in extractor.parameters())


def test_each_reduction_settles_by_its_ranking():
    """A channel that is largest in magnitude and negative counts for 'absmax', not for 'max'."""
    x = embedding()
    extractor = tiny("re")
    for reduction in REDUCTIONS:
        tsv = token_saliency(extractor, x, 2, num_samples="auto", top_n=5, reduction=reduction)
        many = token_saliency(extractor, x, 2, num_samples=1000, reduction=reduction)
        pairs = zip(tsv.flatten(1).topk(5).indices.tolist(), many.flatten(1).topk(5).indices.tolist(), strict=True)
        assert min(len(set(top) & set(top_of_many)) for top, top_of_many in pairs) >= 4


class _TwoMinds(nn.Module):
    """The gradient of one channel is large, negative and constant, that of the other small, positive and all noise."""

    def forward(self, x: Tensor) -> Tensor:
        steady = x[:, 0].flatten(1) @ torch.arange(-GRID * GRID, 0.0)
        return (steady + x[:, 1].flatten(1).pow(3).sum(dim=1))[:, None]


def test_the_given_reduction_decides_when_it_stops():
    x = torch.zeros(1, 2, GRID, GRID)
    x[0, 0, 0, 0] = 1.0
    extractor = _TwoMinds().eval()
    for reduction, at_once in (("absmax", True), ("max", False)):
        tsv = token_saliency(extractor, x, 0, num_samples="auto", top_n=5, reduction=reduction)
        first = token_saliency(extractor, x, 0, num_samples=FIRST_STOP, reduction=reduction)
        assert torch.allclose(tsv, first, rtol=1e-4) == at_once


def test_all_positions_settle_at_once():
    x = embedding()
    _, samples = settle(tiny("re"), x, torch.arange(3), stream_of(x), top_n=GRID * GRID)
    assert samples.tolist() == [FIRST_STOP] * 3


@pytest.mark.parametrize("top_n", [0, GRID * GRID + 1, 2.0, True])
def test_a_bad_top_n_is_refused(top_n):
    with pytest.raises((ValueError, TypeError), match=r"^top_n:"):
        smoothgrad(Cubic(CHANNELS, 3).eval(), embedding(), 1, num_samples="auto", top_n=top_n)


def test_an_empty_batch_and_inference_mode():
    extractor = Convolutional(CHANNELS, 4).eval()
    assert smoothgrad(extractor, embedding(0), 0, num_samples="auto").shape == (0, CHANNELS, GRID, GRID)
    wanted = smoothgrad(extractor, embedding(), 0, num_samples="auto")
    with torch.inference_mode():
        torch.testing.assert_close(smoothgrad(extractor, embedding(), 0, num_samples="auto"), wanted)
