"""Recording: the operators that an extractor dispatches; other threads and the model stay untouched."""

import copy
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from cortex_fast.engine import prepare
from cortex_fast.engine.borrowing import borrowed
from tests.engine.test_prepared import AS_IT_IS, TARGET, Rounded, shared
from tests.engine.user_modules import CHANNELS, GRID, Of, autograd, conv, embedding, ended, graph_of, linear, relative
from tests.known_extractors import tiny

FEATURES = 8 * GRID * GRID


def clamped(self, x):
    h = self.conv(x)
    h.clamp_(-1, 1)
    return h


def sliced(self, x):
    h = self.conv(x)
    h[:, 0].mul_(2)
    h[:, :1] += 1
    h.transpose(1, 2)[:, 3] *= 0.5
    h.permute(3, 0, 1, 2)[2].clamp_(-0.5, 0.5)
    return torch.tanh(h)


def pasted(self, x):
    h = self.conv(x)
    whole, half = torch.zeros_like(h), x.new_zeros(len(x), *h.shape[1:])
    whole[:, :3] = h[:, :3]
    half[:, 4:] = h[:, 4:]
    return torch.tanh(whole + half)


def copied(self, x):
    h = torch.empty_like(self.conv(x), dtype=torch.float64)
    h.copy_(self.conv(x))
    return torch.sin(h).to(x.dtype)


def masked(self, x):
    h = self.conv(x)
    h.masked_fill_(h > 1, 0.5)
    return torch.where(h < -1, h.exp(), h)


def gated(self, x):
    with torch.no_grad():
        gate = torch.sigmoid(self.gate(x))
        with torch.enable_grad():
            features = torch.tanh(self.conv(x))
    return features * gate


def added_twice(self, x):
    step = torch.zeros(8, 1, 1, dtype=x.dtype)
    h = torch.tanh(self.conv(x) + step)
    return h + step.add_(1)


def ordered(self, x):
    return torch.tanh(self.conv(x))[:, torch.arange(7, -1, -1)]


def by_einsum(self, x):
    return torch.einsum("bchw,dc->bdhw", torch.tanh(self.conv(x)), self.gate.weight[:, :, 0, 0].repeat(1, 2)[:, :8])


class Table(nn.Module):
    """Creates a table at the first call, and stores its features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = conv(), linear(FEATURES)
        self.table, self.features, self.seen, self.by_name = None, None, [], {}

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(float(GRID**2)).view(GRID, GRID) / GRID**2
        self.features = torch.tanh(self.conv(x)) * self.table
        self.seen.append(self.features)
        self.by_name["features"] = self.features
        return self.head(self.features.flatten(1))


FAST = {
    "a statement in place": lambda: ended(clamped, conv=conv()),
    "writes into views": lambda: ended(sliced, conv=conv()),
    "writes into new buffers": lambda: ended(pasted, conv=conv()),
    "a constant overwritten between two reads": lambda: ended(added_twice, conv=conv()),
    "a copy into another dtype": lambda: ended(copied, conv=conv()),
    "masks": lambda: ended(masked, conv=conv()),
    "gates without gradient": lambda: ended(gated, conv=conv(), gate=conv(outputs=1)),
    "an index of positions": lambda: ended(ordered, conv=conv()),
    "a table created at the first call": Table,
    "weight norm": lambda: ended(lambda self, x: self.conv(x).tanh(), conv=parametrizations.weight_norm(conv())),
    "spectral norm": lambda: ended(lambda self, x: self.conv(x).tanh(), conv=parametrizations.spectral_norm(conv())),
    "a residual in place": lambda: ended(
        lambda self, x: self.second(x).add_(self.first(x)).relu_(), first=conv(), second=conv()
    ),
    "randomised leaky ReLU in eval mode": lambda: ended(lambda self, x: F.rrelu(self.conv(x)), conv=conv()),
    "groups normed": lambda: ended(lambda self, x: self.norm(self.conv(x)), conv=conv(), norm=nn.GroupNorm(2, 8)),
    "images normed": lambda: ended(lambda self, x: self.norm(self.conv(x)), conv=conv(), norm=nn.InstanceNorm2d(8)),
    "a product by einsum": lambda: ended(by_einsum, conv=conv(), gate=conv(8, 8, size=1)),
}


@pytest.mark.parametrize("name", FAST)
def test_the_fast_path_is_right_for_images_of_any_scale(name):
    torch.manual_seed(5)
    extractor = FAST[name]().eval()
    x = embedding() * torch.tensor([0.1, 1, 8])[:, None, None, None]
    wide = copy.deepcopy(extractor).double()
    for sample in (x[:1], x[2:]):
        prepared = prepare(extractor, sample)
        assert not prepared.notes[0].startswith(AS_IT_IS), prepared.notes
        value, gradient = prepared.value_and_grad(x, TARGET)
        expected, wanted = autograd(wide, x.double(), TARGET)
        for image in range(3):
            assert relative(value[image], expected[image]) < 1e-4
            assert relative(gradient[image], wanted[image]) < 1e-4


def test_a_graph_serves_any_number_of_images():
    graph = graph_of(Of(lambda self, x: self.head(F.gelu(x.flatten(2).mT @ self.rows.weight.T).mean(1)),
                        rows=linear(CHANNELS, 8), head=linear(8)))  # fmt: skip
    x = embedding(7)
    torch.testing.assert_close(graph(x), torch.cat([graph(image[None]) for image in x]))
    assert graph(x[:0]).shape == (0, 4)


def test_a_mask_of_rows_is_no_graph():
    extractor = ended(lambda self, x: torch.stack([h[h > 0].sum().expand(8 * 64) for h in self.conv(x)]), conv=conv())
    assert "as it is" in prepare(extractor, embedding()).notes[0]


@pytest.mark.parametrize("make", [Table, lambda: tiny("te"), lambda: ended(lambda self, x: 1 / 0)])
def test_the_users_model_stays_unchanged(make):
    extractor, x = make().eval(), embedding()
    modules = dict(extractor.named_modules())
    before = {name: {key: (id(v), copy.copy(v)) for key, v in vars(m).items()} for name, m in modules.items()}
    tensors = {name: (id(v), v.clone(), v.requires_grad) for name, v in extractor.state_dict(keep_vars=True).items()}
    try:
        prepared = prepare(extractor, x)
        prepared.smoothgrad(x, TARGET, shared(), num_samples=2)
    except ZeroDivisionError:
        pass
    assert dict(extractor.named_modules()) == modules
    for name, module in modules.items():
        for key, value in vars(module).items():
            assert id(value) == before[name][key][0]
            assert not isinstance(value, list | dict) or value == before[name][key][1]
    for name, value in extractor.state_dict(keep_vars=True).items():
        identity, values, flag = tensors[name]
        assert id(value) == identity and torch.equal(value, values) and value.requires_grad == flag


def test_the_callers_embedding_stays_unchanged():
    extractor, x = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), linear(CHANNELS * GRID**2)).eval(), embedding()
    before = x.clone()
    prepare(extractor, x).value_and_grad(x, TARGET)
    assert torch.equal(x, before)


def test_uncopyable_attributes_are_shared():
    extractor = tiny("te")
    extractor.lock, extractor.where = threading.Lock(), {"file": sys.stdout}
    stand_in = borrowed(extractor)
    assert stand_in.lock is extractor.lock and stand_in is not extractor
    x = embedding()
    torch.testing.assert_close(stand_in(x), extractor(x))
    pointers = {p.data_ptr() for p in extractor.parameters()}
    assert {p.data_ptr() for p in stand_in.parameters()} == pointers


def test_threads_prepare_and_explain_at_once_beside_another_model():
    """Eight prepare and explain, a ninth runs another model: no error, and the bits of a single thread."""
    extractor, other, x = tiny("ce"), tiny("re"), embedding()
    stream = shared()
    wanted = prepare(extractor, x).smoothgrad(x, TARGET, stream, num_samples=2)
    logits = other(x)
    errors, results, running = [], [], True

    def explain():
        try:
            results.append(prepare(extractor, x).smoothgrad(x, TARGET, stream, num_samples=2))
        except Exception as error:
            errors.append(error)

    def serve():
        while running:
            try:
                results.append(wanted if torch.equal(other(x), logits) else None)
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=explain) for _ in range(8)]
    server = threading.Thread(target=serve)
    for thread in (server, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    running = False
    server.join()
    assert not errors
    assert len(results) > 8 and all(result is not None and torch.equal(result, wanted) for result in results)
    assert all(parameter.requires_grad for parameter in extractor.parameters())


def test_the_first_call_imports_neither_dynamo_nor_sympy():
    code = (
        "import sys, torch; from torch import nn; import cortex_fast as cf;"
        "m = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)).eval();"
        "cf.token_saliency(m, torch.randn(2, 4, 4, 4), torch.tensor([0, 1]), num_samples=2);"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_preparing_leaks_nothing():
    """No tensor outlives a prepared extractor, even without garbage collection."""
    import gc

    extractor, x = tiny("ce").requires_grad_(False), embedding()
    prepare(extractor, x)
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(item, torch.Tensor) for item in gc.get_objects())
        for _ in range(3):
            prepare(extractor, x)
        assert sum(isinstance(item, torch.Tensor) for item in gc.get_objects()) == before
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("output", "part"),
    [
        (lambda y: type("Result", (), {"logits": y})(), None),
        (lambda y: {"logits": y, "features": y[:, :1]}, None),
        (lambda y: {"scores": y}, "scores"),
        (lambda y: (y[:, :1], y), 1),
        (lambda y: [y, y[:, :1]], 0),
        (lambda y: type("Result", (), {"scores": y})(), "scores"),
    ],
)
def test_the_part_that_holds_the_logits(output, part):
    inner = ended(lambda self, x: self.conv(x), conv=conv())
    whole, x = Of(lambda self, x: output(self.inner(x)), inner=inner), embedding()
    prepared = prepare(whole, x, output=part)
    assert not prepared.notes[0].startswith(AS_IT_IS)
    assert relative(prepared.value_and_grad(x, TARGET)[1], autograd(inner, x, TARGET)[1]) < 1e-4
    assert torch.equal(prepared.logits(x), inner(x))


@pytest.mark.parametrize(
    ("part", "message"), [("nothing", "^output: expected a part"), (3, "^output: expected a part")]
)
def test_a_missing_part_is_refused(part, message):
    whole = Of(lambda self, x: {"logits": self.head(x.flatten(1))}, head=linear(CHANNELS * GRID**2))
    with pytest.raises(ValueError, match=r"^output: expected a part of the extractor's dict with the keys 'logits'"):
        prepare(whole, embedding(), output=part)


@pytest.mark.parametrize(
    "function",
    [
        torch.no_grad()(lambda self, x: self.head(x.flatten(1))),
        lambda self, x: self.head(x.detach().flatten(1)),
        lambda self, x: self.head((x > 0).float().flatten(1)),
    ],
)
def test_an_extractor_without_gradient_is_refused(function):
    with pytest.raises(ValueError, match=r"^extractor: expected logits that are differentiable in the embedding"):
        prepare(Of(function, head=linear(CHANNELS * GRID**2)), embedding())


def test_weights_created_in_inference_mode():
    torch.manual_seed(0)
    with torch.inference_mode():
        extractor = ended(lambda self, x: self.conv(x), conv=conv())
    ordinary = ended(lambda self, x: self.conv(x), conv=conv())
    x = embedding()
    gradient = prepare(extractor, x).value_and_grad(x, TARGET)[1]
    assert relative(gradient, autograd(ordinary, x, TARGET)[1]) < 1e-4


def recurrent(self, x):
    return self.head(self.rnn(x.flatten(2).mT)[0].flatten(1))  # batch_first forgotten: over the images


def by_frequency(self, x):
    spectrum = torch.einsum("bchw,cd->bdhw", torch.fft.rfft2(x), self.rows)
    y = torch.fft.irfft2(spectrum, s=x.shape[2:])
    return self.head((y * y.mean(0).sigmoid()).flatten(1))


def mixing(function, **modules):
    extractor = Of(function, head=linear(CHANNELS * GRID**2), **modules)
    extractor.register_buffer("rows", torch.randn(CHANNELS, CHANNELS, dtype=torch.complex64))
    return extractor


@pytest.mark.parametrize(
    "sample", [embedding(), torch.zeros(1, CHANNELS, GRID, GRID), torch.ones(1, CHANNELS, GRID, GRID)]
)
@pytest.mark.parametrize(
    "make",
    [
        lambda: mixing(recurrent, rnn=nn.LSTM(CHANNELS, CHANNELS)),
        lambda: mixing(by_frequency),
        lambda: mixing(lambda self, x: self.head((x * x.mean(0)).flatten(1))),
        lambda: mixing(lambda self, x: self.head(x.cumsum(0).tanh().flatten(1))),
        lambda: mixing(lambda self, x: self.head((x * (4000 / x.norm()).clamp(max=1)).flatten(1))),
        lambda: mixing(lambda self, x: self.head((x * torch.where(x.abs().amax() > 500, 0.1, 1.0)).flatten(1))),
        lambda: mixing(lambda self, x: self.head((x * x.mean(0)).flatten(1)) * 1e-30),
    ],
)
def test_mixing_is_detected_for_any_sample_and_without_float64(make, sample):
    torch.manual_seed(2)
    extractor, x = make(), embedding()
    prepared = prepare(extractor, sample)
    assert "image by image" in prepared.notes[0]
    assert relative(prepared.value_and_grad(x, TARGET)[1], autograd(extractor, x, TARGET)[1]) < 1e-4


def clipped(self, x):
    h = self.conv(x)
    h.data = h.data.clamp(-4, 4)
    return h.square()


def alone_otherwise(self, x):
    h = self.conv(x)
    return h.tanh() if len(x) > 1 else 2 * h.tanh()


class Remembered(nn.Module):
    """Stores the mean of the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.head = None, linear(CHANNELS * GRID**2)

    def forward(self, x):
        if self.mean is None:
            self.mean = x.detach().mean((0, 2, 3), keepdim=True)
        return self.head(torch.tanh(x - self.mean).flatten(1))


@pytest.mark.parametrize("function", [clipped, alone_otherwise])
def test_forwards_that_no_graph_shows_run_as_they_are(function):
    extractor, x = ended(function, conv=conv()), 30 * embedding()
    prepared = prepare(extractor, 0.01 * embedding())
    assert "image by image" in prepared.notes[0]
    assert relative(prepared.value_and_grad(x, TARGET)[1], autograd(extractor, x, TARGET)[1]) < 1e-4


def test_state_of_the_first_batch_is_refused_until_it_is_stored():
    extractor, x = Remembered().eval(), embedding()
    with pytest.raises(ValueError, match=r"^extractor: its first forward stores results that later ones read"):
        prepare(extractor, x)
    assert extractor.mean is None
    extractor(x)
    prepared = prepare(extractor, x)
    assert not prepared.notes[0].startswith(AS_IT_IS)
    assert relative(prepared.value_and_grad(x, TARGET)[1], autograd(extractor, x, TARGET)[1]) < 1e-4


def penalised(self, x):
    y = self.conv(x).square()
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y + slope.mean((1, 2, 3), keepdim=True)


def shaped_in_place(self, x):
    h = self.conv(x).unsqueeze(1)
    h.squeeze_(1)
    h.transpose_(2, 3)
    return h.mul_(2)


def constants_for_the_batch(self, x):
    """Constants of a row for each image, written into."""
    zeros = torch.zeros(len(x), 8, GRID, GRID)
    zeros[:, :, 1:] = 1
    zeros.mul_(2)
    mask = torch.ones(len(x), 8, GRID, GRID, dtype=torch.bool)
    mask[:, ::2].fill_(False)
    return torch.tanh(self.conv(x)).masked_fill(mask, 0.25) * zeros


def table_written(self, x):
    table = torch.tensor([1.0, 2.0, 3.0, 4.0])
    table[1] = 5
    return torch.tanh(self.conv(x)) * table.repeat(2)[:, None, None]


@pytest.mark.parametrize(
    ("make", "fast"),
    [
        (lambda: ended(penalised, conv=conv()), None),
        (lambda: ended(shaped_in_place, conv=conv()), True),
        (lambda: ended(table_written, conv=conv()), True),
        (lambda: ended(constants_for_the_batch, conv=conv()), True),
        (lambda: torch.jit.script(nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), linear(FEATURES)).eval()), None),
        (lambda: Of(lambda self, x: self.head(torch.tanh(x).reshape(1, -1)), head=linear(CHANNELS * GRID**2)), False),
    ],
)
def test_forms_of_users_forwards(make, fast):
    extractor, x = make(), embedding()
    prepared = prepare(extractor, x)
    if fast is not None:
        assert prepared.notes[0].startswith("autograd") != fast
    assert relative(prepared.value_and_grad(x, TARGET)[1], autograd(extractor, x, TARGET)[1]) < 1e-4


def test_a_model_may_hold_unusual_tensors():
    extractor, x = ended(lambda self, x: self.conv(x) * self.scale, conv=conv()), embedding()
    extractor.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.bfloat16))
    extractor._parameters = dict(reversed(extractor._parameters.items()))
    extractor.register_buffer("sparse", torch.eye(3).to_sparse())
    prepared = prepare(extractor, x)
    prepared.check_weights()
    assert relative(prepared.value_and_grad(x, TARGET)[1], autograd(extractor, x, TARGET)[1]) < 1e-4


def test_complex_logits_are_refused():
    with pytest.raises(ValueError, match=r"^extractor: expected floating-point logits, got torch.complex64"):
        prepare(
            Of(lambda self, x: torch.fft.fft(self.head(x.flatten(1))), head=linear(CHANNELS * GRID**2)), embedding()
        )


def test_autocast_around_preparing_leaves_no_casts():
    extractor, x = ended(lambda self, x: self.conv(x).tanh(), conv=conv()), embedding()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prepared = prepare(extractor, x)
    assert relative(prepared.value_and_grad(x, TARGET)[1], autograd(extractor, x, TARGET)[1]) < 1e-4


def test_a_fourier_layer_is_a_graph():
    torch.manual_seed(2)
    extractor = mixing(lambda self, x: self.head(torch.tanh(torch.fft.irfft2(
        torch.einsum("bchw,cd->bdhw", torch.fft.rfft2(x), self.rows), s=x.shape[2:])).flatten(1)))  # fmt: skip
    prepared, x = prepare(extractor, embedding()), embedding()
    assert not prepared.notes[0].startswith(AS_IT_IS)
    assert relative(prepared.value_and_grad(x, TARGET)[1], autograd(extractor, x, TARGET)[1]) < 1e-4


def test_a_grid_other_than_the_samples_is_refused():
    """A graph contains the grid's sizes as numbers."""
    extractor = Of(lambda self, x: self.head(self.conv(x).sum((2, 3)) / x.shape[2]), conv=conv(), head=linear(8))
    prepared, other = prepare(extractor, embedding()), embedding(grid=6)
    for call in (prepared.value_and_grad, lambda x, t: prepared.smoothgrad(x, t, shared())):
        with pytest.raises(ValueError, match=r"^x: expected shape \[B, 5, 8, 8\], .* got \[3, 5, 6, 6\]"):
            call(other, TARGET)
    with pytest.raises(ValueError, match=r"^sample: expected shape"):
        prepare(prepared, other)


def test_a_half_precision_of_other_results_is_not_used():
    extractor, x = ended(lambda self, x: Rounded.apply(self.conv(x)), conv=conv()), embedding()
    with torch.no_grad():
        extractor.head.weight.mul_(1e-9)
        extractor.conv.weight.mul_(10)
    prepared = prepare(extractor, x, precision="float16")
    assert "float16 does not serve" in prepared.notes[0]
    wanted = autograd(extractor, x, TARGET)[1]
    assert relative(prepared.value_and_grad(x, TARGET)[1], wanted) < 1e-4


@pytest.mark.parametrize(
    ("extractor", "sample", "message"),
    [
        (tiny("ce"), embedding()[0], r"^sample: expected shape"),
        (tiny("ce"), embedding().int(), r"^sample: expected a floating-point"),
        (tiny("ce"), embedding() * torch.nan, r"^sample: expected finite"),
        (tiny("ce"), embedding().numpy(), r"^sample: expected a torch.Tensor"),
        (lambda x: x, embedding(), r"^extractor: expected a torch.nn.Module"),
    ],
)
def test_a_wrong_sample_or_extractor_is_refused(extractor, sample, message):
    with pytest.raises((TypeError, ValueError), match=message):
        prepare(extractor, sample)


def test_the_bytes_of_a_copy_are_reproducible_and_cover_saved_activations():
    """16 results of tanh of 8 x 8 x 8 floats, at least."""
    layers = [layer for _ in range(16) for layer in (conv(8, 8), nn.Tanh())]
    extractor = nn.Sequential(conv(), *layers, nn.Flatten(), linear(FEATURES)).eval()
    sizes = {prepare(extractor, embedding()).bytes_of_copy for _ in range(3)}
    assert len(sizes) == 1 and sizes.pop() >= 16 * 8 * 8 * 8 * 4
