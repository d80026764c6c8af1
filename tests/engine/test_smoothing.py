"""SmoothGrad by parts: equal to one image, one copy and one backward pass at a time in float64, however it is cut, and
with the work and the memory that it claims."""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from cortex_fast import ops, smoothgrad
from cortex_fast.engine import Noise, Prepared, mean_gradients, prepare
from cortex_fast.kernels import native
from tests.engine.handmade import CHANNELS, GRID, KINDS, Of, autograd, conv, embedding, ended, linear, relative
from tests.known_extractors import Convolutional, Linear, tiny

TARGET = torch.tensor([2, 0, 3])
SEED = 11

every_noise = pytest.mark.parametrize("shared", [True, False], ids=["shared", "independent"])
every_pairing = pytest.mark.parametrize("antithetic", [False, True], ids=["single", "antithetic"])


def noise_of(x: Tensor, *, shared: bool, antithetic: bool = False, items: Tensor | None = None) -> Noise:
    sigma = 0.1 + 0.1 * torch.arange(len(x))
    return Noise(sigma, torch.arange(len(x)) + 7 if items is None else items, SEED, shared, antithetic)


def definition(extractor: nn.Module, x: Tensor, target: Tensor, noise: Noise, samples: range) -> Tensor:
    """Eq. 5 written out in float64: the noise alone is the package's, drawn copy by copy from its own operator."""
    exact = copy.deepcopy(extractor).double()
    total = torch.zeros_like(x, dtype=torch.float64)
    ids = torch.zeros(len(x), dtype=torch.int64) if noise.shared else noise.item_ids
    for sample in samples:
        first = sample // 2 * 2 if noise.antithetic else sample
        drawn = ops.smoothgrad_noise(
            torch.zeros_like(x, dtype=torch.float32),
            torch.ones(len(x)),
            2,
            seed=noise.seed,
            item_ids=ids,
            antithetic=noise.antithetic,
            first_sample=first,
        )[:, sample - first]
        noisy = x.double() + noise.sigma.double()[:, None, None, None] * drawn.double()
        total += autograd(exact, noisy, target)[1]
    return total / len(samples)


def assert_equal_but_for_a_tie(got: Tensor, wanted: Tensor) -> None:
    """Within rounding for all images but perhaps one, where rounding may have opened or closed a ReLU."""
    errors = sorted(relative(one, other) for one, other in zip(got, wanted, strict=True))
    assert errors[-2] < 1e-4 and errors[-1] < 0.1


def gradients(prepared: Prepared, x: Tensor, noise: Noise, samples: range, memory: int, target=None) -> Tensor:
    pieces = mean_gradients(prepared, x, TARGET if target is None else target, noise, samples, memory=memory)
    return torch.cat([piece for _, piece in pieces])


def passes_of(prepared: Prepared) -> list[int]:
    """Filled with the number of copies of each pass of the body."""
    sizes: list[int] = []
    prepared.body.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.parametrize("kind", KINDS)
@every_noise
@every_pairing
def test_equal_to_the_definition(kind, shared, antithetic):
    extractor, x = tiny(kind), embedding()
    noise = noise_of(x, shared=shared, antithetic=antithetic)
    wanted = definition(extractor, x, TARGET, noise, range(4))
    got = prepare(extractor, x).smoothgrad(x, TARGET, noise, num_samples=4)
    assert got.dtype == torch.float32
    assert_equal_but_for_a_tie(got, wanted)
    exact = prepare(copy.deepcopy(extractor).double(), x.double()).smoothgrad(x.double(), TARGET, noise, num_samples=4)
    assert exact.dtype == torch.float64 and relative(exact, wanted) < 1e-6


@every_noise
def test_any_range_of_samples(shared):
    """The adaptive search asks for them in parts."""
    extractor, x = tiny("re").double(), embedding(dtype=torch.float64)
    prepared = prepare(extractor, x)
    for antithetic, parts in ((False, (range(3, 8), range(8, 9))), (True, (range(2, 8), range(8, 10)))):
        noise = noise_of(x, shared=shared, antithetic=antithetic)
        for samples in parts:
            wanted = definition(extractor, x, TARGET, noise, samples)
            assert relative(gradients(prepared, x, noise, samples, 1 << 20), wanted) < 1e-6


def test_an_odd_number_of_antithetic_samples_ends_with_half_a_pair():
    extractor, x = tiny("re").double(), embedding(dtype=torch.float64)
    noise = noise_of(x, shared=True, antithetic=True)
    wanted = definition(extractor, x, TARGET, noise, range(5))
    assert relative(gradients(prepare(extractor, x), x, noise, range(5), 1), wanted) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@every_noise
def test_the_public_function_is_the_definition(kind, shared):
    extractor, x, items = tiny(kind).double(), embedding(dtype=torch.float64), torch.tensor([5, 0, 9])
    spread = x.flatten(1).amax(1) - x.flatten(1).amin(1)
    noise = Noise(0.2 * spread, items, SEED, shared, False)
    name = "shared" if shared else "independent"
    got = smoothgrad(extractor, x, TARGET, num_samples=3, noise=name, seed=SEED, item_ids=items)
    assert relative(got, definition(extractor, x, TARGET, noise, range(3))) < 1e-6  # sigma is rounded to float32


@pytest.mark.parametrize(
    ("kind", "shared", "antithetic"),
    [(kind, *how) for kind in KINDS for how in product((True, False), repeat=2) if kind != "te" or how[0] != how[1]],
)
def test_the_memory_does_not_matter(kind, shared, antithetic):
    """Not bit for bit: torch's matrix products of another number of rows are rounded in another way."""
    x = embedding()
    prepared = prepare(tiny(kind), x)
    noise = noise_of(x, shared=shared, antithetic=antithetic)
    whole = gradients(prepared, x, noise, range(6), 1 << 30)
    for copies in (0, 2, 7):
        part = gradients(prepared, x, noise, range(6), max(1, copies * prepared.bytes_of_copy))
        assert relative(part, whole) < 1e-5


@pytest.mark.skipif(native.UNAVAILABLE is not None, reason=str(native.UNAVAILABLE))
@every_noise
@every_pairing
def test_the_memory_does_not_show_in_a_bit_where_no_layer_does(shared, antithetic):
    """The operators' own sums have one order; so has the mean over samples."""
    extractor = ended(lambda self, x: self.two(torch.relu(self.one(x))), one=conv(), two=conv(8))
    x, target = embedding(5), torch.arange(5) % 4
    prepared = prepare(extractor, x)
    assert "Winograd" in prepared.notes[-1]
    noise = noise_of(x, shared=shared, antithetic=antithetic)
    whole = gradients(prepared, x, noise, range(6), 1 << 30, target)
    for copies in (0, 1, 3, 7, 12):
        memory = max(1, copies * prepared.bytes_of_copy)
        assert torch.equal(gradients(prepared, x, noise, range(6), memory, target), whole)
    alone = noise_of(x, shared=shared, antithetic=antithetic)
    alone = Noise(alone.sigma[3:4], alone.item_ids[3:4], SEED, shared, antithetic)
    assert torch.equal(gradients(prepared, x[3:4], alone, range(6), 1 << 30, target[3:4]), whole[3:4])


@every_noise
def test_many_images_go_through_in_order(shared):
    extractor, x = Convolutional(CHANNELS, 4).eval(), embedding(150)
    target, noise, prepared = torch.arange(150) % 3, noise_of(x, shared=shared), prepare(extractor, x)
    pieces = list(mean_gradients(prepared, x, target, noise, range(2), memory=1 << 22))
    assert [rows.start for rows, _ in pieces] == [0, *[rows.stop for rows, _ in pieces][:-1]]
    assert pieces[-1][0].stop == 150 and len(pieces) > 1
    whole = torch.cat([piece for _, piece in pieces])
    for few in (slice(0, 3), slice(62, 67), slice(148, 150)):
        own = Noise(noise.sigma[few], noise.item_ids[few], SEED, shared, False)
        assert relative(whole[few], prepared.smoothgrad(x[few], target[few], own, num_samples=2)) < 1e-5


@every_noise
@every_pairing
@pytest.mark.parametrize("images", [1, 9])
def test_a_pass_has_no_more_copies_than_the_memory_allows(shared, antithetic, images):
    x, target = embedding(images), torch.arange(images) % 4
    prepared = prepare(Convolutional(CHANNELS, 4).eval(), x)
    sizes = passes_of(prepared)
    noise = noise_of(x, shared=shared, antithetic=antithetic)
    for copies in (2, 5, 9, 30):
        sizes.clear()
        gradients(prepared, x, noise, range(12), copies * prepared.bytes_of_copy, target)
        assert sum(sizes) == 12 * images
        assert copies // 3 <= max(sizes) <= copies  # and the memory is used
    sizes.clear()
    gradients(prepared, x, noise, range(12), 1, target)
    assert max(sizes) <= 1 + antithetic


def peak_of(compute) -> int:
    """The most bytes that torch held at once of what it allocated within."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        compute()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize(
    ("kind", "precision", "images", "shared"),
    [
        ("ce", "float32", 4, True),
        ("ce", "float32", 4, False),
        ("ce", "float32", 1, True),
        ("ce", "bfloat16", 4, True),
        ("re", "float32", 4, False),
    ],
)
def test_the_memory_bound_holds(kind, precision, images, shared):
    """Beside the bound: the images with their prefix, noise apart, the sums and the result."""
    extractor = tiny(kind, channels=32, grid=16)
    x = torch.randn(images, 32, 16, 16, generator=torch.Generator().manual_seed(1))
    prepared = prepare(extractor, x, precision=precision)
    noise, target = noise_of(x, shared=shared), torch.arange(images)
    memory = 8 << 20
    copies = 3 * memory // prepared.bytes_of_copy  # enough for three passes
    sizes = passes_of(prepared)
    peak = peak_of(lambda: gradients(prepared, x, noise, range(copies // images), memory, target))
    assert len(sizes) >= 3
    assert peak <= memory + 6 * x.nbytes


@pytest.mark.parametrize("kind", KINDS)
@every_noise
def test_the_first_layer_is_hoisted(kind, shared):
    """Shared: forward once for each image and once for each draw. Always: backward once for each image."""
    x = embedding(dtype=torch.float64)
    prepared = prepare(tiny(kind).double(), x)
    forward, linear_part, backward = [], [], []

    def count(module, inputs, results):
        forward.append(len(inputs[0]))
        for result in results if isinstance(results, tuple) else (results,):
            if result.requires_grad:
                result.register_hook(lambda gradient: backward.append(len(gradient)))

    prepared.prefix.register_forward_hook(count)
    prepared.linear.register_forward_hook(lambda module, inputs, results: linear_part.append(len(inputs[0])))
    noise = noise_of(x, shared=shared)
    for copies in (1, 4, 1000):
        for counts in (forward, linear_part, backward):
            counts.clear()
        gradients(prepared, x, noise, range(6), copies * prepared.bytes_of_copy)
        assert backward == [3] * (2 if kind == "re" else 1)  # re's first block begins with two layers
        assert sum(forward) == (3 if shared else 3 + 3 * 6)
        assert sum(linear_part) == (6 if shared else 0)


def test_the_rows_of_the_head_are_all_that_is_read_of_it():
    """A logit that overflows disturbs its neighbours nowhere: it is not computed."""
    x = embedding()
    noise = noise_of(x, shared=True)
    prepared = prepare(tiny("ce"), x)
    prepared.head.weight = nn.Parameter(prepared.head.weight.clone(), requires_grad=False)  # the extractor's, before
    prepared.head.weight[1] = torch.inf
    got = prepared.smoothgrad(x, TARGET, noise, num_samples=3)
    torch.testing.assert_close(got, prepare(tiny("ce"), x).smoothgrad(x, TARGET, noise, num_samples=3))


def test_a_result_of_the_prefix_that_is_there_for_its_shape_alone():
    extractor = ended(lambda self, x: self.one(x).reshape(x.shape[0], -1), one=conv())
    x = embedding()
    noise = noise_of(x, shared=True)
    got = prepare(extractor, x).smoothgrad(x, TARGET, noise, num_samples=3)
    assert relative(got, definition(extractor, x, TARGET, noise, range(3))) < 1e-4


VIEWS = {
    "of the input": lambda: Of(
        lambda self, x: (F.relu(x) + 3 * torch.tanh(x.transpose(2, 3))).flatten(1) @ self.rows.weight.T,
        rows=linear(CHANNELS * GRID * GRID),
    ),
    "of a convolution": lambda: Of(both_ways, conv=conv(), head=linear(8 * GRID * GRID)),
}


def both_ways(self, x):
    z = self.conv(x)
    return self.head((F.relu(z) + torch.tanh(z.transpose(2, 3))).flatten(1))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", VIEWS)
def test_results_of_the_prefix_that_share_memory(name, shared):
    extractor, x = VIEWS[name](), embedding()
    noise = noise_of(x, shared=shared)
    got = prepare(extractor, x).smoothgrad(x, TARGET, noise, num_samples=3)
    assert relative(got, definition(extractor, x, TARGET, noise, range(3))) < 1e-4


def test_half_precision_adds_up_in_float32():
    """A thousand samples of a constant gradient: a sum in bfloat16 would stop growing at 256 of them."""
    extractor, x = Linear(CHANNELS, GRID, 4).eval(), embedding()
    prepared = prepare(extractor, x, precision="bfloat16")
    got = prepared.smoothgrad(x, TARGET, noise_of(x, shared=True), num_samples=1000)
    wanted = extractor.weight.detach()[TARGET].view_as(x)
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_the_whole_stays_finite_and_is_float32(memory):
    x = embedding().bfloat16()
    got = prepare(Convolutional(CHANNELS, 4).eval().bfloat16(), x).smoothgrad(
        x, TARGET, noise_of(x, shared=False), memory=memory
    )
    assert got.dtype == torch.float32 and got.isfinite().all() and got.any()


def test_strided_and_expanded_embeddings():
    extractor, x = tiny("ce"), embedding()
    prepared, noise = prepare(extractor, x), noise_of(x, shared=True)
    wanted = prepared.smoothgrad(x, TARGET, noise, num_samples=3)
    last = x.contiguous(memory_format=torch.channels_last)
    double = torch.stack((x, x), dim=-1)[..., 0]
    for other in (last, double):
        torch.testing.assert_close(prepared.smoothgrad(other, TARGET, noise, num_samples=3), wanted)
    one = x[:1].expand(3, -1, -1, -1)
    torch.testing.assert_close(
        prepared.smoothgrad(one, TARGET, noise, num_samples=3),
        prepared.smoothgrad(one.contiguous(), TARGET, noise, num_samples=3),
    )


def test_the_linear_head_alone():
    extractor = nn.Sequential(nn.Flatten(), linear(CHANNELS * GRID * GRID)).eval()
    x = embedding()
    got = prepare(extractor, x).smoothgrad(x, TARGET, noise_of(x, shared=True), num_samples=5)
    torch.testing.assert_close(got, extractor[1].weight.detach()[TARGET].view_as(x))
