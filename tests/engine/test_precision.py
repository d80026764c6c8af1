"""float32 without tf32: its flags are off inside the engine, restored afterwards, and never cost the fast path."""

import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cortex_fast.engine import prepare
from cortex_fast.engine.precision import without_tf32
from tests.engine.test_prepared import AS_IT_IS, TARGET, shared
from tests.engine.user_modules import embedding, relative
from tests.known_extractors import tiny


def flags() -> list[object]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return [cudnn.allow_tf32, matmul.allow_tf32, torch.get_float32_matmul_precision(), cudnn.conv.fp32_precision]


class Rounding(TorchDispatchMode):
    """Convolutions as on a GPU: float32 operands are rounded to 10 bits of mantissa where torch's flag allows it."""

    rounded = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        packet = operator.overloadpacket
        convolutions = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)
        if packet in convolutions and torch.backends.cudnn.allow_tf32:
            self.rounded += 1
            args = tuple(rounded(value) if isinstance(value, torch.Tensor) else value for value in args)
        return operator(*args, **(kwargs or {}))


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype != torch.float32:
        return tensor
    return ((tensor.view(torch.int32) + 4096) & -8192).view(torch.float32)


@pytest.fixture(autouse=True)
def restored_flags():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("products", ["highest", "high", "medium"])
def test_the_flags_are_off_inside_and_restored(allowed, products):
    torch.backends.cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision(products)
    before = flags()
    with pytest.raises(KeyError), without_tf32(), without_tf32():
        assert flags()[:3] == [False, False, "highest"]
        raise KeyError
    assert flags() == before
    with without_tf32(False):
        assert flags() == before


def test_the_last_thread_restores_them():
    before, inside, leave = flags(), threading.Event(), threading.Event()

    def stay():
        with without_tf32():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=stay)
    with without_tf32():
        thread.start()
        inside.wait(10)
    assert flags()[0] is False
    leave.set()
    thread.join()
    assert flags() == before


@pytest.mark.parametrize("kind", ["ce", "re"])
def test_the_fast_path_survives_convolutions_rounded_to_tf32(kind):
    extractor, x = tiny(kind), embedding()
    wanted = prepare(extractor, x, copies=1).smoothgrad(x, TARGET, shared(), num_samples=2)
    with Rounding() as mode:
        prepared = prepare(extractor, x, copies=1)
        got = prepared.smoothgrad(x, TARGET, shared(), num_samples=2)
        assert mode.rounded == 0
        rounded = prepare(extractor, x, copies=1, precision="tf32")
        other = rounded.smoothgrad(x, TARGET, shared(), num_samples=2)
        assert mode.rounded > 0
    assert torch.equal(got, wanted)
    assert 1e-6 < relative(other, wanted) < 0.1
    for extractor_prepared in (prepared, rounded):
        assert not extractor_prepared.notes[0].startswith(AS_IT_IS)
