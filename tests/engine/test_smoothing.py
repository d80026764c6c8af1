"""SmoothGrad of split extractors equals eq. 5 in float64, one backward pass for each copy of each image, however it is
chunked; and it takes the work and memory that it claims."""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from cortex_fast import ops, smoothgrad
from cortex_fast.engine import NoiseStream, Prepared, mean_gradients, prepare
from cortex_fast.extractors import NAMES
from cortex_fast.kernels import native
from tests.engine.user_modules import CHANNELS, GRID, Of, autograd, conv, embedding, ended, linear, relative
from tests.known_extractors import Convolutional, Linear, tiny

TARGET = torch.tensor([2, 0, 3])
SEED = 11

every_noise = pytest.mark.parametrize("shared", [True, False], ids=["shared", "independent"])
every_pairing = pytest.mark.parametrize("antithetic", [False, True], ids=["single", "antithetic"])


def stream_of(x: Tensor, *, shared: bool, antithetic: bool = False, items: Tensor | None = None) -> NoiseStream:
    sigma = 0.1 + 0.1 * torch.arange(len(x))
    return NoiseStream(sigma, torch.arange(len(x)) + 7 if items is None else items, SEED, shared, antithetic)


def definition(extractor: nn.Module, x: Tensor, target: Tensor, stream: NoiseStream, samples: range) -> Tensor:
    """Eq. 5 written out in float64; the noise comes from the package's operator, copy by copy."""
    exact = copy.deepcopy(extractor).double()
    total = torch.zeros_like(x, dtype=torch.float64)
    ids = torch.zeros(len(x), dtype=torch.int64) if stream.shared else stream.item_ids
    for sample in samples:
        first = sample // 2 * 2 if stream.antithetic else sample
        normals = ops.smoothgrad_noise(
            torch.zeros_like(x, dtype=torch.float32),
            torch.ones(len(x)),
            2,
            seed=stream.seed,
            item_ids=ids,
            antithetic=stream.antithetic,
            first_sample=first,
        )[:, sample - first]
        noisy = x.double() + stream.sigma.double()[:, None, None, None] * normals.double()
        total += autograd(exact, noisy, target)[1]
    return total / len(samples)


def assert_equal_but_for_a_tie(got: Tensor, wanted: Tensor) -> None:
    """Equal within rounding for all images but one, where rounding may have switched a ReLU."""
    errors = sorted(relative(*pair) for pair in zip(got, wanted, strict=True))
    assert errors[-2] < 1e-4 and errors[-1] < 0.1


def gradients(prepared: Prepared, x: Tensor, stream: NoiseStream, samples: range, memory: int, target=None) -> Tensor:
    pieces = mean_gradients(prepared, x, TARGET if target is None else target, stream, samples, memory=memory)
    return torch.cat([piece for _, piece in pieces])


def passes_of(prepared: Prepared) -> list[int]:
    """Filled with the number of copies of each pass of the body."""
    sizes: list[int] = []
    prepared.body.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.parametrize("kind", NAMES)
@every_noise
@every_pairing
def test_equal_to_the_definition(kind, shared, antithetic):
    extractor, x = tiny(kind), embedding()
    stream = stream_of(x, shared=shared, antithetic=antithetic)
    wanted = definition(extractor, x, TARGET, stream, range(4))
    got = prepare(extractor, x).smoothgrad(x, TARGET, stream, num_samples=4)
    assert got.dtype == torch.float32
    assert_equal_but_for_a_tie(got, wanted)
    exact = prepare(copy.deepcopy(extractor).double(), x.double()).smoothgrad(x.double(), TARGET, stream, num_samples=4)
    assert exact.dtype == torch.float64 and relative(exact, wanted) < 1e-6


@every_noise
def test_any_range_of_samples(shared):
    """The adaptive search takes them in parts."""
    extractor, x = tiny("re").double(), embedding(dtype=torch.float64)
    prepared = prepare(extractor, x)
    for antithetic, parts in ((False, (range(3, 8), range(8, 9))), (True, (range(2, 8), range(8, 10)))):
        stream = stream_of(x, shared=shared, antithetic=antithetic)
        for samples in parts:
            wanted = definition(extractor, x, TARGET, stream, samples)
            assert relative(gradients(prepared, x, stream, samples, 1 << 20), wanted) < 1e-6


def test_an_odd_number_of_antithetic_samples_ends_with_half_a_pair():
    extractor, x = tiny("re").double(), embedding(dtype=torch.float64)
    stream = stream_of(x, shared=True, antithetic=True)
    wanted = definition(extractor, x, TARGET, stream, range(5))
    assert relative(gradients(prepare(extractor, x), x, stream, range(5), 1), wanted) < 1e-6


@pytest.mark.parametrize("kind", NAMES)
@every_noise
def test_the_public_function_is_the_definition(kind, shared):
    extractor, x, items = tiny(kind).double(), embedding(dtype=torch.float64), torch.tensor([5, 0, 9])
    spread = x.flatten(1).amax(1) - x.flatten(1).amin(1)
    stream = NoiseStream(0.2 * spread, items, SEED, shared, False)
    name = "shared" if shared else "independent"
    got = smoothgrad(extractor, x, TARGET, num_samples=3, noise=name, seed=SEED, item_ids=items)
    assert relative(got, definition(extractor, x, TARGET, stream, range(3))) < 1e-6  # sigma is rounded to float32


@pytest.mark.parametrize(
    ("kind", "shared", "antithetic"),
    [(kind, *how) for kind in NAMES for how in product((True, False), repeat=2) if kind != "te" or how[0] != how[1]],
)
def test_the_memory_does_not_change_the_result(kind, shared, antithetic):
    """Not bit for bit: the rounding of torch's matrix products depends on the number of rows."""
    x = embedding()
    prepared = prepare(tiny(kind), x)
    stream = stream_of(x, shared=shared, antithetic=antithetic)
    whole = gradients(prepared, x, stream, range(6), 1 << 30)
    for copies in (0, 2, 7):
        part = gradients(prepared, x, stream, range(6), max(1, copies * prepared.bytes_of_copy))
        assert relative(part, whole) < 1e-5


@pytest.mark.skipif(native.UNAVAILABLE is not None, reason=str(native.UNAVAILABLE))
@every_noise
@every_pairing
def test_the_memory_changes_no_bit_where_layers_have_a_fixed_order(shared, antithetic):
    """The operators' sums have a fixed order; so has the mean over samples."""
    extractor = ended(lambda self, x: self.second(torch.relu(self.first(x))), first=conv(), second=conv(8))
    x, target = embedding(5), torch.arange(5) % 4
    prepared = prepare(extractor, x)
    assert "Winograd" in prepared.notes[-1]
    stream = stream_of(x, shared=shared, antithetic=antithetic)
    whole = gradients(prepared, x, stream, range(6), 1 << 30, target)
    for copies in (0, 1, 3, 7, 12):
        memory = max(1, copies * prepared.bytes_of_copy)
        assert torch.equal(gradients(prepared, x, stream, range(6), memory, target), whole)
    alone = stream.of_images(slice(3, 4))
    assert torch.equal(gradients(prepared, x[3:4], alone, range(6), 1 << 30, target[3:4]), whole[3:4])


@every_noise
def test_many_images_go_through_in_order(shared):
    extractor, x = Convolutional(CHANNELS, 4).eval(), embedding(150)
    target, stream, prepared = torch.arange(150) % 3, stream_of(x, shared=shared), prepare(extractor, x)
    pieces = list(mean_gradients(prepared, x, target, stream, range(2), memory=1 << 22))
    assert [rows.start for rows, _ in pieces] == [0, *[rows.stop for rows, _ in pieces][:-1]]
    assert pieces[-1][0].stop == 150 and len(pieces) > 1
    whole = torch.cat([piece for _, piece in pieces])
    for few in (slice(0, 3), slice(62, 67), slice(148, 150)):
        part = prepared.smoothgrad(x[few], target[few], stream.of_images(few), num_samples=2)
        assert relative(whole[few], part) < 1e-5


@every_noise
@every_pairing
@pytest.mark.parametrize("images", [1, 9])
def test_a_pass_has_no_more_copies_than_the_memory_allows(shared, antithetic, images):
    x, target = embedding(images), torch.arange(images) % 4
    prepared = prepare(Convolutional(CHANNELS, 4).eval(), x)
    sizes = passes_of(prepared)
    stream = stream_of(x, shared=shared, antithetic=antithetic)
    for copies in (2, 5, 9, 30):
        sizes.clear()
        gradients(prepared, x, stream, range(12), copies * prepared.bytes_of_copy, target)
        assert sum(sizes) == 12 * images
        assert copies // 3 <= max(sizes) <= copies  # and the memory is used
    sizes.clear()
    gradients(prepared, x, stream, range(12), 1, target)
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
    """Beyond the bound: the images with their prefix, the sums and the result."""
    extractor = tiny(kind, channels=32, grid=16)
    x = torch.randn(images, 32, 16, 16, generator=torch.Generator().manual_seed(1))
    prepared = prepare(extractor, x, precision=precision)
    stream, target = stream_of(x, shared=shared), torch.arange(images)
    memory = 8 << 20
    copies = 3 * memory // prepared.bytes_of_copy  # enough for three passes
    sizes = passes_of(prepared)
    peak = peak_of(lambda: gradients(prepared, x, stream, range(copies // images), memory, target))
    assert len(sizes) >= 3
    assert peak <= memory + 6 * x.nbytes


@pytest.mark.parametrize("kind", NAMES)
@every_noise
def test_the_first_layer_is_hoisted(kind, shared):
    """Shared stream: forward once for each image and once for each draw. Backward always once for each image."""
    x = embedding(dtype=torch.float64)
    prepared = prepare(tiny(kind).double(), x)
    forward, linear_part, backward = [], [], []

    def count(module, inputs, results):
        forward.append(len(inputs[0]))
        for result in results if isinstance(results, tuple) else (results,):
            if result.requires_grad:
                result.register_hook(lambda gradient: backward.append(len(gradient)))

    prepared.prefix.register_forward_hook(count)
    prepared.linear_prefix.register_forward_hook(lambda module, inputs, results: linear_part.append(len(inputs[0])))
    stream = stream_of(x, shared=shared)
    for copies in (1, 4, 1000):
        for counts in (forward, linear_part, backward):
            counts.clear()
        gradients(prepared, x, stream, range(6), copies * prepared.bytes_of_copy)
        assert backward == [3] * (2 if kind == "re" else 1)  # re's first block begins with two layers
        assert sum(forward) == (3 if shared else 3 + 3 * 6)
        assert sum(linear_part) == (6 if shared else 0)


def test_only_the_targets_rows_of_the_head_are_read():
    """A logit that overflows disturbs no other: it is not computed."""
    x = embedding()
    stream = stream_of(x, shared=True)
    prepared = prepare(tiny("ce"), x)
    prepared.head.weight = nn.Parameter(prepared.head.weight.clone(), requires_grad=False)  # the extractor's, before
    prepared.head.weight[1] = torch.inf
    got = prepared.smoothgrad(x, TARGET, stream, num_samples=3)
    torch.testing.assert_close(got, prepare(tiny("ce"), x).smoothgrad(x, TARGET, stream, num_samples=3))


def test_a_result_of_the_prefix_read_for_its_shape_alone():
    extractor = ended(lambda self, x: self.first(x).reshape(x.shape[0], -1), first=conv())
    x = embedding()
    stream = stream_of(x, shared=True)
    got = prepare(extractor, x).smoothgrad(x, TARGET, stream, num_samples=3)
    assert relative(got, definition(extractor, x, TARGET, stream, range(3))) < 1e-4


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
    stream = stream_of(x, shared=shared)
    got = prepare(extractor, x).smoothgrad(x, TARGET, stream, num_samples=3)
    assert relative(got, definition(extractor, x, TARGET, stream, range(3))) < 1e-4


def test_half_precision_adds_up_in_float32():
    """A thousand samples of a constant gradient: a sum in bfloat16 would stop growing at 256 of them."""
    extractor, x = Linear(CHANNELS, GRID, 4).eval(), embedding()
    prepared = prepare(extractor, x, precision="bfloat16")
    got = prepared.smoothgrad(x, TARGET, stream_of(x, shared=True), num_samples=1000)
    wanted = extractor.weight.detach()[TARGET].view_as(x)
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_the_whole_stays_finite_and_is_float32(memory):
    x = embedding().bfloat16()
    got = prepare(Convolutional(CHANNELS, 4).eval().bfloat16(), x).smoothgrad(
        x, TARGET, stream_of(x, shared=False), memory=memory
    )
    assert got.dtype == torch.float32 and got.isfinite().all() and got.any()


def test_strided_and_expanded_embeddings():
    extractor, x = tiny("ce"), embedding()
    prepared, stream = prepare(extractor, x), stream_of(x, shared=True)
    wanted = prepared.smoothgrad(x, TARGET, stream, num_samples=3)
    last = x.contiguous(memory_format=torch.channels_last)
    double = torch.stack((x, x), dim=-1)[..., 0]
    for other in (last, double):
        torch.testing.assert_close(prepared.smoothgrad(other, TARGET, stream, num_samples=3), wanted)
    expanded = x[:1].expand(3, -1, -1, -1)
    torch.testing.assert_close(
        prepared.smoothgrad(expanded, TARGET, stream, num_samples=3),
        prepared.smoothgrad(expanded.contiguous(), TARGET, stream, num_samples=3),
    )


def test_the_linear_head_alone():
    extractor = nn.Sequential(nn.Flatten(), linear(CHANNELS * GRID * GRID)).eval()
    x = embedding()
    got = prepare(extractor, x).smoothgrad(x, TARGET, stream_of(x, shared=True), num_samples=5)
    torch.testing.assert_close(got, extractor[1].weight.detach()[TARGET].view_as(x))
