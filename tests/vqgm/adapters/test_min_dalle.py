"""min-dalle's detokenizer, and its names among those of taming's f16-16384."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from cortex_fast.vqgm import UnsupportedError, VQModel, adapt
from tests.vqgm.f16_16384 import F16_16384


def detokenizer():
    """The library's class, from its own file: importing the package turns gradients off for the whole process."""
    package = importlib.util.find_spec("min_dalle")
    if package is None:
        pytest.skip("min-dalle is not installed")
    file = Path(package.origin).parent / "models" / "vqgan_detokenizer.py"
    spec = importlib.util.spec_from_file_location("min_dalle.models.vqgan_detokenizer", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VQGanDetokenizer


@torch.no_grad()
def test_it_is_the_library():
    with torch.device("meta"):
        model = detokenizer()()
    torch.manual_seed(0)
    # its decoder has one size only, of 42 M parameters, which both would run: a small one in its place
    model.decoder = nn.Sequential(nn.Conv2d(256, 3, 3, padding=1), nn.Upsample(scale_factor=16))
    model.post_quant_conv = nn.Conv2d(256, 256, 1)
    model.embedding = nn.Embedding(2**14, 256)
    adapted = adapt(model)
    tokens = torch.randint(0, 2**14, (1, 16, 16))
    wanted = model(False, tokens.flatten(1)).permute(2, 0, 1)[None] / 255  # one image as 256 x 256 x 3
    assert wanted.std() > 0.1 and wanted.min() == 0  # and some of it was clipped
    torch.testing.assert_close(adapted.decode(tokens), wanted, rtol=0, atol=1e-5)
    assert adapted.grid == 16
    with pytest.raises(UnsupportedError, match="encode: min-dalle's VQGanDetokenizer has no encoder"):
        adapted.encode(torch.rand(1, 3, 256, 256))


def test_its_names_are_those_of_the_f16_16384_decoder():
    with torch.device("meta"):
        theirs, ours = detokenizer()().state_dict(), VQModel(**F16_16384).state_dict()
    named = {f"quantize.{key}" if key.startswith("embedding.") else key: value.shape for key, value in theirs.items()}
    rest = ("encoder.", "quant_conv.")
    assert named == {key: value.shape for key, value in ours.items() if not key.startswith(rest)}
